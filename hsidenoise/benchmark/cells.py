"""One cell of a table: one method on one scene under one noise case, kept under a hash of all that decides it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from hsidenoise.data.noisy_sets import read_pair
from hsidenoise.data.scenes import read_clean
from hsidenoise.inference.method import Classical, Method, Network, make_method
from hsidenoise.metrics.functional import evaluate
from hsidenoise.noise.cases import corrupt
from hsidenoise.system.code_version import code_version
from hsidenoise.system.device import find_device, is_out_of_memory
from hsidenoise.system.files import replacing, sha256, write_text
from hsidenoise.system.machine import PeakMemory

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
    key: str | None
    protocols: tuple[str, ...]
    device: str | None = None

    def identity(self, version: str, data: str) -> str:
        """Hash of all that decides the scores.

        Args:
            version: :func:`version_of` the method.
            data: :func:`hsidenoise.system.files.sha256` of the source.
        """
        facts = dataclasses.asdict(self) | {"version": version, "data": data}
        del facts["source"]  # the same file elsewhere is the same
        if self.pair:
            del facts["seed"], facts["crop"], facts["key"]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Given:
    """What a cell starts from; sigma is None where a noisy set does not say."""

    noisy: Float32[np.ndarray, "bands height width"]
    clean: Float32[np.ndarray, "bands height width"]
    sigma: Float32[np.ndarray, " bands"] | None


def compute(job: Job, folder: str, name: str, keep: bool = False) -> None:
    """Compute a cell and write ``<name>.json`` to the folder, and with ``keep`` the denoised cube as ``<name>.npy``.

    Args:
        job: The cell.
        folder: An existing folder.
        name: Name of the files, :meth:`Job.identity`.
        keep: Whether the figures need the cube.

    Raises:
        ValueError: If the method fails; the message names it, the scene and the case.
    """
    try:
        given = read_given(job.source, job.pair, job.case, job.seed, job.crop, job.key)
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
def read_given(source: str, pair: bool, case: str, seed: int, crop: int | None, key: str | None) -> Given:
    """Read a scene and add its noise, or read both as a noisy set has them.

    Args:
        source: As in :class:`Job`, like all that follow.
        pair: Whether the noise is in the file.
        case: Noise case.
        seed: Seed of the noise.
        crop: Side of the centre square.
        key: Variable of the clean cube.
    """
    if pair:
        found = read_pair(source)
        return Given(found.noisy, found.clean, found.sigma)
    clean = read_clean(source, key=key, crop=crop)
    corruption = corrupt(clean, case, seed=seed)
    return Given(corruption.noisy, clean, corruption.sigma)


def read_cell(folder: Path, name: str) -> dict[str, Any] | None:
    """A finished cell, or None.

    Args:
        folder: Folder of the cells.
        name: :meth:`Job.identity`.
    """
    try:
        found = json.loads(Path(folder, f"{name}.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def version_of(method: Method) -> str:
    """What decides a method's scores beside its input: hashes of the code, and of the weights or module that it names.

    The code is that of this package's modules that are run, of the libraries that they compute with, and, of a
    ``package.module:function``, of all that it imports and that is not installed as a library.

    Args:
        method: Any method.
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
    """Measure one method alone in this process: seconds, the better of two runs, and the memory that it adds.

    Args:
        arguments: A :class:`Job` as JSON, and the file to write.
    """
    values = json.loads(arguments[0])
    job = Job(**values | {"protocols": tuple(values["protocols"])})
    given = read_given(job.source, job.pair, job.case, job.seed, job.crop, job.key)
    memory = PeakMemory(find_device(job.device) if job.device else torch.device("cpu"))
    seconds = min(_denoised(job, given)[1] for _ in range(2))
    result = {"seconds": seconds, "memory_mb": memory.read()[1] / 1e6}
    Path(arguments[1]).write_text(json.dumps(result), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
