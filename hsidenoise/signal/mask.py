"""Values that are no measurement: marks for missing data, hot pixels, saturated ones far outside of the scene.

They lie at the ends of a cube's values, with a wide empty gap before the rest: -9999 or 1e20 where a sensor saw
nothing, 65535 where it was blinded. Bright things of a scene (glints, lamps, clouds) lie far out too, but values
between them and the rest lead there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Real

GAP = 3.0
"""Times as far from the bulk of the values as all that is nearer: where what is not a measurement begins.

Real cubes in which nothing is found: Indian Pines, MUUFL, pavia_crop, a satellite cube whose clouds reach 35 times the
spread of its bulk, CAVE (training and validation), and all of them under impulses and dead columns."""

FARTHEST = 4.0
"""Spreads of the bulk (1 to 99 % of the values) within which nothing is far."""

MARKS = (-9999.0, -999.0, -99.0, -32768.0, 32767.0, 65535.0, -65535.0, 1e20, -1e20)
"""What files mark missing data with. One of these need be only half a spread away from the bulk: reflectance times
10,000 beside -9999."""

_MOST = 0.01  # share of the values that may be far without being one and the same value
_SAMPLE = 1 << 20  # values that the bulk is taken from
_FEWEST = 50  # fewer are no bulk: of four values one is often three times as far as the others


@dataclass(frozen=True)
class Extreme:
    """Values at one end of a cube that are no measurement.

    Attributes:
        lowest: Smallest of them.
        highest: Largest of them, ``lowest`` if they are all the same.
        pixels: How many pixels hold one in at least one band.
        bands: Which bands hold one, from 0.
        share: Share of all values.

    Example:
        >>> str(Extreme(-9999.0, -9999.0, 30, (0, 1, 2, 7), 0.2))
        '-9999 in 30 pixels of bands 0-2, 7'
    """

    lowest: float
    highest: float
    pixels: int
    bands: tuple[int, ...]
    share: float

    def __str__(self) -> str:
        span = f"{self.lowest:.6g}" + (f" to {self.highest:.6g}" if self.highest > self.lowest else "")
        many = f"{self.pixels} pixel{'s' * (self.pixels != 1)}"
        return f"{span} in {many} of band{'s' * (len(self.bands) != 1)} {spans(self.bands)}"


@dataclass(frozen=True)
class Extremes:
    """What :func:`find_extremes` finds.

    Attributes:
        low: Smallest value that is a measurement, minus infinity if all small ones are.
        high: Largest value that is one, infinity if all large ones are.
        found: What is beyond: each mark for itself, and all else of one end.
    """

    low: float
    high: float
    found: tuple[Extreme, ...]


def find_extremes(cube: Real[np.ndarray, "bands height width"]) -> Extremes:
    """Find values at the ends of a cube's range that are no measurement.

    A value is one if it is three times as far from the bulk (1 to 99 % of the values, without the smallest and the
    largest) as all values that are nearer, and at least four spreads of the bulk; a known mark for missing data (see
    :data:`MARKS`) that is there more than once need be twice as far and half a spread. All beyond it are of its kind.
    They are either one and the same value, or marks, or at most 1 % of all.

    Returns:
        The range of what is a measurement, and what lies outside of it.

    Example:
        >>> cube = np.random.default_rng(0).random((3, 40, 50))
        >>> find_extremes(cube).found
        ()
        >>> cube[:, :4] = -9999
        >>> [str(each) for each in find_extremes(cube).found]
        ['-9999 in 200 pixels of bands 0-2']
    """
    if cube.size == 0:
        return Extremes(-np.inf, np.inf, ())
    lowest, highest = _ends(cube)
    flat = cube.reshape(-1)
    sample = flat[:: max(1, flat.size // _SAMPLE)].astype(np.float64)
    # without the ends and all marks, of which half of the cube may be
    sample = sample[(sample > lowest) & (sample < highest) & ~np.isin(sample, _marks(cube.dtype).astype(np.float64))]
    if sample.size < _FEWEST:
        return Extremes(-np.inf, np.inf, ())
    first, last = (float(value) for value in np.quantile(sample, (0.01, 0.99)))
    if not last > first:
        return Extremes(-np.inf, np.inf, ())
    above = _gap(cube, last, last - first, 1)
    below = _gap(cube, first, last - first, -1)
    low, high = -np.inf if below is None else below, np.inf if above is None else above
    found = _described(cube, cube < low) if below is not None else []
    found += _described(cube, cube > high) if above is not None else []
    return Extremes(low, high, tuple(found))


@dataclass(frozen=True)
class Scorable:
    """What :func:`scorable` leaves.

    Attributes:
        bands: True where a band can be scored.
        pixels: True where a pixel holds data in all of these bands, in both cubes.
        reasons: What was left out, and what was not though it looks like it, for people.
    """

    bands: Bool[np.ndarray, " bands"]
    pixels: Bool[np.ndarray, "height width"]
    reasons: tuple[str, ...]


def scorable(
    denoised: Real[np.ndarray, "bands height width"], clean: Real[np.ndarray, "bands height width"]
) -> Scorable:
    """Find the bands and pixels in which two cubes can be compared.

    Left out is what is NaN or infinite in one of them, and a mark that both have in the same place: the one value that
    :func:`find_extremes` finds at an end of the clean cube. A band without anything else is left out as a band, a pixel
    if a value of any other band is left out.

    Raises:
        ValueError: If nothing is left.

    Example:
        >>> clean = np.random.default_rng(0).random((3, 40, 50))
        >>> clean[:, :4], clean[2] = -9999, np.nan
        >>> left = scorable(clean, clean)
        >>> left.bands.tolist(), int(left.pixels.sum())
        ([True, True, False], 1800)
    """
    invalid = ~(np.isfinite(denoised) & np.isfinite(clean))
    found = [("NaN or infinite", invalid.copy())] if invalid.any() else []
    reasons = []
    for extreme in find_extremes(clean).found:
        value = np.float32(extreme.lowest)
        if extreme.highest > extreme.lowest:
            reasons.append(f"{extreme} of the clean cube: scored, though no measurement, it seems")
            continue
        marked = clean.astype(np.float32) == value
        shared = marked & (denoised.astype(np.float32) == value)
        if shared.any():
            found.append((f"{extreme.lowest:.6g} in both cubes", shared))
            invalid |= shared
        if alone := int((marked & ~shared).sum()):
            reasons.append(f"{alone} values are {extreme.lowest:.6g} in the clean cube only: scored as they are")
    bands = ~invalid.all(axis=(1, 2))
    pixels = ~invalid[bands].any(axis=0)
    if not bands.any() or not pixels.any():
        raise ValueError(f"no pixel holds data in all bands of both cubes: {', '.join(name for name, _ in found)}")
    for name, where in found:
        here = tuple(int(band) for band in np.flatnonzero(where.any(axis=(1, 2))))
        reasons.insert(0, f"{name}: {int(where.any(axis=0).sum())} pixels, band{'s' * (len(here) != 1)} {spans(here)}")
    return Scorable(bands, pixels, tuple(reasons))


def spans(bands: Sequence[int]) -> str:
    """Numbers in rising order for people.

    Example:
        >>> spans([0, 1, 2, 7, 9, 10])
        '0-2, 7, 9-10'
    """
    runs: list[list[int]] = []
    for band in bands:
        if runs and band == runs[-1][1] + 1:
            runs[-1][1] = band
        else:
            runs.append([band, band])
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)


def _ends(cube: np.ndarray) -> tuple[float, float]:
    lowest, highest = float(cube.min()), float(cube.max())
    if np.isfinite(lowest) and np.isfinite(highest):
        return lowest, highest
    finite = cube[np.isfinite(cube)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def _gap(cube: np.ndarray, edge: float, spread: float, sign: int) -> float | None:
    """The last value before the gap on one side of the bulk, or None."""
    # in the type of the cube, in which the limit is compared with its values later
    values = cube[(cube > edge) if sign > 0 else (cube < edge)]
    values = values[np.isfinite(values)]
    if values.size == 0:
        return None
    distinct, counts = np.unique(values, return_counts=True)
    if sign < 0:
        distinct, counts = distinct[::-1], counts[::-1]
    away = sign * (distinct.astype(np.float64) - edge) / spread
    nearer = np.concatenate([[0.0], away[:-1]])
    is_far = (away > FARTHEST) & (away > GAP * nearer)
    marks = np.isin(distinct, _marks(cube.dtype)) & (counts > 1)
    is_far |= marks & (away > 0.5) & (away > 2.0 * nearer)
    many = np.cumsum(np.where(marks, 0, counts)[::-1])[::-1] > _MOST * cube.size  # of this value and all beyond it
    many[-1] = False
    places = np.flatnonzero(is_far & ~many)
    if places.size == 0:
        return None
    return float(distinct[places[0] - 1]) if places[0] else edge


def _marks(dtype: np.dtype[Any]) -> np.ndarray:
    """The marks as a cube of some type has them: 1e20 is another number in single precision."""
    with np.errstate(over="ignore"):  # half precision has no 1e20: no value is equal to infinity here
        return np.array(MARKS).astype(dtype) if dtype.kind == "f" else np.array(MARKS)


def _described(cube: np.ndarray, far: Bool[np.ndarray, "bands height width"]) -> list[Extreme]:
    far &= np.isfinite(cube)
    groups = [far & (cube == mark) for mark in np.unique(cube[far & np.isin(cube, _marks(cube.dtype))])]
    for group in groups:
        far &= ~group
    return [_describe(cube, group) for group in (*groups, far) if group.any()]


def _describe(cube: np.ndarray, far: Bool[np.ndarray, "bands height width"]) -> Extreme:
    values = cube[far]
    bands = tuple(int(band) for band in np.flatnonzero(far.any(axis=(1, 2))))
    return Extreme(float(values.min()), float(values.max()), int(far.any(axis=0).sum()), bands, values.size / cube.size)
