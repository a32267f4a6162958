"""What networks share: layer norm over channels, down- and upsampling, padding, pieces of an image.

Everything here is two-dimensional and keeps the channels-last memory format of its input, in which one thread
of a CPU convolves several times faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of every pixel.

    Where gradients are wanted on a CPU, half precision is left for it: PyTorch 2.13 sums the gradients of weight and
    bias over the pixels in bfloat16 there, and of 65,536 pixels loses 20 % of the one and 99 % of the other.

    Args:
        channels: Number of channels, at least 1.
        bias: With it, the usual layer norm: centred, divided by the standard deviation, scaled, shifted.
            Without it, Restormer's bias-free form: divided by the standard deviation and scaled, not centred.
        eps: Added to the variance.

    References:
        Zamir et al., "Restormer", CVPR 2022, arXiv 2111.09881.
    """

    def __init__(self, channels: int, bias: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Normalise every pixel on its own."""
        pixels = x.permute(0, 2, 3, 1)  # (batch, height, width, channels)
        if self.bias is None:
            # not centred: the variance is, the values are not
            variance = pixels.to(torch.promote_types(x.dtype, torch.float32)).var(-1, correction=0, keepdim=True)
            normed = pixels * torch.rsqrt(variance + self.eps).to(x.dtype) * self.weight.to(x.dtype)
        else:
            if trains_on_cpu(x):
                pixels = pixels.to(torch.promote_types(x.dtype, torch.float32))
            with torch.autocast(x.device.type, enabled=False):  # which would copy to float32 and back
                weight, bias = (part.to(pixels.dtype) for part in (self.weight, self.bias))
                normed = F.layer_norm(pixels, weight.shape, weight, bias, self.eps).to(x.dtype)
        return normed.permute(0, 3, 1, 2)  # (batch, channels, height, width)


class Downsample(nn.Module):
    """Halve height and width: a 3x3 convolution, then pixel-unshuffle.

    References:
        Shi et al., "Real-time single image and video super-resolution using an efficient sub-pixel convolutional
        neural network", CVPR 2016, arXiv 1609.05158.
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        if out % 4:
            raise ValueError(f"Downsample gives channels by fours: out={out} is not a multiple of 4")
        self.conv = nn.Conv2d(channels, out // 4, 3, padding=1, bias=False)

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch out half_height half_width"]:
        """Go one level down."""
        return F.pixel_unshuffle(self.conv(x), 2)


class Upsample(nn.Module):
    """Double height and width: a 3x3 convolution, then pixel-shuffle."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4 * out, 3, padding=1, bias=False)

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch out double_height double_width"]:
        """Go one level up."""
        return F.pixel_shuffle(self.conv(x), 2)


def pad_to_multiple(
    x: Float[Tensor, "batch channels height width"], multiple: int
) -> tuple[Float[Tensor, "batch channels padded_height padded_width"], tuple[int, int]]:
    """Pad the bottom and the right until height and width are multiples of a number.

    An axis is reflected where it is long enough for that, and its last row or column repeated where it is not.
    The padding of one axis does not depend on the other.

    Returns:
        The padded images (``x`` itself where nothing is missing) and the size to crop to, (height, width).

    Raises:
        ValueError: If ``multiple`` is less than 1.

    Example:
        >>> padded, (height, width) = pad_to_multiple(torch.arange(6.0).reshape(1, 1, 2, 3), 4)
        >>> padded[0, 0].tolist()
        [[0.0, 1.0, 2.0, 1.0], [3.0, 4.0, 5.0, 4.0], [3.0, 4.0, 5.0, 4.0], [3.0, 4.0, 5.0, 4.0]]
        >>> (height, width)
        (2, 3)
    """
    if multiple < 1:
        raise ValueError(f"cannot pad to multiples of {multiple}: give 1 or more")
    height, width = x.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    return _extend(_extend(x, -2, bottom), -1, right), (height, width)


def _extend(x: Tensor, axis: int, count: int) -> Tensor:
    """Reflect or repeat the end of one axis; not F.pad, which autocast on a CPU turns into float32."""
    length = x.shape[axis]
    if count == 0:
        return x
    if torch.compiler.is_compiling():  # one form for all sizes: the compiled or exported graph knows none
        position = torch.arange(length + count, device=x.device)
        mirrored = 2 * (length - 1) - position
        beyond = torch.where(mirrored[-1:] < 0, length - 1, mirrored)
        return x.index_select(axis, torch.where(position < length, position, beyond))
    if count < length:
        border = x.narrow(axis, length - 1 - count, count).flip(axis)
    else:
        border = torch.cat([x.narrow(axis, length - 1, 1)] * count, dim=axis)
    return torch.cat([x, border], dim=axis)


def trains_on_cpu(x: Tensor) -> bool:
    """Whether a backward pass on a CPU may follow, some of whose kernels are wrong (see who asks)."""
    return x.device.type == "cpu" and torch.is_grad_enabled()


# Pieces of an image that fit a processor's cache, for inference. A block that widens its features writes them to memory
# and reads them back between any two of its steps; on a CPU that takes longer than computing them. What depends on a
# pixel's neighbourhood alone is computed piece by piece, each with the margin that it sees: the same output, and the
# wide features of the whole image (800 MB in HCANet's feed-forward at 512 x 512 pixels) never exist. Training needs
# every step of the whole image again and keeps the plain form; so do a GPU and whatever is compiled or exported.

#: Numbers that a piece may keep of one kind of features: 2 MiB in float32. Of 2**17 to 2**22, the fastest for most
#: shapes with 2 MiB of second-level cache a core.
PIECE_NUMBERS = 2**19

#: Shortest side of a piece in pixels: below, most of the work is done for the margins.
SHORTEST_SIDE = 16


class Piece(NamedTuple):
    """Part of a batch of images: one image, some rows and some columns."""

    image: slice
    rows: slice
    columns: slice

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


def in_pieces(x: Tensor) -> bool:
    """Whether to compute features piece by piece: on a CPU, where no gradient is wanted."""
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def pieces(batch: int, height: int, width: int, channels: int) -> Iterator[Piece]:
    """Cut images into nearly square pieces of nearly one size.

    Args:
        batch: Number of images.
        height: Their height in pixels.
        width: Their width in pixels.
        channels: Numbers per pixel of the widest features that a piece keeps.

    Yields:
        Pieces that cover every pixel once.

    Example:
        >>> [piece.rows.stop for piece in pieces(1, 90, 30, channels=400)]
        [30, 60, 90]
    """
    side = max(SHORTEST_SIDE, int((PIECE_NUMBERS / channels) ** 0.5))
    for image in range(batch):
        for rows in _spans(height, side):
            for columns in _spans(width, side):
                yield Piece(slice(image, image + 1), rows, columns)


def _spans(length: int, side: int) -> list[slice]:
    count = -(-length // side)
    edges = [round(index * length / count) for index in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(edges)]


def surroundings(
    pixels: Float[Tensor, "batch height width channels"], piece: Piece, margin: int
) -> tuple[Float[Tensor, "1 rows columns channels"], tuple[int, int, int, int]]:
    """A piece with the margin that the image has there.

    Returns:
        A view of the pixels, and how many are missing at the left, right, top and bottom, as ``F.pad`` takes them.
    """
    top, left = piece.rows.start - margin, piece.columns.start - margin
    bottom, right = piece.rows.stop + margin, piece.columns.stop + margin
    height, width = pixels.shape[1:3]
    view = pixels[piece.image, max(0, top) : bottom, max(0, left) : right]
    return view, (max(0, -left), max(0, right - width), max(0, -top), max(0, bottom - height))


def pad_pixels(
    pixels: Float[Tensor, "batch height width channels"], missing: tuple[int, int, int, int]
) -> Float[Tensor, "batch padded_height padded_width channels"]:
    """Add pixels of zeros on the sides of channels-last features."""
    return F.pad(pixels, (0, 0, *missing)) if any(missing) else pixels


def in_compute_type(x: Tensor, *weights: Tensor | None) -> list[Any]:
    """Weights in the type that autocast would compute in, cast once rather than for every piece."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    return [None if weight is None else weight.to(dtype) for weight in weights]


def pointwise(
    pixels: Float[Tensor, "*batch channels"], weight: Float[Tensor, "out channels"], bias: Float[Tensor, " out"] | None
) -> Float[Tensor, "*batch out"]:
    """A 1x1 convolution as one matrix product over all pixels.

    ``F.linear`` of a view with gaps, as a piece is, would become one product for every row.
    """
    flat = pixels.reshape(-1, pixels.shape[-1])
    return F.linear(flat, weight, bias).view(*pixels.shape[:-1], len(weight))


def pointwise_padded(
    pixels: Float[Tensor, "batch height width channels"],
    missing: tuple[int, int, int, int],
    weight: Float[Tensor, "out channels"],
    bias: Float[Tensor, " out"] | None,
) -> Float[Tensor, "batch padded_height padded_width out"]:
    """A 1x1 convolution, then pixels of zeros on the sides, as the padding of a convolution that follows sees them."""
    if bias is None:  # zeros stay zeros, and there are fewer of them before
        return pointwise(pad_pixels(pixels, missing), weight, None)
    return pad_pixels(pointwise(pixels, weight, bias), missing)
