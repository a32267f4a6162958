"""The released formulations of HCANet and of bi-level routing attention, for tests and scripts/measure_speed.py.

They are written from what the released files were seen to do, not from their text, and held to stored outputs of those
files (test_as_released.py). Names in the state dicts are the released ones, so that the same weights go into both.

Papers: Hu et al., HCANet, IEEE GRSL 2024, arXiv 2403.10067; Zhu et al., BiFormer, CVPR 2023, arXiv 2303.08810.

What makes them slow is kept on purpose:

* every dense convolution of HCANet is three-dimensional, over a volume of depth one, in channels-first memory;
* layer norm goes through a copy with the channels last, takes mean and variance one by one, and copies back;
* the local branch makes nine maps for every channel of a head (``fc``) before ``dep_conv`` convolves them;
* the attention between channels normalises q and k over all pixels before it multiplies them;
* routing attention gathers the keys and values of every region, top-k copies of them, then makes the attention matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

_MAPS = 9
"""Maps per channel of a head in the local branch (released code)."""


class _LayerNorm(nn.Module):
    """Scale and shift of a layer norm; its name inside :class:`_Norm` is the released one."""

    def __init__(self, channels: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        variance = x.var(dim=-1, correction=0, keepdim=True)
        if self.bias is None:
            return x / torch.sqrt(variance + 1e-5) * self.weight
        return (x - x.mean(dim=-1, keepdim=True)) / torch.sqrt(variance + 1e-5) * self.weight + self.bias


class _Norm(nn.Module):
    """Layer norm over the channels of channels-first features, by way of a copy with the channels last."""

    def __init__(self, channels: int, bias: bool) -> None:
        super().__init__()
        self.body = _LayerNorm(channels, bias)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        pixels = x.flatten(2).transpose(1, 2).contiguous()  # (batch, pixels, channels)
        normed = self.body(pixels).transpose(1, 2).contiguous()
        return cast(Tensor, normed.unflatten(2, (height, width)))  # (batch, channels, height, width)


def _conv1(inputs: int, outputs: int, bias: bool) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, 1, bias=bias)


def _conv3(inputs: int, outputs: int, bias: bool, groups: int = 1) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, 3, padding=1, groups=groups, bias=bias)


class _Fusion(nn.Module):
    """CAFM as released, on volumes (batch, channels, 1, height, width)."""

    def __init__(self, channels: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = _conv1(channels, 3 * channels, bias)
        self.qkv_dwconv = _conv3(3 * channels, 3 * channels, bias, groups=3 * channels)
        self.project_out = _conv1(channels, channels, bias)
        self.fc = _conv1(3 * heads, _MAPS, bias=True)
        width = channels // heads
        self.dep_conv = _conv3(_MAPS * width, channels, bias=True, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv_dwconv(self.qkv(x.unsqueeze(2))).squeeze(2)  # (batch, 3 * channels, height, width)
        batch, _, height, width = qkv.shape

        # channels-first memory read as if it were channels-last: this is what scatters every pixel over the image
        planes = qkv.reshape(batch, height * width, 3 * self.heads, -1)  # (batch, "pixels", planes, width of a head)
        maps = self.fc(planes.permute(0, 2, 1, 3).unsqueeze(2)).squeeze(2)  # (batch, maps, "pixels", width of a head)
        maps = maps.permute(0, 3, 1, 2).reshape(batch, -1, height, width)  # (batch, width * maps, height, width)
        local = self.dep_conv(maps.unsqueeze(2)).squeeze(2)

        q, k, v = (
            part.reshape(batch, self.heads, -1, height * width) for part in qkv.chunk(3, dim=1)
        )  # each (batch, heads, width of a head, pixels)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        attention = (q @ k.transpose(-2, -1) * self.temperature).softmax(dim=-1)
        mixed = (attention @ v).reshape(batch, -1, 1, height, width)
        return cast(Tensor, self.project_out(mixed).squeeze(2) + local)


class _FeedForward(nn.Module):
    """MSFN as released: all three groups from one convolution, the dilated ones in two dimensions."""

    def __init__(self, channels: int, expansion: float, bias: bool) -> None:
        super().__init__()
        hidden = int(channels * expansion)
        self.project_in = _conv1(channels, 3 * hidden, bias)
        self.dwconv1 = _conv3(hidden, hidden, bias, groups=hidden)
        self.dwconv2 = nn.Conv2d(hidden, hidden, 3, padding=2, dilation=2, groups=hidden, bias=bias)
        self.dwconv3 = nn.Conv2d(hidden, hidden, 3, padding=3, dilation=3, groups=hidden, bias=bias)
        self.project_out = _conv1(hidden, channels, bias)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.project_in(x.unsqueeze(2)).chunk(3, dim=1)
        a = self.dwconv1(a).squeeze(2)
        gated = F.gelu(a) * self.dwconv2(b.squeeze(2)) * self.dwconv3(c.squeeze(2))
        return cast(Tensor, self.project_out(gated.unsqueeze(2)).squeeze(2))


class _Block(nn.Module):
    """``x += CAFM(norm(x)); x += MSFN(norm(x))``."""

    def __init__(self, channels: int, heads: int, expansion: float, bias: bool, norm_bias: bool) -> None:
        super().__init__()
        self.norm1 = _Norm(channels, norm_bias)
        self.attn = _Fusion(channels, heads, bias)
        self.norm2 = _Norm(channels, norm_bias)
        self.ffn = _FeedForward(channels, expansion, bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return cast(Tensor, x + self.ffn(self.norm2(x)))


class _Embedding(nn.Module):
    """First convolution; its name in the state dict is the released one."""

    def __init__(self, bands: int, dim: int) -> None:
        super().__init__()
        self.proj = _conv3(bands, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.proj(x.unsqueeze(2)).squeeze(2))


class _Resize(nn.Module):
    """3x3 convolution, then pixel-shuffle or pixel-unshuffle; its name in the state dict is the released one."""

    def __init__(self, inputs: int, outputs: int, shuffle: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), shuffle)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.body(x))


class HCANetAsReleased(nn.Module):
    """HCANet with the operations of the released file, arguments and state dict by their released names.

    Args:
        inp_channels: Bands in.
        out_channels: Bands out, the same number.
        dim: Channels of the first level.
        num_blocks: Blocks of the three levels; further entries belong to no level.
        num_refinement_blocks: Blocks after the decoder.
        heads: Heads of the three levels; further entries belong to no level.
        ffn_expansion_factor: Width of the feed-forward groups relative to a level's channels.
        bias: Whether the convolutions inside the blocks, between them and at the output have one.
        LayerNorm_type: ``"WithBias"`` or ``"BiasFree"``.

    Example:
        >>> network = HCANetAsReleased(5, 5, dim=8, num_blocks=(1, 1, 1), heads=(1, 2, 4))
        >>> network(torch.zeros(1, 5, 8, 12)).shape
        torch.Size([1, 5, 8, 12])

    References:
        Hu et al., IEEE GRSL 2024, doi:10.1109/LGRS.2024.3370299, arXiv 2403.10067.
    """

    def __init__(
        self,
        inp_channels: int = 31,
        out_channels: int = 31,
        dim: int = 48,
        num_blocks: Sequence[int] = (2, 3, 3),
        num_refinement_blocks: int = 1,
        heads: Sequence[int] = (1, 2, 4),
        ffn_expansion_factor: float = 2.66,
        bias: bool = False,
        LayerNorm_type: str = "WithBias",
    ) -> None:
        super().__init__()

        def level(channels: int, level_heads: int, count: int) -> nn.Sequential:
            norm_bias = LayerNorm_type == "WithBias"
            return nn.Sequential(
                *(_Block(channels, level_heads, ffn_expansion_factor, bias, norm_bias) for _ in range(count))
            )

        self.patch_embed = _Embedding(inp_channels, dim)
        self.encoder_level1 = level(dim, heads[0], num_blocks[0])
        self.down1_2 = _Resize(dim, dim // 2, nn.PixelUnshuffle(2))
        self.encoder_level2 = level(2 * dim, heads[1], num_blocks[1])
        self.down2_3 = _Resize(2 * dim, dim, nn.PixelUnshuffle(2))
        self.encoder_level3 = level(4 * dim, heads[2], num_blocks[2])
        self.up3_2 = _Resize(4 * dim, 8 * dim, nn.PixelShuffle(2))
        self.reduce_chan_level2 = _conv1(4 * dim, 2 * dim, bias)
        self.decoder_level2 = level(2 * dim, heads[1], num_blocks[1])
        self.up2_1 = _Resize(2 * dim, 4 * dim, nn.PixelShuffle(2))
        self.decoder_level1 = level(2 * dim, heads[0], num_blocks[0])
        self.refinement = level(2 * dim, heads[0], num_refinement_blocks)
        self.output = _conv3(2 * dim, out_channels, bias)

    def forward(self, noisy: Float[Tensor, "batch bands height width"]) -> Float[Tensor, "batch bands height width"]:
        """Denoise.

        Args:
            noisy: Cubes whose height and width are multiples of 4.
        """
        level1 = self.encoder_level1(self.patch_embed(noisy))
        level2 = self.encoder_level2(self.down1_2(level1))
        level3 = self.encoder_level3(self.down2_3(level2))
        level2 = torch.cat([self.up3_2(level3), level2], dim=1)
        level2 = self.decoder_level2(self.reduce_chan_level2(level2.unsqueeze(2)).squeeze(2))
        level1 = torch.cat([self.up2_1(level2), level1], dim=1)
        features = self.refinement(self.decoder_level1(level1))
        return cast(Tensor, self.output(features.unsqueeze(2)).squeeze(2) + noisy)


class _QKV(nn.Module):
    """Query, key and value by one linear map; its name in the state dict is the released one."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.qkv(x))


class RoutingAttentionAsReleased(nn.Module):
    """Bi-level routing attention by an explicit gather of top-k copies of keys and values, and a softmax.

    Of the released options only those that change the cost of the plain module; qk_dim is dim, the output map is there.

    Args:
        dim: Width in and out.
        num_heads: Heads; divides ``dim``.
        n_win: Regions per side; divides height and width.
        topk: Regions that each region attends to, at most as many as there are.
        qk_scale: Factor of the dot products; None for ``dim ** -0.5``.
        soft_routing: Multiply routing weights into keys and values.
        side_dwconv: Size of the depth-wise convolution of the values that is added.

    Example:
        >>> attention = RoutingAttentionAsReleased(8, num_heads=2, n_win=2, topk=2)
        >>> attention(torch.zeros(1, 8, 12, 8)).shape
        torch.Size([1, 8, 12, 8])

    References:
        Zhu et al., CVPR 2023, arXiv 2303.08810, algorithm 1.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        n_win: int = 7,
        topk: int = 4,
        qk_scale: float | None = None,
        soft_routing: bool = False,
        side_dwconv: int = 3,
    ) -> None:
        super().__init__()
        self.num_heads, self.n_win, self.topk = num_heads, n_win, topk
        self.scale = qk_scale or dim**-0.5
        self.soft_routing = soft_routing
        self.qkv = _QKV(dim)
        self.wo = nn.Linear(dim, dim)
        self.lepe = nn.Conv2d(dim, dim, side_dwconv, padding=side_dwconv // 2, groups=dim)

    def forward(self, x: Float[Tensor, "batch height width dim"]) -> Float[Tensor, "batch height width dim"]:
        """Attend.

        Args:
            x: Features, channels last.
        """
        batch, height, width, dim = x.shape
        side, regions = self.n_win, self.n_win**2
        pixels = (height // side) * (width // side)
        x = x.reshape(batch, side, height // side, side, width // side, dim).transpose(2, 3)
        q, kv = self.qkv(x.reshape(batch, regions, pixels, dim)).split([dim, 2 * dim], dim=-1)
        v = kv[..., dim:]
        lepe = self.lepe(self._to_image(v, height, width).permute(0, 3, 1, 2).contiguous())

        query_mean, key_mean = q.mean(dim=2).detach(), kv[..., :dim].mean(dim=2).detach()
        affinity = (query_mean * self.scale) @ key_mean.transpose(1, 2)  # (batch, regions, regions)
        best, index = torch.topk(affinity, k=self.topk, dim=-1)  # (batch, regions, topk)
        copies = kv.unsqueeze(1).expand(-1, regions, -1, -1, -1)
        where = index[..., None, None].expand(-1, -1, -1, pixels, 2 * dim)
        gathered = torch.gather(copies, 2, where)  # (batch, regions, topk, pixels, 2 * dim)
        if self.soft_routing:
            gathered = gathered * best.softmax(dim=-1)[..., None, None]

        heads = self.num_heads
        kv = gathered.reshape(batch * regions, self.topk * pixels, 2, heads, dim // heads)
        k, v = kv.permute(2, 0, 3, 1, 4).contiguous().unbind(0)  # (batch * regions, heads, topk * pixels, width)
        q = q.reshape(batch * regions, pixels, heads, -1).transpose(1, 2)  # (batch * regions, heads, pixels, width)
        attention = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1)
        out = (attention @ v).transpose(1, 2).reshape(batch, regions, pixels, dim)
        return cast(Tensor, self.wo(self._to_image(out, height, width) + lepe.permute(0, 2, 3, 1)))

    def _to_image(self, x: Tensor, height: int, width: int) -> Tensor:
        side = self.n_win
        x = x.reshape(len(x), side, side, height // side, width // side, -1).transpose(2, 3)
        return x.reshape(len(x), height, width, -1)
