import numpy as np
import pytest
from skimage.restoration import denoise_tv_chambolle

from hsidenoise.classical.sliding_dct import denoise_dct


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
