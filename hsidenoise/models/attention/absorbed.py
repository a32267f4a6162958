"""Routed attention with the pixels themselves as keys and values, for inference with one head.

With one head, ``q . (K p + b)`` is ``(K' q) . p`` and a number that the softmax over the pixels p does not see; and the
weights of a softmax sum to 1, so that the map of the values may be applied behind it. So keys and values need never
exist: one gather in place of two, and the maps are applied while the numbers are in the cache.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hsidenoise.models.attention.kernels import Scratch, gather, matmul


@torch.no_grad()
def absorbed_attention(
    x: Float[Tensor, "batch regions pixels dim"],
    index: Int[Tensor, "batch regions topk"],
    mask: Bool[Tensor, "regions pixels"] | None = None,
    *,
    query_weight: Float[Tensor, "dim dim"],
    query_bias: Float[Tensor, " dim"],
    value_weight: Float[Tensor, "dim dim"],
    scale: float,
) -> Float[Tensor, "batch regions pixels dim"]:
    """Linear map of the pixels to queries, attention with the pixels as keys and as values, linear map of the result.

    Args:
        x: Pixels by region.
        index: Regions that each region attends to.
        mask: False where a pixel is padding.
        query_weight: From pixels to queries.
        query_bias: Likewise.
        value_weight: From attended pixels to the result.
        scale: Factor of the dot products.

    Example:
        >>> x, one = torch.randn(1, 4, 16, 8), torch.eye(8)
        >>> maps = {"query_weight": one, "query_bias": torch.zeros(8), "value_weight": one}
        >>> absorbed_attention(x, torch.tensor([[[0], [2], [3], [1]]]), **maps, scale=0.5).shape
        torch.Size([1, 4, 16, 8])
    """
    out = torch.empty_like(x)
    scratch, x_all, out_all = Scratch(), x.flatten(0, 1), out.flatten(0, 1)
    with torch.autocast(x.device.type, enabled=False):
        for some, chosen, _, bias, _ in gather(x, x, x, index, None, mask, False):
            pixels = x_all[some].view(-1, x.shape[3])
            q, attended = (scratch(name, x, *pixels.shape) for name in ("q", "attended"))
            torch.addmm(query_bias, pixels, query_weight.mT, out=q)
            q, attended = (part.view(-1, *x.shape[2:]) for part in (q, attended))
            matmul(q, chosen, chosen, bias, scale, scratch, attended)
            rows = out_all[some].view(-1, x.shape[3])
            torch.mm(attended.view(-1, x.shape[3]), value_weight.mT, out=rows)
    return out
