"""A module in its own process: its result, its failures, its end."""

import pytest

from hsidenoise.fresh_process import run_module


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(text):
        (tmp_path / "program.py").write_text("import os, sys, time\n" + text)
        return "program"

    return write


def test_the_task_arrives_and_the_threads_are_set(module, tmp_path):
    name = module('open(sys.argv[2], "w").write(sys.argv[1] + os.environ["OMP_NUM_THREADS"]); print("noise")')
    run_module(name, "task ", tmp_path / "result", threads=3)
    assert (tmp_path / "result").read_text() == "task 3"


@pytest.mark.parametrize(
    ("text", "limit", "message"),
    [
        ('raise ValueError("this is why")', None, "^ValueError: this is why$"),
        ("os.kill(os.getpid(), 9)", None, "killed by the system"),
        ("sys.exit(7)", None, "ended with status 7"),
        ("time.sleep(60)", 0.5, "^stopped after 0.5 s$"),
    ],
)
def test_an_end_is_said_in_one_line(module, tmp_path, text, limit, message):
    with pytest.raises(RuntimeError, match=message) as error:
        run_module(module(text), "", tmp_path / "result", limit=limit)
    assert "\n" not in str(error.value)
