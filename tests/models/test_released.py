"""Parity with the released HCANet file, and what the loader of its weights refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hsidenoise.models.hcanet import HCANet, load_released_hcanet

GOLDEN = Path(__file__).parents[1] / "golden" / "hcanet_released.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.fixture(scope="module")
def state(golden):
    return {name.removeprefix("state/"): value for name, value in golden.items() if name.startswith("state/")}


@pytest.fixture(scope="module")
def config(golden):
    return json.loads(str(golden["config"]))


@pytest.fixture
def noisy():
    return torch.rand(2, 7, 20, 28, generator=torch.Generator().manual_seed(1))


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("grad", [True, False])
def test_released_weights_give_the_released_output(golden, state, config, dtype, memory_format, grad):
    network = load_released_hcanet(state, config).to(dtype)
    noisy, expected = (torch.tensor(golden[name]) for name in ("input", "output"))
    with torch.set_grad_enabled(grad):
        denoised = network(noisy.to(dtype, memory_format=memory_format))
    assert relative(denoised, expected) < 1e-5
    assert relative(denoised - noisy, expected - noisy) < 1e-5


def test_without_the_released_local_branch_the_output_is_another(golden, state, config):
    released = load_released_hcanet(state, config)
    local = HCANet(**{**released.config, "released_local_branch": False})
    local.load_state_dict(released.state_dict())
    assert relative(local(torch.tensor(golden["input"])), torch.tensor(golden["output"])) > 0.01


def released_state(network):
    """State dict of one of our networks as the released code would write it: with depth, under its names."""
    state = {}
    for name, weight in network.state_dict().items():
        value = weight
        kernel_2d = any(part in name for part in ("dwconv2", "dwconv3", "down", "up"))
        if weight.ndim == 4 and not kernel_2d:
            value = weight.unsqueeze(2)
            if weight.shape[-1] == 3:
                value = torch.cat([torch.randn_like(value), value, torch.randn_like(value)], dim=2)
        parts = name.split(".")
        if parts[0] == "patch_embed":
            parts.insert(1, "proj")
        elif "conv" in parts:
            parts[parts.index("conv")] = "body.0"
        elif "norm" in parts[-2]:
            parts[-1] = f"body.{parts[-1]}"
        state[".".join(parts)] = value
    return state


@pytest.mark.parametrize(("bias", "layer_norm"), [(True, "BiasFree"), (True, "WithBias"), (False, "BiasFree")])
def test_any_released_configuration_loads(noisy, bias, layer_norm):
    config = {
        "inp_channels": 7,
        "out_channels": 7,
        "dim": 12,
        "num_blocks": [1, 2, 1, 4],
        "num_refinement_blocks": 2,
        "heads": [2, 3, 4, 8],
        "ffn_expansion_factor": 2.0,
        "bias": bias,
        "LayerNorm_type": layer_norm,
    }
    network = HCANet(7, 12, (1, 2, 1), 2, (2, 3, 4), 2.0, bias, layer_norm, released_local_branch=True)
    loaded = load_released_hcanet(released_state(network), config)
    assert loaded.config == network.config
    assert not loaded.training
    torch.testing.assert_close(loaded(noisy), network(noisy), rtol=0, atol=0)


@pytest.mark.parametrize("key", ["state_dict", "net", "model"])
@pytest.mark.parametrize("prefix", ["module.", "net.", "net.module."])
def test_checkpoints_and_prefixes_are_unwrapped(golden, state, config, key, prefix):
    checkpoint = {"epoch": 3, key: {prefix + name: torch.tensor(value) for name, value in state.items()}}
    network = load_released_hcanet(checkpoint, config)
    assert relative(network(torch.tensor(golden["input"])), torch.tensor(golden["output"])) < 1e-5


def test_loaded_weights_are_copies(state, config):
    network = load_released_hcanet(state, config)
    name = "encoder_level1.0.norm1.body.weight"
    before = state[name].copy()
    with torch.no_grad():
        network.encoder_level1[0].norm1.weight.add_(1)
    np.testing.assert_array_equal(state[name], before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output.weight": None}, r"1 missing \(output.weight\)"),
        ({"extra.weight": np.zeros(3)}, r"1 unexpected \(extra.weight\)"),
        ({"output.weight": np.zeros((31, 16, 3, 3, 3))}, r"output.weight has shape \(31, 16, 3, 3, 3\), not"),
        ({"output.weight": np.zeros((31, 32, 2, 3, 3))}, r"output.weight has shape \(31, 32, 2, 3, 3\), not"),
        ({"output.weight": "a string"}, "output.weight is a str"),
        ({"output.weight": np.full((31, 32, 3, 3, 3), np.nan)}, "output.weight has values that are not finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused(state, config, change, message):
    broken = {name: value for name, value in {**state, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message) as error:
        load_released_hcanet(broken, config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 32}, "has shape"),
        ({"num_blocks": [2, 1, 1, 1]}, r"missing \(encoder_level1.1.norm1.body.weight, ...\)"),
        ({"LayerNorm_type": "BiasFree"}, r"unexpected \(encoder_level1.0.norm1.body.bias, ...\)"),
        ({"out_channels": 30}, "must be the same"),
        ({"inpchannels": 31}, "unknown argument 'inpchannels'"),
        ({"LayerNorm_type": "with_bias"}, "unknown layer_norm"),
        ({"heads": 4}, "heads"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(state, config, change, message):
    with pytest.raises(ValueError, match=message) as error:
        load_released_hcanet(state, {**config, **change})
    assert "\n" not in str(error.value)
