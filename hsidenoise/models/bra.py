"""Bi-level routing attention (BRA): every region attends to the few regions that matter to it.

Paper: Zhu et al., "BiFormer: Vision Transformer with Bi-Level Routing Attention", CVPR 2023, arXiv:2303.08810,
section 3.2 and algorithm 1. Constructor, state-dict names and output are those of the released module, so its weights
load strictly. What differs, and why:

* scaled-dot-product attention over the gathered regions, some regions at a time, in place of an explicit softmax over
  top-k copies of all keys and values: the same numbers without the memory that users report (BiFormer#21);
* ``region_size`` fixes the region in pixels, so that the cost is linear in the pixels and a tile of another size routes
  alike; the released ``n_win`` fixes the number of regions per side, and the cost grows with the square;
* padding (``auto_pad``, and always with ``region_size``) is masked: it takes no part in any softmax or region mean;
* a wrong argument is a ValueError that names it.

The released options ``kv_downsample_mode`` "fracpool" and "conv" and ``diff_routing`` without ``soft_routing`` raise
NotImplementedError there; here they are refused with a ValueError at construction.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

_POOLINGS = ("identity", "ada_avgpool", "ada_maxpool", "avgpool", "maxpool")

#: Keys and values gathered at a time, in numbers; bounds the memory of the gather (32 MiB in float32).
_GATHER_BUDGET = 8 * 2**20

#: Region affinities computed at a time, in numbers; an image of 2048 x 2048 pixels in regions of 8 has 2**32 (16 GiB).
_AFFINITY_BUDGET = 64 * 2**20


class TopkRouting(nn.Module):
    """Choose, for each region, the regions with which its mean query has the largest dot products.

    Args:
        qk_dim: Width of queries and keys.
        topk: Regions to choose.
        qk_scale: Factor of the dot products.
        param_routing: Pass both means through one learnt linear map first.
        diff_routing: Let gradients through the means.
    """

    def __init__(self, qk_dim: int, topk: int, qk_scale: float, param_routing: bool, diff_routing: bool) -> None:
        super().__init__()
        self.topk = topk
        self.scale = qk_scale
        self.diff_routing = diff_routing
        self.emb = nn.Linear(qk_dim, qk_dim) if param_routing else nn.Identity()

    def forward(
        self, query: Float[Tensor, "batch regions qk"], key: Float[Tensor, "batch regions qk"], topk: int
    ) -> tuple[Float[Tensor, "batch regions topk"], Int[Tensor, "batch regions topk"]]:
        """Return softmaxed weights and indices of the chosen regions, best first."""
        if not self.diff_routing:
            query, key = query.detach(), key.detach()
        query, key = self.emb(query) * self.scale, self.emb(key).mT
        at_once = max(1, _AFFINITY_BUDGET // max(1, query.shape[0] * query.shape[1]))
        # affinity of some regions to all: (batch, some, regions)
        pieces = [torch.topk(some @ key, k=topk, dim=-1) for some in torch.split(query, at_once, dim=1)]
        best = torch.cat([piece.values for piece in pieces], dim=1)
        return best.softmax(dim=-1), torch.cat([piece.indices for piece in pieces], dim=1)


class _QKVLinear(nn.Module):
    """Query, key and value of every pixel by one linear map; its name in the state dict is the released one."""

    def __init__(self, dim: int, qk_dim: int) -> None:
        super().__init__()
        self.widths = [qk_dim, qk_dim, dim]
        self.qkv = nn.Linear(dim, 2 * qk_dim + dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).split(self.widths, dim=-1)
        return q, k, v


class BiLevelRoutingAttention(nn.Module):
    """Bi-level routing attention with the constructor, names and numbers of the released module.

    Args:
        dim: Width in and out.
        num_heads: Heads; divides ``dim`` and ``qk_dim``.
        n_win: Regions per side, as released; None with ``region_size``.
        qk_dim: Width of queries and keys; None for ``dim``.
        qk_scale: Factor of the dot products; None for ``qk_dim ** -0.5`` (of the whole width, as released).
        kv_per_win: Pixels per side to which "ada_avgpool" and "ada_maxpool" reduce the keys of a region.
        kv_downsample_ratio: Factor per side of "avgpool" and "maxpool".
        kv_downsample_kernel: Accepted for the released signature; belongs to "conv", which is not offered.
        kv_downsample_mode: "identity", "ada_avgpool", "ada_maxpool", "avgpool" or "maxpool".
        topk: Regions that each region attends to. With ``region_size`` it is clamped to the number of regions.
        param_attention: "qkvo", or "qkv" without the output map.
        param_routing: Learnt linear map before the region affinity.
        diff_routing: Let the routing weights carry gradients (only with ``soft_routing``).
        soft_routing: Multiply routing weights into keys and values, as released.
        side_dwconv: Size of the depth-wise convolution of the values that is added (LCE); 0 for none.
        auto_pad: With ``n_win``: pad height and width to multiples of it; padding is masked.
        region_size: Side of a region in pixels, in place of ``n_win``. Any height and width is padded and masked.

    Raises:
        ValueError: If an argument is unknown, contradicts another or does not divide.

    Example:
        >>> attention = BiLevelRoutingAttention(32, num_heads=4, n_win=None, region_size=8, topk=2)
        >>> attention(torch.randn(1, 20, 30, 32)).shape
        torch.Size([1, 20, 30, 32])

    References:
        Zhu et al., CVPR 2023, arXiv:2303.08810.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        n_win: int | None = 7,
        qk_dim: int | None = None,
        qk_scale: float | None = None,
        kv_per_win: int = 4,
        kv_downsample_ratio: int = 4,
        kv_downsample_kernel: int | None = None,
        kv_downsample_mode: str = "identity",
        topk: int = 4,
        param_attention: str = "qkvo",
        param_routing: bool = False,
        diff_routing: bool = False,
        soft_routing: bool = False,
        side_dwconv: int = 3,
        auto_pad: bool = False,
        *,
        region_size: int | None = None,
    ) -> None:
        super().__init__()
        qk_dim = qk_dim or dim
        if num_heads < 1 or dim % num_heads or qk_dim % num_heads:
            raise ValueError(f"num_heads={num_heads} must divide dim={dim} and qk_dim={qk_dim}")
        if (n_win is None) == (region_size is None):
            raise ValueError("give either n_win (regions per side) or n_win=None and region_size (pixels per side)")
        if min(size for size in (n_win, region_size) if size is not None) < 1:
            raise ValueError(f"n_win={n_win} or region_size={region_size}: the one that is given must be at least 1")
        if kv_downsample_mode not in _POOLINGS:
            raise ValueError(f"kv_downsample_mode '{kv_downsample_mode}' is not one of {', '.join(_POOLINGS)}")
        if region_size is not None and kv_downsample_mode != "identity":
            raise ValueError("kv_downsample_mode other than 'identity' needs n_win, not region_size")
        if auto_pad and kv_downsample_mode != "identity":
            raise ValueError("auto_pad masks padded pixels, which needs kv_downsample_mode='identity'")
        if param_attention not in ("qkvo", "qkv"):
            raise ValueError(f"param_attention '{param_attention}' is neither 'qkvo' nor 'qkv'")
        if diff_routing and not soft_routing:
            raise ValueError("diff_routing needs soft_routing: alone nothing would carry its gradient")
        if topk < 1 or (n_win is not None and topk > n_win * n_win):
            most = "" if n_win is None else f" and at most the number of regions, n_win * n_win = {n_win**2}"
            raise ValueError(f"topk={topk} must be at least 1{most}")
        if side_dwconv and side_dwconv % 2 == 0:
            raise ValueError(f"side_dwconv={side_dwconv} must be odd, or 0 for none")
        self.dim, self.num_heads, self.n_win, self.qk_dim = dim, num_heads, n_win, qk_dim
        self.region_size, self.topk, self.auto_pad, self.soft_routing = region_size, topk, auto_pad, soft_routing
        self.scale = qk_scale or qk_dim**-0.5
        self.qkv = _QKVLinear(dim, qk_dim)
        self.wo = nn.Linear(dim, dim) if param_attention == "qkvo" else nn.Identity()
        self.router = TopkRouting(qk_dim, topk, self.scale, param_routing, diff_routing)
        self.lepe = nn.Conv2d(dim, dim, side_dwconv, padding=side_dwconv // 2, groups=dim) if side_dwconv else None
        pools: dict[str, nn.Module] = {
            "identity": nn.Identity(),
            "ada_avgpool": nn.AdaptiveAvgPool2d(kv_per_win),
            "ada_maxpool": nn.AdaptiveMaxPool2d(kv_per_win),
            "avgpool": nn.AvgPool2d(kv_downsample_ratio),
            "maxpool": nn.MaxPool2d(kv_downsample_ratio),
        }
        self.kv_down = pools[kv_downsample_mode]

    def forward(self, x: Float[Tensor, "batch height width dim"]) -> Float[Tensor, "batch height width dim"]:
        """Attend.

        Args:
            x: Features, channels last.

        Raises:
            ValueError: With ``n_win`` and without ``auto_pad``: if it does not divide height and width.
        """
        attended, _, _ = self._attend(x)
        return attended

    def routing(
        self, x: Float[Tensor, "batch height width dim"]
    ) -> tuple[Float[Tensor, "batch regions topk"], Int[Tensor, "batch regions topk"]]:
        """Weights and indices of the regions that each region attends to, regions in row-major order."""
        _, weight, index = self._attend(x)
        return weight, index

    def _attend(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        height, width = x.shape[1:3]
        rows, cols = self._region_shape(height, width)
        q, k, v = self.qkv(x)
        lepe = 0.0 if self.lepe is None else self.lepe(v.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

        q, k, v = (_to_regions(part, rows, cols) for part in (q, k, v))  # (batch, regions, pixels, width)
        mask = _real_pixels(height, width, rows, cols, x.device)  # (regions, pixels) or None
        if mask is None:
            query_mean, key_mean = q.mean(2), k.mean(2)
        else:
            share = mask.to(q.dtype)[..., None]
            count = share.sum(1)
            query_mean, key_mean = (q * share).sum(2) / count, (k * share).sum(2) / count
        weight, index = self.router(query_mean, key_mean, min(self.topk, q.shape[1]))
        k, v = (self._downsample(part, rows, cols) for part in (k, v))
        attended = routed_attention(
            q,
            k,
            v,
            index,
            heads=self.num_heads,
            scale=self.scale,
            weight=weight if self.soft_routing else None,
            mask=mask,
        )
        out = _from_regions(attended, height, width, rows, cols) + lepe
        return cast(Tensor, self.wo(out)), weight, index

    def _region_shape(self, height: int, width: int) -> tuple[int, int]:
        if self.region_size is not None:
            return self.region_size, self.region_size
        n_win = cast(int, self.n_win)
        if (height % n_win or width % n_win) and not self.auto_pad:
            raise ValueError(
                f"height {height} and width {width} must be multiples of n_win={n_win}; or set auto_pad=True"
            )
        return -(-height // n_win), -(-width // n_win)

    def _downsample(self, part: Tensor, rows: int, cols: int) -> Tensor:
        if isinstance(self.kv_down, nn.Identity):
            return part
        batch, regions, _, dim = part.shape
        image = part.reshape(batch * regions, rows, cols, dim).permute(0, 3, 1, 2)
        pooled = self.kv_down(image)  # (batch * regions, dim, rows, cols)
        return cast(Tensor, pooled.flatten(2).mT.reshape(batch, regions, -1, dim))


def routed_attention(
    q: Float[Tensor, "batch regions queries qk"],
    k: Float[Tensor, "batch regions keys qk"],
    v: Float[Tensor, "batch regions keys dim"],
    index: Int[Tensor, "batch regions topk"],
    *,
    heads: int,
    scale: float,
    weight: Float[Tensor, "batch regions topk"] | None = None,
    mask: Tensor | None = None,
) -> Float[Tensor, "batch regions queries dim"]:
    """Softmax attention of each region's pixels over the pixels of its chosen regions.

    Args:
        q: Queries by region.
        k: Keys by region.
        v: Values by region.
        index: Regions that each region attends to.
        heads: Number of heads.
        scale: Factor of the dot products.
        weight: Routing weights multiplied into keys and values, if any.
        mask: Boolean (regions, keys), False where a key is padding.

    Returns:
        Attended values, same layout as ``q``.
    """
    batch, regions, queries, _ = q.shape
    keys, dim, topk = k.shape[2], v.shape[3], index.shape[2]
    at_once = max(1, _GATHER_BUDGET // (topk * keys * (k.shape[3] + dim)))
    flat = index + (torch.arange(batch, device=index.device) * regions)[:, None, None]
    flat = flat.reshape(batch * regions, topk)
    q_all, k_all, v_all = (part.reshape(batch * regions, part.shape[2], part.shape[3]) for part in (q, k, v))
    gate = None if weight is None else weight.reshape(batch * regions, topk, 1, 1)
    pieces = []
    for start in range(0, batch * regions, at_once):
        some = slice(start, start + at_once)
        chosen = flat[some].reshape(-1)
        chosen_k = k_all.index_select(0, chosen).reshape(-1, topk, keys, k.shape[3])  # (some, topk, keys, width)
        chosen_v = v_all.index_select(0, chosen).reshape(-1, topk, keys, dim)
        if gate is not None:
            chosen_k, chosen_v = chosen_k * gate[some].to(k.dtype), chosen_v * gate[some].to(v.dtype)
        allowed = None
        if mask is not None:
            allowed = mask[chosen % regions].reshape(-1, 1, 1, topk * keys)  # (some, 1, 1, topk * keys)
        attended = _attention(
            _split_heads(q_all[some], heads),
            _split_heads(chosen_k.flatten(1, 2), heads),
            _split_heads(chosen_v.flatten(1, 2), heads),
            allowed,
            scale,
        )  # (some, heads, queries, dim / heads)
        pieces.append(attended.transpose(1, 2).reshape(-1, queries, dim))
    return torch.cat(pieces).reshape(batch, regions, queries, dim)


def _attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, scale: float) -> Tensor:
    if q.device.type == "cpu" and q.dtype is torch.bfloat16:
        # PyTorch's fused kernel for CPUs (2.13) takes twice as long in bfloat16 as two matrix products
        affinity = (q * scale) @ k.mT
        if allowed is not None:
            affinity = affinity.masked_fill(~allowed, float("-inf"))
        return affinity.softmax(dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=scale)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)  # (batch, heads, pixels, width / heads)


def _to_regions(x: Tensor, rows: int, cols: int) -> Tensor:
    batch, height, width, dim = x.shape
    down, right = -height % rows, -width % cols
    if down or right:
        x = F.pad(x, (0, 0, 0, right, 0, down))
    x = x.reshape(batch, (height + down) // rows, rows, (width + right) // cols, cols, dim)
    return x.transpose(2, 3).reshape(batch, -1, rows * cols, dim)  # (batch, regions, pixels, dim)


def _from_regions(x: Tensor, height: int, width: int, rows: int, cols: int) -> Tensor:
    batch, dim = x.shape[0], x.shape[3]
    down, across = -(-height // rows), -(-width // cols)
    x = x.reshape(batch, down, across, rows, cols, dim).transpose(2, 3)
    return x.reshape(batch, down * rows, across * cols, dim)[:, :height, :width]


def _real_pixels(height: int, width: int, rows: int, cols: int, device: torch.device) -> Tensor | None:
    """Boolean (regions, pixels), False where a pixel is padding; None where nothing is padded."""
    if height % rows == 0 and width % cols == 0:
        return None
    return _to_regions(torch.ones(1, height, width, 1, device=device), rows, cols)[0, :, :, 0] > 0
