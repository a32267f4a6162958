"""HCANet: a U-shaped network of blocks that mix convolution with attention between channels.

Paper: Hu, Gao, Zhou, Dong, Du, "Hybrid Convolutional and Attention Network for Hyperspectral Image Denoising",
IEEE GRSL 2024, doi:10.1109/LGRS.2024.3370299, arXiv 2403.10067.

What differs from the code released with it, and why:

- Convolutions are two-dimensional. The released 3x3x3 convolutions run over a volume of depth one, whose outer
  slices only meet padding: a tenth of the weights (485,550 of 4,607,741) never receives a gradient. The middle
  slices alone give the same output.
- The local branch of CAFM keeps pixels where they are, and is applied as one convolution (see ``cafm``).
  ``released_local_branch=True`` brings the released scattering back, for released weights.
- Any height and width: the bottom and right are padded to multiples of 4 inside and cropped again.

What differs from the paper, as in the released code: the paper's local branch slides 3x3x3 kernels along the
spectrum, which neither the released network nor this one does (HCANetBRA does).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hsidenoise.models.blocks import Downsample, LayerNorm2d, Upsample, pad_to_multiple
from hsidenoise.models.feed_forward import FEED_FORWARD_EXPANSION, MultiScaleFeedForward
from hsidenoise.models.fusion import ConvAttentionFusion

LAYER_NORMS = {"WithBias": True, "BiasFree": False}
LEVELS = 3
SIZE_MULTIPLE = 2 ** (LEVELS - 1)


class CAMixingBlock(nn.Module):
    """One block of HCANet: ``x += CAFM(norm(x)); x += MSFN(norm(x))``."""

    def __init__(
        self,
        channels: int,
        heads: int,
        expansion: float = FEED_FORWARD_EXPANSION,
        bias: bool = False,
        norm_bias: bool = True,
        released_local_branch: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm2d(channels, norm_bias)
        self.attn = ConvAttentionFusion(channels, heads, bias, released_local_branch)
        self.norm2 = LayerNorm2d(channels, norm_bias)
        self.ffn = MultiScaleFeedForward(channels, expansion, bias)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Mix channels and neighbours."""
        x = x + self.attn(self.norm1(x))
        return cast(Tensor, x + self.ffn(self.norm2(x)))


class HCANet(nn.Module):
    """Hybrid convolutional and attention network for hyperspectral denoising.

    Three levels of ``dim``, ``2 * dim`` and ``4 * dim`` channels, each half the size of the one above; the decoder
    mirrors the first two and runs at ``2 * dim`` on the first. The output is the input plus what the network adds.

    Args:
        bands: Bands of the cubes.
        dim: Channels of the first level, even and a multiple of ``heads[0]``.
        num_blocks: Blocks of the three levels; the decoder repeats the first two.
        num_refinement_blocks: Blocks after the decoder, at full size.
        heads: Heads of the three levels.
        expansion: Width of the feed-forward groups relative to a level's channels.
        bias: Whether the convolutions inside the blocks, between them and at the output have one.
        layer_norm: ``"WithBias"`` or ``"BiasFree"`` (not centred, not shifted).
        released_local_branch: Whether the local branch scatters pixels as the released code does. Only for weights
            that were trained so: the output then depends on the size of the tile.

    Attributes:
        bands: As given.
        config: The arguments, as JSON can hold them: ``HCANet(**network.config)`` is the same network untrained.

    Raises:
        ValueError: If an argument is out of range or the widths and heads do not fit each other.

    Example:
        >>> network = HCANet(bands=5, dim=8, num_blocks=(1, 1, 1))
        >>> network(torch.zeros(1, 5, 6, 7)).shape
        torch.Size([1, 5, 6, 7])
    """

    def __init__(
        self,
        bands: int = 31,
        dim: int = 48,
        num_blocks: Sequence[int] = (2, 3, 3),
        num_refinement_blocks: int = 1,
        heads: Sequence[int] = (1, 2, 4),
        expansion: float = FEED_FORWARD_EXPANSION,
        bias: bool = False,
        layer_norm: str = "WithBias",
        released_local_branch: bool = False,
    ) -> None:
        super().__init__()
        _check_arguments(bands, dim, num_blocks, num_refinement_blocks, heads, expansion, layer_norm)
        self.bands = bands
        self.config: dict[str, Any] = {
            "bands": bands,
            "dim": dim,
            "num_blocks": list(num_blocks),
            "num_refinement_blocks": num_refinement_blocks,
            "heads": list(heads),
            "expansion": expansion,
            "bias": bias,
            "layer_norm": layer_norm,
            "released_local_branch": released_local_branch,
        }

        def level(channels: int, level_heads: int, count: int) -> nn.Sequential:
            norm_bias = LAYER_NORMS[layer_norm]
            return nn.Sequential(
                *(
                    CAMixingBlock(channels, level_heads, expansion, bias, norm_bias, released_local_branch)
                    for _ in range(count)
                )
            )

        self.patch_embed = nn.Conv2d(bands, dim, 3, padding=1, bias=False)
        self.encoder_level1 = level(dim, heads[0], num_blocks[0])
        self.down1_2 = Downsample(dim, 2 * dim)
        self.encoder_level2 = level(2 * dim, heads[1], num_blocks[1])
        self.down2_3 = Downsample(2 * dim, 4 * dim)
        self.encoder_level3 = level(4 * dim, heads[2], num_blocks[2])
        self.up3_2 = Upsample(4 * dim, 2 * dim)
        self.reduce_chan_level2 = nn.Conv2d(4 * dim, 2 * dim, 1, bias=bias)
        self.decoder_level2 = level(2 * dim, heads[1], num_blocks[1])
        self.up2_1 = Upsample(2 * dim, dim)
        self.decoder_level1 = level(2 * dim, heads[0], num_blocks[0])
        self.refinement = level(2 * dim, heads[0], num_refinement_blocks)
        self.output = nn.Conv2d(2 * dim, bands, 3, padding=1, bias=bias)

    def forward(self, noisy: Float[Tensor, "batch bands height width"]) -> Float[Tensor, "batch bands height width"]:
        """Denoise cubes of any height and width.

        Args:
            noisy: Cubes scaled as in training, usually to [0, 1].

        Raises:
            ValueError: If the cubes have another number of bands than the network.
        """
        if noisy.shape[1] != self.bands:
            raise ValueError(f"cubes of {noisy.shape[1]} bands do not go through a network of {self.bands} bands")
        padded, (height, width) = pad_to_multiple(noisy, SIZE_MULTIPLE)
        # The layer norms give channels-last features whatever comes in, so all features are kept that way.
        level1 = self.encoder_level1(self.patch_embed(padded.contiguous(memory_format=torch.channels_last)))
        level2 = self.encoder_level2(self.down1_2(level1))
        level3 = self.encoder_level3(self.down2_3(level2))
        level2 = self.reduce_chan_level2(torch.cat([self.up3_2(level3), level2], dim=1))
        level1 = torch.cat([self.up2_1(self.decoder_level2(level2)), level1], dim=1)
        residual = self.output(self.refinement(self.decoder_level1(level1)))
        return cast(Tensor, noisy + residual[..., :height, :width])


def _check_arguments(
    bands: int,
    dim: int,
    num_blocks: Sequence[int],
    num_refinement_blocks: int,
    heads: Sequence[int],
    expansion: float,
    layer_norm: str,
) -> None:
    """Refuse a network that cannot be built, in one line."""
    if len(num_blocks) != LEVELS or len(heads) != LEVELS:
        raise ValueError(
            f"HCANet has {LEVELS} levels: num_blocks={list(num_blocks)} and heads={list(heads)} need one entry each"
        )
    if bands < 1 or dim < 2 or dim % 2:
        raise ValueError(f"HCANet needs bands >= 1 and an even dim >= 2, not bands={bands}, dim={dim}")
    if min(*num_blocks, num_refinement_blocks) < 0 or min(heads) < 1 or int(dim * expansion) < 1:
        raise ValueError(
            f"HCANet needs block counts >= 0, heads >= 1 and dim * expansion >= 1, not num_blocks={list(num_blocks)}, "
            f"num_refinement_blocks={num_refinement_blocks}, heads={list(heads)}, expansion={expansion}"
        )
    for level, count in enumerate(heads):
        if dim * 2**level % count:
            raise ValueError(f"HCANet's level {level + 1} has {dim * 2**level} channels, no multiple of {count} heads")
    if layer_norm not in LAYER_NORMS:
        raise ValueError(f"unknown layer_norm {layer_norm!r}: one of {', '.join(LAYER_NORMS)}")
