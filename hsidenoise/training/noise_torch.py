"""The noise cases of :mod:`hsidenoise.noise.cases` on tensors, a batch at a time, on whatever device they are.

What is small is drawn where a patch is made: sigmas, columns, shares (:func:`draw_plan`, with the rules of the cases
themselves). What is as large as the patch, the Gaussian and the uniform numbers, is drawn on the device
(:func:`add_noise`). So only clean patches travel to a GPU. The noise has the distribution of the cases, not their
numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hsidenoise.noise.cases import NoiseCase

_ROUNDING = 1e-9  # of a share of the bands, as in hsidenoise.noise.cases


class NoisePlan(NamedTuple):
    """What a case does to one patch, or with a leading axis to a batch of them.

    Attributes:
        sigma: (bands) standard deviation of the Gaussian part, in the unit of the patch.
        offset: (bands, width) what is added to each column: stripes.
        alive: (bands, width) 0 for dead columns, else 1.
        share: (bands) share of the pixels that become 0 or 1.
    """

    sigma: Float[Tensor, "*batch bands"]
    offset: Float[Tensor, "*batch bands width"]
    alive: Float[Tensor, "*batch bands width"]
    share: Float[Tensor, "*batch bands"]


def draw_plan(case: NoiseCase, bands: int, width: int, rng: np.random.Generator) -> NoisePlan:
    """Draw what a case does to a patch.

    Args:
        case: Noise case.
        bands: Bands of the patch.
        width: Its columns.
        rng: Source of randomness.

    Example:
        >>> from hsidenoise.noise.cases import noise_case
        >>> plan = draw_plan(noise_case("deadline"), 6, 40, np.random.default_rng(0))
        >>> int((plan.alive == 0).any(dim=1).sum())
        2
    """
    sigma = (case.sigma.draw(bands, rng) / 255).astype(np.float32)
    # a picture of one row each: the rules for columns draw in them what they would in the patch
    offset, alive = np.zeros((bands, 1, width), dtype=np.float32), np.ones((bands, 1, width), dtype=np.float32)
    share = np.zeros(bands, dtype=np.float32)
    count = int(np.floor(bands * case.share + _ROUNDING))
    order, taken = rng.permutation(bands), 0
    for columns, picture in ((case.stripe, offset), (case.deadline, alive)):
        if columns is not None:
            columns.hit(picture, order[taken : taken + count], rng)
            taken += count
    if case.impulse is not None:
        hit = order[taken : taken + count]
        share[hit] = rng.choice(np.asarray(case.impulse.shares), size=len(hit))
    return NoisePlan(*(torch.from_numpy(part) for part in (sigma, offset[:, 0], alive[:, 0], share)))


def add_noise(
    clean: Float[Tensor, "batch bands height width"], plan: NoisePlan, generator: torch.Generator
) -> Float[Tensor, "batch bands height width"]:
    """Make noisy patches as planned.

    Args:
        clean: Clean patches; left untouched.
        plan: Their plans, on the same device.
        generator: Source of randomness, on the same device; the same state gives the same noise there.

    Example:
        >>> from hsidenoise.noise.cases import noise_case
        >>> plan = draw_plan(noise_case("gaussian-50"), 3, 64, np.random.default_rng(0))
        >>> batch = NoisePlan(*(part[None] for part in plan))
        >>> noisy = add_noise(torch.zeros(1, 3, 64, 64), batch, torch.Generator().manual_seed(0))
        >>> round(float(noisy.std()) * 255)
        50
    """
    noisy = torch.randn(clean.shape, generator=generator, device=clean.device, dtype=clean.dtype)
    noisy *= plan.sigma[:, :, None, None]
    noisy += clean
    noisy += plan.offset[:, :, None]
    noisy *= plan.alive[:, :, None]
    draw = torch.rand(clean.shape, generator=generator, device=clean.device, dtype=clean.dtype)
    share = plan.share[:, :, None, None]
    return torch.where(draw < share, (draw >= share / 2).to(noisy.dtype), noisy)
