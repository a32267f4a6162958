"""HCANetBRA: its spectral convolution against conv3d, what it promises of sizes, bands and low noise, and training."""

import json

import jaxtyping
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hsidenoise.models.fusion import LocalBranch, SpectralConv
from hsidenoise.models.hcanet_bra import SKIPS, SWITCHES, HCANetBRA, mirrored_bands
from hsidenoise.signal.spectral_wiener import spectral_wiener

SMALL = {"dim": 8, "num_blocks": (1, 1, 1), "heads": (1, 2, 4)}


def network(skip="wiener", bands=8, seed=0, **config):
    torch.manual_seed(seed)
    return HCANetBRA(bands=bands, skip=skip, **{**SMALL, **config})


def mixed_spectra(rank, bands, height, width, seed=0):
    """Clean cube (1, bands, height, width) in [0, 1] of smooth mixtures of ``rank`` spectra."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, rank, max(2, height // 6), max(2, width // 6), generator=generator)
    shares = F.interpolate(coarse, size=(height, width), mode="bilinear")
    cube = torch.einsum("br,nrhw->nbhw", torch.rand(bands, rank, generator=generator), shares)
    return cube / cube.max()


def gaussian(cube, sigma, seed=1):
    return cube + sigma * torch.randn(cube.shape, generator=torch.Generator().manual_seed(seed))


def error(estimate, clean):
    return (estimate - clean).square().mean().item()


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


def test_what_is_learnt_is_added_to_the_skip():
    noisy = gaussian(mixed_spectra(3, 8, 36, 44), 0.1)
    estimate = spectral_wiener(noisy)
    for skip, expected in (("identity", noisy), ("wiener", (estimate.plain + estimate.robust) / 2)):
        net = network(skip)
        with torch.no_grad():
            net.output.weight.zero_()
            torch.testing.assert_close(net(noisy), expected)


@pytest.mark.parametrize("skip", SKIPS)
def test_gradient_reaches_every_weight(skip):
    net = network(skip)
    noisy = gaussian(mixed_spectra(3, 8, 36, 44), 0.1).repeat(2, 1, 1, 1)
    net(noisy).square().sum().backward()
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
@pytest.mark.parametrize("skip", SKIPS)
def test_any_height_and_width(skip, size):
    noisy = gaussian(mixed_spectra(3, 8, *size), 0.1)
    with torch.no_grad():
        denoised = network(skip)(noisy)
    assert denoised.shape == noisy.shape
    assert denoised.dtype == torch.float32
    assert denoised.isfinite().all()


@pytest.mark.parametrize("given", [1, 2, 3, 17, 30, 31])
def test_mirrored_bands_are_numpys_reflection(given):
    expected = np.pad(np.arange(given), (0, 31 - given), mode="reflect" if given > 1 else "edge")
    assert mirrored_bands(given, 31).tolist() == expected.tolist()


@pytest.mark.parametrize("given", [1, 2, 17])
@pytest.mark.parametrize("skip", SKIPS)
def test_fewer_bands_go_through(skip, given):
    noisy = gaussian(mixed_spectra(2, given, 20, 21), 0.1)
    with torch.no_grad():
        denoised = network(skip, bands=31)(noisy)
    assert denoised.shape == noisy.shape
    assert denoised.isfinite().all()


def test_fewer_bands_are_continued_by_mirroring():
    net = network("identity", bands=31)
    noisy = gaussian(mixed_spectra(2, 17, 20, 21), 0.1)
    with torch.no_grad():
        torch.testing.assert_close(net(noisy), net(noisy[:, mirrored_bands(17, 31)])[:, :17], rtol=0, atol=1e-6)


def test_a_mirrored_band_is_no_witness_for_the_noise_of_its_twin():
    clean = mixed_spectra(2, 17, 40, 44)
    noisy = gaussian(clean, 0.1)
    net = network(bands=31)
    with torch.no_grad():
        assert error(net(noisy), clean) < 0.3 * error(noisy, clean)


@pytest.mark.parametrize("skip", SKIPS)
def test_more_bands_are_refused(skip):
    with pytest.raises(ValueError, match="takes 8 bands at a time, got 9"):
        network(skip)(torch.rand(1, 9, 8, 12))


@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize("changes", [{}, {"region_size": 4, "topk": 2, "expansion": 2.66, "num_refinement_blocks": 2}])
def test_the_configuration_makes_the_same_network_again(skip, changes):
    net = network(skip, **changes)
    again = HCANetBRA(**json.loads(json.dumps(net.config)))
    again.load_state_dict(net.state_dict(), strict=True)
    assert again.config == net.config
    noisy = gaussian(mixed_spectra(3, 8, 20, 21), 0.1)
    with torch.no_grad():
        assert torch.equal(again(noisy), net(noisy))


@pytest.mark.parametrize("skip", SKIPS)
def test_the_same_seed_and_input_give_the_same_output(skip):
    noisy = gaussian(mixed_spectra(3, 8, 36, 44), 0.1)
    before = noisy.clone()
    with torch.no_grad():
        first, net = network(skip)(noisy), network(skip)
        assert torch.equal(net(noisy), first)
        assert torch.equal(net(noisy), first)
        assert not torch.equal(network(skip, seed=1)(noisy), first)
    assert torch.equal(noisy, before)


@pytest.mark.parametrize("skip", SKIPS)
def test_memory_format_changes_nothing(skip):
    net, noisy = network(skip), gaussian(mixed_spectra(3, 8, 36, 44), 0.1)
    with torch.no_grad():
        expected = net(noisy)
        torch.testing.assert_close(net(noisy.contiguous(memory_format=torch.channels_last)), expected)
        pixels_first = noisy.permute(0, 3, 2, 1).contiguous()
        torch.testing.assert_close(net(pixels_first.permute(0, 3, 2, 1)), expected)
        torch.testing.assert_close(net.to(memory_format=torch.channels_last)(noisy), expected)


@pytest.mark.parametrize("skip", SKIPS)
def test_each_cube_of_a_batch_is_denoised_alone(skip):
    net = network(skip)
    cubes = torch.cat([gaussian(mixed_spectra(3, 8, 36, 44, seed), 0.05 * seed, seed) for seed in range(3)])
    with torch.no_grad():
        together = net(cubes)
        for cube, denoised in zip(cubes, together, strict=True):
            torch.testing.assert_close(net(cube[None])[0], denoised, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("skip", SKIPS)
def test_bfloat16_is_close(skip):
    """Measured: the change that is made differs by 0.2 % (wiener) and 1 % (identity)."""
    net, noisy = network(skip, bands=31, dim=16), gaussian(mixed_spectra(3, 31, 36, 44), 0.1)
    with torch.no_grad():
        expected = net(noisy)
        with torch.autocast("cpu", torch.bfloat16):
            half = net(noisy)
    assert half.dtype == torch.float32
    assert (half - expected).norm() < 0.03 * (expected - noisy).norm()


@pytest.mark.parametrize("seed", range(4))
def test_a_clean_cube_is_hardly_touched_even_by_random_weights(seed):
    """The residual is scaled with the noise level: there is little to add where there is little noise."""
    clean = mixed_spectra(3, 31, 40, 44)
    net = network(bands=31, dim=16, seed=seed)
    with torch.no_grad():
        # weights of any size: the scale is of the residual, not a matter of the small initial output layer
        net.output.weight.mul_(10)
        change = {sigma: (net(noisy) - noisy).abs() for sigma in (0, 0.2) for noisy in [gaussian(clean, sigma)]}
    assert change[0].square().mean().sqrt() < 0.02
    assert change[0.2].mean() > 10 * change[0].mean()


def test_random_weights_already_denoise_by_the_skip():
    clean = mixed_spectra(3, 31, 40, 44)
    for sigma, factor in ((0.2, 0.15), (0.05, 0.4)):
        noisy = gaussian(clean, sigma)
        with torch.no_grad():
            denoised = network(bands=31, dim=16)(noisy)
        assert error(denoised, clean) < factor * error(noisy, clean)


def test_a_nan_spoils_its_own_cube_only():
    net = network()
    cubes = gaussian(mixed_spectra(3, 8, 20, 21), 0.1).repeat(2, 1, 1, 1)
    cubes[0, 3, 4, 5] = torch.nan
    with torch.no_grad():
        denoised = net(cubes)
        assert denoised[0].isnan().any()
        torch.testing.assert_close(denoised[1:], net(cubes[1:]))


@pytest.mark.parametrize("skip", SKIPS)
def test_values_far_outside_the_unit_range_stay_finite(skip):
    clean = mixed_spectra(3, 8, 20, 21)
    net = network(skip)
    for scale, offset in ((1e-12, 0), (0, 0), (0, 5), (1e4, 0), (1e10, 0), (1, -1e4)):
        with torch.no_grad():
            assert net(scale * gaussian(clean, 0.1) + offset).isfinite().all()


def test_double_precision_comes_back_in_single():
    noisy = gaussian(mixed_spectra(3, 8, 20, 21), 0.1)
    net = network()
    with torch.no_grad():
        assert torch.equal(net(noisy.double()), net(noisy))


@pytest.mark.parametrize("skip", SKIPS)
def test_thirty_steps_of_training_lower_the_loss_by_a_tenth(skip):
    net = network(skip)
    clean = mixed_spectra(2, 8, 24, 28)
    noisy = gaussian(clean, 0.15)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    losses = []
    for _ in range(31):
        loss = F.l1_loss(net(noisy), clean)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_the_published_width_is_smaller_than_hcanet():
    """HCANet's released defaults have 4,607,741 weights."""
    count = sum(weight.numel() for weight in HCANetBRA().parameters())
    assert 3_000_000 < count < 4_607_741


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"skip": "none"}, "skip 'none' is not one of wiener, identity"),
        ({"dim": 6}, "must divide channels=6"),
        ({"dim": 0}, "dim=0"),
        ({"bands": 0}, "bands=0"),
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
        HCANetBRA(**{"bands": 8, **SMALL, **wrong})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("attention", SWITCHES["attention"])
@pytest.mark.parametrize("local", SWITCHES["local"])
@pytest.mark.parametrize("feed_forward", SWITCHES["feed_forward"])
def test_every_combination_of_switches_trains_and_leaves_nothing_behind(attention, local, feed_forward):
    net = network(attention=attention, local=local, feed_forward=feed_forward)
    assert {name: net.config[name] for name in SWITCHES} == {
        "attention": attention,
        "local": local,
        "feed_forward": feed_forward,
    }
    kept = {part for name in net.state_dict() for part in name.split(".")}
    assert ("local" in kept) == (local == "spectral")
    assert ("temperature" in kept, "wo" in kept) == (attention == "channel", attention == "bra")
    assert ("dwconv3" in kept) == (feed_forward == "multiscale")
    noisy = gaussian(mixed_spectra(3, 8, 20, 28), 0.1)
    net(noisy).square().mean().backward()
    without = [name for name, weight in net.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert without == []
    again = HCANetBRA(**json.loads(json.dumps(net.config)))
    again.load_state_dict(net.state_dict())
    torch.testing.assert_close(again(noisy), net(noisy))


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


def test_weights_saved_before_there_were_switches_are_the_default():
    config = {name: value for name, value in network().config.items() if name not in SWITCHES}
    assert HCANetBRA(**config).config == network().config


def test_refine_takes_the_estimate_from_its_caller():
    noisy = gaussian(mixed_spectra(3, 8, 21, 30), 0.1)
    net = network()
    estimate = spectral_wiener(noisy)
    with torch.no_grad():
        torch.testing.assert_close(net.refine(*estimate), net(noisy), rtol=0, atol=0)
        other = estimate._replace(robust=estimate.robust + 0.5)
        assert not torch.allclose(net.refine(*other), net(noisy), atol=0.01)
