#!/bin/sh
# What ptxas makes of every kernel, with no GPU: see `tools/kernel_report.sh --help`.
exec python3 "$(dirname "$0")/kernel_report.py" "$@"
