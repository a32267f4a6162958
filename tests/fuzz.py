"""Damaged inputs for everything that reads a file, until one of them does what no input may do.

    python tests/fuzz.py --reader v5 --count 20000 --seed 0     # one reader, about as long as 20,000 reads take
    python tests/fuzz.py --count 20000                          # all of them, one after the other

A reader may take an input or refuse it by an exception that the command line turns into one line (ValueError, OSError,
ImportError), within memory and within ten seconds (more on a machine that is busy). Anything else is a failure: another
exception, a crash of the process, a hang, memory out of proportion. Failures are kept with their input, the smallest of
each kind, and ``--only READER:SEED`` runs one again with its traceback.

A number gives the input: the mutation of seed 17 is the same in every run. The reads happen in a child process, which
says one line after each; where it dies, the parent knows at which number, and goes on behind it. What the package has
another Python do (reading and writing of HDF5) a fork of the child does here, which takes a hundredth of the time; one
in fifty goes to another Python all the same.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from fuzz_inputs import Files, mutated, seeds_of

ROOT = Path(__file__).parents[1]
SECONDS = 10  # that a read may take
SPACE = 4 << 30  # bytes of address space beyond what the process has before it reads
RESIDENT = 512 << 20  # bytes in memory beyond that: no input here is larger than 300 kB
FINE = (ValueError, OSError, ImportError)  # what hsidenoise.cli.main turns into one line
OTHER = 50  # one call in so many of another Python is one
ROUND = 4000  # reads of one child: what leaks in a library must not add up


def _read_cube(path: Path) -> None:
    """What `inspect` and `denoise` do with a file around the network."""
    from hsidenoise.data.io import read_cube, write_cube
    from hsidenoise.data.sources import list_variables

    list_variables(path)
    cube = read_cube(path)
    write_cube(path.with_name("out.mat"), cube)


def _read_envi(path: Path) -> None:
    """What is done with a pair of files."""
    _read_cube(path / "a.hdr")


def _read_weights(path: Path) -> None:
    """What `denoise --weights` does with a file before the tiles of a large cube, which a small one has too."""
    import numpy as np

    from hsidenoise import denoise, load_model
    from hsidenoise.models.weights import VALIDATION_SCENES, read_header, scenes_seen

    header = read_header(path)
    scenes_seen(header)
    scenes_seen(header, VALIDATION_SCENES)
    cube = np.random.default_rng(0).random((3, 9, 10), dtype=np.float32)
    denoise(cube, load_model(path))


def _read_table(path: Path) -> None:
    from hsidenoise.benchmark.config import read_config

    read_config(path)


@cache
def _parse_only() -> type:
    """The class of `train`, which builds its parser once and stops when it has parsed."""
    from hsidenoise.training.run import TrainCLI

    parsers: list[Any] = []

    class ParseOnly(TrainCLI):
        def setup_parser(self, *args: Any) -> None:
            if not parsers:
                super().setup_parser(*args)
                parsers.append(self.parser)
            self.parser = parsers[0]

        def parse_arguments(self, parser: Any, args: Any) -> None:
            super().parse_arguments(parser, args)
            raise ParsedError

    return ParseOnly


class ParsedError(Exception):
    """Raised where `train` would begin to build what the file describes."""


def _read_training(path: Path) -> None:
    from hsidenoise.training import run as training

    with mock.patch.object(training, "TrainCLI", _parse_only()), contextlib.suppress(ParsedError):
        training.main(["--config", str(path), "--data.root", "cubes"])


READERS: dict[str, Callable[[Path], None]] = {
    "v4": _read_cube,
    "v5": _read_cube,
    "v73": _read_cube,
    "png": _read_cube,
    "npy": _read_cube,
    "envi": _read_envi,
    "tiff": _read_cube,
    "netcdf": _read_cube,
    "zarr": _read_cube,
    "weights": _read_weights,
    "table": _read_table,
    "train": _read_training,
}


class _Alarm(BaseException):
    """No exception that a reader could take for its own."""


def _ring(*_: Any) -> None:
    raise _Alarm


def _forked(command: list[str], *, input: bytes, timeout: float, **_: Any) -> subprocess.CompletedProcess[bytes]:
    """As `subprocess.run` of ``python -c "...; _child()" REQUEST``, by a fork of this process."""
    from hsidenoise.data.formats import hdf5

    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(input)
        given.seek(0)
        child = os.fork()
        if not child:
            status = 1
            try:
                faulthandler.disable()
                for number, stream in enumerate((given, out, err)):
                    os.dup2(stream.fileno(), number)
                sys.argv = [command[0], *command[3:]]
                hdf5._child()
                status = 0
            except BaseException as error:
                os.write(2, str(error).encode())
            os._exit(status)
        ended, status, last = 0, 0, time.monotonic() + timeout
        try:
            while not ended and time.monotonic() < last:
                ended, status = os.waitpid(child, os.WNOHANG)
                time.sleep(0.0005)
        finally:  # the alarm too comes through here
            if not ended:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        if not ended:
            raise subprocess.TimeoutExpired(command, timeout)
        texts = [(stream.seek(0), stream.read())[1] for stream in (out, err)]
    return subprocess.CompletedProcess(command, os.waitstatus_to_exitcode(status), *texts)


def _limit() -> float:
    """Seconds that a read may take here: more where other processes share the processors, or come first."""
    return SECONDS * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)) * (10 if os.nice(0) > 0 else 1)


def _resident(reset: bool = False) -> int:
    """Most bytes in memory since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) << 10
    return 0


def put(files: Files, folder: Path) -> Path:
    """Lay an input into an empty folder; what a reader is given of it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in files.items():
        target = folder / name
        with contextlib.suppress(OSError, ValueError):  # a name that no file can have
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    (name,) = files if len(files) == 1 else ("",)
    return folder if "/" in name or name.lower().endswith(".png") else folder / name


def read(reader: str, path: Path) -> tuple[str, str]:
    """Read one input: ("accepted" | "refused" | a kind of failure, traceback)."""
    before = _resident(reset=True)
    started, limit = time.monotonic(), _limit()
    kind, trace = "accepted", ""
    try:
        signal.setitimer(signal.ITIMER_REAL, limit)
        try:
            READERS[reader](path)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _Alarm:
        kind, trace = "hang", traceback.format_exc(-8)
    except FINE:
        kind = "refused"
    except BaseException as error:
        kind, trace = type(error).__name__, traceback.format_exc(-12)
    if time.monotonic() - started > limit and not trace:
        kind, trace = "hang", "in one call of a library, which the alarm cannot end"
    if (grown := _resident() - before) > RESIDENT and not trace:
        kind, trace = "memory", f"{grown >> 20} MiB in memory"
    return kind, trace


def _child(reader: str, numbers: range, pipe: int, folder: Path) -> None:
    said = os.open(folder / "said.txt", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    for stream in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), stream)
    faulthandler.enable(said)
    signal.signal(signal.SIGALRM, _ring)
    warnings.simplefilter("ignore")
    input_ = folder / "input"
    with contextlib.suppress(*FINE):
        READERS[reader](put(seeds_of(reader)[0], input_))  # whatever is imported late
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + SPACE, resource.RLIM_INFINITY))
    for seed in numbers:
        faster = contextlib.nullcontext() if seed % OTHER == 0 else mock.patch("subprocess.run", _forked)
        with faster:
            kind, trace = read(reader, put(mutated(reader, seed), input_))
        os.write(pipe, json.dumps([seed, kind, trace[-3500:]]).encode() + b"\n")
        if trace:
            gc.collect()
    os._exit(0)


def _lines(pipe: int) -> Iterator[str | None]:
    """Lines of the child; None once if it says nothing for so long."""
    rest = b""
    while True:
        ready, _, _ = select.select([pipe], [], [], 3 * _limit())
        if not ready:
            yield None
            return
        block = os.read(pipe, 1 << 16)
        if not block:
            return
        *whole, rest = (rest + block).split(b"\n")
        yield from (line.decode() for line in whole)


def outcomes(reader: str, numbers: range, folder: Path) -> Iterator[tuple[int, str, str]]:
    """(number, kind, traceback) of every read; a child that dies or hangs is replaced."""
    import torch  # noqa: F401 - what a reader imports late must not count as its time

    seeds_of(reader)
    while numbers:
        here, write = os.pipe()
        child = os.fork()
        if not child:
            os.close(here)
            try:
                _child(reader, numbers[:ROUND], write, folder)
            except BaseException:
                os.write(write, json.dumps([-1, "script", traceback.format_exc()]).encode() + b"\n")
            os._exit(1)
        os.close(write)
        last = numbers[min(ROUND, len(numbers)) - 1]
        reached, silent = numbers[0] - 1, False
        for line in _lines(here):
            if line is None:
                silent = True
                os.kill(child, signal.SIGABRT)  # faulthandler says where
                time.sleep(0.2)
                os.kill(child, signal.SIGKILL)
                break
            seed, kind, trace = json.loads(line)
            if seed < 0:
                raise RuntimeError(trace)
            reached = seed
            yield seed, kind, trace
        os.close(here)
        _, status = os.waitpid(child, 0)
        if reached < last:
            reached += 1
            kind = "hang" if silent else f"crash {signal.Signals(status & 127).name if status & 127 else status >> 8}"
            yield reached, kind, (folder / "said.txt").read_text(errors="replace")[:3000]
        numbers = range(reached + 1, numbers[-1] + 1)


def _place(kind: str, trace: str) -> str:
    """What makes two failures the same: the kind and the last lines of code, without what they say."""
    lines = [line.strip() for line in trace.splitlines() if line.strip().startswith("File ")]
    ours = [line for line in lines if "/hsidenoise/" in line]
    last = lines[:2] if kind.startswith("crash") else [*ours[-2:], *lines[-1:]]
    if kind == "hang":
        last = ours[-2:]  # where the alarm rang is chance
    return " | ".join([kind, *last]).replace(str(ROOT), "")


def fuzz(reader: str, numbers: range, keep: Path) -> tuple[Counter[str], dict[str, tuple[int, str, int]]]:
    """Read a range of inputs.

    Returns:
        How often what happened, and per failure its first number, traceback and size of the smallest input.
    """
    counts: Counter[str] = Counter()
    failures: dict[str, tuple[int, str, int]] = {}
    scratch = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        for seed, kind, trace in outcomes(reader, numbers, Path(folder)):
            counts[kind if kind in ("accepted", "refused") else "failures"] += 1
            if kind in ("accepted", "refused"):
                continue
            place, files = _place(kind, trace), mutated(reader, seed)
            size = sum(map(len, files.values()))
            if place in failures and failures[place][2] <= size:
                continue
            if place not in failures:
                print(f"{reader}:{seed} {place}", flush=True)
            failures[place] = (seed, trace, size)
            home = keep / f"{reader}-{zlib.crc32(place.encode()):08x}"
            put(files, home)
            (home / "failure.txt").write_text(f"{reader} {seed}\n{place}\n\n{trace}\n")
    return counts, failures


def main() -> int:
    """Run readers; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reader", choices=READERS, action="append", help="one reader; all by default")
    parser.add_argument("--count", type=int, default=20000, help="mutations a reader")
    parser.add_argument("--seed", type=int, default=0, help="number of the first mutation")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir(), "fuzz/failures"), help="for failures")
    parser.add_argument("--only", metavar="READER:SEED", help="read one input in this process and say what happens")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if options.only:
        reader, seed = options.only.split(":")
        path = put(mutated(reader, int(seed)), options.keep.parent / "only")
        READERS[reader](path)
        print(f"accepted: {path}")
        return 0
    failed = 0
    for reader in options.reader or READERS:
        started = time.monotonic()
        numbers = range(options.seed, options.seed + options.count)
        counts, failures = fuzz(reader, numbers, options.keep)
        failed += counts["failures"]
        print(
            f"{reader:<8} {sum(counts.values())} mutations: {counts['accepted']} accepted, {counts['refused']} refused,"
            f" {counts['failures']} failures of {len(failures)} kinds; {time.monotonic() - started:.0f} s",
            flush=True,
        )
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
