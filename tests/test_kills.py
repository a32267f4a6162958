"""A few kills of each verb; `tests/kills.py` by hand does hundreds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("verbs", [["denoise", "corrupt", "train"], ["benchmark"]], ids=" ".join)
def test_a_kill_loses_nothing_and_leaves_nothing(tmp_path, verbs):
    (temporary := tmp_path / "tmp").mkdir()
    folders = {
        "TMPDIR": str(temporary),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"),
    }  # PyTorch makes the latter
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "kills.py", "--kills", "2", "--verbs", *verbs],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **folders},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "nothing lost" in done.stdout
    assert not list(temporary.iterdir())
