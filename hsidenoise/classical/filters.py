"""Filters of images, and the planes of a cube that they are for: total variation, a sliding-window DCT, MNF.

The spectra of a scene fill a few dimensions, noise fills all of them. Divided by the noise level of each band, noise
has variance 1 in every direction, so that the directions that hold more than that are the scene's. Their planes
(eigen-images) keep noise of variance 1 and are denoised as images, each alone, by a filter that is made for that level.

The DCT is close to BM3D in quality at a tenth of its cost, and without its licence. Of every 8x8 block, at every pixel,
a first pass sets the coefficients within the noise to zero, a second one weights them by what the first left (an
empirical Wiener filter); each block votes on its pixels with the more weight the fewer coefficients it needed.

References:
    FastHyDe: Zhuang and Bioucas-Dias, "Fast Hyperspectral Image Denoising and Inpainting Based on Low-Rank and Sparse
    Representations", IEEE JSTARS 2018. doi:10.1109/JSTARS.2018.2796570
    MNF: Green et al., "A transformation for ordering multispectral data in terms of image quality", IEEE TGRS 1988.
    doi:10.1109/36.3001
    DCT: Yaroslavsky et al., "Transform domain image restoration methods: review, comparison and interpretation", 2001.
    doi:10.1117/12.424970
    Its two passes and weights: Dabov et al., "Image denoising by sparse 3-D transform-domain collaborative filtering",
    IEEE TIP 2007. doi:10.1109/TIP.2007.901238
    ROF: Rudin, Osher and Fatemi, "Nonlinear total variation based noise removal algorithms", Physica D 1992.
    doi:10.1016/0167-2789(92)90242-F
    Beck and Teboulle, "Fast Gradient-Based Algorithms for Constrained Total Variation Image Denoising and Deblurring
    Problems", IEEE TIP 2009. doi:10.1109/TIP.2009.2028250
    Chambolle and Pock, "A First-Order Primal-Dual Algorithm for Convex Problems with Applications to Imaging",
    J. Math. Imaging Vis. 2011. doi:10.1007/s10851-010-0251-1
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from hsidenoise.signal.noise_level import CLASSICAL_FLOOR, haar_details, noise_sigma, spectral_covariance
from hsidenoise.signal.pilot_filter import cosine_basis

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


# In units of one standard deviation of the noise; chosen on cave/validation.
_IN_SPACE = 0.45
_IN_SPECTRUM = 0.9
_SPARSE = 1.5

_BLOCK = 8
_THRESHOLD = 3.0  # of the DCT, times sigma; chosen on cave/validation
_NORM_SQUARED = 12.0  # bound of the squared norm of differences along three axes


def denoise_tv(
    images: Float32[np.ndarray, "images height width"],
    weight: float | Float[np.ndarray, " images"],
    *,
    rounds: int = 60,
) -> Float32[np.ndarray, "images height width"]:
    """Images of least ``0.5 * sum (u - image)^2 + weight * TV(u)``, TV isotropic, neither coupled to the other.

    Fast gradient projection on the dual problem.

    Args:
        images: Noisy images of any size.
        weight: In the unit of the images, 0 or more, one or one per image; about the noise level for removing noise.
        rounds: Iterations, at least 1; 60 leave an error below a hundredth of the weight.

    Raises:
        ValueError: If a weight is negative or there is less than one round.
    """
    weights = np.asarray(weight, dtype=np.float32).reshape(-1, 1, 1)
    if (weights < 0).any() or rounds < 1:
        raise ValueError(f"total variation: weight {weights.min():g}, {rounds} rounds; pass 0 or more, and 1 or more")
    # a weight of 0 changes nothing, whatever the dual variables are; it must only not divide
    step = 1.0 / (8.0 * np.maximum(weights, 1e-12))
    vertical, horizontal = np.zeros_like(images), np.zeros_like(images)
    lead_v, lead_h = vertical, horizontal
    momentum = 1.0
    for _ in range(rounds):
        estimate = _primal(images, lead_v, lead_h, weights)
        next_v, next_h = lead_v.copy(), lead_h.copy()
        next_v[:, :-1] += step * (estimate[:, 1:] - estimate[:, :-1])
        next_h[:, :, :-1] += step * (estimate[:, :, 1:] - estimate[:, :, :-1])
        length = np.maximum(np.sqrt(next_v * next_v + next_h * next_h), 1.0)
        next_v /= length
        next_h /= length
        following = (1.0 + np.sqrt(1.0 + 4.0 * momentum * momentum)) / 2.0
        ratio = np.float32((momentum - 1.0) / following)
        lead_v = next_v + ratio * (next_v - vertical)
        lead_h = next_h + ratio * (next_h - horizontal)
        vertical, horizontal, momentum = next_v, next_h, following
    return _primal(images, vertical, horizontal, weights)


def _primal(images: np.ndarray, vertical: np.ndarray, horizontal: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Image that belongs to dual variables: the input plus the weighted divergence."""
    result = vertical + horizontal
    result[:, 1:] -= vertical[:, :-1]
    result[:, :, 1:] -= horizontal[:, :, :-1]
    result *= weights
    result += images
    return np.asarray(result)


def denoise_tv_3d(
    noisy: Float32[np.ndarray, "bands height width"],
    sigma: Float[np.ndarray, " bands"],
    *,
    in_space: float = _IN_SPACE,
    in_spectrum: float = _IN_SPECTRUM,
    sparse: float = _SPARSE,
    rounds: int = 80,
) -> Float32[np.ndarray, "bands height width"]:
    """Split a cube into a piecewise smooth one, a sparse one and Gaussian noise; return the first.

    Minimises ``sum 0.5 ((noisy - x - s) / sigma_b)^2 + sparse |s| / sigma_b + (in_space TV(x) + in_spectrum |x_b+1 -
    x_b|) / sigma`` over x and s, sigma being the median level, by a primal-dual method. The sparse part is eliminated:
    with it at its best, the misfit is Huber's. As LRTDTV and E-3DTV, it takes stripes, dead columns and impulses as
    sparse; unlike them it asks no low rank.

    Args:
        noisy: Noisy cube of any size.
        sigma: Noise level of each band, in the unit of the cube, above 0.
        in_space: Weight of the variation along rows and columns, in noise levels.
        in_spectrum: Weight of the variation along bands, in noise levels.
        sparse: Misfit, in noise levels, beyond which a value counts as an outlier; above 0.
        rounds: Iterations, at least 1.

    Raises:
        ValueError: If a level or ``sparse`` is not above 0, a weight is negative or there is less than one round.

    References:
        Wang et al., IEEE JSTARS 2018. doi:10.1109/JSTARS.2017.2779539
        Peng et al., "Enhanced 3DTV Regularization and Its Applications on HSI Denoising and Compressed Sensing", IEEE
        TIP 2020. doi:10.1109/TIP.2020.3007840
    """
    levels = np.asarray(sigma, dtype=np.float64)
    if (levels <= 0).any() or sparse <= 0 or min(in_space, in_spectrum) < 0 or rounds < 1:
        raise ValueError("total variation: levels and sparse must be above 0, weights 0 or more, rounds 1 or more")
    unit = float(np.median(levels))
    data = torch.from_numpy(noisy / np.float32(unit))
    level = torch.from_numpy((levels / unit).astype(np.float32))[:, None, None]
    with torch.no_grad():
        result = _primal_dual(data, level, in_space, in_spectrum, sparse, rounds)
    return result.mul_(unit).numpy()


def _primal_dual(
    data: Tensor, level: Tensor, in_space: float, in_spectrum: float, sparse: float, rounds: int
) -> Tensor:
    """Chambolle and Pock's iteration with constant steps; noise of the median band has variance 1."""
    step = 0.5
    dual_step = 1.0 / (_NORM_SQUARED * step)
    pull = step / level.square()  # of the quadratic misfit
    estimate, lead = data.clone(), data.clone()
    across, down, along = torch.zeros_like(data), torch.zeros_like(data), torch.zeros_like(data)
    for _ in range(rounds):
        along[:-1].add_(lead[1:] - lead[:-1], alpha=dual_step)
        down[:, :-1].add_(lead[:, 1:] - lead[:, :-1], alpha=dual_step)
        across[:, :, :-1].add_(lead[:, :, 1:] - lead[:, :, :-1], alpha=dual_step)
        along.clamp_(-in_spectrum, in_spectrum)
        excess = (down.square() + across.square()).sqrt_().div_(max(in_space, 1e-12)).clamp_min_(1.0)
        down.div_(excess)
        across.div_(excess)
        target = estimate + step * _divergence(along, down, across)
        # nearest minimiser of Huber's misfit: quadratic within `sparse` levels of the data, linear beyond
        offset = (target - data) / (1.0 + pull)
        far = sparse * level
        linear = (target - data) - torch.sign(target - data) * (pull * far)
        following = data + torch.where(offset.abs() <= far, offset, linear)
        lead = 2.0 * following - estimate
        estimate = following
    return estimate


def _divergence(along: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Minus the adjoint of the three differences."""
    result = along + down
    result += across
    result[1:] -= along[:-1]
    result[:, 1:] -= down[:, :-1]
    result[:, :, 1:] -= across[:, :, :-1]
    return result


def denoise_dct(images: Float32[np.ndarray, "images height width"]) -> Float32[np.ndarray, "images height width"]:
    """Denoise images by thresholding and Wiener-filtering the cosine transform of all their 8x8 blocks.

    Args:
        images: Images with Gaussian noise of standard deviation 1 (divide by sigma first), of any size.

    Returns:
        Denoised images. They are computed one by one: memory for 64 coefficients per pixel of one image.
    """
    cosines = cosine_basis(_BLOCK)
    blocks = np.einsum("ui,vj->uvij", cosines, cosines).reshape(_BLOCK**2, 1, _BLOCK, _BLOCK)
    transform = torch.from_numpy(blocks.astype(np.float32))
    denoised = np.empty_like(images)
    for source, target in zip(images, denoised, strict=True):
        # symmetric, not reflected: it works for images smaller than the border, too
        padded = np.pad(source, _BLOCK - 1, mode="symmetric")
        target[:] = _denoise(torch.from_numpy(padded)[None, None], transform)
    return denoised


def _denoise(padded: torch.Tensor, transform: torch.Tensor) -> np.ndarray:
    noisy = F.conv2d(padded, transform)  # (1, frequencies, rows, columns)
    kept = (noisy.abs() > _THRESHOLD).to(noisy.dtype)
    kept[:, 0] = 1.0  # the mean of a block is never noise alone
    first = _blend(noisy * kept, 1.0 / kept.sum(dim=1, keepdim=True), transform)
    energy = F.conv2d(first, transform).square()
    gain = energy / (energy + 1.0)
    gain[:, 0] = 1.0
    second = _blend(noisy * gain, 1.0 / gain.square().sum(dim=1, keepdim=True), transform)
    border = _BLOCK - 1
    return second[0, 0, border:-border, border:-border].numpy()


def _blend(coefficients: torch.Tensor, weight: torch.Tensor, transform: torch.Tensor) -> torch.Tensor:
    """Weighted mean of all blocks at each pixel."""
    total = F.conv_transpose2d(coefficients * weight, transform)
    return total / F.conv_transpose2d(weight, torch.ones_like(transform[:1]))
