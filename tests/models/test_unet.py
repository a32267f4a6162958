"""The U of HCANetBRA: its spectral convolution against conv3d, what it promises of sizes and switches, and training."""

from unittest import mock

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hsidenoise.models.fusion import LocalBranch, SpectralConv
from hsidenoise.models.unet import SWITCHES, MixingUNet

USUAL = {
    "inputs": 8,
    "outputs": 6,
    "facts": 3,
    "dim": 8,
    "num_blocks": (1, 1, 1),
    "num_refinement_blocks": 1,
    "heads": (1, 2, 4),
    "region_size": 8,
    "topk": 4,
    "expansion": 2.0,
    "attention": "bra",
    "local": "spectral",
    "feed_forward": "multiscale",
}


def network(seed=0, **config):
    torch.manual_seed(seed)
    return MixingUNet(**{**USUAL, **config})


def images(height=36, width=44, batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 8, height, width, generator=generator), torch.rand(batch, 3, generator=generator)


@pytest.fixture
def unchecked():
    """As for a user: outside pytest nothing checks annotations before the function's own words are heard."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def convolution_3d(module, x):
    """The second implementation: conv3d over (line, height, width) with ``features`` channels."""
    volume = x.unflatten(1, (module.line, module.features)).transpose(1, 2)  # (batch, features, line, height, width)
    kernel = module.weight.unflatten(1, (3, module.features)).transpose(1, 2)  # (out, in, tap, height, width)
    return F.conv3d(volume, kernel, module.bias, padding=1).transpose(1, 2).flatten(1, 2)


@pytest.mark.parametrize(("channels", "features"), [(12, 4), (8, 4), (4, 4), (10, 2), (7, 1)])
def test_spectral_convolution_is_conv3d(channels, features):
    torch.manual_seed(0)
    module = SpectralConv(channels, features).double()
    nn.init.normal_(module.bias)
    x = torch.randn(2, channels, 5, 6, dtype=torch.float64, requires_grad=True)
    seen = torch.randn(2, channels, 5, 6, dtype=torch.float64)
    inputs = [x, module.weight, module.bias]
    torch.testing.assert_close(module(x), convolution_3d(module, x), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(module(x), inputs, seen),
        torch.autograd.grad(convolution_3d(module, x), inputs, seen),
        rtol=0,
        atol=1e-11,
    )


def test_spectral_convolution_in_parts_is_conv3d():
    torch.manual_seed(0)
    module = SpectralConv(96, 4).double()
    x = torch.randn(2, 96, 5, 6, dtype=torch.float64)
    with torch.no_grad(), mock.patch("hsidenoise.models.fusion.F.conv2d", wraps=F.conv2d) as convolution:
        torch.testing.assert_close(module(x), convolution_3d(module, x), rtol=0, atol=1e-12)
    assert convolution.call_args.kwargs["groups"] == 6


def test_spectral_convolution_reaches_only_its_neighbours():
    torch.manual_seed(0)
    module = SpectralConv(20, features=4).double()
    x = torch.randn(1, 20, 9, 11, dtype=torch.float64)
    for position in range(5):
        changed = x.clone()
        changed[0, 4 * position + 2, 4, 6] += 1
        moved = (module(changed) != module(x))[0].unflatten(0, (5, 4)).any(dim=1)  # (line, height, width)
        expected = torch.zeros(5, 9, 11, dtype=torch.bool)
        expected[max(0, position - 1) : position + 2, 3:6, 5:8] = True
        assert torch.equal(moved, expected)


def test_spectral_convolution_refuses_features_that_do_not_divide():
    with pytest.raises(ValueError, match="features=4 must divide channels=6"):
        SpectralConv(6)


def test_local_branch_sees_a_pixel_and_its_neighbours():
    """In the released code one changed pixel alters pixels all over the image."""
    torch.manual_seed(0)
    branch = LocalBranch(8).double()
    x = torch.randn(1, 8, 9, 11, dtype=torch.float64)
    changed = x.clone()
    changed[0, :, 4, 6] += 1
    rows, columns = torch.nonzero((branch(changed) != branch(x)).any(dim=1)[0], as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (3, 5, 5, 7)


def test_local_branch_mixes_shuffles_and_slides():
    torch.manual_seed(0)
    branch = LocalBranch(12)
    x = torch.randn(2, 12, 5, 6)
    mixed = torch.einsum("oi,bihw->bohw", branch.mix.weight[:, :, 0, 0], x) + branch.mix.bias[:, None, None]
    # four groups of three channels become a line of three positions with one channel of each group
    shuffled = mixed[:, [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]]
    torch.testing.assert_close(branch(x), convolution_3d(branch.spectral, shuffled))


def test_gradient_reaches_every_weight():
    net = network()
    net.unet(*images(batch=2)).square().sum().backward()
    for name, weight in net.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        reached = weight.grad != 0
        if name.endswith("attention.qkv.qkv.bias"):
            # a constant added to all keys of a query leaves its softmax, and so the output, as it is
            width = len(weight) // 3
            reached[width : 2 * width] = True
        assert reached.all(), name


@pytest.mark.parametrize("size", [(3, 5), (37, 50), (64, 64), (1, 1), (1, 70), (66, 9)])
def test_any_height_and_width(size):
    with torch.no_grad():
        answer = network().unet(*images(*size))
    assert answer.shape == (1, 6, *size)
    assert answer.dtype == torch.float32
    assert answer.isfinite().all()


def test_without_facts_none_are_taken():
    with torch.no_grad():
        assert network(facts=0).unet(images()[0]).shape == (1, 6, 36, 44)


def test_the_same_seed_and_input_give_the_same_output():
    given = images()
    before = given[0].clone()
    with torch.no_grad():
        first, net = network().unet(*given), network()
        assert torch.equal(net.unet(*given), first)
        assert torch.equal(net.unet(*given), first)
        assert not torch.equal(network(seed=1).unet(*given), first)
    assert torch.equal(given[0], before)


def test_memory_format_changes_nothing():
    net, (cube, facts) = network(), images()
    with torch.no_grad():
        expected = net.unet(cube, facts)
        torch.testing.assert_close(net.unet(cube.contiguous(memory_format=torch.channels_last), facts), expected)
        pixels_first = cube.permute(0, 3, 2, 1).contiguous()
        torch.testing.assert_close(net.unet(pixels_first.permute(0, 3, 2, 1), facts), expected)
        torch.testing.assert_close(net.to(memory_format=torch.channels_last).unet(cube, facts), expected)


def test_each_item_of_a_batch_goes_alone():
    net, (cubes, facts) = network(), images(batch=3)
    with torch.no_grad():
        together = net.unet(cubes, facts)
        for item, answer in enumerate(together):
            alone = net.unet(cubes[item : item + 1], facts[item : item + 1])[0]
            torch.testing.assert_close(alone, answer, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_close():
    net, given = network(dim=16), images()
    with torch.no_grad():
        expected = net.unet(*given)
        with torch.autocast("cpu", torch.bfloat16):
            half = net.unet(*given)
    assert half.dtype == torch.float32
    assert (half - expected).norm() < 0.05 * expected.norm()


def test_thirty_steps_of_training_lower_the_loss_by_a_tenth():
    net, (cube, facts) = network(), images(24, 28)
    wanted = F.avg_pool2d(cube[:, :6], 3, 1, 1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    losses = []
    for _ in range(31):
        loss = F.l1_loss(net.unet(cube, facts), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dim": 6}, "must divide channels=6"),
        ({"dim": 0}, "dim=0"),
        ({"inputs": 0}, "must be at least 1"),
        ({"expansion": 0.0}, "expansion=0"),
        ({"num_refinement_blocks": -1}, "num_refinement_blocks=-1"),
        ({"heads": (3, 3, 3)}, "num_heads=3 must divide"),
        ({"heads": (255, 1, 1)}, "num_heads=255 must divide"),
        ({"heads": (1, 0, 1)}, "three levels"),
        ({"heads": (1, 2)}, "three levels"),
        ({"num_blocks": (1, 1)}, "three levels"),
        ({"num_blocks": (1, -1, 1)}, "three levels"),
        ({"num_blocks": (1, 1, 1, 1)}, "three levels"),
        ({"region_size": 0}, "region_size=0"),
        ({"topk": 0}, "topk=0"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_wrong_argument_is_named(wrong, message):
    with pytest.raises(ValueError, match=message) as raised:
        network(**wrong)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("attention", SWITCHES["attention"])
@pytest.mark.parametrize("local", SWITCHES["local"])
@pytest.mark.parametrize("feed_forward", SWITCHES["feed_forward"])
def test_every_combination_of_switches_trains_and_leaves_nothing_behind(attention, local, feed_forward):
    net = network(attention=attention, local=local, feed_forward=feed_forward)
    kept = {part for name in net.state_dict() for part in name.split(".")}
    assert ("local" in kept) == (local == "spectral")
    assert ("temperature" in kept, "wo" in kept) == (attention == "channel", attention == "bra")
    assert ("dwconv3" in kept) == (feed_forward == "multiscale")
    net.unet(*images(20, 28)).square().mean().backward()
    without = [name for name, weight in net.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert without == []


def test_the_mlp_has_as_many_weights_as_the_feed_forward_that_it_replaces():
    """But for depth-wise kernels and biases: what an ablation compares must be of a size."""
    multiscale, mlp = (
        sum(w.numel() for w in network(dim=32, feed_forward=kind).parameters()) for kind in ("multiscale", "mlp")
    )
    assert 0.9 < mlp / multiscale < 1.0


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.usefixtures("unchecked")
def test_an_unknown_switch_is_named(switch):
    with pytest.raises(ValueError, match=f"{switch} 'conv' is not one of {SWITCHES[switch][0]}, "):
        network(**{switch: "conv"})
