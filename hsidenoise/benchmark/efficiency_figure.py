"""What quality costs: PSNR of each method against its seconds, GFLOP and memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsidenoise.figures.cubes import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7b3f00")
"""Told apart by everybody (Okabe and Ito, "Color universal design", 2008; yellow left out, brown added)."""

_PANEL, _LEFT = 5.2, 0.72  # inches: a panel with its margins, and the left one
_LINE = 11.0  # points: height of a label's line


@dataclass(frozen=True)
class EfficiencyPoint:
    """One method of the efficiency plot.

    Attributes:
        label: Name shown.
        psnr: Mean PSNR in dB.
        seconds: Mean time of one cube.
        gflop: Cost of one cube, if it can be counted.
        parameters: Number of weights; None or 0 draws a diamond of no size.
        memory_mb: Peak memory in MB.
    """

    label: str
    psnr: float
    seconds: float
    gflop: float | None = None
    parameters: int | None = None
    memory_mb: float | None = None


def efficiency(path: str | Path, points: Sequence[EfficiencyPoint], *, title: str = "") -> None:
    """Plot quality against cost: seconds, and GFLOP and memory where any method knows them.

    The area of a disc is proportional to the number of weights; diamonds have none. The grey line joins the methods
    that no other beats in both. A cost of zero has no place on a logarithmic axis: such a point is left out there.

    Args:
        path: Picture to write.
        points: Methods; the order does not matter, no two labels overlap.
        title: Title of the page.

    Raises:
        ValueError: If no point can be drawn, a PSNR is not finite, a label occurs twice, or the ending is not a picture
            format.
        OSError: If the picture cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     efficiency(Path(folder, "a.png"), [EfficiencyPoint("svd-tv", 36.4, 1.7)])
        ...     Path(folder, "a.png").stat().st_size > 1000
        True
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for number, point in enumerate(points):
        if not math.isfinite(point.psnr):
            raise ValueError(f"efficiency: the PSNR of '{point.label}' is {point.psnr}; leave it out")
        if point.label in [other.label for other in points[:number]]:
            raise ValueError(f"efficiency: the method '{point.label}' occurs twice")
    costs: dict[str, list[tuple[float, EfficiencyPoint]]] = {
        "seconds per cube": [(point.seconds, point) for point in points],
        "GFLOP per cube": [(point.gflop or 0.0, point) for point in points],
        "peak memory (MB)": [(point.memory_mb or 0.0, point) for point in points],
    }
    drawn = {name: [pair for pair in pairs if 0 < pair[0] < math.inf] for name, pairs in costs.items()}
    drawn = {name: pairs for name, pairs in drawn.items() if pairs}
    if not drawn:
        raise ValueError("efficiency: no method has a cost greater than zero")
    figure = Figure(figsize=(_PANEL * len(drawn), 4.6), dpi=150)
    side = _PANEL * len(drawn)
    most = max((point.parameters or 0 for point in points), default=0)
    low, high = min(point.psnr for point in points), max(point.psnr for point in points)
    margin = 0.12 * (high - low) or 1.0
    for number, (name, pairs) in enumerate(drawn.items()):
        axes = figure.add_axes(((_LEFT + _PANEL * number) / side, 0.12, 4.35 / side, 0.77 if title else 0.83))
        axes.set_xscale("log")
        smallest, largest = min(cost for cost, _ in pairs), max(cost for cost, _ in pairs)
        room = max((largest / smallest) ** 0.15, 2.0)
        axes.set_xlim(smallest / room, largest * room**1.5)  # most labels stand on the right
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(low - margin, high + margin)
        _scatter(axes, pairs, most)
        axes.set_xlabel(name, fontsize=9)
        axes.set_ylabel("PSNR (dB)" if number == 0 else "", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    if most:
        told = f"area: number of weights, largest {most / 1e6:.3g} M; diamonds have none"
        figure.text((side - 0.13) / side, 0.93 if title else 0.99, told, ha="right", va="top", fontsize=7, color="0.35")
    if title:
        figure.text(_LEFT / side, 0.97, title, ha="left", va="top", fontsize=11)
    save_figure(figure, Path(path))


def _scatter(axes: Axes, pairs: list[tuple[float, EfficiencyPoint]], most: int) -> None:
    """Draw the points of one panel, the front of the best, and a label beside each point."""
    front, best = [], -math.inf
    for cost, point in sorted(pairs, key=lambda pair: (pair[0], -pair[1].psnr)):
        if point.psnr > best:
            front.append((cost, point.psnr))
            best = point.psnr
    axes.plot(*zip(*front, strict=True), color="0.75", linewidth=1.2, zorder=1)
    radii = []
    for cost, point in pairs:
        # In points; the largest network has a radius of 15, and none is too small to be seen.
        radius = max(15 * math.sqrt(point.parameters / most), 3.0) if point.parameters else 3.5
        kind: dict[str, Any] = {"marker": "o", "color": COLOURS[0], "alpha": 0.55}
        if not point.parameters:
            kind = {"marker": "D", "color": COLOURS[1], "alpha": 0.8}
        axes.plot([cost], [point.psnr], markersize=2 * radius, markeredgecolor="black", mew=0.6, zorder=2, **kind)
        radii.append(radius)
    _place_labels(axes, pairs, radii)


def _place_labels(axes: Axes, pairs: list[tuple[float, EfficiencyPoint]], radii: list[float]) -> None:
    """Put each label beside its point; where two would overlap the upper one moves up, a thin line to its point."""
    from matplotlib.patheffects import withStroke

    line = -math.inf
    for (cost, point), radius in sorted(zip(pairs, radii, strict=True), key=lambda each: each[0][1].psnr):
        x, y = axes.transData.transform((cost, point.psnr)) * 72 / axes.figure.dpi  # points
        line = max(y, line + _LINE)
        left = x * axes.figure.dpi / 72 > axes.bbox.x0 + 0.7 * axes.bbox.width  # there is more room on its left
        axes.annotate(
            point.label,
            (cost, point.psnr),
            xytext=(-radius - 2 if left else radius + 2, line - y),
            textcoords="offset points",
            fontsize=8,
            ha="right" if left else "left",
            va="center_baseline",
            zorder=3,
            path_effects=[withStroke(linewidth=2, foreground="white")],
            arrowprops={"arrowstyle": "-", "color": "0.4", "linewidth": 0.6} if line > y + _LINE / 2 else None,
        )
