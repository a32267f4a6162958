"""Denoise planes by patches that look alike, wherever they are: non-local Bayes.

A block of a filter in the cosine transform knows its neighbourhood alone. A scene repeats itself: for each small patch,
the patches around it that are most like it in a guide form a group, with a mean and a covariance that the guide says;
what the noisy planes have there is shrunk by the Wiener filter of that covariance, over pixels and planes at once.

References:
    Lebrun, Buades and Morel, "A nonlocal Bayesian image denoising algorithm", SIAM J. Imaging Sciences 6(3), 2013.
    doi:10.1137/120874989 (second step, with the result of a first as the guide)
    Zhuang and Bioucas-Dias, "Fast hyperspectral image denoising and inpainting based on low-rank and sparse
    representations", IEEE JSTARS 11(3), 2018. doi:10.1109/JSTARS.2018.2796570 (planes of a noise-whitened subspace)
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

# Chosen on pavia_crop, MUUFL, superballs and chart_and_stuffed_toy (128 x 128) at gaussian-10, 30, 70 and mixture, mean
# PSNR: 39.16 dB with the filters of the planes and 39.79 dB behind this one, which has them as its guide; 39.71 and
# 40.08 with hcanet-bra.

PATCH = 3
"""Side of a patch of four planes and more. 4, in groups of 64, loses 0.03 dB on MUUFL and pavia_crop and gains 0.02 on
the others."""

VALUES = 36
"""Values of a patch, at least: of fewer planes its side is longer. One to three bands of three of the scenes at
gaussian-5, gaussian-30 and mixture, behind hcanet-bra: 36.13 dB, 35.95 with sides of 3, 35.96 without this filter."""

STRIDE = 4
"""Pixels from one patch that a group is sought for to the next, at most; no more than its side."""

REACH = 10
"""Pixels within which a group is sought, each way. 7 loses 0.04 dB, 12 gains 0.01."""

GROUP = 48
"""Patches of a group. 64 is as good, 80 loses 0.02 dB, 16 loses 0.6."""

GUIDED = 0.75
"""Share of the guide in the mean of a group. 1 loses 0.07 dB, 0.5 on 256 x 256 pixels of CAVE 0.17: where the scene is
flat and noise is high, a group has little to say."""

GUIDE_SHARE = 0.1
"""Share of the guide in the result. 0 loses 0.03 dB on CAVE and gains 0.01 elsewhere."""

_LEADING = 4  # planes by which patches are compared
_FEWEST = 32  # patches of a group that say something of its covariance
_ROWS = 8  # of patches at a time: bounds the memory
_AT_ONCE = 1 << 20  # values of groups at a time, about
_EXACT = 100.0  # noise levels of a value off its group, from which single precision will not do


@torch.no_grad()
def non_local_bayes(
    planes: Float[Tensor, "planes height width"], guide: Float[Tensor, "planes height width"]
) -> Float[Tensor, "planes height width"]:
    """Wiener-filter groups of patches that look alike, each with the covariance that a guide has there.

    Args:
        planes: Images with Gaussian noise of standard deviation 1, those with most of the scene last.
        guide: What is known of them without noise.

    Returns:
        Denoised images; the guide itself if they are too small for a group.

    Example:
        >>> scene = torch.sin(torch.arange(60.0) / 3).expand(2, 50, 60) * 5
        >>> noise = torch.randn(2, 50, 60, generator=torch.Generator().manual_seed(0))
        >>> bool((non_local_bayes(scene + noise, scene + 0.3 * noise) - scene).std() < 0.3)
        True
    """
    count, height, width = planes.shape
    patch = max(PATCH, math.ceil(math.sqrt(VALUES / count)))
    down, across = (_starts(length, patch, planes.device) for length in (height, width))
    # in a corner, a quarter of the places around are inside
    group = min(GROUP, (min(REACH, height - patch) + 1) * (min(REACH, width - patch) + 1))
    if min(height, width) < patch or group < _FEWEST:
        return guide
    total, votes = torch.zeros_like(planes), torch.zeros_like(planes[:1])
    for first in range(0, len(down), _ROWS):
        tops = down[first : first + _ROWS]
        top = max(0, int(tops[0]) - REACH)
        strip = slice(top, min(height, int(tops[-1]) + patch + REACH))
        members = _alike(guide[-_LEADING:, strip], tops - top, across, patch, group)
        noisy, known = (F.unfold(images[None, :, strip], patch)[0].T.contiguous() for images in (planes, guide))
        found, weight = torch.zeros_like(noisy), torch.zeros_like(noisy[:, 0])
        for part in torch.split(members, max(1, _AT_ONCE // (group * noisy.shape[1]))):
            shrunk, certain = _shrink(noisy[part], known[part])
            found.index_add_(0, part.flatten(), (shrunk * certain[:, None, None]).flatten(0, 1))
            weight.index_add_(0, part.flatten(), certain[:, None].expand_as(part).flatten())
        size = (strip.stop - strip.start, width)
        total[:, strip] += F.fold(found.T[None], size, patch)[0]
        votes[:, strip] += F.fold(weight.expand(1, patch**2, -1), size, patch)[0]
    return (total / votes).lerp(guide, GUIDE_SHARE)


def _starts(length: int, patch: int, device: torch.device) -> Int64[Tensor, " patches"]:
    """Where patches begin along an axis, so that they cover all of it."""
    last = max(0, length - patch)
    return torch.tensor([*range(0, last, min(patch, STRIDE)), last], device=device)


def _alike(
    guide: Float[Tensor, "planes height width"],
    tops: Int64[Tensor, " down"],
    lefts: Int64[Tensor, " across"],
    patch: int,
    count: int,
) -> Int64[Tensor, "patches group"]:
    """The patches around each that are most like it, by the number of their place in the image."""
    width = guide.shape[2]
    around = F.pad(guide, (REACH, REACH, REACH, REACH), value=torch.inf)  # no patch is like one that reaches out
    side = 2 * REACH + 1
    distances = []
    rows = (tops[:, None] + torch.arange(patch, device=tops.device)).flatten()
    columns = (lefts[:, None] + torch.arange(patch, device=lefts.device)).flatten()
    here = guide[:, rows][:, :, columns, None]
    for row in range(side):
        there = around[:, rows + row].unfold(2, side, 1)[:, :, columns]  # (planes, rows, columns, side)
        apart = (there - here).square_().sum(0)
        distances.append(apart.reshape(len(tops), patch, len(lefts), patch, side).sum((1, 3)))
    apart = torch.stack(distances, 2).flatten(2).flatten(0, 1)
    apart[:, apart.shape[1] // 2] = -1.0  # itself, where many are the same: each pixel is to be in a group
    nearest = apart.topk(count, largest=False, sorted=False).indices
    down = tops.repeat_interleave(len(lefts))[:, None] + nearest // side - REACH
    right = lefts.repeat(len(tops))[:, None] + nearest % side - REACH
    return down * (width - patch + 1) + right


def _shrink(
    noisy: Float[Tensor, "patches group values"], known: Float[Tensor, "patches group values"]
) -> tuple[Float[Tensor, "patches group values"], Float[Tensor, " patches"]]:
    """Wiener filter of each group, and how certain its result is."""
    count, values = known.shape[1:]
    mean, guided = noisy.mean(1, keepdim=True), known.mean(1, keepdim=True)
    apart, scene = noisy - mean, known - guided
    if scene.abs().amax() > _EXACT:  # single precision has no inverse there
        apart, scene = apart.double(), scene.double()
    short = values <= count  # the smaller of two forms of one matrix
    energy = scene.mT @ scene if short else scene @ scene.mT
    one = torch.eye(energy.shape[1], dtype=energy.dtype, device=energy.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(energy + count * one))
    gain = one - count * inverse
    shrunk = apart @ gain if short else (apart @ scene.mT) @ (inverse @ scene)
    certain = (gain.square().sum((1, 2)) / count + 1.0).reciprocal()
    return shrunk.to(mean) + mean.lerp(guided, GUIDED), certain.to(mean)
