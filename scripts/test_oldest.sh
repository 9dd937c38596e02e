#!/usr/bin/env bash
# Run the core of the tests with the oldest versions that zoft takes (constraints-oldest.txt), in .venv-oldest.
#
#   bash scripts/test_oldest.sh [pytest's arguments]
#
# ZOFT_TORCH_INDEX, as for env.sh: without it, a CUDA build of torch is fetched (5 GB on the disk).
# Exit 4, with one line on stderr, without Python 3.11 or 3.12 or when pip cannot fetch.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "error: $1" >&2
    exit 4
}

find_python() {
    local python
    for python in python3.12 python3.11; do
        if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    fail "the oldest versions need Python 3.12 or 3.11 with venv"
}

env=.venv-oldest
key=$({ cat pyproject.toml constraints*.txt && echo "$PWD ${ZOFT_TORCH_INDEX:-}"; } | sha256sum)
if [[ ! -f $env/stamp || $(<"$env/stamp") != "$key" ]]; then
    echo "installing zoft with its oldest versions into $env ..."
    python=$(find_python)
    "$python" -m venv --clear "$env"
    # constraints.txt, but for what stands in constraints-oldest.txt
    grep -vFf <(grep -o '^[A-Za-z_]*==' constraints-oldest.txt) constraints.txt |
        cat - constraints-oldest.txt >"$env/constraints.txt"
    "$env/bin/python" -m pip --disable-pip-version-check --no-input install \
        ${ZOFT_TORCH_INDEX:+--extra-index-url "$ZOFT_TORCH_INDEX"} \
        -c "$env/constraints.txt" -e ".[test]" >"$env/pip.log" 2>&1 ||
        fail "pip could not install the oldest versions (see $env/pip.log)"
    echo "$key" >"$env/stamp"
fi
core=(data engine inference models planning recipe runs sharing training)
exec "$env/bin/python" -m pytest -n "$(($(nproc) + 1))" --dist worksteal "${core[@]/#/tests/}" "$@"
