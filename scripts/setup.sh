#!/usr/bin/env bash
# Makes .venv with the package, its dependencies and its development tools. Run it, or source it from another script:
# then ROOT is the project's folder and .venv/bin comes first in PATH. Takes a second when nothing has changed.
#
#   HSIDENOISE_PYTHON  interpreter that .venv is made from, 3.11 or newer (default: the first one found)
#   HSIDENOISE_TORCH   what pip is told of torch (default: torch==2.13.0; with a GPU, the build that suits its driver)
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export ROOT

find_python() {
    local candidate
    for candidate in ${HSIDENOISE_PYTHON:-python3.11 python3.12 python3.13 python3}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "setup: no Python 3.11 or newer found; install one, or name it in HSIDENOISE_PYTHON" >&2
    return 1
}

setup() {
    local venv="$ROOT/.venv" stamp wanted python torch
    stamp="$venv/.hsidenoise-setup"
    torch="${HSIDENOISE_TORCH:-torch==2.13.0}"
    wanted="$(sha256sum < "$ROOT/pyproject.toml") $torch $ROOT"
    if [[ "$(cat "$stamp" 2>/dev/null || true)" == "$wanted" && -x "$venv/bin/hsidenoise" ]]; then
        return
    fi
    # No stamp and no working pip: an interrupted run left half an environment.
    if ! "$venv/bin/python" -m pip --version > /dev/null 2>&1; then
        python="$(find_python)"
        echo "setup: new environment $venv with $python" >&2
        "$python" -m venv --clear "$venv"
    fi
    echo "setup: installing $torch, then the package and its tools (minutes, the first time)" >&2
    # torch on its own and pinned: left to the package's range, pip takes the newest CUDA build and several GB.
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "$torch" >&2
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile --editable "$ROOT[dev]" >&2
    # pip would compile 12,000 files one after the other, a minute; here on all cores, and without the tests of others.
    # A file that cannot be compiled is no module.
    "$venv/bin/python" -m compileall -qq -j 0 -x 'site-packages/.*/tests?/' "$venv/lib" > /dev/null || true
    echo "$wanted" > "$stamp"
}

setup
export PATH="$ROOT/.venv/bin:$PATH"
