"""Floating-point operations of a call: matrix products, convolutions and attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count, sdpa_backward_flop_count, sdpa_flop_count


def count_operations(run: Callable[[], object]) -> int:
    """Count the multiplications and additions of the matrix products and convolutions in a call.

    Nothing is computed where the call does not look at its own values; else it is computed once more.

    Args:
        run: What to count. Its tensors are used as they are.

    Example:
        >>> matrix = torch.ones(3, 4)
        >>> count_operations(lambda: matrix @ matrix.mT)
        72
    """
    operators = torch.ops.aten
    formulas: dict[Any, Any] = {
        # that of PyTorch 2.13 counts the gradient of a depth-wise kernel as that of a dense one
        operators.convolution_backward: _convolution_backward_operations,
        # PyTorch 2.13 has none for the kernels that CPUs use
        operators._scaled_dot_product_flash_attention_for_cpu: _attention_operations,
        operators._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_operations,
    }
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), counter:
            run()
    except Exception:  # looks at its values, or does what fake tensors cannot; what is wrong for good is raised below
        with counter:  # starts again from zero
            run()
    return int(counter.get_total_flops())


def _attention_operations(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward_operations(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(grad, query, key, value))  # type: ignore[no-untyped-call]


def _convolution_backward_operations(
    grad: Any,
    x: Any,
    weight: Any,
    _biases: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    *rest: Any,
    **__: Any,
) -> int:
    """Each of the two gradients takes as many operations as the convolution itself."""
    wanted = rest[2]  # of the input, the kernel and the bias: after the padding of the output and the groups
    forward = conv_flop_count(list(x), list(weight), list(grad), transposed=transposed)
    return int(forward) * (bool(wanted[0]) + bool(wanted[1]))
