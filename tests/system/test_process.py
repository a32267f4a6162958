"""A module in its own process: its result, its failures, its end."""

import pytest

from hsidenoise.system.process import run_module


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(text):
        (tmp_path / "program.py").write_text("import os, sys\n" + text)
        return "program"

    return write


def test_the_task_arrives_and_the_threads_are_set(module, tmp_path):
    name = module('open(sys.argv[2], "w").write(sys.argv[1] + os.environ["OMP_NUM_THREADS"]); print("noise")')
    run_module(name, "task ", tmp_path / "result", threads=3)
    assert (tmp_path / "result").read_text() == "task 3"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('raise ValueError("this is why")', "^ValueError: this is why$"),
        ("os.kill(os.getpid(), 9)", "killed by the system"),
        ("sys.exit(7)", "ended with status 7"),
    ],
)
def test_an_end_is_said_in_one_line(module, tmp_path, text, message):
    with pytest.raises(RuntimeError, match=message) as error:
        run_module(module(text), "", tmp_path / "result", threads=1)
    assert "\n" not in str(error.value)
