"""Regions of an image: folding it into them, with a mask of what is real, and back."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def to_regions(
    x: Float[Tensor, "batch height width dim"], rows: int, cols: int
) -> tuple[Float[Tensor, "batch regions pixels dim"], Bool[Tensor, "regions pixels"] | None]:
    """Fold an image into regions in row-major order; zeros are added below and to the right to complete the last ones.

    Args:
        x: Image, channels last.
        rows: Rows of a region.
        cols: Columns of a region.

    Returns:
        Pixels by region, and False where a pixel was added, or None where none was. Every region has a real pixel.

    Example:
        >>> regions, mask = to_regions(torch.zeros(1, 5, 8, 3), 4, 4)
        >>> regions.shape, mask.sum(1).tolist()
        (torch.Size([1, 4, 16, 3]), [16, 16, 4, 4])
    """
    batch, height, width, dim = x.shape
    if _compiled_for_any_size():
        row, col = _positions(height, rows, x.device)[:, None, :, None], _positions(width, cols, x.device)[:, None]
        pixel = row.clamp_max(height - 1) * width + col.clamp_max(width - 1)  # (down, across, rows, cols)
        real = ((row < height) & (col < width)).flatten(2).flatten(0, 1)
        gathered = x.flatten(1, 2).index_select(1, pixel.flatten()).reshape(batch, *real.shape, dim)
        return gathered * real[..., None], real
    down, across = (height + rows - 1) // rows, (width + cols - 1) // cols
    below, right = down * rows - height, across * cols - width
    mask = None
    # A tracer is not asked whether the sizes divide: its graph is for all of them.
    if torch.compiler.is_compiling() or below or right:
        x = F.pad(x, (0, 0, 0, right, 0, below))
        real_rows = torch.arange(down * rows, device=x.device).reshape(down, 1, rows, 1) < height
        real_cols = torch.arange(across * cols, device=x.device).reshape(1, across, 1, cols) < width
        mask = (real_rows & real_cols).reshape(down * across, rows * cols)
    x = x.reshape(batch, down, rows, across, cols, dim).transpose(2, 3)
    return x.reshape(batch, down * across, rows * cols, dim), mask


def from_regions(
    x: Float[Tensor, "batch regions pixels dim"], height: int, width: int, rows: int, cols: int
) -> Float[Tensor, "batch height width dim"]:
    """Unfold regions into the image; what was added to complete them is cut off.

    Args:
        x: Pixels by region.
        height: Rows of the image.
        width: Columns of the image.
        rows: Rows of a region.
        cols: Columns of a region.

    Example:
        >>> image = torch.rand(1, 5, 8, 3)
        >>> torch.equal(from_regions(to_regions(image, 4, 4)[0], 5, 8, 4, 4), image)
        True
    """
    if _compiled_for_any_size():
        row, col = torch.arange(height, device=x.device)[:, None], torch.arange(width, device=x.device)
        region = row // rows * ((width + cols - 1) // cols) + col // cols
        place = (region * rows + row % rows) * cols + col % cols  # (height, width)
        return x.flatten(1, 2).index_select(1, place.flatten()).reshape(x.shape[0], height, width, x.shape[3])
    batch, _, _, dim = x.shape
    down, across = (height + rows - 1) // rows, (width + cols - 1) // cols
    x = x.reshape(batch, down, across, rows, cols, dim).transpose(2, 3)
    x = x.reshape(batch, down * rows, across * cols, dim)[:, :height, :width]
    # Whether the cut leaves the pixels contiguous depends on the size; a tracer is told, in place of asking.
    return x.clone(memory_format=torch.contiguous_format) if torch.compiler.is_compiling() else x


def _compiled_for_any_size() -> bool:
    """Whether to gather pixels by index: a compiler cannot tell into what a reshape divides sizes, and starts over.

    Not where gradients are wanted, which a gather would add up one by one, nor in an exported graph, which is checked
    at several sizes as it is.
    """
    exporting = getattr(torch.compiler, "is_exporting", None)  # since PyTorch 2.7
    return torch.compiler.is_compiling() and not torch.is_grad_enabled() and not (exporting and exporting())


def _positions(length: int, size: int, device: torch.device) -> Tensor:
    """Where the pixels of each region lie along an axis, (regions, size); those of the last may lie beyond its end."""
    first = torch.arange((length + size - 1) // size, device=device) * size
    return first[:, None] + torch.arange(size, device=device)
