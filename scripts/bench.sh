#!/usr/bin/env bash
# Every number of the README's table, on this machine: printed, and added to benchmarks/RESULTS.md.
#
#   bash scripts/bench.sh --sst2 DIR|HubId     with convergence on SST-2 (DIR: {train,validation,test}.jsonl;
#                                              HubId: SetFit/sst2). Without it, that part is left out
#   bash scripts/bench.sh --streaming DIR      with a 7B model and an OPT-1.3B streamed from DIR's disk (17 GB are
#                                              written there; memory control groups take root)
#   bash scripts/bench.sh --quick              few repeats and steps: does it run, not what it measures
#
# Stopped, it goes on where it was: raw numbers lie in runs/bench, runs in runs/. Nothing else should
# run meanwhile. Two hours on 2 cores, and convergence a night more.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

sst2='' streaming='' quick=''
while (($#)); do
    case $1 in
        --sst2) sst2=${2:?--sst2 needs a folder or a Hub id}; shift 2 ;;
        --streaming) streaming=${2:?--streaming needs a folder}; shift 2 ;;
        --quick) quick=1; shift ;;
        *) echo "error: bash scripts/bench.sh [--sst2 DIR|HubId] [--streaming DIR] [--quick]" >&2; exit 2 ;;
    esac
done

bash scripts/env.sh test
python=.venv/bin/python
"$python" scripts/demo.py

run() { # bench NAME [arguments]: one benchmark; a quick one leaves RESULTS.md alone
    echo "== benchmarks/$1"
    "$python" "benchmarks/$1" "${@:2}" ${quick:---append}
}

if [[ $quick ]]; then
    quick=--repeats=1
    run kernel_time.py
    run step_time.py
    run widths.py --widths 256
    run memory.py --steps 1
    "$python" benchmarks/quantized.py --directions 1
    if [[ $sst2 ]]; then
        "$python" benchmarks/convergence.py --sst2 "$sst2" --runs runs/convergence-quick --rows 64 \
            --steps 4 --first-order-steps 2 --every 2 --seeds 1 2 --only per-example mezo-gaussian \
            --rates 1e-4
    fi
    exit
fi
bash scripts/quickstart.sh
bash scripts/campaign.sh
run kernel_time.py
run step_time.py
run widths.py
run memory.py
run quantized.py
run plan.py
if [[ $streaming ]]; then
    for shape in llama-7b opt-1.3b; do
        [[ -d $streaming/$shape ]] || "$python" scripts/make_model.py "$shape" "$streaming/$shape"
    done
    bash benchmarks/streaming.sh "$python" "$streaming"
fi
if [[ $sst2 ]]; then
    run convergence.py --sst2 "$sst2" --jobs 2
fi
if "$python" -c 'import sys, torch; sys.exit(not torch.accelerator.is_available())'; then
    bash scripts/gpu.sh
fi
