"""Operations are those of the formulas, on the facts of the field, without computing anything."""

import pytest
import torch
import torch.nn.functional as F
from as_released import HCANetAsReleased

from hsidenoise.system.operations import count_operations


@pytest.mark.parametrize(("side", "gflop"), [(64, 11.07), (128, 44.3)])
def test_hcanet_as_released_costs_what_is_known_of_it(side, gflop):
    with torch.device("meta"):
        network = HCANetAsReleased()
    network = network.to_empty(device="cpu")
    noisy = torch.empty(1, 31, side, side)
    with torch.inference_mode():
        assert count_operations(lambda: network(noisy)) / 1e9 == pytest.approx(gflop, rel=2e-3)


def test_attention_on_a_cpu_is_counted():
    q, k, v = (torch.ones(2, 3, n, 8) for n in (5, 7, 7))
    two_products = 2 * 2 * (2 * 3 * 5 * 7 * 8)  # of two operations each
    assert count_operations(lambda: F.scaled_dot_product_attention(q, k, v)) == two_products


def test_what_looks_at_its_values_is_counted_too():
    matrix = torch.ones(3, 4)

    def call():
        return matrix @ matrix.mT if matrix.sum() > 0 else None

    assert count_operations(call) == 2 * 3 * 4 * 3


def test_errors_of_the_call_come_through():
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        count_operations(lambda: torch.ones(2, 3) @ torch.ones(2, 3))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_grouped_convolution(groups):
    convolution = torch.nn.Conv2d(4, 8, 3, padding=1, groups=groups)
    assert count_operations(lambda: convolution(torch.ones(2, 4, 5, 6))) == 2 * 2 * 8 * (4 // groups) * 9 * 5 * 6
