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
# PSNR: 39.16 dB with the filters of the planes and 39.76 dB behind this one, which has them as its guide; 39.71 and
# 40.10 with a network between them.

PATCH = 3
"""Side of a patch of four planes and more. 4, in groups of 64, loses 0.02 dB in twice the time."""

VALUES = 36
"""Values of a patch, at least: of fewer planes its side is longer. One to three bands of three of the scenes at
gaussian-5, gaussian-30 and mixture, behind hcanet-bra: 25 loses 0.06 dB."""

GAP = 1
"""Pixels between one patch that a group is sought for and the next. What is left out is in the groups of others, but
for a hundredth of the pixels, which stay as the guide has them. 0 gains 0.02 dB in half more time, 2 loses 0.07."""

TOGETHER = 8
"""Patches, down and across, that seek their groups in the same places, all of them and those around. 4 loses 0.02 dB,
12 is as good."""

REACH = 8
"""Pixels around these patches within which a group is sought, each way. 6 loses 0.005 dB, 12 gains 0.005."""

GROUP = 40
"""Patches of a group. 48 is as good, 64 loses 0.02 dB, 32 loses 0.01 dB, 24 loses 0.05."""

GUIDED = 0.75
"""Share of the guide in the mean of a group. 1 loses 0.08 dB; 0.5 loses 0.01, and 0.05 on CAVE: where the scene is flat
and noise is high, a group has little to say."""

GUIDE_SHARE = 0.1
"""Share of the guide in the result, where the filters are the guide. 0 loses 0.02 dB on CAVE, gains 0.03 elsewhere."""

_LEADING = 4  # planes by which patches are compared
_FEWEST = 32  # patches of a group that say something of its covariance
_AT_ONCE = 1 << 20  # values of groups at a time, about
_EXACT = 100.0  # noise levels of a value off its group, from which single precision will not do


@torch.no_grad()
def non_local_bayes(
    planes: Float[Tensor, "planes height width"],
    guide: Float[Tensor, "planes height width"],
    share: float = GUIDE_SHARE,
    gap: int = GAP,
) -> Float[Tensor, "planes height width"]:
    """Wiener-filter groups of patches that look alike, each with the covariance that a guide has there.

    Args:
        planes: Images with Gaussian noise of standard deviation 1, those with most of the scene last.
        guide: What is known of them without noise.
        share: Share of the guide in the result.
        gap: Pixels between one patch that a group is sought for and the next.

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
    down, across = (_starts(length, patch, gap) for length in (height, width))
    # in a corner, a quarter of the places around are inside
    group = min(GROUP, (min(REACH, height - patch) + 1) * (min(REACH, width - patch) + 1))
    if min(height, width) < patch or group < _FEWEST:
        return guide
    total, votes = torch.zeros_like(planes), torch.zeros_like(planes[:1])
    for first in range(0, len(down), TOGETHER):
        tops = down[first : first + TOGETHER]
        top = max(0, tops[0] - REACH)
        strip = slice(top, min(height, tops[-1] + patch + REACH))
        # (places, values), those of the leading planes last
        noisy, known = (F.unfold(images[None, :, strip], patch)[0].T.contiguous() for images in (planes, guide))
        compared = known[:, -_LEADING * patch**2 :]
        compared = compared.reshape(-1, width - patch + 1, compared.shape[1])
        inside = [row - top for row in tops]
        members = torch.cat(
            [_alike(compared, inside, across[at : at + TOGETHER], group) for at in range(0, len(across), TOGETHER)]
        )
        found, weight = torch.zeros_like(noisy), torch.zeros_like(noisy[:, 0])
        for part in torch.split(members, max(1, _AT_ONCE // (group * noisy.shape[1]))):
            places = part.flatten()
            shrunk, certain = _shrink(
                *(each.index_select(0, places).reshape(*part.shape, -1) for each in (noisy, known))
            )
            found.index_add_(0, places, (shrunk * certain[:, None, None]).flatten(0, 1))
            weight.index_add_(0, places, certain.repeat_interleave(group))
        size = (strip.stop - strip.start, width)
        total[:, strip] += F.fold(found.T[None], size, patch)[0]
        votes[:, strip] += F.fold(weight.expand(1, patch**2, -1), size, patch)[0]
    return torch.where(votes > 0, (total / votes).lerp(guide, share), guide)


def _starts(length: int, patch: int, gap: int) -> list[int]:
    """Where the patches that a group is sought for begin along an axis, from its beginning to its end."""
    last = max(0, length - patch)
    return [*range(0, last, patch + gap), last]


def _alike(
    compared: Float[Tensor, "rows columns values"], tops: list[int], lefts: list[int], count: int
) -> Int64[Tensor, "patches group"]:
    """The patches around some that are most like each of them, by the number of their place."""
    width = compared.shape[1]
    left, right = max(0, lefts[0] - REACH), min(width, lefts[-1] + REACH + 1)
    around = compared[:, left:right]
    # small numbers: their squares are subtracted from each other
    around = (around - around.mean((0, 1))).flatten(0, 1)
    here = torch.tensor([top * (right - left) + at - left for top in tops for at in lefts], device=around.device)
    apart = torch.addmm(around.square().sum(1), around[here], around.T, alpha=-2)
    apart[torch.arange(len(here), device=here.device), here] = -torch.inf  # itself, where many are the same
    nearest = apart.topk(count, largest=False, sorted=False).indices
    return nearest // (right - left) * width + nearest % (right - left) + left


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
    root = torch.linalg.solve_triangular(torch.linalg.cholesky(energy + count * one), one, upper=False)
    inverse = root.mT @ root  # faster than cholesky_inverse
    gain = one - count * inverse
    shrunk = apart @ gain if short else (apart @ scene.mT) @ (inverse @ scene)
    certain = (gain.square().sum((1, 2)) / count + 1.0).reciprocal()
    return shrunk.to(mean) + mean.lerp(guided, GUIDED), certain.to(mean)
