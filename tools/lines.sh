#!/usr/bin/env bash
# Holds the product to its size: counts the lines of C++ and CUDA (*.h, *.cpp, *.cu) of every folder against the table
# below, and exits 1 if one is over its budget. What a folder needs more, another gives up.
set -euo pipefail
cd "${1:-$(dirname "$0")/..}"
budget="
kernels  13440
engine   17885
models    565
losses     550
data      3035
app       3355
deploy    3230
study     1290
tools     1330"
total=0 most=0 over=0
while read -r folder lines; do
  count=0
  [ ! -d "$folder" ] || count=$(find "$folder" \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' \) -exec cat {} + | wc -l)
  total=$((total + count)) most=$((most + lines))
  note=""
  [ "$count" -le "$lines" ] || { note="  over by $((count - lines))"; over=1; }
  printf '%-8s %6d of %6d%s\n' "$folder" "$count" "$lines" "$note"
done <<<"${budget#$'\n'}"
printf '%-8s %6d of %6d\n' all "$total" "$most"
exit "$over"
