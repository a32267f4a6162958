"""Both sides of every network compute the same from the same weights and input, and repeat."""

import pytest
import torch

from hsidenoise.speed_networks import EQUAL_SIZE, NETWORKS, features, noisy_scene
from hsidenoise.weights import load_model

RELEASED = [name for name, subject in NETWORKS.items() if subject.as_released]


@pytest.mark.parametrize("name", RELEASED)
def test_both_sides_agree(name):
    subject = NETWORKS[name]
    x = subject.example(2, 32)
    with torch.inference_mode():
        released, ours = subject.as_released(32)(x), subject.ours(32)(x)
    assert (released - ours).abs().max() < 1e-5 * released.abs().max()
    if subject.denoises:  # and the comparison is not one of the input with itself
        assert (released - x).abs().mean() > 0.01


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_repeats_and_is_ready(name):
    subject = NETWORKS[name]
    state, random_state = subject.ours(64).state_dict(), torch.get_rng_state()
    network = subject.ours(64)
    assert not network.training
    for key, value in network.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_the_shipped_network_is_measured_and_one_of_equal_size():
    assert NETWORKS["hcanet-bra"].ours(64).config == load_model().config
    config = NETWORKS["hcanet-bra-48"].ours(64).config
    released = NETWORKS["hcanet"].ours(64).config
    assert {key: config[key] for key in EQUAL_SIZE} == {key: released[key] for key in EQUAL_SIZE}


@pytest.mark.parametrize("make", [noisy_scene, features])
def test_inputs_repeat_and_differ_within_a_batch(make):
    one = make(2, 16)
    torch.testing.assert_close(one, make(2, 16), rtol=0, atol=0)
    assert not torch.equal(one[0], one[1])


def test_the_scene_is_on_the_unit_scale_and_noisy():
    scene = noisy_scene(1, 64)
    difference = scene[..., 1:] - scene[..., :-1]
    assert difference.std() == pytest.approx(2**0.5 * 50 / 255, rel=0.05)
    assert 0.1 < scene.mean() < 0.9


@pytest.mark.parametrize("side", [20, 8])
def test_a_side_that_the_released_attention_does_not_take_is_refused(side):
    with pytest.raises(ValueError, match=f"multiples of 8, not {side}"):
        NETWORKS["bra"].as_released(side)
