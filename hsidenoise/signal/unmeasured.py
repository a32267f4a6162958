"""Areas of a cube in which nothing was measured: many of their pixels have exactly the same spectrum.

Noise makes every spectrum of several bands another one. What many pixels share, band for band, was written there: a
mark such as -1 or 255, the zeros around a rotated flight line, the offset of each band after a calibration. It may be
so in some bands only, where one of two detectors saw nothing. Saturated and dark parts of a scene share their values
too, but pixels lead there that have them in some of the bands. A value that is cut off at the end of a scale has
others next to it; a mark has not. And where a cube was rotated, pixels at the border are half a mark.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Real, Shaped

MARKS = (
    *(-9999.0, -999.0, -99.0, -32768.0, 32767.0, 65535.0, -65535.0, 1e20, -1e20),
    *(9.969209968386869e36, 3.4028234663852886e38, -3.4028234663852886e38),  # NetCDF, GDAL
)
"""What files mark missing data with. One of these need be only half a spread away from the bulk: reflectance times
10,000 beside -9999."""

# Chosen on CAVE (training and validation), pavia_crop, MUUFL, Indian Pines, satellite_17band and remote_sensing_clean.
# With 8 bands or more the marks that were written into them are found (-50 to 100 beside [0, 1], the ends of 8 and 16
# bits and values near them, 0; left, around, scattered, all but a line); with 3 bands scattered ones often are not, and
# with one band hardly any. In them as they are no area is found, nor under noise, impulses and dead columns. One is
# found by mistake where bands were stretched each to its own range or a third of the values is cut off, in single
# scenes.
_LEAST_BANDS = 3  # of a cube
_TOGETHER = 8  # neighbouring bands of one that may have it alone
_LEAST_AREA = 0.0005  # share of the pixels
_FEWEST = 4  # pixels; one or two may be the darkest of a scene
_MOST_SPECTRA = 3  # that are there many times: a scene of few values has more
_COVERED = 0.98  # of the pixels, of a band that has it too
_MOST_PARTLY = 0.1  # as many pixels that have it in half of the bands or more: of a saturated or dark part
_THICK = 0.5  # share of an area in some bands that is three pixels wide: dead lines are repaired
_NOISELESS = 1e-9  # share of the variance, of a quarter of the directions of the spectra: a scene without noise
_NEAR = 0.75  # of the pixels, the nearest to the usual spectrum, in which noise is looked for
_SAMPLE = 1 << 14  # pixels that this is looked for in
_MOST_BANDS = 64  # that noise is looked for in

# Zeros in all bands, in a scene of few bands or without noise, are no data if all of this is so as well.
_LARGE_AREA = 0.02  # one that need not touch the edge
_MOST_ELSEWHERE = 0.25  # of such zeros lie in other places: a dark scene has them everywhere
_LEAST_TOGETHER = 0.8  # of the neighbours of pixels with data have data

_LEAST_APART = 0.1  # of the usual distance from the mark have the pixels next to it: dark parts fade into zero
_DARKEST, _GAP_BEYOND = 0.05, 0.5  # of more pixels further off than so many: that share of it, and they do not fade
_LEADING, _RATIO, _MOST = 0.02, 2.0, 0.3  # share of their values that are the mark; and times that of all; and at most
# Next to what is saturated 0.03 to 0.3 are, which is 3 times as many as elsewhere or more.
_RING = 1 << 12  # pixels that this is looked at in

# A value at the end is written there if it lies in areas, and next to it are fewer values than where a scale ends.
_EXPECTED = 1000.0  # values that would be there
_STEPS = 3.0  # least gap, in steps of whole numbers
_AREA = 0.5  # share of neighbours that have it too
_OUTSIDE, _BLENDED = 0.1, 0.25  # of the range of a band, and in so many of the bands: blended with what is no data
_FAR = 0.75  # of that range outside of it: blended, if there is a mark
_REACH = 2  # pixels that a cubic interpolation reaches; what it makes of a border is twice as wide
_ALIKE = 0.95  # of its pixels have it in all bands
_BY_CHANCE, _FEWEST_PAIRS = 1.5, 8  # times as many neighbours as by chance, and so many more, have scattered values
_BEYOND_SCENES = 1e30  # no scene has such values
_VALUES = 1 << 20  # values that this is told from
_FEWEST_VALUES = 50  # fewer are no bulk


@dataclass(frozen=True)
class Same:
    """Pixels that share a spectrum in which nothing was measured.

    Attributes:
        value: The value that it has in all of the bands, None if they differ.
        bands: True for bands that have it.
        pixels: True for pixels that have it.
    """

    value: float | None
    bands: Bool[np.ndarray, " bands"]
    pixels: Bool[np.ndarray, "height width"]


def find_same_spectra(
    cube: Real[np.ndarray, "bands height width"], invalid: Bool[np.ndarray, "bands height width"] | None = None
) -> list[Same]:
    """Find pixels that share a spectrum in which nothing was measured.

    In cubes of less than 3 bands, and in scenes without noise, only areas of zeros are, at the edge or large.

    Args:
        cube: The cube in any unit.
        invalid: True for values that are known to hold no data; None: none.

    Example:
        >>> cube = np.random.default_rng(0).random((9, 40, 50))
        >>> find_same_spectra(cube)
        []
        >>> cube[:, :, :7] = 1
        >>> [(found.value, int(found.pixels.sum())) for found in find_same_spectra(cube)]
        [(1.0, 280)]
    """
    if len(cube) < 2:
        return []
    known = _Known(cube, invalid)
    found: list[Same] = []
    for bands, spectrum in _repeated(known):
        if (same := _written(known, bands, spectrum)) is not None:
            known.leave_out(same)
            found.append(same)
    zeros = _zeros(known)
    return found if zeros is None else [*found, zeros]


class _Known:
    """A cube and what of it is not known to hold no data."""

    def __init__(self, cube: np.ndarray, invalid: np.ndarray | None) -> None:
        self.cube, self.invalid = cube, invalid
        self.lost = np.zeros(cube.shape[1:], np.bool_) if invalid is None else np.asarray(invalid.all(axis=0))
        self.alive = np.ones(len(cube), np.bool_) if invalid is None else np.asarray(~invalid.all(axis=(1, 2)))

    def leave_out(self, same: Same) -> None:
        """Count some more as known to hold no data."""
        self.invalid = np.zeros(self.cube.shape, np.bool_) if self.invalid is None else self.invalid.copy()
        self.invalid[same.bands] |= same.pixels
        self.lost = np.asarray(self.invalid.all(axis=0))
        self.alive = np.asarray(~self.invalid.all(axis=(1, 2)))

    def equal(self, band: int, value: float) -> tuple[np.ndarray, np.ndarray | None]:
        """Where a band has a value, and where it is not known to hold no data (None: everywhere)."""
        equal = self.cube[band] == value
        if self.invalid is None:
            return equal, None
        there = ~self.invalid[band]
        return equal & there, there

    def have(self, bands: np.ndarray, spectrum: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which pixels have a spectrum in all of some bands, as far as they are known, and which in half or more."""
        equal = np.zeros(self.lost.shape, np.int32)
        there = np.zeros_like(equal)
        for band in np.flatnonzero(bands).tolist():
            same, known = self.equal(band, float(spectrum[band]))
            equal += same
            there += 1 if known is None else known
        area = (equal == there) & (there > 0)
        return area, ~area & (there > 0) & (2 * equal >= there)

    def some(self, pixels: np.ndarray, bands: np.ndarray) -> Float64[np.ndarray, "bands pixels"]:
        """Spectra of some of the pixels, NaN where they are known to hold no data."""
        places = np.flatnonzero(pixels)
        places = places[:: max(1, -(-len(places) // _RING))]
        where = np.ix_(bands, places)
        spectra: np.ndarray = self.cube.reshape(len(bands), -1)[where].astype(np.float64)
        if self.invalid is not None:
            spectra[self.invalid.reshape(len(bands), -1)[where]] = np.nan
        return spectra


def _repeated(known: _Known) -> list[tuple[np.ndarray, Float64[np.ndarray, " bands"]]]:
    """Spectra that many pixels share in at least eight neighbouring bands, and in which bands, the most frequent first.

    Found in some of the pixels; equal spectra are told by one number made of all of their values.
    """
    alive = np.flatnonzero(known.alive)
    places = np.flatnonzero(~known.lost)
    if len(alive) < _LEAST_BANDS or len(places) < _FEWEST:
        return []
    if len(places) > _SAMPLE:
        places = np.sort(np.random.default_rng(0).choice(places, _SAMPLE, replace=False))
    flat = known.cube.reshape(len(known.cube), -1)
    found = []
    for bands in np.array_split(alive, max(1, len(alive) // _TOGETHER)):
        number = np.zeros(len(places))
        for band in bands:
            number = number * np.pi + flat[band, places]
            if known.invalid is not None:
                number[known.invalid.reshape(len(flat), -1)[band, places]] = np.nan
        with_data = np.flatnonzero(np.isfinite(number))
        _, first, counts = np.unique(number[with_data], return_index=True, return_counts=True)
        often = np.flatnonzero(counts >= max(_FEWEST, _LEAST_AREA * len(places)))
        if len(often) <= _MOST_SPECTRA:
            found += [(counts[each], bands, places[with_data[first[each]]]) for each in often]
    spectra = []
    for _, bands, place in sorted(found, key=lambda each: -each[0]):
        there = np.zeros(len(flat), np.bool_)
        there[bands] = True
        spectra.append((there, flat[:, place].astype(np.float64)))
    return spectra


def _written(known: _Known, bands: np.ndarray, spectrum: np.ndarray) -> Same | None:
    """The pixels that have a spectrum in these bands and those that go with them, if nothing was measured there."""
    area, _ = known.have(bands, spectrum)
    if not area.any():
        return None  # found already
    for band in np.flatnonzero(known.alive & ~bands).tolist():
        equal, there = known.equal(band, float(spectrum[band]))
        in_area = area if there is None else area & there
        bands[band] = equal[in_area].mean() > _COVERED if in_area.any() else False
    area, partly = known.have(bands, spectrum)
    data = ~(area | known.lost)
    if area.sum() < max(_FEWEST, _LEAST_AREA * area.size) or not data.any():
        return None
    if partly.sum() > _MOST_PARTLY * area.sum():
        return None
    if not bands[known.alive].all() and not _is_thick(area):
        return None
    if not _is_noisy(known.some(data, bands & known.alive)) or _fades(known, area, data, bands, spectrum):
        return None
    values = spectrum[bands]
    return Same(float(values[0]) if (values == values[0]).all() else None, bands, area)


def _is_thick(area: np.ndarray) -> bool:
    """Whether most of an area is three pixels wide and high."""
    inner = np.pad(area, 1, mode="edge")
    inner = inner[:-2] & inner[1:-1] & inner[2:]
    inner = np.pad(inner[:, :-2] & inner[:, 1:-1] & inner[:, 2:], 1)
    wide = inner[:-2] | inner[1:-1] | inner[2:]
    wide = wide[:, :-2] | wide[:, 1:-1] | wide[:, 2:]
    return bool((wide & area).sum() >= _THICK * area.sum())


def _is_noisy(spectra: Float64[np.ndarray, "bands pixels"]) -> bool:
    """Whether spectra are more than a mixture of a few: without noise, areas of one value may be scene."""
    spectra = spectra[~np.isnan(spectra).any(axis=1)]
    count = max(1, min(_MOST_BANDS, spectra.shape[1] // 2))
    spectra = spectra[:: max(1, -(-len(spectra) // count))]
    spectra = spectra - np.median(spectra, axis=1, keepdims=True)
    away = np.abs(spectra).sum(axis=0)  # what is far, such as pixels that were blended with a mark, hides the noise
    spectra = spectra[:, away <= np.quantile(away, _NEAR)]
    spectra = spectra - spectra.mean(axis=1, keepdims=True)
    spread = spectra.std(axis=1)
    spectra = spectra[spread > 0] / spread[spread > 0, None]
    if len(spectra) < 2:
        return False
    energy = np.linalg.eigvalsh(spectra @ spectra.T / spectra.shape[1])
    return bool(energy[len(energy) // 4] > _NOISELESS)


def _fades(known: _Known, area: np.ndarray, data: np.ndarray, bands: np.ndarray, spectrum: np.ndarray) -> bool:
    """Whether the pixels next to an area lead there: many of their values are the same, or nearly."""
    ring = np.zeros_like(data)
    for to, of in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        ring[to] |= data[to] & area[of]
        ring[of] |= data[of] & area[to]
    if not ring.any():
        return False
    lively = bands & known.alive
    beyond = data & ~_beside(area, 2 * _REACH)  # of an interpolation, which fades before it
    next_to, usual, far = (np.abs(known.some(each, lively) - spectrum[lively, None]) for each in (ring, data, beyond))
    varied = (usual > 0).any(axis=1)  # a band that is the mark everywhere says nothing
    if not varied.any():
        return True
    next_to, usual, far = next_to[varied], usual[varied], far[varied]
    middle = np.nanmedian(np.nanmean(usual, axis=0))
    apart = np.nanmedian(np.nanmean(next_to, axis=0)) >= _LEAST_APART * middle
    if not apart and far.size:
        apart = np.nanquantile(np.nanmean(far, axis=0), _DARKEST) > _GAP_BEYOND * middle
    limit = min(_MOST, max(_LEADING, _RATIO * (usual == 0).mean()))
    return bool((next_to == 0).mean() > limit or not apart)


def _zeros(known: _Known) -> Same | None:
    """Pixels around the scene that are 0 in all bands; None if there are none. One band alone may well be 0."""
    empty = ~known.lost
    for band in np.flatnonzero(known.alive).tolist():
        equal, there = known.equal(band, 0.0)
        empty &= equal if there is None else equal | ~there
        if not empty.any():
            return None
    data = ~(empty | known.lost)
    if not empty.sum() > _LEAST_AREA * empty.size or not data.any():
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
    if area.sum() < (1 - _MOST_ELSEWHERE) * empty.sum():
        return None
    beside = [(data[1:], data[:-1]), (data[:, 1:], data[:, :-1])]
    pairs, broken = (sum(int(of(a, b).sum()) for a, b in beside) for of in (np.logical_and, np.logical_xor))
    if 2 * pairs < _LEAST_TOGETHER * (2 * pairs + broken):
        return None
    if _fades(known, area, data, known.alive, np.zeros(len(known.cube))):
        return None
    return Same(0.0, known.alive, area)


def find_written_ends(
    cube: Real[np.ndarray, "bands height width"],
) -> list[tuple[float, Bool[np.ndarray, "bands height width"]]]:
    """A value at an end of a cube that areas of it have, with a gap before all others.

    Where values are cut off, there are others right next to the end: of a thousand that are cut off, and a hundredth
    of the range, about ten.

    Args:
        cube: The cube in any unit, NaN where it is known to hold no data.

    Returns:
        The value, and where it is.

    Example:
        >>> cube = np.random.default_rng(0).random((1, 40, 50))
        >>> cube[:, :, :30] = -1
        >>> [(value, int(at.sum())) for value, at in find_written_ends(cube)]
        [(-1.0, 1200)]
    """
    found = []
    for value in finite_ends(cube) if cube.size else ():
        at = cube == cube.dtype.type(value)
        if (count := int(at.sum())) < _FEWEST_VALUES or not _is_area(at):
            continue
        # what a mark was blended with is near it
        known = abs(value) > _BEYOND_SCENES or bool(np.isin(cube.dtype.type(value), marks_of(cube.dtype)))
        some = cube[:, ~_beside(np.asarray(at.any(axis=0)), 2 * _REACH)] if known else cube.reshape(len(cube), -1)
        others = some.reshape(-1)[:: max(1, some.size // _VALUES)].astype(np.float64)
        others = others[np.isfinite(others) & (others != value)]
        if others.size < _FEWEST_VALUES or (least := np.diff(np.unique(others))).size == 0:
            continue
        first, last = np.quantile(others, (0.01, 0.99))
        away = max(value - last, first - value)
        reach = max(last - first, away)
        gap = away / 2 if known else max(_EXPECTED * reach / count, _STEPS * least.min())
        near = (some >= value - gap) & (some <= value + gap)
        if gap > 0 and int((near & (some != value)).sum()) <= 1:
            found.append((value, at))
    return found


def _beside(pixels: Bool[np.ndarray, "height width"], reach: int) -> Bool[np.ndarray, "height width"]:
    """What is up to some pixels away from pixels."""
    wide = np.pad(pixels, reach)
    height, width = pixels.shape
    wide = np.logical_or.reduce([wide[down : down + height] for down in range(2 * reach + 1)])
    wide = np.logical_or.reduce([wide[:, across : across + width] for across in range(2 * reach + 1)])
    return np.asarray(wide & ~pixels)


def find_blended(
    cube: Real[np.ndarray, "bands height width"],
    invalid: Bool[np.ndarray, "bands height width"] | None,
    marks: Bool[np.ndarray, "height width"],
    ends: tuple[float, float],
) -> Bool[np.ndarray, "height width"] | None:
    """Find pixels beside marks that were interpolated with them: towards a mark, far outside of what all others have.

    Args:
        cube: The cube in any unit.
        invalid: True for values that are known to hold no data; None: none.
        marks: True for pixels with a mark in any band.
        ends: Smallest and largest mark.

    Returns:
        True for these pixels; None if there are fewer than a few.

    Example:
        >>> cube = np.random.default_rng(0).random((3, 40, 50))
        >>> cube[:, :, :7], cube[:, :, 7] = -9999, -3000
        >>> found = find_blended(cube, cube == -9999, cube[0] == -9999, (-9999.0, -9999.0))
        >>> np.flatnonzero(found.any(axis=0))
        array([7])
    """
    from skimage.morphology import reconstruction

    if invalid is None or not marks.any():
        return None
    others = ~(_beside(marks, _REACH) | marks)
    if others.sum() < _FEWEST_VALUES:
        return None
    # far from all marks in the image are blends, too: of a cubic interpolation, and at the edge of the image
    core = np.zeros_like(others)
    core[2 * _REACH : -2 * _REACH, 2 * _REACH : -2 * _REACH] = True
    core &= ~(_beside(marks, 2 * _REACH) | marks)
    towards, beyond, alone = np.zeros((3, *marks.shape), np.int32)
    bands = 0
    for band, out in zip(cube, invalid, strict=True):
        values = band[others & ~out].astype(np.float64)
        if values.size < _FEWEST_VALUES:
            continue
        certain = band[core & ~out].astype(np.float64)
        if certain.size >= _FEWEST_VALUES:
            least, most = certain.min() - _FAR * np.ptp(certain), certain.max() + _FAR * np.ptp(certain)
            values = values[(values >= least) & (values <= most)]
        reach = np.ptp(values)
        low, high = values.min() - _OUTSIDE * reach, values.max() + _OUTSIDE * reach
        below, above = (band < low) & ~out, (band > high) & ~out
        for far, there, other_side in ((low - ends[0], below, above), (ends[1] - high, above, below)):
            towards += there & (far > 0)
            beyond += other_side & (far > reach)
            if certain.size >= _FEWEST_VALUES:
                alone += there & (far > 0) & ((band < least) | (band > most))
        bands += 1
    enough = _BLENDED * max(1, bands)
    # beside a far mark, a cubic interpolation swings to the other side
    blended = ((towards > enough) | ((beyond > enough) & _beside(marks, 2 * _REACH))) & ~marks
    sources = marks.copy()
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):  # where a slanted border leaves the image
        sources[edge] |= blended[edge] & (alone[edge] > enough)
    near = np.ones((2 * _REACH + 1, 2 * _REACH + 1), np.bool_)
    found = blended & (reconstruction(sources, blended | marks, footprint=near) > 0)  # type: ignore[no-untyped-call]
    return found if found.sum() >= _FEWEST else None


def _is_area(at: Bool[np.ndarray, "bands height width"]) -> bool:
    """Whether values lie together in both directions, or in lines that go through all bands."""
    across, along = (
        float((at[one] & at[other]).sum() / max(1, at[one].sum()))
        for one, other in ((np.s_[:, :, 1:], np.s_[:, :, :-1]), (np.s_[:, 1:], np.s_[:, :-1]))
    )
    alike = len(at) > 1 and at.all(axis=0).sum() > _ALIKE * at.any(axis=0).sum()
    return (max if alike else min)(across, along) > _AREA


def is_scattered(at: Bool[np.ndarray, "bands height width"]) -> bool:
    """Whether values have about as many neighbours of their kind as by chance: in rows, columns and other bands.

    Example:
        >>> at = np.random.default_rng(0).random((3, 40, 50)) < 0.1
        >>> is_scattered(at), is_scattered(at | at[0])
        (True, False)
    """
    share, hits = at.mean(axis=(1, 2)), at.sum(axis=0)
    here = float(np.square(share).sum())
    pairs = (
        ((at[:, :, 1:] & at[:, :, :-1]).sum(), here),
        ((at[:, 1:] & at[:, :-1]).sum(), here),
        ((hits * (hits - 1)).sum() / 2, (share.sum() ** 2 - here) / 2),
    )
    if share.max() > 0.5:
        return False  # more neighbours than by chance there cannot be
    return all(bool(found <= _BY_CHANCE * chance * at[0].size + _FEWEST_PAIRS) for found, chance in pairs)


def finite_ends(cube: Real[np.ndarray, "*axes"]) -> tuple[float, float]:
    """Smallest and largest finite value of a cube; 0 and 0 if there is none.

    Example:
        >>> finite_ends(np.array([2.0, np.nan, 3.0]))
        (2.0, 3.0)
    """
    lowest, highest = float(cube.min()), float(cube.max())
    if np.isfinite(lowest) and np.isfinite(highest):
        return lowest, highest
    finite = cube[np.isfinite(cube)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def marks_of(dtype: np.dtype[Any]) -> Shaped[np.ndarray, " marks"]:
    """The marks as a cube of some type has them: 1e20 is another number in single precision.

    Example:
        >>> bool(np.isin(np.float32(1e20), marks_of(np.dtype(np.float32))))
        True
    """
    with np.errstate(over="ignore"):  # half precision has no 1e20: no value is equal to infinity here
        return np.array(MARKS).astype(dtype) if dtype.kind == "f" else np.array(MARKS)
