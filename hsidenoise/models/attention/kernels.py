"""Attention of some regions at a time over gathered keys and values: the pieces of ``gathered_attention``.

In half precision every sum runs in float32; a product of float16 queries and keys, which overflows at activations of
300 (BiFormer#47), is computed in float32 altogether. No gradient is recorded in here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

#: Numbers at a time (gathered keys and values, and affinities) for each thread of a CPU: its cache of about 2 MiB.
_CPU_BUDGET = 384 * 2**10

#: The same on an accelerator, in all.
_GPU_BUDGET = 64 * 2**20

#: Queries that see many keys go some at a time, but not fewer than a matrix product needs to be quick.
_LEAST_QUERIES = 64


def gather(
    q: Tensor, k: Tensor, v: Tensor, index: Tensor, weight: Tensor | None, mask: Tensor | None, weight_keys: bool
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor | None, Tensor]]:
    """Some regions at a time: which, their chosen keys and values, a bias that shuts out padding, and the choice.

    Keys and values are (some, topk * keys, width), the bias is (some, 1, topk * keys) or None, the choice
    (some * topk,), counted over the batch.
    """
    batch, regions, queries, _ = q.shape
    topk, keys = index.shape[2], k.shape[2]
    at_once = max(1, _budget(q) // (topk * keys * (k.shape[3] + v.shape[3] + queries)))
    flat = (index + (torch.arange(batch, device=index.device) * regions)[:, None, None]).reshape(-1, topk)
    k_rows, v_rows = (part.reshape(batch * regions, -1) for part in (k, v))  # rows of whole regions gather fastest
    gate = None if weight is None else weight.reshape(-1, topk, 1)
    if mask is not None and mask.device.type == "cpu" and mask.all():
        mask = None  # a compiled network always brings one
    padding = None if mask is None else q.new_zeros(mask.shape).masked_fill_(~mask, float("-inf"))
    shared = gate is None and k.data_ptr() == v.data_ptr() and k.shape == v.shape  # one tensor is both
    # the same memory for every piece: it is in the cache
    places = [rows.new_empty(min(at_once, len(flat)) * topk, rows.shape[1]) for rows in (k_rows, v_rows)]
    for start in range(0, batch * regions, at_once):
        some = slice(start, start + at_once)
        chosen = flat[some].reshape(-1)
        chosen_k = torch.index_select(k_rows, 0, chosen, out=places[0][: len(chosen)])
        chosen_v = chosen_k if shared else torch.index_select(v_rows, 0, chosen, out=places[1][: len(chosen)])
        if gate is not None:
            chosen_v.view(-1, topk, v_rows.shape[1]).mul_(gate[some])
        if gate is not None and weight_keys:
            chosen_k.view(-1, topk, k_rows.shape[1]).mul_(gate[some])
        bias = None if padding is None else padding[chosen % regions].view(-1, 1, topk * keys)
        yield some, chosen_k.view(-1, topk * keys, k.shape[3]), chosen_v.view(-1, topk * keys, v.shape[3]), bias, chosen


def _parts(q: Tensor, k: Tensor) -> list[slice]:
    """Queries that see many keys some at a time, so that their affinities stay within the budget."""
    at_once = max(_LEAST_QUERIES, _budget(q) // (q.shape[0] * k.shape[1]))
    return [slice(start, start + at_once) for start in range(0, q.shape[1], at_once)]


class Scratch:
    """Memory for what one piece after the other needs: it stays in the cache, and the system is asked for it once.

    Example:
        >>> scratch = Scratch()
        >>> scratch("products", torch.zeros(1), 3, 4).data_ptr() == scratch("products", torch.zeros(1), 2).data_ptr()
        True
    """

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}

    def __call__(self, name: str, like: Tensor, *shape: int) -> Tensor:
        """Uninitialised tensor of the shape, of the type and on the device of ``like``."""
        size = math.prod(shape)
        if name not in self._memory or self._memory[name].numel() < size or self._memory[name].dtype != like.dtype:
            self._memory[name] = like.new_empty(size)
        return self._memory[name][:size].view(shape)


def _softmaxed(q: Tensor, k: Tensor, bias: Tensor | None, scale: float, place: Tensor) -> Tensor:
    """Softmaxed products (some, queries, keys), in place of the products."""
    if bias is None:
        torch.baddbmm(place, q, k.mT, beta=0, alpha=scale, out=place)
    else:
        torch.baddbmm(bias, q, k.mT, alpha=scale, out=place)
    return torch.softmax(place, dim=-1, out=place)


def matmul(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    scale: float,
    scratch: Scratch,
    out: Tensor,
    kept: Tensor | None = None,
) -> None:
    """Attend by two matrix products and a softmax, into ``out``.

    Args:
        q: Queries (some, queries, width).
        k: Keys (some, keys, width).
        v: Values (some, keys, width).
        bias: Of the products (some, 1, keys), if any.
        scale: Factor of the products.
        scratch: Memory to use.
        out: Attended values (some, queries, width).
        kept: Where to leave the affinities (some, queries, keys) for the backward pass, if they are to be kept.
    """
    if q.dtype is torch.float16:
        q, k, v, bias = q.float(), k.float(), v.float(), None if bias is None else bias.float()
    for part in _parts(q, k) if kept is None else [slice(None)]:
        queries, place = q[:, part], out[:, part]
        memory = scratch("affinity", q, *queries.shape[:2], k.shape[1]) if kept is None else kept
        affinity = _softmaxed(queries, k, bias, scale, memory)
        if place.is_contiguous() and place.dtype is v.dtype:
            torch.bmm(affinity, v, out=place)
        else:
            place.copy_(affinity @ v)


def matmul_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    scale: float,
    scratch: Scratch,
    gradient: Tensor,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries and keys, without the factor ``scale``, and of values.

    Args:
        q: As of ``matmul``, like all up to ``scratch``.
        k: Likewise.
        v: Likewise.
        bias: Likewise.
        scale: Likewise.
        scratch: Likewise.
        gradient: Of the attended values.
        kept: Affinities of the forward pass, if they were kept.
    """
    if q.dtype is torch.float16:
        q, k, v, bias = q.float(), k.float(), v.float(), None if bias is None else bias.float()
    gradient = gradient.to(q.dtype)
    of_queries: list[Tensor] = []
    dk = dv = k.new_zeros(())
    for part in _parts(q, k) if kept is None else [slice(None)]:
        shape = (*q[:, part].shape[:2], k.shape[1])
        affinity = kept
        if affinity is None:
            affinity = _softmaxed(q[:, part], k, bias, scale, scratch("affinity", q, *shape))
        dv_part = affinity.mT @ gradient[:, part]
        daffinity = torch.bmm(gradient[:, part], v.mT, out=scratch("gradient", q, *shape))
        torch.ops.aten._softmax_backward_data.out(daffinity, affinity, -1, q.dtype, grad_input=daffinity)
        of_queries.append(daffinity @ k)
        dk_part = daffinity.mT @ q[:, part]
        if len(of_queries) == 1:
            dk, dv = dk_part, dv_part
        else:  # the sums, unlike the terms, in float32
            wide = torch.promote_types(q.dtype, torch.float32)
            dk, dv = dk.to(wide).add_(dk_part), dv.to(wide).add_(dv_part)
    dq = of_queries[0] if len(of_queries) == 1 else torch.cat(of_queries, dim=1)
    return dq, dk, dv  # all but the scale


def sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Attend by PyTorch's fused attention; arguments as of ``matmul``."""
    q, k, v = (x[:, None] for x in (q, k, v))  # (some, heads, pixels, width)
    if bias is not None:
        bias = bias[:, None].expand(-1, -1, q.shape[2], -1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)[:, 0]


def sdpa_backward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries and keys, without the factor ``scale``, and of values."""
    with torch.enable_grad():
        q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
        dq, dk, dv = torch.autograd.grad(sdpa(q, k, v, bias, scale), (q, k, v), gradient)
    return dq / scale, dk / scale, dv


def _budget(x: Tensor) -> int:
    return _CPU_BUDGET * torch.get_num_threads() if x.device.type == "cpu" else _GPU_BUDGET
