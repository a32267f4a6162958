import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from hsidenoise.models import create_model
from hsidenoise.models.compiled import CompiledStep

ROOT = Path(__file__).parents[2]


def loss(denoised):
    return denoised.square().mean()


# In a process of its own: the checks of annotations that pytest installs are not to be compiled.
COMPILED = """
import warnings
import torch
from hsidenoise import create_model
from hsidenoise.models.compiled import CompiledStep
torch.set_num_threads(1)
torch.manual_seed(0)
warnings.simplefilter("error", RuntimeWarning)
noisy = torch.rand(2, 5, 12, 16)
config = {"dim": 8, "num_blocks": (1, 0, 0), "num_refinement_blocks": 0}
for network in (create_model("hcanet-bra", planes=3, **config), create_model("hcanet", bands=5, **config)):
    estimate = network.estimate(noisy) if hasattr(network, "estimate") else None
    expected = network(noisy) if estimate is None else network.refine(*estimate)
    expected.square().mean().backward()
    gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    step = CompiledStep(network, "on")
    for given in (None, estimate):
        denoised = step(noisy, given)
        torch.testing.assert_close(denoised, expected, rtol=1e-3, atol=1e-5)
    denoised.square().mean().backward()
    for name, p in network.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, gradients.pop(name), rtol=1e-2, atol=1e-5)
    assert step.compiled and not gradients
    assert estimate is None or step(torch.rand(1, 4, 12, 16)).shape == (1, 4, 12, 16)  # fewer bands
measured = CompiledStep(network, "auto", passes=2)
measured.measure(lambda denoised: denoised.square().mean(), noisy)
assert measured.seconds.keys() == {"plain", "compiled"}
assert measured.compiled == (measured.seconds["compiled"] < measured.seconds["plain"])
"""


@pytest.mark.slow
def test_compiled_gives_what_the_network_gives():
    done = subprocess.run([sys.executable, "-c", COMPILED], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_the_estimate_has_the_settings_of_the_network(backend, monkeypatch):
    network = create_model("hcanet-bra", planes=2, dim=8, num_blocks=(1, 0, 0), num_refinement_blocks=0)
    monkeypatch.setattr(torch, "compile", lambda part, backend: part)  # what is compiled sees the same estimate
    noisy = torch.rand(1, 5, 70, 66)
    step = CompiledStep(network, "off" if backend is None else "on")
    assert torch.equal(step(noisy), network.refine(*network.estimate(noisy)))


def test_an_estimate_that_comes_with_the_batch_is_used():
    network = create_model("hcanet-bra", planes=3, dim=8, num_blocks=(1, 0, 0), num_refinement_blocks=0)
    noisy = torch.rand(2, 5, 12, 16)
    estimate = network.estimate(noisy)
    step = CompiledStep(network)
    assert torch.equal(step(noisy, estimate), step(noisy))
    shifted = estimate._replace(denoised=estimate.denoised + 1)
    assert (step(noisy, shifted) - step(noisy)).mean() > 0.5


def test_a_network_without_a_start_ignores_the_estimate():
    layer, noisy = nn.Conv2d(5, 5, 1), torch.rand(2, 5, 12, 16)
    assert torch.equal(CompiledStep(layer)(noisy, (noisy,)), layer(noisy))


def broken_backend(graph, inputs):
    raise RuntimeError("no compiler here\nand much more")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_failing_compiler_is_told_once_and_the_network_trains_as_it_is():
    layer, noisy = nn.Conv2d(3, 3, 1), torch.rand(2, 3, 6, 7)
    step = CompiledStep(layer, "on", backend=broken_backend)
    with pytest.warns(RuntimeWarning, match="compiling Conv2d failed, it trains as it is") as told:
        denoised = step(noisy)
    assert "\n" not in str(told[0].message)
    assert torch.equal(denoised, layer(noisy))
    assert torch.equal(step(noisy), layer(noisy))
    assert not step.compiled


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_auto_falls_back_where_compiling_fails():
    layer = nn.Conv2d(3, 3, 1)
    step = CompiledStep(layer, "auto", backend=broken_backend, passes=1)
    with pytest.warns(RuntimeWarning, match="failed"):
        step.measure(loss, torch.rand(2, 3, 6, 7))
    assert not step.pending
    assert not step.compiled
    assert step.seconds.keys() == {"plain"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("faster", [True, False])
def test_auto_keeps_the_faster_and_leaves_no_trace(monkeypatch, faster):
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Dropout(0.5))
    step = CompiledStep(network, "auto", backend="eager", passes=2)
    times = iter([2.0, 1.0 if faster else 3.0])
    timed = CompiledStep._time
    monkeypatch.setattr(CompiledStep, "_time", lambda *args: timed(*args) * 0 + next(times))
    before = copy.deepcopy(network.state_dict())
    random = torch.random.get_rng_state()
    assert step.pending
    step.measure(loss, torch.rand(2, 3, 6, 7, generator=torch.Generator().manual_seed(0)))
    assert step.compiled == faster
    assert not step.pending
    assert step.seconds == {"plain": 2.0, "compiled": 1.0 if faster else 3.0}
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())


def test_a_copy_runs_the_copied_network():
    step = CompiledStep(nn.Conv2d(3, 3, 1), "off")
    twin = copy.deepcopy(step)
    nn.init.zeros_(twin.network.weight)
    assert step.network.weight.abs().sum() > 0
