"""The pilot filter: what a network found, used as the pilot of a Wiener filter of the noisy cube itself.

BM3D and its kin denoise twice: the second time as a Wiener filter whose gains are read off the first result. Here the
first result is the network's. A network blurs what it is unsure of, and what it removes it removes from every band for
itself; the noisy cube still holds it. So the bands of the noisy cube are divided by their noise and projected on the
principal directions of the pilot, where the noise stays white and the scene is concentrated in a few planes. Each plane
is filtered in the cosine transform of its 16x16 blocks, every coefficient by ``E / (E + 1)`` with the energy E that the
pilot has there. There is nothing to train, it takes any number of bands at once, and costs a tenth of the network.

What the pilot and its noise cannot explain (impulses, dead columns) is first drawn to the pilot, and columns that are
off as a whole are shifted back: as in the spectral Wiener estimate, with a far better idea of the scene.

References:
    Dabov et al., "Image denoising by sparse 3-D transform-domain collaborative filtering", IEEE TIP 16(8), 2007.
    doi:10.1109/TIP.2007.901238 (the pilot filter; block weights by the energy of the gains)
    Zhuang & Bioucas-Dias, "Fast hyperspectral image denoising and inpainting based on low-rank and sparse
    representations", IEEE JSTARS 11(3), 2018. doi:10.1109/JSTARS.2018.2796570 (images of a noise-whitened subspace)
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Float64, Int64, Real
from torch import Tensor

from hsidenoise.signal.defects import column_offsets, trust, without_common
from hsidenoise.signal.noise_level import SIGMA_FLOOR, normal_quantile
from hsidenoise.signal.scaling import Scaling

# All chosen with the shipped default on cave/validation, centre 256 x 256, mean PSNR / SAM of eight cases from
# gaussian-5 to mixture: 37.59 dB / 0.166 without this step, 38.93 / 0.128 with it.

PILOT_SHARE = 0.2
"""Share of the pilot in the result; 0.1 gives 38.93 / 0.127."""

LEAST_ENERGY = 0.002
"""Planes of the pilot with less energy than this, where the noise has 1, are left out; with blocks of 8 pixels 0.005
gave up 0.04 dB and 0.02 0.3 dB."""

MEAN_NOISE = 0.2
"""Noise against which the mean of a block is weighed; 0.1 gives 38.94 / 0.128, 0.4 gives 38.91 / 0.128. With blocks of
8 pixels, 1 (as for all other coefficients) gave up 0.2 dB, and 0 (the mean kept) spectra: SAM 0.148 for 0.141."""

OUTLIER_SIGMAS = 3.0
"""A value off the pilot by this many standard deviations counts half; 4 gave up 0.14 dB, nearly all under impulses."""

BLOCK, STRIDE = 16, 4
"""Side of a block, and pixels from one to the next. 8 and 2 give 38.89 / 0.135, 12 and 4 38.91 / 0.130, 32 and 8
38.69 / 0.128; half the stride gains some 0.07 dB at four times the cost."""

COARSE = 8
"""Stride of all steps but the last. With hcanet-bra, mean of five cases: 38.10 dB after one step of stride 4,
38.57 after one of 8 and one of 4, 38.61 after two of 4, which costs twice as much."""

_WEIGHT_FLOOR = 0.5  # on the energy of a block's gains: keeps the weight of an empty block finite
_QUANTILE = 0.3  # of the residual's magnitudes, for its noise: outliers may be on up to 70 % of the pixels
_SAMPLE = 1 << 14  # pixels of a band that it is taken from
_ROWS = 128  # of a cube at a time, a multiple of the strides: bounds the memory
_BLOCK_ROWS = 8  # rows of blocks at a time, one image at a time: fits the cache of a core


@torch.no_grad()
def pilot_filter(
    noisy: Float32[np.ndarray, "bands height width"],
    pilot: Float32[np.ndarray, "bands height width"],
    *,
    stride: int = STRIDE,
    device: torch.device | str = "cpu",
) -> Float32[np.ndarray, "bands height width"]:
    """Denoise a cube once more, with a first result as the pilot.

    Args:
        noisy: Noisy cube scaled to about [0, 1], of any size and any number of bands.
        pilot: What a first denoiser made of it.
        stride: Pixels from one block to the next, a divisor of their side, 16.
        device: Where to compute. Memory for a few strips of 128 rows, beside the result.

    Returns:
        The result, a new array.

    Raises:
        ValueError: If the shapes differ, or 16 is not a multiple of the stride.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> clean = np.linspace(0.3, 0.9, 7)[:, None, None] * np.linspace(0, 1, 30)[:, None] * np.ones(40)
        >>> noisy, pilot = ((clean + rng.normal(0, level, clean.shape)).astype(np.float32) for level in (0.1, 0.05))
        >>> bool(np.std(pilot_filter(noisy, pilot) - clean) < 0.5 * np.std(pilot - clean))
        True
    """
    if noisy.shape != pilot.shape:
        raise ValueError(f"a noisy cube of shape {noisy.shape} and a pilot of {pilot.shape} are not the same")
    if stride < 1 or BLOCK % stride:
        raise ValueError(f"stride={stride} does not divide {BLOCK}, the side of a block")
    place = torch.device(device)
    found = _find(noisy, pilot, place)
    height = pilot.shape[1]
    result = np.empty_like(pilot)
    for first in range(0, height, _ROWS):
        last = min(first + _ROWS, height)
        rows = _mirrored(first - BLOCK, last + BLOCK + -last % stride, height)
        strip, guide = (torch.from_numpy(cube[:, rows]).to(place) for cube in (noisy, pilot))
        result[:, first:last] = _filter_rows(strip, guide, found, last - first, stride).cpu().numpy()
    return result


class _Found(NamedTuple):
    """What is estimated of a cube before it is filtered."""

    whiten: Tensor  # (planes, bands)
    restore: Tensor  # (bands, planes)
    mean: Tensor  # (bands, 1, 1)
    spread: Tensor  # (1, bands)
    offset: Tensor  # of columns, (bands, 1, width)


def _find(noisy: np.ndarray, pilot: np.ndarray, place: torch.device) -> _Found:
    offset, sigma = _noise(noisy, pilot)
    mean, directions = _principal(pilot, sigma)
    parts = (
        (directions / sigma[:, None]).T,
        directions * sigma[:, None],
        mean[:, None, None],
        sigma[None],
        offset[:, None],
    )
    return _Found(*(torch.from_numpy(part.astype(np.float32)).to(place) for part in parts))


def _filter_rows(noisy: Tensor, pilot: Tensor, found: _Found, height: int, stride: int) -> Tensor:
    """Filter rows of a cube that are given with a block more above and below."""
    width = noisy.shape[2]
    columns = _mirrored(-BLOCK, width + BLOCK + -width % stride, width)
    known = pilot - found.mean
    residual = noisy - found.mean - known - found.offset
    residual = residual * trust(residual.detach()[None], found.spread, OUTLIER_SIGMAS)[0]
    guides = _planes(found.whiten, known)[..., columns]
    images = _planes(found.whiten, residual)[..., columns] + guides
    filtered = torch.stack([_filter(image, guide, stride) for image, guide in zip(images, guides, strict=True)])
    inside = slice(BLOCK, BLOCK + height)
    scene = _planes(found.restore, filtered[:, inside, BLOCK : BLOCK + width])
    return scene.lerp(known[:, inside], PILOT_SHARE) + found.mean


def repeat_pilot_filter(
    noisy: Real[np.ndarray, "bands height width"],
    denoised: Float[np.ndarray, "bands height width"],
    count: int,
    scaling: Scaling,
    *,
    device: torch.device | str = "cpu",
) -> Float[np.ndarray, "bands height width"]:
    """Make the pilot filter some times, each with the last result as the pilot, on cubes in a unit of their own.

    Returns:
        The result, in the unit of ``noisy``; ``denoised`` itself if there is nothing to do.
    """
    if count:
        scaled, pilot = scaling.apply(noisy), scaling.apply(denoised)
        for stride in strides(count):
            pilot = pilot_filter(scaled, pilot, stride=stride, device=device)
        denoised = scaling.invert(pilot, denoised.dtype)
    return denoised


def strides(count: int) -> tuple[int, ...]:
    """Stride of each of so many rounds of the pilot filter: only the last needs its blocks to lie close.

    Example:
        >>> strides(1), strides(3)
        ((4,), (8, 8, 4))
    """
    return (*[COARSE] * (count - 1), STRIDE)[:count]


def _noise(
    noisy: np.ndarray, pilot: np.ndarray
) -> tuple[Float32[np.ndarray, "bands width"], Float64[np.ndarray, " bands"]]:
    """What each column of each band is off by, and the noise level of each band."""
    bands, _, width = noisy.shape
    offset, sigma = torch.zeros(1, bands, width), np.empty(bands)
    for band in range(bands):  # a band at a time bounds the memory
        residual = torch.from_numpy(noisy[band] - pilot[band])[None, None]
        shift = column_offsets(residual, _level)
        if shift is not None:
            offset[:, band] = shift[:, 0]
            residual -= shift[:, :, None]
        sigma[band] = _level(residual).item()
    return without_common(offset)[0].numpy(), sigma


def _level(residual: Tensor) -> Tensor:
    """Standard deviation of the Gaussian part of one band's residual, (1, 1)."""
    sample = residual.ravel()[:: max(1, residual.numel() // _SAMPLE)].abs()
    rank = round(_QUANTILE * (len(sample) - 1))
    level = float(np.partition(sample.numpy(), rank)[rank]) / normal_quantile(_QUANTILE)
    return torch.full((1, 1), max(level, SIGMA_FLOOR), dtype=torch.float64)


def _principal(
    pilot: np.ndarray, sigma: np.ndarray
) -> tuple[Float64[np.ndarray, " bands"], Float64[np.ndarray, "bands planes"]]:
    """Mean spectrum, and the directions in which the pilot has energy once each band is divided by its noise."""
    bands = len(pilot)
    mean = pilot.mean(axis=(1, 2), dtype=np.float64)
    covariance = np.zeros((bands, bands))
    for first in range(0, pilot.shape[1], _ROWS):
        part = (pilot[:, first : first + _ROWS].reshape(bands, -1) - mean[:, None]) / sigma[:, None]
        covariance += part @ part.T
    energy, directions = np.linalg.eigh(covariance / pilot[0].size)
    return mean, directions[:, max(1, int((energy > LEAST_ENERGY).sum())) * -1 :]


def _mirrored(first: int, last: int, length: int) -> Int64[np.ndarray, " _"]:
    """Indices from ``first`` to ``last`` of an image that is continued by its mirror images, edges repeated."""
    position = np.arange(first, last) % (2 * length)
    return np.where(position < length, position, 2 * length - 1 - position)


def _planes(matrix: Tensor, cube: Tensor) -> Tensor:
    return (matrix @ cube.flatten(1)).reshape(len(matrix), *cube.shape[1:])


def _filter(noisy: Tensor, guide: Tensor, stride: int) -> Tensor:
    """Wiener-filter an image with noise of variance 1 by the energies of its guide, (rows, columns)."""
    cosines = torch.from_numpy(cosine_basis(BLOCK).astype(np.float32)).to(noisy.device)
    noise = torch.ones(BLOCK, 1, BLOCK, device=noisy.device)
    noise[0, 0, 0] = MEAN_NOISE
    total, share = torch.zeros_like(noisy), torch.zeros_like(noisy)
    count = (len(noisy) - BLOCK) // stride + 1
    for first in range(0, count, _BLOCK_ROWS):
        rows = slice(first * stride, (min(first + _BLOCK_ROWS, count) - 1) * stride + BLOCK)
        energy = _transform(guide[rows], cosines, stride).square()
        gain = energy / (energy + noise)
        weight = (gain.square().sum(dim=(1, 3)) + _WEIGHT_FLOOR).reciprocal()  # (blocks down, blocks across)
        down = (_transform(noisy[rows], cosines, stride) * gain * weight[:, None, :, None]) @ cosines
        total[rows] += _overlap_add(cosines.mT @ _overlap_add(down, 2, stride), 0, stride)
        share[rows] += _overlapping(weight, stride)
    return total / share


def _transform(image: Tensor, cosines: Tensor, stride: int) -> Tensor:
    """Cosine transform of all blocks of an image: (blocks down, frequency, blocks across, frequency)."""
    # copied first: a product with a view of overlapping blocks is made block by block, three times slower
    down = cosines @ image.unfold(0, BLOCK, stride).mT.contiguous()  # (blocks down, frequency, columns)
    return down.unfold(2, BLOCK, stride).contiguous() @ cosines.mT


def _overlap_add(blocks: Tensor, axis: int, stride: int) -> Tensor:
    """Sum of blocks that overlap: they are counted along ``axis`` and lie along the next, which are made one."""
    count, parts = blocks.shape[axis], BLOCK // stride
    shape = [*blocks.shape[:axis], count + parts - 1, stride, *blocks.shape[axis + 2 :]]
    total = blocks.new_zeros(shape)
    for part in range(parts):
        total.narrow(axis, part, count).add_(blocks.narrow(axis + 1, part * stride, stride))
    return total.flatten(axis, axis + 1)


def _overlapping(weight: Tensor, stride: int) -> Tensor:
    """Sum of the weights of all blocks that a pixel lies in: the same over squares of one stride."""
    parts = BLOCK // stride
    padded = F.pad(weight, (parts - 1, parts - 1, parts - 1, parts - 1))
    sums = padded.unfold(0, parts, 1).sum(dim=-1).unfold(1, parts, 1).sum(dim=-1)
    return sums.repeat_interleave(stride, dim=0).repeat_interleave(stride, dim=1)


@cache
def cosine_basis(side: int) -> Float64[np.ndarray, "side side"]:
    """Basis of the cosine transform of so many values, (frequency, position), the mean first.

    Example:
        >>> cosine_basis(2).round(3).tolist()
        [[0.707, 0.707], [0.707, -0.707]]
    """
    frequency, position = np.arange(side)[:, None], np.arange(side)
    basis: np.ndarray = np.cos(np.pi * (2 * position + 1) * frequency / (2 * side)) * np.sqrt(2.0 / side)
    basis[0] /= np.sqrt(2.0)
    return basis
