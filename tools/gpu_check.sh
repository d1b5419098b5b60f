#!/usr/bin/env bash
# Everything that only a GPU can show, in one call of under ten minutes: the GPU tests, sanitizers, a short training of
# every network in every precision, benchmarks, profiles of the fused kernels.
#
#   tools/gpu_check.sh OUT            builds build/cuda first
#   BUILD=DIR tools/gpu_check.sh OUT  takes what stands in DIR
#
# Writes OUT/<step>.txt, OUT/summary.txt and OUT/summary.json. A step that fails does not stop the others; the exit
# status is then 1. Without a GPU: 3. SECONDS_MAX (570) is the time for all; steps that no longer fit are skipped.
set -u
[ $# -eq 1 ] || { echo "usage: [BUILD=DIR] $0 OUT" >&2; exit 2; }
if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L >/dev/null 2>&1; then
  echo "gpu_check: this machine has no GPU (nvidia-smi finds none)"
  exit 3
fi
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.." || exit 2
limit=${SECONDS_MAX:-570}
build=${BUILD:-build/cuda}
: >"$out/steps.tsv"

# step NAME SECONDS COMMAND...: runs the command for at most so long, keeps its output and its verdict.
step() {
  local name=$1 most=$2 left=$((limit - SECONDS)) began=$SECONDS status
  shift 2
  [ "$most" -lt "$left" ] || most=$left
  if [ "$most" -lt 5 ]; then
    printf '%s\tskipped\t0\tno time left\n' "$name" >>"$out/steps.tsv"
    return
  fi
  timeout --kill-after=10 "$most" "$@" >"$out/$name.txt" 2>&1
  case $? in
    0) status=passed ;;
    124 | 137) status=timeout ;;
    *) status=failed ;;
  esac
  local last
  last=$(grep -v '^[[:space:]]*$' "$out/$name.txt" | tail -n 1 | tr '\t\r' '  ' | cut -c1-100)
  printf '%s\t%s\t%d\t%s\n' "$name" "$status" $((SECONDS - began)) "$last" >>"$out/steps.tsv"
  printf '%-28s %-8s %4d s  %s\n' "$name" "$status" $((SECONDS - began)) "$last"
}
skip() {
  printf '%s\tskipped\t0\t%s\n' "$1" "$2" >>"$out/steps.tsv"
  printf '%-28s %-8s %4d s  %s\n' "$1" skipped 0 "$2"
}

nvidia-smi >"$out/nvidia-smi.txt" 2>&1
if [ -z "${BUILD:-}" ]; then
  step configure 60 cmake --preset cuda
  step build 400 cmake --build "$build" -j "$(nproc)"
fi
step gpu_tests 150 ctest --test-dir "$build" -L gpu --no-tests=error --output-on-failure -j 4

# train PRECISION: a few steps of every network, on terrain made from a seed.
train() {
  local config network
  for config in table1/{unet,se_unet,unet_plus_plus,double_unet} experiments/unet_transformer_mars; do
    network=$(basename "$config" _mars)
    step "train_${network}_$1" 30 "$build/bin/engine_run" "configs/$config.yaml" \
      data.synthetic.count=512 run.device=cuda "run.precision=$1" "run.output=$out/runs" \
      "run.name=${network}_$1" train.epochs=2 train.steps_per_epoch=20
  done
}
train bf16

for network in unet se_unet unet_plus_plus double_unet; do
  step "compare_torch_$network" 60 python3 tools/bench/compare_torch.py --device cuda --model "$network" --batch 128 \
    --engine "$build/bin/engine_profile" --json "$out/compare_torch_$network.json"
done
step engine_bench 60 "$build/bin/engine_bench" --device cuda --dtype bf16 --seconds 0.05 --json "$out/engine_bench.json"

if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    step "sanitizer_$tool" 60 compute-sanitizer --tool "$tool" --error-exitcode 1 \
      "$build/tests/test_kernels" --gtest_filter='*CudaCase*'
  done
else
  skip sanitizers "compute-sanitizer is not installed"
fi

train fp16
train tf32
train fp32

if command -v ncu >/dev/null; then
  step ncu 60 ncu --set basic --launch-count 200 --csv "$build/tests/test_kernels" \
    --gtest_filter='*CudaCase*_large*'
else
  skip ncu "Nsight Compute is not installed"
fi

python3 - "$out" <<'PYTHON'
import json, pathlib, sys
out = pathlib.Path(sys.argv[1])
rows = [line.split("\t", 3) for line in (out / "steps.tsv").read_text().splitlines()]
steps = [dict(zip(("step", "status", "seconds", "last_line"), r)) | {"seconds": int(r[2])} for r in rows]
gpu = next((l.strip("| ") for l in (out / "nvidia-smi.txt").read_text().splitlines() if "NVIDIA-SMI" in l), "")
(out / "summary.json").write_text(json.dumps({"driver": gpu, "steps": steps}, indent=1) + "\n")
width = max(len(s["step"]) for s in steps)
table = "".join(f'{s["step"]:{width}}  {s["status"]:8}{s["seconds"]:5} s  {s["last_line"]}\n' for s in steps)
(out / "summary.txt").write_text(table)
print("\n" + table, end="")
bad = [s["step"] for s in steps if s["status"] in ("failed", "timeout")]
print(f'{sum(s["status"] == "passed" for s in steps)} of {len(steps)} steps passed' + (f'; not: {", ".join(bad)}' if bad else ""))
sys.exit(bool(bad))
PYTHON
