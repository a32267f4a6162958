import numpy as np
import pytest

from hsidenoise.classical.robust_pca import denoise_robust_pca, principal_component_pursuit


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
