"""Impulses, dead columns, stripes: replaced where other bands cannot explain them, or split off by robust PCA.

One outlier value spreads over all planes of a subspace, so it must go before the cube is projected. Three steps:

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
    Robust PCA: Candes, Li, Ma and Wright, "Robust Principal Component Analysis?", J. ACM 2011.
    doi:10.1145/1970392.1970395
    Inexact augmented Lagrangian: Lin, Chen and Ma, "The Augmented Lagrange Multiplier Method for Exact Recovery of
    Corrupted Low-Rank Matrices", 2010. arXiv:1009.5055
    LRMR: Zhang et al., "Hyperspectral Image Restoration Using Low-Rank Matrix Recovery", IEEE TGRS 2014.
    doi:10.1109/TGRS.2013.2284280
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64

from hsidenoise.classical.filters import denoise_planes, denoise_tv, sigma_per_band
from hsidenoise.signal.noise_level import (
    CLASSICAL_FLOOR,
    noise_level,
    noise_sigma,
    normal_quantile,
    spread_of_most,
    unexplained_by_others,
)
from hsidenoise.signal.tiling import plan, tapers

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

# Of robust PCA. Chosen on cave/validation.
_WINDOW = 20  # as LRMR
_OVERLAP = 10
_OUTLIER = 3.0  # noise levels off the low-rank part at which a value is sparse
_GROSS = 4.0  # levels of the pursuit's own noise off it, at which a value does not count for the noise level
_ROUNDS = 12
_SPARSITY = 2.0  # over 1 / sqrt(pixels): with 31 bands the usual weight takes part of the scene for sparse
_TYPICAL = 0.6  # quantile of the magnitudes that tells how far off a guess is
_PURSUIT_ROUNDS = 30
_RATIO = 1.5  # growth of the penalty, as in Lin et al.
_FIRST_PENALTY = 1.25  # over the largest singular value, as in Lin et al.


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


class LowRankAndSparse(NamedTuple):
    """The two parts of a matrix.

    Attributes:
        low_rank: Low-rank part.
        sparse: Sparse part.
    """

    low_rank: Float64[np.ndarray, "rows columns"]
    sparse: Float64[np.ndarray, "rows columns"]


def principal_component_pursuit(
    matrix: Float[np.ndarray, "rows columns"],
    *,
    sparsity: float | None = None,
    tolerance: float = 1e-7,
    rounds: int = 100,
) -> LowRankAndSparse:
    """Least nuclear norm plus ``sparsity`` times L1 norm of two matrices that sum to the given one.

    Inexact augmented Lagrangian. A low-rank matrix and a few gross errors at random places are both recovered exactly.

    Args:
        matrix: What is to be split, best with few rows: each round costs one (rows, rows) eigendecomposition.
        sparsity: Weight of the sparse part, above 0; None: ``1 / sqrt(larger side)``.
        tolerance: Frobenius norm of what the two parts leave, over that of the matrix, at which it stops.
        rounds: Most iterations, at least 1.

    Raises:
        ValueError: If the sparsity is not above 0, the tolerance negative, or there is less than one round.
    """
    weight = 1.0 / float(np.sqrt(max(matrix.shape))) if sparsity is None else sparsity
    if weight <= 0 or tolerance < 0 or rounds < 1:
        raise ValueError("robust PCA: sparsity must be above 0, tolerance 0 or more, rounds 1 or more")
    values = matrix.astype(np.float64)
    norm = np.linalg.norm(values)
    sparse = np.zeros_like(values)
    if norm == 0.0:
        return LowRankAndSparse(np.zeros_like(values), sparse)
    largest = float(np.linalg.norm(values, 2))
    multiplier = values / max(largest, np.abs(values).max() / weight)
    penalty = _FIRST_PENALTY / largest
    low_rank = values
    for _ in range(rounds):
        low_rank = _shrink_singular_values(values - sparse + multiplier / penalty, 1.0 / penalty)
        rest = values - low_rank + multiplier / penalty
        sparse = np.sign(rest) * np.maximum(np.abs(rest) - weight / penalty, 0.0)
        left = values - low_rank - sparse
        multiplier += penalty * left
        penalty *= _RATIO
        if np.linalg.norm(left) <= tolerance * norm:
            break
    return LowRankAndSparse(low_rank, sparse)


def _shrink_singular_values(matrix: np.ndarray, threshold: float) -> np.ndarray:
    """Lower all singular values by a threshold, not below 0."""
    if len(matrix) > matrix.shape[1]:
        return _shrink_singular_values(matrix.T, threshold).T
    energy, directions = np.linalg.eigh(matrix @ matrix.T)
    singular = np.sqrt(np.maximum(energy, 0.0))
    kept = singular > threshold
    gain = 1.0 - threshold / singular[kept]
    return np.asarray((directions[:, kept] * gain) @ (directions[:, kept].T @ matrix))


def denoise_robust_pca(
    noisy: Float32[np.ndarray, "bands height width"],
    sigma: float | Float[np.ndarray, " bands"] | None = None,
) -> Float32[np.ndarray, "bands height width"]:
    """Low-rank part of a cube with sparse corruption and Gaussian noise.

    Over the whole cube, bands divided by their noise level, principal component pursuit finds the gross errors. Then,
    in overlapping windows (where fewer materials make the rank lower), two steps alternate: values further than three
    noise levels from the low-rank part go to the sparse one, and the singular values of the rest shrink as those of a
    low-rank matrix in noise of variance 1 should. No neighbourhood is used: what is left is noise within the subspace.
    """
    levels = sigma_per_band(noisy, sigma).astype(np.float32)[:, None, None]
    whitened = noisy / levels
    bands, height, width = noisy.shape
    pursued = principal_component_pursuit(
        whitened.reshape(bands, -1),
        sparsity=_SPARSITY / float(np.sqrt(max(bands, height * width))),
        tolerance=1e-6,
        rounds=_PURSUIT_ROUNDS,
    ).low_rank.reshape(noisy.shape)
    # Impulses raise a blind level: it is estimated anew where what is gross has gone. The pursuit, which takes part of
    # the noise for signal, says what is gross.
    part_of_noise = noise_sigma((pursued * levels).astype(np.float32))[:, None, None] / levels
    gross = np.abs(whitened - pursued) > _GROSS * part_of_noise
    repaired = np.where(gross, pursued, whitened).astype(np.float32) * levels
    lower = np.minimum(noise_sigma(repaired)[:, None, None] / levels, 1.0).astype(np.float32)
    whitened, pursued, levels = whitened / lower, pursued / lower, levels * lower
    rows, columns = plan(height, _WINDOW, _OVERLAP), plan(width, _WINDOW, _OVERLAP)
    row_tapers, column_tapers = tapers(height, _WINDOW, _OVERLAP), tapers(width, _WINDOW, _OVERLAP)
    result = np.zeros(noisy.shape)
    for top, down in zip(rows, row_tapers, strict=True):
        for left, across in zip(columns, column_tapers, strict=True):
            part = (slice(None), slice(top, top + len(down)), slice(left, left + len(across)))
            spectra = whitened[part].reshape(bands, -1).astype(np.float64)
            estimate = _stable(spectra, pursued[part].reshape(bands, -1))
            result[part] += estimate.reshape(bands, len(down), len(across)) * np.outer(down, across)
    return np.asarray(result * levels, dtype=np.float32)


def _stable(spectra: np.ndarray, low_rank: np.ndarray) -> np.ndarray:
    """Low-rank part of a window with noise of variance 1 and sparse errors, from a first guess of it."""
    bands, pixels = spectra.shape
    edge = np.sqrt(bands / pixels)
    for _ in range(_ROUNDS):
        off = np.abs(spectra - low_rank)
        # a guess that is off by more than the noise must not make outliers of all that it does not explain
        limit = _OUTLIER * max(1.0, float(np.quantile(off, _TYPICAL)) / normal_quantile(_TYPICAL))
        rest = np.where(off > limit, low_rank, spectra)
        mean = rest.mean(axis=1, keepdims=True)
        centred = rest - mean
        energy, directions = np.linalg.eigh(centred @ centred.T / pixels)
        kept = energy > (1.0 + edge) ** 2
        # the energy of the signal alone, from that of signal and noise: Gavish and Donoho, doi:10.1109/TIT.2017.2653801
        above = energy[kept] - 1.0 - edge**2
        signal = (above + np.sqrt(np.maximum(above**2 - 4.0 * edge**2, 0.0))) / 2.0
        gain = signal / (signal + 1.0)
        low_rank = mean + (directions[:, kept] * gain) @ (directions[:, kept].T @ centred)
    return np.asarray(low_rank)
