#!/usr/bin/env bash
# What zoft does on this machine's GPU, proved and measured in ten minutes: DIR/gpu.md, DIR/gpu.jsonl.
#
#   bash scripts/gpu.sh                             the most telling first; a cut leaves what was found
#   bash scripts/gpu.sh --minutes 5 --out DIR       default: 10 minutes, runs/gpu
#   bash scripts/gpu.sh --python python3            on a machine without a network: nothing is installed
#   bash scripts/gpu.sh --rehearse                  the same code on the CPU with tiny shapes
#
# Runs with .venv's python if there is one, else with python3. --commit names what runs where no git does.
# Exit 1 if a part went wrong; the others' results are there all the same.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=.venv/bin/python out=runs/gpu commit='' more=()
[[ -x $python ]] || python=python3
while (($#)); do
    case $1 in
        --python) python=${2:?--python needs a program}; shift 2 ;;
        --out) out=${2:?--out needs a folder}; shift 2 ;;
        --minutes) more+=(--minutes "${2:?--minutes needs a number}"); shift 2 ;;
        --commit) commit=${2:?--commit needs a name}; shift 2 ;;
        --rehearse) more+=(--rehearse); shift ;;
        *) echo "error: bash scripts/gpu.sh [--minutes N] [--out DIR] [--python PYTHON] [--commit ID] [--rehearse]" >&2
           exit 2 ;;
    esac
done

commit=${commit:-$(git describe --always --dirty 2>/dev/null || echo 'commit unknown')}
card=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -n 1) || card=''
export PYTHONPATH=$PWD:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1
code=0
"$python" -W ignore -m gpu.campaign --out "$out" --card "${card:-no GPU}" --commit "$commit" "${more[@]}" || code=$?
echo "$out/gpu.md"
exit "$code"
