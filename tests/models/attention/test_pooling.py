"""Reduction of keys and values against loops over windows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hsidenoise.models.attention.routing import POOLINGS, KeyValuePooling

REDUCING = [mode for mode in POOLINGS if mode != "identity"]


def regions(rows, cols, batch=2, count=3, qk=4, dim=6):
    generator = torch.Generator().manual_seed(rows * 100 + cols)
    k = torch.randn(batch, count, rows * cols, qk, generator=generator)
    return k, torch.randn(batch, count, rows * cols, dim, generator=generator)


def corner_mask(rows, cols, count=3):
    """Region r has its first rows - r rows and cols - 2 r columns."""
    mask = torch.zeros(count, rows, cols, dtype=torch.bool)
    for r in range(count):
        mask[r, : max(1, rows - r), : max(1, cols - 2 * r)] = True
    return mask.flatten(1)


def windows(mode, rows, cols, per_side, ratio, kernel):
    """(top, bottom, left, right) of each window."""
    if mode.startswith("ada"):
        edges = [
            [(i * side // per_side, -(-(i + 1) * side // per_side)) for i in range(per_side)] for side in (rows, cols)
        ]
    else:
        size = kernel if mode == "conv" else ratio
        edges = [[(i, i + size) for i in range(0, side - size + 1, ratio)] for side in (rows, cols)]
    return [(*row, *col) for row in edges[0] for col in edges[1]]


def by_hand(part, mode, mask, rows, cols, per_side, ratio, kernel):
    batch, count, _, width = part.shape
    image, real = part.reshape(batch, count, rows, cols, width), mask.reshape(count, rows, cols)
    places = windows(mode, rows, cols, per_side, ratio, kernel)
    out, seen = torch.zeros(batch, count, len(places), width), torch.zeros(count, len(places), dtype=torch.bool)
    for region in range(count):
        for place, (top, bottom, left, right) in enumerate(places):
            inside = image[:, region, top:bottom, left:right][:, real[region, top:bottom, left:right]]
            seen[region, place] = inside.shape[1] > 0
            if inside.shape[1] == 0:
                continue
            if mode == "conv":
                out[:, region, place] = inside.sum(1) / kernel**2
            else:
                out[:, region, place] = inside.amax(1) if "max" in mode else inside.mean(1)
    return out, seen


@pytest.mark.parametrize("mode", [mode for mode in REDUCING if mode != "fracpool"])
@settings(deadline=None, max_examples=15)
@given(rows=st.integers(3, 9), cols=st.integers(3, 9), ratio=st.integers(1, 3), more=st.integers(0, 1))
def test_equals_a_loop_over_windows(mode, rows, cols, ratio, more):
    kernel = min(ratio + more, 3)
    k, v = regions(rows, cols)
    pooling = KeyValuePooling(mode, 4, 6, per_side=2, ratio=ratio, kernel=kernel)
    mask = corner_mask(rows, cols)
    got_k, got_v, got_mask = pooling(k, v, rows, cols, mask)
    for got, part in ((got_k, k), (got_v, v)):
        expected, seen = by_hand(part, mode, mask, rows, cols, 2, ratio, kernel)
        assert torch.equal(got_mask, seen)
        torch.testing.assert_close(got * seen[..., None], expected)
        assert torch.isfinite(got).all()
    everything, _ = by_hand(k, mode, torch.ones_like(mask), rows, cols, 2, ratio, kernel)
    plain, _, none = pooling(k, v, rows, cols)
    torch.testing.assert_close(plain, everything)
    assert none is None


@pytest.mark.parametrize("mode", REDUCING)
def test_padding_takes_no_part(mode):
    k, v = regions(8, 8)
    mask = corner_mask(8, 8)
    pooling = KeyValuePooling(mode, 4, 6, ratio=2, kernel=2).eval()
    if mode == "conv":
        torch.nn.init.normal_(pooling.k.weight)
    other_k, other_v = (torch.where(mask[..., None], part, 1e4) for part in (k, v))
    for got, other in zip(pooling(k, v, 8, 8, mask), pooling(other_k, other_v, 8, 8, mask), strict=True):
        assert torch.equal(got, other)


def test_identity_is_identity():
    k, v = regions(4, 5)
    mask = corner_mask(4, 5)
    got = KeyValuePooling("identity", 4, 6)(k, v, 4, 5, mask)
    assert got[0] is k
    assert got[1] is v
    assert got[2] is mask


def test_fracpool_takes_maxima_of_the_same_windows_for_keys_and_values():
    k, _ = regions(7, 9, qk=6)
    for training in (True, False):
        pooling = KeyValuePooling("fracpool", 6, 6, ratio=2, kernel=2).train(training)
        got_k, got_v, _ = pooling(k, k.clone(), 7, 9)
        assert got_k.shape == (2, 3, 3 * 4, 6)
        assert torch.equal(got_k, got_v)
        assert torch.isin(got_k, k).all()


def test_fracpool_is_seeded():
    k, v = regions(9, 9)
    pooling = KeyValuePooling("fracpool", 4, 6, ratio=2, kernel=2, seed=1)
    torch.manual_seed(5)
    first = pooling(k, v, 9, 9)[0]
    second = pooling(k, v, 9, 9)[0]
    torch.manual_seed(5)
    assert torch.equal(pooling(k, v, 9, 9)[0], first)
    assert not torch.equal(first, second)  # drawn anew in training
    pooling.eval()
    state = torch.get_rng_state()
    fixed = pooling(k, v, 9, 9)[0]
    assert torch.equal(pooling(k, v, 9, 9)[0], fixed)
    assert torch.equal(pooling(k[1:], v[1:], 9, 9)[0], fixed[1:])
    assert torch.equal(torch.get_rng_state(), state)
    others = [
        KeyValuePooling("fracpool", 4, 6, ratio=2, kernel=2, seed=seed).eval()(k, v, 9, 9)[0] for seed in range(4)
    ]
    assert any(not torch.equal(other, fixed) for other in others)


def test_conv_has_a_kernel_for_keys_and_one_for_values():
    pooling = KeyValuePooling("conv", 4, 6, ratio=2, kernel=3)
    assert {name: tuple(weight.shape) for name, weight in pooling.state_dict().items()} == {
        "k.weight": (4, 1, 3, 3),
        "v.weight": (6, 1, 3, 3),
    }
    k, v = regions(8, 8)
    got_k, got_v, _ = pooling(k, v, 8, 8)
    assert got_k.shape == (2, 3, 9, 4)
    (got_k.sum() + got_v.square().sum()).backward()
    assert all(weight.grad.abs().sum() > 0 for weight in pooling.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", REDUCING)
def test_half_precision(mode, dtype):
    k, v = regions(8, 8)
    mask = corner_mask(8, 8)
    pooling = KeyValuePooling(mode, 4, 6, ratio=2, kernel=2).eval()
    exact = pooling(k, v, 8, 8, mask)
    got = pooling.to(dtype)(k.to(dtype), v.to(dtype), 8, 8, mask)
    assert got[0].dtype is dtype
    if mode != "fracpool":  # whose windows move with the rounding of their seed
        torch.testing.assert_close(got[0].float(), exact[0], rtol=2e-2, atol=2e-2)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mode": "median"}, "kv_downsample_mode 'median' is not one of identity"),
        ({"per_side": 0}, "kv_per_win=0"),
        ({"ratio": 0}, "kv_downsample_ratio=0"),
        ({"ratio": 2.5}, "kv_downsample_ratio=2.5"),
        ({"kernel": 0}, "kv_downsample_kernel=0"),
        ({"kernel": True}, "kv_downsample_kernel=True"),
    ],
)
def test_a_wrong_argument_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        KeyValuePooling(**({"mode": "conv", "qk_dim": 4, "dim": 6} | wrong))


@pytest.mark.parametrize("mode", ["avgpool", "maxpool", "fracpool", "conv"])
def test_a_region_smaller_than_a_window_is_named(mode):
    k, v = regions(3, 8)
    with pytest.raises(ValueError, match=f"'{mode}' .* does not fit into regions of 3 x 8 pixels"):
        KeyValuePooling(mode, 4, 6)(k, v, 3, 8)
