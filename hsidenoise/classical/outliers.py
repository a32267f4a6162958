"""Values of a cube that its other bands cannot explain, and their replacement: impulses, dead columns, stripes.

One such value spreads over all planes of a subspace, so it must go before the cube is projected. Three steps:

1. A median over neighbouring bands and pixels, free of most outliers, and what it leaves of each value. From the cube
   with outlying values drawn to it, a first denoised one, which has the subspace of the scene.
2. Every spectrum is fitted in that subspace, each value with the trust that it has earned. What a value is off from
   the fit that the other values alone would make (its leverage taken out) shows whether it is an outlier. Fine
   detail, which all bands have, is none.
3. Outliers are replaced by the first denoised cube; single values of bands with few of
   them stay as they are. Columns that are off as a whole are outliers even where each value hides in the noise.

References:
    Huber and Ronchetti, "Robust Statistics", 2nd edition, 2009, chapter 7. doi:10.1002/9780470434697
    Zhuang and Bioucas-Dias, "Fast Hyperspectral Image Denoising and Inpainting Based on Low-Rank and Sparse
    Representations", IEEE JSTARS 2018 (known lost values, filled from the subspace). doi:10.1109/JSTARS.2018.2796570
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64

from hsidenoise.classical.subspace import denoise_planes, sigma_per_band
from hsidenoise.classical.total_variation import denoise_tv
from hsidenoise.signal.noise_level import CLASSICAL_FLOOR, noise_level, spread_of_most, unexplained_by_others

# All chosen on cave/validation and two scenes of cave/train.
_OFF_MEDIAN = 3.0  # noise levels off the median cube at which a value is trusted by half
_OFF_FIT = 4.0  # the same, off the fit of the other bands
_OFF_COLUMN = 5.0  # standard errors of a column's median at which the column is trusted by half
_ORDINARY = 0.03  # share of a band's values that may be off the fit without a repair
_FIT_AT_FAULT = 0.8  # unexplained by a plain regression, over the spread of the fit, below which the fit is wrong
_KEPT = 0.99  # trust from which a value stays exactly as it is
_MOST_PLANES = 10  # dimensions of the fit
_PLANE_ENERGY = 0.06  # whitened energy of a denoised plane that the fit takes in
_MOST_LEVERAGE = 0.9
_PIXELS_AT_ONCE = 32768


@dataclass(frozen=True)
class Repair:
    """A cube without its outliers.

    Attributes:
        cube: The noisy cube with outliers replaced.
        sigma: Level of the Gaussian noise of every band, outliers not counted, in the unit of the cube.
        trust: Share of each value that was kept, from 0 (replaced) to 1.
    """

    cube: Float32[np.ndarray, "bands height width"]
    sigma: Float64[np.ndarray, " bands"]
    trust: Float32[np.ndarray, "bands height width"]


def replace_outliers(
    noisy: Float32[np.ndarray, "bands height width"], sigma: float | Float[np.ndarray, " bands"] | None = None
) -> Repair:
    """Replace values that a regression on the other bands cannot explain.

    Args:
        noisy: Noisy cube on about [0, 1], at least 2x2 pixels. With fewer than three bands there is little to regress
            on: only what is off from its neighbourhood and column is found.
        sigma: Largest level of the Gaussian noise in the unit of the cube, one or one per band; None: estimated.

    Raises:
        ValueError: If the cube is too small or has non-finite values, or sigma does not fit it.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> clean = np.linspace(0.2, 0.8, 9)[:, None, None] * np.linspace(0.5, 1, 32 * 40).reshape(32, 40)
        >>> noisy = (clean + rng.normal(0.0, 0.02, clean.shape)).astype(np.float32)
        >>> noisy[4, :, 7] = 0.0
        >>> repair = replace_outliers(noisy)
        >>> bool(np.abs(repair.cube - clean)[4, :, 7].max() < 0.1), bool(repair.trust[4, :, 7].max() < 0.1)
        (True, True)
    """
    most = noise_level(noisy) if sigma is None else sigma_per_band(noisy, sigma)
    median = _median_cube(noisy)
    residual = noisy - median
    level = np.minimum(most, spread_of_most(residual))
    first = median + _trust(residual, level, _OFF_MEDIAN, 4) * residual
    first = denoise_planes(first, lambda planes: denoise_tv(planes, 1.0, rounds=30), np.maximum(level, CLASSICAL_FLOOR))
    residual = noisy - first
    level = np.maximum(np.minimum(most, spread_of_most(residual)), CLASSICAL_FLOOR)
    trust = _trust(residual, level, _OFF_MEDIAN, 4) * _column_trust(residual, level)
    unexplained = _unexplained(noisy, first, trust, level)
    spread = np.maximum(spread_of_most(unexplained), CLASSICAL_FLOOR)
    trust = _trust(unexplained, spread, _OFF_FIT, 8)
    ordinary = (1.0 - trust).mean(axis=(1, 2), keepdims=True) < _ORDINARY
    trust = np.where(ordinary, np.float32(1.0), trust) * _column_trust(unexplained, spread)
    # Outliers cannot leave a plain regression less than the robust fit leaves most values: there the fit is at fault,
    # as on a cube with hardly any noise.
    trust[unexplained_by_others(noisy) < _FIT_AT_FAULT * spread] = 1.0
    trust[trust > _KEPT] = 1.0
    return Repair(np.where(trust < 1.0, first + trust * residual, noisy), level, trust)


def _median_cube(noisy: np.ndarray) -> np.ndarray:
    """Median over five bands, then three rows, then three columns (one-sided at the borders)."""
    cube = noisy
    for axis, reach in ((0, 2), (1, 1), (2, 1)):
        reach = min(reach, (cube.shape[axis] - 1) // 2)
        if reach == 0:
            continue
        padded = np.pad(cube, [(reach, reach) if i == axis else (0, 0) for i in range(3)], mode="reflect")
        result = np.empty_like(cube)
        # slice by slice: the stacked copies of a whole large cube would not fit
        for index in range(cube.shape[axis]):
            window = np.take(padded, range(index, index + 2 * reach + 1), axis=axis)
            result[(slice(None),) * axis + (index,)] = np.median(window, axis=axis)
        cube = result
    return cube


def _trust(residual: np.ndarray, level: np.ndarray, off: float, power: int) -> np.ndarray:
    """Trust in each value, one half where it is off by ``off`` levels."""
    scale = (off * np.maximum(level, CLASSICAL_FLOOR)).astype(np.float32)[:, None, None]
    # beyond 30 times it is zero anyway, and its power would overflow
    ratio = np.minimum(np.abs(residual) / scale, np.float32(30.0))
    return np.asarray(1.0 / (1.0 + ratio**power), dtype=np.float32)


def _column_trust(residual: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Trust in each column of each band, (bands, 1, width)."""
    offset = np.median(residual, axis=1, keepdims=True)
    offset -= np.median(offset, axis=2, keepdims=True)
    error = level * np.sqrt(np.pi / 2.0 / residual.shape[1])  # of the median of that many normal values
    return _trust(offset, error, _OFF_COLUMN, 8)


def _unexplained(noisy: np.ndarray, scene: np.ndarray, trust: np.ndarray, level: np.ndarray) -> np.ndarray:
    """What each value is off from the fit of the other values of its spectrum in the subspace of a scene."""
    bands = len(noisy)
    flat = scene.reshape(bands, -1)
    mean = flat.mean(axis=1, keepdims=True)
    centred = (flat - mean) / level[:, None]
    energy, directions = np.linalg.eigh(centred @ centred.T / flat.shape[1])
    rank = int(np.clip(np.count_nonzero(energy > _PLANE_ENERGY), 1, min(_MOST_PLANES, bands)))
    scaled = directions[:, -rank:] * level[:, None] * np.sqrt(np.maximum(energy[-rank:], 1e-9))
    basis = torch.from_numpy(scaled.astype(np.float32))
    products = (basis[:, :, None] * basis[:, None, :]).flatten(1)  # (bands, rank * rank)
    values = torch.from_numpy((noisy.reshape(bands, -1) - mean).T.copy())  # (pixels, bands)
    precision = torch.from_numpy((trust / np.square(level)[:, None, None].astype(np.float32)).reshape(bands, -1).T)
    result = torch.empty_like(values)
    for start in range(0, len(values), _PIXELS_AT_ONCE):
        part = slice(start, start + _PIXELS_AT_ONCE)
        # the prior of the scaled coefficients is the identity, which also keeps the systems well conditioned
        system = (precision[part] @ products).reshape(-1, rank, rank) + torch.eye(rank)
        inverse = torch.linalg.inv(system)
        right = (precision[part] * values[part]) @ basis
        fitted = (inverse @ right[:, :, None])[:, :, 0] @ basis.T
        leverage = (inverse.flatten(1) @ products.T) * precision[part]
        result[part] = (values[part] - fitted) / (1.0 - leverage.clamp(0.0, _MOST_LEVERAGE))
    return result.numpy().T.reshape(noisy.shape)
