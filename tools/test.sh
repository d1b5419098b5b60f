#!/usr/bin/env bash
# Installs what is missing, builds, and runs all tests: with the CUDA part wherever nvcc is (the GPU tests skip where
# there is no GPU; cuDNN's plans are built without one), and every kernel under AddressSanitizer, UBSan and
# ThreadSanitizer. `--quick` leaves the sanitizers out.
set -euo pipefail
cd "$(dirname "$0")/.."
start=$SECONDS
tools/setup.sh
# Threads that spin would wait for each other when tests run side by side.
export OMP_WAIT_POLICY=passive
jobs=$(nproc)
launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
preset=release
nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null || true)
if [ -n "$nvcc" ]; then
  preset=cuda
  launcher+=(-DCMAKE_CUDA_COMPILER_LAUNCHER=ccache "-DCMAKE_CUDA_COMPILER=$nvcc")
  PATH=$PATH:$(dirname "$nvcc")
fi
total=0 skipped=0 failed=0

# build PRESET TARGET...: quiet but for warnings and errors.
build() {
  local preset=$1 began=$SECONDS
  shift
  cmake --preset "$preset" "${launcher[@]}" >/dev/null
  cmake --build "build/$preset" --target "$@" -- --quiet
  echo "built in $((SECONDS - began))s"
}

run_tests() {  # preset, ctest arguments
  local build=build/$1 log
  shift
  log=$(mktemp)
  ctest --test-dir "$build" -j "$jobs" --output-on-failure --no-tests=error "$@" >"$log" 2>&1 || true
  # What failed, with its output, and the summary; not a line for each of a thousand tests that passed or skipped.
  grep -vE '^ *Start +[0-9]+:|^ *[0-9]+/[0-9]+ Test .*(Passed|Skipped)|^\s*[0-9]+ - .*\(Skipped\)$|^The following tests did not run:$' "$log" | tail -n 100
  local count fails skips
  count=$(sed -nE 's/.* tests failed out of ([0-9]+).*/\1/p' "$log" | tail -n 1)
  fails=$(sed -nE 's/.*% tests passed, ([0-9]+) tests failed.*/\1/p' "$log" | tail -n 1)
  skips=$(grep -cE '\*\*\*Skipped' "$log" || true)
  total=$((total + ${count:-0})) skipped=$((skipped + skips)) failed=$((failed + ${fails:-1}))
  rm -f "$log"
}

echo "== $preset: everything"
build "$preset" all
run_tests "$preset"
if [[ " $* " != *" --quick "* ]]; then
  launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
  for sanitizer in asan tsan; do
    echo "== $sanitizer: every kernel in the checked executor, and the executor itself"
    build "$sanitizer" test_kernels
    run_tests "$sanitizer" -L kernel -E "KernelReport|Oracle|large"  # host loops, benchmarks
  done
fi
echo "tests took $((SECONDS - start))s in all"
echo "$((total - skipped - failed)) passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
