"""Denoise a cube by its own planes, without any weights.

The spectra of a scene fill a few dimensions. Divided by the noise level of each band, noise has variance 1 in all of
them, and the planes (eigen-images) with more than that are the scene's. They are denoised as images. What is
particular here:

- **Defects first.** Dead lines and stuck pixels are found by their repeated values, impulses in few bands by their
  neighbours, and left out; a robust spectral estimate, which replaces them, shows what else is off: lines that are
  shifted, outliers. Outliers are trusted less only in bands that have them: elsewhere an honest value that the estimate
  cannot explain is scene.
- **Small regions.** 40x40 pixels have fewer materials than a scene, so that each region gets planes of its own; in it
  cells of 8x8 blocks turn them once more. So few spectra give noisy planes, but for what is known of spectra: they are
  smooth (:mod:`hsidenoise.signal.planes.basis`).
- **A second round over the whole scene.** All that any region found makes the common planes of a Wiener filter of the
  noisy cube, in larger blocks, which brings back what one region had given up.
- **Again.** With defects, the result replaces what is lost, better than the first estimate did, and all begins anew.
- **A last round over groups of patches that look alike,** guided by that result; and once more, guided by what a
  network made of it (:mod:`hsidenoise.signal.planes.non_local`).

The unit of the cube never matters: all that is estimated scales with it.

References:
    Zhuang and Bioucas-Dias, "Fast hyperspectral image denoising and inpainting based on low-rank and sparse
    representations", IEEE JSTARS 2018. doi:10.1109/JSTARS.2018.2796570 (planes of a noise-whitened subspace)
    Dabov et al., "Image denoising by sparse 3-D transform-domain collaborative filtering", IEEE TIP 2007.
    doi:10.1109/TIP.2007.901238 (threshold, then Wiener)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from hsidenoise.signal.defects import (
    MOST_TOGETHER,
    Dots,
    column_offsets,
    glints,
    impulses,
    stands_out,
    trust,
    without_common,
    without_scene,
)
from hsidenoise.signal.lost_values import fill, fill_gaps, fill_invalid, no_measurements, tell_replaced, together
from hsidenoise.signal.noise_level import level_of_residual, smallest_step, with_absorbed
from hsidenoise.signal.planes.filter import wiener
from hsidenoise.signal.planes.flat_parts import level_of_flat_parts
from hsidenoise.signal.planes.non_local import GAP, GUIDE_SHARE, non_local_bayes
from hsidenoise.signal.planes.regions import Regions, composed
from hsidenoise.signal.spectral_wiener import spectral_wiener

# Chosen on cave/validation (centre 256 x 256), pavia_crop and MUUFL (cleaned by a truncated SVD), PSNR. "Six cells":
# gaussian-30 and mixture of one CAVE scene, gaussian-70 and impulse of the other, gaussian-5 of MUUFL, mixture of
# pavia_crop: 39.88 dB in the mean.

LEAST_ENERGY = 0.002
"""Energy from which a plane of the whole scene is kept in the second round; 0.01 loses 0.05 dB."""

BLOCK, STRIDE, COARSE = 16, 4, 8
"""Side of the blocks of the second round, and their distance in the last one and before. Six cells: 12 and 3 gain
0.01 dB. Blocks of 8 lose up to 0.4 dB at high noise, and turning the planes in this round 0.7."""

MEAN_NOISE = 0.2
"""Noise against which the mean of a block is weighed in the second round. Six cells: 1 loses 0.04 dB."""

PILOT_SHARE, COARSE_SHARE = 0.4, 0.2
"""Share of what is known in the result of the last round and of those before. Six cells: 0.6 loses 0.04 dB."""

NETWORK_SHARE = 0.3
"""Share of the guide in the result of the last round, where a network is the guide. Sixteen cells (gaussian-5,
gaussian-30, non-iid and mixture of four scenes): 0.1 gains 0.01 dB, but loses 0.02 on CAVE, and up to 0.002 in SSIM and
0.003 in SAM there; 0.5 loses 0.02."""

GUIDE_GAP = 3
"""Pixels between one patch that a group is sought for and the next, where a network follows. Twelve cells (gaussian-10,
gaussian-50 and mixture of four scenes): 1 takes two thirds more time and loses 0.01 dB, 2 gains 0.01, 4 loses 0.03."""

ROUNDS = 1
"""Coarse rounds before a cube with defects is denoised by regions again. Six cells: two gain 0.003 dB; not to denoise
by regions again loses 0.34 dB."""

OUTLIER_SIGMAS = 3.0
"""A value off by this many noise levels counts half, in a band with outliers."""

FAR_SIGMAS, FAR_SHARE = 4.0, 0.01
"""A band has outliers if more than this share of its values is off by so many noise levels; chance has 0.00006."""

STRONG_SIGMAS, STRONG_ENERGY = 10.0, 0.5
"""So it has if fewer, scattered, are off by so many and have more than this share of the energy of the noise: hot
pixels. At 0.2 % of the values, up to 6 ranges, the error of the others is 1.1 to 2.9 times that without them, 1.8 to
5.7 without this rule (abu-urban-2, superballs, 40 bands). Superballs, chart_and_stuffed_toy, pavia_crop and MUUFL stay
the same under gaussian-5, deadline, impulse and mixture."""

# Of the robust estimate: six cells lose 0.01 dB by four rounds and half the overlap; one round leaves stripes.
_ESTIMATE_ROUNDS, _ESTIMATE_OVERLAP = 2, 0.12
_ESTIMATE_RANK = 6  # dimensions that the robust estimate fits
_ESTIMATE_MARGIN = 1.2  # by which the noise may be above what that estimate leaves, beside what it has taken
_AT_FAULT = 2.0  # root mean square of a residual, over what a plain regression leaves, that is no outlier's
_LEAST_SIGMA = 2e-4  # of the span of the scene: keeps whitening finite
_LEAST_OF_OTHERS = 0.7  # of their share of the limit
_MOSTLY = 0.5  # of what is off by so much, that the other bands show nothing of if it is hot pixels
_MANY_BANDS = 31  # fewer do not tell an edge from an outlier, nor texture from noise


class PlaneEstimate(NamedTuple):
    """What the planes of a cube say.

    Attributes:
        denoised: The cube without its noise; what was masked is as it was.
        sigma: Level of the Gaussian noise of each band, in the unit of the cube.
        lost: Values that are no measurements: dead lines, stuck pixels, in few bands impulses.
        replaced: These, and outliers: values for which others speak.
    """

    denoised: Float[Tensor, "bands height width"]
    sigma: Float[Tensor, " bands"]
    lost: Bool[Tensor, "bands height width"]
    replaced: Bool[Tensor, "bands height width"]


class PlaneStages(NamedTuple):
    """What the filters by planes know of a cube, scaled to about [0, 1].

    Attributes:
        known: The scene as the small regions found it.
        residual: What that leaves of the noisy cube, shifted lines put back; zero where a value is lost.
        trusted: The same, outliers drawn to zero in the bands that have them.
        sigma: Noise level of each band.
        lost: Values that are no measurements.
        denoised: The scene by the common planes, guided by ``known``, and by groups of patches.
        low: Where 0 lies in the unit of the cube.
        span: How long 1 is there.
        alive: Bands of the cube that are not constant: those that all this is about.
    """

    known: Float[Tensor, "bands height width"]
    residual: Float[Tensor, "bands height width"]
    trusted: Float[Tensor, "bands height width"]
    sigma: Float[Tensor, " bands"]
    lost: Bool[Tensor, "bands height width"]
    denoised: Float[Tensor, "bands height width"]
    low: Float[Tensor, ""]
    span: Float[Tensor, ""]
    alive: Bool[Tensor, " all_bands"]


Improve = Callable[[PlaneStages], Float[Tensor, "bands height width"] | None]
"""Makes a better scene of the stages, in their unit: a network; its groups follow. None: what there is will do."""


@torch.no_grad()
def denoise_by_planes(
    noisy: Float[Tensor, "bands height width"],
    mask: Bool[Tensor, "height width"] | None = None,
    sigma: Float[Tensor, " bands"] | None = None,
    improve: Improve | None = None,
) -> PlaneEstimate:
    """Denoise a cube in the planes of its own noise-whitened subspace.

    Args:
        noisy: Noisy cube in any unit, at least 2x2 pixels, of 1 band or more, float32.
        mask: True where a pixel holds data. All others are left out of everything and come back as they are.
        sigma: Noise level of each band, in the unit of the cube; None: estimated.
        improve: What makes something better of the result; None: nothing.

    Returns:
        The denoised cube and what was found on the way.

    Raises:
        ValueError: If the cube is too small, a valid value is not finite, or the mask does not fit or is empty.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> clean = torch.linspace(200, 800, 7)[:, None, None] * torch.linspace(0, 1, 30)[:, None] * torch.ones(40)
        >>> noisy = clean + 50 * torch.randn(clean.shape, generator=generator)
        >>> estimate = denoise_by_planes(noisy)
        >>> bool((estimate.denoised - clean).std() < 10), bool((estimate.sigma - 50).abs().max() < 2.5)
        (True, True)
    """
    kind = noisy.device.type
    as_called = partial(torch.autocast, kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
    with torch.autocast(kind, enabled=False):  # covariances of half precision say nothing
        found = _by_planes(noisy, mask, sigma, None if improve is None else partial(_call, improve, as_called))
    tell_replaced(found.replaced)
    return found


def _by_planes(
    noisy: Tensor, mask: Tensor | None, sigma: Tensor | None, improve: Callable[..., Tensor | None] | None
) -> PlaneEstimate:
    _check(noisy, mask)
    whole = noisy
    if mask is not None:
        whole = torch.from_numpy(fill_gaps(noisy.cpu().numpy(), mask.expand_as(noisy).cpu().numpy())).to(noisy)
    denoised = noisy.clone()
    level = torch.zeros(len(noisy)).to(noisy)
    lost, replaced = (torch.zeros_like(noisy, dtype=torch.bool) for _ in range(2))
    alive = whole.amax((1, 2)) > whole.amin((1, 2))
    if alive.any():
        low, span = _range(whole[alive])
        cube = (whole[alive] - low) / span
        gone = no_measurements(cube)
        none = torch.zeros_like(gone)
        dots = impulses(cube, gone) if len(cube) < _MANY_BANDS else Dots(none, none, ~none, none)
        glint = glints(cube, gone | dots.hit)
        if glint.any() and not glint.all():
            cube, gone, *filled = (fill_invalid(each, ~glint) for each in (cube, gone, *dots))
            dots = Dots(*filled)
        told = None if sigma is None else (sigma[alive].to(cube) / span).clamp_min(_LEAST_SIGMA)
        found = _denoise(cube, gone, dots, told, None if improve is None else partial(improve, (low, span, alive)))
        keep = glint if mask is None else glint | ~mask
        denoised[alive] = torch.where(keep, noisy[alive], found.denoised * span + low)
        level[alive] = found.sigma * span
        lost[alive], replaced[alive] = found.lost & ~keep, found.replaced & ~keep
    return PlaneEstimate(denoised, level, lost, replaced)


def _call(
    improve: Improve, precision: Callable[[], torch.autocast], scale: Sequence[Tensor], *stages: Tensor
) -> Tensor | None:
    """A network keeps the precision that it was called with."""
    with precision():
        return improve(PlaneStages._make((*stages, *scale)))


def _check(noisy: Tensor, mask: Tensor | None) -> None:
    if noisy.ndim != 3 or len(noisy) < 1 or min(noisy.shape[1:]) < 2:
        raise ValueError(f"cube of shape {tuple(noisy.shape)}: expected (bands, height, width) of at least 2x2 pixels")
    if mask is not None:
        if mask.shape != noisy.shape[1:]:
            raise ValueError(f"mask of shape {tuple(mask.shape)} for a cube of {tuple(noisy.shape)}: they must agree")
        if not mask.any():
            raise ValueError("the mask has no valid pixel: it must be True where a pixel holds data")
    if not (noisy if mask is None else noisy[:, mask]).isfinite().all():
        raise ValueError("the cube has NaN or infinite values: mask them, or replace them first")


def _range(cube: Tensor) -> tuple[Tensor, Tensor]:
    """Where the scene lies, noise and outliers averaged away: its lowest value and its span."""
    block = min(8, *cube.shape[1:])
    means = F.avg_pool2d(cube[None], block)[0].flatten(1)
    order = means.sort(dim=1).values
    at = (order.shape[1] - 1) // 100
    low, high = order[:, at].amin(), order[:, order.shape[1] - 1 - at].amax()
    spread = (cube.flatten(1) - order.mean(1, keepdim=True)).abs().mean(1).median()
    return low, torch.maximum(high - low, spread)


def _denoise(
    cube: Tensor,
    gone: Tensor,
    dots: Dots,
    told: Tensor | None,
    improve: Callable[..., Tensor | None] | None,
) -> PlaneEstimate:
    """Denoise a cube on about [0, 1] without invalid pixels or constant bands, with dots and what is gone."""
    lost = gone | dots.hit
    filled = fill(cube, lost)
    estimate = spectral_wiener(filled[None], _ESTIMATE_ROUNDS, _ESTIMATE_OVERLAP)
    known, regression = estimate.robust[0].clone(), estimate.sigma[0]
    few = told is None and len(cube) < _MANY_BANDS
    limit = level_of_flat_parts(cube, lost) if few else torch.full_like(regression, torch.inf)
    del estimate, filled  # several copies of the cube
    residual, sigma, shifted = _residual(cube, known, lost, None)
    if told is None:
        # a fit of some dimensions has taken their share of the noise
        left = max(0.0, 1.0 - _ESTIMATE_RANK / len(cube)) ** 0.5
        most = _ESTIMATE_MARGIN * sigma / left if left else regression
        sigma = _within(torch.maximum(sigma, torch.minimum(regression, most)), limit, lost)
    sigma = (sigma if told is None else told).clamp_min(_LEAST_SIGMA)
    trusted, outliers = _trusted(residual, sigma, lost, regression, dots)
    regions = Regions()
    known, absorbed = regions.denoise(known + trusted, sigma)
    again = partial(_again, cube, gone=gone, dots=dots, told=told, regression=regression, limit=limit)
    if shifted or outliers or bool(lost.any()):
        for _ in range(ROUNDS):
            _, _, trusted, sigma = again(known, absorbed)
            known, absorbed = _by_scene(known + trusted, known, sigma, COARSE, COARSE_SHARE)
        _, _, trusted, sigma = again(known, absorbed)
        known, absorbed = regions.denoise(known + trusted, sigma)
    del regions  # as much as the cube, and more
    lost, residual, trusted, sigma = again(known, absorbed)
    denoised, absorbed = _by_scene(known + trusted, known, sigma, STRIDE, PILOT_SHARE)
    level = _residual(cube, denoised, lost, absorbed)[1] if told is None else sigma
    gap = GAP if improve is None else GUIDE_GAP
    denoised = _by_groups(known + trusted, denoised, lost, sigma, GUIDE_SHARE, gap)
    better = None if improve is None else improve(known, residual, trusted, sigma, lost, denoised)
    if better is not None:
        denoised = _by_groups(known + trusted, better, lost, sigma, NETWORK_SHARE, GAP)
    replaced = lost | ((trusted != residual) & (residual.abs() > FAR_SIGMAS * sigma[:, None, None]))
    step = torch.tensor([smallest_step(band) if few else 0.0 for band in cube]).to(cube)
    rounded = limit < 0.3 * step  # by its level, that of rounding alone: there is nothing to take away
    denoised = torch.where(rounded[:, None, None] & ~lost, cube, denoised)
    if told is None:
        sigma = torch.where(rounded, limit, level.minimum(limit))
    return PlaneEstimate(denoised, sigma, lost, replaced)


def _residual(cube: Tensor, known: Tensor, lost: Tensor, absorbed: Tensor | None) -> tuple[Tensor, Tensor, bool]:
    """What an estimate leaves of a cube, lines that are off as a whole put back; the noise level; whether any was."""
    residual = torch.where(lost, 0.0, cube - known)
    shifted, levels = False, list[Tensor]()  # of the residual as it is, once it was asked for

    def level(_: Tensor) -> Tensor:
        levels[:] = levels or [level_of_residual(residual, lost)]
        return levels[0][None]

    for axis in (1, 2):  # columns, then rows
        lines = residual if axis == 1 else residual.mT
        offset = column_offsets(lines[None], level)
        if offset is None:
            continue
        if len(cube) < _MANY_BANDS:
            offset = without_scene(offset, lines[None], (cube if axis == 1 else cube.mT)[None])
        common = without_common(offset)[0].unsqueeze(axis)
        if common.any():
            residual, shifted = torch.where(lost, 0.0, residual - common), True
            levels.clear()
    found = level(residual)[0]
    return residual, found if absorbed is None else with_absorbed(found, absorbed), shifted


def _within(sigma: Tensor, limit: Tensor, lost: Tensor) -> Tensor:
    """Noise levels, none above its limit, or much farther below it than those of the other bands are.

    Of few bands, one may be taken for what the others have in common, and as without any noise of its own. Impulses
    raise the limit, so that it says nothing of a band with lost values but for what the most is.
    """
    if limit.isinf().any():
        return sigma.minimum(limit)
    share = (sigma / limit).clamp_max(1.0)
    least = torch.where(lost.flatten(1).any(1), 0.0, _LEAST_OF_OTHERS * share.quantile(0.5))
    return limit * share.maximum(least)


def _trusted(residual: Tensor, sigma: Tensor, lost: Tensor, regression: Tensor, dots: Dots) -> tuple[Tensor, bool]:
    """The residual, outliers drawn to zero in the bands that have them; whether any has."""
    known, has = (~lost).sum((1, 2)).clamp_min(1), dots.hit.flatten(1).any(1)
    away = (residual.abs() > FAR_SIGMAS * sigma[:, None, None]) & ~dots.common
    far = away.sum((1, 2)) / known
    # outliers would be left by a plain regression, too: where it leaves much less, the estimate is at fault
    at_fault = residual.square().sum((1, 2)) / known > (_AT_FAULT * regression).square()
    bad = far > FAR_SHARE
    if len(residual) < _MANY_BANDS:
        bad &= has  # or the scene: these bands do not tell each other well
    # few, but strong enough to be taken for directions of the scene
    off = (residual.abs() > STRONG_SIGMAS * sigma[:, None, None]) & ~dots.common
    away = off & dots.alone
    whole, energy, strange = ((residual.square() * on).sum((1, 2)) / known for on in (off, away, away & ~dots.seen))
    strong = (strange > STRONG_ENERGY * sigma.square()) & (strange > _MOSTLY * energy)
    loud = ~strong & (far > FAR_SHARE) & (whole > STRONG_ENERGY * sigma.square())  # noise that grows with the signal
    strong, away = strong | loud, torch.where(loud[:, None, None], off, away)
    if len(residual) < _MANY_BANDS:  # where more are away, the noise level is that of a scene without noise
        strong &= (far <= FAR_SHARE) | (dots.common.flatten(1).float().mean(1) < FAR_SHARE)
    if (strong & ~bad).any():
        bad |= strong & (torch.stack([together(band).max() for band in away]) < MOST_TOGETHER)
    bad &= ~at_fault
    if not bad.any():
        return residual, False
    weight = trust(residual[None], sigma[None], OUTLIER_SIGMAS)[0]
    drawn = bad[:, None, None] & ~dots.common & (dots.alone | (has | loud)[:, None, None])
    return torch.where(drawn, weight * residual, residual), True


def _again(
    cube: Tensor,
    known: Tensor,
    absorbed: Tensor,
    *,
    gone: Tensor,
    dots: Dots,
    told: Tensor | None,
    regression: Tensor,
    limit: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What is lost, the residual of a better estimate, what is trusted of it, and the noise level."""
    lost, has = gone, dots.hit.flatten(1).any(1)
    if has.any():  # a better estimate knows better
        out = torch.stack([stands_out(*each) for each in zip((cube - known).abs(), gone, strict=True)])
        lost = gone | (out & has[:, None, None] & ~dots.common)
    residual, sigma, _ = _residual(cube, known, lost, absorbed)
    sigma = (_within(sigma, limit, lost) if told is None else told).clamp_min(_LEAST_SIGMA)
    return lost, residual, _trusted(residual, sigma, lost, regression, dots)[0], sigma


def _by_scene(cube: Tensor, guide: Tensor, sigma: Tensor, stride: int, share: float) -> tuple[Tensor, Tensor]:
    """Wiener filter in all planes that a guide has, with its energies; and the share of its noise that a band lacks."""
    planes, guides, basis, mean = _in_planes(cube, guide, sigma)
    filtered, absorbed = wiener(planes, guides, block=BLOCK, stride=stride, turn=False, mean_noise=MEAN_NOISE)
    return composed(filtered.lerp(guides, share), basis, mean, sigma), basis.square() @ absorbed


def _by_groups(cube: Tensor, guide: Tensor, lost: Tensor, sigma: Tensor, share: float, gap: int) -> Tensor:
    """Non-local Bayes in all planes that a guide has, which stands for what is lost."""
    planes, guides, basis, mean = _in_planes(torch.where(lost, guide, cube), guide, sigma)
    return composed(non_local_bayes(planes, guides, share, gap), basis, mean, sigma)


def _in_planes(cube: Tensor, guide: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A cube and its guide in all planes that the guide has; the basis and the mean that lead back."""
    mean = guide.mean((1, 2), keepdim=True)
    known, whitened = ((each - mean) / sigma[:, None, None] for each in (guide, cube))
    basis = _directions(known)
    planes, guides = ((basis.mT @ each.flatten(1)).reshape(-1, *cube.shape[1:]) for each in (whitened, known))
    return planes, guides, basis, mean


def _directions(whitened: Tensor) -> Tensor:
    """Principal directions with more than the least energy, one at least, (bands, planes)."""
    flat = whitened.flatten(1)
    energy, directions = torch.linalg.eigh((flat @ flat.mT / flat.shape[1]).double())
    kept: Tensor = directions[:, min(-1, -int((energy > LEAST_ENERGY).sum())) :].to(whitened)
    return kept
