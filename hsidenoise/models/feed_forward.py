"""Feed-forward blocks: HCANet's multi-scale one (MSFN) and a plain MLP to compare it with."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hsidenoise.models.blocks import (
    in_compute_type,
    in_pieces,
    pieces,
    pointwise,
    pointwise_padded,
    surroundings,
    trains_on_cpu,
)

FEED_FORWARD_EXPANSION = 2.66
"""Width of MSFN's groups relative to its input (Restormer and HCANet; arXiv 2403.10067, released defaults)."""


class DilatedDepthwiseConv2d(nn.Conv2d):
    """Depth-wise 3x3 convolution of a dilation that trains rightly and quickly on a CPU.

    Where gradients are wanted on a CPU, the pixels are split into ``dilation**2`` interleaved phases, each of
    which meets an undilated kernel. The output is the same; what oneDNN does backwards of a dilated depth-wise
    kernel is not: with PyTorch 2.13, bfloat16 and channels-last its weight gradient is wrong (of the order of its
    own size, or uninitialised memory such as 1e27), and takes twenty times as long.
    """

    def __init__(self, channels: int, dilation: int, bias: bool = False) -> None:
        super().__init__(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=bias)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Convolve every channel on its own."""
        if not trains_on_cpu(x):
            return super().forward(x)
        batch, channels, height, width = x.shape
        step = self.dilation[0]
        bottom, right = -height % step, -width % step
        rows, columns = (height + bottom) // step, (width + right) // step
        pixels = F.pad(x, (0, right, 0, bottom)).permute(0, 2, 3, 1)
        pixels = pixels.reshape(batch, rows, step, columns, step, channels).permute(0, 2, 4, 1, 3, 5)
        phases = pixels.reshape(-1, rows, columns, channels).permute(0, 3, 1, 2)
        # (batch * step * step, channels, rows, columns)
        phases = F.conv2d(phases, self.weight, self.bias, padding=1, groups=channels).permute(0, 2, 3, 1)
        pixels = phases.reshape(batch, step, step, rows, columns, channels).permute(0, 3, 1, 4, 2, 5)
        pixels = pixels.reshape(batch, rows * step, columns * step, channels).permute(0, 3, 1, 2)
        return pixels[..., :height, :width]


class MultiScaleFeedForward(nn.Module):
    """HCANet's feed-forward (MSFN): three depth-wise views of a pixel's surroundings, multiplied.

    A 1x1 convolution makes three groups a, b, c; depth-wise 3x3 convolutions of dilation 1, 2 and 3 look at
    them; ``gelu(a) * b * c`` goes back through a 1x1 convolution.

    Args:
        channels: Channels in and out.
        expansion: Width of each group relative to ``channels``, rounded down.
        bias: Whether the convolutions have one.

    References:
        Hu et al., "Hybrid Convolutional and Attention Network for Hyperspectral Image Denoising", IEEE GRSL 2024,
        arXiv 2403.10067, section II-C.
    """

    def __init__(self, channels: int, expansion: float = FEED_FORWARD_EXPANSION, bias: bool = False) -> None:
        super().__init__()
        hidden = int(channels * expansion)
        self.project_in = nn.Conv2d(channels, 3 * hidden, 1, bias=bias)
        self.dwconv1 = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=bias)
        self.dwconv2 = DilatedDepthwiseConv2d(hidden, 2, bias)
        self.dwconv3 = DilatedDepthwiseConv2d(hidden, 3, bias)
        self.project_out = nn.Conv2d(hidden, channels, 1, bias=bias)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Mix channels and scales."""
        if in_pieces(x):
            return self._by_pieces(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        # Three convolutions with a third of the weights each, not one and chunk(): slices of a channels-last tensor
        # are strided, and every depth-wise convolution would copy its own first.
        weights = self.project_in.weight.chunk(3)
        biases = _thirds(self.project_in.bias)
        a, b, c = (F.conv2d(x, weight, bias) for weight, bias in zip(weights, biases, strict=True))
        gated = F.gelu(self.dwconv1(a)) * self.dwconv2(b) * self.dwconv3(c)
        return cast(Tensor, self.project_out(gated))

    def _by_pieces(self, pixels: Tensor) -> Tensor:
        """The same for (batch, height, width, channels), none of whose wide features ever exist as a whole."""
        hidden = self.project_out.in_channels
        views = (self.dwconv1, self.dwconv2, self.dwconv3)
        weights = in_compute_type(pixels, *(weight[:, :, 0, 0] for weight in self.project_in.weight.chunk(3)))
        biases = in_compute_type(pixels, *_thirds(self.project_in.bias))
        kernels = in_compute_type(pixels, *(view.weight for view in views))
        shifts = in_compute_type(pixels, *(view.bias for view in views))
        back, shift_back = in_compute_type(pixels, self.project_out.weight[:, :, 0, 0], self.project_out.bias)
        batch, height, width, _ = pixels.shape
        out = pixels.new_empty(batch, height, width, len(back), dtype=back.dtype)
        for piece in pieces(batch, height, width, hidden):
            gated: Tensor | None = None
            for dilation, weight, bias, kernel, shift in zip((1, 2, 3), weights, biases, kernels, shifts, strict=True):
                around, missing = surroundings(pixels, piece, dilation)
                wide = pointwise_padded(around, missing, weight, bias).permute(0, 3, 1, 2)
                seen = F.conv2d(wide, kernel, shift, dilation=dilation, groups=hidden)
                gated = F.gelu(seen) if gated is None else gated.mul_(seen)  # (1, hidden, rows, columns)
            out[piece] = pointwise(cast(Tensor, gated).permute(0, 2, 3, 1), back, shift_back)
        return out


def _thirds(bias: Tensor | None) -> tuple[Tensor | None, ...]:
    return (None,) * 3 if bias is None else bias.chunk(3)


class Mlp(nn.Module):
    """Two 1x1 convolutions around a GELU: a feed-forward that sees no neighbours."""

    def __init__(self, channels: int, expansion: float = 4.0) -> None:
        super().__init__()
        hidden = int(channels * expansion)
        self.project_in = nn.Conv2d(channels, hidden, 1)
        self.project_out = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Mix channels."""
        return cast(Tensor, self.project_out(F.gelu(self.project_in(x))))
