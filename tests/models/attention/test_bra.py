"""Bi-level routing attention against the released module and against dense attention."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hsidenoise.models.attention.backends import routed_attention
from hsidenoise.models.attention.bra import BiLevelRoutingAttention
from hsidenoise.models.attention.routing import POOLINGS, from_regions, to_regions

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "bra_released.npz")


@pytest.mark.parametrize("row", range(5))
def test_equals_the_released_module(row):
    module = BiLevelRoutingAttention(**released(json.loads(str(GOLDEN[f"{row}/config"])))).eval()
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


def released(config):
    """Soft routing in a released configuration is that of the released module."""
    return config | ({"soft_routing": "released"} if config.get("soft_routing") else {})


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


def plain(module, x):
    """The whole module written out with loops, without padding: a region is the real pixels it has."""
    batch, height, width, dim = x.shape
    if module.region_size is None:
        rows, cols = -(-height // module.n_win), -(-width // module.n_win)
    else:
        rows = cols = module.region_size
    q, k, v = torch.split(module.qkv.qkv(x), [module.qk_dim, module.qk_dim, dim], dim=-1)
    cells = [
        (slice(top, min(top + rows, height)), slice(left, min(left + cols, width)))
        for top in range(0, height, rows)
        for left in range(0, width, cols)
    ]
    out = torch.zeros(batch, height, width, dim)
    narrow, wide = module.qk_dim // module.num_heads, dim // module.num_heads
    for image in range(batch):
        means = [torch.stack([part[image][cell].mean((0, 1)) for cell in cells]) for part in (q, k)]
        affinity = module.router.emb(means[0]) * module.scale @ module.router.emb(means[1]).T
        best, index = affinity.topk(min(module.topk, len(cells)))
        weight = best.softmax(-1)
        for cell, chosen, share in zip(cells, index, weight, strict=True):
            soft = share if module.soft_routing else torch.ones_like(share)
            hard = soft if module.soft_routing == "released" else torch.ones_like(share)
            keys = torch.cat([k[image][cells[c]].flatten(0, 1) * w for c, w in zip(chosen, hard, strict=True)])
            values = torch.cat([v[image][cells[c]].flatten(0, 1) * w for c, w in zip(chosen, soft, strict=True)])
            queries = q[image][cell]
            heads = []
            for head in range(module.num_heads):
                here, there = slice(narrow * head, narrow * (head + 1)), slice(wide * head, wide * (head + 1))
                heads.append(F.softmax(queries[..., here] @ keys[:, here].T * module.scale, -1) @ values[:, there])
            out[image][cell] = torch.cat(heads, -1)
    if module.lepe is not None:
        out = out + module.lepe(v.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return module.wo(out)


@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(1, 21),
    width=st.integers(1, 21),
    region_size=st.sampled_from([None, 1, 3, 4, 8]),
    n_win=st.integers(1, 5),
    topk=st.integers(1, 6),
    soft_routing=st.sampled_from([False, True, "released"]),
    param_routing=st.booleans(),
    side_dwconv=st.sampled_from([0, 1, 3, 5]),
    qk_dim=st.sampled_from([None, 4]),
    seed=st.integers(0, 100),
)
def test_equals_a_plain_implementation_that_never_pads(
    height, width, region_size, n_win, topk, qk_dim, seed, **options
):
    """Whatever the amount of padding, the output on the real pixels is that of the real pixels."""
    torch.manual_seed(seed)
    regions = {"n_win": n_win, "auto_pad": True} if region_size is None else {"n_win": None, "region_size": region_size}
    topk = min(topk, n_win**2) if region_size is None else topk
    module = BiLevelRoutingAttention(8, num_heads=2, qk_dim=qk_dim, topk=topk, qk_scale=1.5, **regions, **options)
    x = torch.randn(2, height, width, 8)
    with torch.no_grad():
        torch.testing.assert_close(module(x), plain(module, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", [mode for mode in POOLINGS if mode != "identity"])
@pytest.mark.parametrize("regions", [{"n_win": 3, "auto_pad": True}, {"n_win": None, "region_size": 8}])
def test_pooled_keys_of_padding_take_no_part(monkeypatch, mode, regions):
    """What lies in the padding does not matter: here 1,000 in place of zero."""
    torch.manual_seed(0)
    module = BiLevelRoutingAttention(
        8, num_heads=2, topk=3, kv_downsample_mode=mode, kv_downsample_ratio=2, kv_per_win=2, **regions
    ).eval()
    x = torch.randn(1, 17, 22, 8)
    expected = module(x)

    def filled(x, rows, cols):
        regions, mask = to_regions(x, rows, cols)
        return torch.where(mask[None, ..., None], regions, 1000.0), mask

    with monkeypatch.context() as patch:
        patch.setattr("hsidenoise.models.attention.bra.to_regions", filled)
        patch.setattr(
            module, "_route", lambda regions, mask, route=module._route: route(regions * mask[..., None], mask)
        )
        torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-6)
    assert torch.isfinite(expected).all()


@pytest.mark.parametrize("qk_dim", [None, 24])
@pytest.mark.parametrize("size", [(16, 24), (13, 22)])
@pytest.mark.parametrize("options", [{}, {"side_dwconv": 0}, {"param_attention": "qkv"}])
@pytest.mark.parametrize("released", [True, False])
def test_one_head_without_gradients_takes_the_short_way_to_the_same(qk_dim, size, options, released):
    torch.manual_seed(0)
    regions = {"n_win": 3, "auto_pad": True} if released else {"n_win": None, "region_size": 8}
    module = BiLevelRoutingAttention(16, num_heads=1, qk_dim=qk_dim, topk=2, **regions, **options)
    x = torch.randn(2, *size, 16)
    before = x.clone()
    with torch.no_grad():
        assert module._can_absorb(x)
        short = module(x)
    assert not torch.is_inference(short)
    torch.testing.assert_close(short, module(x).detach(), rtol=1e-4, atol=2e-6)
    assert torch.equal(x, before)


def test_a_region_of_nothing_but_padding_does_not_exist():
    """15 rows in 7 regions of 3 rows: two of them would be empty."""
    module = BiLevelRoutingAttention(8, num_heads=2, n_win=7, topk=49, auto_pad=True)
    _, index = module.routing(torch.randn(1, 15, 14, 8))
    assert index.shape == (1, 5 * 7, 5 * 7)
    assert torch.isfinite(module(torch.randn(1, 15, 14, 8))).all()


def gradients(module, x):
    module.zero_grad()
    x = x.clone().requires_grad_()
    out = module(x)
    out.square().sum().backward()
    return out.detach(), {name: w.grad for name, w in module.named_parameters()} | {"x": x.grad}


def test_hard_routing_is_plain_forwards_and_trains_the_router():
    torch.manual_seed(0)
    options = {"num_heads": 2, "n_win": None, "region_size": 4, "topk": 3, "param_routing": True}
    hard, none = BiLevelRoutingAttention(16, diff_routing=True, **options), BiLevelRoutingAttention(16, **options)
    none.load_state_dict(hard.state_dict())
    x = torch.randn(2, 12, 16, 16)
    out, got = gradients(hard, x)
    plain_out, without = gradients(none, x)
    assert torch.equal(out, plain_out)
    assert without["router.emb.weight"] is None
    assert got["router.emb.weight"].abs().sum() > 0
    # the gradient of the routing weights, written out: d loss / d gate times d weight
    weight, index = hard.routing(x)
    gate = torch.ones_like(weight, requires_grad=True)
    regions, _ = to_regions(x, 4, 4)
    q, k, v = hard.qkv(regions)
    attended = routed_attention(q, k, v, index, heads=2, scale=hard.scale, weight=gate, backend="reference")
    lce = hard.lepe(from_regions(v, 12, 16, 4, 4).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    (by_gate,) = torch.autograd.grad(hard.wo(from_regions(attended, 12, 16, 4, 4) + lce).square().sum(), [gate])
    expected = torch.autograd.grad((weight * by_gate).sum(), list(hard.router.emb.parameters()))
    torch.testing.assert_close(got["router.emb.weight"], expected[0], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("soft", "diff", "learns"),
    [
        (True, False, True),
        (True, True, True),
        ("released", False, False),
        ("released", True, True),
        (False, False, False),
    ],
)
def test_routing_weights_carry_a_gradient_where_they_should(soft, diff, learns):
    module = BiLevelRoutingAttention(16, 2, None, region_size=4, topk=2, soft_routing=soft, diff_routing=diff)
    x = torch.randn(1, 12, 16, 16, requires_grad=True)
    weight, _ = module.routing(x)
    assert weight.requires_grad == learns
    if learns:
        (gradient,) = torch.autograd.grad(weight.square().sum(), [x])
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize("options", [{"soft_routing": True}, {"diff_routing": True, "kv_downsample_mode": "conv"}])
def test_gradient_reaches_every_weight(options):
    module = BiLevelRoutingAttention(
        16, num_heads=2, n_win=None, region_size=4, topk=2, param_routing=True, kv_downsample_ratio=2, **options
    )
    module(torch.randn(1, 12, 16, 16)).square().sum().backward()
    for name, weight in module.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_heads": 5}, "num_heads"),
        ({"topk": 50}, "topk"),
        ({"topk": 0}, "topk"),
        ({"n_win": 0}, "n_win=0"),
        ({"n_win": -7}, "n_win=-7"),
        ({"n_win": None, "region_size": 0}, "region_size=0"),
        ({"n_win": None, "region_size": 8, "topk": 0}, "topk=0 must be a whole number, at least 1$"),
        ({"num_heads": 0}, "num_heads=0"),
        ({"kv_downsample_mode": "median"}, "kv_downsample_mode"),
        ({"param_attention": "q"}, "param_attention"),
        ({"region_size": 8}, "either n_win"),
        ({"n_win": None}, "either n_win"),
        ({"side_dwconv": 4}, "side_dwconv=4 must be odd"),
        ({"side_dwconv": -1}, "side_dwconv=-1"),
        ({"topk": 2.0}, "topk=2.0 must be a whole number"),
        ({"dim": 0}, "dim=0"),
        ({"qk_dim": 0}, "qk_dim=0"),
        ({"qk_dim": 20}, "num_heads=8 must divide"),
        ({"qk_scale": 0}, "qk_scale=0"),
        ({"qk_scale": -1.0}, "qk_scale=-1.0"),
        ({"qk_scale": "large"}, "qk_scale=large"),
        ({"soft_routing": "hard"}, "soft_routing='hard'"),
        ({"diff_routing": "hard"}, "diff_routing='hard'"),
        ({"auto_pad": 1}, "auto_pad=1"),
        ({"backend": "fast"}, "backend 'fast'"),
        ({"kv_per_win": 0}, "kv_per_win=0"),
        ({"kv_downsample_ratio": 0}, "kv_downsample_ratio=0"),
        ({"kv_downsample_kernel": 0}, "kv_downsample_kernel=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_a_wrong_argument_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        BiLevelRoutingAttention(**({"dim": 32} | wrong))


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


def in_a_new_process(script, *arguments):
    """Standard output of a script. There are no annotation checks in it, which a tracer does not follow through."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error::UserWarning:hsidenoise", "-c", textwrap.dedent(script), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[3], check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("options", ["{'n_win': None, 'region_size': 8}", "{'n_win': 7, 'topk': 1, 'auto_pad': True}"])
def test_forward_and_backward_of_a_large_image_stay_under_two_gigabytes(options):
    """BiFormer#21: 1 x 20 x 600 x 500, 100 GB there. The peak is that of the process, PyTorch included."""
    script = """
        import sys, torch
        from hsidenoise.models.attention.bra import BiLevelRoutingAttention
        from hsidenoise.system.machine import PeakMemory
        torch.set_num_threads(1)
        memory = PeakMemory(torch.device("cpu"))
        attention = BiLevelRoutingAttention(20, num_heads=1, **eval(sys.argv[1]))
        x = torch.randn(1, 600, 500, 20, requires_grad=True)
        attention(x).square().mean().backward()
        assert x.grad.isfinite().all()
        print(memory.read()[0])
    """
    assert int(in_a_new_process(script, options)) < 2e9


@pytest.mark.slow
def test_one_compiled_graph_takes_any_size():
    script = """
        import torch
        from hsidenoise.models.attention.bra import BiLevelRoutingAttention
        torch.manual_seed(0)
        attention = BiLevelRoutingAttention(16, num_heads=2, n_win=None, region_size=8, soft_routing=True)
        compiled = torch.compile(attention, dynamic=True, fullgraph=True, backend="aot_eager")
        for size in ((2, 24, 40), (3, 64, 56), (2, 13, 22)):
            x = torch.randn(*size, 16, requires_grad=True)
            for one, other in ((compiled(x), attention(x)),):
                torch.testing.assert_close(one, other)
                gradients = [torch.autograd.grad(out.square().sum(), [x])[0] for out in (one, other)]
                torch.testing.assert_close(*gradients)
    """
    in_a_new_process(script)


@pytest.mark.slow
def test_an_exported_graph_takes_any_size():
    script = """
        import torch
        from torch.export import Dim, export
        from hsidenoise.models.attention.bra import BiLevelRoutingAttention
        torch.manual_seed(0)
        attention = BiLevelRoutingAttention(16, num_heads=2, n_win=None, region_size=8).eval()
        free = {axis: Dim.DYNAMIC for axis in range(3)}
        with torch.no_grad():
            graph = export(attention, (torch.randn(2, 24, 40, 16),), dynamic_shapes=(free,)).module(check_guards=False)
            for size in ((2, 24, 40), (1, 13, 22), (3, 64, 56), (1, 5, 3)):
                x = torch.randn(*size, 16)
                torch.testing.assert_close(graph(x), attention(x))
    """
    in_a_new_process(script)
