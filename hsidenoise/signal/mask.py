"""Which values of a cube hold data, and which are no measurement.

No data: NaN and infinite values, a nodata value, what a given mask or the header's list of bad bands leaves out, the
zeros around a rotated flight line, and values far outside of the scene. The last lie at the ends
of a cube's values, with a wide empty gap before the rest: -9999 or 1e20 where a sensor saw nothing, 65535 where it was
blinded. Bright things of a scene (glints, lamps, clouds) lie far out too, but values between them and the rest lead
there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Real, Shaped

GAP = 3.0
"""Times as far from the bulk of the values as all that is nearer: where what is not a measurement begins.

Real cubes in which nothing is found: Indian Pines, MUUFL, pavia_crop, a satellite cube whose clouds reach 35 times the
spread of its bulk, CAVE (training and validation), and all of them under impulses and dead columns."""

FARTHEST = 4.0
"""Spreads of the bulk (1 to 99 % of the values) within which nothing is far."""

MARKS = (
    *(-9999.0, -999.0, -99.0, -32768.0, 32767.0, 65535.0, -65535.0, 1e20, -1e20),
    *(9.969209968386869e36, 3.4028234663852886e38, -3.4028234663852886e38),  # NetCDF, GDAL
)
"""What files mark missing data with. One of these need be only half a spread away from the bulk: reflectance times
10,000 beside -9999."""

BadBands = str | Sequence[int]
"""``auto``, ``keep``, or the bad bands: numbers, or a text such as ``0-3,104``; counted from 0."""

# An area of zeros in all bands is no data if all of this is so. Chosen on the scenes of the tests, and on the CAVE
# scenes of cave/validation with dark parts rounded to zero, in which nothing is found.
_LEAST_AREA = 0.0005  # share of the pixels
_LARGE_AREA = 0.02  # one that need not touch the edge
_MOST_ELSEWHERE = 0.25  # of such zeros lie in other places: a dark scene has them everywhere
_LEAST_TOGETHER = 0.8  # of the neighbours of pixels with data have data
_LEAST_BRIGHT = 0.1  # of the usual brightness have the pixels next to it: dark parts of a scene fade into zero
_MOST_ZERO = 0.3  # of their values are 0
_RING = 1 << 12  # pixels that this is looked at in
_MOST_BANDS = 100_000  # of a list
_HUGE = 3.3e38  # what is written as -3.4e38 is meant for the end of single precision

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
    low, high = _limits(cube)
    return Extremes(low, high, tuple(extreme for extreme, _ in _far(cube, low, high)))


def _limits(cube: np.ndarray) -> tuple[float, float]:
    """The smallest and the largest value that is a measurement; infinite if all are."""
    if cube.size == 0:
        return -np.inf, np.inf
    lowest, highest = _ends(cube)
    flat = cube.reshape(-1)
    sample = flat[:: max(1, flat.size // _SAMPLE)].astype(np.float64)
    # without the ends and all marks, of which half of the cube may be
    sample = sample[(sample > lowest) & (sample < highest) & ~np.isin(sample, _marks(cube.dtype).astype(np.float64))]
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
    found: NaN and infinite values, values far outside of the scene (:func:`find_extremes`), and an area of zeros in all
    bands that touches the edge or is large, as around a rotated flight line.

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
        marked.add(_equal(values, nodata), f"{nodata:.6g}, the nodata value, in {{}}")
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
        marked.add(where, f"{extreme.range} in {{}}: no measurement, it seems")
    if (empty := _empty_area(values, marked.where)) is not None:
        marked.add(np.broadcast_to(empty, values.shape), "0 in all bands of {}: no data, it seems")
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


def _described(
    cube: np.ndarray, far: Bool[np.ndarray, "bands height width"]
) -> list[tuple[Extreme, Bool[np.ndarray, "bands height width"]]]:
    far &= np.isfinite(cube)
    groups = [far & (cube == mark) for mark in np.unique(cube[far & np.isin(cube, _marks(cube.dtype))])]
    for group in groups:
        far &= ~group
    return [(_describe(cube, group), group) for group in (*groups, far) if group.any()]


def _describe(cube: np.ndarray, far: Bool[np.ndarray, "bands height width"]) -> Extreme:
    values = cube[far]
    bands = tuple(int(band) for band in np.flatnonzero(far.any(axis=(1, 2))))
    return Extreme(float(values.min()), float(values.max()), int(far.any(axis=0).sum()), bands, values.size / cube.size)


def _places(pixels: int, bands: Sequence[int]) -> str:
    return f"{pixels} pixel{'s' * (pixels != 1)} of {named_bands(bands)}"


class _Invalid:
    """What holds no data so far, and why; nothing is allocated where all does."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.where: Bool[np.ndarray, "bands height width"] | None = None
        self.reasons: list[str] = []

    def add(self, where: np.ndarray, reason: str) -> None:
        """Leave out some more; ``{}`` in the reason stands for the place."""
        where = np.broadcast_to(where, self.values.shape)
        as_bands = np.asarray(where.all(axis=(1, 2)))
        if self.where is not None:
            where = where & ~self.where
        bands = np.flatnonzero(where.any(axis=(1, 2)))
        if not bands.size:
            return
        pixels = int(where.any(axis=0).sum())
        if as_bands[bands].all():
            place = named_bands(bands.tolist())
        else:
            place = f"{pixels} pixels" if " all bands " in reason else _places(pixels, bands.tolist())
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


def _empty_area(cube: np.ndarray, invalid: np.ndarray | None) -> Bool[np.ndarray, "height width"] | None:
    """Pixels around the scene that are 0 in all bands; None if there are none. One band alone may well be 0."""
    if len(cube) < 2:
        return None
    empty = np.ones(cube.shape[1:], np.bool_)
    for index, band in enumerate(cube):
        zero = band == 0
        empty &= zero if invalid is None else zero | invalid[index]
        if not empty.any():
            return None
    lost = np.zeros_like(empty) if invalid is None else invalid.all(axis=0)
    empty &= ~lost
    if not _LEAST_AREA * empty.size < empty.sum() < empty.size - lost.sum():
        return None
    from skimage.measure import label

    areas: np.ndarray = label(empty, connectivity=1)  # type: ignore[no-untyped-call]
    edge = np.concatenate([areas[0], areas[-1], areas[:, 0], areas[:, -1]])
    counts = np.bincount(areas.ravel())
    taken = np.zeros(len(counts), np.bool_)
    taken[edge] = True
    taken |= counts > _LARGE_AREA * empty.size
    taken &= counts > _LEAST_AREA * empty.size
    taken[0] = False
    area: np.ndarray = taken[areas]
    data = ~(empty | lost)
    if area.sum() < (1 - _MOST_ELSEWHERE) * empty.sum():
        return None
    beside = [(data[1:], data[:-1], area[1:], area[:-1]), (data[:, 1:], data[:, :-1], area[:, 1:], area[:, :-1])]
    pairs = sum(int((a & b).sum()) for a, b, _, _ in beside)
    broken = sum(int((a ^ b).sum()) for a, b, _, _ in beside)
    if 2 * pairs < _LEAST_TOGETHER * (2 * pairs + broken):
        return None
    ring = np.zeros_like(data)
    for (a, b, p, q), (first, second) in zip(beside, ((ring[1:], ring[:-1]), (ring[:, 1:], ring[:, :-1])), strict=True):
        first |= a & q
        second |= b & p
    some = np.flatnonzero(data)[:: max(1, int(data.sum()) // _RING)]
    here = np.flatnonzero(ring)[:: max(1, int(ring.sum()) // _RING)]
    flat = cube.reshape(len(cube), -1)
    lively = np.ones(len(cube), np.bool_) if invalid is None else ~invalid.any(axis=(1, 2))
    lively &= flat[:, some].any(axis=1)  # a band of zeros says nothing
    if not lively.any():
        return None
    next_to, usual = (np.abs(flat[lively][:, places].astype(np.float64)) for places in (here, some))
    if (next_to == 0).mean() > _MOST_ZERO or np.median(next_to.mean(0)) < _LEAST_BRIGHT * np.median(usual.mean(0)):
        return None
    return area
