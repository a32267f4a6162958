import numpy as np
import pytest

from hsidenoise.classical.outliers import replace_outliers
from hsidenoise.noise.cases import corrupt


@pytest.fixture(scope="module")
def noisy_scene(structured_cube):
    rng = np.random.default_rng(3)
    return structured_cube + rng.normal(0.0, 0.04, structured_cube.shape).astype(np.float32)


def test_gaussian_noise_alone_is_left_as_it_is(noisy_scene):
    repair = replace_outliers(noisy_scene)
    assert (repair.trust == 1.0).mean() > 0.9
    np.testing.assert_array_equal(repair.cube[repair.trust == 1.0], noisy_scene[repair.trust == 1.0])
    np.testing.assert_allclose(repair.sigma, 0.04, rtol=0.15)


def test_impulses_are_replaced_and_nothing_else(noisy_scene, structured_cube, rng):
    noisy = noisy_scene.copy()
    hit = rng.random(noisy[7].shape) < 0.3
    noisy[7][hit] = 1.0
    before = noisy.copy()
    repair = replace_outliers(noisy)
    np.testing.assert_array_equal(noisy, before)
    assert repair.trust[7][hit].mean() < 0.1
    assert repair.trust[7][~hit].mean() > 0.9
    assert np.abs(repair.cube - structured_cube)[7][hit].mean() < 0.04
    np.testing.assert_array_equal(repair.cube[20], noisy[20])


def test_dead_columns_and_stripes_that_hide_in_the_noise(noisy_scene, structured_cube):
    noisy = noisy_scene.copy()
    noisy[5, :, [3, 17, 30]] = 0.0
    noisy[9, :, [8, 22, 41]] -= 0.1  # 2.5 sigma: no value stands out by itself
    repair = replace_outliers(noisy)
    assert repair.trust[5, :, [3, 17, 30]].mean() < 0.15
    assert repair.trust[9, :, [8, 22, 41]].mean() < 0.15
    for band, columns in ((5, [3, 17, 30]), (9, [8, 22, 41])):
        assert np.abs((repair.cube - structured_cube)[band, :, columns].mean(axis=1)).max() < 0.03


def test_level_of_a_band_mostly_hit_is_that_of_its_noise(noisy_scene, rng):
    noisy = noisy_scene.copy()
    hit = rng.random(noisy[7].shape) < 0.5
    noisy[7][hit] = rng.integers(0, 2, hit.sum())
    sigma = replace_outliers(noisy).sigma
    assert sigma[7] < 0.15  # the standard deviation of the impulses is 0.4
    np.testing.assert_allclose(np.delete(sigma, 7), 0.04, rtol=0.2)


def test_what_one_is_told_is_the_most_that_is_assumed(noisy_scene):
    assert replace_outliers(noisy_scene, 0.02).sigma.max() <= 0.02
    assert replace_outliers(noisy_scene, np.full(31, 0.5)).sigma.max() < 0.06


def test_mixture_on_a_real_crop_gains(real_crop):
    noisy = corrupt(real_crop, "mixture", seed=0).noisy
    repaired = replace_outliers(noisy).cube
    assert np.mean((repaired - real_crop) ** 2) < 0.6 * np.mean((noisy - real_crop) ** 2)


@pytest.mark.parametrize("shape", [(1, 12, 15), (2, 2, 3), (3, 9, 7), (40, 3, 4)])
def test_small_cubes_and_few_bands(shape, rng):
    noisy = rng.random(shape, dtype=np.float32)
    repair = replace_outliers(noisy)
    assert repair.cube.shape == noisy.shape
    assert np.isfinite(repair.cube).all()
    assert repair.cube.dtype == np.float32
