#!/usr/bin/env bash
# Sets up everything and runs the tests; arguments go to pytest (scripts/test.sh -k noise, -m "not slow", --device cuda).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"
exec python -m pytest "$@"
