import json
import math
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import error_relative_global_dimensionless_synthesis as torchmetrics_ergas

from hsidenoise.data.io import Cube
from hsidenoise.metrics.functional import (
    PROTOCOLS,
    bandwise_psnr,
    bandwise_ssim,
    ergas,
    evaluate,
    evaluate_batch,
    psnr,
    sam,
    ssim,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics.npz"
REFUSED = (ValueError, jaxtyping.TypeCheckError)  # the type check, where it is switched on, comes first


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return file["truth"], file["estimate"], json.loads(str(file["expected"]))


def pair(seed=0, bands=4, height=17, width=23, scale=0.1):
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0.2, 0.8, bands)[:, None, None] * (0.5 + 0.5 * rng.random((1, height, width)))
    return ramp + rng.normal(0.0, scale, ramp.shape), ramp


def angle_by_loop(denoised, clean):
    angles = []
    for row in range(clean.shape[1]):
        for column in range(clean.shape[2]):
            x, y = denoised[:, row, column], clean[:, row, column]
            cosine = float(x @ y) / (math.sqrt(float(x @ x)) * math.sqrt(float(y @ y)))
            angles.append(math.acos(min(1.0, max(-1.0, cosine))))
    return sum(angles) / len(angles)


# golden values


@pytest.mark.parametrize("name", PROTOCOLS)
def test_protocol_equals_golden_values(golden, name):
    truth, estimate, expected = golden
    scores = evaluate(estimate, truth, protocol=name)
    assert scores.protocol == name
    for metric, value in expected[name].items():
        assert getattr(scores, metric) == pytest.approx(value, rel=1e-9), metric


def test_table_has_the_golden_protocols(golden):
    assert set(PROTOCOLS) == set(golden[2])
    assert all(name == row.name and row.source for name, row in PROTOCOLS.items())


def test_protocols_disagree(golden):
    truth, estimate, _ = golden
    scores = [evaluate(estimate, truth, protocol=name) for name in PROTOCOLS]
    # standard and t3sc share PSNR and SAM; nothing else is shared by all three scores of a row.
    assert len({(round(s.psnr, 9), round(s.ssim, 9), round(s.sam, 9)) for s in scores}) == len(PROTOCOLS)


def test_float32_suffices_for_logging(golden):
    truth, estimate, expected = golden
    scores = evaluate_batch(torch.from_numpy(estimate), torch.from_numpy(truth))
    assert scores["psnr"].dtype == torch.float32
    for metric, value in expected["standard"].items():
        assert scores[metric].item() == pytest.approx(value, rel=1e-4), metric


# second implementations


def test_psnr_equals_skimage():
    denoised, clean = pair()
    ours = bandwise_psnr(torch.from_numpy(denoised), torch.from_numpy(clean), data_range=2.5)
    theirs = [peak_signal_noise_ratio(y, x, data_range=2.5) for x, y in zip(denoised, clean, strict=True)]
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-12)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"normalisation": "population"}, {"use_sample_covariance": False}),
        (
            {"window": "gaussian", "normalisation": "population"},
            {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False},
        ),
    ],
)
def test_ssim_equals_skimage(ours, theirs):
    denoised, clean = pair()
    mine = bandwise_ssim(torch.from_numpy(denoised), torch.from_numpy(clean), data_range=1.3, **ours)
    reference = [structural_similarity(y, x, data_range=1.3, **theirs) for x, y in zip(denoised, clean, strict=True)]
    np.testing.assert_allclose(mine.numpy(), reference, rtol=1e-10)


def test_ssim_of_the_whole_band_equals_its_formula():
    denoised, clean = pair()
    reference = []
    for x, y in zip(denoised, clean, strict=True):
        c1, c2 = 0.01**2, 0.03**2
        covariance = np.cov(x.ravel(), y.ravel())[0, 1]
        above = (2 * x.mean() * y.mean() + c1) * (2 * covariance + c2)
        reference.append(above / ((x.mean() ** 2 + y.mean() ** 2 + c1) * (np.var(x) + np.var(y) + c2)))
    mine = bandwise_ssim(
        torch.from_numpy(denoised), torch.from_numpy(clean), data_range=1.0, window="band", normalisation="mixed"
    )
    np.testing.assert_allclose(mine.numpy(), reference, rtol=1e-12)


def test_sam_equals_a_loop_over_pixels():
    denoised, clean = pair()
    mine = sam(torch.from_numpy(denoised), torch.from_numpy(clean)).item()
    assert mine == pytest.approx(angle_by_loop(denoised, clean), rel=1e-10)


def test_ergas_equals_torchmetrics():
    denoised, clean = pair()
    x, y = torch.from_numpy(denoised), torch.from_numpy(clean)
    theirs = torchmetrics_ergas(x[None], y[None], ratio=1)
    assert ergas(x, y).item() == pytest.approx(theirs.item(), rel=1e-6)


def test_mafnet_reads_rows_as_bands():
    denoised, clean = pair(bands=9)
    scores = evaluate(denoised, clean, protocol="mafnet")
    rows = range(clean.shape[1])
    by_row = [peak_signal_noise_ratio(clean[:, row].T, denoised[:, row].T, data_range=1) for row in rows]
    assert scores.psnr == pytest.approx(np.mean(by_row), rel=1e-12)
    by_row = [structural_similarity(clean[:, row].T, denoised[:, row].T, data_range=1) for row in rows]
    assert scores.ssim == pytest.approx(np.mean(by_row), rel=1e-10)
    down = angle_by_loop(denoised.transpose(1, 2, 0), clean.transpose(1, 2, 0))
    assert scores.sam == pytest.approx(down, rel=1e-5)


# properties


@given(
    mse=st.floats(1e-8, 1.0),
    data_range=st.floats(0.1, 1e4),
    shape=st.tuples(st.integers(1, 3), st.integers(4, 6), st.integers(7, 9)),
)
@settings(max_examples=30, deadline=None)
def test_psnr_of_a_known_error(mse, data_range, shape):
    clean = torch.zeros(shape, dtype=torch.float64)
    denoised = clean + math.sqrt(mse) * data_range
    expected = -10.0 * math.log10(mse)
    assert psnr(denoised, clean, data_range=data_range).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_batch_equals_loop(protocol):
    pairs = [pair(seed, bands=11, height=13, width=16) for seed in range(6)]
    denoised = torch.from_numpy(np.stack([p[0] for p in pairs])).reshape(2, 3, 11, 13, 16)
    clean = torch.from_numpy(np.stack([p[1] for p in pairs])).reshape(2, 3, 11, 13, 16)
    batch = evaluate_batch(denoised, clean, protocol=protocol)
    for metric, values in batch.items():
        assert values.shape == (2, 3)
        loop = [getattr(evaluate(*p, protocol=protocol), metric) for p in pairs]
        np.testing.assert_allclose(values.reshape(-1).numpy(), loop, rtol=1e-12, err_msg=metric)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_scores_do_not_depend_on_the_unit(protocol):
    denoised, clean = pair(bands=11)
    unit = evaluate(denoised, clean, protocol=protocol)
    scaled = evaluate(denoised * 4095, clean * 4095, data_range=4095.0, protocol=protocol)
    for metric in ("psnr", "ssim", "sam", "ergas"):
        assert getattr(scaled, metric) == pytest.approx(getattr(unit, metric), rel=1e-9), metric


@given(factor=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_sam_ignores_brightness_and_order(factor, seed):
    denoised, clean = (torch.from_numpy(a) for a in pair(seed))
    angle = sam(denoised, clean).item()
    assert sam(factor * denoised, clean).item() == pytest.approx(angle, rel=1e-9)
    assert sam(clean, denoised).item() == pytest.approx(angle, rel=1e-12)


def test_ssim_and_psnr_are_symmetric_and_ergas_is_not():
    x, y = (torch.from_numpy(a) for a in pair())
    assert ssim(x, y, data_range=1.0).item() == pytest.approx(ssim(y, x, data_range=1.0).item(), rel=1e-12)
    assert psnr(x, y, data_range=1.0) == psnr(y, x, data_range=1.0)
    assert abs(ergas(x, 2 * y).item() - ergas(2 * y, x).item()) > 1.0


def test_clipping_protocols_clip_and_the_others_do_not():
    denoised, clean = pair(bands=11)
    for name, row in PROTOCOLS.items():
        same = evaluate(denoised - 0.5, clean, protocol=name) == evaluate(
            np.clip(denoised - 0.5, 0, 1), clean, protocol=name
        )
        assert same == row.clipped, name


# conventions


def test_identical_cubes():
    _, clean = pair()
    scores = evaluate(clean, clean)
    assert scores.psnr == math.inf
    assert scores.ssim == pytest.approx(1.0, abs=1e-12)
    assert scores.sam == 0.0
    assert scores.ergas == 0.0


def test_one_identical_band_makes_the_mean_infinite():
    denoised, clean = pair()
    denoised[1] = clean[1]
    bands = bandwise_psnr(torch.from_numpy(denoised), torch.from_numpy(clean), data_range=1.0)
    assert torch.isinf(bands).tolist() == [False, True, False, False]
    assert evaluate(denoised, clean).psnr == math.inf


@pytest.mark.parametrize(
    ("x", "y", "angle"),
    [([0, 0], [0, 0], 0.0), ([0, 0], [1, 2], math.pi / 2), ([1, 2], [0, 0], math.pi / 2), ([1, 2], [-1, -2], math.pi)],
)
def test_sam_of_special_spectra(x, y, angle):
    x, y = (torch.tensor(v, dtype=torch.float64).reshape(2, 1, 1) for v in (x, y))
    assert sam(x, y).item() == pytest.approx(angle, abs=1e-12)


def test_sam_of_nearly_equal_spectra_is_exact_in_float32():
    x = torch.tensor([1.0, 0.0]).reshape(2, 1, 1)
    y = torch.tensor([1.0, 1e-5]).reshape(2, 1, 1)
    assert sam(x, y).item() == pytest.approx(1e-5, rel=1e-4)


@pytest.mark.parametrize("protocol", ["qrnn3d", "hsir", "mafnet"])
def test_dark_pixels_stay_finite_under_protocols_with_eps(protocol):
    _, clean = pair(bands=11)
    dark = clean * 1e-3
    dark[:, 2:4, 3:5] = 0.0
    assert math.isfinite(evaluate(dark, dark, protocol=protocol).sam)


def test_ergas_of_a_band_with_mean_zero():
    clean = torch.ones(2, 3, 4)
    clean[0] = 0.0
    assert ergas(clean, clean).item() == 0.0
    assert ergas(clean + 0.1, clean).item() == math.inf


# differentiation and precision


def test_gradients_are_finite_and_right():
    denoised, clean = (torch.from_numpy(a) for a in pair(bands=2, height=9, width=8))
    denoised.requires_grad_()
    for metric in (
        lambda x: psnr(x, clean, data_range=1.0),
        lambda x: ssim(x, clean, data_range=1.0),
        lambda x: sam(x, clean),
        lambda x: ergas(x, clean),
    ):
        assert torch.autograd.gradcheck(metric, (denoised,), atol=1e-4)


def test_gradient_of_sam_and_ssim_is_finite_for_equal_and_zero_spectra():
    clean = torch.rand(2, 9, 8, generator=torch.Generator().manual_seed(0))
    clean[:, 0, 0] = 0.0
    denoised = clean.clone().requires_grad_()
    (sam(denoised, clean) + ssim(denoised, clean, data_range=1.0)).backward()
    assert torch.isfinite(denoised.grad).all()


def test_half_precision_is_raised_also_under_autocast():
    denoised, clean = (torch.from_numpy(a).float() for a in pair(height=33, width=40))
    expected = evaluate_batch(denoised, clean, protocol="t3sc")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = evaluate_batch(denoised, clean, protocol="t3sc")
    assert scores == expected
    rounded = evaluate_batch(denoised.bfloat16(), clean.bfloat16())
    assert rounded["ssim"].dtype == torch.float32


def test_inputs_are_left_alone_and_of_any_real_type():
    denoised, clean = pair()
    counts, truth = (np.clip(a * 4095, 0, 4095).astype(np.uint16) for a in (denoised, clean))
    counts.flags.writeable = truth.flags.writeable = False
    by_counts = evaluate(counts, torch.from_numpy(truth.astype(np.int32)), data_range=4095.0)
    by_floats = evaluate(counts / 4095.0, truth / 4095.0)
    assert by_counts.psnr == pytest.approx(by_floats.psnr, rel=1e-12)
    big_endian = evaluate(denoised.astype(">f8"), np.asfortranarray(clean))
    assert big_endian == evaluate(denoised, clean)


# errors


def test_unknown_protocol_lists_the_names():
    denoised, clean = pair()
    with pytest.raises(ValueError, match=r"unknown protocol 'psnr'.*standard, qrnn3d, hsir, sert, t3sc, mafnet"):
        evaluate(denoised, clean, protocol="psnr")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, :, :-1], "must be the same scene"),
        (lambda x: x[0], r"one cube \(bands, height, width\)"),
        (lambda x: x[None], r"one cube \(bands, height, width\)"),
        (lambda x: np.where(np.arange(x.size).reshape(x.shape) == 25, np.nan, x), r"1 NaN .* \(0, 1, 2\)"),
        (lambda x: x * 1j, "real numbers"),
    ],
)
def test_bad_cubes_are_refused_in_one_line(change, message):
    denoised, clean = pair()
    with pytest.raises(ValueError, match=message) as caught:
        evaluate(change(denoised), clean)
    assert "\n" not in str(caught.value)


def test_empty_cubes_are_refused():
    empty = np.zeros((0, 8, 9))
    with pytest.raises(ValueError, match="non-empty"):
        evaluate(empty, empty)


@pytest.mark.parametrize("data_range", [0.0, -1.0, math.nan, math.inf])
def test_bad_data_range_is_refused(data_range):
    denoised, clean = pair()
    with pytest.raises(ValueError, match="data_range"):
        evaluate(denoised, clean, data_range=data_range)


@pytest.mark.parametrize(("protocol", "side"), [("standard", 7), ("t3sc", 11)])
def test_images_smaller_than_the_window_are_refused(protocol, side):
    denoised, clean = pair(bands=3, height=side - 1, width=20)
    with pytest.raises(ValueError, match=f"{side}x{side} window .* protocol 'sert'"):
        evaluate(denoised, clean, protocol=protocol)
    evaluate(*pair(bands=3, height=side, width=20), protocol=protocol)
    evaluate(denoised, clean, protocol="sert")


def test_tensor_functions_refuse_different_shapes():
    for metric in (ergas, sam, lambda x, y: psnr(x, y, data_range=1.0), lambda x, y: ssim(x, y, data_range=1.0)):
        with pytest.raises(REFUSED):
            metric(torch.ones(2, 8, 9), torch.ones(3, 8, 9))


@pytest.mark.parametrize("protocol", [name for name in PROTOCOLS if not PROTOCOLS[name].rows_as_bands])
def test_a_mask_scores_as_if_the_rest_were_cut_off(protocol):
    denoised, clean = pair()
    wide = [
        np.pad(cube, ((0, 0), (3, 0), (0, 5)), constant_values=value) for cube, value in ((denoised, 7), (clean, -9))
    ]
    mask = np.pad(np.ones(clean.shape[1:], dtype=bool), ((3, 0), (0, 5)))
    wide[0][:, 0, 0] = np.nan
    wanted, found = (
        evaluate(denoised, clean, protocol=protocol),
        evaluate(*wide, protocol=protocol, mask=mask),
    )
    for name in ("psnr", "ssim", "sam", "ergas"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), rel=1e-12)


@pytest.mark.parametrize("protocol", [name for name in PROTOCOLS if not PROTOCOLS[name].rows_as_bands])
def test_a_mask_of_each_band_scores_each_band_on_its_own_pixels(protocol):
    denoised, clean = (np.asarray(cube, np.float64) for cube in pair())
    mask = np.ones(clean.shape, dtype=bool)
    mask[0, :3] = mask[1, :, 4:6] = mask[2, 5, 7] = False
    bad = np.where(mask, denoised, np.nan)
    found = evaluate(bad, clean, protocol=protocol, mask=mask)
    bands = [
        evaluate(bad[band : band + 1], clean[band : band + 1], protocol=protocol, mask=mask[band])
        for band in range(len(clean))
    ]
    assert found.psnr == pytest.approx(np.mean([each.psnr for each in bands]), rel=1e-12)
    assert found.ssim == pytest.approx(np.mean([each.ssim for each in bands]), rel=1e-12)
    assert found.ergas == pytest.approx(np.sqrt(np.mean([each.ergas**2 for each in bands])), rel=1e-12)
    assert found.sam == pytest.approx(evaluate(denoised * mask, clean * mask, protocol=protocol).sam, rel=1e-12)
    same = evaluate(denoised, clean, protocol=protocol, mask=mask[[0] * len(mask)])
    assert same == evaluate(denoised, clean, protocol=protocol, mask=mask[0])


def test_a_mask_that_cannot_be_scored_is_refused():
    denoised, clean = pair()
    holes = torch.ones(17, 23, dtype=torch.bool)
    holes[::5, ::5] = False
    with pytest.raises(ValueError, match="no SSIM window of 7x7 pixels lies in the valid pixels"):
        evaluate(denoised, clean, mask=holes)
    with pytest.raises(ValueError, match="reads image rows as bands and cannot leave out pixels"):
        evaluate(denoised, clean, mask=holes, protocol="mafnet")
    for bad in (torch.zeros(17, 23, dtype=torch.bool), torch.ones(17, 22, dtype=torch.bool)):
        with pytest.raises(ValueError, match="pixels that count: pass at least one"):
            evaluate(denoised, clean, mask=bad)


def test_angle_and_error_are_of_the_values_as_stored():
    denoised, clean = (torch.as_tensor(cube).double() * 8000 + 1000 for cube in pair())
    scores = evaluate(denoised, clean, data_range=8000, lowest=1000)
    assert scores.sam == pytest.approx(sam(denoised, clean).item())
    assert scores.ergas == pytest.approx(ergas(denoised, clean).item())
    above = evaluate(denoised - 1000, clean - 1000, data_range=8000)
    assert (scores.psnr, scores.ssim) == pytest.approx((above.psnr, above.ssim))


@pytest.mark.usefixtures("unchecked")
def test_what_has_axes_or_a_mask_of_its_own_is_refused():
    denoised, clean = pair()
    array = pytest.importorskip("xarray").DataArray(clean.transpose(1, 2, 0), dims=("y", "x", "band"))
    for rich in (array, np.ma.masked_less(clean, 0.5), Cube(clean)):
        for arguments in ((rich, clean), (denoised, rich)):
            with pytest.raises(ValueError, match=rf"is a {type(rich).__name__}: pass its bare values, \(bands, "):
                evaluate(*arguments)
    with pytest.raises(ValueError, match="mask is a DataArray: pass its bare values"):  # else x may count for y
        evaluate(denoised, clean, mask=array[..., 0] > 0)
    assert evaluate(np.ma.MaskedArray(denoised), clean) == evaluate(denoised, clean)


def test_a_cube_in_counts_is_not_scored_in_silence():
    denoised, clean = pair()
    with pytest.warns(UserWarning, match=r"the scores are of cubes in \[0, 1\]"):
        evaluate(denoised * 1e4, clean * 1e4)
    evaluate(denoised * 1e4, clean * 1e4, data_range=1e4)
