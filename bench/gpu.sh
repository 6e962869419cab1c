#!/usr/bin/env bash
# What a GPU can tell in a few minutes, most worth knowing first: bash bench/gpu.sh [--minutes 5] [--out DIR]
# From a checkout, installed or not, without network; docs/gpu.md says what it needs and what each stage means.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "${PYTHON:-$(command -v python || command -v python3)}" -m bench.gpu "$@"
