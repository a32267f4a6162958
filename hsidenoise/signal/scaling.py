"""Value scaling of a cube, and its exact inverse.

Networks of this field are trained on cubes that lie on [0, 1] before noise is added; files hold radiance in sensor
counts, reflectance times 10,000, or [0, 1] itself. One affine map for the whole cube bridges the two. It is never
fitted per band: a per-band map changes the ratios between bands, which are the spectrum, and blows the noise of a
dark band up to the level of a bright one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Real, Shaped
from numpy.typing import DTypeLike

from hsidenoise.signal.mask import Extremes, find_extremes, spans
from hsidenoise.system.options import Normalize

NORMALIZE_MODES: tuple[str, ...] = get_args(Normalize)

# What the range of the clean cube is read off. Chosen on the two scenes of cave/validation (centre 128 x 128),
# pavia_crop and MUUFL, from clean to gaussian-50, non-iid and deadline: 1 % and 99.9 % of the medians come out at
# -0.04 to 0.08 and 0.84 to 1.00 (0.18 to 0.25 of pavia_crop, where a few pixels are five times as bright as the rest).
_BLOCK, _BANDS = 6, 3  # pixels and bands of a block; blocks of one band leave too much noise, of five no narrow peak
_QUANTILES = (0.01, 0.999)
_FEWEST, _MOST = 32, 1 << 17  # blocks: fewer say nothing of a range, more say the same

# The strongest noise that the networks are trained for, sigma 70/255. Where the range is so narrow that half of the
# bands have more, it is widened; where a tenth has more, up to twice the range. Else non-iid noise costs up to 2.8 dB
# (superballs, 0.6 of its range), gaussian-50 0.9 dB (pavia_crop, 0.2 of its range).
_STRONGEST = 70 / 255
_NOISY_BANDS = 0.9
_WIDENED = 2.0
# Ranges of the less noisy half: a band with a noise above holds nothing else. With 4 to 9 of 31 bands of noise 3 to 20
# ranges, the RMSE of the others falls to 0.2 to 0.7 of what it is beside them (cave/validation at a tenth of its
# contrast, centre 96 x 96).
_LOST, _LOUDER = 3.0, 2.0  # and times the median noise of the other bands
_SCENE = 2.0  # times its noise: a band whose block medians spread more does; those of pure noise spread 0.9
_SHARED = 0.2  # correlation of signs with another band: noise of 3 ranges leaves 0.05 of a scene, of none 0.01
_CENTRE = 256  # pixels; noise is measured on a square of at most this side

# Impulses, dead and saturated pixels have the two values at the ends of the sensor's range. A value is taken for such
# an end if it is on 2 % of a band's pixels (impulses come on 10 to 70 %, half each) and 4 times as often as both of its
# neighbours, as no value of a quantised image is.
_ATOM, _ALONE, _PIXELS = 0.02, 4.0, 1 << 14
_WIDEST = 20.0  # such a pair may be this many ranges apart; pavia_crop has 5

# Beyond this many ranges a value is kept from the network: its square is beyond single precision's digits.
_REACH = 1e3
# Spreads that a band's level may be away from that of the others: 2 at most in the cubes of CAVE's validation, Indian
# Pines, MUUFL and pavia_crop. The smallest shipped network's error grows from 30 on, tenfold at 300.
_APART = 100.0
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Scaling:
    """One affine map of a whole cube: ``(values - offset) / scale``.

    Attributes:
        mode: How it was found, one of :data:`NORMALIZE_MODES`.
        offset: Value that goes to 0, in the cube's unit.
        scale: Width of the range that goes to [0, 1], in the cube's unit, above 0.
        reason: One sentence for the user: what was chosen and why.
        low: Smallest value that a network may see, in the cube's unit.
        high: Largest one.
        lost: Bands of nothing but noise, so strong that they would drown the others.

    Example:
        >>> scaling = Scaling("minmax", offset=1000.0, scale=8000.0, reason="")
        >>> scaled = scaling.apply(np.array([[[1000, 5000, 9000]]], dtype=np.uint16))
        >>> scaled.tolist(), scaling.invert(scaled).tolist()
        ([[[0.0, 0.5, 1.0]]], [[[1000.0, 5000.0, 9000.0]]])
    """

    mode: str
    offset: float
    scale: float
    reason: str
    low: float = -np.inf
    high: float = np.inf
    lost: tuple[int, ...] = ()

    def apply(self, values: Real[np.ndarray, "bands height width"]) -> Float32[np.ndarray, "bands height width"]:
        """Scale values of the cube (or of a tile of it).

        Args:
            values: In the cube's unit.

        Returns:
            A new array; what lies outside the fitted range stays outside [0, 1], nothing is clipped.
        """
        lift = 1.0 if self.scale > 1e-300 else 2.0**500  # of the smallest numbers the inverse is infinite
        return self._map(values, -self.offset / self.scale, 1.0 / (self.scale * lift), np.float32, lift)

    def hides(self, values: Real[np.ndarray, "*axes"]) -> Bool[np.ndarray, "*axes"]:
        """Which values lie too far outside of the range: a network must not see them."""
        with np.errstate(over="ignore"):  # a bound beyond the type of the values hides nothing
            hidden: np.ndarray = (values < self.low) | (values > self.high)
        return hidden

    def invert(
        self, scaled: Real[np.ndarray, "bands height width"], dtype: DTypeLike = np.float32
    ) -> Float[np.ndarray, "bands height width"]:
        """Take scaled values back to the cube's unit.

        ``invert(apply(values))`` differs from ``values`` by float32 rounding only: at most 2**-23 of the distance from
        ``offset``, and of the value itself if ``dtype`` is float32.

        Args:
            scaled: What :meth:`apply` gave, or a network's answer to it, all bands; left untouched.
            dtype: Floating type of the result, see :func:`floating`.
        """
        return self._map(scaled, self.offset, self.scale, dtype)

    @staticmethod
    def _map(
        values: Real[np.ndarray, "bands height width"],
        shift: float,
        factor: float,
        dtype: DTypeLike,
        lift: float = 1.0,
    ) -> Float[np.ndarray, "bands height width"]:
        mapped = np.empty(values.shape, dtype=dtype)
        # float64 inside, or an offset that is large against the range would eat the signal's digits; band by band, or
        # a large cube would stand in memory twice more.
        with np.errstate(over="ignore"):  # only of what is hidden
            for band, target in zip(values, mapped, strict=True):
                target[...] = band.astype(np.float64) * lift * factor + shift
        return mapped


def floating(dtype: DTypeLike) -> np.dtype[np.floating[Any]]:
    """The floating type that holds a type: float64 for float64 and integers of 32 bits or more, else float32.

    Example:
        >>> floating(np.uint16), floating(np.int32), floating(np.float16)
        (dtype('float32'), dtype('float64'), dtype('float32'))
    """
    given = np.dtype(dtype)
    wide = given.itemsize > (4 if given.kind == "f" else 2)
    return np.dtype(np.float64 if wide else np.float32)


def told_apart(low: float, high: float, digits: int = 4) -> tuple[str, str]:
    """Ends of a range for people, with as many digits as tell them apart.

    Args:
        low: Smaller end.
        high: Larger one.
        digits: How many suffice where the range is not small against its ends.

    Example:
        >>> told_apart(0, 65535), told_apart(1e9, 1e9 + 2)
        (('0', '6.554e+04'), ('1000000000', '1000000002'))
    """
    if high > low:
        digits = min(17, digits + int(math.log10(max(1.0, max(abs(low), abs(high)) / (high - low)))))
    return f"{low:.{digits}g}", f"{high:.{digits}g}"


def value_range(values: Real[np.ndarray, "bands height width"], name: str = "the cube") -> tuple[float, float]:
    """Smallest and largest value of a cube, which must be finite as all the others.

    Raises:
        ValueError: If an axis is empty, or a value is NaN or infinite.
    """
    if values.size == 0:
        raise ValueError(f"{name} is empty: an axis of {values.shape} (bands, height, width) has no element")
    low, high = float(values.min()), float(values.max())
    if np.isfinite(low) and np.isfinite(high):  # NaN wins every minimum and maximum
        return low, high
    wrong = ~np.isfinite(values)
    band, row, column = (int(index) for index in np.unravel_index(int(wrong.argmax()), wrong.shape))
    raise ValueError(
        f"{name} has NaN or infinite values: {int(wrong.sum())} of {wrong.size}, the first in band {band}, row {row}, "
        f"column {column} (counted from 0); replace them, or leave these bands out"
    )


def to_unit_range(
    values: Float[np.ndarray, "bands height width"], name: str = "the cube"
) -> tuple[Float32[np.ndarray, "bands height width"], float, float]:
    """Scale a clean cube to [0, 1] by its smallest and largest value, one scale for all bands.

    Returns:
        The scaled cube, and the values that were taken to 0 and to 1.

    Raises:
        ValueError: If the cube is empty, constant, or holds NaN or infinite values, or too large a range.

    Example:
        >>> to_unit_range(np.array([[[1, 3, 5]]], dtype=np.float32))[0].tolist()
        [[[0.0, 0.5, 1.0]]]
    """
    low, high = value_range(values, name)
    if low == high:
        raise ValueError(f"{name}: every value is {low:g}: there is nothing to scale to [0, 1]")
    if not np.isfinite(high - low):
        raise ValueError(f"{name}: values of {low:.4g} to {high:.4g} are too far apart; save it in another unit")
    # in the type of the values: a large offset would eat the digits of float32; band by band, or a large cube would
    # stand in memory twice more
    exact = floating(values.dtype).type
    scaled = np.empty(values.shape, np.float32)
    for band, target in zip(values, scaled, strict=True):
        target[...] = (band - exact(low)) / exact(high - low)
    return scaled, low, high


def centre_crop(
    values: Shaped[np.ndarray, "bands height width"], size: int
) -> Shaped[np.ndarray, "bands cropped_height cropped_width"]:
    """Centre square of a cube (a view); a side shorter than ``size`` is kept whole."""
    height, width = values.shape[1:]
    top, left = max(0, (height - size) // 2), max(0, (width - size) // 2)
    return values[:, top : top + size, left : left + size]


def fit_scaling(
    cube: Real[np.ndarray, "bands height width"], mode: str = "auto", extremes: Extremes | None = None
) -> Scaling:
    """Find the one scaling that takes the clean cube inside a noisy one to about [0, 1].

    The modes:

    - ``auto``: the range of the clean cube, estimated from the noisy one, to [0, 1]: the 1 and 99.9 percentiles of the
      medians of blocks of 3 bands and 6 x 6 pixels. It is widened where the noise would be stronger than any that the
      networks are trained for (sigma 70/255). Where bands hold impulses, these say what the range is: their two values
      are its ends. Bands of nothing but noise, marks for missing data and hot pixels
      (:func:`hsidenoise.signal.mask.find_extremes`) count for nothing.
    - ``none``: leave the values as they are; for cubes whose clean range is [0, 1].
    - ``minmax``: smallest value to 0, largest to 1: at the mercy of noise and of one hot pixel.

    ``auto`` looks at values and never at the dtype or the unit: the scaling of ``a * cube + b`` is that of ``cube``,
    with the same map on its ends.

    Args:
        cube: Values in any unit, any real dtype.
        mode: One of ``NORMALIZE_MODES``.
        extremes: What :func:`hsidenoise.signal.mask.find_extremes` finds in it, if that is known.

    Returns:
        The scaling; ``reason`` says what was chosen and why.

    Raises:
        ValueError: If the mode is unknown, or the cube is empty, constant, or holds NaN or infinite values.

    Example:
        >>> clean = np.linspace(0, 1, 60)[:, None] * np.ones((9, 60, 80))
        >>> noisy = 1000 + 8000 * (clean + np.random.default_rng(0).normal(0, 0.1, clean.shape))
        >>> scaling = fit_scaling(noisy)
        >>> scaling.mode, bool(abs(scaling.offset - 1000) < 500), bool(abs(scaling.scale - 8000) < 800)
        ('auto', True, True)

    """
    if mode not in NORMALIZE_MODES:
        raise ValueError(f"unknown normalisation {mode!r}; choose one of {', '.join(NORMALIZE_MODES)}")
    lowest, highest = value_range(cube)
    if max(-lowest, highest) > _LARGEST:
        raise ValueError(
            f"values of {' to '.join(told_apart(lowest, highest))} do not fit single precision; rescale the cube first"
        )
    if lowest == highest:
        raise ValueError(
            f"every value of the cube is {lowest:g}: a constant cube holds nothing to denoise; "
            "check the variable and the file"
        )
    if mode == "none":
        return Scaling(
            "none", 0.0, 1.0, f"values of {' to '.join(told_apart(lowest, highest))} left as they are, as asked"
        )
    if mode == "minmax":
        reason = f"smallest and largest value ({', '.join(told_apart(lowest, highest))}) to 0 and 1, as asked"
        return Scaling("minmax", lowest, highest - lowest, reason)
    extremes = extremes or find_extremes(cube)
    noise = _noise(cube)
    low, high, reason, lost = _clean_range(cube, extremes, noise)
    if not high > low:
        low, high = max(lowest, extremes.low), min(highest, extremes.high)
        span = f"smallest and largest value ({', '.join(told_apart(low, high))})"
        reason = f"{span} to 0 and 1: nearly all others are the same"
    elif lost.any():
        reason += f"; bands {spans(np.flatnonzero(lost).tolist())} are noise alone"
    reach = _REACH * (high - low)
    ends = max(extremes.low, low - reach), min(extremes.high, high + reach)
    return Scaling("auto", low, high - low, reason, *ends, tuple(np.flatnonzero(lost).tolist()))


def level_offsets(cube: Real[np.ndarray, "bands height width"]) -> Float64[np.ndarray, " bands"]:
    """What to subtract from bands whose level is so far from that of the others that one range for all hides the scene.

    Returns:
        For each band its median less the median of those of all bands, if that is a hundred times the spread (1 to 99
        % of the values) of this and of most bands; else 0, as for every band of an ordinary cube.

    Example:
        >>> cube = np.random.default_rng(0).random((3, 40, 50))
        >>> level_offsets(cube).tolist(), level_offsets(cube + [[[0]], [[0]], [[1e6]]]).round(-1).tolist()
        ([0.0, 0.0, 0.0], [0.0, 0.0, 1000000.0])
    """
    some = cube.reshape(len(cube), -1)
    some = some[:, :: max(1, some.shape[1] // _PIXELS)].astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinite values are refused by fit_scaling
        first, level, last = np.quantile(some, (0.01, 0.5, 0.99), axis=1)
        spread, offsets = last - first, level - np.median(level)
    varied = spread > 0
    if not varied.any():
        return np.zeros(len(cube))
    far = varied & (np.abs(offsets) > _APART * np.maximum(spread, np.median(spread[varied])))
    return np.where(far, offsets, 0.0)


def _clean_range(
    cube: np.ndarray, extremes: Extremes, noise: np.ndarray
) -> tuple[float, float, str, Bool[np.ndarray, " bands"]]:
    """Ends of the range of the clean cube, in words where they are from, and which bands are noise alone."""
    lost = np.zeros(len(cube), dtype=np.bool_)
    medians, noisiest, has_scene = _block_medians(cube, extremes, noise)
    if medians.size < _FEWEST:
        values = cube[(cube >= extremes.low) & (cube <= extremes.high)].astype(np.float64)
        low, high = (float(value) for value in np.quantile(values, (0.001, 0.999)))
        return (
            low,
            high,
            f"0.1 and 99.9 percentiles ({', '.join(told_apart(low, high))}) to 0 and 1: too small to tell noise",
            lost,
        )
    quiet = medians[noisiest <= np.median(noisiest)]
    low, high = (float(value) for value in np.quantile(quiet, _QUANTILES))
    limit = _LOST * (high - low)
    kept = medians[(noisiest <= limit) | has_scene]
    low, high = (float(value) for value in np.quantile(kept if kept.size >= _FEWEST else quiet, _QUANTILES))
    ends = _ends_of_impulses(cube, extremes)
    if ends is not None and not 0.8 * (high - low) < ends[1] - ends[0] < _WIDEST * (high - low):
        ends = None
    low, high = ends or (low, high)
    loud = noise > _LOST * (high - low)
    if loud.any() and not loud.all():  # of noise alone, all bands have about as much: none of them drowns the others
        lost = _noise_alone(cube, extremes, noise, loud & (noise > _LOUDER * np.median(noise[~loud])))
    if ends is not None:
        return low, high, f"values of the impulses ({', '.join(told_apart(low, high))}) to 0 and 1", lost
    span = f"estimated range of the clean cube ({', '.join(told_apart(low, high))})"
    most, half = (float(level) / _STRONGEST for level in np.quantile(noise[~lost], (_NOISY_BANDS, 0.5)))
    wide = max(half, min(most, _WIDENED * (high - low)))
    if wide > high - low:
        return low, low + wide, f"{span}, widened to {wide:.4g} for its noise, to 0 and 1", lost
    return low, high, f"{span} to 0 and 1", lost


def _noise(cube: np.ndarray) -> Float64[np.ndarray, " bands"]:
    """Noise level of each band, 0 where there are too few pixels to say."""
    from hsidenoise.signal.noise_level import noise_level  # with torch, which who only reads a file need not wait for

    return noise_level(centre_crop(cube, _CENTRE)) if min(cube.shape[1:]) > 1 else np.zeros(len(cube))


def _block_medians(
    cube: np.ndarray, extremes: Extremes, noise: np.ndarray
) -> tuple[Float64[np.ndarray, " blocks"], Float64[np.ndarray, " blocks"], Bool[np.ndarray, " blocks"]]:
    """Medians of blocks of measurements alone, the noise of their worst band, and whether more is there."""
    bands, height, width = cube.shape
    deep, down, across = min(_BANDS, bands), min(_BLOCK, height), min(_BLOCK, width)
    firsts = sorted({min(first, bands - deep) for first in range(0, bands, deep)})
    every = max(
        1, len(firsts) * (height // down) * (width // across) // _MOST
    )  # rows of blocks left out for large cubes
    medians, noisiest, has_scene = [], [], []
    for first in firsts:
        part = cube[first : first + deep, : height // down * down, : width // across * across]
        blocks = part.reshape(deep, height // down, down, width // across, across)[:, ::every]
        values = blocks.transpose(1, 3, 0, 2, 4).reshape(-1, deep * down * across).astype(np.float64)
        values = values[((values >= extremes.low) & (values <= extremes.high)).all(axis=1)]
        worst = noise[first : first + deep].max()
        medians.append(np.median(values, axis=1))
        noisiest.append(np.full(len(values), worst))
        has_scene.append(np.full(len(values), len(values) > 0 and np.ptp(medians[-1]) > _SCENE * worst))
    return np.concatenate(medians), np.concatenate(noisiest), np.concatenate(has_scene)


def _noise_alone(
    cube: np.ndarray, extremes: Extremes, noise: np.ndarray, loud: Bool[np.ndarray, " bands"]
) -> Bool[np.ndarray, " bands"]:
    """Which of some bands hold nothing else: no blocks that differ, and no pattern that other bands have too."""
    alone = loud.copy()
    if not loud.any():
        return alone
    part = centre_crop(cube, _CENTRE).reshape(len(cube), -1)
    above = np.sign(part - np.median(part, axis=1, keepdims=True)).astype(np.float32)  # no outlier can count for more
    for band in np.flatnonzero(loud):
        one = slice(band, band + 1)
        shared = np.abs(above[~loud] @ above[band]).max() / part.shape[1]
        alone[band] = shared < _SHARED and not _block_medians(cube[one], extremes, noise[one])[2].any()
    return alone


def _ends_of_impulses(cube: np.ndarray, extremes: Extremes) -> tuple[float, float] | None:
    """The two values that impulses have, if there are bands with impulses."""
    pixels = cube[0].size
    some = np.arange(pixels)
    if pixels > _PIXELS:  # not evenly spaced: dead columns are
        some = np.random.default_rng(0).choice(pixels, _PIXELS, replace=False)
    pairs = []
    for band in cube.reshape(len(cube), -1):
        values = band[some]
        values = values[(values >= extremes.low) & (values <= extremes.high)]
        distinct, counts = np.unique(values, return_counts=True)
        around = np.concatenate([[0], counts, [0]])
        beside = np.maximum(around[:-2], around[2:])
        atoms = distinct[(counts >= max(8, _ATOM * some.size)) & (counts >= _ALONE * beside)]
        if atoms.size > 1:
            pairs.append((float(atoms[0]), float(atoms[-1])))
    if not pairs:
        return None
    low, high = np.median(pairs, axis=0)
    return float(low), float(high)
