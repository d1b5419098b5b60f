#!/usr/bin/env bash
# run.sh ENGINE_RUN EXAMPLE: the README shows the example as it is; trains a network for a moment, and has the example
# print what it sees in a black image.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
source=$(cd "$(dirname "$0")/../../.." && pwd)
python3 - "$source" <<'PYTHON'
import sys
example = open(sys.argv[1] + "/tests/deploy/example/main.cpp").read().split("\n", 1)[1]
shown = "\n".join("    " + line if line else "" for line in example.strip("\n").split("\n"))
assert shown in open(sys.argv[1] + "/deploy/README.md").read(), "deploy/README.md shows another example than main.cpp"
PYTHON
"$1" "$source/configs/quickstart.yaml" run.device=cpu run.output="$folder" train.epochs=1 data.synthetic.count=40 >/dev/null
head -c 8192 /dev/zero | "$2" "$folder/quickstart" 64 128 | tee "$folder/shares"
[ "$(grep -c '%$' "$folder/shares")" -eq 5 ]
! head -c 8192 /dev/zero | "$2" "$folder/none" 64 128 2>"$folder/error"
grep -q "none: expected a run folder" "$folder/error"
