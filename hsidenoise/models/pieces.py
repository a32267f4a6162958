"""Pieces of an image that fit a processor's cache, for inference.

A block that widens its features writes them to memory and reads them back between any two of its steps; on a CPU that
takes longer than computing them. What depends on a pixel's neighbourhood alone can be computed piece by piece, each
with the margin that it sees, all steps of a piece while it is in the cache. The output is the same, and the wide
features of the whole image never exist: HCANet's feed-forward at 512 x 512 pixels has 800 MB of them.

Gradients need every step of the whole image again, so training keeps the plain form. So do a GPU, whose kernels want
many pixels at a time, and whatever is compiled or exported.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

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
    """Whether to compute features piece by piece: on a CPU, where no gradient is wanted.

    Args:
        x: Features.

    Example:
        >>> in_pieces(torch.zeros(1))
        False
    """
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

    Args:
        pixels: Features, channels last.
        piece: Which part.
        margin: Pixels to add on each side.

    Returns:
        A view of the pixels, and how many are missing at the left, right, top and bottom, as ``F.pad`` takes them.

    Example:
        >>> view, missing = surroundings(torch.zeros(1, 20, 30, 4), Piece(slice(0, 1), slice(0, 8), slice(8, 16)), 2)
        >>> view.shape, missing
        (torch.Size([1, 10, 12, 4]), (0, 0, 2, 0))
    """
    top, left = piece.rows.start - margin, piece.columns.start - margin
    bottom, right = piece.rows.stop + margin, piece.columns.stop + margin
    height, width = pixels.shape[1:3]
    view = pixels[piece.image, max(0, top) : bottom, max(0, left) : right]
    return view, (max(0, -left), max(0, right - width), max(0, -top), max(0, bottom - height))


def pad_pixels(
    pixels: Float[Tensor, "batch height width channels"], missing: tuple[int, int, int, int]
) -> Float[Tensor, "batch padded_height padded_width channels"]:
    """Add pixels of zeros on the sides of channels-last features.

    Args:
        pixels: Features, channels last.
        missing: Pixels to add at the left, right, top and bottom.

    Example:
        >>> pad_pixels(torch.ones(1, 1, 1, 2), (0, 1, 0, 0)).tolist()
        [[[[1.0, 1.0], [0.0, 0.0]]]]
    """
    return F.pad(pixels, (0, 0, *missing)) if any(missing) else pixels


def in_compute_type(x: Tensor, *weights: Tensor | None) -> list[Any]:
    """Weights in the type that autocast would compute in, cast once rather than for every piece.

    Args:
        x: Features that the weights will meet.
        weights: Weights, or None for a bias that there is not.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    return [None if weight is None else weight.to(dtype) for weight in weights]


def pointwise(
    pixels: Float[Tensor, "*batch channels"], weight: Float[Tensor, "out channels"], bias: Float[Tensor, " out"] | None
) -> Float[Tensor, "*batch out"]:
    """A 1x1 convolution as one matrix product over all pixels.

    ``F.linear`` of a view with gaps, as a piece is, would become one product for every row.

    Args:
        pixels: Features, channels last.
        weight: Matrix.
        bias: What to add, if anything.

    Example:
        >>> pointwise(torch.ones(2, 3, 4), torch.ones(5, 4), None).shape
        torch.Size([2, 3, 5])
    """
    flat = pixels.reshape(-1, pixels.shape[-1])
    return F.linear(flat, weight, bias).view(*pixels.shape[:-1], len(weight))


def pointwise_padded(
    pixels: Float[Tensor, "batch height width channels"],
    missing: tuple[int, int, int, int],
    weight: Float[Tensor, "out channels"],
    bias: Float[Tensor, " out"] | None,
) -> Float[Tensor, "batch padded_height padded_width out"]:
    """A 1x1 convolution, then pixels of zeros on the sides, as the padding of a convolution that follows sees them.

    Args:
        pixels: Features, channels last.
        missing: Pixels to add at the left, right, top and bottom.
        weight: Matrix, usually one that widens.
        bias: What to add, if anything.

    Example:
        >>> pointwise_padded(torch.ones(1, 1, 1, 2), (0, 1, 0, 0), torch.ones(1, 2), None).tolist()
        [[[[2.0], [0.0]]]]
    """
    if bias is None:  # zeros stay zeros, and there are fewer of them before
        return pointwise(pad_pixels(pixels, missing), weight, None)
    return pad_pixels(pointwise(pixels, weight, bias), missing)
