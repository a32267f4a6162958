"""Routed attention over gathered keys and values, some regions at a time, forward and backward.

What the released module does for all regions at once is done for as many as a core's cache holds, so that memory does
not grow with top-k copies and an attention matrix. The backward pass gathers and attends anew: autograd keeps nothing
but the arguments, and of small images the affinities.

In half precision every sum runs in float32; a product of float16 queries and keys, which overflows at activations of
300 (BiFormer#47), is computed in float32 altogether.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

KERNELS = ("matmul", "sdpa")

#: Numbers at a time (gathered keys and values, and affinities) for each thread of a CPU: its cache of about 2 MiB.
_CPU_BUDGET = 384 * 2**10

#: The same on an accelerator, in all.
_GPU_BUDGET = 64 * 2**20

#: Queries that see many keys go some at a time, but not fewer than a matrix product needs to be quick.
_LEAST_QUERIES = 64

#: Affinities that are kept for the backward pass where they are no more than these (32 MiB in float32), which spares
#: a training step on patches computing them twice. A larger image is not given more.
_MOST_KEPT = 2**23


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
    """Memory for what one piece after the other needs: it stays in the cache, and the system is asked for it once."""

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
    """Attend to what :func:`gather` yields, into ``out``; ``kept`` takes the affinities for the backward pass."""
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
    """Gradients of queries and keys, without the factor ``scale``, and of values."""
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


def gathered_attention(
    q: Float[Tensor, "batch regions queries qk"],
    k: Float[Tensor, "batch regions keys qk"],
    v: Float[Tensor, "batch regions keys dim"],
    index: Int[Tensor, "batch regions topk"],
    weight: Float[Tensor, "batch regions topk"] | None = None,
    mask: Bool[Tensor, "regions keys"] | None = None,
    *,
    scale: float,
    weight_keys: bool = False,
    kernel: str = "matmul",
) -> Float[Tensor, "batch regions queries dim"]:
    """Softmax attention of each region's queries over the keys of its chosen regions, one head.

    Arguments as of ``routed_attention``; the scale is not 0. ``kernel``: "matmul" (two matrix products, a softmax) or
    "sdpa" (PyTorch's fused attention).
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel '{kernel}' is not one of {', '.join(KERNELS)}")
    arguments = (q, k, v, index, weight, mask, scale, weight_keys, kernel)
    if torch.compiler.is_compiling():
        return cast(Tensor, _operator(*arguments))
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v) if x is not None)
    affinities = (q.shape[0] * q.shape[1], q.shape[2], index.shape[2] * k.shape[2])
    keep = wanted and kernel == "matmul" and q.dtype is not torch.float16 and math.prod(affinities) <= _MOST_KEPT
    kept = q.new_empty(affinities) if keep else None
    return cast(Tensor, _Gathered.apply(kept, *arguments))  # type: ignore[no-untyped-call]


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    weight: Tensor | None,
    mask: Tensor | None,
    scale: float,
    weight_keys: bool,
    kernel: str,
    *,
    kept: Tensor | None = None,
) -> Tensor:
    out = v.new_empty(*q.shape[:3], v.shape[3])
    scratch, q_all, out_all = Scratch(), q.flatten(0, 1), out.flatten(0, 1)
    with torch.autocast(q.device.type, enabled=False):
        for some, chosen_k, chosen_v, bias, _ in gather(q, k, v, index, weight, mask, weight_keys):
            if kernel == "sdpa":
                out_all[some] = sdpa(q_all[some], chosen_k, chosen_v, bias, scale)
            else:
                matmul(q_all[some], chosen_k, chosen_v, bias, scale, scratch, out_all[some], _of(kept, some))
    return out


def _attend_backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    weight: Tensor | None,
    mask: Tensor | None,
    scale: float,
    weight_keys: bool,
    kernel: str,
    *,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # Summed in float32: many regions may have chosen one, and in half precision the small terms would be lost.
    wide = torch.promote_types(q.dtype, torch.float32)
    dq = torch.empty_like(q, memory_format=torch.contiguous_format)
    dk, dv = (torch.zeros(part.shape, dtype=wide, device=part.device) for part in (k, v))
    dweight = torch.zeros(index.shape, dtype=wide, device=index.device)
    q_all, dq_all, dweight_all, gradient = (part.flatten(0, 1) for part in (q, dq, dweight, gradient))
    k_rows, v_rows, dk_rows, dv_rows = (part.reshape(q_all.shape[0], -1) for part in (k, v, dk, dv))
    gate = None if weight is None else weight.reshape(-1, index.shape[2], 1).to(wide)
    scratch = Scratch()
    with torch.autocast(q.device.type, enabled=False):
        for some, chosen_k, chosen_v, bias, chosen in gather(q, k, v, index, weight, mask, weight_keys):
            arguments = (q_all[some], chosen_k, chosen_v, bias, scale)
            if kernel == "sdpa":
                dq_some, dk_some, dv_some = sdpa_backward(*arguments, gradient[some])
            else:
                dq_some, dk_some, dv_some = matmul_backward(*arguments, scratch, gradient[some], _of(kept, some))
            dq_all[some] = dq_some
            dk_some = dk_some.to(wide).reshape(-1, index.shape[2], dk_rows.shape[1])  # (some, topk, keys * width)
            dv_some = dv_some.to(wide).reshape(-1, index.shape[2], dv_rows.shape[1])
            if gate is not None:
                plain = v_rows.index_select(0, chosen).reshape(dv_some.shape)
                dweight_all[some] = (dv_some * plain).sum(2)
                dv_some = dv_some * gate[some]
            if gate is not None and weight_keys:
                plain = k_rows.index_select(0, chosen).reshape(dk_some.shape)
                dweight_all[some] += (dk_some * plain).sum(2) * scale
                dk_some = dk_some * gate[some]
            dk_rows.index_add_(0, chosen, dk_some.flatten(0, 1))
            dv_rows.index_add_(0, chosen, dv_some.flatten(0, 1))
    dq, dk = dq.mul_(scale), dk.mul_(scale)
    return dq, dk.to(k.dtype), dv.to(v.dtype), dweight if weight is None else dweight.to(weight.dtype)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kept: Tensor | None, *arguments: Any) -> Tensor:
        _keep(ctx, arguments, None)
        ctx.kept = kept  # made for this call, neither input nor output of it
        return _attend(*arguments, kept=kept)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        dq, dk, dv, dweight = _attend_backward(gradient.contiguous(), *ctx.saved_tensors, *ctx.options, kept=ctx.kept)
        return None, dq, dk, dv, None, None if ctx.saved_tensors[4] is None else dweight, None, None, None, None


def _of(kept: Tensor | None, some: slice) -> Tensor | None:
    return None if kept is None else kept[some]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor | None) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.options = inputs[6:]


# The same as operators that torch.compile does not look into: the length of the loop may depend on the image.

_ARGUMENTS = "Tensor index, Tensor? weight, Tensor? mask, float scale, bool weight_keys, str kernel"
_operator = torch.library.custom_op(
    "hsidenoise::gathered_attention",
    _attend,
    mutates_args=(),
    schema=f"(Tensor q, Tensor k, Tensor v, {_ARGUMENTS}) -> Tensor",
)
_operator_backward = torch.library.custom_op(
    "hsidenoise::gathered_attention_backward",
    _attend_backward,
    mutates_args=(),
    schema=f"(Tensor gradient, Tensor q, Tensor k, Tensor v, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor)",
)


@_operator.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
    return v.new_empty(*q.shape[:3], v.shape[3])


@_operator_backward.register_fake
def _(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, index: Tensor, weight: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(q.dtype, torch.float32) if weight is None else weight.dtype
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), q.new_empty(index.shape, dtype=dtype)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    # "matmul" whatever the forward pass was: autograd, which "sdpa" needs, is off within an operator
    options = (*ctx.options[:2], "matmul")
    dq, dk, dv, dweight = _operator_backward(gradient.contiguous(), *ctx.saved_tensors, *options)
    return dq, dk, dv, None, None if ctx.saved_tensors[4] is None else dweight, None, None, None, None


_operator.register_autograd(_differentiate, setup_context=_keep)


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

    For inference with one head: ``q . (K p + b)`` is ``(K' q) . p`` and a number that the softmax over the pixels p
    does not see, and the weights of a softmax sum to 1, so that the map of the values may be applied behind it. So keys
    and values need never exist: one gather in place of two, and the maps are applied while the numbers are in the
    cache.
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
