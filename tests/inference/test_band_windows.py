import numpy as np
import pytest

import hsidenoise.inference.tiles
from hsidenoise.inference.tiles import NOISE_LEFT, join_windows


def cubes(rng, sigma=0.2, left=0.1, *, bands=40, height=36, width=30, materials=3):
    """A clean scene of few materials, the noisy one, and one in which some of the noise is left."""
    clean = rng.random((bands, materials)) @ rng.random((materials, height * width)) / materials
    clean = clean.reshape(bands, height, width)
    noise = rng.normal(0, 1, clean.shape) * np.broadcast_to(sigma, bands)[:, None, None]
    return clean, clean + noise, (clean + left * noise).astype(np.float32)


def error(one, other):
    return float(np.square(one - other).mean())


@pytest.mark.parametrize("sigma", [0.2, np.linspace(0.02, 0.4, 40)], ids=["same", "by band"])
def test_noise_across_many_bands_goes(rng, sigma):
    clean, noisy, denoised = cubes(rng, sigma)
    assert error(join_windows(noisy, denoised), clean) < 0.2 * error(denoised, clean)


def test_the_definition(rng):
    _, noisy, denoised = cubes(rng, bands=6, height=40, width=50)
    sigma = np.sqrt(hsidenoise.inference.tiles._noise_variance(noisy))
    spectra = denoised.reshape(6, -1).astype(np.float64)
    mean = spectra.mean(1, keepdims=True)
    whitened = (spectra - mean) / sigma[:, None]
    energy, planes = np.linalg.eigh(whitened @ whitened.T / 2000)
    kept = np.clip(1 - NOISE_LEFT / energy, 0, 1)
    wanted = mean + sigma[:, None] * (planes @ (kept[:, None] * (planes.T @ whitened)))
    assert join_windows(noisy, denoised) == pytest.approx(wanted.reshape(denoised.shape), abs=1e-6)


def test_noise_levels_are_told(rng):
    sigma = np.linspace(0.02, 0.4, 40)
    clean = cubes(rng, height=30, width=35)[0].repeat(2, axis=1).repeat(2, axis=2)  # no edge inside a detail
    noisy = clean + rng.normal(0, 1, clean.shape) * sigma[:, None, None]
    assert np.sqrt(hsidenoise.inference.tiles._noise_variance(noisy)) == pytest.approx(sigma, rel=0.1)


def test_a_clean_cube_is_hardly_touched(rng):
    clean, _, _ = cubes(rng)
    clean += 0.01 * rng.random(clean.shape)  # details that only one band has
    clean = clean.astype(np.float32)
    assert error(join_windows(clean, clean), clean) < 1e-4 * 0.01**2 / 12 * 10


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("offset", [0.0, 5.0])
def test_the_unit_does_not_matter(rng, unit, offset):
    _, noisy, denoised = cubes(rng, bands=12, height=20, width=30)
    wanted = join_windows(noisy, denoised)
    joined = join_windows((noisy + offset) * unit, ((denoised + offset) * unit).astype(np.float32))
    assert joined / unit - offset == pytest.approx(wanted, abs=2e-5)


def test_arguments_are_left_alone(rng):
    _, noisy, denoised = cubes(rng)
    before = noisy.copy(), denoised.copy()
    join_windows(noisy, denoised)
    assert np.array_equal(noisy, before[0])
    assert np.array_equal(denoised, before[1])


def test_a_few_pixels_of_their_own_stay(rng):
    clean, noisy, denoised = cubes(rng)
    strange = rng.normal(0, 1, 40).astype(np.float32)
    for cube in (noisy, denoised):
        cube[:, 10, 10:13] += strange[:, None]
    joined = join_windows(noisy, denoised)
    assert error(joined[:, 10, 10:13] - clean[:, 10, 10:13], strange[:, None]) < 0.02


def test_too_few_pixels_or_nothing_to_go_by_leaves_it(rng):
    for height, width in ((12, 13), (1, 400), (400, 1)):
        _, noisy, denoised = cubes(rng, height=height, width=width)
        assert np.array_equal(join_windows(noisy, denoised), denoised)
    flat = np.full((5, 20, 30), 3.0, dtype=np.float32)
    assert np.array_equal(join_windows(flat, flat), flat)


def test_dead_and_repeated_bands(rng):
    clean, noisy, denoised = cubes(rng)
    noisy[3] = denoised[3] = 0.5
    noisy[8], denoised[8] = noisy[7], denoised[7]
    joined = join_windows(noisy, denoised)
    assert np.isfinite(joined).all()
    assert joined[3] == pytest.approx(0.5, abs=1e-5)
    others = [band for band in range(40) if band != 3]
    assert error(joined[others], clean[others]) < 0.6 * error(denoised[others], clean[others])


def test_integers(rng):
    _, noisy, denoised = cubes(rng)
    noisy, denoised = np.round(noisy * 1000).astype(np.int16), (denoised * 1000).astype(np.float32)
    assert join_windows(noisy, denoised) == pytest.approx(join_windows(noisy.astype(np.float64), denoised))


@pytest.mark.usefixtures("unchecked")
def test_shapes_must_agree():
    with pytest.raises(ValueError, match="are not the same"):
        join_windows(np.zeros((5, 20, 30)), np.zeros((5, 30, 20), dtype=np.float32))
