"""The fastest of several ways to compute one thing, measured on the first tensors of a kind and remembered."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

_REPEATS = 3

_winners: dict[Hashable, str] = {}


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

    Raises:
        ValueError: If there is no candidate.

    Example:
        >>> fastest(["one"], lambda name, x: x + 1, [torch.zeros(3)])
        'one'
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
