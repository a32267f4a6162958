"""HCANet: its guarantees, and what it refuses."""

import json

import pytest
import torch

from hsidenoise.models.hcanet import HCANet

SMALL = {"bands": 7, "dim": 8, "num_blocks": (1, 1, 1)}


@pytest.fixture
def small():
    torch.manual_seed(0)
    return HCANet(**SMALL)


@pytest.fixture
def noisy():
    return torch.rand(2, 7, 20, 28, generator=torch.Generator().manual_seed(1))


def test_default_size_is_the_released_one_less_its_dead_weights():
    assert sum(weight.numel() for weight in HCANet().parameters()) == 4_607_741 - 485_550


@pytest.mark.parametrize("size", [(37, 50), (1, 1), (2, 3), (4, 9)])
@pytest.mark.parametrize("released", [True, False])
def test_any_size(size, released):
    network = HCANet(**SMALL, released_local_branch=released)
    noisy = torch.rand(1, 7, *size)
    denoised = network(noisy)
    assert denoised.shape == noisy.shape
    assert denoised.isfinite().all()


def test_input_is_left_alone_and_added(small, noisy):
    before = noisy.clone()
    torch.nn.init.zeros_(small.output.weight)
    torch.testing.assert_close(small(noisy), before, rtol=0, atol=0)
    torch.testing.assert_close(noisy, before, rtol=0, atol=0)


@pytest.mark.parametrize("options", [{}, {"bias": True, "layer_norm": "BiasFree", "num_refinement_blocks": 2}])
def test_gradient_reaches_every_weight(options, noisy):
    torch.manual_seed(0)
    network = HCANet(**SMALL, **options).double()
    network(noisy.double()).square().mean().backward()
    for name, weight in network.named_parameters():
        assert (weight.grad != 0).all(), name


def test_bfloat16_autocast_is_close_forward_and_backward(small, noisy):
    def run(enabled):
        small.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            denoised = small(noisy)
        denoised.square().mean().backward()
        return denoised.detach(), {name: weight.grad.clone() for name, weight in small.named_parameters()}

    (single, gradients), (half, half_gradients) = run(False), run(True)
    assert half.dtype == torch.float32  # the input, in single precision, is added
    assert (half - single).abs().max() < 0.02
    for name, gradient in gradients.items():
        similarity = torch.cosine_similarity(gradient.flatten(), half_gradients[name].flatten(), dim=0)
        assert similarity > 0.98, name
        assert half_gradients[name].norm() < 1.2 * gradient.norm(), name


@pytest.mark.parametrize("released", [True, False])
def test_memory_format_changes_nothing(noisy, released):
    network = HCANet(**SMALL, released_local_branch=released)
    torch.testing.assert_close(network(noisy.contiguous(memory_format=torch.channels_last)), network(noisy))


def test_config_round_trip(noisy):
    arguments = {
        "bands": 7,
        "dim": 12,
        "num_blocks": [1, 0, 2],
        "num_refinement_blocks": 0,
        "heads": [2, 1, 3],
        "expansion": 1.5,
        "bias": True,
        "layer_norm": "BiasFree",
        "released_local_branch": True,
    }
    network = HCANet(**arguments)
    assert network.config == arguments
    again = HCANet(**json.loads(json.dumps(network.config)))
    again.load_state_dict(network.state_dict())
    torch.testing.assert_close(again(noisy), network(noisy))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_blocks": (1, 1)}, "3 levels"),
        ({"heads": (1, 2, 4, 8)}, "3 levels"),
        ({"dim": 9}, "even dim"),
        ({"bands": 0}, "bands=0"),
        ({"heads": (3, 2, 4)}, "level 1 has 8 channels"),
        ({"heads": (1, 2, 0)}, "heads >= 1"),
        ({"num_blocks": (1, -1, 1)}, "block counts"),
        ({"expansion": 0.01}, "expansion=0.01"),
        ({"layer_norm": "withbias"}, "unknown layer_norm 'withbias'"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        HCANet(**{**SMALL, **arguments})
    assert "\n" not in str(error.value)


def test_another_number_of_bands_is_refused(small):
    with pytest.raises(ValueError, match="cubes of 5 bands do not go through a network of 7 bands"):
        small(torch.zeros(1, 5, 8, 12))
