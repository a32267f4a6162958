"""Which regions are chosen: the blockwise search and the pieces against torch.topk over the whole matrix."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hsidenoise.models.attention import routing as region_routing
from hsidenoise.models.attention.routing import TopkRouting, best_regions, from_regions, to_regions


@pytest.mark.parametrize("regions", [1, 3, 20, 640, 700])
@pytest.mark.parametrize("topk", [1, 4, 7])
@pytest.mark.parametrize("budget", [None, 3000])
def test_best_regions_are_those_of_topk(monkeypatch, regions, topk, budget):
    torch.manual_seed(0)
    if budget is not None:
        monkeypatch.setattr(region_routing, "_AFFINITY_BUDGET", budget)
        monkeypatch.setattr(region_routing, "_LEAST_ROWS", 1)
    query, key = torch.randn(2, regions, 6), torch.randn(2, regions, 6)
    key[:, :4] *= 1e-3  # nothing but small ones in front
    value, index = best_regions(query, key, topk)
    expected = (query @ key.mT).topk(min(topk, regions), dim=-1)
    torch.testing.assert_close(value, expected.values)
    assert torch.equal(index, expected.indices)


def test_all_products_negative():
    """What fills up the last block must not win."""
    key = torch.rand(1, 1000, 4)
    value, index = best_regions(-torch.rand(1, 1000, 4), key, 3)
    assert index.max() < 1000
    assert (value < 0).all()


def test_gradient_is_that_of_the_whole_matrix():
    torch.manual_seed(0)
    router = TopkRouting(6, topk=3, qk_scale=0.7, param_routing=True, diff_routing=True)
    query, key = torch.randn(2, 9, 6, requires_grad=True), torch.randn(2, 9, 6, requires_grad=True)
    weight, index = router(query, key)
    best = ((router.emb(query) * 0.7) @ router.emb(key).mT).topk(3, dim=-1)
    assert torch.equal(index, best.indices)
    torch.testing.assert_close(weight, best.values.softmax(-1))
    wanted = [query, key, *router.parameters()]
    factors = torch.linspace(0, 1, 3)
    got = torch.autograd.grad((weight * factors).sum(), wanted)
    for one, other in zip(got, torch.autograd.grad((best.values.softmax(-1) * factors).sum(), wanted), strict=True):
        torch.testing.assert_close(one, other)


def test_without_diff_routing_weights_are_constants():
    router = TopkRouting(6, topk=3, qk_scale=0.7, param_routing=False, diff_routing=False)
    weight, _ = router(torch.randn(1, 5, 6, requires_grad=True), torch.randn(1, 5, 6))
    assert not weight.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_left_for_the_affinities(dtype):
    """Means of 300 overflow float16, and two close affinities are one in bfloat16."""
    torch.manual_seed(0)
    query, key = (torch.randn(1, 50, 48) * 300 for _ in range(2))
    query, key = query.to(dtype), key.to(dtype)
    router = TopkRouting(48, topk=4, qk_scale=1.0, param_routing=False, diff_routing=False)
    with torch.autocast("cpu", torch.bfloat16):
        weight, index = router(query, key)
    assert torch.isfinite(weight).all()
    assert torch.equal(index, (query.double() @ key.double().mT).topk(4, dim=-1).indices)


@given(height=st.integers(1, 12), width=st.integers(1, 12), rows=st.integers(1, 5), cols=st.integers(1, 5))
def test_there_and_back(height, width, rows, cols):
    image = torch.rand(2, height, width, 3)
    regions, mask = to_regions(image, rows, cols)
    assert torch.equal(from_regions(regions, height, width, rows, cols), image)
    if mask is None:
        assert height % rows == 0
        assert width % cols == 0
    else:
        assert mask.any(1).all()
        assert mask.sum() == height * width
        assert (regions[:, ~mask] == 0).all()


@pytest.mark.parametrize("region", [0, 1, 4])
def test_row_major(region):
    image = torch.arange(6 * 9).reshape(1, 6, 9, 1).float()
    regions, _ = to_regions(image, 2, 3)
    top, left = 2 * (region // 3), 3 * (region % 3)
    assert torch.equal(regions[0, region, :, 0], image[0, top : top + 2, left : left + 3, 0].flatten())
