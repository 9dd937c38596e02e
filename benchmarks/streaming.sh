#!/usr/bin/env bash
# The rows of RESULTS.md's table "Streaming": bash benchmarks/streaming.sh PYTHON DIR, where DIR has llama-7b
# and opt-1.3b of scripts/make_model.py. As root, for the memory limits.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$1 models=$2
run() { "$python" benchmarks/streaming.py "$@"; }
run "$models/llama-7b" --tune lora --limit 2.5GB
run "$models/opt-1.3b" --tune full --limit 1.5GB
for batch in 1 16; do # reading hides behind the larger one only
    for repeat in 1 2 3; do
        for residency in device disk; do
            run "$models/opt-1.3b" --tune lora --residency "$residency" --batch "$batch" --steps 5
            run "$models/opt-1.3b" --tune full --residency "$residency" --batch "$batch" --steps 5
        done
    done
done
