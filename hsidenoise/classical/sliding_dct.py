"""Sliding-window DCT: an image filter close to BM3D in quality at a tenth of its cost, and without its licence.

Every 8x8 block, at every pixel, is taken into the cosine transform. A first pass sets the coefficients within the
noise to zero, a second one weights them by what the first left (an empirical Wiener filter); each block votes on its
pixels with the more weight the fewer coefficients it needed.

References:
    Yaroslavsky et al., "Transform domain image restoration methods: review, comparison and interpretation", 2001.
    doi:10.1117/12.424970
    The two passes and the weights: Dabov et al., "Image denoising by sparse 3-D transform-domain collaborative
    filtering", IEEE TIP 2007. doi:10.1109/TIP.2007.901238
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32

from hsidenoise.signal.pilot_filter import cosine_basis

_BLOCK = 8
_THRESHOLD = 3.0  # times sigma; chosen on cave/validation


def denoise_dct(images: Float32[np.ndarray, "images height width"]) -> Float32[np.ndarray, "images height width"]:
    """Denoise images by thresholding and Wiener-filtering the cosine transform of all their 8x8 blocks.

    Args:
        images: Images with Gaussian noise of standard deviation 1 (divide by sigma first), of any size.

    Returns:
        Denoised images. They are computed one by one: memory for 64 coefficients per pixel of one image.

    Example:
        >>> noisy = np.random.default_rng(0).normal(size=(1, 20, 30)).astype(np.float32)
        >>> bool(denoise_dct(noisy).std() < 0.2)
        True
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
