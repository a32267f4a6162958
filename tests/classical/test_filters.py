import jaxtyping
import numpy as np
import pytest
from skimage.restoration import denoise_tv_chambolle

from hsidenoise.classical.filters import denoise_dct, denoise_tv, denoise_tv_3d


def test_it_is_the_minimiser_that_scikit_image_finds(real_crop, rng):
    images = (real_crop[[3, 17]] + rng.normal(0.0, 0.1, real_crop[:2].shape)).astype(np.float32)
    # scikit-image minimises 0.5 * misfit + weight * TV too, by another algorithm
    other = np.stack([denoise_tv_chambolle(image, weight=0.1, eps=1e-9, max_num_iter=3000) for image in images])
    ours = denoise_tv(images, 0.1, rounds=400)
    np.testing.assert_allclose(ours, other, atol=8e-3)  # theirs is the one further from the minimum:
    for image, mine, theirs in zip(images, ours, other, strict=True):
        assert rof(mine, image, 0.1) <= rof(theirs, image, 0.1) * (1 + 1e-5)
    np.testing.assert_allclose(denoise_tv(images, 0.1), ours, atol=1e-2)


def rof(x, image, weight):
    """The objective, in double precision."""
    x = x.astype(np.float64)
    down, across = np.zeros_like(x), np.zeros_like(x)
    down[:-1], across[:, :-1] = np.diff(x, axis=0), np.diff(x, axis=1)
    return ((x - image) ** 2).sum() / 2 + weight * np.sqrt(down**2 + across**2).sum()


def test_a_disc_loses_what_theory_says():
    # The disc of radius R, height 1, is lowered by 2 w / R (the continuous problem), the surround hardly moves.
    rows, columns = np.mgrid[-60:61, -63:64]
    disc = (rows**2 + columns**2 <= 40**2).astype(np.float32)
    denoised = denoise_tv(disc[None], 4.0, rounds=500)[0]
    assert denoised[60, 63] == pytest.approx(1.0 - 2 * 4.0 / 40, abs=0.02)


def test_each_image_has_its_own_weight(rng):
    images = rng.random((3, 12, 15), dtype=np.float32)
    before = images.copy()
    weights = np.array([0.0, 0.05, 0.5])
    together = denoise_tv(images, weights)
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(together[0], images[0])
    for index in (1, 2):
        np.testing.assert_allclose(
            together[index], denoise_tv(images[index : index + 1], float(weights[index]))[0], atol=1e-6
        )


def test_constants_and_edges_stay_in_space_and_spectrum():
    cube = np.full((5, 14, 18), 0.2, dtype=np.float32)
    assert np.abs(denoise_tv(cube, 0.1) - cube).max() < 1e-6
    np.testing.assert_allclose(denoise_tv_3d(cube, np.full(5, 0.05)), cube, atol=1e-5)
    cube[:, :, 9:] = 0.9
    for denoised in (denoise_tv(cube, 0.02), denoise_tv_3d(cube, np.full(5, 0.01))):
        assert np.abs(denoised - cube).max() < 0.02
        assert (denoised[:, :, 9] - denoised[:, :, 8]).min() > 0.65


def energy(x, noisy, sigma, in_space, in_spectrum, sparse):
    """The objective as the docstring states it, the sparse part at its best."""
    unit = np.median(sigma)
    off = np.abs(noisy - x) / sigma[:, None, None]
    misfit = np.where(off <= sparse, off**2 / 2, sparse * off - sparse**2 / 2).sum()
    down, across = np.zeros_like(x), np.zeros_like(x)
    down[:, :-1], across[:, :, :-1] = np.diff(x, axis=1), np.diff(x, axis=2)
    space = np.sqrt(down**2 + across**2).sum()
    return misfit + (in_space * space + in_spectrum * np.abs(np.diff(x, axis=0)).sum()) / unit


@pytest.mark.parametrize("weights", [(0.3, 0.9, 1.5), (0.8, 0.0, 3.0), (0.0, 0.5, 1.0)])
def test_the_3d_iteration_goes_to_the_minimum_of_its_objective(weights, rng):
    in_space, in_spectrum, sparse = weights
    sigma = np.array([0.05, 0.1, 0.2, 0.1])
    noisy = (0.5 + rng.normal(size=(4, 9, 11)) * sigma[:, None, None]).astype(np.float32)
    options = {"in_space": in_space, "in_spectrum": in_spectrum, "sparse": sparse}
    best = denoise_tv_3d(noisy, sigma, **options, rounds=1000).astype(np.float64)
    least = energy(best, noisy, sigma, *weights)
    soon = denoise_tv_3d(noisy, sigma, **options).astype(np.float64)
    assert least <= energy(soon, noisy, sigma, *weights) * (1 + 1e-6) <= least * 1.03
    for scale in (1e-2, 1e-3):
        for _ in range(10):
            assert least <= energy(best + scale * rng.normal(size=best.shape), noisy, sigma, *weights) + 1e-6
        assert least <= energy(best + scale, noisy, sigma, *weights) + 1e-3


def test_the_3d_version_takes_impulses_and_a_dead_column_for_sparse(structured_cube, rng):
    noisy = structured_cube + rng.normal(0.0, 0.03, structured_cube.shape).astype(np.float32)
    noisy[12, :, 20] = 0.0
    impulses = rng.random(noisy[5].shape) < 0.1
    noisy[5][impulses] = 1.0
    before = noisy.copy()
    denoised = denoise_tv_3d(noisy, np.full(31, 0.03))
    np.testing.assert_array_equal(noisy, before)
    error = np.abs(denoised - structured_cube)
    assert error[12, :, 20].mean() < 0.25 * structured_cube[12, :, 20].mean()
    assert error[5][impulses].mean() < 0.05


def test_impossible_options_are_refused():
    cube = np.zeros((2, 4, 5), dtype=np.float32)
    refused = (ValueError, jaxtyping.TypeCheckError)
    for weight, rounds in ((-0.1, 60), (0.1, 0)):
        with pytest.raises(ValueError, match="total variation"):
            denoise_tv(cube, weight, rounds=rounds)
    for options in ({"sparse": 0.0}, {"in_space": -1.0}, {"in_spectrum": -1.0}, {"rounds": 0}):
        with pytest.raises(refused, match="total variation"):
            denoise_tv_3d(cube, np.ones(2), **options)
    with pytest.raises(ValueError, match="total variation"):
        denoise_tv_3d(cube, np.array([0.1, 0.0]))


def test_a_constant_comes_back_and_nearly_all_noise_goes(rng):
    np.testing.assert_allclose(denoise_dct(np.full((2, 9, 12), 7.0, dtype=np.float32)), 7.0, rtol=1e-5)
    noise = rng.normal(size=(1, 70, 90)).astype(np.float32)
    assert denoise_dct(noise).std() < 0.15


def test_strong_structure_comes_back_nearly_whole():
    rows, columns = np.mgrid[:40, :52]
    image = (1000.0 * ((rows // 10 + columns // 13) % 2)).astype(np.float32)[None]
    assert np.abs(denoise_dct(image) - image).max() < 5.0


def test_images_do_not_know_of_each_other_and_order_does_not_matter(rng):
    images = rng.normal(size=(3, 17, 23)).astype(np.float32) * 3
    before = images.copy()
    together = denoise_dct(images)
    np.testing.assert_array_equal(together[::-1], denoise_dct(images[::-1]))
    np.testing.assert_array_equal(images, before)


def test_a_transposed_image_is_denoised_alike(rng):
    image = rng.normal(size=(1, 17, 23)).astype(np.float32) * 3
    np.testing.assert_allclose(denoise_dct(image.transpose(0, 2, 1)), denoise_dct(image).transpose(0, 2, 1), atol=2e-3)


@pytest.mark.parametrize("size", [(2, 2), (1, 5), (7, 3)])
def test_images_smaller_than_a_block(size, rng):
    image = rng.normal(5.0, 1.0, (1, *size)).astype(np.float32)
    denoised = denoise_dct(image)
    assert denoised.shape == image.shape
    assert np.abs(denoised - 5.0).max() < 3.0


def test_it_beats_total_variation_on_a_real_band(real_crop, rng):
    clean = real_crop[20]
    noisy = (clean + rng.normal(0.0, 0.1, clean.shape)).astype(np.float32)
    ours = np.mean((denoise_dct(noisy[None] / np.float32(0.1))[0] * 0.1 - clean) ** 2)
    total_variation = min(np.mean((denoise_tv_chambolle(noisy, weight) - clean) ** 2) for weight in (0.05, 0.1, 0.15))
    assert ours < total_variation
