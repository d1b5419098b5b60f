#!/usr/bin/env bash
# Fuzzes every reader of files under AddressSanitizer and UBSan, two at a time: `tests/fuzz/run.sh [SECONDS [READER...]]`.
# Needs clang with libFuzzer (Debian: clang, libomp-dev). Exits 1 where a reader crashed, leaked or took more than 2 GiB;
# the input then lies in build/fuzz/found. Put it into tests/fuzz/found/READER once it is repaired: tests read it again.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:-60}
[ $# -gt 0 ] && shift
readers=("$@")
[ ${#readers[@]} -gt 0 ] || readers=(npz npy png jpeg safetensors yaml)
cmake --preset fuzz >/dev/null
cmake --build build/fuzz --target "${readers[@]/#/fuzz_}" -- --quiet
mkdir -p build/fuzz/found
fuzz() {
  mkdir -p "build/fuzz/corpus/$1"
  log=build/fuzz/$1.log
  result=ok
  "build/fuzz/tests/fuzz/fuzz_$1" "build/fuzz/corpus/$1" -max_total_time="$2" -max_len=65536 -rss_limit_mb=2048 -timeout=20 \
    -print_final_stats=1 -artifact_prefix="build/fuzz/found/$1-" >"$log" 2>&1 || result=FAULT
  awk -v reader="$1" -v result="$result" '/number_of_executed_units/ { n = $2 } / cov: / { for (i = 1; i < NF; ++i) if ($i == "cov:") c = $(i + 1) }
    END { printf "%-12s %10d inputs, coverage %6d, %s\n", reader, n, c, result }' "$log"
  [ "$result" = ok ]
}
export -f fuzz
printf '%s\n' "${readers[@]}" | xargs -P 2 -I {} bash -c 'fuzz "$1" "$2"' _ {} "$seconds"
