"""Defects of a cube: columns that are dead or shifted as a whole, impulses, values that an estimate cannot explain.

A column that is constant in a noisy band, while other bands are alive there, is dead. One is shifted if the median of
what an estimate leaves of it is far from zero, and most other bands are not shifted there too. Where there are too few
bands for one to tell of another, an impulse is a value that is far from most of its neighbours; so is a detail of the
scene, but details lie together, or in most bands at once. Dots and stars of a single band are not told from impulses
that are all brighter or all darker than what is around: these are kept, too.

References:
    Garnett et al., "A universal noise removal algorithm with an impulse detector", IEEE TIP 2005.
    doi:10.1109/TIP.2005.857261 (the rank-ordered differences of a pixel and its neighbours)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from hsidenoise.signal.lost_values import FEWEST, chance_of_most, together
from hsidenoise.signal.noise_level import NORMAL_MEDIAN, SIGMA_FLOOR, noise_level, smallest_step

#: A column is off if the median of what the estimate leaves of it is this many of its standard errors from zero; it is
#: only looked at if its signs are out of balance by so many.
STRIPE_SIGMAS = 4.5
SUSPECT_SIGMAS = 2.5

#: Smallest shift of a column that is taken for a stripe (1 on the 0-255 scale).
LEAST_STRIPE = 1 / 255

#: A column shorter than this says nothing of being dead or off.
FEWEST_ROWS = 8

#: Noise below which a constant column is taken for what the scene is (0.5 on the 0-255 scale).
LEAST_NOISE = 0.5 / 255

#: A value stands out that is this many times as large as those around it are in the median. With 6, random-valued
#: impulses on 10 % of the pixels of 3 bands cost 1.8 dB more on chart_and_stuffed_toy, 0.2 dB less on abu-urban-2.
STANDS_OUT = 4.5

#: Values that stand out are impulses in a band with more than this share of them if they are scattered (see
#: :func:`~hsidenoise.signal.lost_values.together`): up to 0.14 of chart_and_stuffed_toy, less elsewhere; details of a
#: scene have 0.17 and more (1 to 8 bands of cave/validation, pavia_crop, MUUFL, remote_sensing_clean).
LEAST_HIT, MOST_TOGETHER = 0.01, 0.15

_LEAST_CHANCE = np.log(1e-9)  # of a pixel, that noise alone takes it out of the scene
_GLINT = 3.0  # spans from the middle of the scene, beyond which a spectrum is left as it is
_BESIDE = 0.5  # of the offset of a column, that it is apart from those beside it
_UNSTEADY, _UNSTEADY_SHARE = 2.0, 0.5  # spread of steps along a line of the scene, of the usual one and of the offset
_IN_OTHERS = 0.3  # of the other bands, that are off in the same column if it is a line of the scene
_LEAST_OF_A_SIDE, _ONE_HEIGHT = 0.05, 0.3  # of what stands out; spread of their height, that of any height has 0.58
_AROUND = 7  # side of what is around, in pixels
_LEAST_AROUND = 0.5  # of the median of the whole band
_MOST_MISSING = 4  # of the 8 neighbours of a pixel
_BEYOND_CHANCE = 4.0  # as often as by chance, from which values out of the ordinary are common to bands
_LEAST_COMMON, _MOSTLY = 0.05, 0.5  # of all of them, without which they are not; from which they are in any case
_ORDINARY = 0.9  # of the pixels of a band are so, when it comes to what others have for themselves
_ROUNDS = 2  # the second without the neighbours that the first has found

_MEDIAN_PIXELS = 1024  # per band: a median of more says the same to a few percent


def dead_columns(noisy: Float[Tensor, "batch bands height width"]) -> Bool[Tensor, "batch bands height width"]:
    """Find the columns in which a noisy band has one and the same value, while most other bands have not.

    Returns:
        True all along a dead column of a band; a view. False everywhere if columns are too short to tell.

    Example:
        >>> noisy = torch.rand(1, 3, 10, 4)
        >>> noisy[0, 1, :, 2] = 0.0
        >>> dead_columns(noisy)[0, :, 0].nonzero().tolist()
        [[1, 2]]
    """
    rows = noisy.shape[2]
    if rows < FEWEST_ROWS:
        return torch.zeros_like(noisy, dtype=torch.bool)
    constant = noisy.amin(dim=2) == noisy.amax(dim=2)  # (batch, bands, columns)
    # columns that are constant in most bands are no defect of a band: a frame without data, a flat background
    constant &= constant.float().mean(dim=1, keepdim=True) < 0.5
    if constant.any():
        # without noise a column may well be constant
        level = (noisy[:, :, 1:] - noisy[:, :, :-1]).square().mean(dim=2)
        alive = (level * ~constant).sum(dim=2) / (~constant).sum(dim=2).clamp_min(1)
        constant &= (alive > 2.0 * LEAST_NOISE**2)[..., None]
    return constant[:, :, None].expand_as(noisy)


def bridge(
    noisy: Float[Tensor, "batch bands height width"], dead: Bool[Tensor, "batch bands height width"]
) -> Float[Tensor, "batch bands height width"]:
    """Replace dead columns by what lies between the nearest living ones of their band.

    Example:
        >>> dead = torch.tensor([False, True, False, True]).expand(1, 1, 1, 4)
        >>> bridge(torch.tensor([[[[2.0, 0.0, 4.0, 0.0]]]]), dead).flatten().tolist()
        [2.0, 3.0, 4.0, 4.0]
    """
    width = noisy.shape[3]
    index = torch.arange(width, device=noisy.device)
    alive = ~dead[:, :, 0]
    before = torch.where(alive, index, -1).cummax(dim=2).values
    after = torch.where(alive, index, width).flip(2).cummin(dim=2).values.flip(2)
    # at an edge the one living neighbour tells all; a band without any keeps its values
    left = torch.where(before < 0, after, before).clamp(0, width - 1)
    right = torch.where(after == width, before, after).clamp(0, width - 1)
    share = ((index - left) / (right - left).clamp_min(1)).clamp(0.0, 1.0)
    left, right = (side[:, :, None].expand_as(noisy) for side in (left, right))
    return torch.where(dead, torch.lerp(noisy.gather(3, left), noisy.gather(3, right), share[:, :, None]), noisy)


def column_offsets(
    residual: Float[Tensor, "batch bands height width"], spread: Callable[[Tensor], Tensor] | None = None
) -> Float[Tensor, "batch bands width"] | None:
    """What whole columns of each band are off by.

    Args:
        residual: What an estimate leaves of noisy cubes.
        spread: Standard deviation of the noise in each band of ``residual``, (batch, bands); if None, from the median
            of its magnitudes. Only called if a column looks suspicious.

    Returns:
        The median of a column, 0 where chance may explain it; None if no column is off, or if columns are too short to
        tell.
    """
    rows = residual.shape[2]
    if rows < FEWEST_ROWS:
        return None
    # by chance the signs of a column balance: a cheap test before the medians
    suspect = residual.sign().mean(dim=2).abs() > SUSPECT_SIGMAS / rows**0.5  # (batch, bands, columns)
    if not suspect.any():
        return None
    if residual.device.type == "cpu":
        offset = torch.zeros_like(residual[:, :, 0])
        offset[suspect] = _median(residual.mT[suspect])
    else:  # picking columns would make the device wait for the host
        offset = torch.where(suspect, _median(residual.mT), 0.0)
    chance = (spread or robust_spread)(residual) * _standard_error(residual)
    offset *= offset.abs() > (STRIPE_SIGMAS * chance).clamp_min(LEAST_STRIPE)[..., None]
    return offset


def without_common(offset: Float[Tensor, "batch bands width"]) -> Float[Tensor, "batch bands width"]:
    """Offsets of columns, 0 where most bands are off: that is not a defect of a band, the estimate has lost the scene.

    Example:
        >>> without_common(torch.tensor([[[0.5, 0.5], [0.0, 0.4], [0.0, 0.3]]]))
        tensor([[[0.5000, 0.0000],
                 [0.0000, 0.0000],
                 [0.0000, 0.0000]]])
    """
    return offset * ((offset != 0).float().mean(dim=1, keepdim=True) < 0.5)


def without_scene(
    offset: Float[Tensor, "batch bands width"],
    residual: Float[Tensor, "batch bands height width"],
    noisy: Float[Tensor, "batch bands height width"],
) -> Float[Tensor, "batch bands width"]:
    """Offsets of columns of few bands, whose estimate may lose what one band has for itself, 0 where that is likely.

    A stripe is off against both columns beside it, by the same all along. A line of the scene is off in other bands of
    the noisy cube as well, or comes and goes.

    Example:
        >>> residual = torch.tensor([0.0, 0.5, 0.4, 0.0, 0.5, 0.0]).expand(1, 1, 9, 6)
        >>> without_scene(residual[:, :, 0], residual, residual)
        tensor([[[0.0000, 0.0000, 0.0000, 0.0000, 0.5000, 0.0000]]])
    """
    apart, chance, least = _beside(noisy)
    comes_and_goes = (least > _UNSTEADY * _median(least)[..., None]) & (
        least > _UNSTEADY_SHARE * _standard_error(noisy) * offset.abs()
    )
    there = (apart.abs() > SUSPECT_SIGMAS * chance).float()
    others = (there.sum(1, keepdim=True) - there) / max(1, noisy.shape[1] - 1)
    beside = _beside(residual)[0] * offset.sign() > _BESIDE * offset.abs()
    return offset * (beside & (others < _IN_OTHERS) & ~comes_and_goes)


def _standard_error(images: Tensor) -> float:
    """Of the median of a column, for noise of 1."""
    return math.sqrt(math.pi / (2 * images.shape[2]))


def _beside(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """By how much columns are off against both beside them to the same side, in the median; its standard errors."""
    steps = images[..., 1:] - images[..., :-1]
    step = _median(steps.mT)
    error = _median((steps - step[:, :, None]).abs().mT) / NORMAL_MEDIAN * _standard_error(images)
    (before, after), (early, late) = (
        (torch.cat([sign * each[..., :1], each], -1), torch.cat([sign * each, each[..., -1:]], -1))
        for sign, each in ((-1, step), (1, error))
    )
    least = torch.where(before * after > 0, torch.minimum(before.abs(), after.abs()), 0.0)
    return least * before.sign(), torch.maximum(early, late), torch.minimum(early, late)


def robust_spread(residual: Float[Tensor, "batch bands height width"]) -> Float[Tensor, "batch bands"]:
    """Standard deviation of each band from the median of its magnitudes, at least :data:`SIGMA_FLOOR`."""
    step = max(1, int((residual.shape[2] * residual.shape[3] / _MEDIAN_PIXELS) ** 0.5))
    sample = residual[:, :, ::step, ::step].abs().flatten(2)
    return (_median(sample) / NORMAL_MEDIAN).clamp_min(SIGMA_FLOOR)


def _median(values: Tensor) -> Tensor:
    """Lower median along the last axis."""
    if values.device.type != "cpu":
        return values.median(dim=-1).values
    middle = (values.shape[-1] - 1) // 2  # NumPy selects several times faster than PyTorch does on a CPU
    return torch.from_numpy(np.partition(values.numpy(), middle, axis=-1)[..., middle])


def trust(
    residual: Float[Tensor, "batch bands height width"], spread: Float[Tensor, "#batch bands"], sigmas: float
) -> Float[Tensor, "batch bands height width"]:
    """Weight of each value, from 1 where it is explained to 0 where it is far off.

    Example:
        >>> trust(torch.tensor([[[[0.0, 2.0, 20.0]]]]), torch.ones(1, 1), 2.0).flatten().round(decimals=2).tolist()
        [1.0, 0.5, 0.0]
    """
    return (residual / (sigmas * spread[:, :, None, None])).square_().square_().add_(1.0).reciprocal_()


def glints(
    cube: Float[Tensor, "bands height width"], lost: Bool[Tensor, "bands height width"]
) -> Bool[Tensor, "height width"]:
    """Pixels whose spectra lie far outside of the scene, in more bands than noise alone takes there.

    Args:
        cube: Cube whose scene fills about [0, 1].
        lost: Values that say nothing.
    """
    far = (((cube - 0.5).abs() > _GLINT) & ~lost).float().mean(0)
    glint = far > 0.5
    if glint.any():
        reach = (_GLINT - 0.5) / np.maximum(noise_level(cube.cpu().numpy()), np.finfo(np.float32).tiny)
        chance = float(np.mean([2.0 * NormalDist().cdf(-sigmas) for sigmas in reach]))
        # less than 2 ** bands * chance ** (far bands)
        glint &= far * np.log(max(chance, 1e-300)) + np.log(2.0) < _LEAST_CHANCE / len(cube)
    return glint


class Dots(NamedTuple):
    """Values that stand out from their neighbours.

    Attributes:
        hit: Impulses, in bands with many of them.
        common: Dots of the scene.
        alone: All others.
        seen: Where other bands have something out of the ordinary; everywhere if there are none.
    """

    hit: Bool[Tensor, "bands height width"]
    common: Bool[Tensor, "bands height width"]
    alone: Bool[Tensor, "bands height width"]
    seen: Bool[Tensor, "bands height width"]


def impulses(cube: Float[Tensor, "bands height width"], lost: Bool[Tensor, "bands height width"]) -> Dots:
    """Scattered values far from most of their neighbours, in bands with many of them.

    Dots of the scene are not: those that are in most bands, those of one side or height in a cube of one band.

    Args:
        cube: Noisy cube, in any unit.
        lost: What is known to be no measurement: it is no neighbour, and not found again.

    Returns:
        All values that stand out from their neighbours, by what they are.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> cube = 0.1 * torch.randn(2, 40, 50, generator=generator)
        >>> hit = torch.rand(40, 50, generator=generator) < 0.1
        >>> cube[1, hit] = 5.0 + torch.rand(40, 50, generator=generator)[hit]
        >>> found = impulses(cube, torch.zeros_like(cube, dtype=torch.bool)).hit
        >>> bool(found[0].any()), bool((found[1] == hit).float().mean() > 0.99)
        (False, True)
    """
    found, common, ends = (
        lost.clone(),
        torch.zeros_like(lost),
        [_at_ends(*each) for each in zip(cube, lost, strict=True)],
    )
    for _ in range(_ROUNDS):
        apart = torch.stack([_apart(image, at) for image, at in zip(cube, found, strict=True)])
        least = [_least(*each) for each in zip(apart.abs(), ends, cube, strict=True)]
        out = torch.stack([stands_out(*each) for each in zip(apart.abs(), lost, least, strict=True)])
        common = in_most_bands(out, apart > 0) if len(cube) > 1 else out & _of_one_kind(apart, out)
        out &= ~common
        for band, image in enumerate(out):
            if image.sum() > max(FEWEST, LEAST_HIT * image.numel()) and together(image).max() < MOST_TOGETHER:
                found[band] = lost[band] | image
    seen, apart = torch.ones_like(lost), apart.abs().nan_to_num()
    tiny = torch.finfo(apart.dtype).tiny
    apart /= torch.stack([_median(image.flatten()) for image in apart])[:, None, None].clamp_min(tiny)
    for band in range(len(cube) if len(cube) > 1 else 0):
        others = torch.cat([apart[:band], apart[band + 1 :]]).amax(0)
        ordinary = others.flatten().kthvalue(max(1, round(_ORDINARY * others.numel()))).values
        seen[band] = others >= ordinary.clamp_min(tiny)
    return Dots(found & ~lost, common, out, seen)


def in_most_bands(
    out: Bool[Tensor, "bands height width"], above: Bool[Tensor, "bands height width"]
) -> Bool[Tensor, "bands height width"]:
    """Which values are out of the ordinary to the same side as most other bands of their pixel are: they are scene.

    Impulses come in each band by themselves; where chance explains most of what is common, nothing is.

    Args:
        out: Values out of the ordinary.
        above: Those of them that are larger than they ought to be.

    Example:
        >>> out = torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0)) < 0.1
        >>> bool(in_most_bands(out, out).any()), bool(in_most_bands(out[:1].expand(3, -1, -1), out).all())
        (False, False)
    """
    common = torch.zeros_like(out)
    others = len(out) - 1
    for side in (out & above, out & ~above):
        shares = side.float().mean((1, 2)).tolist()
        for band, here in enumerate(side):
            both = here & (2 * (side.sum(0) - 1) > others)
            chance = shares[band] * chance_of_most(shares[:band] + shares[band + 1 :], others // 2 + 1)
            least = max(_BEYOND_CHANCE * chance, _LEAST_COMMON * shares[band])
            if both.float().mean() > min(least, _MOSTLY * shares[band]):
                common[band] |= both
    return common


def _of_one_kind(apart: Tensor, out: Tensor) -> bool:
    """Whether what stands out in a band is bright alone, dark alone or of one height: dots and stars, no impulses."""
    up, down = apart[out & (apart > 0)], -apart[out & (apart < 0)]
    if min(len(up), len(down)) < max(FEWEST, _LEAST_OF_A_SIDE * (len(up) + len(down))):
        return True
    return bool(max(side.std() / side.mean() for side in (up, down)) < _ONE_HEIGHT)


def _at_ends(image: Tensor, lost: Tensor) -> Tensor:
    """Values at an end of the scale where many are: noise was cut off there, or there is none."""
    known = image[~lost]
    if not known.numel():
        return torch.zeros_like(lost)
    ends = torch.stack([image == known.min(), image == known.max()])
    return (ends & (ends.float().mean((1, 2), keepdim=True) > LEAST_HIT)).any(0)


def _least(magnitude: Tensor, ends: Tensor, image: Tensor) -> Tensor:
    """Smallest level that is taken for what is around: near cut off values that of where none are."""
    least = torch.full_like(image, smallest_step(image))
    if ends.any():
        near, beside = (F.max_pool2d(ends[None].float(), side, 1, side // 2)[0] > 0 for side in (_AROUND, 3))
        whole = magnitude[~ends if beside.float().mean() > 1.0 - LEAST_HIT else ~beside].nanmedian()
        least = torch.where(near & whole.isfinite(), least.maximum(whole), least)
    return least


def stands_out(
    magnitude: Float[Tensor, "height width"],
    lost: Bool[Tensor, "height width"],
    least: Float[Tensor, "height width"] | None = None,
) -> Bool[Tensor, "height width"]:
    """Where an image is much larger than it is around.

    Args:
        magnitude: Such as what an estimate leaves of a band, without its sign.
        lost: Values to leave out.
        least: Smallest level that is taken for what is around; None: half of the median of all.
    """
    around, edge = torch.where(lost, torch.nan, magnitude), _AROUND // 2
    usual = float(around.nanmedian())
    for _ in range(2):  # down, then across
        padded = F.pad(around[None, None], (0, 0, edge, edge), mode="replicate")[0, 0]
        around = padded.unfold(0, _AROUND, 1).nanmedian(-1).values.T
    around = around.clamp(min=_LEAST_AROUND * usual)
    out: Tensor = magnitude > STANDS_OUT * (around if least is None else around.maximum(least))
    return out & ~lost


def _apart(image: Tensor, lost: Tensor) -> Tensor:
    """How far each value is from half of its known neighbours at least, with its sign; NaN if half of them are lost."""
    known = F.pad(torch.where(lost, torch.nan, image)[None, None], (1, 1, 1, 1), mode="reflect")[0, 0]
    around = known.unfold(0, 3, 1).unfold(1, 3, 1).flatten(2)[..., [0, 1, 2, 3, 5, 6, 7, 8]]
    apart = (around - image[..., None]).abs().nanmedian(-1).values
    apart = torch.where(image < around.nanmedian(-1).values, -apart, apart)
    return torch.where(around.isnan().sum(-1) > _MOST_MISSING, torch.nan, apart)
