"""The spectral Wiener estimate: what the bands of a cube say about each other, without any weights.

The spectra of a clean cube lie near a subspace of a few dimensions, independent noise does not. With the covariance C
of the noisy spectra and the noise variance of each band on the diagonal of N, the best linear estimate of a clean
spectrum from its noisy one is ``mean + (C - N) C^-1 (noisy - mean)``. It costs one bands x bands matrix per cube,
raises a cube with sigma 50 by about ten decibels, leaves a clean cube alone, and what noise it leaves is confined to
the few planes of the subspace, which a narrow network can carry. A network that starts here only has to add what the
neighbourhood of a pixel knows.

The noise variance of a band is the smaller of the two blind estimates of :mod:`hsidenoise.signal.noise_level`.

Impulses, stripes and dead columns spread over the bands in such an estimate. A column that is constant in a noisy band,
while other bands are alive there, is dead: its values are left out and told by the others. The robust estimate repeats
the plain one some times with the values that it cannot explain drawn towards it. Once it is good enough to see them,
the columns that are off as a whole are shifted back, and the plain estimate is made again from what is so repaired.
Bands that are mostly impulses it gives up for the mean of their neighbours. Then it takes the subspace of the result
and fits every spectrum in it anew, each value weighted by how far off it is and by the noise of its band.

A small part of a scene has fewer materials than the whole, so its covariance says more: windows of 64 x 64 pixels
are estimated each on its own and blended. That gains one to two decibels over one covariance for 256 x 256 pixels,
and makes the estimate at a pixel independent of the size of the tile that it comes in.

References:
    Roger & Arnold, "Reliably estimating the noise in AVIRIS hyperspectral images", Int. J. Remote Sensing 17(10), 1996.
    doi:10.1080/01431169608949137 (noise by regression on the other bands)
    Bioucas-Dias & Nascimento, "Hyperspectral Subspace Identification", IEEE TGRS 46(8), 2008.
    doi:10.1109/TGRS.2008.918089
    Donoho & Johnstone, "Ideal spatial adaptation by wavelet shrinkage", Biometrika 81(3), 1994 (noise from details)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from hsidenoise.signal.defects import bridge, column_offsets, dead_columns, robust_spread, trust, without_common
from hsidenoise.signal.noise_level import SIGMA_FLOOR, haar_details

#: Rounds in which the robust estimate draws outlying values towards itself, before the fit in the subspace. Of these,
#: the second half first subtracts from each column what it is off by.
ROUNDS = 4

#: A value off by this many robust standard deviations counts half: while rounds are made, and in the final fit.
OUTLIER_SIGMAS = 2.0
OUTLIER_SIGMAS_IN_FIT = 3.0

#: A band this noisy (92 on the 0-255 scale) and this much noisier than the median band is first told by its neighbours:
#: with half of its pixels or more hit by impulses, its own mean and covariance are those of the impulses.
LOST_SIGMA = 0.36
LOST_RATIO = 1.25

#: Width, in bands, of the Gaussian window in which the neighbours of a lost band are averaged.
NEIGHBOUR_WIDTH = 1.5

#: Dimensions of the subspace of the final fit: the spectra of 64 x 64 pixels rarely have more above the noise.
SUBSPACE = 6

#: Side in pixels of the windows that are estimated on their own, and the share of it by which they overlap.
WINDOW = 64
OVERLAP = 0.5

_LARGEST = 1e12  # squares of larger values overflow float32 somewhere below


class SpectralEstimate(NamedTuple):
    """What ``spectral_wiener`` finds.

    Attributes:
        repaired: The noisy cube with its dead columns filled in and its stripes subtracted: noise is left alone.
        plain: Wiener estimate of the clean cube, from the repaired one.
        robust: Estimate in which values that the other bands cannot explain count less.
        column: What each column of each band is off by in the mean, over a window: stripes and dead columns.
        sigma: Noise level of each band that the plain estimate assumed, in the unit of the cube; over all windows.
    """

    repaired: Float[Tensor, "batch bands height width"]
    plain: Float[Tensor, "batch bands height width"]
    robust: Float[Tensor, "batch bands height width"]
    column: Float[Tensor, "batch bands height width"]
    sigma: Float[Tensor, "batch bands"]


@torch.no_grad()
def spectral_wiener(
    noisy: Float[Tensor, "batch bands height width"], rounds: int = ROUNDS, overlap: float = OVERLAP
) -> SpectralEstimate:
    """Estimate clean cubes from the covariance of their own bands; no gradient, no weights, float32.

    Half the rounds and half the overlap cost 0.4 of the time; what that loses is a few tenths of a decibel where bands
    are mostly impulses, nothing elsewhere.

    Args:
        noisy: Cubes scaled to about [0, 1]. Each cube of the batch is estimated from itself alone. A window with a
            value that is not finite, or above 1e12, gives NaN.
        rounds: Rounds of the robust estimate, at least 0.
        overlap: Share of their side by which windows overlap, 0 to below 1.

    Returns:
        The estimates, all of the size of ``noisy``.

    Raises:
        ValueError: If ``rounds`` or ``overlap`` is out of range.

    Example:
        >>> spectra = torch.rand(2, 12, 1, 1) * torch.rand(2, 1, 20, 30)  # one material, lit unevenly
        >>> noisy = spectra + 0.1 * torch.randn_like(spectra)
        >>> estimate = spectral_wiener(noisy)
        >>> bool((estimate.plain - spectra).square().mean() < 0.3 * (noisy - spectra).square().mean())
        True
    """
    if rounds < 0 or not 0.0 <= overlap < 1.0:
        raise ValueError(f"spectral estimate: rounds={rounds} must be at least 0, overlap={overlap:g} in [0, 1)")
    with torch.autocast(noisy.device.type, enabled=False):
        noisy = noisy.float()
        height, width = noisy.shape[2:]
        if height <= WINDOW and width <= WINDOW:
            return _estimate(noisy, rounds)
        return _blend_windows(noisy, rounds, overlap)


def _blend_windows(noisy: Tensor, rounds: int, overlap: float) -> SpectralEstimate:
    batch, bands, height, width = noisy.shape
    rows, cols = min(WINDOW, height), min(WINDOW, width)
    taper = _triangle(rows, noisy)[:, None] * _triangle(cols, noisy)
    planes = noisy.new_zeros(4, batch, bands, height, width)
    total = noisy.new_zeros(height, width)
    variance = noisy.new_zeros(batch, bands)
    lefts = _starts(width, cols, overlap)
    tops = _starts(height, rows, overlap)
    for top in tops:  # a row of windows at a time bounds the memory
        strip = noisy[:, :, top : top + rows]
        windows = torch.cat([strip[..., left : left + cols] for left in lefts])
        estimate = _estimate(windows, rounds)
        for position, left in enumerate(lefts):
            here = slice(position * batch, (position + 1) * batch)
            for plane, part in zip(planes, estimate[:4], strict=True):
                plane[:, :, top : top + rows, left : left + cols] += taper * part[here]
            total[top : top + rows, left : left + cols] += taper
            variance += estimate.sigma[here].square()
    planes /= total
    sigma = (variance / (len(tops) * len(lefts))).sqrt()
    return SpectralEstimate(planes[0], planes[1], planes[2], planes[3], sigma)


def _starts(length: int, window: int, overlap: float) -> list[int]:
    """First pixels of windows that overlap by such a share or more and end where the image does."""
    if length <= window:
        return [0]
    step = max(1, int(window * (1.0 - overlap)))
    count = -(-(length - window) // step) + 1
    return [round(index * (length - window) / (count - 1)) for index in range(count)]


def _triangle(length: int, like: Tensor) -> Tensor:
    ramp = torch.arange(1, length + 1, device=like.device, dtype=like.dtype)
    return torch.minimum(ramp, ramp.flip(0))


def _estimate(noisy: Tensor, rounds: int) -> SpectralEstimate:
    usable = noisy.abs().amax(dim=(1, 2, 3)) < _LARGEST  # False for NaN
    if not usable.all():
        # no eigenvectors of NaN: eigh would raise for the whole batch, or not, as the LAPACK at hand likes
        keep, lost = usable[:, None, None, None], noisy.new_tensor(torch.nan)
        *planes, sigma = _estimate(torch.where(keep, noisy, torch.zeros_like(noisy)), rounds)
        repaired, plain, robust, column = (torch.where(keep, plane, lost) for plane in planes)
        return SpectralEstimate(repaired, plain, robust, column, torch.where(usable[:, None], sigma, lost))
    dead = dead_columns(noisy)
    changed = any_dead = bool(dead.any())
    repaired = bridge(noisy, dead) if any_dead else noisy
    plain, sigma = _wiener(repaired)
    robust = plain
    for number in range(rounds):
        if any_dead:
            repaired = torch.where(dead, robust, repaired)
        if 2 * number >= rounds:
            offset = column_offsets(repaired - robust)
            if offset is not None:
                repaired, changed = repaired - without_common(offset)[:, :, None], True
        residual = repaired - robust
        trusted = trust(residual, robust_spread(residual), OUTLIER_SIGMAS).mul_(residual)
        robust, _ = _wiener(trusted.add_(robust))
    robust = _fit_in_subspace(repaired, _replace_lost_bands(robust, sigma), dead)
    if changed:
        repaired = torch.where(dead, robust, repaired)
        plain, sigma = _wiener(repaired)
    column = (noisy - robust).mean(dim=2, keepdim=True).expand_as(noisy)
    return SpectralEstimate(repaired, plain, robust, column, sigma)


def _replace_lost_bands(estimate: Tensor, sigma: Tensor) -> Tensor:
    """Estimate with each lost band replaced by the mean of its neighbours, weighted by nearness and precision."""
    lost = (sigma > LOST_SIGMA) & (sigma > LOST_RATIO * sigma.median(dim=1, keepdim=True).values)
    if not lost.any():
        return estimate
    band = torch.arange(sigma.shape[1], device=sigma.device, dtype=sigma.dtype)
    near = torch.exp(-(((band[:, None] - band) / NEIGHBOUR_WIDTH) ** 2) / 2)
    weight = near / sigma[:, None, :].square() * ~lost[:, None, :]  # (batch, lost band, neighbour)
    total = weight.sum(dim=2, keepdim=True)
    told = (weight / total.clamp_min(1e-30)) @ estimate.flatten(2)
    return torch.where((lost & (total[..., 0] > 0))[..., None, None], told.reshape(estimate.shape), estimate)


def _fit_in_subspace(noisy: Tensor, estimate: Tensor, dead: Tensor) -> Tensor:
    """Posterior mean of every spectrum in the leading subspace of an estimate, each value with its own precision.

    What is dead has none.
    """
    residual = noisy - estimate
    spread = robust_spread(residual)
    precision = trust(residual, spread, OUTLIER_SIGMAS_IN_FIT) / spread[:, :, None, None].square()
    precision = (precision * ~dead).flatten(2).mT  # (batch, pixels, bands)
    spectra = estimate.flatten(2)
    mean = spectra.mean(dim=2, keepdim=True)
    centred = spectra - mean
    energy, planes = torch.linalg.eigh((centred @ centred.mT / spectra.shape[2]).double())
    rank = min(SUBSPACE, noisy.shape[1])
    basis = (planes[..., -rank:] * energy[:, None, -rank:].clamp_min(0.0).sqrt()).float()  # (batch, bands, rank)
    products = (basis[..., :, None] * basis[..., None, :]).flatten(2)  # (batch, bands, rank * rank)
    # the prior of the scaled coefficients is the identity, which also keeps the system well conditioned
    system = (precision @ products).unflatten(2, (rank, rank)) + torch.eye(rank, device=noisy.device)
    right = (precision * (noisy.flatten(2) - mean).mT) @ basis  # (batch, pixels, rank)
    solved, singular = torch.linalg.solve_ex(system, right)
    coefficients = torch.where(
        (singular == 0)[..., None], solved, 0.0
    )  # values beyond all bounds: nothing but the mean
    fitted: Tensor = mean + basis @ coefficients.mT
    return fitted.reshape(noisy.shape)


def _wiener(noisy: Tensor) -> tuple[Tensor, Tensor]:
    batch, bands, height, width = noisy.shape
    spectra = noisy.flatten(2)
    mean = spectra.mean(dim=2, keepdim=True)
    centred = spectra - mean  # (batch, bands, pixels)
    covariance = (centred @ centred.mT / spectra.shape[2]).double()
    floor = SIGMA_FLOOR**2
    # a floor on the diagonal: constant or repeated bands leave the covariance singular
    ridge = 1e-3 * floor * torch.eye(bands, dtype=torch.float64, device=noisy.device)
    # one by one: a batch of matrices of 150 bands and more hangs after torch.set_num_threads
    # (https://github.com/pytorch/pytorch/issues/141358)
    inverses, found = zip(*(torch.linalg.inv_ex(each + ridge) for each in covariance), strict=True)
    inverse, singular = torch.stack(inverses), torch.stack(found)
    if singular.any():  # a value so large that beside its square the ridge is nothing
        scale = covariance.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None]
        wider = covariance + ridge + 1e-9 * scale * torch.eye(bands, device=noisy.device)
        wider = torch.stack([torch.linalg.inv_ex(each).inverse for each in wider])
        inverse = torch.where((singular != 0)[:, None, None], wider, inverse)
    unexplained = 1.0 / inverse.diagonal(dim1=1, dim2=2)
    variance = unexplained
    if height > 1 and width > 1:
        variance = torch.minimum(variance, haar_details(noisy, step=2).square_().mean(dim=(2, 3)).double())
    variance = variance.clamp_min(floor)
    sigma = variance.sqrt()
    whitened = covariance / sigma[:, :, None] / sigma[:, None, :]
    energy, planes = torch.linalg.eigh(whitened)
    # in a plane of whitened energy e, 1 is noise: keep (e - 1) / e of it
    kept = (1.0 - 1.0 / energy.clamp_min(1e-9)).clamp_min(0.0)
    matrix = (planes * kept[:, None, :]) @ planes.mT * sigma[:, :, None] / sigma[:, None, :]
    estimate = torch.baddbmm(mean, matrix.float(), centred)
    return estimate.reshape(batch, bands, height, width), sigma.float()
