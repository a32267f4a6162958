#!/usr/bin/env bash
# Sets up everything and runs the tests, in two processes; arguments go to pytest (scripts/test.sh -k noise,
# -m "not slow", -n 8 for more processes, -n 0 --device cuda for one).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"
export OMP_NUM_THREADS=1 # a thread for each process
exec python -m pytest -n 2 --dist worksteal "$@"
