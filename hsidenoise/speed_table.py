"""The speed benchmark for readers: CSV, Markdown, and how far it reaches what this project set out to show."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from itertools import groupby

from hsidenoise.benchmark_speed import TRAIN_BATCH, TRAIN_SIZE, Row, SpeedRun
from hsidenoise.machine import Machine
from hsidenoise.speed_cell import Job
from hsidenoise.speed_networks import BANDS, NETWORKS

HSDT_M_GFLOP = 97.1
"""Forward pass of HSDT-M at 31x128x128, counted on its public code (Lai et al., ICCV 2023, arXiv 2303.09040)."""

_COLUMNS = (
    "variant",
    "seconds",
    "fastest",
    "times faster",
    "peak MB",
    "of it added",
    "GFLOP",
    "GFLOP/s",
    "of the rate",
    "error",
    "rms error",
    "runs",
)
_NOTES = """\
- **variant**: `released` is the formulation of the released code (written anew for this benchmark, held to stored
  outputs of that code); the others are ours with the same weights and input: in float32, under bfloat16 autocast,
  through `torch.compile` (float32, or under bfloat16 autocast), and exported to onnxruntime. A training step is
  forward, loss, backward and AdamW, ours with channels-last memory as `hsidenoise train` keeps it.
- **seconds** is the median of the runs, **fastest** the shortest. The first run of a process warms up and is left out,
  unless it alone takes longer than a cell has: then it is the only one. Compiling is left out too and stated.
- **times faster**: seconds of `released` over these; HCANetBRA was never released and is compared with HCANet.
- **peak MB** (10^6 bytes) is that of the whole process with Python and PyTorch (on a GPU: of the tensors), every cell
  in a fresh one; **of it added** is what the runs themselves took.
- **GFLOP** counts matrix products, convolutions and attention of the formulation, a multiplication and an addition
  being two; all else costs time but is not counted. **of the rate**: GFLOP/s over that of a matrix product in the same
  data type on the same threads, measured at the start.
- **error**: largest difference from `released` (of HCANetBRA: from its own float32), relative to its largest value.
  **rms error**: root mean square of the difference relative to that of what the network adds to its input (of routing
  attention: to that of its output). In bfloat16 routing attention may choose another region where two are nearly as
  good, which is a large difference at few pixels.
"""


def to_csv(rows: Sequence[Row]) -> str:
    """All rows with all digits.

    Args:
        rows: Lines of the table.

    Example:
        >>> to_csv([Row("forward", "bra", "float32", 64, 1, seconds=0.5)]).splitlines()[1][:30]
        'forward,bra,float32,64,1,0.5,,'
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, [column.name for column in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value is None else value for name, value in asdict(row).items()} for row in rows)
    return text.getvalue()


def to_markdown(done: SpeedRun, *, command: str, commit: str, date: str) -> str:
    """The whole page.

    Args:
        done: What was measured.
        command: Command line that measured it.
        commit: Version of this project's code.
        date: When.
    """
    machine = Machine(**{**done.machine, "instruction_sets": tuple(done.machine["instruction_sets"])})
    products = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in done.rates.items())
    parts = [
        "# Speed\n",
        f"Measured on {date}, commit {commit}, by `{command}`.\n",
        f"Machine: {machine.sentence()}; computed on {done.device}.\n",
        f"A product of large square matrices reaches {products}.\n",
        "## What was to be shown\n",
        *(f"- {line}" for line in bars(done.rows)),
    ]
    for network, of_network in groupby(done.rows, key=lambda row: row.network):
        parts.append(f"\n## {network}: {NETWORKS[network].title}")
        for (job, size, batch), group in groupby(of_network, key=lambda row: (row.job, row.size, row.batch)):
            what = "Forward" if job == "forward" else "Training step"
            parts += [f"\n### {what}, {size}x{size} pixels, batch {batch}\n", *_table(list(group))]
    return "\n".join([*parts, "\n## How to read it\n", _NOTES])


def bars(rows: Sequence[Row]) -> list[str]:
    """What this project set out to show, one line each: the figure, the bar, and whether it is met.

    Args:
        rows: Lines of the table; what they do not hold is said to be not measured.

    Example:
        >>> bars([])[0]
        'HCANet 512x512, float32: not measured (bar: 5 times faster than as released).'
    """
    found = {(row.job, row.network, row.variant, row.size, row.batch): row for row in rows if not row.reason}

    def row(job: Job, network: str, variant: str, size: int, batch: int = 1) -> Row | None:
        return found.get((job, network, variant, size, batch))

    float32 = row("forward", "hcanet", "float32", 512)
    others = [one for one in rows if (one.job, one.network, one.size) == ("forward", "hcanet", 512)]
    others = [
        one for one in others if one.variant not in ("released", "float32") and one.times_faster and one.batch == 1
    ]
    best = max(others, key=lambda one: one.times_faster or 0.0, default=None)
    default = row("forward", "hcanet-bra", "float32", 128)
    steps = [row("train", "hcanet-bra-48", variant, TRAIN_SIZE, TRAIN_BATCH) for variant in ("float32", "bfloat16")]
    step = max((one for one in steps if one), key=lambda one: one.times_faster or 0.0, default=None)

    def times(one: Row | None) -> float | None:
        return one.times_faster if one else None

    def attention(heads: int, network: str) -> list[str]:
        ours, explicit = (row("forward", network, variant, 256) for variant in ("float32", "released"))
        memory = None
        if ours and explicit and ours.added_mb is not None and explicit.added_mb:
            memory = ours.added_mb / explicit.added_mb
        what = f"Routing attention 256x256, {heads} head{'s' if heads > 1 else ''}, float32"
        return [
            _bar(what, times(ours), faster, 4, "times faster than gather and softmax"),
            _bar(f"{what}, memory added", memory, share, 0.2, "of gather and softmax", most=True),
        ]

    name = best.variant if best else "fastest other variant"
    error = f", error {best.error:.1e}, rms {best.rms_error:.1e}" if best and best.error and best.rms_error else ""
    faster, share = "{:.1f} times faster", "{:.2f} of it"
    return [
        _bar("HCANet 512x512, float32", times(float32), faster, 5, "times faster than as released"),
        _bar(
            "HCANet 512x512, float32, error", float32.error if float32 else None, "{:.1e}", 1e-4, "at most", most=True
        ),
        _bar(f"HCANet 512x512, {name}{error}", times(best), faster, 10, "times faster than as released"),
        _bar(
            "HCANet 512x512, float32, peak", float32.peak_mb if float32 else None, "{:.0f} MB", 1500, "MB at most", True
        ),
        _bar(f"HCANet 512x512, {name}, peak", best.peak_mb if best else None, "{:.0f} MB", 1500, "MB at most", True),
        _bar(
            f"Default HCANetBRA, GFLOP at {BANDS}x128x128 against HSDT-M's {HSDT_M_GFLOP}",
            default.gflop / HSDT_M_GFLOP if default and default.gflop is not None else None,
            share,
            1 / 3,
            "of it at most",
            most=True,
        ),
        *(line for heads, name in ((8, "bra"), (1, "bra-1-head")) for line in attention(heads, name)),
        _bar(
            f"Training step of HCANetBRA at HCANet's width and depth, batch {TRAIN_BATCH}"
            + (f", {step.variant}" if step else ""),
            times(step),
            faster,
            8,
            "times faster than HCANet as released",
        ),
    ]


def _bar(what: str, value: float | None, form: str, bar: float, unit: str, most: bool = False) -> str:
    """One line: a figure and the bar that it is held against."""
    limit = f"at most {bar:g}" if unit == "at most" else f"{bar:.4g} {unit}"
    if value is None:
        return f"{what}: not measured (bar: {limit})."
    met = value <= bar if most else value >= bar
    return f"{what}: {form.format(value)} (bar: {limit}; {'met' if met else '**not met**'})."


def _table(rows: Sequence[Row]) -> list[str]:
    lines = [f"| {' | '.join(_COLUMNS)} |", f"|---|{'---:|' * (len(_COLUMNS) - 1)}"]
    notes = []
    for row in rows:
        if row.reason:
            lines.append(f"| {row.variant} | {' | '.join([''] * (len(_COLUMNS) - 1))} |")
            notes.append(f"`{row.variant}` was not measured: {row.reason}.")
            continue
        if row.setup:
            notes.append(f"`{row.variant}` compiled for {row.setup:.0f} s first.")
        cells = (
            _text(row.seconds, "{:.3g}".format),
            _text(row.fastest, "{:.3g}".format),
            _text(row.times_faster, "{:.2f}".format),
            _text(row.peak_mb, "{:.0f}".format),
            _text(row.added_mb, "{:.0f}".format),
            _text(row.gflop, "{:.1f}".format),
            _text(row.gflops, "{:.1f}".format),
            _text(row.rate_share, "{:.0%}".format),
            _text(row.error, "{:.1e}".format),
            _text(row.rms_error, "{:.1e}".format),
            str(row.runs),
        )
        lines.append(f"| {row.variant} | {' | '.join(cells)} |")
    return [*lines, *(["", *notes] if notes else [])]


def _text(value: float | None, form: Callable[[float], str]) -> str:
    return "" if value is None else form(value)
