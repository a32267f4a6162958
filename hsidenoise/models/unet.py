"""The U of HCANet-BRA: hybrid convolution and attention with bi-level routing.

Papers: HCANet (Hu et al., IEEE GRSL 2024, arXiv:2403.10067) for the U-shape, the convolution-attention fusion module
(CAFM) and the multi-scale feed-forward (MSFN); BiFormer (Zhu et al., CVPR 2023, arXiv:2303.08810) for the attention.
What differs from them and from their released code, and why:

* the global branch of CAFM is bi-level routing attention with regions of fixed size in pixels: the cost is linear in
  the pixels, and a tile of another size routes alike;
* the 3x3x3 convolution of the local branch slides along the channel axis; in the released code its depth is 1, and a
  tenth of the weights only ever meets padding;
* level 1 of the decoder is reduced back to ``dim``; the released one runs at twice the width at full resolution;
* height and width are free: padding is inside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hsidenoise.models.attention.bra import BiLevelRoutingAttention
from hsidenoise.models.blocks import Downsample, LayerNorm2d, Upsample, pad_to_multiple
from hsidenoise.models.feed_forward import Mlp, MultiScaleFeedForward
from hsidenoise.models.fusion import ChannelAttention, LocalBranch

#: The switches of the ablation table: what each part of a block may be; the first is what the network is named for.
SWITCHES = {
    "attention": ("bra", "channel", "none"),
    "local": ("spectral", "none"),
    "feed_forward": ("multiscale", "mlp"),
}


class CAMixingBlock(nn.Module):
    """``x += CAFM(norm(x)); x += MSFN(norm(x))``, by default with bi-level routing attention as CAFM's global branch.

    The switches are those of ``HCANetBRA``. With neither attention nor a local branch the first line is left out.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        region_size: int,
        topk: int,
        expansion: float,
        attention: str = "bra",
        local: str = "spectral",
        feed_forward: str = "multiscale",
    ) -> None:
        super().__init__()
        self.norm1 = None if attention == local == "none" else LayerNorm2d(channels)
        self.attention: nn.Module | None = None
        if attention == "bra":
            self.attention = BiLevelRoutingAttention(
                channels,
                num_heads=heads,
                n_win=None,
                region_size=region_size,
                topk=topk,
                qk_scale=(channels / heads) ** -0.5,  # heads that do not divide are refused there
            )
        elif attention == "channel":
            self.attention = ChannelAttention(channels, heads)
        self.local = LocalBranch(channels) if local == "spectral" else None
        self.norm2 = LayerNorm2d(channels)
        # an MLP of twice the width has as many weights: three groups in and one out make four maps, as two and two do
        self.feed_forward = (
            MultiScaleFeedForward(channels, expansion) if feed_forward == "multiscale" else Mlp(channels, 2 * expansion)
        )

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Fuse and feed forward."""
        if self.norm1 is not None:
            normed = self.norm1(x)
            if isinstance(self.attention, BiLevelRoutingAttention):
                x = x + self.attention(normed.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            elif self.attention is not None:
                x = x + self.attention(normed)
            if self.local is not None:
                x = x + self.local(normed)
        return cast(Tensor, x + self.feed_forward(self.norm2(x)))


class MixingUNet(nn.Module):
    """Three levels of mixing blocks between a first and a last convolution.

    Args:
        inputs: Images that go in.
        outputs: Images that come out.
        facts: Numbers that go in beside them, for each item.
        dim: Width of level 1; a multiple of 4. Levels 2 and 3 are twice and four times as wide.
        num_blocks: Blocks of levels 1, 2 and 3; the decoder mirrors levels 2 and 1.
        num_refinement_blocks: Blocks after the decoder.
        heads: Heads of the attention on levels 1, 2 and 3.
        region_size: Side of a routing region in pixels, on every level.
        topk: Regions that each region attends to.
        expansion: Width of MSFN's groups relative to the level's width.
        attention: Global branch of a block: "bra" (bi-level routing), "channel" (HCANet's, between channels) or "none";
            one for all levels, or one for each.
        local: Local branch of a block: "spectral" (1x1, shuffle, 3x3x3 along the channels) or "none".
        feed_forward: "multiscale" (HCANet's MSFN) or "mlp" (two 1x1 convolutions with as many weights).

    Attributes:
        estimator: What is not learnt, as a function of noisy cubes that can travel to other processes; its result is a
            tuple of tensors that ``refine`` takes. None: there is no such part.
        learnt: Name of the method that is all that is learnt.

    Raises:
        ValueError: If a switch is unknown, a width does not divide, a level is missing or a number is too small.
    """

    estimator: Callable[[Tensor], tuple[Tensor, ...]] | None = None
    learnt = "forward"

    def __init__(
        self,
        inputs: int,
        outputs: int,
        facts: int,
        dim: int,
        num_blocks: Sequence[int],
        num_refinement_blocks: int,
        heads: Sequence[int],
        region_size: int,
        topk: int,
        expansion: float,
        attention: str | Sequence[str],
        local: str,
        feed_forward: str,
    ) -> None:
        super().__init__()
        each = (attention,) * 3 if isinstance(attention, str) else tuple(attention)
        for name, value in (*(("attention", one) for one in each), ("local", local), ("feed_forward", feed_forward)):
            if value not in SWITCHES[name]:
                raise ValueError(f"{name} '{value}' is not one of {', '.join(SWITCHES[name])}")
        if {len(num_blocks), len(heads), len(each)} != {3} or min(num_blocks) < 0 or min(heads) < 1:
            raise ValueError(
                f"num_blocks={list(num_blocks)}, heads={list(heads)} and attention={attention} must each name three "
                "levels, with at least 0 blocks and at least 1 head"
            )
        if min(inputs, outputs, dim, num_refinement_blocks + 1) < 1 or dim * expansion < 1:
            raise ValueError(
                f"dim={dim} and dim * expansion={dim * expansion:g} must be at least 1, "
                f"num_refinement_blocks={num_refinement_blocks} at least 0"
            )

        def level(number: int, blocks: int) -> nn.Sequential:
            width, kind = dim * 2**number, (each[number], local, feed_forward)
            return nn.Sequential(
                *(CAMixingBlock(width, heads[number], region_size, topk, expansion, *kind) for _ in range(blocks))
            )

        self.stem = nn.Conv2d(inputs, dim, 3, padding=1)
        self.noise_level = nn.Linear(facts, dim) if facts else None
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
        self.output = nn.Conv2d(dim, outputs, 3, padding=1)
        with torch.no_grad():  # start near what is given
            self.output.weight.mul_(0.1)
            self.output.bias.zero_()  # type: ignore[union-attr]

    def unet(
        self, images: Float[Tensor, "batch inputs height width"], facts: Float[Tensor, "batch facts"] | None = None
    ) -> Float[Tensor, "batch outputs height width"]:
        """From images to images, in float32.

        Args:
            images: Images of any height and width: they are padded inside.
            facts: Numbers beside them, where the network takes any.
        """
        height, width = images.shape[2:]
        padded = pad_to_multiple(images, 4)[0].contiguous(memory_format=torch.channels_last)
        level1 = self.stem(padded)
        if self.noise_level is not None:
            level1 = level1 + self.noise_level(facts)[:, :, None, None]
        level1 = self.encoder1(level1)
        level2 = self.encoder2(self.down1(level1))
        level3 = self.middle(self.down2(level2))
        level2 = self.decoder2(self.reduce2(torch.cat([self.up2(level3), level2], dim=1)))
        level1 = self.decoder1(self.reduce1(torch.cat([self.up1(level2), level1], dim=1)))
        return cast(Tensor, self.output(self.refinement(level1)).float()[..., :height, :width])
