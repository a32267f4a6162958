"""Pictures of cubes: false colour, one band, a residual, spectra of pixels, and a page of before and after.

What turns cubes into arrays and choices (which bands, which stretch, which pixels) comes first and needs no matplotlib;
then what draws on axes that the caller owns. No figure touches matplotlib's global state, so that it is safe in a
training process and in a thread. Panels that are to be compared share one stretch: one fitted to each panel would hide
the noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Real

from hsidenoise.figures import cubes as figures
from hsidenoise.system.files import check_target, replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Red, green and blue in nm: where a band is taken for false colour when the cube knows its wavelengths.
RGB_NM = (640.0, 550.0, 460.0)
#: Where they are taken otherwise, as a share of the spectrum.
RGB_SHARE = (0.75, 0.5, 0.25)

_TOLERANCE_NM = 40.0  # farther than this from a colour, a band is not that colour
_GAMMA = 1 / 1.6  # sensors are linear and screens are not; less than sRGB's 2.2, which would brag of dark noise
_MARKS = ("#ff3b30", "#ffd60a", "#30d5ff", "#5cff5c")


def rgb_bands(bands: int, wavelengths: Float[np.ndarray, " bands"] | None = None) -> tuple[int, int, int]:
    """Choose the bands shown as red, green and blue.

    Args:
        bands: Number of bands, at least 1.
        wavelengths: Centre of each band in nm. If every colour of :data:`RGB_NM` has a band within 40 nm, the
            nearest are taken; otherwise those at three, two and one quarters of the spectrum.

    Raises:
        ValueError: If there is no band.

    Example:
        >>> rgb_bands(31, np.arange(400.0, 701.0, 10.0))
        (24, 15, 6)
        >>> rgb_bands(200)
        (149, 100, 50)
    """
    if bands < 1:
        raise ValueError("false colour needs at least one band, the cube has none")
    if wavelengths is not None:
        distance = np.abs(np.asarray(wavelengths)[None] - np.asarray(RGB_NM)[:, None])
        if np.all(np.isfinite(distance)) and np.all(distance.min(axis=1) <= _TOLERANCE_NM):
            red, green, blue = (int(band) for band in distance.argmin(axis=1))
            return red, green, blue
    red, green, blue = (round(share * (bands - 1)) for share in RGB_SHARE)
    return red, green, blue


@dataclass(frozen=True)
class Stretch:
    """Values shown as black and as full, for each of the three colours."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]


def fit_stretch(
    cube: Float32[np.ndarray, "bands height width"], chosen: tuple[int, int, int], *, percent: float = 0.5
) -> Stretch:
    """Fit black and white of each colour to a reference cube: the clean one, or the denoised one without it."""
    low, high = [], []
    for band in chosen:
        dark, bright = np.nanpercentile(cube[band], [percent, 100 - percent])
        low.append(float(dark))
        high.append(float(bright) if bright > dark else float(dark) + 1.0)
    return Stretch((low[0], low[1], low[2]), (high[0], high[1], high[2]))


def false_colour(
    cube: Float32[np.ndarray, "bands height width"],
    *,
    wavelengths: Float[np.ndarray, " bands"] | None = None,
    stretch: Stretch | None = None,
) -> Float32[np.ndarray, "height width 3"]:
    """Show a cube in red, green and blue.

    Args:
        cube: Cube in any unit; NaN is black.
        wavelengths: Centre of each band in nm, used to choose the bands (:func:`rgb_bands`).
        stretch: Black and white of each colour; fitted to this very cube if absent. Give the same one to every
            panel of a comparison.
    """
    chosen = rgb_bands(cube.shape[0], wavelengths)
    stretch = stretch or fit_stretch(cube, chosen)
    low = np.asarray(stretch.low, dtype=np.float32)
    high = np.asarray(stretch.high, dtype=np.float32)
    image = (np.stack([cube[band] for band in chosen], axis=-1) - low) / (high - low)
    return np.asarray(np.clip(np.nan_to_num(image), 0.0, 1.0) ** _GAMMA, dtype=np.float32)


def noisiest_band(
    noisy: Float32[np.ndarray, "bands height width"], denoised: Float32[np.ndarray, "bands height width"]
) -> int:
    """Find the band whose residual is largest beside what is left in it; NaN counts in none."""
    residual, kept = _each(noisy - denoised, np.std), _each(denoised, np.std)
    return int(np.nanargmax(residual / np.maximum(kept, 1e-3 * np.nanmax(kept) + 1e-12)))


def _each(cube: np.ndarray, statistic: Callable[..., np.floating[Any]]) -> np.ndarray:
    """A statistic of what each band has; NaN where it has nothing."""
    known = ((band, np.isfinite(band)) for band in cube)
    return np.array([statistic(band[at], dtype=np.float64) if at.any() else np.nan for band, at in known])


def telling_pixels(cube: Float32[np.ndarray, "bands height width"], count: int = 3) -> list[tuple[int, int]]:
    """Choose pixels whose spectra differ most, to show what denoising does to a spectrum.

    The first is bright; each further one has the widest spectral angle to those already chosen, among the pixels
    that are not dark (in the dark, an angle is mostly noise) and have all bands.

    Returns:
        (row, column) of each, 0-based.

    Example:
        >>> cube = np.zeros((2, 3, 4), dtype=np.float32)
        >>> cube[0, :, :2], cube[1, :, 2:] = 1.0, 0.5
        >>> telling_pixels(cube, 2)
        [(0, 0), (0, 2)]
    """
    # Means over small blocks: a single bad pixel shall not be taken for the most special object of the scene.
    block = max(1, min(cube.shape[1:]) // 40)
    rows, columns = (size // block for size in cube.shape[1:])
    blocks = cube[:, : rows * block, : columns * block].reshape(len(cube), rows, block, columns, block)
    spectra = blocks.mean(axis=(2, 4), dtype=np.float64).reshape(len(cube), -1).T
    whole = np.isfinite(spectra).all(axis=1)
    if not whole.any():  # gaps everywhere
        spectra = np.nan_to_num(blocks).mean(axis=(2, 4), dtype=np.float64).reshape(len(cube), -1).T
        whole[:] = True
    length = np.linalg.norm(spectra, axis=1)
    # Not the very brightest: that is a highlight, which has the lamp's spectrum rather than the object's.
    top = np.percentile(length[whole], 98)
    bright = np.flatnonzero(whole & (length >= 0.25 * top) & (length <= top))
    unit = spectra[bright] / np.maximum(length[bright, None], 1e-12)
    chosen = [int(np.argmax(length[bright]))]
    while len(chosen) < min(count, bright.size):
        nearest = np.max(unit @ unit[chosen].T, axis=1)
        chosen.append(int(np.argmin(nearest)))
    positions = np.unravel_index(bright[chosen], (rows, columns))
    return [
        (int(row) * block + block // 2, int(column) * block + block // 2)
        for row, column in zip(*positions, strict=True)
    ]


def draw_colour(
    axes: Axes,
    image: Float32[np.ndarray, "height width 3"],
    title: str,
    pixels: list[tuple[int, int]] | None = None,
) -> None:
    """Draw a false-colour image, with numbered marks on the pixels whose spectra are shown elsewhere."""
    from matplotlib.patheffects import AbstractPathEffect, withStroke

    axes.imshow(image, interpolation="nearest")
    for number, (row, column) in enumerate(pixels or [], start=1):
        colour = _MARKS[(number - 1) % len(_MARKS)]
        axes.plot(column, row, "o", markersize=6, markerfacecolor="none", markeredgecolor="black", mew=2.5)
        axes.plot(column, row, "o", markersize=6, markerfacecolor="none", markeredgecolor=colour, mew=1.5)
        outline: list[AbstractPathEffect] = [withStroke(linewidth=2, foreground="black")]
        axes.annotate(
            str(number), (column, row), xytext=(5, 4), textcoords="offset points", color=colour, weight="bold"
        ).set_path_effects(outline)
    _finish(axes, title)


def draw_band(axes: Axes, image: Float32[np.ndarray, "height width"], title: str, limits: tuple[float, float]) -> None:
    """Draw one band in grey."""
    axes.imshow(image, cmap="gray", vmin=limits[0], vmax=limits[1], interpolation="nearest")
    _finish(axes, title)


def draw_residual(axes: Axes, residual: Float32[np.ndarray, "height width"], title: str) -> None:
    """Draw what was taken away from one band; structure of the scene in it is signal that was lost.

    Args:
        axes: Where to draw.
        residual: noisy - denoised of one band; zero is white, and colours reach to its 99th percentile.
        title: Title of the panel.
    """
    known = np.abs(residual[np.isfinite(residual)])
    limit = (float(np.percentile(known, 99)) if known.size else 0.0) or 1.0
    image = axes.imshow(residual, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    figure = axes.get_figure()
    if figure is not None:
        bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.02)
        bar.ax.tick_params(labelsize=7)
    _finish(axes, title)


def draw_spectra(
    axes: Axes,
    spectra: Mapping[str, Float[np.ndarray, " bands"]],
    title: str,
    wavelengths: Float[np.ndarray, " bands"] | None = None,
) -> None:
    """Draw the spectra of one pixel, or any other value per band.

    Args:
        axes: Where to draw.
        spectra: Legend -> values per band. "noisy" is drawn thin and grey, "clean" dashed.
        title: Title of the panel.
        wavelengths: Centre of each band in nm; band numbers are shown without it.
    """
    styles: dict[str, dict[str, Any]] = {
        "noisy": {"color": "0.6", "linewidth": 0.8, "zorder": 1},
        "denoised": {"color": "#d1495b", "linewidth": 1.8, "zorder": 2},
        "clean": {"color": "black", "linewidth": 1.2, "linestyle": "--", "zorder": 3},
    }
    for name, values in spectra.items():
        position = np.arange(len(values)) if wavelengths is None else wavelengths
        axes.plot(position, values, label=name, **styles.get(name, {}))
    axes.set_xlabel("band" if wavelengths is None else "wavelength (nm)", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, frameon=False)
    axes.set_title(title, fontsize=9)


def _finish(axes: Axes, title: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=9)


_SILENT = {"png": ("Software",), "pdf": ("Creator", "Producer", "CreationDate"), "svg": ("Creator", "Date")}


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure without date, version or program in it.

    Args:
        figure: What to write.
        path: Picture; its ending says the format, ``.png``, ``.pdf`` or ``.svg``. It appears whole or not at all.

    Raises:
        ValueError: If the ending is another one.
        OSError: If the picture cannot be written.
    """
    path = Path(path)
    ending = path.suffix.lstrip(".").lower()
    if ending not in _SILENT:
        raise ValueError(f"{path}: not a picture format; name it .png, .pdf or .svg")
    with replacing(path) as temporary:
        figure.savefig(temporary, format=ending, metadata=dict.fromkeys(_SILENT[ending]))


_LONGEST_SIDE = 900  # pixels of a panel; a larger scene is thinned out for display
_PANEL = 3.3  # inches


def plot_noise(
    sigma: Sequence[float | None],
    snr: Sequence[float | None],
    wavelengths: Float[np.ndarray, " bands"] | None,
    path: str | Path,
) -> None:
    """Draw the noise level and the signal-to-noise ratio of each band.

    Args:
        sigma: Noise level of each band, in the unit of the cube; None where it is not known.
        snr: Signal-to-noise ratio of each band, dB.
        wavelengths: Centres of the bands in nm; the number of the band if None.
        path: File to write, by its ending.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     plot_noise([0.1, 0.2], [30.0, None], None, Path(folder, "a.png"))
        ...     Path(folder, "a.png").stat().st_size > 1000
        True
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=110, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    bands = np.arange(len(sigma)) if wavelengths is None else wavelengths
    for axes, values, name in ((upper, sigma, "sigma, unit of the cube"), (lower, snr, "mean over sigma, dB")):
        axes.plot(bands, np.array(values, float), ".-", linewidth=0.8, markersize=4)
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
    upper.set_ylim(bottom=0)
    upper.set_title("Noise of each band")
    lower.set_xlabel("band, 0-based" if wavelengths is None else "wavelength, nm")
    save_figure(figure, path)


def check_picture(picture: Path, *cubes: Path) -> None:
    """Refuse, before anything is computed, what could not be drawn to.

    Args:
        picture: File to write.
        *cubes: Files that it must not be.

    Raises:
        ValueError: If it is one of them or inside of one, or its ending is not that of a picture.
        OSError: If it cannot be written.
    """
    place = picture.resolve()
    if any(cube.resolve() in (place, *place.parents) for cube in cubes):
        raise ValueError(f"{picture}: is a cube of this command, or inside of one; name another picture")
    if picture.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ValueError(f"{picture}: name a picture .png, .pdf or .svg")
    check_target(picture)


def before_after(
    noisy: Real[np.ndarray, "bands height width"],
    denoised: Real[np.ndarray, "bands height width"],
    clean: Real[np.ndarray, "bands height width"] | None = None,
    *,
    path: str | Path,
    wavelengths: Float[np.ndarray, " bands"] | None = None,
    band: int | None = None,
    mask: Bool[np.ndarray, "bands height width"] | None = None,
) -> None:
    """Draw the before/after page of one denoising and write it as a picture.

    First row: false colour, one stretch for all panels, and a curve over the bands (PSNR where the clean cube is
    known, the size of the residual otherwise). Second row: one band and its residual. Third row: spectra.

    Args:
        noisy: Noisy cube.
        denoised: Its estimate, in the same unit.
        clean: Truth, if known; then titles say the PSNR, for estimates clipped to [0, 1] if the clean values are
            in it, else to the range of the clean values.
        path: Picture to write; its ending says the format (``.png``, ``.pdf``, ``.svg``).
        wavelengths: Centre of each band in nm.
        band: Band of the second row, 0-based; the noisiest one if absent.
        mask: True where a value holds data; None: wherever all cubes are finite. All else is left blank.

    Raises:
        ValueError: If shapes differ, nothing holds data, the band does not exist, or the ending is no picture format.
        OSError: If the picture cannot be written.
    """
    for name, other in (("denoised", denoised), ("clean", clean)):
        if other is not None and other.shape != noisy.shape:
            raise ValueError(f"picture: the {name} cube is {other.shape}, the noisy one {noisy.shape}")
    if band is not None and not 0 <= band < len(noisy):
        raise ValueError(f"picture: there is no band {band}; the cube has bands 0 to {len(noisy) - 1}")
    noisy, denoised = noisy.astype(np.float32, copy=False), denoised.astype(np.float32, copy=False)
    clean = None if clean is None else clean.astype(np.float32, copy=False)
    known = np.isfinite(noisy) & np.isfinite(denoised) & (True if clean is None else np.isfinite(clean))
    known &= True if mask is None else mask
    if not known.any():
        raise ValueError("picture: no value holds data")
    if not known.all():
        noisy, denoised = (np.where(known, cube, np.float32(np.nan)) for cube in (noisy, denoised))
        clean = None if clean is None else np.where(known, clean, np.float32(np.nan))
    shown = figures.noisiest_band(noisy, denoised) if band is None else band
    figure = _page(noisy, denoised, clean, wavelengths, shown)
    save_figure(figure, path)


def _page(
    noisy: np.ndarray,
    denoised: np.ndarray,
    clean: np.ndarray | None,
    wavelengths: np.ndarray | None,
    band: int,
) -> Figure:
    from matplotlib.figure import Figure

    reference = denoised if clean is None else clean
    cubes = {"noisy": noisy, "denoised": denoised}
    if clean is not None:
        cubes["clean"] = clean
    scores = {} if clean is None else {name: _psnr_per_band(cubes[name], clean) for name in ("noisy", "denoised")}

    columns = len(cubes) + 1
    height, width = noisy.shape[1:]
    picture = _PANEL * min(max(height / width, 0.4), 2.2) + 0.35
    figure = Figure(figsize=(_PANEL * columns, 2 * picture + 2.6), dpi=110, layout="constrained")
    rows: Any = figure.subfigures(3, 1, height_ratios=[picture, picture, 2.6])
    top, middle = rows[0].subplots(1, columns), rows[1].subplots(1, columns)
    step = -(-max(height, width) // _LONGEST_SIDE)
    thin = (slice(None, None, step), slice(None, None, step))

    alive = np.flatnonzero(np.isfinite(reference).any(axis=(1, 2)))
    seen = alive if len(alive) < len(noisy) else slice(None)  # a view where it can be
    waves = None if wavelengths is None else np.asarray(wavelengths)[seen]
    stretch = figures.fit_stretch(reference[seen], figures.rgb_bands(len(alive), waves))
    pixels = figures.telling_pixels(reference[seen])
    marks = [(row // step, column // step) for row, column in pixels]
    for axes, (name, cube) in zip(top, cubes.items(), strict=False):
        image = figures.false_colour(cube[:, *thin][seen], wavelengths=waves, stretch=stretch)
        figures.draw_colour(axes, image, _title(name, scores.get(name)), marks)
    if clean is not None:
        figures.draw_spectra(top[-1], scores, "PSNR of each band (dB)", wavelengths)
    else:
        removed = {"noisy - denoised": _each(noisy - denoised, np.std)}
        figures.draw_spectra(top[-1], removed, "Standard deviation of what was removed", wavelengths)

    limits = _limits(reference[band])
    label = f"band {band}" + ("" if wavelengths is None else f" ({wavelengths[band]:g} nm)")
    for axes, (name, cube) in zip(middle, cubes.items(), strict=False):
        score = scores[name][band : band + 1] if name in scores else None
        figures.draw_band(axes, cube[band][thin], _title(f"{label}, {name}", score), limits)
    figures.draw_residual(middle[-1], (noisy - denoised)[band][thin], f"{label}, noisy - denoised")

    for number, (axes, (row, column)) in enumerate(
        zip(np.atleast_1d(rows[2].subplots(1, len(pixels))), pixels, strict=True), start=1
    ):
        spectra = {name: cube[:, row, column] for name, cube in cubes.items()}
        figures.draw_spectra(axes, spectra, f"pixel {number}: row {row}, column {column}", wavelengths)
    return figure


def _psnr_per_band(cube: np.ndarray, clean: np.ndarray) -> np.ndarray:
    low, high = float(np.nanmin(clean)), float(np.nanmax(clean))
    if (low >= 0 and high <= 1) or low == high:
        low, high = 0.0, 1.0
    error = _each(np.square(np.clip(cube, low, high) - clean, dtype=np.float64), np.mean)
    return np.asarray(10 * np.log10((high - low) ** 2 / np.maximum(error, 1e-20)))


def _title(name: str, score: np.ndarray | None) -> str:
    known = [] if score is None else score[np.isfinite(score)]
    return f"{name}: {float(np.mean(known)):.2f} dB" if len(known) else name


def _limits(band: np.ndarray) -> tuple[float, float]:
    known = band[np.isfinite(band)]
    low, high = np.percentile(known, [0.5, 99.5]) if known.size else (0.0, 1.0)
    return float(low), float(high) if high > low else float(low) + 1.0
