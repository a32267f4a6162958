import math

import jaxtyping
import numpy as np
import pytest
import torch
from scipy import ndimage

from hsidenoise.metrics.functional import sam
from hsidenoise.training.losses import DenoisingLoss, global_gradient, released_global_gradient, spectral_angle


def batch(seed=0, cubes=3, bands=5, height=9, width=12):
    generator = torch.Generator().manual_seed(seed)
    shape = (cubes, bands, height, width)
    return tuple(torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(2))


def inner_sobel(image, axis):
    """scipy's Sobel without the border, of one image."""
    return ndimage.sobel(image, axis=axis)[1:-1, 1:-1]


def rms(image):
    return math.sqrt(np.mean(image**2))


def cube_form_by_scipy(denoised, clean):
    values = []
    for x, y in zip(denoised.numpy(), clean.numpy(), strict=True):
        image, image_clean = x.mean(axis=0), y.mean(axis=0)
        spectral, spectral_clean = x.mean(axis=1), y.mean(axis=1)  # (bands, width)
        values.append(
            126
            * (
                rms(inner_sobel(image, 1) - inner_sobel(image_clean, 1))
                + rms(inner_sobel(image, 0) - inner_sobel(image_clean, 0))
                + rms(inner_sobel(spectral, 0) - inner_sobel(spectral_clean, 0))
            )
        )
    return np.asarray(values)


def released_form_by_scipy(denoised, clean):
    squares = [0.0, 0.0, 0.0]
    for x, y in zip(denoised.numpy(), clean.numpy(), strict=True):
        image = x.mean(axis=0) - y.mean(axis=0)
        spectral = (x.sum(axis=1) - y.sum(axis=1)) / x.shape[0]  # sum over height, divided by bands
        for term, derivative in enumerate(
            (inner_sobel(image, 1), inner_sobel(image, 0), inner_sobel(spectral, 1)),
        ):
            squares[term] += float(np.sum(derivative**2))
    return sum(math.sqrt(square) for square in squares)


def test_cube_form_equals_scipy():
    denoised, clean = batch()
    np.testing.assert_allclose(global_gradient(denoised, clean), cube_form_by_scipy(denoised, clean), rtol=1e-4)
    loss = DenoisingLoss(gradient_weight=0.02)(denoised, clean).item()
    expected = (denoised - clean).abs().mean().item() + 0.02 * cube_form_by_scipy(denoised, clean).mean()
    assert loss == pytest.approx(expected, rel=1e-4)


def test_released_form_equals_scipy():
    denoised, clean = batch()
    expected = released_form_by_scipy(denoised, clean)
    assert released_global_gradient(denoised, clean).item() == pytest.approx(expected, rel=1e-10)
    loss = DenoisingLoss(form="released")(denoised, clean).item()
    assert loss == pytest.approx((denoised - clean).abs().mean().item() + 0.001 * expected, rel=1e-10)


def test_published_weight_keeps_its_meaning_on_the_published_patch():
    # A difference that is the same in every band and row has only the derivative along the width, in both forms.
    column = torch.rand(128, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    clean = torch.zeros(1, 31, 128, 128, dtype=torch.float64)
    denoised = column.expand_as(clean)
    slope = 4 * (column[2:] - column[:-2])
    spatial = (126 * slope.square().sum()).sqrt().item()
    assert global_gradient(denoised, clean).item() == pytest.approx(spatial, rel=1e-5)
    third = 128 / 31 * (29 * slope.square().sum()).sqrt().item()
    assert released_global_gradient(denoised, clean).item() == pytest.approx(spatial + third, rel=1e-10)


def test_spectral_shift_is_seen_by_the_cube_form_only():
    denoised = torch.linspace(0, 1, 5, dtype=torch.float64).reshape(1, 5, 1, 1).expand(1, 5, 9, 12)
    clean = torch.zeros_like(denoised)
    assert global_gradient(denoised, clean).item() == pytest.approx(126 * 8 * 0.25, rel=1e-6)
    assert released_global_gradient(denoised, clean).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("data_term", ["l1", "charbonnier", "mse"])
def test_cube_form_of_a_batch_is_the_mean_over_its_cubes(data_term):
    denoised, clean = batch()
    loss = DenoisingLoss(gradient_weight=0.1, data_term=data_term)
    singles = [loss(denoised[i : i + 1], clean[i : i + 1]).item() for i in range(3)]
    assert loss(denoised, clean).item() == pytest.approx(np.mean(singles), rel=1e-10)


def test_released_form_depends_on_the_batch():
    denoised, clean = batch()
    singles = [released_global_gradient(denoised[i : i + 1], clean[i : i + 1]).item() for i in range(3)]
    whole = released_global_gradient(denoised, clean).item()
    assert whole > 1.5 * np.mean(singles)
    assert whole == pytest.approx(math.sqrt(3) * np.mean(singles), rel=0.1)


def periodic(difference, rows, columns):
    """A small pattern repeated so that the positions where Sobel fits are whole periods."""
    _, height, width = difference.shape
    tiled = np.tile(difference, (1, rows + 1, columns + 1))[:, : rows * height + 2, : columns * width + 2]
    return torch.from_numpy(tiled)[None]


def test_cube_form_does_not_grow_with_the_patch_and_the_released_form_does():
    pattern = np.random.default_rng(0).random((5, 8, 6))
    pattern[:, 2:] = pattern[:, :1]  # mostly constant down the columns: the mean over the height hardly depends on rows
    small, wide, large = periodic(pattern, 4, 4), periodic(pattern, 4, 12), periodic(pattern, 16, 16)
    value = global_gradient(small, torch.zeros_like(small)).item()
    assert global_gradient(wide, torch.zeros_like(wide)).item() == pytest.approx(value, rel=1e-6)
    assert global_gradient(large, torch.zeros_like(large)).item() == pytest.approx(value, rel=0.02)
    released = [released_global_gradient(x, torch.zeros_like(x)).item() for x in (small, large)]
    assert released[1] > 3.5 * released[0]


@pytest.mark.parametrize("form", ["cube", "released"])
@pytest.mark.parametrize("data_term", ["l1", "charbonnier", "mse"])
def test_equal_cubes_have_no_loss_and_a_finite_gradient(form, data_term):
    _, clean = batch()
    denoised = clean.clone().requires_grad_()
    loss = DenoisingLoss(gradient_weight=0.1, form=form, data_term=data_term)(denoised, clean)
    loss.backward()
    assert loss.item() == pytest.approx(1e-3 if data_term == "charbonnier" else 0.0, abs=1e-12)
    assert denoised.grad.abs().max() == 0.0


def test_gradient_stays_finite_for_tiny_differences_in_float32():
    clean = torch.zeros(2, 4, 6, 7)
    denoised = torch.full_like(clean, 1e-12).requires_grad_()
    DenoisingLoss(gradient_weight=1.0)(denoised, clean).backward()
    assert torch.isfinite(denoised.grad).all()


@pytest.mark.parametrize("form", ["cube", "released"])
@pytest.mark.parametrize("data_term", ["l1", "charbonnier", "mse"])
def test_gradient_equals_finite_differences(form, data_term):
    denoised, clean = batch(cubes=2, bands=4, height=5, width=6)
    denoised.requires_grad_()
    loss = DenoisingLoss(gradient_weight=0.05, form=form, data_term=data_term)
    assert torch.autograd.gradcheck(lambda x: loss(x, clean), (denoised,))


@pytest.mark.parametrize(("data_term", "value"), [("l1", 0.5), ("mse", 0.25), ("charbonnier", math.sqrt(0.25 + 1e-6))])
def test_data_terms(data_term, value):
    clean = torch.zeros(2, 3, 4, 5, dtype=torch.float64)
    loss = DenoisingLoss(gradient_weight=0.0, data_term=data_term)
    assert loss(clean - 0.5, clean).item() == pytest.approx(value, rel=1e-12)


def test_autocast_and_half_precision_are_computed_in_float32():
    denoised, clean = (x.float() for x in batch())
    expected = DenoisingLoss()(denoised, clean)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert DenoisingLoss()(denoised, clean) == expected
    half = DenoisingLoss()(denoised.bfloat16(), clean)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(expected.item(), rel=0.01)


def test_regulariser_needs_three_of_everything_but_the_data_term_does_not():
    thin = torch.ones(1, 2, 6, 7)
    with pytest.raises(ValueError, match="gradient_weight=0"):
        DenoisingLoss()(thin, 0 * thin)
    assert DenoisingLoss(gradient_weight=0.0)(thin, 0 * thin).item() == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "batch"}, "cube.*released"),
        ({"data_term": "l2"}, "l1.*charbonnier.*mse"),
        ({"gradient_weight": -1.0}, "gradient_weight"),
        ({"gradient_weight": math.nan}, "gradient_weight"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises((ValueError, jaxtyping.TypeCheckError), match=message):
        DenoisingLoss(**options)


def test_different_shapes_are_refused():
    with pytest.raises((ValueError, jaxtyping.TypeCheckError)):
        DenoisingLoss()(torch.ones(1, 3, 4, 5), torch.ones(1, 1, 4, 5))


def test_spectral_angle_is_the_angle(rng):
    clean = torch.from_numpy(rng.random((2, 6, 5, 4)).astype(np.float32)) + 0.2
    denoised = clean + 0.01 * torch.from_numpy(rng.standard_normal((2, 6, 5, 4)).astype(np.float32))
    expected = sam(denoised, clean)
    torch.testing.assert_close(spectral_angle(denoised, clean), expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(spectral_angle(3 * denoised, clean), expected, rtol=1e-3, atol=0)


def test_the_spectral_angle_of_black_and_of_equals_has_a_gradient():
    clean = torch.zeros(1, 4, 3, 5)
    clean[..., 2:] = 0.3
    denoised = clean.clone().requires_grad_()
    spectral_angle(denoised, clean).sum().backward()
    assert torch.isfinite(denoised.grad).all()


def test_angle_weight_adds_the_angle(rng):
    clean, denoised = (torch.from_numpy(rng.random((1, 4, 5, 6)).astype(np.float32)) for _ in range(2))
    with_angle, without = (DenoisingLoss(angle_weight=weight)(denoised, clean) for weight in (0.5, 0.0))
    torch.testing.assert_close(with_angle - without, 0.5 * spectral_angle(denoised, clean)[0])
    with pytest.raises(ValueError, match="angle_weight is -1"):
        DenoisingLoss(angle_weight=-1)


def test_psnr_term_is_what_a_table_counts(rng):
    clean = torch.from_numpy(rng.random((2, 4, 5, 6)).astype(np.float32))
    denoised = clean + 0.1 * torch.tensor([1.0, 2.0, 0.5, 1.5])[:, None, None]
    loss = DenoisingLoss(gradient_weight=0, data_term="psnr")(denoised, clean)
    decibels = -10 * np.log10(np.square((denoised - clean).numpy()).mean(axis=(2, 3)) + 1e-8).mean()
    assert loss.item() == pytest.approx(-decibels * np.log(10) / 200, rel=1e-4)
