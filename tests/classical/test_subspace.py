import jaxtyping
import numpy as np
import pytest

from hsidenoise.classical.filters import (
    denoise_planes,
    denoise_tv,
    sigma_per_band,
    truncated_mnf,
    truncated_pca,
    whitened_subspace,
)
from hsidenoise.signal.noise_level import CLASSICAL_FLOOR, noise_sigma

REFUSED = (ValueError, jaxtyping.TypeCheckError)
RANK = 3


def low_rank_cube(bands=20, height=48, width=56, seed=0):
    """Exactly of rank 3 beside the mean; smooth, so that blind levels are the noise alone."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    maps = np.stack([np.sin(rows / 9.0), np.cos(columns / 11.0 + rows / 23.0), np.sin(columns / 17.0)])
    return np.einsum("br,rhw->bhw", rng.random((bands, RANK)), 1.0 + maps) / RANK / 2


def non_iid(clean, seed=1):
    rng = np.random.default_rng(seed)
    sigma = rng.choice([10, 30, 50, 70], len(clean)) / 255
    return (clean + rng.normal(size=clean.shape) * sigma[:, None, None]).astype(np.float32), sigma


def unchanged(planes):
    return planes


@pytest.mark.parametrize("method", [lambda y, s: denoise_planes(y, unchanged, s), truncated_pca, truncated_mnf])
def test_error_on_a_low_rank_cube_is_the_share_of_the_noise_that_the_rank_has(method, rng):
    clean = low_rank_cube()
    sigma = 0.02
    noisy = (clean + rng.normal(0.0, sigma, clean.shape)).astype(np.float32)
    for told in (sigma, None):
        error = np.mean((method(noisy, told) - clean) ** 2)
        assert error == pytest.approx(sigma**2 * RANK / len(clean), rel=0.08)


@pytest.mark.parametrize("method", [lambda y, s: denoise_planes(y, unchanged, s), truncated_mnf])
@pytest.mark.parametrize("known", [True, False])
def test_bands_of_unequal_noise_reach_the_weighted_least_squares_bound(method, known):
    # The best linear unbiased estimate that knows the true subspace. sqrt(R @ Y) for sqrt(R) @ Y misses it by far.
    clean = 4.0 * low_rank_cube()
    noisy, sigma = non_iid(clean)
    flat = (clean - clean.mean(axis=(1, 2), keepdims=True)).reshape(len(clean), -1)
    basis = np.linalg.svd(flat, full_matrices=False)[0][:, :RANK]
    bound = np.trace(basis @ np.linalg.inv(basis.T @ (basis / sigma[:, None] ** 2)) @ basis.T) / len(clean)
    error = np.mean((method(noisy, sigma if known else None) - clean) ** 2)
    assert error < (1.1 if known else 1.2) * bound
    # bands that are not weighted do much worse: the test would see it
    assert np.mean((truncated_pca(noisy, sigma) - clean) ** 2) > 1.5 * bound


def test_planes_have_noise_of_variance_one_and_the_rank_is_found():
    clean = 4.0 * low_rank_cube()
    noisy, sigma = non_iid(clean)
    subspace = whitened_subspace(noisy, sigma)
    assert subspace.planes.shape[0] == RANK
    # what the same projection makes of the noise alone
    whitening = np.linalg.pinv(subspace.basis / sigma[:, None]) / sigma
    noise = whitening @ (noisy - clean).reshape(len(clean), -1)
    np.testing.assert_allclose(noise.std(axis=1), 1.0, rtol=0.06)


def test_pure_noise_leaves_one_plane(rng):
    noisy = rng.normal(0.5, 0.1, (20, 60, 70)).astype(np.float32)
    assert whitened_subspace(noisy, np.full(20, 0.1)).planes.shape[0] == 1


def test_subspace_gives_back_a_clean_cube(real_crop):
    denoised = denoise_planes(real_crop, lambda planes: denoise_tv(planes, 0.95), sigma=0.0)
    assert np.abs(denoised - real_crop).max() < 2e-3


@pytest.mark.parametrize("sigma", [0.02, 0.2])
def test_noise_sigma_of_a_real_scene(real_crop, rng, sigma):
    noisy = (real_crop + rng.normal(0.0, sigma, real_crop.shape)).astype(np.float32)
    np.testing.assert_allclose(noise_sigma(noisy), sigma, rtol=0.15)


def test_noise_sigma_sees_no_noise_in_the_texture_of_a_low_rank_cube():
    assert noise_sigma(low_rank_cube().astype(np.float32)).max() == CLASSICAL_FLOOR


def test_noise_sigma_of_constant_repeated_and_few_bands(rng):
    cube = np.full((4, 9, 8), 0.5, dtype=np.float32)
    np.testing.assert_array_equal(noise_sigma(cube), CLASSICAL_FLOOR)
    band = rng.random((9, 8), dtype=np.float32)
    assert np.isfinite(noise_sigma(np.stack([band] * 4))).all()
    assert noise_sigma(rng.random((30, 3, 4), dtype=np.float32)).shape == (30,)  # fewer pixels than bands


def test_sigma_as_told():
    cube = np.zeros((3, 4, 5), dtype=np.float32)
    assert sigma_per_band(cube, 0.1).tolist() == [0.1] * 3
    assert sigma_per_band(cube, 0).tolist() == [CLASSICAL_FLOOR] * 3
    assert sigma_per_band(cube, np.array([0.1, 0.2, 0.3])).tolist() == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("sigma", [-0.1, np.nan, np.array([0.1, 0.2]), np.array([0.1, np.inf, 0.1])])
def test_impossible_sigma_is_refused(sigma):
    with pytest.raises(REFUSED, match="sigma"):
        sigma_per_band(np.zeros((3, 4, 5), dtype=np.float32), sigma)
