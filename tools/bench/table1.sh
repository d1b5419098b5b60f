#!/usr/bin/env bash
# Works on the study's table for as long as it is given, on a GPU or on processors, and goes on where it stopped.
#
#   tools/bench/table1.sh OUT NPZ [--minutes 60] [--seeds 3] [--epochs 200] [--rows "unet se_unet ..."]
#
# OUT: the folder of the runs. The run that has the fewest epochs, of any network and seed, is trained for one more on
# the schedule of the whole run, until the time is up or all have --epochs. Then every run's best weights are scored on
# the inner validation and test images, and OUT/table1.md is written: the mean over the seeds and their spread, with the
# epochs that each run has had. All seeds see the same split. Needs a release or cuda build of engine_run, engine_eval.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
usage() { sed -n '2,10s/^# \{0,1\}//p' "$0"; exit "${1:-2}"; }
[ "${1:-}" != --help ] || usage 0
[ $# -ge 2 ] || usage
out=$1 npz=$(realpath "$2")
shift 2
minutes=60 seeds=3 epochs=200 rows="unet se_unet unet_plus_plus double_unet"
while [ $# -gt 0 ]; do
  case $1 in
    --minutes | --seeds | --epochs | --rows) [ $# -ge 2 ] || usage; declare "${1#--}=$2"; shift 2 ;;
    *) usage ;;
  esac
done
[ -e "$npz" ] || { echo "table1.sh: no such file: $npz" >&2; exit 2; }
bin=$root/build/cuda/bin
{ [ -x "$bin/engine_run" ] && nvidia-smi -L >/dev/null 2>&1; } || bin=$root/build/release/bin
for program in engine_run engine_eval; do
  [ -x "$bin/$program" ] || { echo "table1.sh: $bin/$program is not there: build it first" >&2; exit 2; }
done
mkdir -p "$out"
exec 9>"$out/.lock"
flock -n 9 || { echo "table1.sh: another one works in $out" >&2; exit 2; }

done_epochs() { [ -e "$out/$1/history.jsonl" ] && grep -c '"epoch"' "$out/$1/history.jsonl" || echo 0; }

end=$((SECONDS + minutes * 60)) failed=" "
while [ $SECONDS -lt $end ]; do
  least=$epochs run=
  for seed in $(seq "$seeds"); do
    for row in $rows; do
      [[ $failed != *" $row-seed$seed "* ]] || continue
      n=$(done_epochs "$row-seed$seed")
      if [ "$n" -lt "$least" ] && [ ! -e "$out/$row-seed$seed/scores.json" ]; then
        least=$n run=$row-seed$seed config=$root/configs/table1/$row.yaml
      fi
    done
  done
  [ -n "$run" ] || break
  words=("$config" "data.npz=$npz" "run.seed=${run##*-seed}" data.split.seed=42 "train.epochs=$epochs" "run.name=$run"
    "run.output=$out" --until $((least + 1)))
  [ ! -e "$out/$run/last.safetensors" ] || words+=(--resume "$out/$run")
  echo "$run: epoch $((least + 1))"
  # A signal lets it finish its step and write its checkpoint.
  timeout -s INT -k 60 $((end - SECONDS + 1)) "$bin/engine_run" "${words[@]}" >>"$out/$run.log" 2>&1 || {
    code=$?
    [ $SECONDS -lt $end ] || break
    [ $code -ne 130 ] || exit 130
    echo "$run: failed: $(tail -1 "$out/$run.log")" >&2
    failed+="$run "
  }
done

for run in "$out"/*-seed*/; do
  [ -e "$run/best.safetensors" ] || continue
  for split in validation test; do
    if [ ! "$run/eval-$split/scores.json" -nt "$run/best.safetensors" ]; then
      "$bin/engine_eval" "$run" --split $split --all-classes --output "$run/eval-$split" --force >/dev/null
    fi
  done
done
python3 - "$out" <<'PY' | tee "$out/table1.md"
import json, pathlib, statistics, sys

out = pathlib.Path(sys.argv[1])
study = {"unet": (40.83, 45.32), "double_unet": (57.74, 58.79), "se_unet": (61.2, 59.19), "unet_plus_plus": (66.75, 62.76)}

def text(values):
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"

print("| network | seeds | epochs each | seconds an epoch | validation | test | big rock, test | study: validation, test |")
print("|---|---|---|---|---|---|---|---|")
for name, numbers in study.items():
    runs = [r for r in sorted(out.glob(f"{name}-seed*/")) if (r / "eval-test/scores.json").exists()]
    if not runs:
        continue
    history = [[json.loads(l) for l in (r / "history.jsonl").read_text().splitlines()] for r in runs]
    scores = {s: [json.loads((r / f"eval-{s}/scores.json").read_text()) for r in runs] for s in ("validation", "test")}
    mean = {s: text([100 * v["miou_foreground"] for v in scores[s]]) for s in scores}
    rock = text([100 * (v["classes"][4]["iou"] or 0) for v in scores["test"]])
    seconds = statistics.median(e["seconds"] for h in history for e in h)
    print(f"| {name} | {len(runs)} | {', '.join(str(len(h)) for h in history)} | {seconds:.0f} | {mean['validation']} | "
          f"{mean['test']} | {rock} | {numbers[0]}, {numbers[1]} (200 epochs) |")
PY
[ "$failed" = " " ] || exit 1
