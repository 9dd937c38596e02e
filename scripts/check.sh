#!/usr/bin/env bash
# Formatting, lint, types, generated pages, the documentation's links, the Dockerfile (hadolint). To repair the
# first two: .venv/bin/ruff format; .venv/bin/ruff check --fix; for the pages: .venv/bin/python scripts/docs.py
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/env.sh test
.venv/bin/ruff format --check
.venv/bin/ruff check
.venv/bin/mypy
.venv/bin/python scripts/docs.py --check
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --site-dir "$site" # --quiet would not fail
.venv/bin/hadolint Dockerfile
