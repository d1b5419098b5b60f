#!/usr/bin/env bash
# Installs what is missing, builds for the CPU, and runs all tests. `--cuda` builds with nvcc as well (cuDNN's plans are
# then tested without a device); `--sanitize` adds the kernels under AddressSanitizer and ThreadSanitizer.
set -euo pipefail
cd "$(dirname "$0")/.."
start=$SECONDS
tools/setup.sh
case " $* " in *" --cuda "*) preset=cuda ;; *) preset=release ;; esac
launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
[ "$preset" = cuda ] && launcher+=(-DCMAKE_CUDA_COMPILER_LAUNCHER=ccache -DCMAKE_CUDA_COMPILER="$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)")
# Threads that spin would wait for each other when tests run side by side.
export OMP_WAIT_POLICY=passive
jobs=$(nproc)
total=0 skipped=0 failed=0

run_tests() {  # preset, ctest arguments
  local build=build/$1 log
  shift
  log=$(mktemp)
  ctest --test-dir "$build" -j "$jobs" --output-on-failure --no-tests=error "$@" >"$log" 2>&1 || true
  grep -vE '^ +(Start|[0-9]+/[0-9]+ Test).*' "$log" | tail -n 60
  local count fails skips
  count=$(sed -nE 's/.* tests failed out of ([0-9]+).*/\1/p' "$log" | tail -n 1)
  fails=$(sed -nE 's/.*% tests passed, ([0-9]+) tests failed.*/\1/p' "$log" | tail -n 1)
  skips=$(grep -cE '\*\*\*Skipped' "$log" || true)
  total=$((total + ${count:-0})) skipped=$((skipped + skips)) failed=$((failed + ${fails:-1}))
  rm -f "$log"
}

echo "== $preset: everything"
cmake --preset "$preset" "${launcher[@]}" >/dev/null
cmake --build "build/$preset" -- --quiet
run_tests "$preset"
if [[ " $* " == *" --sanitize "* ]]; then
  for sanitizer in asan tsan; do
    echo "== $sanitizer: every kernel in the checked executor, and the simulated device"
    cmake --preset "$sanitizer" -DCMAKE_CXX_COMPILER_LAUNCHER=ccache >/dev/null
    cmake --build "build/$sanitizer" --target test_kernels -- --quiet
    run_tests "$sanitizer" -L kernel -E KernelReport
  done
fi
echo "tests took $((SECONDS - start))s in all"
echo "$((total - skipped - failed)) passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
