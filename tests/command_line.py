"""`hsidenoise` as tests run it: in this process, or in a child where only a process of its own tells the truth.

A child starts Python and imports torch, two seconds each time. What a command prints, answers and writes is the same
without one. Children are for signals, closed or broken streams, encodings, and limits on memory and files.
"""

import contextlib
import io
import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from hsidenoise.cli.main import main

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


class Done(NamedTuple):
    """What is left of a command: as much of `subprocess.CompletedProcess` as tests look at."""

    returncode: int
    stdout: str
    stderr: str


def run(*arguments, cwd):
    """Run `hsidenoise` in a folder, in this process, with the warnings that a person gets to see."""
    with _as_a_process("hsidenoise", arguments, cwd) as (words, out, err):
        status = main(words)
    return Done(status, out.getvalue(), err.getvalue())


def run_script(path, *arguments):
    """Run a Python script in this process."""
    with _as_a_process(path, arguments, ROOT) as (_, out, err):
        try:
            runpy.run_path(str(path), run_name="__main__")
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
    return Done(status, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _as_a_process(name, arguments, cwd):
    words, out, err = list(map(str, arguments)), io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", [str(name), *words]),
        mock.patch.object(sys, "path", list(sys.path)),
        warnings.catch_warnings(),
    ):
        warnings.resetwarnings()  # pytest makes errors of them
        for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", kind)
        yield words, out, err


def call(*arguments, cwd, code=0):
    """Run it with an expected exit status; give stdout, or stderr if it is meant to fail."""
    done = run(*arguments, cwd=cwd)
    assert done.returncode == code, done.stderr
    if code:
        assert done.stdout == ""
        return done.stderr
    return done.stdout


def child(*words, cwd, environment=None, **options):
    """Run Python in a child: `child("-m", "hsidenoise", ...)`, `child("-c", program, ...)`; text, unless said."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "timeout": 300} | options
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT | (environment or {}), **options)


def refused(message):
    """Whether a message is the one line that a person can act on."""
    return message.startswith("hsidenoise: error: ") and message.count("\n") == 1 and len(message) > 30
