"""What networks share: layer norm over channels, multi-scale feed-forward, down- and upsampling, padding.

Everything here is two-dimensional and keeps the channels-last memory format of its input, in which one thread
of a CPU convolves several times faster. The blocks are those of HCANet (Hu et al., 2024); its released code
writes them with 3x3x3 convolutions over a volume of depth one, whose outer slices only ever meet padding, so a
3x3 convolution gives the same output with a third of the weights.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

FEED_FORWARD_EXPANSION = 2.66
"""Width of MSFN's groups relative to its input (Restormer and HCANet; arXiv 2403.10067, released defaults)."""


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of every pixel.

    Where gradients are wanted on a CPU, half precision is left for it: PyTorch 2.13 sums the gradients of weight and
    bias over the pixels in bfloat16 there, and of 65,536 pixels loses 20 % of the one and 99 % of the other.

    Args:
        channels: Number of channels, at least 1.
        bias: With it, the usual layer norm: centred, divided by the standard deviation, scaled, shifted.
            Without it, Restormer's bias-free form: divided by the standard deviation and scaled, not centred.
        eps: Added to the variance.

    Example:
        >>> norm = LayerNorm2d(4)
        >>> norm(torch.randn(1, 4, 5, 6)).mean(dim=1).abs().max().item() < 1e-5
        True

    References:
        Zamir et al., "Restormer", CVPR 2022, arXiv 2111.09881.
    """

    def __init__(self, channels: int, bias: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Normalise every pixel on its own.

        Args:
            x: Features; no copy is made to reach the channels where the memory format is channels-last.
        """
        pixels = x.permute(0, 2, 3, 1)  # (batch, height, width, channels)
        if self.bias is None:
            # not centred: the variance is, the values are not
            variance = pixels.to(torch.promote_types(x.dtype, torch.float32)).var(-1, correction=0, keepdim=True)
            normed = pixels * torch.rsqrt(variance + self.eps).to(x.dtype) * self.weight.to(x.dtype)
        else:
            if _trains_on_cpu(x):
                pixels = pixels.to(torch.promote_types(x.dtype, torch.float32))
            normed = F.layer_norm(pixels, self.weight.shape, self.weight, self.bias, self.eps).to(x.dtype)
        return normed.permute(0, 3, 1, 2)  # (batch, channels, height, width)


class DilatedDepthwiseConv2d(nn.Conv2d):
    """Depth-wise 3x3 convolution of a dilation that trains rightly and quickly on a CPU.

    Where gradients are wanted on a CPU, the pixels are split into ``dilation**2`` interleaved phases, each of
    which meets an undilated kernel. The output is the same; what oneDNN does backwards of a dilated depth-wise
    kernel is not: with PyTorch 2.13, bfloat16 and channels-last its weight gradient is wrong (of the order of its
    own size, or uninitialised memory such as 1e27), and takes twenty times as long.

    Args:
        channels: Channels in and out.
        dilation: Distance between the taps, at least 1.
        bias: Whether there is one.

    Example:
        >>> DilatedDepthwiseConv2d(4, dilation=3)(torch.zeros(1, 4, 5, 7)).shape
        torch.Size([1, 4, 5, 7])
    """

    def __init__(self, channels: int, dilation: int, bias: bool = False) -> None:
        super().__init__(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=bias)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Convolve every channel on its own.

        Args:
            x: Features.
        """
        if not _trains_on_cpu(x):
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

    Example:
        >>> MultiScaleFeedForward(8)(torch.zeros(1, 8, 5, 6)).shape
        torch.Size([1, 8, 5, 6])

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
        """Mix channels and scales.

        Args:
            x: Normalised features.
        """
        # Three convolutions with a third of the weights each, not one and chunk(): slices of a channels-last tensor
        # are strided, and every depth-wise convolution would copy its own first.
        weights = self.project_in.weight.chunk(3)
        biases = (None,) * 3 if self.project_in.bias is None else self.project_in.bias.chunk(3)
        a, b, c = (F.conv2d(x, weight, bias) for weight, bias in zip(weights, biases, strict=True))
        gated = F.gelu(self.dwconv1(a)) * self.dwconv2(b) * self.dwconv3(c)
        return cast(Tensor, self.project_out(gated))


class Mlp(nn.Module):
    """Two 1x1 convolutions around a GELU: a feed-forward that sees no neighbours.

    Args:
        channels: Channels in and out.
        expansion: Width between the two relative to ``channels``, rounded down.

    Example:
        >>> Mlp(8)(torch.zeros(1, 8, 5, 6)).shape
        torch.Size([1, 8, 5, 6])

    References:
        Vaswani et al., "Attention is all you need", NeurIPS 2017, arXiv 1706.03762, section 3.3.
    """

    def __init__(self, channels: int, expansion: float = 4.0) -> None:
        super().__init__()
        hidden = int(channels * expansion)
        self.project_in = nn.Conv2d(channels, hidden, 1)
        self.project_out = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Mix channels.

        Args:
            x: Normalised features.
        """
        return cast(Tensor, self.project_out(F.gelu(self.project_in(x))))


class Downsample(nn.Module):
    """Halve height and width: a 3x3 convolution, then pixel-unshuffle.

    Args:
        channels: Channels in.
        out: Channels out, a multiple of 4.

    Raises:
        ValueError: If ``out`` is not a multiple of 4.

    Example:
        >>> Downsample(8, 16)(torch.zeros(1, 8, 6, 10)).shape
        torch.Size([1, 16, 3, 5])

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
        """Go one level down.

        Args:
            x: Features of even height and width.
        """
        return F.pixel_unshuffle(self.conv(x), 2)


class Upsample(nn.Module):
    """Double height and width: a 3x3 convolution, then pixel-shuffle.

    Args:
        channels: Channels in.
        out: Channels out.

    Example:
        >>> Upsample(16, 8)(torch.zeros(1, 16, 3, 5)).shape
        torch.Size([1, 8, 6, 10])

    References:
        Shi et al., CVPR 2016, arXiv 1609.05158.
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4 * out, 3, padding=1, bias=False)

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch out double_height double_width"]:
        """Go one level up.

        Args:
            x: Features.
        """
        return F.pixel_shuffle(self.conv(x), 2)


def pad_to_multiple(
    x: Float[Tensor, "batch channels height width"], multiple: int
) -> tuple[Float[Tensor, "batch channels padded_height padded_width"], tuple[int, int]]:
    """Pad the bottom and the right until height and width are multiples of a number.

    An axis is reflected where it is long enough for that, and its last row or column repeated where it is not.
    The padding of one axis does not depend on the other.

    Args:
        x: Any images, each side at least 1.
        multiple: At least 1.

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
    if count < length:
        border = x.narrow(axis, length - 1 - count, count).flip(axis)
    else:
        border = torch.cat([x.narrow(axis, length - 1, 1)] * count, dim=axis)
    return torch.cat([x, border], dim=axis)


def _trains_on_cpu(x: Tensor) -> bool:
    """Whether a backward pass on a CPU may follow, some of whose kernels are wrong (see who asks)."""
    return x.device.type == "cpu" and torch.is_grad_enabled()
