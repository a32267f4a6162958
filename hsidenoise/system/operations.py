"""Floating-point operations of a call: matrix products, convolutions and attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def count_operations(run: Callable[[], object]) -> int:
    """Count the multiplications and additions of the matrix products and convolutions in a forward call.

    Nothing is computed where the call does not look at its own values; else it is computed once more.

    Args:
        run: What to count. Its tensors are used as they are.

    Example:
        >>> matrix = torch.ones(3, 4)
        >>> count_operations(lambda: matrix @ matrix.mT)
        72
    """
    # PyTorch 2.13 has no formula for the kernel that CPUs use
    formulas: dict[Any, Any] = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_operations}
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
