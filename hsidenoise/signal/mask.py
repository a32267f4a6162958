"""Which values of a cube hold data, and which are no measurement.

No data: NaN and infinite values, a nodata value, what a given mask or the header's list of bad bands leaves out,
pixels that share one spectrum (:mod:`hsidenoise.signal.unmeasured`), and values far outside of the scene. The last
lie at the ends of a cube's values, with a wide empty gap before the rest: -9999 or 1e20 where a sensor saw nothing,
65535 where it was blinded. Bright things of a scene (glints, lamps, clouds) lie far out too, but values between them
and the rest lead there. Where a mark fills areas, a narrow gap will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Real, Shaped

from hsidenoise.signal.unmeasured import (
    find_blended,
    find_same_spectra,
    find_written_ends,
    finite_ends,
    is_scattered,
    marks_of,
)

GAP = 3.0
"""Times as far from the bulk of the values as all that is nearer: where what is not a measurement begins.

Real cubes in which nothing is found: Indian Pines, MUUFL, pavia_crop, a satellite cube whose clouds reach 35 times the
spread of its bulk, CAVE (training and validation), and all of them under impulses and dead columns."""

FARTHEST = 4.0
"""Spreads of the bulk (1 to 99 % of the values) within which nothing is far."""

BadBands = str | Sequence[int]
"""``auto``, ``keep``, or the bad bands: numbers, or a text such as ``0-3,104``; counted from 0."""

_MOST_BANDS = 100_000  # of a list
_HUGE = 3.3e38  # what is written as -3.4e38 is meant for the end of single precision

_MOST = 0.01  # share of the values that may be far without being one and the same value
_SAMPLE = 1 << 20  # values that the bulk is taken from
# Scattered, as many and such a share of a band are found as stuck pixels, in each tile, if it has as many values.
# Fewer would spread: at 0.5 to 1 %, left in, the error of the others is up to 20 times that without (gulfport).
_FEWEST_SALT, _LEAST_SALT, _FEWEST_LEVELS = 8, 0.02, 64
_FARTHEST_SALT = 300.0  # spreads of the others; what is a thousand away is hidden from all methods
_ALIKE_SALT, _OVER_BESIDE = 2.0, 8.0  # times as much salt as pepper at most, and pepper as the values next to it
_HINT = " (if it is salt or pepper, put the median of its neighbours there first)"
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
        return f"{self.range} in {_places(self.pixels, self.bands)}"

    @property
    def range(self) -> str:
        """The value, or the smallest and the largest."""
        return f"{self.lowest:.6g}" + (f" to {self.highest:.6g}" if self.highest > self.lowest else "")


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
    largest) as all values that are nearer, and at least four spreads of the bulk; a known mark for missing data
    (:data:`hsidenoise.signal.unmeasured.MARKS`) that is there more than once need be twice as far and half a spread.
    All beyond it are of its kind. They are either one and the same value, or marks, or at most 1 % of all.

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
    low, high = _limits(cube)
    return Extremes(low, high, tuple(extreme for extreme, _ in _far(cube, low, high)))


def _limits(cube: np.ndarray) -> tuple[float, float]:
    """The smallest and the largest value that is a measurement; infinite if all are."""
    if cube.size == 0:
        return -np.inf, np.inf
    lowest, highest = finite_ends(cube)
    flat = cube.reshape(-1)
    sample = flat[:: max(1, flat.size // _SAMPLE)].astype(np.float64)
    # without the ends and all marks, of which half of the cube may be
    sample = sample[(sample > lowest) & (sample < highest) & ~np.isin(sample, marks_of(cube.dtype).astype(np.float64))]
    if sample.size < _FEWEST:
        return -np.inf, np.inf
    first, last = (float(value) for value in np.quantile(sample, (0.01, 0.99)))
    if not last > first:
        return -np.inf, np.inf
    above = _gap(cube, last, last - first, 1)
    below = _gap(cube, first, last - first, -1)
    return -np.inf if below is None else below, np.inf if above is None else above


def _far(
    cube: np.ndarray, low: float | None = None, high: float | None = None
) -> list[tuple[Extreme, Bool[np.ndarray, "bands height width"]]]:
    """What is no measurement, and where it is."""
    if low is None or high is None:
        low, high = _limits(cube)
    found = _described(cube, cube < low) if low > -np.inf else []
    return found + (_described(cube, cube > high) if high < np.inf else [])


class Mask(NamedTuple):
    """What :func:`find_mask` finds.

    Attributes:
        valid: True where a value holds data; None if all of them do.
        reasons: What does not, and why, one line a kind, for people.
        asked: How many of the reasons, the first ones, are what the caller asked for.
    """

    valid: Bool[np.ndarray, "bands height width"] | None
    reasons: tuple[str, ...]
    asked: int = 0


def find_mask(
    values: Real[np.ndarray, "bands height width"],
    *,
    nodata: float | None = None,
    given: Shaped[np.ndarray, "*axes"] | None = None,
    good_bands: Bool[np.ndarray, " bands"] | None = None,
    bad_bands: BadBands = "auto",
) -> Mask:
    """Find the values of a cube that hold data.

    Left out is what was asked for (``nodata``, ``given``, a list of ``bad_bands``, else the header's), and what is
    found: NaN and infinite values, values far outside of the scene (:func:`find_extremes`), pixels that share one
    spectrum, such as the zeros around a rotated flight line
    (:func:`hsidenoise.signal.unmeasured.find_same_spectra`), areas of one value at an end with a gap before all
    others, and pixels that were interpolated with a mark. Salt and pepper is not: scattered in each band, it can be
    repaired.

    Args:
        values: The cube in any unit.
        nodata: The value that stands for no data.
        given: Where there is data (nonzero): (bands, height, width), (height, width) or (bands,).
        good_bands: The header's list of bad bands, True for good ones.
        bad_bands: Bands without data. ``auto`` and ``keep``: those of the header.

    Raises:
        ValueError: If the mask does not fit the cube, or a bad band is not one of its bands.

    Example:
        >>> cube = np.random.default_rng(0).random((3, 40, 50))
        >>> cube[:, :4], cube[1, 20, 30] = -9999, np.nan
        >>> found = find_mask(cube)
        >>> found.reasons[0], int(found.valid.sum())
        ('NaN in 1 pixel of band 1', 5399)
    """
    marked = _Invalid(values)
    if given is not None:
        marked.add(~fitting_mask(given, values.shape), "not in the given mask: {}")
    if nodata is not None:
        marked.add(_equal(values, nodata), f"{nodata:.6g}, the nodata value, in {{}}", mark=True)
    asked = len(marked.reasons)
    if isinstance(bad_bands, str) and bad_bands in ("auto", "keep"):
        if good_bands is not None:
            marked.add(~np.asarray(good_bands, np.bool_)[:, None, None], "bad by the header: {}")
    else:
        marked.add(_chosen(bad_bands, len(values))[:, None, None], "bad as given: {}")
        asked = len(marked.reasons)
    if values.dtype.kind == "f" and values.size and not np.isfinite([values.min(), values.max()]).all():
        marked.add(np.isnan(values), "NaN in {}")
        marked.add(np.isinf(values), "infinite values in {}")
    for extreme, where in _far(marked.rest()):
        one = extreme.lowest == extreme.highest and extreme.pixels > 1
        hint = ""
        if one and not np.isin(extreme.lowest, marks_of(values.dtype).astype(np.float64)) and is_scattered(where):
            where &= ~_impulses(values, where)[:, None, None]
            hint = _HINT if where.sum() >= _FEWEST_SALT else ""
        marked.add(where, f"{extreme.range} in {{}}: no measurement, it seems{hint}", mark=one)
    for same in find_same_spectra(values, marked.where):
        what = "one spectrum" if same.value is None else f"{same.value:.6g}"
        place = "all bands of {}" if same.bands.all() else "{}"
        marked.add(same.bands[:, None, None] & same.pixels, f"{what} in {place}: no data, it seems", mark=True)
    for value, where in find_written_ends(marked.rest()):
        marked.add(where, f"{value:.6g} in {{}}: no data, it seems", mark=True)
    if (blended := find_blended(values, marked.where, marked.marks, marked.ends)) is not None:
        marked.add(blended, "a blend with what is no data in all bands of {} beside it, it seems")
    return Mask(None if marked.where is None else ~marked.where, tuple(marked.reasons), asked)


def fitting_mask(given: Shaped[np.ndarray, "*axes"], shape: tuple[int, ...]) -> np.ndarray:
    """A given mask as it is broadcast over a cube.

    Args:
        given: Nonzero where there is data: (bands, height, width), (height, width) or (bands,).
        shape: Of the cube.

    Raises:
        ValueError: If it does not fit.

    Example:
        >>> fitting_mask(np.ones(3), (3, 4, 5)).shape
        (3, 1, 1)
    """
    mask: np.ndarray = np.asarray(given) != 0
    if mask.shape in (shape, shape[1:]):
        return mask
    if mask.shape == shape[:1]:
        return mask[:, None, None]
    raise ValueError(
        f"the mask has shape {mask.shape}; a cube of {shape} (bands, height, width) takes one of {shape}, "
        f"{shape[1:]} or {shape[:1]}"
    )


def constant_bands(
    values: Real[np.ndarray, "bands height width"], valid: Bool[np.ndarray, "bands height width"] | None = None
) -> Bool[np.ndarray, " bands"]:
    """Bands whose data are one value only: they are what they are, and say nothing of the others.

    Args:
        values: The cube.
        valid: True where a value holds data; None: everywhere.

    Example:
        >>> constant_bands(np.array([[[1, 2]], [[3, 3]]])).tolist()
        [False, True]
    """
    constant = np.zeros(len(values), np.bool_)
    for index, band in enumerate(values):
        known = band if valid is None else band[valid[index]]
        constant[index] = known.size > 0 and known.min() == known.max()
    return constant


def parse_bands(text: str) -> tuple[int, ...]:
    """Numbers of bands, the other way round than :func:`spans`.

    Raises:
        ValueError: If it is no such list.

    Example:
        >>> parse_bands("0-2,7, 9-10")
        (0, 1, 2, 7, 9, 10)
    """
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not first.isdecimal() or (dash and not (last.isdecimal() and int(first) <= int(last) < _MOST_BANDS)):
            raise ValueError(f"bad bands '{text}': write auto, keep, or numbers from 0, such as 0-3,104")
        found += range(int(first), int(last or first) + 1)
    return tuple(dict.fromkeys(found))


def named_bands(bands: Sequence[int]) -> str:
    """Bands for people.

    Example:
        >>> named_bands([3]), named_bands([0, 1, 2, 7])
        ('band 3', 'bands 0-2, 7')
    """
    return f"band{'s' * (len(bands) != 1)} {spans(bands)}"


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
    marks = np.isin(distinct, marks_of(cube.dtype)) & (counts > 1)
    is_far |= marks & (away > 0.5) & (away > 2.0 * nearer)
    many = np.cumsum(np.where(marks, 0, counts)[::-1])[::-1] > _MOST * cube.size  # of this value and all beyond it
    many[-1] = False
    places = np.flatnonzero(is_far & ~many)
    if places.size == 0:
        return None
    return float(distinct[places[0] - 1]) if places[0] else edge


def _described(
    cube: np.ndarray, far: Bool[np.ndarray, "bands height width"]
) -> list[tuple[Extreme, Bool[np.ndarray, "bands height width"]]]:
    far &= np.isfinite(cube)
    groups = [far & (cube == mark) for mark in np.unique(cube[far & np.isin(cube, marks_of(cube.dtype))])]
    for group in groups:
        far &= ~group
    return [(_describe(cube, group), group) for group in (*groups, far) if group.any()]


def _describe(cube: np.ndarray, far: Bool[np.ndarray, "bands height width"]) -> Extreme:
    values = cube[far]
    bands = tuple(int(band) for band in np.flatnonzero(far.any(axis=(1, 2))))
    return Extreme(float(values.min()), float(values.max()), int(far.any(axis=0).sum()), bands, values.size / cube.size)


def _impulses(values: np.ndarray, at: Bool[np.ndarray, "bands height width"]) -> Bool[np.ndarray, " bands"]:
    """Bands in which a scattered value is salt, to be repaired, and no mark; in one band alone, if there is pepper."""
    count, value = at.sum(axis=(1, 2)), float(values[at][0])
    many = count >= max(_FEWEST_SALT, _LEAST_SALT * at[0].size)
    for band in np.flatnonzero(many).tolist():
        others = np.unique(values[band][~at[band] & np.isfinite(values[band])]).astype(np.float64)
        first, last = np.quantile(others, (0.01, 0.99)) if len(others) >= _FEWEST_LEVELS else (0.0, 0.0)
        many[band] = max(value - last, first - value) < _FARTHEST_SALT * (last - first)
    if len(values) == 1 and many[0]:
        others, counts = np.unique(values[~at & np.isfinite(values)], return_counts=True)
        pepper = int(counts.argmax())
        beside = max(*counts[max(0, pepper - 2) : pepper], *counts[pepper + 1 : pepper + 3], 1)
        alike = max(counts[pepper] / count[0], count[0] / counts[pepper]) < _ALIKE_SALT
        many &= bool(alike and counts[pepper] > _OVER_BESIDE * beside and is_scattered(values == others[pepper]))
    return np.asarray(many)


def _places(pixels: int, bands: Sequence[int]) -> str:
    return f"{pixels} pixel{'s' * (pixels != 1)} of {named_bands(bands)}"


class _Invalid:
    """What holds no data so far, and why; nothing is allocated where all does."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.where: Bool[np.ndarray, "bands height width"] | None = None
        self.marks = np.zeros(values.shape[1:], np.bool_)
        self.ends = (np.inf, -np.inf)  # smallest and largest of them
        self.reasons: list[str] = []

    def add(self, where: np.ndarray, reason: str, mark: bool = False) -> None:
        """Leave out some more; ``{}`` in the reason stands for the place. A mark may be blended with what is near."""
        where = np.broadcast_to(where, self.values.shape)
        as_bands = np.asarray(where.all(axis=(1, 2)))
        if self.where is not None:
            where = where & ~self.where
        bands = np.flatnonzero(where.any(axis=(1, 2)))
        if not bands.size:
            return
        there = np.asarray(where.any(axis=0))
        pixels = int(there.sum())
        if mark and not (
            where.sum() >= _FEWEST and is_scattered(where)
        ):  # no area that something was interpolated with
            self.marks |= there
            marks = self.values[where]
            self.ends = min(self.ends[0], float(marks.min())), max(self.ends[1], float(marks.max()))
        if as_bands[bands].all():
            place = named_bands(bands.tolist())
        else:
            place = _places(pixels, bands.tolist())
            place = place.partition(" of ")[0] if " all bands " in reason else place
        self.reasons.append(reason.format(place))
        self.where = where.copy() if self.where is None else self.where | where

    def rest(self) -> np.ndarray:
        """The cube, NaN where it holds no data."""
        if self.where is None:
            return self.values
        kind = self.values.dtype
        return np.where(self.where, np.array(np.nan, kind if kind.kind == "f" else np.float64), self.values)


def _equal(values: np.ndarray, value: float) -> Bool[np.ndarray, "bands height width"]:
    """Where a cube has a value that somebody has written in decimals."""
    if np.isnan(value):
        equal: np.ndarray = np.isnan(values)
    elif abs(value) > _HUGE:
        equal = (np.sign(values) == np.sign(value)) & (np.abs(values) > _HUGE)
    else:
        equal = values == (values.dtype.type(value) if values.dtype.kind == "f" else value)
    return equal


def _chosen(bands: BadBands, count: int) -> Bool[np.ndarray, " bands"]:
    numbers = np.ravel(parse_bands(bands) if isinstance(bands, str) else bands)
    if numbers.size and numbers.dtype.kind not in "iu":  # True and False would be taken for 1 and 0
        raise ValueError(
            f"bad bands are numbers from 0, such as [0, 3, 104], not {numbers.dtype}; of a mask of bands "
            "np.flatnonzero(mask) gives them"
        )
    chosen = np.zeros(count, np.bool_)
    for number in numbers:
        if not 0 <= number < count:
            raise ValueError(f"bad band {number}: the cube has bands 0 to {count - 1}")
        chosen[number] = True
    return chosen
