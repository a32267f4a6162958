"""The speed benchmark: every cell in a fresh process, variants in turn, round by round.

Variants of one network and size follow one another and then again, so that what else the machine does, or how warm it
has become, meets them all.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hsidenoise.fresh_process import run_module
from hsidenoise.speed_cell import (
    FORWARD_VARIANTS,
    MODULE,
    TRAIN_VARIANTS,
    Cell,
    Job,
    Measurement,
    Settings,
)
from hsidenoise.speed_networks import NETWORKS

SIZES = (64, 128, 256, 512)
JOBS: tuple[Job, ...] = ("forward", "train")
TRAIN_BATCH, TRAIN_SIZE = 8, 64
"""Cubes and side in pixels of a training step; HCANet and its relatives are trained on such patches."""
REFERENCE = "hcanet"
"""Network with whose released formulation those are compared that were never released."""
SLOW = 20.0
"""Seconds of a run, compiling included, from which on a cell is measured in the first round only."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        job: ``forward`` or ``train``.
        network: Name.
        variant: Name.
        size: Height and width in pixels.
        batch: Cubes at once.
        seconds: Median of the runs; None if there was none, as everything measured below.
        fastest: Shortest of the runs.
        runs: Their number.
        times_faster: Seconds of the released formulation over these.
        peak_mb: Peak memory of the process in MB (10^6 bytes); on a GPU of the tensors.
        added_mb: That beyond what was in use before the first run.
        setup: Seconds of compiling, 0 without.
        gflop: Operations of a run in 10^9, a multiplication and an addition being two.
        gflops: Those a second.
        rate_share: ``gflops`` over the measured rate of a matrix product in the same data type.
        error: See ``hsidenoise.speed_cell.Measurement``.
        rms_error: See there.
        reason: Why nothing was measured; empty if it was.
    """

    job: Job
    network: str
    variant: str
    size: int
    batch: int
    seconds: float | None = None
    fastest: float | None = None
    runs: int = 0
    times_faster: float | None = None
    peak_mb: float | None = None
    added_mb: float | None = None
    setup: float | None = None
    gflop: float | None = None
    gflops: float | None = None
    rate_share: float | None = None
    error: float | None = None
    rms_error: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class SpeedRun:
    """A whole measurement.

    Attributes:
        machine: See ``hsidenoise.machine.Machine``.
        device: Where it was computed.
        rates: Operations a second of a matrix product, by data type.
        rounds: How often the cells were gone through.
        rows: The lines of the table.
    """

    machine: Mapping[str, Any]
    device: str
    rates: Mapping[str, float]
    rounds: int
    rows: tuple[Row, ...]


def plan(
    networks: Sequence[str] | None = None,
    sizes: Sequence[int] = SIZES,
    variants: Sequence[str] | None = None,
    jobs: Sequence[Job] = JOBS,
    batch: int = 1,
) -> list[list[Cell]]:
    """List what to measure, the variants of one job, network and size together.

    Args:
        networks: Names; None for all.
        sizes: Sides of the images in pixels, for the forward pass.
        variants: Names; None for all. A job leaves out what it does not know, a network what it has not.
        jobs: ``forward``, ``train``.
        batch: Images at once in the forward pass.

    Raises:
        ValueError: If a name is unknown, or a number is less than 1.

    Example:
        >>> [cell.variant for cell in plan(["bra"], [64], ["float32", "released"])[0]]
        ['released', 'float32']
    """
    for what, given, known in (
        ("network", networks or (), tuple(NETWORKS)),
        ("variant", variants or (), FORWARD_VARIANTS),
        ("job", jobs, JOBS),
    ):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ValueError(f"unknown {what} '{unknown[0]}'; known: {', '.join(known)}")
    if batch < 1 or any(size < 1 for size in sizes):
        raise ValueError(f"sizes {', '.join(map(str, sizes))} and batch {batch} must be 1 or more")
    groups = []
    for name in networks or NETWORKS:
        for job in jobs:
            known = FORWARD_VARIANTS if job == "forward" else TRAIN_VARIANTS
            for size in sizes if job == "forward" else (TRAIN_SIZE,):
                cells = [
                    Cell(job, name, variant, size, batch if job == "forward" else TRAIN_BATCH)
                    for variant in known
                    if _takes_part(name, job, variant) and (variants is None or variant in variants)
                ]
                groups.append(cells)
    return [cells for cells in groups if cells]


def _takes_part(network: str, job: Job, variant: str) -> bool:
    subject = NETWORKS[network]
    if variant == "released":
        return subject.as_released is not None and (job == "forward" or subject.denoises)
    return variant in subject.variants if job == "forward" else subject.denoises


def run(
    groups: Iterable[Sequence[Cell]],
    *,
    threads: int | None = None,
    device: str | None = None,
    rounds: int = 2,
    seconds: float = 4.0,
    limit: float = 900.0,
    progress: Callable[[str], None] = lambda line: None,
) -> SpeedRun:
    """Measure.

    Args:
        groups: What :func:`plan` gives.
        threads: Threads of PyTorch; None for its own choice.
        device: ``cpu``, ``cuda``, ...; None for the best one here.
        rounds: How often to go through the cells of a group, at least 1.
        seconds: How long to time each cell in each round, above 0.
        limit: Seconds after which the process of a cell is ended.
        progress: Told one line for each cell.

    Raises:
        ValueError: If ``rounds`` or ``seconds`` is too small.
        RuntimeError: If not even a matrix product can be measured, such as on a device that is not there.
    """
    if rounds < 1 or seconds <= 0:
        raise ValueError(f"rounds={rounds} must be 1 or more and seconds={seconds} above 0")
    groups = [list(cells) for cells in groups]
    with tempfile.TemporaryDirectory(prefix="hsidenoise-speed-") as folder:
        settings = Settings(folder, threads, device, seconds)
        result = Path(folder) / "result.json"
        run_module(MODULE, json.dumps({"settings": dataclasses.asdict(settings)}), result, threads=threads)
        about = json.loads(result.read_text(encoding="utf-8"))
        measured: dict[Cell, list[Measurement]] = {}
        cells = [cell for group in groups for cell in group]
        for group in groups:
            for number in range(rounds):
                for cell in group:
                    before = measured.setdefault(cell, [])
                    if before and (before[-1].reason or before[-1].setup + max(before[-1].seconds) > SLOW):
                        continue
                    one = _measure(cell, dataclasses.replace(settings, count=number == 0), result, limit)
                    before.append(one)
                    progress(
                        f"[{cells.index(cell) + 1}/{len(cells)}] round {number + 1} of {rounds}: "
                        f"{cell.job} {cell.network} {cell.size}x{cell.size}, {cell.variant}: {_summary(one)}"
                    )
    rows = _rows(measured, about["rates"])
    return SpeedRun(about["machine"], about["device"], about["rates"], rounds, rows)


def _measure(cell: Cell, settings: Settings, result: Path, limit: float) -> Measurement:
    """Measure one cell in a process of its own; whatever ends that becomes the reason."""
    result.unlink(missing_ok=True)
    task = json.dumps({"settings": dataclasses.asdict(settings), "cell": dataclasses.asdict(cell)})
    try:
        run_module(MODULE, task, result, threads=settings.threads, limit=limit)
    except RuntimeError as error:
        return Measurement(reason=str(error))
    return Measurement(**json.loads(result.read_text(encoding="utf-8")))


def _summary(one: Measurement) -> str:
    if one.reason:
        return f"not measured: {one.reason}"
    count = len(one.seconds)
    return f"{statistics.median(one.seconds):.3g} s ({count} run{'s' if count > 1 else ''}), {one.total / 1e6:.0f} MB"


def _rows(measured: Mapping[Cell, Sequence[Measurement]], rates: Mapping[str, float]) -> tuple[Row, ...]:
    rows = [_row(cell, results, rates) for cell, results in measured.items()]
    references = {(row.job, row.network, row.size, row.batch): row for row in rows if row.variant == "released"}

    def compared(row: Row) -> Row:
        name = row.network if NETWORKS[row.network].as_released else REFERENCE
        reference = references.get((row.job, name, row.size, row.batch))
        if reference is None or reference.seconds is None or row.seconds is None:
            return row
        return dataclasses.replace(row, times_faster=reference.seconds / row.seconds)

    return tuple(compared(row) for row in rows)


def _row(cell: Cell, results: Sequence[Measurement], rates: Mapping[str, float]) -> Row:
    row = Row(**dataclasses.asdict(cell))
    good = [one for one in results if not one.reason]
    if not good:
        return dataclasses.replace(row, reason=results[-1].reason or "not measured")
    times = [second for one in good for second in one.seconds]
    seconds, first = statistics.median(times), good[0]
    gflop = None if first.operations is None else first.operations / 1e9
    gflops = None if gflop is None else gflop / seconds
    rate = rates["bfloat16" if "bfloat16" in cell.variant else "float32"]
    return dataclasses.replace(
        row,
        seconds=seconds,
        fastest=min(times),
        runs=len(times),
        peak_mb=max(one.total for one in good) / 1e6,
        added_mb=max(one.added for one in good) / 1e6,
        setup=max(one.setup for one in good),
        gflop=gflop,
        gflops=gflops,
        rate_share=None if gflops is None else gflops * 1e9 / rate,
        error=first.error,
        rms_error=first.rms_error,
    )
