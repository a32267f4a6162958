"""The layers of a YOLOv8-style detector, written for the example ``yolo_style_model.py``, and attention among them.

Layout and widths are those of YOLOv8, so that the numbers of parameters agree; the code is our own. Each module takes
the channels that come in first. The anchor-free head with a distribution over distances follows Tian et al., "FCOS",
ICCV 2019, arXiv:1904.01355, and Li et al., "Generalized focal loss", NeurIPS 2020, arXiv:2006.04388.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hsidenoise import BiLevelRoutingAttention

#: Bins of the distribution over the distance from a cell to a side of its box, one stride apart.
REG_MAX = 16

#: Probability of a class in a cell before training; keeps the many empty cells from drowning the few full ones
#: (Lin et al., "Focal loss for dense object detection", ICCV 2017, arXiv:1708.02002, section 4.1).
PRIOR = 0.01


class Conv(nn.Sequential):
    """Convolution without bias, batch norm, SiLU."""

    def __init__(self, channels: int, out: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(out, eps=1e-3, momentum=0.03),
            nn.SiLU(),
        )


class Bottleneck(nn.Module):
    """Two 3x3 convolutions, with or without a residual path."""

    def __init__(self, channels: int, shortcut: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(Conv(channels, channels, 3), Conv(channels, channels, 3))
        self.shortcut = shortcut

    def forward(self, x: Float[Tensor, "batch dim height width"]) -> Float[Tensor, "batch dim height width"]:
        """Refine features of as many channels."""
        refined: Tensor = self.body(x)
        return x + refined if self.shortcut else refined


class C2f(nn.Module):
    """Half of the channels go through bottlenecks one after the other; every stage of them is kept and merged."""

    def __init__(self, channels: int, out: int, shortcut: bool = False, repeats: int = 1) -> None:
        super().__init__()
        half = out // 2
        self.enter = Conv(channels, 2 * half)
        self.bottlenecks = nn.ModuleList(Bottleneck(half, shortcut) for _ in range(repeats))
        self.leave = Conv((2 + repeats) * half, out)

    def forward(self, x: Float[Tensor, "batch dim height width"]) -> Float[Tensor, "batch out height width"]:
        """Split, refine step by step, merge."""
        stages = list(self.enter(x).chunk(2, dim=1))
        for bottleneck in self.bottlenecks:
            stages.append(bottleneck(stages[-1]))
        return cast(Tensor, self.leave(torch.cat(stages, dim=1)))


class SPPF(nn.Module):
    """Max-pooling of one window once, twice and three times over, side by side."""

    def __init__(self, channels: int, out: int, kernel: int = 5) -> None:
        super().__init__()
        self.enter = Conv(channels, channels // 2)
        self.pool = nn.MaxPool2d(kernel, stride=1, padding=kernel // 2)
        self.leave = Conv(4 * (channels // 2), out)

    def forward(self, x: Float[Tensor, "batch dim height width"]) -> Float[Tensor, "batch out height width"]:
        """See every pixel at four sizes of its surroundings."""
        views = [self.enter(x)]
        for _ in range(3):
            views.append(self.pool(views[-1]))
        return cast(Tensor, self.leave(torch.cat(views, dim=1)))


class Concat(nn.Module):
    """Join layers along an axis; along the channels (1) in every YOLOv8 file."""

    def __init__(self, axis: int = 1) -> None:
        super().__init__()
        if axis != 1:
            raise ValueError(f"joins channels, axis 1, not axis {axis}")

    def forward(self, parts: Sequence[Tensor]) -> Tensor:
        """Join images of one height and width."""
        return torch.cat(list(parts), dim=1)


class ChannelsFirstAttention(BiLevelRoutingAttention):
    """Bi-level routing attention for (batch, channels, height, width): two views around it, the same weights."""

    def forward(self, x: Float[Tensor, "batch dim height width"]) -> Float[Tensor, "batch dim height width"]:
        """Attend."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Detect(nn.Module):
    """For each cell of each map: distributions of the distances to the four sides of a box, and a logit per class."""

    def __init__(self, channels: Sequence[int], nc: int) -> None:
        super().__init__()
        self.nc = nc
        box, kind = max(16, channels[0] // 4, 4 * REG_MAX), max(channels[0], min(nc, 100))
        self.sides = nn.ModuleList(
            nn.Sequential(Conv(width, box, 3), Conv(box, box, 3), nn.Conv2d(box, 4 * REG_MAX, 1)) for width in channels
        )
        self.kinds = nn.ModuleList(
            nn.Sequential(Conv(width, kind, 3), Conv(kind, kind, 3), nn.Conv2d(kind, nc, 1)) for width in channels
        )
        for branch in self.kinds:
            nn.init.constant_(cast(Tensor, branch.get_submodule("2").bias), -math.log((1 - PRIOR) / PRIOR))

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Map per level, (batch, 4 * REG_MAX + classes, height, width)."""
        branches = zip(levels, self.sides, self.kinds, strict=True)
        return [torch.cat([sides(x), kinds(x)], dim=1) for x, sides, kinds in branches]


def decode(
    maps: Sequence[Tensor], height: int
) -> tuple[Float[Tensor, "batch cells 4"], Float[Tensor, "batch cells classes"], Float[Tensor, "cells 3"]]:
    """Read the maps of the head.

    Args:
        maps: What ``DetectionModel`` returns.
        height: Of the images, in pixels.

    Returns:
        Boxes (left, top, right, bottom) in pixels; class logits; each cell's centre (x, y) and stride in pixels.
    """
    boxes, logits, cells = [], [], []
    for grid in maps:
        rows, columns = grid.shape[2:]
        stride = height / rows
        y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
        centre = torch.stack([x, y]).to(grid) * stride  # (2, rows, columns)
        share = grid[:, : 4 * REG_MAX].unflatten(1, (4, REG_MAX)).softmax(dim=2)
        distance = torch.einsum("bsdyx,d->bsyx", share, torch.arange(REG_MAX).to(grid)) * stride
        boxes.append(torch.cat([centre - distance[:, :2], centre + distance[:, 2:]], dim=1).flatten(2).mT)
        logits.append(grid[:, 4 * REG_MAX :].flatten(2).mT)
        cells.append(torch.cat([centre, torch.full_like(centre[:1], stride)]).flatten(1).T)
    return torch.cat(boxes, dim=1), torch.cat(logits, dim=1), torch.cat(cells)
