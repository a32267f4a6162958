"""Filters of planes: images with noise of variance 1, shrunk in the cosine transform of blocks that overlap.

A first round sets to zero what lies within the noise, plane by plane. The second is a Wiener filter with gains read off
a guide. Before it, the planes may be turned: a few pixels hold two or three materials, and two or three planes hold all
of them if they are the right ones. So in cells of 8x8 blocks the planes are replaced by the principal directions of
what the guide has there. Noise stays white under a rotation.

References:
    Yaroslavsky et al., "Transform domain image restoration methods: review, comparison and interpretation", 2001.
    doi:10.1117/12.424970
    Dabov et al., "Image denoising by sparse 3-D transform-domain collaborative filtering", IEEE TIP 2007.
    doi:10.1109/TIP.2007.901238 (two rounds; weights of blocks by what they needed)
    Dabov et al., "BM3D image denoising with shape-adaptive principal component analysis", SPARS 2009 (a transform made
    of the data that it is for)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

THRESHOLD = 2.8
"""Noise levels within which a coefficient is set to zero. Mean of seven cells (cave/validation, pavia_crop and MUUFL at
gaussian-5, 30, 70 and non-iid, true noise level): 40.24 dB, with 3.0 40.21."""

_CELL = 8  # blocks, down and across, that are turned alike
_WEIGHT_FLOOR = 0.5  # on the energy of a block's gains: keeps the weight of an empty block finite
_AT_ONCE = 1 << 20  # coefficients at a time, about: they fit a cache, and bound the memory

_Rule = Callable[[int, int], tuple[Tensor, Tensor]]


@torch.no_grad()
def threshold(
    planes: Float[Tensor, "planes height width"], *, block: int = 8, stride: int = 1, level: float = THRESHOLD
) -> Float[Tensor, "planes height width"]:
    """Set to zero what lies within the noise in the cosine transform of blocks; the mean of a block is kept.

    Args:
        planes: Images with Gaussian noise of standard deviation 1, of any size.
        block: Side of a block, in pixels.
        stride: Pixels from one block to the next, a divisor of ``block``.
        level: Magnitude below which a coefficient counts as noise.

    Returns:
        Denoised images. Each block votes on its pixels with the more weight the fewer coefficients it needed.

    Example:
        >>> noise = torch.randn(1, 20, 30, generator=torch.Generator().manual_seed(0))
        >>> bool(threshold(noise).std() < 0.3)
        True
    """
    blocks = _Blocks(planes, block, stride)

    def rule(first: int, last: int) -> tuple[Tensor, Tensor]:
        found = blocks.transform(planes_padded, first, last)
        kept = found.abs() > level
        kept[..., 0, 0] = True
        return found * kept, kept.sum((-1, -2)).to(found).reciprocal()

    planes_padded = blocks.pad(planes)
    return blocks.blend(rule)


@torch.no_grad()
def wiener(
    planes: Float[Tensor, "planes height width"],
    guide: Float[Tensor, "planes height width"],
    *,
    block: int = 8,
    stride: int = 1,
    turn: bool = True,
    mean_noise: float = 1.0,
) -> tuple[Float[Tensor, "planes height width"], Float[Tensor, " planes"]]:
    """Weight every coefficient of a block by ``E / (E + 1)`` with the energy E that a guide has there.

    Args:
        planes: Images with Gaussian noise of standard deviation 1, of any size.
        guide: What is known of them without noise.
        block: Side of a block, in pixels.
        stride: Pixels from one block to the next, a divisor of ``block``.
        turn: Whether the planes are first turned into the principal directions that the guide has in a cell.
        mean_noise: Noise against which the mean of a block is weighed.

    Returns:
        Denoised images, and the share of the variance of the noise of each that ``planes - denoised`` lacks.

    Example:
        >>> noise = torch.randn(2, 20, 30, generator=torch.Generator().manual_seed(0))
        >>> denoised, absorbed = wiener(noise + 5, torch.full((2, 20, 30), 5.0))
        >>> bool(denoised.sub(5).abs().max() < 0.5), bool(absorbed.max() < 0.1)
        (True, True)
    """
    blocks = _Blocks(planes, block, stride)
    noise = planes.new_ones(block, block)
    noise[0, 0] = mean_noise
    absorbed = planes.new_zeros(len(planes))

    def rule(first: int, last: int) -> tuple[Tensor, Tensor]:
        found, known = (blocks.transform(images, first, last) for images in (planes_padded, guide_padded))
        if not turn or len(planes) == 1:
            energy = known.square_()
            gain = energy.div_(energy + noise)
            lacking = 2.0 * gain.sum((1, 2, 3, 4))
            found.mul_(gain)
            squared = gain.square_().sum((-1, -2))
            absorbed.add_(lacking - squared.sum((1, 2)))
            return found, (squared + _WEIGHT_FLOOR).reciprocal()
        across = found.shape[2]
        # (cells, planes, coefficients of all blocks)
        cells, known = (_cells(each.flatten(3)) for each in (found, known))
        directions = torch.linalg.eigh(known @ known.mT).eigenvectors
        energy = (directions.mT @ known).square_().reshape(*known.shape[:2], -1, block, block)
        gain = energy.div_(energy + noise)
        turned = (directions.mT @ cells).mul_(gain.flatten(2))
        lacking = 2.0 * gain.sum((2, 3, 4))
        squared = gain.square_().sum((3, 4))  # (cells, planes, blocks)
        absorbed.add_((directions.square() @ (lacking - squared.sum(2))[..., None]).sum((0, 2)))
        weight = (squared.sum(1, keepdim=True) + _WEIGHT_FLOOR).reciprocal()  # one for all planes
        shrunk = _uncells(directions @ turned, last - first, across)
        return shrunk.reshape(*shrunk.shape[:3], block, block), _uncells(weight, last - first, across)[..., 0].expand(
            len(planes), -1, -1
        )

    planes_padded, guide_padded = blocks.pad(planes), blocks.pad(guide)
    denoised = blocks.blend(rule)
    return denoised, absorbed / (blocks.down * blocks.across * block**2)


def _cells(coefficients: Tensor) -> Tensor:
    """(planes, down, across, coefficients) to (cells, planes, blocks of a cell * coefficients), filled up by zeros."""
    planes, down, across, count = coefficients.shape
    padded = F.pad(coefficients, (0, 0, 0, -across % _CELL, 0, -down % _CELL))
    parts = padded.reshape(planes, -(-down // _CELL), _CELL, -1, _CELL, count)
    return parts.permute(1, 3, 0, 2, 4, 5).reshape(-1, planes, _CELL**2 * count)


def _uncells(cells: Tensor, down: int, across: int) -> Tensor:
    """The way back."""
    planes, tall, wide = cells.shape[1], -(-down // _CELL), -(-across // _CELL)
    parts = cells.reshape(tall, wide, planes, _CELL, _CELL, -1).permute(2, 0, 3, 1, 4, 5)
    return parts.reshape(planes, tall * _CELL, wide * _CELL, -1)[:, :down, :across]


class _Blocks:
    """Overlapping blocks of images that are continued by their mirror images, edges repeated.

    Every pixel lies in as many blocks as any other.
    """

    def __init__(self, like: Tensor, block: int, stride: int) -> None:
        if stride < 1 or block % stride:
            raise ValueError(f"stride={stride} does not divide {block}, the side of a block")
        self.block, self.stride, self.shape = block, stride, like.shape
        self.cosines = cosines(block, like)
        self.down, self.across = ((n + -n % stride + block) // stride - 1 for n in like.shape[1:])

    def pad(self, images: Tensor) -> Tensor:
        edge = self.block - self.stride
        rows, columns = (mirrored(-edge, n + -n % self.stride + edge, n, images.device) for n in self.shape[1:])
        return images[:, rows][:, :, columns]

    def transform(self, padded: Tensor, first: int, last: int) -> Tensor:
        """Cosine transform of some rows of blocks, (planes, down, across, frequency, frequency)."""
        strip = padded[:, first * self.stride : (last - 1) * self.stride + self.block]
        # copied first: a product with a view of overlapping blocks is made block by block, three times slower
        down = strip.unfold(1, self.block, self.stride).contiguous() @ self.cosines.mT
        return down.unfold(2, self.block, self.stride).contiguous() @ self.cosines.mT

    def blend(self, rule: _Rule) -> Tensor:
        """Weighted mean of all blocks at each pixel."""
        images, height, width = self.shape
        parts, edge = self.block // self.stride, self.block - self.stride
        total = self.cosines.new_zeros(
            images, self.down + parts - 1, self.stride, self.stride * (self.across + parts - 1)
        )
        share = self.cosines.new_zeros(images, self.down + parts - 1, self.across + parts - 1)
        rows = max(1, round(_AT_ONCE / (images * self.across * self.block**2 * _CELL))) * _CELL
        for first in range(0, self.down, rows):
            last = min(first + rows, self.down)
            values, weight = rule(first, last)
            across = (values * weight[..., None, None]) @ self.cosines  # (planes, down, across, frequency, position)
            columns = across.new_zeros(images, last - first, share.shape[2], self.block, self.stride)
            wide = weight.new_zeros(images, last - first, share.shape[2])
            for part in range(parts):
                here = slice(part, part + self.across)
                columns[:, :, here] += across[..., part * self.stride : (part + 1) * self.stride]
                wide[:, :, here] += weight
            # (planes, down, columns, position)
            lines = columns.transpose(3, 4).flatten(2, 3) @ self.cosines
            for part in range(parts):
                here = slice(first + part, last + part)
                total[:, here] += lines[..., part * self.stride : (part + 1) * self.stride].mT
                share[:, here] += wide
        inside = total.flatten(1, 2)[:, edge : edge + height, edge : edge + width]
        votes = share.repeat_interleave(self.stride, 1).repeat_interleave(self.stride, 2)
        return inside / votes[:, edge : edge + height, edge : edge + width]


def cosines(length: int, like: Tensor) -> Float[Tensor, "frequency position"]:
    """Basis of the cosine transform, the mean first."""
    frequency, position = torch.arange(length, device=like.device)[:, None], torch.arange(length, device=like.device)
    basis = torch.cos(torch.pi * (2 * position + 1) * frequency / (2 * length)) * (2.0 / length) ** 0.5
    basis[0] /= 2.0**0.5
    result: Tensor = basis.to(like.dtype)
    return result


def mirrored(first: int, last: int, length: int, device: torch.device) -> Int64[Tensor, " _"]:
    """Indices from ``first`` to ``last`` of an image that is continued by its mirror images, edges repeated."""
    position = torch.arange(first, last, device=device) % (2 * length)
    return torch.where(position < length, position, 2 * length - 1 - position)
