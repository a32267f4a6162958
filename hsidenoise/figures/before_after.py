"""One page that shows what a denoising did: before and after in colour, in one band, and in spectra."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Real

from hsidenoise.figures import cubes as figures
from hsidenoise.figures.cubes import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LONGEST_SIDE = 900  # pixels of a panel; a larger scene is thinned out for display
_PANEL = 3.3  # inches


def before_after(
    noisy: Real[np.ndarray, "bands height width"],
    denoised: Real[np.ndarray, "bands height width"],
    clean: Real[np.ndarray, "bands height width"] | None = None,
    *,
    path: str | Path,
    wavelengths: Float[np.ndarray, " bands"] | None = None,
    band: int | None = None,
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

    Raises:
        ValueError: If shapes differ, the band does not exist, or the ending is not a picture format.
        OSError: If the picture cannot be written.
    """
    for name, other in (("denoised", denoised), ("clean", clean)):
        if other is not None and other.shape != noisy.shape:
            raise ValueError(f"picture: the {name} cube is {other.shape}, the noisy one {noisy.shape}")
    if band is not None and not 0 <= band < len(noisy):
        raise ValueError(f"picture: there is no band {band}; the cube has bands 0 to {len(noisy) - 1}")
    noisy, denoised = noisy.astype(np.float32, copy=False), denoised.astype(np.float32, copy=False)
    clean = None if clean is None else clean.astype(np.float32, copy=False)
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

    chosen = figures.rgb_bands(len(noisy), wavelengths)
    stretch = figures.fit_stretch(reference, chosen)
    pixels = figures.telling_pixels(reference)
    marks = [(row // step, column // step) for row, column in pixels]
    for axes, (name, cube) in zip(top, cubes.items(), strict=False):
        image = figures.false_colour(cube[:, *thin], wavelengths=wavelengths, stretch=stretch)
        figures.draw_colour(axes, image, _title(name, scores.get(name)), marks)
    if clean is not None:
        figures.draw_spectra(top[-1], scores, "PSNR of each band (dB)", wavelengths)
    else:
        removed = {"noisy - denoised": np.asarray((noisy - denoised).std(axis=(1, 2)))}
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
    low, high = float(clean.min()), float(clean.max())
    if (low >= 0 and high <= 1) or low == high:
        low, high = 0.0, 1.0
    error = np.mean(np.square(np.clip(cube, low, high) - clean, dtype=np.float64), axis=(1, 2))
    return np.asarray(10 * np.log10((high - low) ** 2 / np.maximum(error, 1e-20)))


def _title(name: str, score: np.ndarray | None) -> str:
    return name if score is None else f"{name}: {float(np.mean(score)):.2f} dB"


def _limits(band: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(band, [0.5, 99.5])
    return float(low), float(high) if high > low else float(low) + 1.0
