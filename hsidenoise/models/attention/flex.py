"""Routed attention by PyTorch's FlexAttention: regions are blocks, the routing is the block mask, nothing is gathered.

Tokens lie region after region, so that the pixels of one region are one block of the mask, and the kernel reads the
chosen blocks where they are. Compiled on an accelerator. On a CPU it runs uncompiled, without gradients and with the
whole attention matrix: to be tested, not to be used.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

#: The block mask lists, for each region, room for every region; beyond this many numbers gathering is the better way.
_MOST_PAIRS = 2**26

#: Fewer pixels in a block than a tile of the kernel has do not compile.
_LEAST_BLOCK = 64


def flex_limit(
    q: Float[Tensor, "batch regions queries qk"],
    k: Float[Tensor, "batch regions keys qk"],
    v: Float[Tensor, "batch regions keys dim"],
    heads: int,
    weight: Float[Tensor, "batch regions topk"] | None = None,
) -> str | None:
    """Why FlexAttention cannot do this, in words; None where it can.

    Args:
        q: Queries by region.
        k: Keys by region.
        v: Values by region.
        heads: Number of heads.
        weight: Routing weights, which it has no place for.

    Example:
        >>> x = torch.zeros(1, 4, 49, 32, device="meta")
        >>> flex_limit(x, x, x, heads=1)
        'a region of 49 pixels is not a block of 64, 128, 256 ... pixels'
    """
    batch, regions, queries, _ = q.shape
    on_cpu = q.device.type == "cpu"
    if weight is not None:
        return "routing weights multiply values"
    if on_cpu and torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        return "it has no gradient on a CPU"
    for pixels in () if on_cpu else (queries, k.shape[2]):
        if pixels < _LEAST_BLOCK or pixels & (pixels - 1):
            return f"a region of {pixels} pixels is not a block of 64, 128, 256 ... pixels"
    if not on_cpu and min(q.shape[3], v.shape[3]) // heads < 16:
        return "a head is narrower than 16"
    if batch * regions**2 > _MOST_PAIRS:
        return f"{regions} regions make too large a block mask"
    return None


def routed_flex(
    q: Float[Tensor, "batch regions queries qk"],
    k: Float[Tensor, "batch regions keys qk"],
    v: Float[Tensor, "batch regions keys dim"],
    index: Int[Tensor, "batch regions topk"],
    *,
    heads: int,
    scale: float,
    mask: Bool[Tensor, "regions keys"] | None = None,
) -> Float[Tensor, "batch regions queries dim"]:
    """Softmax attention of each region's queries over the keys of its chosen regions.

    Args:
        q: Queries by region.
        k: Keys by region.
        v: Values by region.
        index: Regions that each region attends to, each once.
        heads: Number of heads.
        scale: Factor of the dot products.
        mask: False where a key is padding.

    Example:
        >>> q, k, v = torch.randn(3, 1, 4, 16, 8).unbind()
        >>> routed_flex(q, k, v, torch.tensor([[[0], [2], [3], [1]]]), heads=2, scale=0.5).shape
        torch.Size([1, 4, 16, 8])

    References:
        Dong et al., "FlexAttention", 2024, arXiv:2412.05496.
    """
    batch, regions, queries, _ = q.shape

    def tokens(x: Tensor) -> Tensor:  # (batch, heads, regions * pixels, width / heads)
        return x.reshape(batch, -1, heads, x.shape[3] // heads).transpose(1, 2).contiguous()

    with torch.autocast(q.device.type, enabled=False):
        attended = _kernel(q.device.type)(
            tokens(q), tokens(k), tokens(v), block_mask=_block_mask(index, queries, k.shape[2], mask), scale=scale
        )
    return attended.transpose(1, 2).reshape(batch, regions, queries, v.shape[3])


def _block_mask(index: Tensor, queries: int, keys: int, mask: Tensor | None) -> BlockMask:
    """The routing as a block mask: a region without padding is a full block, of whose pixels none is asked for."""
    batch, regions, _ = index.shape
    chosen = torch.zeros(batch, regions, regions, dtype=torch.bool, device=index.device)
    chosen.scatter_(2, index, torch.ones_like(index, dtype=torch.bool))
    real = torch.ones(regions, keys, dtype=torch.bool, device=index.device) if mask is None else mask
    whole = real.all(1)

    def listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
        first = torch.argsort(blocks.int(), dim=-1, descending=True, stable=True)
        return blocks.sum(-1, dtype=torch.int32)[:, None], first.int()[:, None]  # with an axis for the heads

    partial, full = listed(chosen & ~whole), listed(chosen & whole)
    # (batch, head, query, key); a lambda, because the tracer follows into no checks of annotations
    attends = lambda b, _, q, k: chosen[b, q // queries, k // keys] & real[k // keys, k % keys]  # noqa: E731
    return BlockMask.from_kv_blocks(
        *partial, *full, BLOCK_SIZE=(queries, keys), mask_mod=attends, seq_lengths=(regions * queries, regions * keys)
    )


@functools.cache
def _kernel(device: str) -> Callable[..., Tensor]:
    if device == "cpu":
        return _uncompiled
    return cast(Callable[..., Tensor], torch.compile(flex_attention))


def _uncompiled(*tensors: Tensor, **options: Any) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        return cast(Callable[..., Tensor], flex_attention)(*tensors, **options)
