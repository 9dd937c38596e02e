#!/usr/bin/env bash
# Tune a real model on real text, from nothing but a clone: environment, demo model and data, run.
#
#   bash scripts/quickstart.sh                      a second time: the score of the finished run
#   bash scripts/quickstart.sh train.steps=50 --output-dir runs/short    `zoft train`'s arguments
#
# A run that was stopped goes on where it was. Paths are relative to the clone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/env.sh
.venv/bin/python scripts/demo.py
exec .venv/bin/zoft train recipes/quickstart.yaml --resume auto "$@"
