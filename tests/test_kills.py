"""A few kills of each verb; `tests/kills.py` by hand does hundreds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["denoise", "corrupt", "train", "benchmark"])
def test_a_kill_loses_nothing_and_leaves_nothing(tmp_path, verb):
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "kills.py", "--kills", "3", "--verbs", verb],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "nothing lost" in done.stdout
    assert not list(tmp_path.iterdir())
