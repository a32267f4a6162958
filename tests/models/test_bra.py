"""Bi-level routing attention against the released module and against dense attention."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hsidenoise.models.bra import BiLevelRoutingAttention, routed_attention

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "bra_released.npz")


@pytest.mark.parametrize("row", range(5))
def test_equals_the_released_module(row):
    module = BiLevelRoutingAttention(**json.loads(str(GOLDEN[f"{row}/config"]))).eval()
    prefix = f"{row}/state/"
    state = {name[len(prefix) :]: torch.from_numpy(GOLDEN[name]) for name in GOLDEN.files if name.startswith(prefix)}
    module.load_state_dict(state, strict=True)
    x = torch.from_numpy(GOLDEN[f"{row}/input"])
    with torch.no_grad():
        weight, index = module.routing(x)
        output = module(x)
    assert np.array_equal(index.numpy(), GOLDEN[f"{row}/routing_index"])
    np.testing.assert_allclose(weight.numpy(), GOLDEN[f"{row}/routing_weight"], rtol=1e-5, atol=1e-6)
    expected = GOLDEN[f"{row}/output"]
    np.testing.assert_allclose(output.numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def dense(module, x, heads):
    """Softmax attention of every pixel over all pixels: the plain second implementation."""
    batch, height, width, _ = x.shape
    q, k, v = module.qkv(x)
    q, k, v = (part.reshape(batch, height * width, heads, -1).transpose(1, 2) for part in (q, k, v))
    attended = torch.softmax(q @ k.mT * module.scale, dim=-1) @ v
    out = attended.transpose(1, 2).reshape(x.shape)
    out = out + module.lepe(module.qkv(x)[2].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return module.wo(out)


@pytest.mark.parametrize("size", [(16, 24), (13, 22)])
def test_all_regions_routed_is_dense_attention(size):
    torch.manual_seed(0)
    module = BiLevelRoutingAttention(24, num_heads=3, n_win=None, region_size=8, topk=100)
    x = torch.randn(2, *size, 24)
    torch.testing.assert_close(module(x), dense(module, x, 3), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [(16, 20), (11, 13)])
def test_auto_pad_with_all_regions_is_dense_attention(size):
    torch.manual_seed(0)
    module = BiLevelRoutingAttention(16, num_heads=2, n_win=3, topk=9, auto_pad=True)
    x = torch.randn(1, *size, 16)
    torch.testing.assert_close(module(x), dense(module, x, 2), rtol=1e-4, atol=1e-6)


def test_a_region_only_sees_the_regions_it_chose():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 5, 4, 6) for _ in range(3))
    index = torch.tensor([[[0, 2], [1, 3], [2, 4], [3, 0], [4, 1]]])
    out = routed_attention(q, k, v, index, heads=1, scale=0.5)
    for region in range(5):
        keys, values = k[0, index[0, region]].reshape(-1, 6), v[0, index[0, region]].reshape(-1, 6)
        expected = torch.softmax(q[0, region] @ keys.T * 0.5, dim=-1) @ values
        torch.testing.assert_close(out[0, region], expected)


def test_pieces_give_what_the_whole_gives(monkeypatch):
    torch.manual_seed(0)
    module = BiLevelRoutingAttention(16, num_heads=2, n_win=None, region_size=4, topk=3)
    x = torch.randn(2, 14, 18, 16)
    whole = module(x)
    monkeypatch.setattr("hsidenoise.models.bra._GATHER_BUDGET", 5000)
    torch.testing.assert_close(module(x), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"soft_routing": True, "diff_routing": True, "param_routing": True}])
def test_routing_in_pieces_is_routing_of_the_whole(monkeypatch, options):
    torch.manual_seed(0)
    module = BiLevelRoutingAttention(16, num_heads=2, n_win=None, region_size=4, topk=3, **options)
    x = torch.randn(2, 14, 18, 16)
    whole, (weight, index) = module(x), module.routing(x)
    monkeypatch.setattr("hsidenoise.models.bra._AFFINITY_BUDGET", 2 * 20 * 3)  # 3 of the 20 regions at a time
    pieces = module.routing(x)
    torch.testing.assert_close(pieces[0], weight)
    assert torch.equal(pieces[1], index)
    torch.testing.assert_close(module(x), whole)


def test_a_region_of_fixed_size_routes_alike_in_a_larger_image():
    """Side by side with a copy of itself, an image finds each of its regions twice: the same attention."""
    torch.manual_seed(0)
    options = {"num_heads": 2, "n_win": None, "region_size": 8, "side_dwconv": 0}
    small, large = BiLevelRoutingAttention(16, topk=2, **options), BiLevelRoutingAttention(16, topk=4, **options)
    large.load_state_dict(small.state_dict())
    x = torch.randn(1, 24, 32, 16)
    torch.testing.assert_close(large(torch.cat([x, x], dim=2)), torch.cat([small(x)] * 2, dim=2), rtol=1e-4, atol=1e-6)


def test_a_small_image_clamps_the_regions():
    module = BiLevelRoutingAttention(8, num_heads=2, n_win=None, region_size=8, topk=4)
    assert module(torch.randn(1, 3, 5, 8)).shape == (1, 3, 5, 8)


def test_gradient_reaches_every_weight():
    module = BiLevelRoutingAttention(
        16, num_heads=2, n_win=None, region_size=4, topk=2, soft_routing=True, diff_routing=True, param_routing=True
    )
    module(torch.randn(1, 12, 16, 16)).square().sum().backward()
    for name, weight in module.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_heads": 5}, "num_heads"),
        ({"topk": 50}, "topk"),
        ({"topk": 0}, "topk"),
        ({"n_win": 0}, "n_win=0"),
        ({"n_win": -7}, "n_win=-7"),
        ({"n_win": None, "region_size": 0}, "region_size=0"),
        ({"n_win": None, "region_size": 8, "topk": 0}, "topk=0 must be at least 1$"),
        ({"num_heads": 0}, "num_heads=0"),
        ({"kv_downsample_mode": "median"}, "kv_downsample_mode"),
        ({"param_attention": "q"}, "param_attention"),
        ({"region_size": 8}, "either n_win"),
        ({"n_win": None}, "either n_win"),
        ({"diff_routing": True}, "diff_routing"),
        ({"side_dwconv": 4}, "side_dwconv"),
    ],
)
def test_a_wrong_argument_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        BiLevelRoutingAttention(32, **wrong)


def test_a_size_that_does_not_divide_is_refused_without_auto_pad():
    with pytest.raises(ValueError, match="multiples of n_win=7"):
        BiLevelRoutingAttention(32)(torch.randn(1, 15, 21, 32))


def test_padding_takes_no_part():
    """The output on the real pixels is that of attention over real pixels alone, whatever the padding."""
    torch.manual_seed(0)
    module = BiLevelRoutingAttention(8, num_heads=1, n_win=None, region_size=8, topk=1, side_dwconv=0)
    x = torch.randn(1, 5, 6, 8)
    q, k, v = module.qkv(x.reshape(1, 30, 8))
    expected = module.wo(F.softmax(q @ k.mT * module.scale, -1) @ v).reshape(1, 5, 6, 8)
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-6)
