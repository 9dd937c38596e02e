#!/usr/bin/env bash
# Fetch what zoft and its tests need beside torch and transformers, for a machine without a network.
#
#   bash scripts/gpu_wheels.sh DIR      CPython 3.12, Linux x86-64; the versions of constraints.txt (.gpu/ is ignored by git)
#
# There, from the copied tree:   python3 -m pip install --no-index --no-deps DIR/*.whl
#
# Left out, for they are large and training on local JSONL does without: datasets and pyarrow (sets of the
# Hub, Parquet), numba (kernels on a CPU), matplotlib (curves of a report), wandb. What is there anyway serves.
# Exit 4 if a wheel cannot be fetched, or if wheels and tree are more than 60 MiB together.
set -euo pipefail
dir=$(realpath -m "${1:?bash scripts/gpu_wheels.sh DIR}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "error: $1" >&2
    exit 4
}

fetch() { # [pip's options] NAME...: wheels of the tested versions
    python3 -m pip --disable-pip-version-check download --quiet --only-binary :all: --dest "$dir" \
        --python-version 3.12 --implementation cp --abi cp312 --abi abi3 --abi none \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
        --constraint constraints.txt "$@" || fail "pip could not fetch $*"
}

mkdir -p "$dir"
rm -f "$dir"/*.whl
fetch pydantic ruamel.yaml tenacity typer rich
fetch pytest pytest-xdist hypothesis jsonschema starlette uvicorn # for the tests
fetch --no-deps gguf peft # what they need comes with transformers and torch; an older peft may be there

wheels=$(cat "$dir"/*.whl | wc -c)
tree=$(git archive HEAD | wc -c)
mib() { awk "BEGIN { printf \"%.1f MiB\", $1 / 2 ^ 20 }"; }
echo "wheels $(mib "$wheels") + tree $(mib "$tree") = $(mib $((wheels + tree)))"
((wheels + tree <= 60 * 2 ** 20)) || fail "more than 60 MiB"
