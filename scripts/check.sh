#!/usr/bin/env bash
# Formatting, lint, types, generated pages, the Dockerfile (hadolint). To repair the first two:
# .venv/bin/ruff format; .venv/bin/ruff check --fix; for the pages: .venv/bin/python scripts/docs.py
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/env.sh test
.venv/bin/ruff format --check
.venv/bin/ruff check
.venv/bin/mypy
.venv/bin/python scripts/docs.py --check
.venv/bin/hadolint Dockerfile
