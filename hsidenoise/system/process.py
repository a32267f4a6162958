"""A module run in a process of its own, which may fail in any way without taking the caller along."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path


def run_module(module: str, task: str, result: Path, *, threads: int) -> None:
    """Run a module as a program with two arguments and wait for it.

    Args:
        module: Name of the module.
        task: First argument.
        result: Second argument, a file that it writes. What it prints is dropped.
        threads: Threads of its numerical libraries, at least 1.

    Raises:
        RuntimeError: If it failed or was killed; the message says which in one line.

    Example:
        >>> run_module("no_such_module", "", Path("nowhere"), threads=1)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        RuntimeError: ...No module named no_such_module
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", module, task, str(result)]
    done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    if done.returncode == -signal.SIGKILL:
        raise RuntimeError("killed by the system, as happens when memory runs out")
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise RuntimeError(lines[-1][:200] if lines else f"ended with status {done.returncode}")
