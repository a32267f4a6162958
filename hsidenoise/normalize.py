"""Value scaling of a cube, and its exact inverse.

Networks of this field are trained on cubes that lie on [0, 1] before noise is added; files hold radiance in sensor
counts, reflectance times 10,000, or [0, 1] itself. One affine map for the whole cube bridges the two. It is never
fitted per band: a per-band map changes the ratios between bands, which are the spectrum, and blows the noise of a
dark band up to the level of a bright one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Real

NORMALIZE_MODES = ("auto", "none", "minmax", "percentile")

# A tenth of a percent on either side ignores dead and hot pixels, yet a 64x64 image keeps its brightest spot of
# four pixels per band inside.
PERCENTILES = (0.1, 99.9)

# What counts as "on about [0, 1]". Noise that is not clipped reaches far beyond: sigma 75/255, the strongest that the
# networks are trained for, puts the 1st percentile of a black scene at -0.69 and the 99th of a white one at 1.69.
_LOWEST_FIRST_PERCENTILE = -1.0
_HIGHEST_99TH_PERCENTILE = 2.0
# Below this the scene uses less than a quarter of the range (reflectance 0 to 0.05, say): the noise levels that a
# network knows would be far off the scene's own.
_LOWEST_99TH_PERCENTILE = 0.25
# Zero-mean noise does not push the median of values >= 0 below 0; a cube that was scaled to [-1, 1] has it there.
_LOWEST_MEDIAN = -0.05


@dataclass(frozen=True)
class Scaling:
    """One affine map of a whole cube: ``(values - offset) / scale``.

    Attributes:
        mode: How it was found: ``none``, ``minmax`` or ``percentile`` (``auto`` decides for one of them).
        offset: Value that goes to 0, in the cube's unit.
        scale: Width of the range that goes to [0, 1], in the cube's unit, above 0.
        reason: One sentence for the user: what was chosen and why.

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

    def apply(self, values: Real[np.ndarray, "bands height width"]) -> Float32[np.ndarray, "bands height width"]:
        """Scale values of the cube (or of a tile of it).

        Args:
            values: In the cube's unit, any real dtype; left untouched.

        Returns:
            A new array; what lies outside the fitted range stays outside [0, 1], nothing is clipped.
        """
        return self._map(values, -self.offset / self.scale, 1.0 / self.scale)

    def invert(self, scaled: Real[np.ndarray, "bands height width"]) -> Float32[np.ndarray, "bands height width"]:
        """Take scaled values back to the cube's unit.

        ``invert(apply(values))`` differs from ``values`` by float32 rounding only: at most 2**-23 of the larger of
        the value and its distance from ``offset``.

        Args:
            scaled: What :meth:`apply` gave, or a network's answer to it; left untouched.

        Returns:
            A new array in the cube's unit.
        """
        return self._map(scaled, self.offset, self.scale)

    @staticmethod
    def _map(
        values: Real[np.ndarray, "bands height width"], shift: float, factor: float
    ) -> Float32[np.ndarray, "bands height width"]:
        mapped = np.empty(values.shape, dtype=np.float32)
        # float64 inside, or an offset that is large against the range would eat the signal's digits; band by band, or
        # a large cube would stand in memory twice more.
        for band, target in zip(values, mapped, strict=True):
            target[...] = band.astype(np.float64) * factor + shift
        return mapped


def fit_scaling(cube: Real[np.ndarray, "bands height width"], mode: str = "auto") -> Scaling:
    """Find the one scaling that takes a cube to about [0, 1].

    The modes:

    - ``none``: leave the values as they are.
    - ``minmax``: smallest value to 0, largest to 1. The convention of the published test sets, and at the mercy of
      one hot pixel.
    - ``percentile``: the 0.1 and 99.9 percentiles to 0 and 1, so that dead and hot pixels do not set the range. What
      lies outside is not clipped. Falls back to ``minmax`` where the two percentiles coincide (a nearly empty cube).
    - ``auto``: ``none`` if the values lie on about [0, 1] already, else ``percentile``. "About [0, 1]" means: 1st
      percentile at least -1, median at least -0.05, 99th percentile from 0.25 to 2. The bounds leave room for
      noise that was never clipped, and for the outliers of impulses and dead columns; a cube that uses less than a
      quarter of [0, 1] is stretched.

    The rule looks at values and never at the dtype, so that an array and the file it was saved to are treated alike.

    Args:
        cube: Values in any unit, any real dtype.
        mode: One of ``NORMALIZE_MODES``.

    Returns:
        The scaling; ``reason`` says what was chosen and why.

    Raises:
        ValueError: If the mode is unknown, or the cube is empty, constant, or holds NaN or infinite values.

    Example:
        >>> counts = np.arange(24, dtype=np.uint16).reshape(2, 3, 4) * 100 + 955
        >>> scaling = fit_scaling(counts)
        >>> scaling.mode, round(scaling.offset), round(scaling.scale)
        ('percentile', 957, 2295)
        >>> fit_scaling(counts / 4000).mode
        'none'

    References:
        Discussion of global against per-channel normalisation of spectra: CAREamics issue 679; of the range of real
        data: HSID-CNN issue 3, HyDe issue 23.
    """
    if mode not in NORMALIZE_MODES:
        raise ValueError(f"unknown normalisation {mode!r}; choose one of {', '.join(NORMALIZE_MODES)}")
    lowest, highest = _finite_range(cube)
    if lowest == highest:
        raise ValueError(
            f"every value of the cube is {lowest:g}: a constant cube holds nothing to denoise; "
            "check the variable and the file"
        )
    if mode == "none":
        return Scaling("none", 0.0, 1.0, f"values of {lowest:.4g} to {highest:.4g} left as they are, as asked")
    if mode == "minmax":
        reason = f"smallest and largest value ({lowest:.4g}, {highest:.4g}) to 0 and 1, as asked"
        return Scaling("minmax", lowest, highest - lowest, reason)

    # float16 would interpolate between its own coarse steps
    values = cube.astype(np.float32) if cube.dtype == np.float16 else cube
    # sorted first: NumPy sorts with vector instructions, several times faster than it selects ten values out of order
    ordered = np.sort(values, axis=None)
    low, first, median, last, high = (
        float(value)
        for value in np.percentile(ordered, (PERCENTILES[0], 1, 50, 99, PERCENTILES[1]), overwrite_input=True)
    )
    why = "as asked"
    if mode == "auto":
        span = f"1 to 99 % of the values span {first:.4g} to {last:.4g}"
        if (
            first >= _LOWEST_FIRST_PERCENTILE
            and median >= _LOWEST_MEDIAN
            and _LOWEST_99TH_PERCENTILE <= last <= _HIGHEST_99TH_PERCENTILE
        ):
            return Scaling("none", 0.0, 1.0, f"{span}, about [0, 1] already: left as they are")
        why = f"since {span}, which is not about [0, 1]"
    if high <= low:
        reason = f"smallest and largest value ({lowest:.4g}, {highest:.4g}) to 0 and 1: nearly all others are {low:.4g}"
        return Scaling("minmax", lowest, highest - lowest, reason)
    reason = f"{PERCENTILES[0]} and {PERCENTILES[1]} percentiles ({low:.4g}, {high:.4g}) to 0 and 1, {why}"
    return Scaling("percentile", low, high - low, reason)


def _finite_range(cube: Real[np.ndarray, "bands height width"]) -> tuple[float, float]:
    """Smallest and largest value of a cube, refused unless all values are finite as float32."""
    if cube.size == 0:
        raise ValueError(f"the cube is empty, its shape is {tuple(cube.shape)} (bands, height, width)")
    lowest, highest = float(cube.min()), float(cube.max())
    # NaN wins every minimum and maximum, so one pass over the two numbers tells for the whole cube
    if np.isfinite(lowest) and np.isfinite(highest):
        largest = float(np.finfo(np.float32).max)
        if max(-lowest, highest) > largest:
            raise ValueError(
                f"values of {lowest:.4g} to {highest:.4g} do not fit single precision; rescale the cube first"
            )
        return lowest, highest
    bad = ~np.isfinite(cube)
    band, row, column = (int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))
    raise ValueError(
        f"the cube holds {int(bad.sum())} values that are NaN or infinite, the first at band {band}, row {row}, "
        f"column {column} (from 0); replace them, or leave these bands out"
    )
