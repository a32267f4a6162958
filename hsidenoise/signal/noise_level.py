"""What can be said of a cube's noise without its clean twin: the level of each band.

Two things tell noise from scene: the details of an image, few of which are edges (:func:`haar_details`), and what the
other bands leave of a band (:func:`unexplained_variance`). Both err upwards, so that the smaller one counts where both
are there. The spectral Wiener estimate, the classical methods and the windows of bands are built on these.

References:
    Donoho and Johnstone, "Ideal spatial adaptation by wavelet shrinkage", Biometrika 1994. doi:10.1093/biomet/81.3.425
    Bioucas-Dias and Nascimento, "Hyperspectral Subspace Identification", IEEE TGRS 2008. doi:10.1109/TGRS.2008.918089
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Shaped
from torch import Tensor

SIGMA_FLOOR = 1e-3
"""Smallest noise level that is assumed of a cube on about [0, 1] (0.25 on the 0-255 scale): keeps whitening finite."""

CLASSICAL_FLOOR = 1e-4
"""The same for the classical methods: with ten times as much they change a clean cube by more than 0.002."""

NORMAL_MEDIAN = 0.6745
"""Median of |z| for a standard normal z, in the digits that the networks were trained with."""

RIDGE = 1e-6  # on a correlation matrix: bands may repeat each other exactly
_MOST = 0.3  # quantile of magnitudes that outliers on 70 % of the pixels leave alone
_INSIDE = 3.0  # levels within which a value of a residual counts as noise
_ROUNDS = 6  # of the level by what lies within, at most
_SETTLED = 1e-3  # change of the level, over it, after which there are no more
SAMPLE = 1 << 14  # values of a band: the level of more is the same to half a percent
_MOST_ABSORBED = 0.8  # of the variance of the noise, that is made up for


def noise_level(
    cube: Shaped[np.ndarray, "bands height width"], known: Bool[np.ndarray, "height width"] | None = None
) -> Float64[np.ndarray, " bands"]:
    """Standard deviation of the Gaussian noise of every band.

    The median magnitude of the diagonal Haar details (of all 2x2 blocks, overlapping), divided by that of a normal
    variable. Edges and impulses are few and leave a median alone, and the diagonal difference cancels stripes and dead
    columns. Fine texture cannot be told from noise, so that a clean, textured scene gets a level above 0.

    Args:
        cube: Noisy cube, any real type, at least 2x2 pixels.
        known: Pixels that count; None: all.

    Returns:
        Sigma per band, in the unit of the cube; NaN where no 2x2 pixels count.

    Raises:
        ValueError: If the cube is not three-dimensional, not real, too small, or has non-finite values.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> noise_level(rng.normal(0.5, 0.1, size=(2, 60, 70))).round(2)
        array([0.1, 0.1])

    References:
        Donoho and Johnstone, Biometrika 1994, section 6. doi:10.1093/biomet/81.3.425
    """
    check_cube(cube)
    counted = None
    if known is not None:
        counted = known[1:, 1:] & known[1:, :-1] & known[:-1, 1:] & known[:-1, :-1]
        if not counted.any():
            return np.full(len(cube), np.nan)
    levels = np.empty(len(cube))
    for index, values in enumerate(cube):  # band by band: float64 copies of a large cube would not fit
        details = haar_details(values.astype(np.float64))
        levels[index] = np.median(np.abs(details if counted is None else details[counted])) / normal_quantile(0.5)
    return levels


def haar_details(images: Any, step: int = 1) -> Any:
    """Diagonal Haar details of images: noise keeps its standard deviation in them, and of a scene its corners are left.

    Args:
        images: Array or tensor (..., height, width).
        step: 1: of all 2x2 blocks, which overlap; 2: of those that do not.

    Returns:
        The details, in the type of the images; nothing of images with less than two rows or columns.

    Example:
        >>> haar_details(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
        array([[ 1. , -0.5]])
    """
    rows = images[..., :-1:step, :] - images[..., 1::step, :]  # rows first: they lie together
    return (rows[..., :-1:step] - rows[..., 1::step]) / 2


def normal_quantile(share: float) -> float:
    """Magnitude below which such a share of the values of a standard normal variable is.

    Example:
        >>> round(normal_quantile(0.5), 4)
        0.6745
    """
    return NormalDist().inv_cdf(0.5 + share / 2)


def spectral_covariance(cube: Shaped[np.ndarray, "bands height width"]) -> Float64[np.ndarray, "bands bands"]:
    """Covariance of the spectra of a cube."""
    flat = cube.reshape(len(cube), -1).astype(np.float64)
    flat -= flat.mean(axis=1, keepdims=True)
    return np.asarray(flat @ flat.T / flat.shape[1])


def unexplained_variance(
    covariance: Float64[np.ndarray, "bands bands"], pixels: int, ridge: float = 1e-10
) -> Float64[np.ndarray, " bands"]:
    """Variance of each band that a linear regression on all other bands leaves.

    Args:
        covariance: Of the spectra.
        pixels: How many spectra it is from, more than bands: a regression explains some of the noise by chance.
        ridge: Added to the diagonal, in units of the mean variance: repeated or constant bands leave it singular.

    Example:
        >>> unexplained_variance(np.eye(2), pixels=10).round(2)
        array([1.25, 1.25])
    """
    bands = len(covariance)
    added = max(ridge * float(np.trace(covariance)) / bands, np.finfo(np.float64).tiny)
    inverse = np.linalg.inv(covariance + added * np.eye(bands))
    return np.asarray(1.0 / np.diag(inverse) * (pixels / (pixels - bands)))


def noise_sigma(noisy: Float32[np.ndarray, "bands height width"]) -> Float64[np.ndarray, " bands"]:
    """Noise level of every band for whitening: the smaller of two blind estimates, each of which errs upwards.

    The diagonal Haar details see fine texture as noise; the part of a band that a regression on all the others leaves
    contains whatever only that band has, stripes and impulses too.

    Args:
        noisy: Noisy cube on about [0, 1], at least 2x2 pixels. The regression is left out where there are fewer than
            three bands, or fewer pixels than twice the bands.

    Returns:
        Sigma per band, at least :data:`CLASSICAL_FLOOR`.

    Raises:
        ValueError: If the cube is not three-dimensional, too small, or has non-finite values.
    """
    return np.asarray(np.maximum(np.minimum(noise_level(noisy), unexplained_by_others(noisy)), CLASSICAL_FLOOR))


def unexplained_by_others(noisy: Float[np.ndarray, "bands height width"]) -> Float64[np.ndarray, " bands"]:
    """Standard deviation of what a linear regression on all other bands leaves of each band.

    Returns:
        One level per band; infinite where there are fewer than three bands, or fewer pixels than twice the bands.
    """
    bands, pixels = len(noisy), noisy[0].size
    if bands < 3 or pixels < 2 * bands:
        return np.full(bands, np.inf)
    return np.asarray(np.sqrt(unexplained_variance(spectral_covariance(noisy), pixels)))


def spread_of_most(residual: Float[np.ndarray, "bands height width"]) -> Float64[np.ndarray, " bands"]:
    """Standard deviation of the Gaussian part of each band of a residual, with outliers on up to 70 % of the pixels.

    A low quantile of the magnitudes, divided by that of a normal variable: impulses can hit half of the pixels of a
    band and more, and a median would follow them.
    """
    quantile = np.quantile(np.abs(residual).reshape(len(residual), -1), _MOST, axis=1)
    return np.asarray(quantile / normal_quantile(_MOST), dtype=np.float64)


def level_of_residual(
    residual: Float[Tensor, "bands height width"], lost: Bool[Tensor, "bands height width"]
) -> Float[Tensor, " bands"]:
    """Standard deviation of the Gaussian noise of every band, from what a denoised cube leaves of the noisy one.

    Root mean square of the values within three levels, made up for what a normal variable has beyond; in a few rounds
    from a low quantile, so that outliers on most of the pixels do no harm.

    Args:
        residual: Noisy cube minus a denoised one.
        lost: Values that are no measurements; they are left out.

    Returns:
        One level per band, in the unit of the residual; a band without any measurement gets the median of the others.

    Example:
        >>> residual = 0.1 * torch.randn(2, 60, 70, generator=torch.Generator().manual_seed(0))
        >>> residual[1, ::3] = 0.9
        >>> level_of_residual(residual, torch.zeros(2, 60, 70, dtype=torch.bool)).numpy().round(2)
        array([0.1, 0.1], dtype=float32)
    """
    normal = NormalDist()
    within = 2.0 * normal.cdf(_INSIDE) - 1.0
    variance = 1.0 - 2.0 * _INSIDE * normal.pdf(_INSIDE) / within  # of a normal variable that is cut off there
    levels = np.full(len(residual), np.nan)
    for band, (values, out) in enumerate(zip(residual.cpu().numpy(), lost.cpu().numpy(), strict=True)):
        known = np.abs(values[~out])
        if not known.size:
            continue
        known = known[:: known.size // SAMPLE | 1]  # an odd step, so that no column is left out
        rank = round(_MOST * (known.size - 1))
        level = float(np.partition(known, rank)[rank]) / normal_quantile(_MOST)
        for _ in range(_ROUNDS):
            inside = known[known <= _INSIDE * level]
            if not inside.size:
                break
            last, level = level, float(np.sqrt(np.mean(np.square(inside), dtype=np.float64) / variance))
            if abs(level - last) <= _SETTLED * level:
                break
        levels[band] = level
    if not np.isnan(levels).all():
        levels[np.isnan(levels)] = np.nanmedian(levels)
    return torch.from_numpy(np.nan_to_num(levels)).to(residual)


def with_absorbed(level: Float[Tensor, " bands"], absorbed: Float[Tensor, " bands"]) -> Float[Tensor, " bands"]:
    """Level of the noise of each band, of that of a residual.

    Args:
        level: That of the residual.
        absorbed: Share of the variance of the noise that the residual lacks, as the denoiser has let it pass.
    """
    return level / (1.0 - absorbed.clamp(0.0, _MOST_ABSORBED)).sqrt()


def smallest_step(image: Float[Tensor, "height width"]) -> float:
    """Smallest difference of two values of a band: 1 of whole numbers, next to nothing of others.

    Example:
        >>> smallest_step(torch.tensor([[2.0, 4.0], [2.0, 5.0]]))
        1.0
    """
    return float(np.diff(np.unique(image.cpu().numpy()), append=np.inf).min())


def check_cube(cube: Shaped[np.ndarray, "*axes"]) -> None:
    """Refuse what is not a finite, real cube of at least 2x2 pixels.

    Raises:
        ValueError: If it is not.
    """
    if cube.ndim != 3 or cube.shape[0] < 1 or min(cube.shape[1:]) < 2:
        raise ValueError(f"cube of shape {cube.shape}: expected (bands, height, width) with at least 2x2 pixels")
    if cube.dtype.kind not in "buif":
        raise ValueError(f"cube of type {cube.dtype}: pass real numbers (of a complex cube, its magnitude)")
    if not np.isfinite(cube).all():
        raise ValueError("the cube has NaN or infinite values: replace them first")
