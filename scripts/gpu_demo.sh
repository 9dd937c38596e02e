#!/usr/bin/env bash
# Carry the demo model and data (95 MB) to a machine that has no network and takes little at a time.
#
#   bash scripts/gpu_demo.sh DIR           here: fetch the demo, cut it into DIR/demo.tar.00, .01 (48 MiB each)
#   bash scripts/gpu_demo.sh --join DIR    there, when all parts are in DIR: put .demo together and check it
#
# Exit 4 if the demo cannot be fetched or is not what was expected.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(command -v .venv/bin/python || command -v python3)

if [[ ${1:-} == --join ]]; then
    cat "${2:?--join needs the folder of the parts}"/demo.tar.* | tar -x
else
    dir=${1:?bash scripts/gpu_demo.sh [--join] DIR}
    mkdir -p "$dir"
fi
PYTHONPATH=$PWD "$python" scripts/demo.py
[[ ${1:-} == --join ]] || tar -c .demo | split --bytes 48M --numeric-suffixes - "$dir/demo.tar."
