#!/usr/bin/env bash
# Installs what the build needs and is missing: Debian packages, and from PyPI the wheels that carry headers and
# libraries, into .deps of the checkout. --mpi: MPI too. --tests: also what only tests want, MPI among it, and Python
# packages into .deps/python. The only place that installs anything; running it twice does nothing twice.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(g++ cmake ninja-build pkg-config ccache libgtest-dev libgmock-dev libyaml-cpp-dev
  libcli11-dev nlohmann-json3-dev libzip-dev libpng-dev libjpeg-dev libprotobuf-dev protobuf-compiler python3)
[[ " $* " != *" --tests "* && " $* " != *" --mpi "* ]] || packages+=(openmpi-bin libopenmpi-dev)
missing=()
for p in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
done
command -v pip3 >/dev/null || python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)
if [ ${#missing[@]} -gt 0 ]; then
  echo "setup: installing ${missing[*]}"
  sudo=""; [ "$(id -u)" -eq 0 ] || sudo=sudo
  $sudo apt-get update -q >/dev/null
  DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null
fi

# name==version, and what of the wheel is used
wheels=(onednn-devel-cpu-gomp==2023.2.0 onednn-cpu-gomp==2023.2.0 nvidia-cuda-cccl==13.3.5.0.6 nvidia-cudnn-frontend==1.32.0
  onnx==1.23.2)
stamp=.deps/installed
if [ "$(cat "$stamp" 2>/dev/null)" != "${wheels[*]}" ]; then
  echo "setup: fetching ${wheels[*]}"
  rm -rf .deps && mkdir -p .deps
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  # cudnn-frontend is headers here, onnx a schema: any interpreter's wheel carries the same ones.
  python3 -m pip download -q --no-deps --disable-pip-version-check --only-binary=:all: --python-version 3.11 \
    --implementation cp --platform manylinux1_x86_64 --platform manylinux2014_x86_64 --platform manylinux_2_27_x86_64 \
    --platform manylinux_2_28_x86_64 -d "$work" "${wheels[@]}"
  for wheel in "$work"/*.whl; do python3 -m zipfile -e "$wheel" "$work/unpacked"; done
  for data in "$work"/unpacked/onednn_*.data/data; do cp -r "$data"/{include,lib} .deps/ 2>/dev/null || cp -r "$data"/lib .deps/; done
  mkdir -p .deps/include .deps/cccl .deps/onnx
  cp -r "$work"/unpacked/include/* .deps/include/                # cudnn-frontend
  cp -r "$work"/unpacked/nvidia/cu13/include/cccl/* .deps/cccl/  # Thrust
  cp "$work"/unpacked/onnx/onnx.proto .deps/onnx/
  echo "${wheels[*]}" > "$stamp"
fi

# Beside a CUDA toolkit that has none: NCCL, by which ranks exchange between GPUs.
nccl=nvidia-nccl-cu13==2.32.3 stamp=.deps/nccl/installed
nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
if [ -x "$nvcc" ] && [ ! -e "$(dirname "$nvcc")/../include/nccl.h" ] && [ ! -e /usr/include/nccl.h ] &&
  [ "$(cat "$stamp" 2>/dev/null)" != "$nccl" ]; then
  echo "setup: fetching $nccl"
  rm -rf .deps/nccl && mkdir -p .deps/nccl .deps/lib
  wheel=$(mktemp -d)
  trap 'rm -rf "${work:-}" "$wheel"' EXIT
  python3 -m pip download -q --no-deps --disable-pip-version-check --only-binary=:all: --platform manylinux_2_27_x86_64 \
    -d "$wheel" "$nccl"
  python3 -m zipfile -e "$wheel"/*.whl "$wheel/unpacked"
  cp "$wheel"/unpacked/nvidia/nccl/include/nccl.h .deps/nccl/
  mv "$wheel"/unpacked/nvidia/nccl/lib/libnccl.so.2 .deps/lib/
  echo "$nccl" > "$stamp"
fi

# What an exported network is tested by, ONNX Runtime and ONNX's checker; and event files, TensorBoard's reader.
python_packages=(numpy==2.4.6 onnxruntime==1.32.0 onnx==1.23.2 protobuf==7.36.2 ml_dtypes==0.6.0 typing_extensions==4.16.0
  tensorboard==2.21.0 absl-py==2.5.1)
stamp=.deps/python/installed
if [[ " $* " == *" --tests "* && "$(cat "$stamp" 2>/dev/null)" != "${python_packages[*]}" ]]; then
  echo "setup: fetching ${python_packages[*]}"
  rm -rf .deps/python
  python3 -m pip install -q --no-deps --disable-pip-version-check --only-binary=:all: --root-user-action=ignore \
    --target .deps/python "${python_packages[@]}"
  echo "${python_packages[*]}" > "$stamp"
fi
