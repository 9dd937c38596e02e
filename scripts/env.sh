#!/usr/bin/env bash
# Make .venv with zoft and its tested versions in it; the other scripts call this first.
#
#   bash scripts/env.sh           what `zoft` needs
#   bash scripts/env.sh test      and what tests and checks need
#
# ZOFT_TORCH_INDEX is a package index with another build of torch, for example the CPU one:
#   ZOFT_TORCH_INDEX=https://download.pytorch.org/whl/cpu bash scripts/quickstart.sh
# Nothing to do: it returns at once. pyproject.toml, constraints.txt, the index or the folder changed:
# .venv is made anew, for pip would keep a torch of the right version from the wrong index.
# Exit 4, with one line on stderr, without Python >= 3.11 or when pip cannot fetch.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "error: $1" >&2
    exit 4
}

find_python() {
    local python
    for python in python3 python3.13 python3.12 python3.11; do
        if "$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
        then
            echo "$python"
            return
        fi
    done
    fail "zoft needs Python >= 3.11 with venv (on Debian and Ubuntu: apt install python3-venv)"
}

extra=${1:-}
key=$({ cat pyproject.toml constraints.txt && echo "$PWD ${ZOFT_TORCH_INDEX:-}"; } | sha256sum)
stamp=.venv/zoft${extra:+-$extra}.stamp # what was installed, one file for each extra
if [[ -f $stamp && $(<"$stamp") == "$key" ]]; then
    exit
fi

echo "installing zoft${extra:+[$extra]} into .venv (a minute, or the time of the download) ..."
if ! grep -qsxF -e "$key" .venv/zoft*.stamp; then
    python=$(find_python)
    output=$("$python" -m venv --clear .venv 2>&1) ||
        fail "could not make .venv: ${output##*$'\n'}"
fi
pip=(.venv/bin/python -m pip --disable-pip-version-check --no-input --retries 2)
index=(${ZOFT_TORCH_INDEX:+--extra-index-url "$ZOFT_TORCH_INDEX"})
"${pip[@]}" install "${index[@]}" -c constraints.txt -e ".${extra:+[$extra]}" >.venv/pip.log 2>&1 ||
    fail "pip could not install zoft: $({ grep -o 'ERROR: .*' .venv/pip.log || cat .venv/pip.log; } |
        tail -n 1 | sed 's/^ERROR: //') (is the package index reachable? see .venv/pip.log)"
echo "$key" | tee .venv/zoft.stamp >"$stamp" # an extra comes with all that zoft needs
