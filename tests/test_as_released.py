"""The slow side of the benchmark gives what the released files gave, and what our side gives with its weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from as_released import HCANetAsReleased, RoutingAttentionAsReleased

from hsidenoise.models.attention.bra import BiLevelRoutingAttention
from hsidenoise.models.hcanet import load_released_hcanet

GOLDEN = Path(__file__).parent / "golden"


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def golden(name, prefix=""):
    with np.load(GOLDEN / name) as file:
        values = {key.removeprefix(prefix): file[key] for key in file.files if key.startswith(prefix)}
    state = {key.removeprefix("state/"): torch.tensor(v) for key, v in values.items() if key.startswith("state/")}
    return json.loads(str(values["config"])), state, torch.tensor(values["input"]), torch.tensor(values["output"])


def test_hcanet_gives_the_output_of_the_released_file():
    config, state, noisy, expected = golden("hcanet_released.npz")
    network = HCANetAsReleased(**config)
    network.load_state_dict(state, strict=True)
    with torch.no_grad():
        denoised = network(noisy)
    assert relative(denoised, expected) < 1e-5
    assert relative(denoised - noisy, expected - noisy) < 1e-5


def test_the_paper_size_has_the_released_number_of_parameters():
    with torch.device("meta"):
        network = HCANetAsReleased()
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_607_741


@pytest.mark.parametrize("case", [0, 1, 2])
def test_routing_attention_gives_the_output_of_the_released_file(case):
    config, state, x, expected = golden("bra_released.npz", f"{case}/")
    attention = RoutingAttentionAsReleased(**config)
    attention.load_state_dict(state, strict=True)
    with torch.no_grad():
        assert relative(attention(x), expected) < 1e-5


@pytest.mark.parametrize(("bias", "layer_norm"), [(True, "BiasFree"), (True, "WithBias"), (False, "BiasFree")])
def test_every_option_of_hcanet_agrees_with_ours(bias, layer_norm):
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
    network = HCANetAsReleased(**config)
    ours = load_released_hcanet(network.state_dict(), config)
    noisy = torch.rand(2, 7, 20, 28, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert relative(network(noisy) - noisy, ours(noisy) - noisy) < 1e-5


@pytest.mark.parametrize("scale", [None, 0.3])
def test_routing_attention_agrees_with_ours(scale):
    attention = RoutingAttentionAsReleased(12, 3, n_win=3, topk=9, qk_scale=scale)
    ours = BiLevelRoutingAttention(12, 3, n_win=3, topk=9, qk_scale=scale)
    ours.load_state_dict(attention.state_dict(), strict=True)
    x = torch.randn(2, 9, 15, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert relative(attention(x), ours(x)) < 1e-5
