"""HCANet-BRA, the network of this project: hybrid convolution and attention with bi-level routing.

Papers: HCANet (Hu et al., IEEE GRSL 2024, arXiv:2403.10067) for the U-shape, the convolution-attention fusion module
(CAFM) and the multi-scale feed-forward (MSFN); BiFormer (Zhu et al., CVPR 2023, arXiv:2303.08810) for the attention.
What differs from them and from their released code, and why:

* the global branch of CAFM is bi-level routing attention with regions of fixed size in pixels: the cost is linear in
  the pixels, and a tile of another size routes alike;
* the 3x3x3 convolution of the local branch slides along the channel axis; in the released code its depth is 1, and a
  tenth of the weights only ever meets padding;
* level 1 of the decoder is reduced back to ``dim``; the released one runs at twice the width at full resolution;
* ``skip="wiener"``: the output is the spectral Wiener estimate of the input (``spectral_wiener``) plus a residual. With
  the identity as the skip (``skip="identity"``, as in the paper), the last layers must reproduce the noise of every
  band, which has full rank; what the Wiener estimate leaves does not, and at low noise there is little left to add;
* height and width are free: padding is inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hsidenoise.models.blocks import Downsample, LayerNorm2d, MultiScaleFeedForward, Upsample, pad_to_multiple
from hsidenoise.models.bra import BiLevelRoutingAttention
from hsidenoise.models.spectral_wiener import spectral_wiener

SKIPS = ("wiener", "identity")

#: Noise level at which the residual is scaled by one half (20 on the 0-255 scale): the less noise, the less to add.
HALF_RESIDUAL_SIGMA = 20 / 255


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


class CAMixingBlock(nn.Module):
    """``x += CAFM(norm(x)); x += MSFN(norm(x))`` with bi-level routing attention as CAFM's global branch.

    Args:
        channels: Channels in and out.
        heads: Heads of the attention.
        region_size: Side of a routing region in pixels.
        topk: Regions that each region attends to.
        expansion: Width of MSFN's groups relative to ``channels``.
    """

    def __init__(self, channels: int, heads: int, region_size: int, topk: int, expansion: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm2d(channels)
        self.attention = BiLevelRoutingAttention(
            channels,
            num_heads=heads,
            n_win=None,
            region_size=region_size,
            topk=topk,
            qk_scale=(channels // heads) ** -0.5,
        )
        self.local = LocalBranch(channels)
        self.norm2 = LayerNorm2d(channels)
        self.feed_forward = MultiScaleFeedForward(channels, expansion)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Fuse and feed forward.

        Args:
            x: Features, best in channels-last memory format.
        """
        normed = self.norm1(x)
        attended = self.attention(normed.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = x + attended + self.local(normed)
        return cast(Tensor, x + self.feed_forward(self.norm2(x)))


def mirrored_bands(given: int, bands: int, device: torch.device | str = "cpu") -> Int[Tensor, " bands"]:
    """Indices that continue a cube of ``given`` bands to ``bands`` by going back and forth over its spectrum.

    Args:
        given: Bands that the cube has, at least 1.
        bands: Bands that the network takes, at least ``given``.
        device: Where the indices are needed.

    Example:
        >>> mirrored_bands(3, 7).tolist()
        [0, 1, 2, 1, 0, 1, 2]
    """
    period = max(1, 2 * given - 2)
    position = torch.arange(bands, device=device) % period
    return torch.where(position < given, position, period - position)


class HCANetBRA(nn.Module):
    """U-shaped denoiser of hyperspectral cubes with bi-level routing attention.

    Args:
        bands: Bands in and out. ``hsidenoise.denoise`` takes cubes of any number through it.
        dim: Width of level 1; a multiple of 4. Levels 2 and 3 are twice and four times as wide.
        num_blocks: Blocks of levels 1, 2 and 3; the decoder mirrors levels 2 and 1.
        num_refinement_blocks: Blocks after the decoder.
        heads: Heads of the attention on levels 1, 2 and 3.
        region_size: Side of a routing region in pixels, on every level.
        topk: Regions that each region attends to.
        expansion: Width of MSFN's groups relative to the level's width.
        skip: "wiener" or "identity".

    Raises:
        ValueError: If ``skip`` is unknown, a width does not divide, a level is missing or a number is too small.

    Example:
        >>> network = HCANetBRA(bands=8, dim=8, num_blocks=(1, 1, 1), heads=(1, 2, 4))
        >>> network(torch.rand(1, 8, 21, 30)).shape
        torch.Size([1, 8, 21, 30])

    References:
        Hu et al., IEEE GRSL 2024, arXiv:2403.10067; Zhu et al., CVPR 2023, arXiv:2303.08810.
    """

    def __init__(
        self,
        bands: int = 31,
        dim: int = 48,
        num_blocks: Sequence[int] = (2, 3, 3),
        num_refinement_blocks: int = 1,
        heads: Sequence[int] = (1, 2, 4),
        region_size: int = 8,
        topk: int = 4,
        expansion: float = 2.0,
        skip: str = "wiener",
    ) -> None:
        super().__init__()
        self.mirrors_bands = True  # says to denoise() that cubes of fewer bands are welcome as they are
        if skip not in SKIPS:
            raise ValueError(f"skip '{skip}' is not one of {', '.join(SKIPS)}")
        if len(num_blocks) != 3 or len(heads) != 3 or min(num_blocks) < 0 or min(heads) < 1:
            raise ValueError(
                f"num_blocks={list(num_blocks)} and heads={list(heads)} must each name three levels, "
                "with at least 0 blocks and at least 1 head"
            )
        if min(bands, dim, num_refinement_blocks + 1) < 1 or dim * expansion < 1:
            raise ValueError(
                f"bands={bands}, dim={dim} and dim * expansion={dim * expansion:g} must be at least 1, "
                f"num_refinement_blocks={num_refinement_blocks} at least 0"
            )
        self.bands = bands
        self.config: dict[str, Any] = {
            "bands": bands,
            "dim": dim,
            "num_blocks": list(num_blocks),
            "num_refinement_blocks": num_refinement_blocks,
            "heads": list(heads),
            "region_size": region_size,
            "topk": topk,
            "expansion": expansion,
            "skip": skip,
        }
        self.skip = skip

        def level(number: int, blocks: int) -> nn.Sequential:
            return nn.Sequential(
                *(CAMixingBlock(dim * 2**number, heads[number], region_size, topk, expansion) for _ in range(blocks))
            )

        wiener = skip == "wiener"
        self.stem = nn.Conv2d(4 * bands if wiener else bands, dim, 3, padding=1)
        self.noise_level = nn.Linear(bands, dim) if wiener else None
        self.encoder1 = level(0, num_blocks[0])
        self.down1 = Downsample(dim, 2 * dim)
        self.encoder2 = level(1, num_blocks[1])
        self.down2 = Downsample(2 * dim, 4 * dim)
        self.middle = level(2, num_blocks[2])
        self.up2 = Upsample(4 * dim, 2 * dim)
        self.reduce2 = nn.Conv2d(4 * dim, 2 * dim, 1)
        self.decoder2 = level(1, num_blocks[1])
        self.up1 = Upsample(2 * dim, dim)
        self.reduce1 = nn.Conv2d(2 * dim, dim, 1)
        self.decoder1 = level(0, num_blocks[0])
        self.refinement = level(0, num_refinement_blocks)
        self.output = nn.Conv2d(dim, 2 * bands if wiener else bands, 3, padding=1)
        with torch.no_grad():  # start near the skip
            self.output.weight.mul_(0.1)
            self.output.bias.zero_()  # type: ignore[union-attr]

    def forward(self, noisy: Float[Tensor, "batch given height width"]) -> Float[Tensor, "batch given height width"]:
        """Denoise.

        Args:
            noisy: Cubes scaled to about [0, 1], any height and width. Fewer bands than the network has are continued by
                mirroring the spectrum inside.

        Returns:
            Denoised cubes in float32, in the unit of ``noisy``.

        Raises:
            ValueError: If there are more bands than the network has.
        """
        noisy = noisy.float()
        given, height, width = noisy.shape[1:]
        if given > self.bands:
            raise ValueError(f"this network takes {self.bands} bands at a time, got {given}; denoise() makes windows")
        mirror = mirrored_bands(given, self.bands, noisy.device)
        if self.skip == "identity":
            planes = pad_to_multiple(noisy[:, mirror], 4)[0].contiguous(memory_format=torch.channels_last)
            residual = self._unet(self.stem(planes)).float()[:, :given, :height, :width]
            return noisy + residual
        # estimated on the bands there are: a mirrored band is its own perfect prediction, noise included
        estimate = spectral_wiener(noisy)
        planes = torch.cat([part[:, mirror] for part in (noisy, *estimate[:3])], dim=1)
        planes = pad_to_multiple(planes, 4)[0].contiguous(memory_format=torch.channels_last)
        level = torch.log10(estimate.sigma[:, mirror]) + 2.0  # sigma from 0.001 to 0.3: about -1 to 1.5
        features = self.stem(planes) + cast(nn.Linear, self.noise_level)(level)[:, :, None, None]
        gate, residual = self._unet(features).float()[:, :, :height, :width].chunk(2, dim=1)
        strength = estimate.sigma.mean(dim=1)[:, None, None, None]
        residual = residual[:, :given] * (strength / (strength + HALF_RESIDUAL_SIGMA))
        skip = estimate.robust + torch.sigmoid(gate[:, :given]) * (estimate.plain - estimate.robust)
        return skip + residual

    def _unet(self, level1: Tensor) -> Tensor:
        level1 = self.encoder1(level1)
        level2 = self.encoder2(self.down1(level1))
        level3 = self.middle(self.down2(level2))
        level2 = self.decoder2(self.reduce2(torch.cat([self.up2(level3), level2], dim=1)))
        level1 = self.decoder1(self.reduce1(torch.cat([self.up1(level2), level1], dim=1)))
        return cast(Tensor, self.output(self.refinement(level1)))
