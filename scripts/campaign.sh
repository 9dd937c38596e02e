#!/usr/bin/env bash
# The long tests on the real model (minutes each): ten times `kill -9`, resumed to the same bytes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/env.sh test
.venv/bin/python scripts/demo.py
exec .venv/bin/python -m pytest -m campaign -s tests/test_campaign.py "$@"
