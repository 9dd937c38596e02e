#!/usr/bin/env bash
# Run the tests, one worker more than there are cores, for some wait; arguments are pytest's: `bash scripts/test.sh tests/engine -k probe`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/env.sh test
exec .venv/bin/python -m pytest -n "$(($(nproc) + 1))" --dist worksteal "$@"
