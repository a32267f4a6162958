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

:func:`load_released_hcanet` brings the released weights in: their middle slices, under other names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
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


RELEASED_DEFAULTS: Mapping[str, Any] = {
    "inp_channels": 31,
    "out_channels": 31,
    "dim": 48,
    "num_blocks": (2, 3, 3, 4),
    "num_refinement_blocks": 1,
    "heads": (1, 2, 4, 8),
    "ffn_expansion_factor": 2.66,
    "bias": False,
    "LayerNorm_type": "WithBias",
}
"""Arguments of the released network and their defaults; the fourth entries belong to no level and are ignored."""

CHECKPOINT_KEYS = ("state_dict", "net", "model")
CHECKPOINT_PREFIXES = ("module.", "net.", "model.")


def load_released_hcanet(state: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> HCANet:
    """Build an HCANet from weights of the released code.

    Args:
        state: Tensors or arrays by the names of the released file. A checkpoint that holds them under
            ``state_dict``, ``net`` or ``model``, and names with a ``module.``, ``net.`` or ``model.`` in front,
            are taken too.
        config: Arguments of the released network by their released names (``inp_channels``, ``dim``,
            ``LayerNorm_type`` ...); what is left out has its released default.

    Returns:
        The network in evaluation mode, with the released local branch, which gives the released file's output.

    Raises:
        ValueError: If an argument is unknown, or a weight is missing, unexpected or of another shape.

    Example:
        >>> load_released_hcanet({}, {"inp_channels": 5, "out_channels": 5, "dim": 8, "num_blocks": [1, 1, 1]})
        Traceback (most recent call last):
        ...
        ValueError: the weights are not those of this HCANet configuration: 109 missing (patch_embed.proj.weight, ...)
    """
    network = HCANet(**_own_arguments(config or {}))
    expected = {_released_name(name): (name, weight) for name, weight in network.state_dict().items()}
    given = _unwrap(state)
    problems = [
        f"{len(names)} {what} ({names[0]}{', ...' if len(names) > 1 else ''})"
        for what, names in (
            ("missing", [name for name in expected if name not in given]),
            ("unexpected", [name for name in given if name not in expected]),
        )
        if names
    ]
    weights = {}
    for released, (name, weight) in expected.items():
        if released not in given:
            continue
        value = _as_tensor(released, given[released])
        weights[name] = _drop_depth(value, weight.ndim)
        if weights[name].shape != weight.shape:
            problems.append(
                f"{released} has shape {tuple(value.shape)}, not {tuple(weight.shape)} with or without depth"
            )
            break
    if problems:
        raise ValueError(f"the weights are not those of this HCANet configuration: {'; '.join(problems)}")
    network.load_state_dict(weights)
    return network.eval()


def _own_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Translate released arguments into those of HCANet."""
    unknown = sorted(set(config) - set(RELEASED_DEFAULTS))
    if unknown:
        raise ValueError(
            f"unknown argument {unknown[0]!r} of the released HCANet: one of {', '.join(RELEASED_DEFAULTS)}"
        )
    released = {**RELEASED_DEFAULTS, **config}
    for name in ("num_blocks", "heads"):
        if not isinstance(released[name], Sequence):
            raise ValueError(f"{name}={released[name]!r} of the released HCANet must be a list, one entry per level")
    if released["inp_channels"] != released["out_channels"]:
        raise ValueError(
            "HCANet adds its input to its output: inp_channels and out_channels must be the same, "
            f"not {released['inp_channels']} and {released['out_channels']}"
        )
    return {
        "bands": released["inp_channels"],
        "dim": released["dim"],
        "num_blocks": tuple(released["num_blocks"])[:LEVELS],
        "num_refinement_blocks": released["num_refinement_blocks"],
        "heads": tuple(released["heads"])[:LEVELS],
        "expansion": released["ffn_expansion_factor"],
        "bias": released["bias"],
        # the released code takes every other word for WithBias; a typo is refused here
        "layer_norm": released["LayerNorm_type"],
        "released_local_branch": True,
    }


def _released_name(name: str) -> str:
    """Name of one of our weights in the released file."""
    parts = name.split(".")
    if parts[0] == "patch_embed":
        parts.insert(1, "proj")
    elif parts[0].startswith(("down", "up")):
        parts[1:2] = ["body", "0"]
    elif parts[-2] in ("norm1", "norm2"):
        parts.insert(-1, "body")
    return ".".join(parts)


def _unwrap(state: Mapping[str, Any]) -> dict[str, Any]:
    """Find the weights inside a checkpoint and take a common prefix off their names."""
    for key in CHECKPOINT_KEYS:
        if isinstance(state.get(key), Mapping):
            return _unwrap(state[key])
    for prefix in CHECKPOINT_PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            return _unwrap({name.removeprefix(prefix): value for name, value in state.items()})
    return dict(state)


def _as_tensor(name: str, value: Any) -> Tensor:
    """Copy an array or tensor of the released file."""
    try:
        tensor = value.detach().clone() if isinstance(value, Tensor) else torch.tensor(np.asarray(value))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the weight {name} is a {type(value).__name__}, not an array of numbers") from error
    if not tensor.isfinite().all():
        raise ValueError(f"the weight {name} has values that are not finite: the file is damaged")
    return tensor


def _drop_depth(weight: Tensor, dimensions: int) -> Tensor:
    """Take the one slice of a 3-D kernel that a volume of depth one ever meets."""
    if weight.ndim == dimensions + 1 == 5 and weight.shape[2] % 2:
        return weight[:, :, weight.shape[2] // 2]
    return weight
