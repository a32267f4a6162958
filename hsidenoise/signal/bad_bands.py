"""Bands beyond use, and those that share nothing with the others.

A band is told by a regression on the other bands: of what they leave, noise alone leaves nearly all.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped

from hsidenoise.signal.noise_level import RIDGE, SAMPLE, check_cube, noise_level

_UNEXPLAINED = 0.45  # share of the variance of a bad band that the others do not explain
_COMPONENTS, _LEAST_COMPONENT = 8, 1e-4  # of other bands that explain a lost one: how many, and their least energy
_CLEARLY = 4.0  # standard errors that a coefficient is from 0
# Share of a band's variance that others leave, of the bands at most, and products of neighbouring signs: no band of
# Indian Pines, MUUFL, pavia_crop, satellite_17band, remote_sensing_clean and CAVE (training and validation) has a
# pattern of its own, with the noise cases or without; 1, 3 and 19 bands of stripes or blurred noise in four scenes do.
_ALONE, _UNLIKE, _MOST_APART, _PATTERN, _NO_PATTERN, _STRONG = 0.4, 0.6, 0.5, 0.5, 0.1, 7.0
_FEWEST_ALIKE, _PIXELS_A_BAND = 31, 4  # fewer are denoised by other rules
_OUTLIER = 2.0  # times the median share: equal noise on all bands singles out none of them


def explained_by_others(
    lost: Float[np.ndarray, "lost height width"], others: Float[np.ndarray, "others height width"]
) -> Float[np.ndarray, "lost height width"]:
    """What can be said of bands of nothing but noise: their mean, and what they clearly share with the other bands.

    Args:
        lost: The bands as they are.
        others: The others, without noise.

    Returns:
        A regression of each band on the leading principal components of the others, without the coefficients that noise
        alone would have.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> scene = np.linspace(1, 2, 5)[:, None, None] * rng.random((60, 70))
        >>> found = explained_by_others(scene[:1] + rng.normal(0, 3, (1, 60, 70)), scene[1:])
        >>> bool(np.abs(found - scene[0]).std() < 0.1)
        True
    """
    flat = others.reshape(len(others), -1).astype(np.float64)
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= np.maximum(flat.std(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    energy, directions = np.linalg.eigh(flat @ flat.T / flat.shape[1])
    strong = energy > _LEAST_COMPONENT * energy[-1]
    strong[:-_COMPONENTS] = False
    scores = (directions[:, strong] / np.sqrt(energy[strong])).T @ flat
    found = np.empty_like(lost)
    for band, target in zip(lost, found, strict=True):
        values = band.ravel().astype(np.float64)
        values -= (mean := values.mean())
        shares = scores @ values / values.size
        shares[np.abs(shares) < _CLEARLY * values.std() / np.sqrt(values.size)] = 0.0
        target[...] = (mean + shares @ scores).reshape(band.shape)
    return found


def bad_bands(
    cube: Shaped[np.ndarray, "bands height width"], mask: Bool[np.ndarray, "height width"] | None = None
) -> Bool[np.ndarray, " bands"]:
    """Bands that the other bands know nothing about: dead ones, and those where noise drowns the scene.

    Each band is regressed on the others over all pixels. It is bad if it is constant, or if the share of its variance
    that stays unexplained is above 0.45 and above twice the median share of the cube (equal noise on every
    band makes none of them an outlier). Bands unexplained by more than half the threshold do not serve as regressors,
    found in a few rounds, so that neighbouring bad bands cannot vouch for each other.

    Args:
        cube: Noisy cube, any real type. At least 3 bands, and more pixels than bands, or nothing can be said and only
            constant bands are reported.
        mask: True where a pixel holds data; None: everywhere.

    Returns:
        True for bad bands.

    Raises:
        ValueError: If the cube is not three-dimensional, not real, too small, or has non-finite values.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> cube = np.linspace(1.0, 2.0, 6)[:, None, None] * rng.random((20, 30)) + rng.normal(0, 0.02, (6, 20, 30))
        >>> cube[3] = rng.random((20, 30))
        >>> np.flatnonzero(bad_bands(cube))
        array([3])
    """
    check_cube(cube if mask is None else np.where(mask, cube, 0))
    pixels = (cube.reshape(len(cube), -1) if mask is None else cube[:, mask]).astype(np.float64)
    bad: np.ndarray = pixels.max(axis=1) == pixels.min(axis=1)
    pixels -= pixels.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(pixels, axis=1)
    alive = np.flatnonzero(~bad)
    if len(alive) < 3 or pixels.shape[1] <= len(alive):
        return bad
    spectra = pixels[alive] / norms[alive, None]
    share = _unexplained_shares(spectra @ spectra.T, _UNEXPLAINED / 2.0)
    bad[alive] = (share > _UNEXPLAINED) & (share > _OUTLIER * np.median(share))
    return bad


class Apart(NamedTuple):
    """Bands that share nothing with the others (:func:`bands_apart`).

    Attributes:
        pattern: True for bands with a pattern of their own: nothing but stripes, or another scene. Each takes a
            direction of the spectra for itself, and pushes out what others share.
        noise: True for bands of nothing but noise.
    """

    pattern: Bool[np.ndarray, " bands"]
    noise: Bool[np.ndarray, " bands"]


def bands_apart(cube: Shaped[np.ndarray, "bands height width"]) -> Apart:
    """Bands that no regression on the others explains. None in small cubes, and where most bands are so.

    Args:
        cube: Noisy cube, any real type.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> cube = np.linspace(1, 2, 33)[:, None, None] * rng.random((40, 30)) + rng.normal(0, 0.02, (33, 40, 30))
        >>> cube[3], cube[5] = rng.random(30), rng.random((40, 30))
        >>> [np.flatnonzero(bands).tolist() for bands in bands_apart(cube)]
        [[3], [5]]
    """
    none = np.zeros(len(cube), np.bool_)
    if len(cube) < _FEWEST_ALIKE or cube[0].size < _PIXELS_A_BAND * len(cube) or min(cube.shape[1:]) < 2:
        return Apart(none, none)
    flat = cube.reshape(len(cube), -1)
    flat = flat[:, :: flat.shape[1] // SAMPLE | 1].astype(np.float64)
    flat -= flat.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    flat /= np.maximum(norms, np.finfo(np.float64).tiny)
    correlation = flat @ flat.T
    # on all others, trusted or not: weak bands explain each other
    share = 1.0 / np.diag(np.linalg.inv(correlation + RIDGE * np.eye(len(cube))))
    np.fill_diagonal(correlation, 0.0)
    apart = (share > _ALONE) & (np.abs(correlation).max(axis=1) < _UNLIKE) & (norms[:, 0] > 0)
    if len(cube) - apart.sum() < _FEWEST_ALIKE or apart.mean() >= _MOST_APART:
        return Apart(none, none)
    alike = np.zeros(len(cube))
    for band in np.flatnonzero(apart):
        above = np.sign(cube[band] - np.median(cube[band]).astype(cube.dtype)).astype(np.float32)
        alike[band] = max((above[1:] * above[:-1]).mean(), (above[:, 1:] * above[:, :-1]).mean())
    by_chance = (len(cube) + _CLEARLY * np.sqrt(2 * len(cube))) / flat.shape[1]  # share that a regression explains
    strong = np.array([0.0 if not a else band.std(dtype=np.float64) for a, band in zip(apart, cube, strict=True)])
    strong = strong > _STRONG * noise_level(cube)  # a weak pattern does no harm
    return Apart(apart & strong & (alike > _PATTERN), apart & (alike < _NO_PATTERN) & (share > 1 - by_chance))


def _unexplained_shares(correlation: np.ndarray, limit: float) -> np.ndarray:
    """Share of each band's variance (0-1) that a regression on the trusted other bands leaves.

    Bands above ``limit`` are not trusted in the next round.
    """
    bands = len(correlation)
    regularised = correlation + RIDGE * np.eye(bands)
    trusted = np.ones(bands, dtype=bool)
    share = np.ones(bands)
    for _ in range(5):
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
