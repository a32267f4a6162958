"""Backends of routed attention against the plain one, forward and backward; the fastest is measured and remembered."""

import functools
import time

import pytest
import torch
import torch.nn.functional as F

from hsidenoise.models.attention import backends as routed
from hsidenoise.models.attention import kernels
from hsidenoise.models.attention.backends import fastest, routed_attention

ON_CPU = ("gathered", "matmul", "sdpa")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def tensors(device="cpu", dtype=torch.float32, batch=2, regions=7, queries=16, keys=12, qk=8, dim=24, topk=3, size=1.0):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(batch, regions, queries, qk, generator=generator) * size
    k = torch.randn(batch, regions, keys, qk, generator=generator) * size
    v = torch.randn(batch, regions, keys, dim, generator=generator)
    index = torch.stack([torch.randperm(regions, generator=generator)[:topk] for _ in range(batch * regions)])
    weight = torch.rand(batch, regions, topk, generator=generator)
    mask = torch.rand(regions, keys, generator=generator) < 0.7
    mask[:, 0] = True
    q, k, v, weight = (x.to(device, dtype) for x in (q, k, v, weight))
    return q, k, v, index.reshape(batch, regions, topk).to(device), weight, mask.to(device)


def run(q, k, v, index, weight, mask, *, backend, wanted=("q", "k", "v"), **options):
    """Output and gradients of a sum with fixed factors."""
    q, k, v = (x.detach().clone().requires_grad_() for x in (q, k, v))
    weight = None if weight is None else weight.detach().clone().requires_grad_()
    out = routed_attention(q, k, v, index, weight=weight, mask=mask, backend=backend, **options)
    factors = torch.linspace(-1, 1, out.numel(), device=out.device).reshape(out.shape)
    inputs = [q, k, v] if weight is None else [q, k, v, weight]
    return out, *torch.autograd.grad((out.float() * factors).sum(), inputs)


def close(got, expected, tolerance):
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.isfinite(one).all()
        largest = other.float().abs().max().item()
        torch.testing.assert_close(one.float(), other.float(), rtol=0, atol=tolerance * max(largest, 1e-3))


def test_the_reference_is_what_it_says():
    """One region, one head at a time, by hand."""
    q, k, v, index, weight, mask = tensors()
    out = routed_attention(q, k, v, index, heads=2, scale=0.3, weight=weight, mask=mask, backend="reference")
    for image in range(2):
        for region in range(7):
            chosen = index[image, region]
            keys, real = k[image, chosen].reshape(-1, 8), mask[chosen].reshape(-1)
            values = (v[image, chosen] * weight[image, region][:, None, None]).reshape(-1, 24)
            for head in range(2):
                narrow, wide = slice(4 * head, 4 * head + 4), slice(12 * head, 12 * head + 12)
                affinity = q[image, region][:, narrow] @ keys[real][:, narrow].T * 0.3
                expected = torch.softmax(affinity, -1) @ values[real][:, wide]
                torch.testing.assert_close(out[image, region][:, wide], expected)


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("gate", [None, "values", "both"])
@pytest.mark.parametrize("keep", [0, 2**23])
def test_a_backend_equals_the_reference(monkeypatch, backend, heads, masked, gate, keep):
    monkeypatch.setattr(kernels, "_MOST_KEPT", keep)
    q, k, v, index, weight, mask = tensors()
    given = (q, k, v, index, weight if gate else None, mask if masked else None)
    options = {"heads": heads, "scale": 0.4, "weight_keys": gate == "both"}
    close(run(*given, backend=backend, **options), run(*given, backend="reference", **options), 1e-5)


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("keep", [0, 2**23])
def test_half_precision_stays_within_it(monkeypatch, backend, dtype, keep):
    monkeypatch.setattr(kernels, "_MOST_KEPT", keep)
    given = tensors(dtype=dtype, qk=16, dim=16)
    exact = run(*(x.float() if x.is_floating_point() else x for x in given), backend="reference", heads=2, scale=0.3)
    got = run(*given, backend=backend, heads=2, scale=0.3)
    close([x.float() for x in got], exact, TOLERANCE[dtype])


@pytest.mark.parametrize("backend", [*ON_CPU, "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_large_activations_give_no_nan(backend, dtype):
    """Queries and keys of 300 (BiFormer#47): their products overflow float16, which ends at 65,504."""
    given = tensors(dtype=dtype, qk=48, dim=48, size=300.0)
    for result in run(*given, backend=backend, heads=1, scale=48**-0.5):
        assert torch.isfinite(result).all()
    q, k, v, index, _, _ = given
    out = routed_attention(q, k, v, index, heads=1, scale=48**-0.5, backend=backend)
    exact = routed_attention(q.double(), k.double(), v.double(), index, heads=1, scale=48**-0.5, backend="reference")
    if dtype is not torch.bfloat16:  # whose affinities of 1e5 are good to some hundreds
        assert (out.double() - exact).abs().max() < 1e-3 * exact.abs().max()


@pytest.mark.parametrize("backend", ["matmul", "sdpa"])
@pytest.mark.parametrize("budget", [1, 4000])
def test_pieces_give_what_the_whole_gives(monkeypatch, backend, budget):
    given = tensors(queries=150)
    whole = run(*given, backend=backend, heads=2, scale=0.4)
    monkeypatch.setattr(kernels, "_CPU_BUDGET", budget)
    monkeypatch.setattr(kernels, "_MOST_KEPT", 0)  # 1: a region at a time, 64 of its queries at a time
    close(run(*given, backend=backend, heads=2, scale=0.4), whole, 1e-5)


@pytest.mark.parametrize("kernel", ["matmul", "sdpa"])
@pytest.mark.parametrize("weight_keys", [False, True])
def test_gradients_by_differences(kernel, weight_keys):
    q, k, v, index, weight, mask = tensors(dtype=torch.float64, batch=1, regions=4, queries=3, keys=2, qk=2, dim=2)
    q, k, v, weight = (x.requires_grad_() for x in (q, k, v, weight))
    attend = functools.partial(kernels.gathered_attention, mask=mask, scale=0.7, weight_keys=weight_keys, kernel=kernel)
    assert torch.autograd.gradcheck(lambda q, k, v, w: attend(q, k, v, index, w), (q, k, v, weight))


def test_the_operators_keep_their_word():
    """Shapes, types, aliasing and gradients as torch.compile takes them for granted."""
    q, k, v, index, weight, mask = tensors(regions=5)
    q, k, v, weight = (x.requires_grad_() for x in (q, k, v, weight))
    for gate, real in ((weight, mask), (None, None)):
        torch.library.opcheck(kernels._operator, (q, k, v, index, gate, real, 0.3, True, "matmul"))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("keys", [16, 12])
def test_flex_equals_the_reference(masked, keys):
    q, k, v, index, _, mask = tensors(keys=keys)
    options = {"heads": 2, "scale": 0.4, "mask": mask if masked else None}
    got = routed_attention(q, k, v, index, backend="flex", **options)
    torch.testing.assert_close(got, routed_attention(q, k, v, index, backend="reference", **options))


def test_flex_says_what_it_cannot_do():
    q, k, v, index, weight, _ = tensors()
    with pytest.raises(ValueError, match="'flex' cannot do this: routing weights"):
        routed_attention(q, k, v, index, heads=1, scale=1.0, weight=weight, backend="flex")
    with pytest.raises(ValueError, match="no gradient on a CPU"):
        routed_attention(q.requires_grad_(), k, v, index, heads=1, scale=1.0, backend="flex")


@pytest.mark.parametrize(("wrong", "message"), [({"backend": "cuda"}, "backend 'cuda'"), ({"heads": 3}, "heads=3")])
def test_a_wrong_argument_is_named(wrong, message):
    q, k, v, index, _, _ = tensors()
    with pytest.raises(ValueError, match=message):
        routed_attention(q, k, v, index, **({"heads": 2, "scale": 1.0} | wrong))


def test_autocast_around_float32_changes_nothing():
    q, k, v, index, _, _ = tensors()
    plain = routed_attention(q, k, v, index, heads=2, scale=0.4)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(routed_attention(q, k, v, index, heads=2, scale=0.4), plain)


@pytest.mark.parametrize("backend", ON_CPU)
def test_arguments_are_left_alone(backend):
    given = tensors(dtype=torch.float32)
    before = [x.clone() for x in given]
    run(*given, backend=backend, heads=2, scale=0.4, weight_keys=True)
    for one, other in zip(given, before, strict=True):
        assert torch.equal(one, other)


def test_regions_chosen_by_many_keep_small_gradients_in_half_precision():
    """All 2,048 regions choose the same two: summed up in bfloat16, their gradients would stop growing at 256 terms."""
    regions = 2048
    q, k, v, _, _, _ = tensors(dtype=torch.bfloat16, batch=1, regions=regions, queries=2, keys=2)
    index = torch.tensor([0, 1]).expand(1, regions, 2).contiguous()
    v.requires_grad_()
    out = routed_attention(q, k, v, index, heads=1, scale=0.3)
    (gradient,) = torch.autograd.grad(out.float().sum(), [v])
    assert gradient[0, :2, :, 0].float().sum().item() == pytest.approx(regions * 2, rel=0.01)


def test_a_reference_softmax_is_torchs_own():
    """All regions chosen, one region: scaled-dot-product attention."""
    q, k, v, _, _, _ = tensors(regions=1, topk=1)
    out = routed_attention(q, k, v, torch.zeros(2, 1, 1, dtype=torch.long), heads=1, scale=0.4, backend="reference")
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v, scale=0.4))


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["auto", *ON_CPU, "flex"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masked", [False, True])
def test_on_a_gpu(monkeypatch, backend, dtype, masked):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    q, k, v, index, _, mask = tensors("cuda", dtype, queries=64, keys=64, qk=32, dim=32)
    given = (q, k, v, index, None, mask if masked else None)
    exact = run(
        *(x.float() if x is not None and x.is_floating_point() else x for x in given),
        backend="reference",
        heads=2,
        scale=0.2,
    )
    tolerance = (
        2e-3 if backend in ("auto", "flex") and dtype is torch.float32 else TOLERANCE[dtype]
    )  # flex may use TF32
    close([x.float() for x in run(*given, backend=backend, heads=2, scale=0.2)], exact, tolerance)


def test_backends_are_named_once():
    assert set(kernels.KERNELS) < set(routed.BACKENDS)


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(routed, "_winners", {})


def runner(seconds, calls):
    def run(name, x):
        calls.append((name, x.requires_grad))
        time.sleep(seconds[name])
        return x * 2.0

    return run


def test_the_fastest_wins_and_is_remembered():
    calls = []
    run = runner({"slow": 0.02, "fast": 0.0}, calls)
    x = torch.ones(5, 7)
    assert fastest(["slow", "fast"], run, [x]) == "fast"
    measured = len(calls)
    assert fastest(["slow", "fast"], run, [torch.zeros(6, 7)]) == "fast"  # as large but for a factor below two
    assert len(calls) == measured
    for other in (torch.ones(50, 7), torch.ones(5, 8), x.double()):
        fastest(["slow", "fast"], run, [other])
        assert len(calls) > measured
        measured = len(calls)
    fastest(["slow", "fast"], run, [x], kind="another")
    assert len(calls) > measured


def test_gradients_are_measured_where_they_are_wanted():
    calls = []
    run = runner({"one": 0.0, "two": 0.0}, calls)
    x = torch.ones(5, 7, requires_grad=True)
    fastest(["one", "two"], run, [x])
    assert all(wanted for _, wanted in calls)
    assert x.grad is None
    calls.clear()
    with torch.no_grad():
        fastest(["one", "two"], run, [x])
    assert calls
    assert not any(wanted for _, wanted in calls)


def test_a_failing_candidate_is_left_out_with_one_warning():
    def run(name, x):
        if name == "broken":
            raise RuntimeError("no such kernel\nand much more")
        return x

    x = torch.ones(3)
    with pytest.warns(RuntimeWarning, match="'broken' fails here and is left out: no such kernel$") as caught:
        assert fastest(["sound", "broken"], run, [x]) == "sound"
    assert len(caught) == 1
    assert fastest(["sound", "broken"], run, [x]) == "sound"  # remembered: filterwarnings=error would raise
    with pytest.raises(RuntimeError, match="no such kernel"):
        fastest(["broken", "sound"], run, [x])


def test_no_candidate_is_an_error():
    with pytest.raises(ValueError, match="no candidate"):
        fastest([], lambda name: torch.zeros(1), [])
