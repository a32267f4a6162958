"""Figures of a paper table: methods side by side, what they do to spectra and bands, and what quality costs.

Cubes are on [0, 1]. Every panel of a row shares one scale, a PSNR counts estimates clipped to [0, 1] (protocol
``standard``), and a picture written twice has the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Float32

from hsidenoise.figures import cubes as figures
from hsidenoise.figures.cubes import save_figure
from hsidenoise.metrics.functional import bandwise_psnr

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_COLUMNS = 8
"""Panels beside each other; more of them wrap."""

_LONGEST_SIDE = 400  # pixels of a scene's panel: larger scenes are thinned, never averaged, which would hide the noise
_SHARP = 250  # pixels that a panel has at least
_BOX = "#ffd60a"
_TITLE, _GAP, _HEAD, _LABEL = 0.36, 0.05, 0.34, 0.24  # inches
_STYLES = ("-", "--", "-.", ":")

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7b3f00")
"""Told apart by everybody (Okabe and Ito, "Color universal design", 2008; yellow left out, brown added)."""

_PANEL, _LEFT = 5.2, 0.72  # inches: a panel with its margins, and the left one
_LINE = 11.0  # points: height of a label's line


def comparison(
    path: str | Path,
    clean: Float32[np.ndarray, "bands height width"],
    cubes: Mapping[str, Float32[np.ndarray, "bands height width"]],
    *,
    title: str,
    case: str,
    wavelengths: Float[np.ndarray, " bands"] | None = None,
    band: int | None = None,
    pixel: tuple[int, int] | None = None,
    inset: tuple[int, int, int] | None = None,
) -> None:
    """Draw methods side by side: false colour with an enlarged inset, one band, and its error against clean.

    All false-colour panels share the stretch of the clean cube, all error panels one scale: the 99th percentile of
    the middling method, so that colours saturate on the noisy cube and not on what is to be compared.

    Args:
        path: Picture to write; its ending says the format (``.png``, ``.pdf``).
        clean: Truth on [0, 1].
        cubes: Label -> cube, in the order of the columns, the noisy one first; clean is added at the end.
        title: What is shown, such as the scene.
        case: Noise case.
        wavelengths: Centre of each band in nm.
        band: Band of the second and third row, 0-based; the noisiest one if absent.
        pixel: (row, column) to mark in the clean panel, such as that of :func:`spectra`.
        inset: (row, column, side) of the square that is enlarged; a detailed one if absent.

    Raises:
        ValueError: If there is no cube, shapes differ, the band, pixel or square is not in the cube, or the ending is
            no picture format.
        OSError: If the picture cannot be written.

    Example:
        >>> clean = np.random.default_rng(0).random((4, 24, 20), dtype=np.float32)
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     comparison(Path(folder, "a.png"), clean, {"noisy": clean + 0.1}, title="random", case="bias")
        ...     Path(folder, "a.png").stat().st_size > 1000
        True
    """
    _check(clean, cubes)
    bands, height, width = clean.shape
    first = next(iter(cubes.values()))
    band = figures.noisiest_band(first, clean) if band is None else band
    if not 0 <= band < bands:
        raise ValueError(f"figure: there is no band {band}; the cube has bands 0 to {bands - 1}")
    if pixel is not None:
        _check_pixel(pixel, clean)
    row, column, side = _detail(clean) if inset is None else inset
    if side < 2 or row < 0 or column < 0 or row + side > height or column + side > width:
        raise ValueError(f"figure: no square of {side} pixels at row {row}, column {column} of {height} x {width}")

    everything = {**cubes, "clean": clean}
    blocks = -(-len(everything) // MOST_COLUMNS)
    columns = -(-len(everything) // blocks)
    step = -(-max(height, width) // _LONGEST_SIDE)
    thin = (slice(None, None, step), slice(None, None, step))
    shape = clean[0][thin].shape
    page = _Page(columns, blocks, shape[0] / shape[1], shape[1], f"{title}, {case}")

    stretch = figures.fit_stretch(clean, figures.rgb_bands(bands, wavelengths))
    limits = _limits(clean[band])
    errors = {label: np.asarray(cube[band] - clean[band]) for label, cube in cubes.items()}
    spread = [float(np.percentile(np.abs(error), 99)) for error in errors.values()]
    scale = sorted(spread[1:] or spread)[len(spread[1:]) // 2] or 1.0
    name = f"band {band}" if wavelengths is None else f"{wavelengths[band]:.0f} nm"
    for number, (label, cube) in enumerate(everything.items()):
        block, place = divmod(number, columns)
        if place == 0:
            page.label(block, ("false colour", name, f"error at {name}"))
        known = label != "clean"
        scores = _psnr(cube, clean) if known else None
        image = figures.false_colour(cube, wavelengths=wavelengths, stretch=stretch)
        axes = page.axes(block, 0, place)
        marks = [(pixel[0] // step, pixel[1] // step)] if pixel is not None and not known else None
        under = "" if scores is None else f"\n{_decibels(float(scores.mean()))}"
        figures.draw_colour(axes, image[thin], label + under, marks)
        _enlarge(axes, image, (row, column, side), step)
        axes = page.axes(block, 1, place)
        figures.draw_band(axes, cube[band][thin], "" if scores is None else _decibels(float(scores[band])), limits)
        axes = page.axes(block, 2, place)
        if known:
            shown = axes.imshow(
                errors[label][thin], cmap="RdBu_r", vmin=-scale, vmax=scale, interpolation="nearest", aspect="auto"
            )
            axes.set_xticks([])
            axes.set_yticks([])
        else:
            axes.set_axis_off()
            bar = page.figure.colorbar(shown, cax=axes.inset_axes((0.06, 0.04, 0.1, 0.92)), extend="both")
            bar.ax.tick_params(labelsize=7)
            bar.set_label(f"{name}, estimate - clean", fontsize=7)
    save_figure(page.figure, Path(path))


def spectra(
    path: str | Path,
    clean: Float32[np.ndarray, "bands height width"],
    cubes: Mapping[str, Float32[np.ndarray, "bands height width"]],
    *,
    title: str,
    case: str,
    pixels: list[tuple[int, int]] | None = None,
    wavelengths: Float[np.ndarray, " bands"] | None = None,
) -> None:
    """Draw what methods do to spectra: chosen pixels, their error, and the PSNR of every band.

    Args:
        path: Picture to write.
        clean: Truth on [0, 1].
        cubes: Label -> cube, the noisy one first. It is drawn thin and grey, and only where it fits: axes show the
            range of the others.
        title: What is shown, such as the scene.
        case: Noise case.
        pixels: (row, column) of each, one to four; three of different materials if absent.
        wavelengths: Centre of each band in nm.

    Raises:
        ValueError: If there is no cube, shapes differ, a pixel is not in the cube, there are none or more than four,
            or the ending is not a picture format.
        OSError: If the picture cannot be written.

    Example:
        >>> clean = np.random.default_rng(0).random((4, 24, 20), dtype=np.float32)
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     spectra(Path(folder, "a.png"), clean, {"noisy": clean + 0.1}, title="random", case="bias")
        ...     Path(folder, "a.png").stat().st_size > 1000
        True
    """
    from matplotlib.figure import Figure

    _check(clean, cubes)
    pixels = figures.telling_pixels(clean) if pixels is None else pixels
    if not 1 <= len(pixels) <= 4:
        raise ValueError(f"figure: spectra of one to four pixels can be shown, not of {len(pixels)}")
    for one in pixels:
        _check_pixel(one, clean)
    columns = 1 + len(pixels)
    beside = max(1, int(3.1 * columns / (0.65 + 0.075 * max(map(len, (*cubes, "clean"))))))  # legend entries, in inches
    lines = -(-(len(cubes) + 1) // beside)
    figure = Figure(figsize=(3.1 * columns, 5.6 + 0.22 * lines), dpi=110, layout="constrained")
    grid: Any = figure.subplots(2, columns)
    step = -(-max(clean.shape[1:]) // _LONGEST_SIDE)
    image = figures.false_colour(clean, wavelengths=wavelengths)[::step, ::step]
    figures.draw_colour(grid[0, 0], image, "clean", [(row // step, column // step) for row, column in pixels])
    bandwise = {label: _psnr(cube, clean) for label, cube in cubes.items()}
    _curves(grid[1, 0], bandwise, "PSNR of each band (dB)", wavelengths, shown=list(bandwise))
    for number, (row, column) in enumerate(pixels, start=1):
        truth = clean[:, row, column].astype(np.float64)
        values = {label: cube[:, row, column].astype(np.float64) for label, cube in cubes.items()}
        methods = list(values)[1:] or list(values)
        place = f"pixel {number}: row {row}, column {column}"
        _curves(grid[0, number], {**values, "clean": truth}, place, wavelengths, shown=[*methods, "clean"])
        error = {label: value - truth for label, value in values.items()}
        _curves(grid[1, number], error, f"pixel {number}: estimate - clean", wavelengths, shown=methods)
        grid[1, number].axhline(0, color="black", linewidth=0.8)
    handles, labels = grid[0, 1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=beside, fontsize=8, frameon=False)
    figure.suptitle(f"{title}, {case}", fontsize=11)
    save_figure(figure, Path(path))


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
        note = f"area: number of weights, largest {most / 1e6:.3g} M; diamonds have none"
        figure.text((side - 0.13) / side, 0.93 if title else 0.99, note, ha="right", va="top", fontsize=7, color="0.35")
    if title:
        figure.text(_LEFT / side, 0.97, title, ha="left", va="top", fontsize=11)
    save_figure(figure, Path(path))


class _Page:
    """A grid of panels laid out in inches, so that a panel has a whole number of screen pixels per pixel shown."""

    def __init__(self, columns: int, blocks: int, ratio: float, pixels: int, title: str) -> None:
        from matplotlib.figure import Figure

        self.panel = min(min(max(14.0 / columns, 1.8), 2.8), max(5.0 / ratio, 0.9))
        self.high = self.panel * ratio
        # Titles stand above the first two rows: two lines (name, PSNR), then one.
        self.rows = (_TITLE, _TITLE / 2 + _GAP, _GAP)
        self.block = sum(self.rows) + 3 * self.high + 0.1
        size = (_LABEL + columns * (self.panel + _GAP), _HEAD + blocks * self.block)
        dpi = pixels * max(1, math.ceil(_SHARP / pixels)) / self.panel
        self.figure: Figure = Figure(figsize=size, dpi=dpi)
        self.figure.text(_LABEL / size[0], 1 - 0.06 / size[1], title, ha="left", va="top", fontsize=11)

    def axes(self, block: int, row: int, column: int) -> Axes:
        wide, high = self.figure.get_size_inches()
        left = _LABEL + column * (self.panel + _GAP)
        bottom = self._bottom(block, row)
        return self.figure.add_axes((left / wide, bottom / high, self.panel / wide, self.high / high))

    def label(self, block: int, names: tuple[str, ...]) -> None:
        wide, high = self.figure.get_size_inches()
        for row, name in enumerate(names):
            middle = self._bottom(block, row) + self.high / 2
            self.figure.text(0.05 / wide, middle / high, name, rotation=90, ha="left", va="center", fontsize=8)

    def _bottom(self, block: int, row: int) -> float:
        down = _HEAD + block * self.block + sum(self.rows[: row + 1]) + (row + 1) * self.high
        return float(self.figure.get_size_inches()[1]) - down


def _enlarge(axes: Axes, image: np.ndarray, inset: tuple[int, int, int], step: int) -> None:
    """Frame a square and show it enlarged in the corner that is farthest from it."""
    from matplotlib.patches import Rectangle

    row, column, side = inset
    height, width = image.shape[:2]
    corner = (column / step - 0.5, row / step - 0.5)
    axes.add_patch(Rectangle(corner, side / step, side / step, fill=False, edgecolor=_BOX, linewidth=1.2))
    share = 0.42
    high = share * width / height if height > width else share
    wide = high * height / width
    x = 0.0 if column + side / 2 > width / 2 else 1 - wide
    y = 0.0 if row + side / 2 < height / 2 else 1 - high
    small = axes.inset_axes((x, y, wide, high))
    small.imshow(image[row : row + side, column : column + side], interpolation="nearest", aspect="auto")
    small.set_xticks([])
    small.set_yticks([])
    for spine in small.spines.values():
        spine.set(edgecolor=_BOX, linewidth=1.2)


def _detail(clean: np.ndarray) -> tuple[int, int, int]:
    """(row, column, side) of the square that varies most."""
    height, width = clean.shape[1:]
    side = max(2, min(height, width) // 5)
    grey = clean.mean(axis=0, dtype=np.float64)
    grey = np.minimum(grey, np.percentile(grey, 98))  # a highlight has contrast and nothing to see
    step = max(1, side // 4)
    places = [
        (float(grey[row : row + side, column : column + side].std()), -row, -column)
        for row in range(step, height - side - step + 1, step)
        for column in range(step, width - side - step + 1, step)
    ]
    _, row, column = max(places, default=(0.0, 0, 0))
    return -row, -column, side


def _curves(
    axes: Axes, values: Mapping[str, np.ndarray], title: str, wavelengths: np.ndarray | None, shown: list[str]
) -> None:
    """Curves over the bands; the axis spans those in ``shown``, and the noisy one stands behind."""
    position = np.arange(len(next(iter(values.values())))) if wavelengths is None else wavelengths
    for number, (label, curve) in enumerate(values.items()):
        if label == "clean":
            style: dict[str, Any] = {"color": "black", "linewidth": 1.6, "linestyle": (0, (4, 2)), "zorder": 3}
        elif number == 0:
            style = {"color": "0.7", "linewidth": 0.9, "zorder": 1}
        else:
            dash = _STYLES[(number - 1) // len(COLOURS) % len(_STYLES)]
            style = {"color": COLOURS[(number - 1) % len(COLOURS)], "linewidth": 1.2, "linestyle": dash, "zorder": 2}
        axes.plot(position, curve, label=label, **style)
    inside = np.concatenate([values[label] for label in shown])
    inside = inside[np.isfinite(inside)]
    if inside.size and inside.max() > inside.min():
        margin = 0.07 * float(inside.max() - inside.min())
        axes.set_ylim(float(inside.min()) - margin, float(inside.max()) + margin)
    axes.set_xlabel("band" if wavelengths is None else "wavelength (nm)", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    axes.set_title(title, fontsize=9)


def _psnr(cube: np.ndarray, clean: np.ndarray) -> np.ndarray:
    estimate = torch.from_numpy(np.clip(cube, 0.0, 1.0))
    return bandwise_psnr(estimate, torch.from_numpy(clean.copy()), data_range=1.0).double().numpy()


def _decibels(value: float) -> str:
    return f"{value:.2f} dB" if math.isfinite(value) else "exact"


def _limits(band: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(band, [0.5, 99.5])
    return float(low), float(high) if high > low else float(low) + 1.0


def _check(clean: np.ndarray, cubes: Mapping[str, np.ndarray]) -> None:
    if not cubes:
        raise ValueError("figure: no cube to compare; give the noisy one at least")
    for label, cube in cubes.items():
        if label == "clean":
            raise ValueError("figure: the clean cube stands apart; no other may be called 'clean'")
        if cube.shape != clean.shape:
            raise ValueError(f"figure: the cube '{label}' is {cube.shape}, the clean one {clean.shape}")


def _check_pixel(pixel: tuple[int, int], clean: np.ndarray) -> None:
    height, width = clean.shape[1:]
    if not (0 <= pixel[0] < height and 0 <= pixel[1] < width):
        raise ValueError(f"figure: there is no pixel {pixel}; the cube has {height} rows and {width} columns")


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
