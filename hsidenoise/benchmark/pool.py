"""Processes that compute the cells of a table, and how they end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from hsidenoise.benchmark.cells import Job, compute, read_cell
from hsidenoise.system.files import remove_leftovers


def run_cells(
    jobs: Collection[tuple[Job, str]], cells: Path, wanted: Collection[str], *, fresh: bool, workers: int
) -> None:
    """Compute the cells that are not there, several at a time, with a progress bar on standard error.

    Args:
        jobs: Cells, each with the name of its files.
        cells: Folder of the cells.
        wanted: Names of those whose denoised cube is kept.
        fresh: Whether finished cells are computed again.
        workers: Processes at a time, each with one thread.

    Raises:
        ValueError: If a method fails; what runs is finished, and what is finished is kept.
        OSError: If a process is ended by the system.
    """
    pending: dict[str, Job] = {}
    for job, name in jobs:
        done = read_cell(cells, name) is not None and (name not in wanted or Path(cells, f"{name}.npy").exists())
        if fresh or not done:
            pending[name] = job
    bar = tqdm(total=len(jobs), initial=len(jobs) - len(pending), desc="cells", unit="cell", file=sys.stderr)
    with bar:
        if not pending:
            return
        others = set(multiprocessing.active_children())
        with (
            _one_thread(),
            ProcessPoolExecutor(
                min(workers, len(pending)),
                mp_context=multiprocessing.get_context("spawn"),  # a fork would copy the state of PyTorch's threads
                initializer=_begin,
            ) as pool,
        ):
            waiting: dict[Future[None], Job] = {}
            try:
                with _no_interrupt():
                    for name, job in pending.items():
                        waiting[pool.submit(compute, job, str(cells), name, name in wanted)] = job
                for each in as_completed(waiting):
                    each.result()
                    bar.update()
            except BrokenProcessPool as error:
                failed = (job for each, job in waiting.items() if each.exception() is not None)
                job = next(failed, next(iter(pending.values())))
                raise OSError(
                    f"a process ended by itself, as happens when memory runs out, at {job.method} on {job.scene}, "
                    f"{job.case} or near; finished cells are kept, fewer --workers need less"
                ) from error
            except Exception:  # what runs is worth finishing
                pool.shutdown(cancel_futures=True)
                raise
            except BaseException:  # an interrupt does not wait for it
                for process in set(multiprocessing.active_children()) - others:
                    process.terminate()
                pool.shutdown(cancel_futures=True)
                remove_leftovers(cells)
                raise


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Processes started here never see the interrupt of the terminal, which asks all: the first one ends them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin() -> None:
    """What each process does first."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool whose first process was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Processes started here compute with one thread: the same digits however many there are."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
