"""Routed attention over gathered keys and values, some regions at a time, forward and backward.

What the released module does for all regions at once is done for as many as a core's cache holds, so that memory does
not grow with top-k copies and an attention matrix. The backward pass gathers and attends
anew: autograd keeps nothing but the arguments, and of small images the affinities.

The loop is one operator to torch.compile, which need not know its length: images of any size, one compiled graph.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from hsidenoise.models.attention.kernels import Scratch, gather, matmul, matmul_backward, sdpa, sdpa_backward

KERNELS = ("matmul", "sdpa")

#: Affinities that are kept for the backward pass where they are no more than these (32 MiB in float32), which spares
#: a training step on patches computing them twice. A larger image is not given more.
_MOST_KEPT = 2**23


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

    Args:
        q: Queries by region.
        k: Keys by region.
        v: Values by region.
        index: Regions that each region attends to.
        weight: Factors of the values of the chosen regions, if any.
        mask: False where a key is padding.
        scale: Factor of the dot products, not 0.
        weight_keys: Multiply the factors into the keys too.
        kernel: "matmul" (two matrix products, a softmax) or "sdpa" (PyTorch's fused attention).

    Raises:
        ValueError: If the kernel is unknown.

    Example:
        >>> q, k, v = torch.randn(3, 1, 4, 16, 8).unbind()
        >>> gathered_attention(q, k, v, torch.tensor([[[0], [2], [3], [1]]]), scale=0.5).shape
        torch.Size([1, 4, 16, 8])
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
