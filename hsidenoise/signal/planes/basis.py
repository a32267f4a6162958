"""Along which spectra the pixels of a scene vary: directions for planes, from noisy spectra.

The principal directions of noisy spectra are noisy themselves: with 190 bands and 9,000 pixels, the scene as it is in
its own planes loses more by that than by all that is left of the noise in the planes. But spectra are alike in
neighbouring bands, and noise is not:

- Directions too weak to stand out among all bands are looked for among the smooth spectra, which are fewer, so that
  noise has less to hide in.
- Every direction is smoothed as a function of the band, by as much as makes it most likely: a Gaussian process with a
  rough part. A spectrum that jumps from band to band, as a narrow absorption does, stays as it is where the noise is
  small against it.

References:
    Silverman, "Smoothed functional principal components analysis by choice of norm", Annals of Statistics 24(1), 1996.
    doi:10.1214/aos/1033066196
    Rasmussen and Williams, "Gaussian Processes for Machine Learning", MIT Press 2006, section 5.4.1 (the likelihood).
    Johnstone, "On the distribution of the largest eigenvalue in principal components analysis", Annals of Statistics
    29(2), 2001. doi:10.1214/aos/1009210544 (the edge of pure noise)
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from hsidenoise.signal.planes.filter import cosines

# Chosen on cave/validation (centre 128 x 128), pavia_crop and MUUFL (cleaned by a truncated SVD), gaussian-30, non-iid
# and mixture, PSNR behind the filters; mean of the twelve cells 39.3 dB.

RANK_MARGIN = 0.0005
"""Energy above what chance has from which a plane is signal, for each band: errors of all noise levels add up. 0.0001
loses 0.01 dB."""

SMOOTH_SHARES = (2, 4, 8)
"""Weak directions are looked for in the smoothest half of all spectra, then in a quarter and an eighth of them. Without
any, 0.2 dB less; up to 1.5 dB at sigma 70 and many bands."""

LENGTHS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
ROUGHNESS = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3)
"""Bands over which a direction may be alike, and shares of its energy that may jump from band to band. All of it may,
too. Without smoothing, 0.2 dB less on CAVE, 0.5 to 2 dB under heavy noise on many bands."""

SHARED = 0.5
"""How much of the likelihoods of all directions counts beside the own. 0 and 1 lose 0.01 dB."""

_FEWEST = 3  # fewer bands are neither smooth nor rough
_FEWEST_WEAK = 8
_LEAST = 1e-3  # of the energy of a direction, that is its own and not noise's


class BandKernels(NamedTuple):
    """How alike bands may be, each way as what it says of spectra divided by the noise level: independent energies.

    Attributes:
        energy: Energies of a spectrum of energy 1.
        directions: Orthonormal directions that they belong to.
        scale: Noise level of each band, over their mean.
    """

    energy: Float64[Tensor, "some bands"]
    directions: Float64[Tensor, "some bands bands"]
    scale: Float64[Tensor, " bands"]


class PlaneBasis(NamedTuple):
    """Where the spectra of a region lie.

    Attributes:
        mean: Mean spectrum, in the unit of the cube.
        basis: Orthonormal directions of the spectra divided by the noise level, the strongest last.
    """

    mean: Float[Tensor, " bands"]
    basis: Float[Tensor, "bands planes"]


def find_basis(
    cube: Float[Tensor, "bands height width"],
    sigma: Float[Tensor, " bands"],
    kernels: BandKernels,
) -> PlaneBasis:
    """Find the directions in which noisy spectra vary more than noise does, one at least.

    Args:
        cube: Noisy cube in any unit.
        sigma: Noise level of each band, above 0, in the unit of the cube.
        kernels: What :func:`band_kernels` gives for these noise levels.

    Returns:
        The mean spectrum and the directions.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> spectrum = torch.linspace(0, 3, 50).sin()
        >>> clean = spectrum[:, None, None] * torch.rand(20, 30, generator=generator)
        >>> noisy = clean + 0.3 * torch.randn(clean.shape, generator=generator)
        >>> sigma = torch.full((50,), 0.3)
        >>> mean, basis = find_basis(noisy, sigma, band_kernels(sigma))
        >>> basis.shape, bool((basis[:, 0] @ spectrum / spectrum.norm()).abs() > 0.999)
        (torch.Size([50, 1]), True)
    """
    bands, count = len(cube), cube[0].numel()
    mean = cube.mean((1, 2))
    scale = kernels.scale
    flat = ((cube - mean[:, None, None]) / sigma[:, None, None]).flatten(1)
    covariance = (flat @ flat.mT / count).double()
    energy, directions = _above_noise(torch.eye(bands).to(scale), covariance, count, least=1)
    if bands < _FEWEST:
        return PlaneBasis(mean, directions.to(mean))
    if bands >= _FEWEST_WEAK:
        smooth = cosines(bands, scale).mT / scale[:, None]
        for share in SMOOTH_SHARES:
            part = smooth[:, : max(2, bands // share)]
            part = torch.linalg.qr(part - directions @ (directions.mT @ part)).Q
            further = _above_noise(part, covariance, count)
            energy, directions = torch.cat([further[0], energy]), torch.cat([further[1], directions], 1)
    # smooth in the unit of the cube; the mean as one more of them
    excess = (energy - 1.0).clamp_min(_LEAST)
    level = (mean / sigma.mean()).double()
    spectra = torch.cat([(directions * excess.sqrt()).mT, ((level - level.mean()) / scale)[None]])
    variance = torch.cat([energy / excess, energy.new_ones(1)]) / count
    spectra = _smooth(spectra, variance, kernels)
    basis = torch.linalg.qr(spectra[:-1].mT).Q
    return PlaneBasis(((spectra[-1] * scale + level.mean()) * sigma.mean()).to(mean), basis.to(mean))


def band_kernels(sigma: Float[Tensor, " bands"]) -> BandKernels:
    """How alike bands may be, by their distance: Matern kernels of order 3/2 with a rough part; rough alone the last.

    Args:
        sigma: Noise level of each band, above 0.
    """
    scale = (sigma / sigma.mean()).double()
    position = torch.arange(len(sigma), device=sigma.device, dtype=torch.float64)
    apart, rough = (position[:, None] - position).abs() * 3.0**0.5, torch.eye(len(sigma)).to(position)
    kernels = [
        ((1.0 + apart / length) * torch.exp(-apart / length)).lerp(rough, share)
        for length, share in product(LENGTHS, ROUGHNESS)
    ]
    whitened = torch.stack([*kernels, rough]) / scale / scale[:, None]
    energy, directions = torch.linalg.eigh(whitened)
    return BandKernels(energy.clamp_min(0), directions, scale)


def _above_noise(part: Tensor, covariance: Tensor, count: int, least: int = 0) -> tuple[Tensor, Tensor]:
    """Energies and directions, of those in the space that some columns span, that noise does not have."""
    energy, turns = torch.linalg.eigh(part.mT @ covariance @ part)
    size = len(energy)
    # chance takes the strongest of them about so far, and one time in twenty a deviation beyond (Tracy and Widom)
    edge = (1.0 + (size / count) ** 0.5) ** 2
    deviation = (size**0.5 + count**0.5) / count * (size**-0.5 + count**-0.5) ** (1 / 3)
    edge += deviation + RANK_MARGIN * size
    kept = size - max(least, int((energy > edge).sum()))
    return energy[kept:], part @ turns[:, kept:]


def _smooth(spectra: Tensor, variance: Tensor, kernels: BandKernels) -> Tensor:
    """The mean of the most likely Gaussian process behind each of some spectra, given the variance of its noise.

    Args:
        spectra: Spectra divided by the noise level, (spectra, bands).
        variance: Of the noise of each, the same in all bands.
        kernels: The processes.
    """
    plain = spectra * kernels.scale
    total = plain.square().mean(1)
    power = (total - variance * kernels.scale.square().mean()).maximum(_LEAST * total)
    power = power.clamp_min(torch.finfo(total.dtype).tiny)
    parts = spectra @ kernels.directions  # (kernels, spectra, bands)
    signal = power[:, None] * kernels.energy[:, None]
    both = signal + variance[:, None]
    likely = -0.5 * (parts.square() / both + both.log()).sum(2)  # but for a constant
    chosen = ((1.0 - SHARED) * likely + SHARED * likely.sum(1, keepdim=True)).argmax(0)
    each = torch.arange(len(spectra), device=chosen.device)
    shrunk = (parts * signal / both)[chosen, each]
    smooth: Tensor = (kernels.directions[chosen] @ shrunk[..., None])[..., 0]
    return smooth
