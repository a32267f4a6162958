"""Structural similarity of single images, in the three windows and normalisations that the literature uses.

:func:`hsidenoise.metrics.functional.ssim` is the door to it, with checks, examples and the mean over bands.

References:
    Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP 2004.
    doi:10.1109/TIP.2003.819861
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hsidenoise.metrics.protocols import Normalisation, Window

_K1, _K2 = 0.01, 0.03  # Wang et al. 2004, section III-C
_UNIFORM_SIDE = 7  # the default of skimage.metrics.structural_similarity
_GAUSSIAN_SIGMA = 1.5  # Wang et al. 2004: an 11x11 Gaussian window of 1.5 pixels
_GAUSSIAN_SIDE = 11


def ssim_of_images(
    x: Float[Tensor, "*batch height width"],
    y: Float[Tensor, "*batch height width"],
    data_range: float,
    window: Window,
    norm: Normalisation,
    mask: Bool[Tensor, "height width"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Structural similarity of every pair of images.

    Args:
        x: Images.
        y: Images to compare with, in the same unit.
        data_range: Largest minus smallest possible value, > 0.
        window: "uniform" (7x7), "gaussian" (11x11, sigma 1.5) or "band" (one window, the whole image).
        norm: Divisor of variances and covariance: "sample" (n - 1), "population" (n) or "mixed" (n and n - 1).
        mask: Pixels that count: a window that touches another one is left out. All if None.

    Raises:
        ValueError: If the window is unknown, or larger than the images, or none is left.
    """
    keep = None
    if window == "band" and mask is not None:
        x, y = (image[..., mask][..., None] for image in (x, y))
    if window == "band":
        count = x.shape[-2] * x.shape[-1]
        mean_x, mean_y = x.mean(dim=(-2, -1), keepdim=True), y.mean(dim=(-2, -1), keepdim=True)
        var_x = (x - mean_x).square().mean(dim=(-2, -1), keepdim=True)
        var_y = (y - mean_y).square().mean(dim=(-2, -1), keepdim=True)
        cov = ((x - mean_x) * (y - mean_y)).mean(dim=(-2, -1), keepdim=True)
    else:
        weights = _window_weights(window)
        count = len(weights) ** 2
        if min(x.shape[-2:]) < len(weights):
            raise ValueError(
                f"an image of {x.shape[-2]}x{x.shape[-1]} is smaller than the {len(weights)}x{len(weights)} window of "
                "SSIM: pass a larger crop, or take protocol 'sert', which has no window"
            )
        if mask is not None:
            x, y = (torch.where(mask, image, 0.0) for image in (x, y))
            keep = _smooth((~mask).to(x.dtype), weights) == 0  # no invalid pixel has a share in the window
            if not keep.any():
                raise ValueError(f"no SSIM window of {len(weights)}x{len(weights)} pixels lies in the valid pixels")
        mean_x, mean_y = _smooth(x, weights), _smooth(y, weights)
        var_x = _smooth(x * x, weights) - mean_x.square()
        var_y = _smooth(y * y, weights) - mean_y.square()
        cov = _smooth(x * y, weights) - mean_x * mean_y
    unbiased = count / max(count - 1, 1)
    if norm == "sample":
        var_x, var_y = var_x * unbiased, var_y * unbiased
    if norm in ("sample", "mixed"):
        cov = cov * unbiased
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    similarity = ((2.0 * mean_x * mean_y + c1) * (2.0 * cov + c2)) / (
        (mean_x.square() + mean_y.square() + c1) * (var_x + var_y + c2)
    )
    return similarity.mean(dim=(-2, -1)) if keep is None else similarity[..., keep].mean(dim=-1)


def _window_weights(window: Window) -> list[float]:
    """Weights of a separable window along one side; they sum to one."""
    if window == "uniform":
        return [1.0 / _UNIFORM_SIDE] * _UNIFORM_SIDE
    if window != "gaussian":
        raise ValueError(f"unknown SSIM window {window!r}: choose one of uniform, gaussian, band")
    centre = _GAUSSIAN_SIDE // 2
    bell = [math.exp(-0.5 * ((i - centre) / _GAUSSIAN_SIGMA) ** 2) for i in range(_GAUSSIAN_SIDE)]
    return [value / sum(bell) for value in bell]


def _smooth(image: Tensor, weights: list[float]) -> Tensor:
    """Weighted mean in a sliding window, along height, then width, without the border.

    Sums of slices, not a convolution: autocast and TF32 would round that one to 8-11 bits.
    """
    for dim in (-2, -1):
        length = image.shape[dim] - len(weights) + 1
        image = sum(
            (image.narrow(dim, start, length) * weight for start, weight in enumerate(weights)),
            start=image.new_zeros(()),
        )
    return image
