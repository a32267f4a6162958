"""Cells of a table, and the processes that compute them.

A cell is one method on one scene under one noise case, kept under a hash of all that decides it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from tqdm import tqdm

from hsidenoise.data.noisy_sets import read_pair
from hsidenoise.data.scenes import read_clean
from hsidenoise.inference.method import Classical, Method, Network, make_method
from hsidenoise.metrics.functional import evaluate
from hsidenoise.noise.cases import corrupt
from hsidenoise.system.code_version import code_version
from hsidenoise.system.files import remove_leftovers, replacing, sha256, write_text
from hsidenoise.system.machine import PeakMemory, find_device, is_out_of_memory

#: What is called on the way to every score: the sources of their modules, and of all that these import, decide it.
_EVERY = (read_clean, read_pair, corrupt, evaluate)


@dataclass(frozen=True)
class Job:
    """What to compute.

    Attributes:
        method: Name of the method, as :func:`hsidenoise.inference.method.make_method` takes it.
        options: Its options.
        scene: Name of the scene.
        source: File or folder of the clean cube, or of a pair of noisy and clean.
        pair: Whether it is a pair; the noise is in it, and nothing is cropped or scaled.
        case: Noise case.
        seed: Seed of the noise.
        crop: Side of the centre square in pixels, or None.
        bands: Number of bands that are picked, or None for all.
        key: Variable of the clean cube, or None.
        protocols: Protocols of the scores.
        device: Where a network runs, or None.
    """

    method: str
    options: Mapping[str, Any]
    scene: str
    source: str
    pair: bool
    case: str
    seed: int
    crop: int | None
    bands: int | None
    key: str | None
    protocols: tuple[str, ...]
    device: str | None = None

    def identity(self, version: str, data: str) -> str:
        """Hash of all that decides the scores."""
        facts = dataclasses.asdict(self) | {"version": version, "data": data}
        del facts["source"]  # the same file elsewhere is the same
        if self.pair:
            del facts["seed"], facts["crop"], facts["bands"], facts["key"]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]

    def given(self) -> Given:
        """The scene with its noise added, or both as a noisy set has them; that of the last cell is kept."""
        return read_given(self.source, self.pair, self.case, self.seed, self.crop, self.bands, self.key)


@dataclass(frozen=True)
class Given:
    """What a cell starts from; sigma is None where a noisy set does not say."""

    noisy: Float32[np.ndarray, "bands height width"]
    clean: Float32[np.ndarray, "bands height width"]
    sigma: Float32[np.ndarray, " bands"] | None


def compute(job: Job, folder: str, name: str, keep: bool = False) -> None:
    """Compute a cell and write ``<name>.json`` to the folder, and with ``keep`` the denoised cube as ``<name>.npy``.

    Raises:
        ValueError: If the method fails; the message names it, the scene and the case.
    """
    try:
        given = job.given()
        denoised, seconds = _denoised(job, given)
        scores = {name: dataclasses.asdict(evaluate(denoised, given.clean, protocol=name)) for name in job.protocols}
    except (Exception, SystemExit) as error:  # a peer's method may raise anything
        reason = " ".join(str(error).split()) or "no reason given"
        if is_out_of_memory(error):
            reason += "; fewer --workers leave more memory to each, a data.crop takes less"
        raise ValueError(f"{job.method} on {job.scene}, {job.case}: {type(error).__name__}: {reason}") from error
    if keep:
        with replacing(Path(folder, f"{name}.npy")) as temporary, temporary.open("wb") as file:
            np.save(file, denoised)
    cell = {"scores": scores, "seconds": seconds, "method": job.method, "scene": job.scene, "case": job.case}
    write_text(Path(folder, f"{name}.json"), json.dumps(cell, indent=1) + "\n")


@lru_cache(maxsize=1)
def read_given(
    source: str, pair: bool, case: str, seed: int, crop: int | None, bands: int | None, key: str | None
) -> Given:
    """What :meth:`Job.given` says, of the attributes of a job that it depends on."""
    if pair:
        found = read_pair(source)
        return Given(found.noisy, found.clean, found.sigma)
    clean = read_clean(source, key=key, crop=crop, bands=bands)
    corruption = corrupt(clean, case, seed=seed)
    return Given(corruption.noisy, clean, corruption.sigma)


def read_cell(folder: Path, name: str) -> dict[str, Any] | None:
    """A finished cell, or None."""
    try:
        found = json.loads(Path(folder, f"{name}.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def version_of(method: Method) -> str:
    """What decides a method's scores beside its input: hashes of the code, and of the weights or module that it names.

    The code is that of this package's modules that are run, of the libraries that they compute with, and, of a
    ``package.module:function``, of all that it imports and that is not installed as a library.
    """
    return f"{_version(_EVERY)} {method.identity()}"


def _version(called: Iterable[Callable[..., Any]]) -> str:
    """Hash of this module, of those of what is called, and of all that these import."""
    roots = dict.fromkeys(function.__module__ for function in called)
    return hashlib.sha256(f"{sha256(__file__)} {code_version(*roots)}".encode()).hexdigest()


def package_version() -> str:
    """Hash of all code of this package that a score can depend on, for the head of a table."""
    return _version((*_EVERY, *Network.called, *Classical.called, make_method))


def _denoised(job: Job, given: Given) -> tuple[np.ndarray, float]:
    """The answer, and the seconds that it took."""
    method = make_method(job.method, options=job.options)
    method.prepare(job.device)
    if given.sigma is None and not method.blind:
        raise ValueError("it has to be told sigma, which this noisy set does not hold")
    start = time.perf_counter()
    denoised = method.run(given.noisy, given.sigma, job.device)
    return denoised, time.perf_counter() - start if method.computes else 0.0


def main(arguments: list[str]) -> int:
    """Measure one method alone in this process: seconds, the better of two runs, and the memory that it adds."""
    values = json.loads(arguments[0])
    job = Job(**values | {"protocols": tuple(values["protocols"])})
    given = job.given()
    memory = PeakMemory(find_device(job.device) if job.device else torch.device("cpu"))
    seconds = min(_denoised(job, given)[1] for _ in range(2))
    result = {"seconds": seconds, "memory_mb": memory.read()[1] / 1e6}
    Path(arguments[1]).write_text(json.dumps(result), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))


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
