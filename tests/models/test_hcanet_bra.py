"""HCANetBRA: any number of bands, any unit, near the filters before training, and all of it learns."""

import numpy as np
import pytest
import torch

from hsidenoise.inference.denoise import denoise
from hsidenoise.models.hcanet_bra import HCANetBRA
from hsidenoise.models.weights import load_model, save_weights
from hsidenoise.noise.cases import corrupt
from hsidenoise.signal.planes.estimate import denoise_by_planes
from hsidenoise.training.losses import DenoisingLoss

SMALL = {"planes": 5, "dim": 8, "num_blocks": (1, 1, 1), "heads": (1, 2, 4), "region_size": 4}


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return HCANetBRA(**SMALL).eval()


def noisy_cube(bands, height, width, sigma=0.1, seed=0):
    """Smooth mixtures of three spectra, in [0, 1], and the same with noise."""
    generator = torch.Generator().manual_seed(seed)
    shares = torch.rand(1, 3, max(2, height // 6), max(2, width // 6), generator=generator)
    shares = torch.nn.functional.interpolate(shares, size=(height, width), mode="bilinear")[0]
    clean = torch.einsum("br,rhw->bhw", torch.rand(bands, 3, generator=generator), shares) / 3
    return clean, clean + sigma * torch.randn(clean.shape, generator=generator)


@pytest.mark.parametrize("shape", [(1, 20, 23), (3, 2, 2), (4, 3, 40), (60, 21, 34)])
def test_one_network_takes_any_number_of_bands(network, shape):
    _, noisy = noisy_cube(*shape)
    with torch.no_grad():
        denoised = network(noisy[None])
    assert denoised.shape == (1, *shape)
    assert denoised.isfinite().all()


def test_each_cube_of_a_batch_is_on_its_own(network):
    cubes = torch.stack([noisy_cube(6, 20, 23, seed=seed)[1] for seed in (1, 2)])
    with torch.no_grad():
        torch.testing.assert_close(network(cubes), torch.cat([network(cube[None]) for cube in cubes]))


@pytest.mark.parametrize(("gain", "offset"), [(1e-6, 0.0), (4000.0, -300.0), (1e7, 2e7)])
def test_the_unit_of_the_cube_does_not_matter(network, gain, offset):
    _, noisy = noisy_cube(7, 26, 31)
    with torch.no_grad():
        expected, found = network(noisy[None]), network(gain * noisy[None] + offset)
    assert ((found - offset) / gain - expected).abs().max() < 1e-4


def test_untrained_it_is_near_the_filters(network):
    clean, noisy = noisy_cube(8, 40, 50)
    filters = denoise_by_planes(noisy).denoised
    with torch.no_grad():
        found = network(noisy[None])[0]
    error = [float((each - clean).square().mean()) for each in (noisy, filters, found)]
    assert error[2] < 1.2 * error[1] < 0.2 * error[0]


def test_what_it_adds_is_in_units_of_the_noise(network):
    _, noisy = noisy_cube(8, 40, 50)
    with torch.no_grad():
        estimate = network.estimate(noisy[None])
        before = network.refine(*estimate)
        network.output.bias.view(4, -1)[3, 0] = 5.0  # five noise levels onto the first plane, everywhere
        after = network.refine(*estimate)
    moved = (after - before)[0]
    assert (moved - moved.mean((1, 2), keepdim=True)).abs().max() < 1e-4  # everywhere alike
    assert float(torch.linalg.vector_norm(moved.mean((1, 2)))) == pytest.approx(5 * 0.1, rel=0.1)


def test_constant_bands_come_back_as_they_are(network):
    _, noisy = noisy_cube(6, 24, 27)
    noisy[[0, 4]] = 0.25
    with torch.no_grad():
        denoised, estimate = network(noisy[None])[0], network.estimate(noisy[None])
    assert torch.equal(denoised[[0, 4]], noisy[[0, 4]])
    assert not estimate.basis[0, [0, 4]].any()
    assert torch.equal(estimate.denoised[0, [0, 4]], noisy[[0, 4]])


def test_the_estimate_has_the_planes_of_the_filters(network):
    """In units of the noise, strongest first; through the basis they are the filters' scene again."""
    _, noisy = noisy_cube(6, 40, 50)
    noisy = 100 + 30 * noisy
    estimate = network.estimate(noisy[None])
    found, _, _, seen = estimate.planes[0].chunk(4)
    kept = int((found.abs().amax((1, 2)) > 0).sum())
    mean = estimate.denoised[0].mean((1, 2), keepdim=True)
    scene = mean + (estimate.basis[0] @ found.flatten(1)).reshape(6, 40, 50)
    assert (scene - estimate.denoised[0]).abs().max() < 0.3  # 3 of sigma 3: five of six planes hold three spectra
    assert 3 <= kept < 5
    torch.testing.assert_close(seen[:3].std((1, 2)), torch.ones(3), atol=0.15, rtol=0)  # noise of variance 1
    assert (estimate.spread[0].diff() <= 0).all()
    assert (estimate.spread[0, kept:] == 1).all()
    assert not estimate.doubts.any()


def test_what_is_lost_or_outlying_is_said(network):
    _, noisy = noisy_cube(6, 40, 50)
    noisy[2, :, 7] = 0.0
    doubts = network.estimate(noisy[None]).doubts[0]
    assert torch.equal(doubts[1, :, 7], torch.full((40,), 1 / 6))
    assert not doubts[1, :, :7].any()


def test_gradients_reach_every_weight(network):
    clean, noisy = noisy_cube(9, 24, 28)
    network.train()
    loss = DenoisingLoss(gradient_weight=0, data_term="psnr")
    loss(network.refine(*network.estimate(noisy[None])), clean[None]).backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in network.parameters())


def test_weights_are_saved_and_used_by_name_of_a_file(network, tmp_path):
    save_weights(tmp_path / "a.safetensors", network, name="hcanet-bra", metadata={"tile": "32"})
    again = load_model(tmp_path / "a.safetensors")
    assert again.config == network.config
    _, noisy = noisy_cube(40, 41, 50)
    denoised = denoise(1e4 * noisy.numpy(), tmp_path / "a.safetensors")
    assert np.isfinite(denoised).all()
    assert denoised.std() < 1e4 * noisy.numpy().std()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"attention": ["bra", "bra"]}, "three levels"),
        ({"attention": ["bra", "bra", "all"]}, "attention 'all' is not one of"),
        ({"dim": 0}, "dim=0"),
    ],
)
def test_wrong_configurations(config, message):
    with pytest.raises(ValueError, match=message):
        HCANetBRA(**{**SMALL, **config})


@pytest.mark.parametrize("case", ["gaussian-30", "deadline"])
def test_half_precision_is_for_the_network_alone(network, case):
    """The filters are what they are without it; what is learnt runs in it, in training and in use."""
    clean, _ = noisy_cube(8, 33, 41)
    noisy = torch.from_numpy(corrupt(clean.numpy(), case, seed=0).noisy)[None]
    seen = []
    network.stem.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.no_grad():
        exact = network(noisy)
        with torch.autocast("cpu", torch.bfloat16):
            half, estimate = network(noisy), network.estimate(noisy)
            refined = network.refine(*estimate)
        as_exact = network.refine(*estimate)
    assert seen == [torch.float32, torch.bfloat16, torch.bfloat16, torch.float32]
    for made, own in zip(estimate, network.estimate(noisy), strict=True):
        assert torch.equal(made, own)
    assert half.dtype == refined.dtype == torch.float32
    assert 0 < (half - exact).abs().max() < 0.02
    assert 0 < (refined - as_exact).abs().max() < 0.02


def test_dots_in_an_almost_empty_band_leave_the_other_bands_alone():
    clean, noisy = noisy_cube(33, 48, 56, 0.01)
    dots = torch.rand(48, 56, generator=torch.Generator().manual_seed(1)) < 0.02
    noisy[7] = dots.float()
    others = [band for band in range(33) if band != 7]
    with pytest.warns(RuntimeWarning, match="noise alone, or nearly: band 7"):
        with_dots = denoise(noisy.numpy())[others]
    without = denoise(noisy[others].numpy())
    assert np.std(with_dots - clean[others].numpy()) < 1.1 * np.std(without - clean[others].numpy())
