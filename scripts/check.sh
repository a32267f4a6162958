#!/usr/bin/env bash
# The one gate: format, lint, types, floors, tests with coverage. Stops at the first that fails.
# `scripts/check.sh --static` leaves out the tests.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"

step() { printf '== %s\n' "$*"; "$@"; }

step ruff format --check .
step ruff check .
step mypy
step lint-imports
if [[ "${1:-}" == "--static" ]]; then
    exit 0
fi
step bash scripts/test.sh --cov --cov-report=term:skip-covered "$@"
