"""Routed attention, one function with several backends: the pixels of a region attend to those of the regions it chose.

Equations (4) to (6) of the BiFormer paper (Zhu et al., CVPR 2023, arXiv:2303.08810). The released code gathers top-k
copies of all keys and values at once and keeps the attention matrix for the backward pass, which users report to take
100 GB (BiFormer#21). The backends:

* "matmul" and "sdpa" (``gathered_attention``): some regions at a time, by two matrix products and a softmax or by
  PyTorch's fused attention; "gathered" is the first on a CPU and the second elsewhere;
* "flex" (``routed_flex``): PyTorch's FlexAttention with a block mask made of the routing, compiled; gathers nothing;
* "reference": all at once and differentiated through, plainly. The others are tested against it, and an exporter, which
  cannot follow a loop of unknown length, is given it.

"auto" is "gathered" on a CPU. On an accelerator it measures the candidates on the first tensors of a kind and keeps the
fastest; one that fails there is left out with a warning.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hsidenoise.models.attention.fastest import fastest
from hsidenoise.models.attention.flex import flex_limit, routed_flex
from hsidenoise.models.attention.gathered import gathered_attention

BACKENDS = ("auto", "gathered", "matmul", "sdpa", "flex", "reference")


def routed_attention(
    q: Float[Tensor, "batch regions queries qk"],
    k: Float[Tensor, "batch regions keys qk"],
    v: Float[Tensor, "batch regions keys dim"],
    index: Int[Tensor, "batch regions topk"],
    *,
    heads: int,
    scale: float,
    weight: Float[Tensor, "batch regions topk"] | None = None,
    weight_keys: bool = False,
    mask: Bool[Tensor, "regions keys"] | None = None,
    backend: str = "auto",
) -> Float[Tensor, "batch regions queries dim"]:
    """Softmax attention of each region's queries over the keys of its chosen regions.

    Args:
        q: Queries by region.
        k: Keys by region.
        v: Values by region.
        index: Regions that each region attends to.
        heads: Number of heads; divides the widths of queries and of values.
        scale: Factor of the dot products.
        weight: Routing weights to multiply into the values of the chosen regions, if any.
        weight_keys: Multiply them into the keys too, as the released module does.
        mask: False where a key is padding and takes part in no softmax. Each region must choose a key that is not.
        backend: One of ``BACKENDS``.

    Returns:
        Attended values, same layout as ``q``.

    Raises:
        ValueError: If the backend is unknown or cannot do what is asked, or ``heads`` does not divide the widths.

    Example:
        >>> q, k, v = torch.randn(3, 1, 6, 16, 8).unbind()
        >>> index = torch.tensor([[[0, 1], [1, 2], [2, 3], [3, 4], [4, 5], [5, 0]]])
        >>> routed_attention(q, k, v, index, heads=2, scale=0.5).shape
        torch.Size([1, 6, 16, 8])

    References:
        Zhu et al., CVPR 2023, arXiv:2303.08810, equations (4) to (6).
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend '{backend}' is not one of {', '.join(BACKENDS)}")
    if heads < 1 or q.shape[3] % heads or v.shape[3] % heads:
        raise ValueError(f"heads={heads} must divide the widths of queries, {q.shape[3]}, and values, {v.shape[3]}")
    on_cpu = q.device.type == "cpu"
    flex_cannot = flex_limit(q, k, v, heads, weight) if backend == "auto" and not on_cpu else None
    if backend == "flex":
        flex_cannot = flex_limit(q, k, v, heads, weight)
        if flex_cannot is not None:
            raise ValueError(f"backend 'flex' cannot do this: {flex_cannot}; backend 'gathered' can")

    def run(name: str, q: Tensor, k: Tensor, v: Tensor, weight: Tensor | None) -> Tensor:
        if name == "reference":
            return _reference(q, k, v, index, weight, mask, heads, scale, weight_keys)
        if name == "flex":
            return routed_flex(q, k, v, index, heads=heads, scale=scale, mask=mask)
        kernel = ("matmul" if on_cpu else "sdpa") if name == "gathered" else name
        q, k, v = (_heads_to_batch(x, heads) for x in (q, k, v))
        indices = index.repeat_interleave(heads, 0) if heads > 1 else index
        weights = weight.repeat_interleave(heads, 0) if heads > 1 and weight is not None else weight
        attended = gathered_attention(
            q, k, v, indices, weights, mask, scale=scale, weight_keys=weight_keys, kernel=kernel
        )
        return _heads_from_batch(attended, heads)

    if is_exporting():
        return run("reference", q, k, v, weight)
    if backend == "auto":
        backend = "gathered"
        if q.device.type == "cuda" and not torch.compiler.is_compiling():
            candidates = ["gathered", "matmul"] if flex_cannot is not None else ["gathered", "matmul", "flex"]
            kind = (index.shape[2], heads, weight_keys, mask is None)
            backend = fastest(candidates, run, (q, k, v, weight), kind)
    return run(backend, q, k, v, weight)


def is_exporting() -> bool:
    """Whether torch.export (or torch.onnx above it) is looking: no loops of unknown length, no operators of our own.

    Example:
        >>> is_exporting()
        False
    """
    return bool(torch.compiler.is_exporting()) or torch.onnx.is_in_onnx_export()


def _heads_to_batch(x: Tensor, heads: int) -> Tensor:
    """Every head an image of its own: one gather of contiguous rows, and products without strides."""
    batch, regions, pixels, width = x.shape
    if heads == 1:
        return x
    x = x.reshape(batch, regions, pixels, heads, width // heads).permute(0, 3, 1, 2, 4)
    return x.reshape(batch * heads, regions, pixels, width // heads)


def _heads_from_batch(x: Tensor, heads: int) -> Tensor:
    batch, regions, pixels, width = x.shape
    if heads == 1:
        return x
    x = x.reshape(batch // heads, heads, regions, pixels, width).permute(0, 2, 3, 1, 4)
    return x.reshape(batch // heads, regions, pixels, heads * width)


def _reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    weight: Tensor | None,
    mask: Tensor | None,
    heads: int,
    scale: float,
    weight_keys: bool,
) -> Tensor:
    batch, regions, queries, _ = q.shape
    keys, dim, topk = k.shape[2], v.shape[3], index.shape[2]
    chosen = (index + (torch.arange(batch, device=index.device) * regions)[:, None, None]).flatten()
    # (batch, regions, topk, keys, width)
    chosen_k, chosen_v = (x.flatten(0, 1)[chosen].reshape(batch, regions, topk, keys, x.shape[3]) for x in (k, v))
    if weight is not None:
        gate = weight[..., None, None].to(v.dtype)
        chosen_k, chosen_v = chosen_k * gate if weight_keys else chosen_k, chosen_v * gate

    def split(x: Tensor, pixels: int) -> Tensor:  # (batch, regions, heads, pixels, width / heads)
        return x.reshape(batch, regions, pixels, heads, x.shape[-1] // heads).transpose(2, 3)

    wide = torch.promote_types(q.dtype, torch.float32)
    affinity = (split(q, queries).to(wide) * scale) @ split(chosen_k, topk * keys).to(wide).mT
    if mask is not None:
        allowed = mask[index.flatten()].reshape(batch, regions, 1, 1, topk * keys)
        affinity = affinity.masked_fill(~allowed, float("-inf"))
    attended = affinity.softmax(dim=-1).to(v.dtype) @ split(chosen_v, topk * keys)
    return attended.transpose(2, 3).reshape(batch, regions, queries, dim)
