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

import functools
import time
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from hsidenoise.models.attention.kernels import gathered_attention

BACKENDS = ("auto", "gathered", "matmul", "sdpa", "flex", "reference")

#: The block mask lists, for each region, room for every region; beyond this many numbers gathering is the better way.
_MOST_PAIRS = 2**26

#: Fewer pixels in a block than a tile of the kernel has do not compile.
_LEAST_BLOCK = 64

_REPEATS = 3  # of each candidate of "auto"
_winners: dict[Hashable, str] = {}


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
    """Whether torch.export (or torch.onnx above it) is looking: no loops of unknown length, no operators of our own."""
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


def flex_limit(
    q: Float[Tensor, "batch regions queries qk"],
    k: Float[Tensor, "batch regions keys qk"],
    v: Float[Tensor, "batch regions keys dim"],
    heads: int,
    weight: Float[Tensor, "batch regions topk"] | None = None,
) -> str | None:
    """Why FlexAttention cannot do this, in words; None where it can.

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
    """Softmax attention by PyTorch's FlexAttention: regions are blocks, the routing is the block mask.

    Tokens lie region after region, so that the pixels of one region are one block of the mask, and the kernel reads the
    chosen blocks where they are. Compiled on an accelerator. On a CPU it runs uncompiled, without gradients and with
    the whole attention matrix: to be tested, not to be used.

    References:
        Dong et al., "FlexAttention", 2024, arXiv:2412.05496.
    """
    batch, regions, queries, _ = q.shape

    def tokens(x: Tensor) -> Tensor:  # (batch, heads, regions * pixels, width / heads)
        return x.reshape(batch, -1, heads, x.shape[3] // heads).transpose(1, 2).contiguous()

    with torch.autocast(q.device.type, enabled=False):
        attended = _flex_kernel(q.device.type)(
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
def _flex_kernel(device: str) -> Callable[..., Tensor]:
    if device == "cpu":
        return _uncompiled
    return cast(Callable[..., Tensor], torch.compile(flex_attention))


def _uncompiled(*tensors: Tensor, **options: Any) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        return cast(Callable[..., Tensor], flex_attention)(*tensors, **options)


def fastest(
    candidates: Sequence[str],
    run: Callable[..., Tensor],
    tensors: Sequence[Tensor | None],
    kind: Hashable = (),
) -> str:
    """Name of the candidate that takes least time on these tensors, or on others of their kind before.

    A kind is the device, types, widths, and sizes up to a factor of two of the tensors, whether gradients are wanted,
    and ``kind``. Where gradients are wanted, the backward pass is measured too. A candidate that fails is out, with a
    warning; the first one must not fail.

    Args:
        candidates: Names; the first one is trusted: its errors are raised.
        run: Called with a name and the tensors.
        tensors: What to compute with; left as they are.
        kind: What else sets kinds apart.
    """
    if not candidates:
        raise ValueError("no candidate to measure; name at least one")
    wants_gradient = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    key = (tuple(candidates), wants_gradient, kind, *(_kind(t) for t in tensors))
    if key not in _winners:
        seconds: dict[str, float] = {}
        for name in candidates:
            try:
                seconds[name] = _seconds(name, run, tensors, wants_gradient)
            except Exception as error:  # whatever a compiler may raise
                if name == candidates[0]:
                    raise
                reason = (str(error).strip() or repr(error)).splitlines()[0]
                warnings.warn(f"'{name}' fails here and is left out: {reason}", RuntimeWarning, stacklevel=2)
        _winners[key] = min(seconds, key=seconds.__getitem__)
    return _winners[key]


def _kind(tensor: Tensor | None) -> Hashable:
    if tensor is None:
        return None
    *sizes, width = tensor.shape
    return tensor.device, tensor.dtype, tensor.requires_grad, width, *(size.bit_length() for size in sizes)


def _seconds(name: str, run: Callable[..., Tensor], tensors: Sequence[Tensor | None], wants_gradient: bool) -> float:
    """Least time of some runs, after one that compiles what there is to compile."""
    copies = [None if t is None else t.detach().requires_grad_(wants_gradient and t.requires_grad) for t in tensors]
    wanted = [t for t in copies if t is not None and t.requires_grad]
    best = float("inf")
    for _ in range(1 + _REPEATS):
        _synchronise(tensors)
        start = time.perf_counter()
        out = run(name, *copies)
        if wants_gradient:
            torch.autograd.grad(out, wanted, torch.ones_like(out), allow_unused=True)
        _synchronise(tensors)
        spent, first = time.perf_counter() - start, best == float("inf")
        best = float("1e30") if first else min(best, spent)
    return best


def _synchronise(tensors: Sequence[Tensor | None]) -> None:
    for tensor in tensors:
        if tensor is not None and tensor.device.type != "cpu":
            torch.accelerator.synchronize(tensor.device)
            return
