"""Bi-level routing attention (BRA): every region attends to the few regions that matter to it.

Paper: Zhu et al., "BiFormer: Vision Transformer with Bi-Level Routing Attention", CVPR 2023, arXiv:2303.08810,
section 3.2 and algorithm 1. Constructor, state-dict names and output are those of the released module, so its weights
load strictly. What differs, and why:

* memory in proportion to the pixels, forward and backward, where the released code holds top-k copies of all keys and
  values and the attention matrix (BiFormer#21): see ``routed_attention``, ``gathered_attention``, ``region_routing``;
* ``region_size`` fixes the region in pixels, so that the cost is linear in the pixels and a tile of another size routes
  alike; the released ``n_win`` fixes the number of regions per side, and the cost grows with the square;
* padding (``auto_pad``, and always with ``region_size``) is masked: it takes part in no softmax, no region mean and no
  pooled key, a region of nothing else is chosen by none, and the convolution of the values (LCE) sees the border of the
  image. The released code pads with zeros that take part in everything;
* ``soft_routing`` multiplies the routing weights into the values, and they carry a gradient. The released code
  multiplies them into the keys too, and without ``diff_routing`` they are constants: ``soft_routing="released"``;
* ``diff_routing`` alone ("hard"), ``kv_downsample_mode`` "fracpool" and "conv", which raise NotImplementedError in the
  released code, are there; a pooling may be combined with ``region_size`` and ``auto_pad``;
* the affinity of regions is computed in float32 whatever the rest runs in, from means of the input, which the linear
  map turns into the means of queries and keys;
* a wrong argument is a ValueError that names it.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hsidenoise.models.attention.backends import BACKENDS, routed_attention
from hsidenoise.models.attention.kernels import absorbed_attention
from hsidenoise.models.attention.routing import KeyValuePooling, TopkRouting, from_regions, to_regions

#: Numbers of an image that are mapped and convolved at a time for inference on a CPU: what its cache holds.
_STRIP = 2**18


class _QKVLinear(nn.Module):
    """Query, key and value of every pixel by one linear map; its name in the state dict is the released one."""

    def __init__(self, dim: int, qk_dim: int, together: bool) -> None:
        super().__init__()
        self.widths = [qk_dim, qk_dim, dim]
        # One head is gathered as it lies, and lies best alone. Several heads are copied apart in any case.
        self.together = together
        self.qkv = nn.Linear(dim, 2 * qk_dim + dim)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.together:
            return torch.split(self.qkv(x), self.widths, dim=-1)
        weights, biases = (torch.split(part, self.widths) for part in (self.qkv.weight, self.qkv.bias))
        return tuple(F.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True))

    def of_means(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Mean query and mean key of a region from its mean input: the map is linear."""
        half = 2 * self.widths[0]
        with torch.autocast(mean.device.type, enabled=False):
            weight, bias = self.qkv.weight[:half], self.qkv.bias[:half]
            wide = torch.promote_types(weight.dtype, torch.float32)
            query, key = F.linear(mean.to(wide), weight.to(wide), bias.to(wide)).chunk(2, dim=-1)
        return query, key


class BiLevelRoutingAttention(nn.Module):
    """Bi-level routing attention with the constructor, names and numbers of the released module.

    Args:
        dim: Width in and out.
        num_heads: Heads; divides ``dim`` and ``qk_dim``.
        n_win: Regions per side, as released; None with ``region_size``.
        qk_dim: Width of queries and keys; None for ``dim``.
        qk_scale: Factor of the dot products, above 0; None for ``qk_dim ** -0.5`` (of the whole width, as released).
        kv_per_win: Keys per side of a region that "ada_avgpool" and "ada_maxpool" leave.
        kv_downsample_ratio: Pixels per side for one key with "avgpool", "maxpool", "fracpool" and "conv".
        kv_downsample_kernel: Side of the window of "conv" and "fracpool" in pixels; None for the ratio.
        kv_downsample_mode: One of ``hsidenoise.models.attention.routing.POOLINGS``; "identity" keeps every key.
        topk: Regions that each region attends to. With ``region_size`` it is clamped to the number of regions.
        param_attention: "qkvo", or "qkv" without the output map.
        param_routing: Learnt linear map before the region affinity. It learns with ``diff_routing`` or
            ``soft_routing``.
        diff_routing: Train the routing. Alone ("hard"): the output is that of plain routing, and backwards it is as if
            the routing weights had been multiplied (straight-through).
        soft_routing: Multiply routing weights into the values, with a gradient; "released" multiplies them into the
            keys too, with a gradient only with ``diff_routing``.
        side_dwconv: Size of the depth-wise convolution of the values that is added (LCE); odd, or 0 for none.
        auto_pad: With ``n_win``: pad height and width to multiples of it; padding is masked.
        region_size: Side of a region in pixels, in place of ``n_win``. Any height and width is padded and masked.
        backend: How to attend, one of ``hsidenoise.models.attention.backends.BACKENDS``; may be set later.
        seed: Of the sampling of "fracpool" outside training, at least 0.

    Raises:
        ValueError: If an argument is unknown, contradicts another or does not divide.

    Example:
        >>> attention = BiLevelRoutingAttention(32, num_heads=4, n_win=None, region_size=8, topk=2)
        >>> attention(torch.randn(1, 20, 30, 32)).shape
        torch.Size([1, 20, 30, 32])
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
        soft_routing: bool | str = False,
        side_dwconv: int = 3,
        auto_pad: bool = False,
        *,
        region_size: int | None = None,
        backend: str = "auto",
        seed: int = 0,
    ) -> None:
        super().__init__()
        qk_dim = dim if qk_dim is None else qk_dim
        _check_whole(dim=dim, num_heads=num_heads, qk_dim=qk_dim, topk=topk)
        _check_whole(n_win=n_win, region_size=region_size)
        _check_whole(least=0, side_dwconv=side_dwconv, seed=seed)
        _check_flags(param_routing=param_routing, diff_routing=diff_routing, auto_pad=auto_pad)
        if dim % num_heads or qk_dim % num_heads:
            raise ValueError(f"num_heads={num_heads} must divide dim={dim} and qk_dim={qk_dim}")
        if (n_win is None) == (region_size is None):
            raise ValueError("give either n_win (regions per side) or n_win=None and region_size (pixels per side)")
        if n_win is not None and topk > n_win * n_win:
            raise ValueError(f"topk={topk} must be at most the number of regions, n_win * n_win = {n_win**2}")
        number = isinstance(qk_scale, int | float) and not isinstance(qk_scale, bool)
        if qk_scale is not None and not (number and 0 < qk_scale < math.inf):
            raise ValueError(f"qk_scale={qk_scale} must be a number above 0, or None for qk_dim ** -0.5")
        if param_attention not in ("qkvo", "qkv"):
            raise ValueError(f"param_attention '{param_attention}' is neither 'qkvo' nor 'qkv'")
        if soft_routing not in (True, False, "released"):
            raise ValueError(f"soft_routing={soft_routing!r} is neither True, False nor 'released'")
        if side_dwconv and side_dwconv % 2 == 0:
            raise ValueError(f"side_dwconv={side_dwconv} must be odd, or 0 for none")
        if backend not in BACKENDS:
            raise ValueError(f"backend '{backend}' is not one of {', '.join(BACKENDS)}")
        self.dim, self.num_heads, self.n_win, self.qk_dim = dim, num_heads, n_win, qk_dim
        self.region_size, self.topk, self.auto_pad, self.backend = region_size, topk, auto_pad, backend
        self.diff_routing, self.soft_routing = diff_routing, soft_routing
        self.scale = qk_dim**-0.5 if qk_scale is None else float(qk_scale)
        self.qkv = _QKVLinear(dim, qk_dim, together=num_heads > 1)
        self.wo = nn.Linear(dim, dim) if param_attention == "qkvo" else nn.Identity()
        learns = diff_routing or soft_routing is True
        self.router = TopkRouting(qk_dim, topk, self.scale, param_routing, learns)
        self.lepe = nn.Conv2d(dim, dim, side_dwconv, padding=side_dwconv // 2, groups=dim) if side_dwconv else None
        self.kv_down = KeyValuePooling(
            kv_downsample_mode, qk_dim, dim, kv_per_win, kv_downsample_ratio, kv_downsample_kernel, seed
        )

    def forward(self, x: Float[Tensor, "batch height width dim"]) -> Float[Tensor, "batch height width dim"]:
        """Attend.

        Args:
            x: Features, channels last; a permuted view of a channels-last (batch, dim, height, width) is not copied.

        Raises:
            ValueError: If ``n_win`` divides height or width not, without ``auto_pad``; if a region is too small for
                the pooling of its keys; if the backend cannot do what is asked.
        """
        height, width = x.shape[1:3]
        rows, cols = self._region_shape(height, width)
        if self._can_absorb(x):
            return self._absorbed(x, rows, cols)
        regions, mask = to_regions(x, rows, cols)  # (batch, regions, pixels, dim), (regions, pixels)
        weight, index = self._route(regions, mask)
        q, k, v = self.qkv(regions)
        del regions  # as little as possible is held at a time
        local = None
        if self.lepe is not None:
            image = from_regions(v, height, width, rows, cols).permute(0, 3, 1, 2)  # (batch, dim, height, width)
            local = self.lepe(image).permute(0, 2, 3, 1)
            del image
        k, v, mask = self.kv_down(k, v, rows, cols, mask)
        gate: Tensor | None = weight if self.soft_routing else None
        if self.diff_routing and not self.soft_routing and torch.is_grad_enabled():
            gate = weight - weight.detach() + 1.0  # exactly 1, with the gradient of the weight
        attended = routed_attention(
            q,
            k,
            v,
            index,
            heads=self.num_heads,
            scale=self.scale,
            weight=gate,
            weight_keys=self.soft_routing == "released",
            mask=mask,
            backend=self.backend,
        )
        del q, k, v
        out = from_regions(attended, height, width, rows, cols)
        return cast(Tensor, self.wo(out if local is None else out + local))

    def _can_absorb(self, x: Tensor) -> bool:
        """Whether ``_absorbed`` may be used: not for training, and where a CPU's float32 is the limit."""
        small = x.dtype is torch.float32 and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        plain = (
            not self.soft_routing and self.kv_down.mode == "identity" and self.backend in ("auto", "gathered", "matmul")
        )
        quiet = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        return self.num_heads == 1 and self.qk_dim >= self.dim and small and plain and quiet

    def _absorbed(self, x: Tensor, rows: int, cols: int) -> Tensor:
        """The same output with the pixels themselves as keys and values: half of the gather and of the memory.

        With one head, ``q . (K p + b)`` is ``(K' q) . p`` and a number that the softmax over the pixels p does not
        see; and the weights of a softmax sum to 1, so that the map of the values may be applied behind it.
        """
        batch, height, width, dim = x.shape
        weights, biases = (torch.split(part, self.qkv.widths) for part in (self.qkv.qkv.weight, self.qkv.qkv.bias))
        regions, mask = to_regions(x, rows, cols)  # (batch, regions, pixels, dim), (regions, pixels)
        _, index = self._route(regions, mask)
        attended = absorbed_attention(
            regions,
            index,
            mask,
            query_weight=weights[1].T @ weights[0],
            query_bias=biases[0] @ weights[1],
            value_weight=self.wo.weight @ weights[2] if isinstance(self.wo, nn.Linear) else weights[2],
            scale=self.scale,
        )
        del regions
        # The bias of the values goes through the softmax unchanged.
        if self.lepe is None:
            out = self.wo(biases[2]).expand(x.shape).contiguous()
        else:
            out = torch.empty_like(x, memory_format=torch.contiguous_format)
            reach = int(self.lepe.kernel_size[0]) // 2
            at_once = max(rows, _STRIP * torch.get_num_threads() // (width * dim))
            for image in range(batch):
                for top in range(0, height, at_once):
                    above = max(0, top - reach)
                    strip = x[image : image + 1, above : top + at_once + reach]
                    local = self.lepe(F.linear(strip, weights[2], biases[2]).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
                    local = local[0, top - above : top - above + at_once][: height - top].reshape(-1, dim)
                    rows_out = out[image, top : top + at_once].view(-1, dim)
                    if isinstance(self.wo, nn.Linear):
                        torch.addmm(
                            F.linear(biases[2], self.wo.weight, self.wo.bias), local, self.wo.weight.T, out=rows_out
                        )
                    else:
                        torch.add(local, biases[2], out=rows_out)
        if mask is not None:
            return cast(Tensor, out.add_(from_regions(attended, height, width, rows, cols)))
        grid = attended.reshape(batch, height // rows, width // cols, rows, cols, dim)
        out.view(batch, height // rows, rows, width // cols, cols, dim).transpose(2, 3).add_(grid)
        return cast(Tensor, out)

    def routing(
        self, x: Float[Tensor, "batch height width dim"]
    ) -> tuple[Float[Tensor, "batch regions topk"], Int[Tensor, "batch regions topk"]]:
        """Weights and indices of the regions that each region attends to, regions in row-major order."""
        return self._route(*to_regions(x, *self._region_shape(*x.shape[1:3])))

    def _route(self, regions: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(regions.dtype, torch.float32)
        if not self.router.diff_routing:
            regions = regions.detach()
        count = regions.shape[2] if mask is None else mask.sum(1)[:, None]
        mean = regions.sum(2, dtype=wide) / count  # what was added is zero
        return cast(tuple[Tensor, Tensor], self.router(*self.qkv.of_means(mean)))

    def _region_shape(self, height: int, width: int) -> tuple[int, int]:
        if self.region_size is not None:
            return self.region_size, self.region_size
        n_win = cast(int, self.n_win)
        if not self.auto_pad and (height % n_win or width % n_win):
            raise ValueError(
                f"height {height} and width {width} must be multiples of n_win={n_win}; or set auto_pad=True"
            )
        return -(-height // n_win), -(-width // n_win)


def _check_whole(*, least: int = 1, **values: int | None) -> None:
    for name, value in values.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if value is not None and not (whole and value >= least):
            raise ValueError(f"{name}={value!r} must be a whole number, at least {least}")


def _check_flags(**values: bool) -> None:
    for name, value in values.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name}={value!r} is neither True nor False")
