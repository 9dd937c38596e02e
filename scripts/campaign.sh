#!/usr/bin/env bash
# The long tests (minutes each): ten times `kill -9` of the real model, resumed to the same bytes; ten
# thousand orders of a stream's operations, each with the same bytes; report.html in headless chromium.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/env.sh test
.venv/bin/python scripts/demo.py
exec .venv/bin/python -m pytest -m "campaign or browser" -s tests/runs/report/test_page.py tests/training/test_campaign.py \
    tests/engine/offload/test_interleavings.py "$@"
