import numpy as np
import pytest

from hsidenoise.classical.outliers import denoise_robust_pca, principal_component_pursuit, replace_outliers
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


def low_rank(rng, rows=80, columns=1500, rank=2):
    return rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns))


def test_low_rank_and_five_per_cent_sparse_are_both_recovered(rng):
    truth = low_rank(rng)
    errors = np.where(rng.random(truth.shape) < 0.05, rng.choice([-5.0, 5.0], truth.shape), 0.0)
    matrix = truth + errors
    before = matrix.copy()
    found = principal_component_pursuit(matrix)
    np.testing.assert_array_equal(matrix, before)
    assert np.linalg.norm(found.low_rank - truth) < 1e-3 * np.linalg.norm(truth)
    np.testing.assert_allclose(found.sparse, errors, atol=1e-2)
    tall = principal_component_pursuit(matrix.T)
    np.testing.assert_allclose(tall.low_rank.T, found.low_rank, atol=1e-4)


def test_sparsity_tolerance_and_rounds_are_heeded(rng):
    matrix = low_rank(rng, 8, 60)
    assert np.abs(principal_component_pursuit(matrix, sparsity=100.0).sparse).max() == 0.0
    assert np.abs(principal_component_pursuit(matrix, sparsity=1e-3).low_rank).max() < 1e-6

    def left(**options):
        return np.linalg.norm(matrix - sum(principal_component_pursuit(matrix, **options)))

    assert left(tolerance=1e-2) > left(tolerance=1e-8)
    assert left(rounds=2) > left(rounds=40)


def test_zero_matrix_and_impossible_options():
    assert not np.any(principal_component_pursuit(np.zeros((3, 7))).low_rank)
    for options in ({"sparsity": 0.0}, {"tolerance": -1.0}, {"rounds": 0}):
        with pytest.raises(ValueError, match="robust PCA"):
            principal_component_pursuit(np.ones((3, 7)), **options)


def rank_two_cube(rng, bands=20, height=44, width=52):
    return (rng.random((bands, 2)) @ rng.random((2, height * width))).reshape(bands, height, width) / 2


def test_a_cube_with_five_per_cent_impulses_and_no_noise_comes_back(rng):
    clean = rank_two_cube(rng)
    noisy = clean.astype(np.float32)
    noisy[rng.random(clean.shape) < 0.05] = 1.0
    denoised = denoise_robust_pca(noisy)
    assert np.sqrt(np.mean((denoised - clean) ** 2)) < 1e-3


def test_gaussian_noise_falls_to_the_share_of_the_rank_with_and_without_impulses(rng):
    clean = rank_two_cube(rng)
    sigma = 0.03
    noisy = (clean + rng.normal(0.0, sigma, clean.shape)).astype(np.float32)
    share = sigma**2 * 3 / len(clean)  # in each window two dimensions and the mean
    assert np.mean((denoise_robust_pca(noisy) - clean) ** 2) < 1.5 * share
    noisy[rng.random(clean.shape) < 0.05] = 1.0
    before = noisy.copy()
    assert np.mean((denoise_robust_pca(noisy, sigma) - clean) ** 2) < 2.0 * share
    np.testing.assert_array_equal(noisy, before)


def test_bands_full_of_impulses_lose_their_weight(structured_cube, rng):
    noisy = structured_cube + rng.normal(0.0, 0.05, structured_cube.shape).astype(np.float32)
    for band in (4, 5, 19):
        hit = rng.random(noisy[band].shape) < 0.3
        noisy[band][hit] = rng.integers(0, 2, hit.sum())
    before = np.mean((noisy - structured_cube) ** 2)
    assert np.mean((denoise_robust_pca(noisy) - structured_cube) ** 2) < 0.2 * before
