"""Scores of a denoised cube in one file against a clean one in another."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Real

from hsidenoise.data.facts import sizes_of
from hsidenoise.data.io import Cube, read_cube
from hsidenoise.data.noisy_sets import CLEAN_KEY, NOISY_KEY, clean_beside, key_if_there
from hsidenoise.data.options import EvaluateOptions, ReadOptions
from hsidenoise.data.sources import locate
from hsidenoise.metrics.functional import evaluate
from hsidenoise.metrics.protocols import PROTOCOLS, Scores
from hsidenoise.signal.mask import named_bands
from hsidenoise.signal.scaling import told_apart

_LARGEST = 1e140  # whose square, summed over a cube, is a number


@dataclass(frozen=True)
class Evaluated:
    """Scores of a denoised file against a clean one, and how they came about.

    Attributes:
        denoised: The denoised cube as read.
        clean: The clean cube as read.
        scores: The scores.
        data_range: Range of clean values that PSNR and SSIM go by.
        scaling: What was done to the values, and why, in words.
        pixels_scored: Pixels that hold data in both, in some band that is scored.
        pixels: All pixels.
        bands_left_out: Bands without data, 0-based.
        not_data: What was taken for no data, in words.
        bands_of_infinite_psnr: Bands that are the same in both cubes.
        bands_of_infinite_ergas: Bands whose clean mean is 0.
    """

    denoised: Cube
    clean: Cube
    scores: Scores
    data_range: float
    scaling: str
    pixels_scored: int
    pixels: int
    bands_left_out: tuple[int, ...]
    not_data: tuple[str, ...]
    bands_of_infinite_psnr: tuple[int, ...]
    bands_of_infinite_ergas: tuple[int, ...]


def evaluate_files(
    denoised_path: str | Path,
    clean_path: str | Path,
    options: EvaluateOptions | None = None,
    *,
    reading: ReadOptions | None = None,
    clean_reading: ReadOptions | None = None,
) -> Evaluated:
    """Measure the denoised cube in one file against the clean one in another.

    Of files that `hsidenoise corrupt` wrote, ``input`` is read on the denoised and ``gt`` on the clean side. Clean
    values that are not floats in [0, 1] are brought there by their range, and the denoised ones by the same scale.

    Args:
        denoised_path: File with the denoised cube, or a noisy one.
        clean_path: File with the clean cube; may be the same.
        options: Protocol and range.
        reading: How the first is read.
        clean_reading: How the second is read.

    Warns:
        UserWarning: If the cubes seem to be in different units, or a score is infinite because of single bands.

    Raises:
        ValueError: If a file cannot be read so, the cubes differ in size, or the clean one is the same everywhere.
        OSError: If a file cannot be opened.
    """
    options, reading = options or EvaluateOptions(), reading or ReadOptions()
    clean_reading = clean_reading or ReadOptions()
    denoised = _read(Path(denoised_path), reading, NOISY_KEY)
    clean = _read(Path(clean_path), clean_reading, CLEAN_KEY)
    carried = clean_beside(Path(denoised_path), denoised)
    if denoised.values.shape != clean.values.shape:
        hint = "choose the variables with --key and --clean-key"
        if carried is not None:
            hint = f"{denoised_path} holds its own clean cube: `hsidenoise evaluate {denoised_path} {denoised_path}`"
        raise ValueError(
            f"{denoised_path} is {sizes_of(denoised)}, but {clean_path} is {sizes_of(clean)}; was one cropped? {hint}"
        )
    for path, cube in ((denoised_path, denoised), (clean_path, clean)):
        if (largest := float(np.abs(cube.values).max(where=np.isfinite(cube.values), initial=0))) > _LARGEST:
            raise ValueError(f"{path}: values of up to {largest:.3g} cannot be squared; save it in another unit")
    asked = reading.nodata is not None or reading.mask is not None or reading.bad_bands not in ("auto", "keep")
    left = scorable(denoised.values, clean.values, denoised.mask, clean.mask, asked=asked)
    said = tuple(
        f"{name} cube: {reason}"
        for name, cube in (("denoised", denoised), ("clean", clean))
        for reason in cube.not_data
    )
    bands = np.flatnonzero(left.bands)
    ours, truth = denoised.values[bands], clean.values[bands]
    if carried is not None:
        carried = carried[bands][left.valid]
    truth, lowest, data_range, rule = _common_scale(truth, left.valid, clean, carried, options.data_range)
    spread = float(ours[left.valid].std() / (truth[left.valid].std() or 1.0))
    if not 0.05 < spread < 20:
        warnings.warn(
            f"the denoised values spread {spread:.2g} times as wide as the clean ones: are both in the same unit?",
            stacklevel=2,
        )
    protocol = PROTOCOLS[options.protocol]
    mask = None if left.valid.all() else left.valid
    scores = evaluate(ours, truth, data_range=data_range, protocol=options.protocol, lowest=lowest, mask=mask)
    same: list[int] = []
    dark: list[int] = []
    floor = lowest or 0.0
    clip = (floor, floor + data_range) if protocol.clipped else None
    if not protocol.rows_as_bands:  # there, its scores are not of bands
        same, dark = _beyond_scores(ours, truth, left.valid, clip, lowest is not None)
    infinite = tuple(int(band) for band in bands[same])
    undefined = tuple(int(band) for band in bands[dark])
    others = np.setdiff1d(np.arange(len(bands)), same)
    if infinite and len(others):  # of a cube that is the same as a whole, an infinite PSNR says it
        rest = evaluate(
            ours[others],
            truth[others],
            data_range=data_range,
            protocol=options.protocol,
            lowest=lowest,
            mask=None if mask is None else mask[others],
        )
        warnings.warn(
            f"the PSNR is infinite: both cubes are the same in {named_bands(infinite)} (0-based); PSNR over the "
            f"{len(others)} others is {rest.psnr:.2f} dB",
            stacklevel=2,
        )
    if undefined:
        warnings.warn(f"the ERGAS is infinite: the clean mean is 0 in {named_bands(undefined)} (0-based)", stacklevel=2)
    return Evaluated(
        denoised=denoised,
        clean=clean,
        scores=scores,
        data_range=data_range,
        scaling=rule,
        pixels_scored=int(left.pixels.sum()),
        pixels=left.pixels.size,
        bands_left_out=tuple(int(band) for band in np.flatnonzero(~left.bands)),
        not_data=(*said, *left.reasons),
        bands_of_infinite_psnr=infinite,
        bands_of_infinite_ergas=undefined,
    )


@dataclass(frozen=True)
class Scorable:
    """What :func:`scorable` leaves.

    Attributes:
        bands: True where a band can be scored.
        valid: True where these bands hold data, in both cubes.
        pixels: True where a pixel holds data in some of them.
        reasons: What people should know of it.
    """

    bands: Bool[np.ndarray, " bands"]
    valid: Bool[np.ndarray, "bands_left height width"]
    pixels: Bool[np.ndarray, "height width"]
    reasons: tuple[str, ...]


def scorable(
    denoised: Real[np.ndarray, "bands height width"],
    clean: Real[np.ndarray, "bands height width"],
    denoised_valid: Bool[np.ndarray, "bands height width"] | None = None,
    clean_valid: Bool[np.ndarray, "bands height width"] | None = None,
    *,
    asked: bool = False,
) -> Scorable:
    """Find the bands and pixels in which two cubes can be compared.

    Left out is what holds no data in the clean cube, and what is NaN or infinite in the denoised one. Its other values
    without data are scored, or a denoiser could hide what it has spoilt, unless somebody has said what they are. A band
    without anything else is left out as a band.

    Args:
        denoised: The one cube.
        clean: The other.
        denoised_valid: True where the first holds data, see :func:`hsidenoise.signal.mask.find_mask`; None: everywhere.
        clean_valid: The same of the second.
        asked: Whether somebody has said which values of the first hold no data.

    Raises:
        ValueError: If nothing is left.

    Example:
        >>> clean = np.random.default_rng(0).random((3, 40, 50))
        >>> clean[:, :4], clean[2] = -9999, np.nan
        >>> left = scorable(clean, clean, clean_valid=np.isfinite(clean) & (clean != -9999))
        >>> left.bands.tolist(), int(left.pixels.sum())
        ([True, True, False], 1800)
    """
    finite = np.isfinite(denoised)
    invalid = ~(finite & np.isfinite(clean))
    if clean_valid is not None:
        invalid |= ~clean_valid
    reasons = []
    if denoised_valid is not None:
        alone = ~denoised_valid & ~invalid
        if asked:
            invalid |= alone
        elif count := int(alone.sum()):
            reasons.append(f"{count} values seem to be no data in the denoised cube only: scored as they are")
    bands = ~invalid.all(axis=(1, 2))
    if not bands.any():
        raise ValueError("no pixel holds data in both cubes")
    valid = ~invalid[bands]
    pixels = np.asarray(valid.any(axis=0))
    if partly := int((pixels & ~valid.all(axis=0)).sum()):
        reasons.append(f"{partly} pixels hold data in some bands only, and are scored in these")
    return Scorable(bands, valid, pixels, tuple(reasons))


def _read(path: Path, reading: ReadOptions, usual: str) -> Cube:
    path, key = locate(path, reading.key)
    return read_cube(path, **(reading.by_name() | {"key": key or key_if_there(path, usual)}), exact=True)


def _beyond_scores(
    denoised: np.ndarray, clean: np.ndarray, valid: np.ndarray, clip: tuple[float, float] | None, stored: bool
) -> tuple[list[int], list[int]]:
    """Bands that are the same in both cubes (after the clip), and bands of clean mean 0 that are not (before it)."""
    same: list[int] = []
    dark: list[int] = []
    for index, (ours, truth) in enumerate(zip(denoised, clean, strict=True)):
        estimate, wanted = ours[valid[index]].astype(np.float64), truth[valid[index]].astype(np.float64)
        clipped = estimate if clip is None else estimate.clip(*clip)
        if np.array_equal(clipped, wanted):
            same.append(index)
        if wanted.mean() == 0 and not np.array_equal(estimate if stored else clipped, wanted):
            dark.append(index)
    return same, dark


def _common_scale(
    truth: np.ndarray, mask: np.ndarray, clean: Cube, carried: np.ndarray | None, data_range: float | None
) -> tuple[np.ndarray, float | None, float, str]:
    """The clean cube in the denoised one's unit, the ends of the range that PSNR and SSIM go by, and why."""
    if data_range is not None:
        return truth, None, data_range, f"none; data range {data_range:g} as given"
    valid = truth[mask]
    low, high = float(valid.min()), float(valid.max())
    floats = clean.layout is None or np.issubdtype(clean.layout.dtype, np.floating)
    if floats and low >= 0 and high <= 1:
        return truth, None, 1.0, "none; clean values are floats in [0, 1], data range 1"
    if low == high:
        raise ValueError(f"{clean.path}: every clean value is {low:g}; say the range with --data-range")
    span = f"by the clean cube's range ({' .. '.join(told_apart(low, high, 6))}) to (0 .. 1), data range 1"
    if carried is not None:
        scaled = (valid.astype(np.float64) - low) / (high - low)
        if np.allclose(carried, scaled, atol=1e-3):
            truth = (truth.astype(np.float64) - low) / (high - low)
            return truth, None, 1.0, f"clean {span}; the denoised cube was made from that"
    return truth, low, high - low, f"PSNR and SSIM {span}; SAM and ERGAS of the values as stored"
