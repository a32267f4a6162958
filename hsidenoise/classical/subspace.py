"""The subspace of a cube's spectra: where the signal lies once the noise of all bands is made equal.

The spectra of a scene fill a few dimensions, noise fills all of them. Divided by the noise level of each band, noise
has variance 1 in every direction, so that the directions that hold more than that are the scene's. Their planes
(eigen-images) keep noise of variance 1 and are denoised as images, each alone, by a filter that is made for that level.

References:
    FastHyDe: Zhuang and Bioucas-Dias, "Fast Hyperspectral Image Denoising and Inpainting Based on Low-Rank and Sparse
    Representations", IEEE JSTARS 2018. doi:10.1109/JSTARS.2018.2796570
    MNF: Green et al., "A transformation for ordering multispectral data in terms of image quality", IEEE TGRS 1988.
    doi:10.1109/36.3001
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64

from hsidenoise.signal.noise_level import CLASSICAL_FLOOR, haar_details, noise_sigma, spectral_covariance

#: Filter of images (images, height, width), each with Gaussian noise of standard deviation 1.
ImageFilter = Callable[[np.ndarray], np.ndarray]

_RANK_MARGIN = 0.015  # energy above the edge of pure noise that makes a plane signal; chosen on cave/validation
_WORTH_KEEPING = 2.0  # a plane kept whole costs 1 of noise and saves energy - 1 of signal


@dataclass(frozen=True)
class Subspace:
    """Leading noise-whitened planes of a cube.

    Attributes:
        planes: Eigen-images, the most energetic first, each with noise of variance 1.
        basis: What one unit of each plane is in the cube's bands and unit.
        mean: Mean spectrum, which is not part of the planes.
    """

    planes: Float32[np.ndarray, "rank height width"]
    basis: Float64[np.ndarray, "bands rank"]
    mean: Float64[np.ndarray, " bands"]

    def compose(self, planes: Float[np.ndarray, "rank height width"]) -> Float32[np.ndarray, "bands height width"]:
        """Cube that has these planes instead."""
        flat = self.basis.astype(np.float32) @ planes.reshape(len(planes), -1).astype(np.float32)
        flat += self.mean.astype(np.float32)[:, None]
        return flat.reshape(len(self.mean), *planes.shape[1:])


def sigma_per_band(
    noisy: Float32[np.ndarray, "bands height width"], sigma: float | Float[np.ndarray, " bands"] | None
) -> Float64[np.ndarray, " bands"]:
    """Noise level of every band, as told or estimated.

    Args:
        noisy: Noisy cube.
        sigma: One level for all bands or one per band, in the unit of the cube, 0 or more; None: :func:`noise_sigma`.

    Returns:
        Sigma per band, at least :data:`CLASSICAL_FLOOR`.

    Raises:
        ValueError: If a level is negative or not finite, or there is neither one nor as many as bands.
    """
    if sigma is None:
        return noise_sigma(noisy)
    told = np.asarray(sigma, dtype=np.float64)
    if told.shape not in ((), (len(noisy),)):
        raise ValueError(f"sigma of shape {told.shape}: pass one number, or one for each of the {len(noisy)} bands")
    if not np.isfinite(told).all() or (told < 0).any():
        raise ValueError("sigma must be finite and 0 or more, in the unit of the cube (50 / 255, not 50)")
    return np.maximum(np.broadcast_to(told, len(noisy)), CLASSICAL_FLOOR)


def whitened_subspace(noisy: Float32[np.ndarray, "bands height width"], sigma: Float[np.ndarray, " bands"]) -> Subspace:
    """Planes of a cube that hold more than noise of these levels does.

    Returns:
        At least one plane. The rank is the number of eigenvalues of the whitened covariance above the edge of those of
        pure noise, (1 + sqrt(bands / pixels))^2, and a margin.
    """
    bands, pixels = len(noisy), noisy[0].size
    mean = noisy.reshape(bands, -1).mean(axis=1, dtype=np.float64)
    energy, directions = np.linalg.eigh(spectral_covariance(noisy) / np.outer(sigma, sigma))
    energy, directions = energy[::-1], directions[:, ::-1]
    edge = (1.0 + np.sqrt(bands / pixels)) ** 2 + _RANK_MARGIN
    rank = max(1, int(np.count_nonzero(energy > edge)))
    chosen = directions[:, :rank]
    whitening = (chosen / np.asarray(sigma)[:, None]).T.astype(np.float32)
    planes = whitening @ (noisy.reshape(bands, -1) - mean.astype(np.float32)[:, None])
    return Subspace(planes.reshape(rank, *noisy.shape[1:]), chosen * np.asarray(sigma)[:, None], mean)


def denoise_planes(
    noisy: Float32[np.ndarray, "bands height width"],
    image_filter: ImageFilter,
    sigma: float | Float[np.ndarray, " bands"] | None = None,
) -> Float32[np.ndarray, "bands height width"]:
    """Denoise a cube plane by plane in its noise-whitened subspace.

    Args:
        noisy: Noisy cube on about [0, 1], at least 2x2 pixels.
        image_filter: Denoises (images, height, width) with noise of standard deviation 1.
        sigma: Noise level in the unit of the cube, one or one per band; None: estimated.
    """
    subspace = whitened_subspace(noisy, sigma_per_band(noisy, sigma))
    return subspace.compose(image_filter(subspace.planes))


def truncated_pca(
    noisy: Float32[np.ndarray, "bands height width"], sigma: float | Float[np.ndarray, " bands"] | None = None
) -> Float32[np.ndarray, "bands height width"]:
    """Keep the principal components that hold more signal than noise.

    Bands are not weighted: on bands of unequal noise the components mix them, which is what MNF is for.
    """
    levels = sigma_per_band(noisy, sigma)
    energy, directions = np.linalg.eigh(spectral_covariance(noisy))
    noise = np.square(levels) @ np.square(directions)
    kept = directions[:, energy > _WORTH_KEEPING * noise]
    return _project(noisy, kept @ kept.T)


def truncated_mnf(
    noisy: Float32[np.ndarray, "bands height width"], sigma: float | Float[np.ndarray, " bands"] | None = None
) -> Float32[np.ndarray, "bands height width"]:
    """Keep the minimum-noise-fraction components that hold more signal than noise.

    Args:
        noisy: Noisy cube on about [0, 1], at least 2x2 pixels.
        sigma: Noise level in the unit of the cube, one or one per band, of noise that is independent from band to band;
            None: the noise covariance is that of the diagonal differences of neighbouring pixels.
    """
    bands = len(noisy)
    if sigma is None:
        levels = sigma_per_band(noisy, None)
        detail = haar_details(noisy.mT).mT.reshape(bands, -1)
        noise = (detail @ detail.T / detail.shape[1]).astype(np.float64)
        noise += float(np.square(levels).min()) * 1e-3 * np.eye(bands)  # fewer details than bands leave it singular
    else:
        noise = np.diag(np.square(sigma_per_band(noisy, sigma)))
    variance, axes = np.linalg.eigh(noise)
    root = np.sqrt(np.maximum(variance, CLASSICAL_FLOOR**2 * 1e-3))
    whiten = (axes / root) @ axes.T
    restore = (axes * root) @ axes.T
    energy, directions = np.linalg.eigh(whiten @ spectral_covariance(noisy) @ whiten)
    kept = directions[:, energy > _WORTH_KEEPING]
    return _project(noisy, restore @ kept @ kept.T @ whiten)


def _project(cube: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Apply a (bands, bands) matrix to every spectrum's deviation from the mean."""
    flat = cube.reshape(len(cube), -1)
    mean = flat.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    return np.asarray(mean + matrix.astype(np.float32) @ (flat - mean)).reshape(cube.shape)
