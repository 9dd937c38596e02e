#!/usr/bin/env bash
# Run the tests, on as many cores as there are; arguments are pytest's: `bash scripts/test.sh tests/engine -k probe`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/env.sh test
exec .venv/bin/python -m pytest -n auto --dist worksteal "$@"
