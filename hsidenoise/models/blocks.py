"""What networks share: layer norm over channels, down- and upsampling, padding.

Everything here is two-dimensional and keeps the channels-last memory format of its input, in which one thread
of a CPU convolves several times faster.
"""

from __future__ import annotations

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
            if trains_on_cpu(x):
                pixels = pixels.to(torch.promote_types(x.dtype, torch.float32))
            with torch.autocast(x.device.type, enabled=False):  # which would copy to float32 and back
                weight, bias = (part.to(pixels.dtype) for part in (self.weight, self.bias))
                normed = F.layer_norm(pixels, weight.shape, weight, bias, self.eps).to(x.dtype)
        return normed.permute(0, 3, 1, 2)  # (batch, channels, height, width)


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
    """Whether a backward pass on a CPU may follow, some of whose kernels are wrong (see who asks).

    Args:
        x: Features.

    Example:
        >>> trains_on_cpu(torch.zeros(1))
        True
    """
    return x.device.type == "cpu" and torch.is_grad_enabled()
