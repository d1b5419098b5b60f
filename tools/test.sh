#!/usr/bin/env bash
# Installs what is missing, builds, and runs all tests: with the CUDA part wherever nvcc is (the GPU tests skip where
# there is no GPU; cuDNN's plans are built without one), and every kernel under AddressSanitizer, UBSan and
# ThreadSanitizer. `--quick` leaves the sanitizers out. The last line counts cases; a test of ctest is a share of them.
set -euo pipefail
cd "$(dirname "$0")/.."
start=$SECONDS
tools/setup.sh --tests
# Threads that spin would wait for each other when tests run side by side.
export OMP_WAIT_POLICY=passive
options=(-DCMAKE_UNITY_BUILD=ON -DCMAKE_CXX_COMPILER_LAUNCHER=ccache -DREGOLITH_SANITIZERS=ON)
[[ " $* " != *" --quick "* ]] || options+=(-DREGOLITH_SANITIZERS=OFF)
preset=release
nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null || true)
if [ -n "$nvcc" ]; then
  preset=cuda
  options+=(-DCMAKE_CUDA_COMPILER_LAUNCHER=ccache "-DCMAKE_CUDA_COMPILER=$nvcc")
  PATH=$PATH:$(dirname "$nvcc")
fi

cmake --preset "$preset" "${options[@]}" >/dev/null
cmake --build "build/$preset" -- --quiet
echo "== $preset: built in $((SECONDS - start))s"

log=build/$preset/tests.log
ctest --test-dir "build/$preset" -j "$(nproc)" --verbose --no-tests=error >"$log" 2>&1 || true
echo "tests took $((SECONDS - start))s in all"
exec python3 tools/count_cases.py "$log"
