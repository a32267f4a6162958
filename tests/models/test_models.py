"""Networks by name."""

import contextlib
import json

import pytest
import torch
from torch import nn

from hsidenoise.models.hcanet_bra import HCANetBRA
from hsidenoise.models.registry import MODELS, HCANet, HCANetBRA, create_model

SMALL = {
    "hcanet": {"bands": 6, "dim": 8, "num_blocks": (1, 1, 1), "heads": (1, 2, 4)},
    "hcanet-bra": {"bands": 6, "dim": 8, "num_blocks": (1, 1, 1), "heads": (1, 2, 4)},
    "hcanet-bra": {"planes": 3, "dim": 8, "num_blocks": (1, 1, 1), "heads": (1, 2, 4)},
}


def in_training(network, noisy):
    """As a training step runs it: what is not learnt has no gradient."""
    if isinstance(network, HCANetBRA):
        return network.refine(*network.estimate(noisy))
    return network(noisy)


def test_the_table_names_all_networks():
    assert dict(MODELS) == {"hcanet": HCANet, "hcanet-bra": HCANetBRA, "hcanet-bra": HCANetBRA}


@pytest.mark.parametrize("name", MODELS)
def test_a_network_keeps_the_promises_that_the_others_rely_on(name):
    torch.manual_seed(0)
    net = create_model(name, **SMALL[name])
    assert type(net) is MODELS[name]
    assert net.bands == SMALL[name].get("bands")
    noisy = torch.rand(2, 6, 21, 30)
    before = noisy.clone()
    with torch.no_grad():
        denoised = net(noisy)
        assert denoised.shape == noisy.shape
        assert denoised.isfinite().all()
        assert torch.equal(noisy, before)
        again = create_model(name, **json.loads(json.dumps(net.config)))
        again.load_state_dict(net.state_dict(), strict=True)
        assert torch.equal(again(noisy), denoised)


@pytest.mark.parametrize("name", MODELS)
def test_nothing_inside_is_made_on_another_device(name, monkeypatch):
    # What a GPU would refuse, a device without values refuses too; what it cannot do is answered for it here.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    for question in ("all", "any"):
        monkeypatch.setattr(torch.Tensor, question, lambda _: True)
    network = create_model(name, **SMALL[name]).to("meta")
    for size in ((16, 16), (69, 90)):  # one window; several, and padding in the attention
        noisy = torch.empty(2, 6, *size, device="meta")
        if isinstance(network, HCANetBRA):  # what is not learnt decides by values
            shapes = ((2, 12, *size), (2, 2, *size), (2, 3), (2, 6, 3))
            denoised = network.refine(noisy, *(torch.empty(shape, device="meta") for shape in shapes))
        else:
            denoised = network(noisy)
        denoised.sum().backward()
        assert denoised.is_meta
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
def test_a_gpu_finds_the_same_and_trains_in_bfloat16(name):
    torch.manual_seed(0)
    network = create_model(name, **SMALL[name])
    noisy = torch.rand(2, 6, 69, 90)
    expected = in_training(network, noisy)
    network, noisy = network.cuda().to(memory_format=torch.channels_last), noisy.cuda()
    with torch.backends.cudnn.flags(allow_tf32=False):
        torch.testing.assert_close(in_training(network, noisy).cpu(), expected, rtol=1e-3, atol=1e-3)
    with torch.autocast("cuda", torch.bfloat16):
        denoised = in_training(network, noisy)
    denoised.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_the_seed_decides_the_weights(name):
    def weights(seed):
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(create_model(name, **SMALL[name]).parameters())

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


@pytest.mark.parametrize("name", ["", "HCANet", "hcanet_bra", "unet"])
def test_an_unknown_name_is_refused_with_the_names_that_are_known(name):
    with pytest.raises(ValueError, match=f"unknown model '{name}'; known: hcanet, hcanet-bra"):
        create_model(name)


@pytest.mark.parametrize("name", MODELS)
def test_an_unknown_argument_is_refused(name):
    with pytest.raises(ValueError, match=f"model '{name}': .*'depth'"):
        create_model(name, **SMALL[name], depth=3)
