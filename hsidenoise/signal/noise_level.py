"""What can be told of a cube's noise without its clean twin: the level of each band, and bands beyond use.

References:
    Donoho and Johnstone, "Ideal spatial adaptation by wavelet shrinkage", Biometrika 1994. doi:10.1093/biomet/81.3.425
    Bioucas-Dias and Nascimento, "Hyperspectral Subspace Identification", IEEE TGRS 2008. doi:10.1109/TGRS.2008.918089
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64, Shaped

_NORMAL_MAD = 0.6744897501960817  # median of |x| for a standard normal x
_RIDGE = 1e-6  # on a correlation matrix: bands may repeat each other exactly
_OUTLIER = 2.0  # times the median share: equal noise on all bands singles out none of them


def noise_level(cube: Shaped[np.ndarray, "bands height width"]) -> Float64[np.ndarray, " bands"]:
    """Standard deviation of the Gaussian noise of every band.

    The median magnitude of the diagonal Haar details (of all 2x2 blocks, overlapping), divided by that of a normal
    variable. Edges and impulses are few and leave a median alone, and the diagonal difference cancels stripes and dead
    columns. Fine texture cannot be told from noise, so that a clean, textured scene gets a level above 0.

    Args:
        cube: Noisy cube, any real type, at least 2x2 pixels.

    Returns:
        Sigma per band, in the unit of the cube.

    Raises:
        ValueError: If the cube is not three-dimensional, not real, too small, or has non-finite values.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> noise_level(rng.normal(0.5, 0.1, size=(2, 60, 70))).round(2)
        array([0.1, 0.1])

    References:
        Donoho and Johnstone, Biometrika 1994, section 6. doi:10.1093/biomet/81.3.425
    """
    _check(cube)
    levels = np.empty(len(cube))
    for index, values in enumerate(cube):  # band by band: float64 copies of a large cube would not fit
        band = values.astype(np.float64)
        columns = band[:, 1:] - band[:, :-1]
        detail = (columns[1:] - columns[:-1]) / 2.0
        levels[index] = np.median(np.abs(detail)) / _NORMAL_MAD
    return levels


def bad_bands(
    cube: Shaped[np.ndarray, "bands height width"], *, unexplained: float = 0.45
) -> Bool[np.ndarray, " bands"]:
    """Bands that the other bands know nothing about: dead ones, and those where noise drowns the scene.

    Each band is regressed on the others over all pixels. It is bad if it is constant, or if the share of its variance
    that stays unexplained is above ``unexplained`` and above twice the median share of the cube (equal noise on every
    band makes none of them an outlier). Bands unexplained by more than half the threshold do not serve as regressors,
    found in a few rounds, so that neighbouring bad bands cannot vouch for each other.

    Args:
        cube: Noisy cube, any real type. At least 3 bands, and more pixels than bands, or nothing can be said and only
            constant bands are reported.
        unexplained: Share of the variance, in (0, 1).

    Returns:
        True for bad bands.

    Raises:
        ValueError: If the cube is not three-dimensional, not real, too small, or has non-finite values, or the
            share is not in (0, 1).

    Example:
        >>> rng = np.random.default_rng(0)
        >>> cube = np.linspace(1.0, 2.0, 6)[:, None, None] * rng.random((20, 30)) + rng.normal(0, 0.02, (6, 20, 30))
        >>> cube[3] = rng.random((20, 30))
        >>> np.flatnonzero(bad_bands(cube))
        array([3])

    References:
        Bioucas-Dias and Nascimento, IEEE TGRS 2008, section II-A (noise by regression on the other bands).
        doi:10.1109/TGRS.2008.918089
    """
    _check(cube)
    if not 0.0 < unexplained < 1.0:
        raise ValueError(f"unexplained is {unexplained}: pass a share of the variance between 0 and 1")
    pixels = cube.reshape(len(cube), -1).astype(np.float64)
    pixels -= pixels.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(pixels, axis=1)
    bad: np.ndarray = cube.max(axis=(1, 2)) == cube.min(axis=(1, 2))
    alive = np.flatnonzero(~bad)
    if len(alive) < 3 or pixels.shape[1] <= len(alive):
        return bad
    spectra = pixels[alive] / norms[alive, None]
    share = _unexplained_shares(spectra @ spectra.T, unexplained / 2.0)
    bad[alive] = (share > unexplained) & (share > _OUTLIER * np.median(share))
    return bad


def _unexplained_shares(correlation: np.ndarray, limit: float, rounds: int = 5) -> np.ndarray:
    """Share of each band's variance (0-1) that a regression on the trusted other bands leaves.

    Bands above ``limit`` are not trusted in the next round.
    """
    bands = len(correlation)
    regularised = correlation + _RIDGE * np.eye(bands)
    trusted = np.ones(bands, dtype=bool)
    share = np.ones(bands)
    for _ in range(rounds):
        inverse = np.linalg.inv(regularised[np.ix_(trusted, trusted)])
        cross = regularised[np.ix_(~trusted, trusted)]
        # The inverse's diagonal is one over the residual of each variable given all the others.
        share[trusted] = 1.0 / np.diag(inverse)
        share[~trusted] = 1.0 - np.einsum("ij,jk,ik->i", cross, inverse, cross, optimize=True)
        update = share <= limit
        if update.sum() < 2 or np.array_equal(update, trusted):
            break
        trusted = update
    return np.asarray(share)


def _check(cube: np.ndarray) -> None:
    """Fail on what is not a cube."""
    if cube.ndim != 3 or cube.shape[0] < 1 or min(cube.shape[1:]) < 2:
        raise ValueError(f"cube of shape {cube.shape}: expected (bands, height, width) with at least 2x2 pixels")
    if cube.dtype.kind not in "buif":
        raise ValueError(f"cube of type {cube.dtype}: pass real numbers (of a complex cube, its magnitude)")
    if not np.isfinite(cube).all():
        raise ValueError("the cube has NaN or infinite values: replace them first")
