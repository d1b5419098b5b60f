#!/usr/bin/env bash
# run.sh ENGINE_RUN EXAMPLE: trains a network for a moment, and has the example print what it sees in a black image.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
source=$(cd "$(dirname "$0")/../../.." && pwd)
"$1" "$source/configs/quickstart.yaml" run.device=cpu run.output="$folder" train.epochs=1 data.synthetic.count=40 >/dev/null
head -c 8192 /dev/zero | "$2" "$folder/quickstart" 64 128 | tee "$folder/shares"
[ "$(grep -c '%$' "$folder/shares")" -eq 5 ]
! head -c 8192 /dev/zero | "$2" "$folder/none" 64 128 2>"$folder/error"
grep -q "none: expected a run folder" "$folder/error"
