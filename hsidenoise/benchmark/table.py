"""What a table of a paper is made of: scores, methods, numbers of others, and which cell is best.

:mod:`hsidenoise.benchmark.render` writes it down; nothing is read or measured here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Metric = Literal["psnr", "ssim", "sam"]
METRICS: tuple[Metric, ...] = ("psnr", "ssim", "sam")


@dataclass(frozen=True)
class Score:
    """One finished cell: one method on one scene under one noise case.

    Attributes:
        scene: Name of the scene.
        psnr: In dB; infinite where a band is reproduced exactly.
        ssim: At most 1.
        sam: Mean spectral angle in the table's ``sam_unit``.
        seconds: Wall time of the method on this scene.
    """

    scene: str
    psnr: float
    ssim: float
    sam: float
    seconds: float


@dataclass(frozen=True)
class Line:
    """One method of a table.

    Attributes:
        label: Name shown.
        scores: Noise case -> one score per scene; a missing case is shown as a dash.
        given_sigma: Whether the method was given sigma; marked with a dagger and a note.
        parameters: Number of weights, if it has any.
        gflop: Cost of one scene, a multiplication and an addition being two operations.
        marks: Loud warnings, such as "LEAK: trained on scene x": shown in the table and below it. A line with marks
            is never ranked.
        is_input: Whether it is the noisy input, which is never ranked and costs nothing.
    """

    label: str
    scores: Mapping[str, tuple[Score, ...]]
    given_sigma: bool = False
    parameters: int | None = None
    gflop: float | None = None
    marks: tuple[str, ...] = ()
    is_input: bool = False

    def seconds(self) -> float:
        """Mean over all cells; NaN without any."""
        return mean_and_deviation([score.seconds for scores in self.scores.values() for score in scores])[0]


@dataclass(frozen=True)
class PublishedLine:
    """Numbers that others printed, of other images: shown apart and never ranked.

    Attributes:
        label: Method.
        scores: Noise case -> PSNR in dB.
        source: Where the numbers were read.
        parameters: Number of weights.
        gflop: As printed there.
    """

    label: str
    scores: Mapping[str, float]
    source: str
    parameters: int | None = None
    gflop: float | None = None


@dataclass(frozen=True)
class Table:
    """Everything that a page shows.

    Attributes:
        title: Heading, and caption in LaTeX.
        cases: Noise cases in the order of the columns.
        lines: Methods in the order of the rows.
        facts: Head of the page: commit, seed, hashes of weights, protocol, tile, machine.
        notes: Sentences below the table.
        published: Numbers of others.
        sam_unit: Unit of the spectral angle, "radians" or "degrees".

    Raises:
        ValueError: If a label, a case or a scene of a cell occurs twice, or a line has a case that the table lacks.
    """

    title: str
    cases: tuple[str, ...]
    lines: tuple[Line, ...]
    facts: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()
    published: tuple[PublishedLine, ...] = ()
    sam_unit: str = "radians"

    def __post_init__(self) -> None:
        _once(self.cases, f"table '{self.title}': noise case")
        _once([line.label for line in self.lines], f"table '{self.title}': method")
        for line in self.lines:
            for case, scores in line.scores.items():
                if case not in self.cases:
                    raise ValueError(
                        f"table '{self.title}': '{line.label}' has the case '{case}', which is not a column"
                    )
                _once([score.scene for score in scores], f"table '{self.title}': '{line.label}', '{case}': scene")


@dataclass(frozen=True)
class Cell:
    """What a table shows of one metric of one method under one noise case.

    Attributes:
        mean: Mean over the scenes; NaN where there is none.
        deviation: Sample standard deviation (n - 1); NaN for one scene or where it is not finite.
        scenes: Number of scenes.
        of: Number of scenes that any method has under this case; if it is larger, the cell is not ranked.
        rank: 1 for the best, 2 for the next best value; 0 otherwise.
    """

    mean: float
    deviation: float
    scenes: int
    of: int
    rank: int = 0


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation.

    Returns:
        Both NaN for no value; the deviation is NaN for one value or where the mean is not finite.

    Example:
        >>> mean_and_deviation([30.0, 34.0])
        (32.0, 2.8284271247461903)
        >>> mean_and_deviation([math.inf, 34.0])
        (inf, nan)
    """
    if not values:
        return math.nan, math.nan
    finite = all(map(math.isfinite, values))
    mean = (math.fsum(values) if finite else sum(values)) / len(values)
    if len(values) < 2 or not finite:
        return mean, math.nan
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def cells(table: Table, metric: Metric, case: str) -> tuple[Cell, ...]:
    """Means, deviations and ranks of one column, in the order of the table's lines.

    Ranks go by the unrounded means of the lines that may be compared: not the input, not lines with marks, not cells
    that lack scenes others have. Equal means share a rank.

    Args:
        table: The table.
        metric: Which metric; of "sam", the smallest is best.
        case: Column.

    Example:
        >>> lines = [Line(name, {"blind": (Score("a", dB, 0.9, 0.1, 1.0),)}) for name, dB in (("x", 30.0), ("y", 31.0))]
        >>> [cell.rank for cell in cells(Table("t", ("blind",), tuple(lines), ()), "psnr", "blind")]
        [2, 1]
    """
    column = [line.scores.get(case, ()) for line in table.lines]
    every = {score.scene for scores in column for score in scores}
    found = [
        Cell(*mean_and_deviation([getattr(score, metric) for score in scores]), len(scores), len(every))
        for scores in column
    ]
    ranked = [
        not (line.is_input or line.marks or cell.scenes < cell.of or math.isnan(cell.mean))
        for line, cell in zip(table.lines, found, strict=True)
    ]
    best = sorted({cell.mean for cell, may in zip(found, ranked, strict=True) if may}, reverse=metric != "sam")[:2]
    return tuple(
        Cell(cell.mean, cell.deviation, cell.scenes, cell.of, best.index(cell.mean) + 1 if may else 0)
        if may and cell.mean in best
        else cell
        for cell, may in zip(found, ranked, strict=True)
    )


def _once(names: Sequence[str], what: str) -> None:
    twice = next((name for position, name in enumerate(names) if name in names[:position]), None)
    if twice is not None:
        raise ValueError(f"{what} '{twice}' occurs twice")
