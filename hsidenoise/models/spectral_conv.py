"""The local branch of HCANet-BRA: a convolution over height, width and the channel axis.

In the paper of HCANet (Hu et al., IEEE GRSL 2024, arXiv:2403.10067) the local branch of the convolution-attention
fusion module is a 1x1 convolution, a channel shuffle and a 3x3x3 convolution. In its released code the volume has a
depth of one, so that a tenth of the weights only ever meets padding; here the kernel slides along the channel axis.
"""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn


class SpectralConv(nn.Module):
    """3x3x3 convolution over height, width and the channel axis, as one two-dimensional convolution.

    The channels are read as a line of ``channels / features`` positions with ``features`` numbers each. The small
    kernel is laid out along the diagonal of a banded channels x channels kernel: the same numbers as a 3-D convolution,
    by the routines that a CPU is best at.

    Args:
        channels: Channels in and out, a multiple of ``features``.
        features: Numbers at each position of the line.

    Raises:
        ValueError: If ``features`` does not divide ``channels``.

    Example:
        >>> SpectralConv(12, features=2)(torch.zeros(1, 12, 5, 6)).shape
        torch.Size([1, 12, 5, 6])
    """

    def __init__(self, channels: int, features: int = 4) -> None:
        super().__init__()
        if channels % features:
            raise ValueError(f"features={features} must divide channels={channels}")
        # (out, tap * in, height, width): four axes, because a channels-last module takes no five
        self.weight = nn.Parameter(torch.empty(features, 3 * features, 3, 3))
        self.bias = nn.Parameter(torch.zeros(features))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        line = channels // features
        # neighbours[t] places tap t: position p looks at p + t - 1
        neighbours = torch.stack([torch.diag(torch.ones(line - abs(t)), t) for t in (-1, 0, 1)])
        self.register_buffer("neighbours", neighbours, persistent=False)
        self.line, self.features = line, features

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Convolve.

        Args:
            x: Features.
        """
        channels = self.line * self.features
        neighbours = cast(Tensor, self.neighbours).to(self.weight.dtype)
        taps = self.weight.reshape(len(self.bias), 3, self.features, 3, 3)  # (out, tap, in, height, width)
        banded = torch.einsum("tpq,otiyx->poqiyx", neighbours, taps)
        kernel = banded.reshape(channels, channels, 3, 3)  # (out, in, height, width)
        return nn.functional.conv2d(x, kernel, self.bias.repeat(self.line), padding=1)


class LocalBranch(nn.Module):
    """Local branch of CAFM: 1x1 convolution, channel shuffle, 3x3x3 convolution.

    Args:
        channels: Channels in and out.
        features: See ``SpectralConv``.
    """

    def __init__(self, channels: int, features: int = 4) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 1)
        self.shuffle = nn.ChannelShuffle(features)
        self.spectral = SpectralConv(channels, features)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Mix the channels of a pixel, then look at its neighbours in space and along the channels.

        Args:
            x: Normalised features.
        """
        return cast(Tensor, self.spectral(self.shuffle(self.mix(x))))
