"""Operations are those of the formulas, on the facts of the field, without computing anything."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hsidenoise.as_released import HCANetAsReleased
from hsidenoise.operations import count_operations


@pytest.mark.parametrize(("side", "gflop"), [(64, 11.07), (128, 44.3)])
def test_hcanet_as_released_costs_what_is_known_of_it(side, gflop):
    with torch.device("meta"):
        network = HCANetAsReleased()
    network = network.to_empty(device="cpu")
    noisy = torch.empty(1, 31, side, side)
    with torch.inference_mode():
        assert count_operations(lambda: network(noisy)) / 1e9 == pytest.approx(gflop, rel=2e-3)


def test_attention_on_a_cpu_is_counted_forward_and_backward():
    q, k, v = (torch.ones(2, 3, n, 8, requires_grad=True) for n in (5, 7, 7))
    forward = 2 * 2 * (2 * 3 * 5 * 7 * 8)  # two products of two operations each
    assert count_operations(lambda: F.scaled_dot_product_attention(q, k, v)) == forward

    def both():
        return torch.autograd.grad(F.scaled_dot_product_attention(q, k, v).sum(), [q, k, v])

    assert count_operations(both) > 2.9 * forward  # backward: four products, and the first once more


def test_what_looks_at_its_values_is_counted_too():
    matrix = torch.ones(3, 4)

    def call():
        return matrix @ matrix.mT if matrix.sum() > 0 else None

    assert count_operations(call) == 2 * 3 * 4 * 3


def test_nothing_is_left_behind():
    layer = nn.Linear(3, 4)
    x = torch.ones(2, 3)
    count_operations(lambda: torch.autograd.grad(layer(x).sum(), list(layer.parameters())))
    assert layer.weight.grad is None
    assert torch.isfinite(layer(x)).all()


def test_errors_of_the_call_come_through():
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        count_operations(lambda: torch.ones(2, 3) @ torch.ones(2, 3))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_each_gradient_of_a_convolution_costs_what_the_convolution_costs(groups):
    convolution = torch.nn.Conv2d(4, 8, 3, padding=1, groups=groups)
    x = torch.randn(2, 4, 5, 6, requires_grad=True)
    forward = 2 * 2 * 8 * (4 // groups) * 9 * 5 * 6
    assert count_operations(lambda: convolution(x)) == forward
    assert count_operations(lambda: convolution(x).sum().backward()) == 3 * forward
    assert count_operations(lambda: convolution(x.detach()).sum().backward()) == 2 * forward
