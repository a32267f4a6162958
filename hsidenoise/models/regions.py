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
    batch, _, _, dim = x.shape
    down, across = (height + rows - 1) // rows, (width + cols - 1) // cols
    x = x.reshape(batch, down, across, rows, cols, dim).transpose(2, 3)
    x = x.reshape(batch, down * rows, across * cols, dim)[:, :height, :width]
    # Whether the cut leaves the pixels contiguous depends on the size; a tracer is told, in place of asking.
    return x.clone(memory_format=torch.contiguous_format) if torch.compiler.is_compiling() else x
