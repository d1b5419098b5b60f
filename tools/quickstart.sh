#!/usr/bin/env bash
# From a fresh checkout to a trained network: installs what is missing, builds, trains on made-up terrain, shows the scores.
set -euo pipefail
cd "$(dirname "$0")/.."
start=$SECONDS
tools/setup.sh
if command -v nvcc >/dev/null && command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
  preset=cuda
  echo "quickstart: nvcc and a GPU are here: building with CUDA"
else
  preset=release
  echo "quickstart: no GPU with nvcc here: building for the CPU"
fi
installed=$SECONDS
cmake --preset "$preset" -DREGOLITH_TESTS=OFF -DCMAKE_UNITY_BUILD=ON -DCMAKE_CXX_COMPILER_LAUNCHER=ccache >/dev/null
cmake --build "build/$preset" --target engine_run -- --quiet
built=$SECONDS
"build/$preset/bin/engine_run" configs/quickstart.yaml "$@"
echo
echo "install $((installed - start))s, build $((built - installed))s, run $((SECONDS - built))s; $((SECONDS - start))s in all"
echo "next: build/$preset/bin/engine_run configs/table1/unet.yaml data.npz=YOUR.npz"
