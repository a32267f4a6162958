import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hsidenoise.signal.bad_bands import bad_bands
from hsidenoise.signal.noise_level import noise_level, spread_of_most
from hsidenoise.signal.planes.flat_parts import level_of_flat_parts


def scene(bands=12, height=90, width=70, seed=0):
    """A smooth scene of three materials with an edge."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    maps = np.stack(
        [np.sin(rows / 17.0) + 1.5, np.cos(columns / 13.0 + rows / 29.0) + 1.5, (columns > width // 2) + 0.5]
    )
    return np.einsum("bm,mhw->bhw", rng.random((bands, 3)) + 0.1, maps) / 8.0


@given(sigma=st.floats(0.01, 0.4), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_noise_level_is_within_ten_per_cent(sigma, seed):
    rng = np.random.default_rng(seed)
    clean = scene()
    sigmas = sigma * np.linspace(0.5, 1.5, len(clean))
    noisy = clean + rng.normal(size=clean.shape) * sigmas[:, None, None]
    np.testing.assert_allclose(noise_level(noisy.astype(np.float32)), sigmas, rtol=0.1)


def test_noise_level_ignores_stripes_dead_columns_and_a_few_impulses():
    rng = np.random.default_rng(0)
    clean = scene()
    noisy = clean + rng.normal(0.0, 0.1, clean.shape)
    noisy[0][:, ::9] -= 0.25
    noisy[1][:, ::11] = 0.0
    noisy[2][rng.random(noisy[2].shape) < 0.03] = 1.0
    np.testing.assert_allclose(noise_level(noisy), 0.1, rtol=0.15)


def test_noise_level_scales_with_the_unit_and_does_not_care_for_an_offset():
    noisy = scene() + np.random.default_rng(0).normal(0.0, 0.1, (12, 90, 70))
    np.testing.assert_allclose(noise_level(50.0 * noisy + 7.0), 50.0 * noise_level(noisy), rtol=1e-9)


def test_noise_level_of_integers_does_not_wrap_around():
    counts = np.round(1000 + np.random.default_rng(0).normal(0.0, 40.0, (2, 60, 70))).astype(np.uint16)
    np.testing.assert_allclose(noise_level(counts), 40.0, rtol=0.1)


def test_noise_level_of_a_constant_cube_is_zero():
    assert noise_level(np.full((2, 5, 6), 3.0)).tolist() == [0.0, 0.0]


def test_bad_bands_finds_noise_dead_bands_and_neighbours_that_share_their_fault():
    rng = np.random.default_rng(0)
    noisy = scene(bands=24) + rng.normal(0.0, 0.01, (24, 90, 70))
    noisy[0] = rng.random((90, 70))
    noisy[7] = 0.3
    fault = rng.random((90, 70))
    noisy[15] = fault + rng.normal(0.0, 0.2, fault.shape)
    noisy[16] = fault + rng.normal(0.0, 0.2, fault.shape)
    before = noisy.copy()
    assert np.flatnonzero(bad_bands(noisy)).tolist() == [0, 7, 15, 16]
    np.testing.assert_array_equal(noisy, before)


@pytest.mark.parametrize("sigma", [0.01, 0.3])
def test_bad_bands_blames_no_band_for_noise_that_all_have(sigma):
    noisy = scene(bands=24) + np.random.default_rng(0).normal(0.0, sigma, (24, 90, 70))
    assert not bad_bands(noisy).any()


def test_bad_bands_is_the_same_in_another_unit():
    rng = np.random.default_rng(0)
    noisy = scene() + rng.normal(0.0, 0.02, (12, 90, 70))
    noisy[4] = rng.random((90, 70))
    counts = np.round(np.clip(noisy, 0, 2) * 5000).astype(np.uint16)
    assert np.flatnonzero(bad_bands(counts)).tolist() == np.flatnonzero(bad_bands(noisy)).tolist() == [4]


def test_bad_bands_with_too_few_pixels_names_only_constant_bands():
    cube = np.random.default_rng(0).random((9, 2, 3))
    cube[5] = 1.0
    assert np.flatnonzero(bad_bands(cube)).tolist() == [5]


@pytest.mark.parametrize("estimate", [noise_level, bad_bands])
@pytest.mark.parametrize(
    ("cube", "message"),
    [
        (np.full((2, 3, 4), np.nan), "NaN"),
        (np.ones((2, 3, 4), dtype=complex), "real"),
        (np.ones((2, 1, 4)), "2x2"),
        (np.ones((0, 3, 4)), "bands"),
    ],
)
def test_unusable_cubes_are_refused(estimate, cube, message):
    with pytest.raises(ValueError, match=message):
        estimate(cube)


def test_spread_of_most_survives_a_majority_of_outliers(rng):
    residual = rng.normal(0.0, 0.1, (2, 80, 90))
    residual[1, :20] += 5.0
    assert spread_of_most(residual)[0] == pytest.approx(0.1, rel=0.05)
    assert spread_of_most(residual)[1] == pytest.approx(0.1, rel=0.6)
    residual[1, :48] += 5.0  # 60 % in all
    assert spread_of_most(residual)[1] < 0.3


def test_level_of_flat_parts_is_that_of_all_brightnesses(rng):
    clean = np.repeat([100.0, 400.0, 900.0], 40)[:, None] * np.ones(100)
    image = torch.from_numpy(rng.poisson(clean).astype(np.float32))[None]
    found = level_of_flat_parts(image, torch.zeros_like(image, dtype=torch.bool))
    assert found.item() == pytest.approx(clean.mean() ** 0.5, rel=0.06)


@pytest.mark.parametrize(("sigma", "least", "most"), [(0, 0.28, 0.6), (1, 0.98, 1.15)])
def test_level_of_flat_parts_sees_past_texture_saturation_and_lost_values(rng, sigma, least, most):
    rows, columns = np.mgrid[:128, :130]
    texture = 3.0 * scipy.ndimage.uniform_filter(rng.integers(0, 40, rows.shape).astype(float), 3)
    clean = 100 + 0.3 * columns + texture * (rows < 90)  # on most of it
    image = np.rint(clean + rng.normal(0, sigma, clean.shape))
    image[:20] = 255
    lost = rng.random(clean.shape) < 0.02
    image[lost] = 0
    found = level_of_flat_parts(torch.from_numpy(np.float32(image))[None], torch.from_numpy(lost)[None])
    assert least < found < most
    assert noise_level(image[20:][None]) > 1.5 * most
