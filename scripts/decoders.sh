#!/usr/bin/env bash
# Hold zoft against every causal decoder of transformers (an hour), each in a process of its own.
#
#   bash scripts/decoders.sh [--out DIR] [--again] [FILTER...]
#
# FILTER is a part of an architecture's name, e.g. mamba. Results are kept in DIR (runs/decoders), one
# file each; what is there is not run again without --again. When all are there, docs/decoders.md is written.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
filters=()
while (($#)); do
    case $1 in
        --out) export DECODERS_OUT=$2 && shift ;;
        --again) export DECODERS_AGAIN=1 ;;
        *) filters+=("$1") ;;
    esac
    shift
done
bash scripts/env.sh test
chosen=$(printf ' or %s' "${filters[@]}")
exec .venv/bin/python -m pytest -m decoders -s -p no:warnings tests/decoders/test_decoders.py \
    ${filters:+-k "page or${chosen# or}"}
