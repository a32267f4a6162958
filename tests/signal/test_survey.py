import numpy as np
import pytest
import scipy.io
from conftest import SAMPLE

from hsidenoise.classical.methods import run_baseline
from hsidenoise.noise.cases import Columns, Impulses, corrupt
from hsidenoise.signal.survey import absorption_contrast, residual_check, survey


@pytest.fixture(scope="module")
def made():
    """Clean cube (bands 31, height 80, width 96) in [0, 1]: four materials, mixed smoothly, under smooth shading."""
    rows, columns = np.mgrid[:80, :96]
    bands = np.arange(31)[:, None]
    spectra = 0.5 + 0.3 * np.sin(bands / (5.0, 9.0, 13.0, 4.0) + (0.0, 1.0, 2.0, 3.0))
    share = np.exp(2 * np.stack([np.sin(rows / (7 + k)) * np.cos(columns / (11 - k)) for k in range(4)]))
    cube = np.tensordot(spectra, share / share.sum(0), 1) * (0.7 + 0.3 * np.sin(rows / 20))
    return ((cube - cube.min()) / np.ptp(cube)).astype(np.float32)


@pytest.mark.parametrize("bands", [[20], [3, 15, 28], [2, 6, 10, 14, 18, 22, 26, 30]])
def test_noise_that_grows_with_the_signal_is_found_in_few_bands(bands):
    stored = scipy.io.loadmat(SAMPLE)["cube"][20:, 20:].transpose(2, 0, 1)[bands].astype(np.float64)
    clean = (stored - stored.min()) / np.ptp(stored)
    level = 0.1 * np.sqrt(clean + 0.002)
    found = survey(clean + np.random.default_rng(0).normal(0, 1, clean.shape) * level).sigma
    ratio = found / np.sqrt(np.square(level).mean((1, 2)))  # 0.24 to 0.5 where the flattest parts say it all
    assert ratio.min() > 0.6
    assert ratio.max() < 1.1


@pytest.mark.parametrize("sigma", [1, 5, 50])
@pytest.mark.parametrize("beside", ["nothing", "stripes", "impulses"])
def test_noise_level_within_ten_percent(made, sigma, beside):
    rng = np.random.default_rng(sigma)
    noisy = made + rng.normal(0, sigma / 255, made.shape).astype(np.float32)
    hit = np.arange(0, 31, 3)
    if beside == "stripes":
        Columns(0.05, 0.15, 0.25).hit(noisy, hit, rng)
    if beside == "impulses":
        Impulses((0.05, 0.1)).hit(noisy, hit, rng)
    found = survey(1000 + 4000 * noisy)
    assert np.abs(found.sigma / 4000 * 255 / sigma - 1).max() < 0.1
    others = np.setdiff1d(np.arange(31), hit)
    if beside == "stripes" and sigma < 50:
        assert found.stripes_columns[hit].min() > 0
    assert sigma == 1 or np.median(found.stripes_columns[others]) <= 1  # what is left of stripes is above such a noise
    if beside == "impulses" and sigma < 50:
        assert found.impulses[hit] == pytest.approx(0.075, abs=0.05)
    assert beside == "stripes" or found.impulses[others].max() < 0.01


@pytest.mark.parametrize("sigma", [1, 20])
def test_noise_level_of_the_sample(sigma):
    stored = scipy.io.loadmat(SAMPLE)["cube"].transpose(2, 0, 1).astype(np.float64)
    clean = (stored - stored.min()) / np.ptp(stored)
    noisy = clean + np.random.default_rng(0).normal(0, sigma / 255, clean.shape)
    own = 0.2  # it has a noise of its own, by the details of it
    assert np.abs(survey(noisy).sigma * 255 / np.hypot(sigma, own) - 1).max() < 0.1


def test_dead_lines_and_what_is_masked(real_crop):
    noisy = corrupt(real_crop, "gaussian-5").noisy
    noisy[3, :, 7:9], noisy[5, 11] = 0, 1
    mask = np.ones(noisy.shape[1:], bool)
    mask[:12, :12] = False
    plain = survey(noisy)
    assert (plain.dead_columns[3], plain.dead_rows[5], plain.dead_columns.sum(), plain.dead_rows.sum()) == (2, 1, 2, 1)
    noisy[:, :12, :12] = np.nan
    found = survey(noisy, mask)
    assert np.abs(found.sigma / plain.sigma - 1).max() < 0.1


@pytest.mark.parametrize("case", ["gaussian-5", "gaussian-50", "non-iid"])
def test_noise_raises_no_alarm(real_crop, case):
    noisy = corrupt(real_crop, case).noisy
    found = residual_check(noisy, run_baseline("planes", noisy))
    assert not found.structured.any()
    assert np.abs(found.whiteness).max() < 0.15
    assert np.abs(found.eaten).max() < 0.4
    assert (found.after < 0.5 * found.before).all()


def test_signal_that_was_eaten_raises_one(real_crop):
    noisy = corrupt(real_crop, "gaussian-5").noisy
    denoised = run_baseline("planes", noisy)
    blurred = denoised.copy()
    blurred[4] = denoised[4].mean()  # all of the scene is gone from one band
    blurred[9, 10:40, 20:50] -= 0.02
    found = residual_check(noisy, blurred)
    assert np.flatnonzero(found.structured).tolist() == [4, 9]


def test_contrast_is_that_of_the_formula():
    rng = np.random.default_rng(0)
    spectra = 10 + rng.normal(0, 0.5, (5, 4000))
    dips = 0.1 * np.exp(-0.5 * (np.subtract.outer(np.arange(5), np.arange(5)) / (3 / 2.355)) ** 2)
    wanted = np.linalg.norm(dips / 0.5, axis=0).mean()
    assert absorption_contrast(spectra) == pytest.approx(wanted, rel=0.05)
    assert absorption_contrast(spectra, np.full(5, 0.5)) == pytest.approx(wanted / 2**0.5, rel=0.05)
    assert absorption_contrast(spectra[:2]) == 0
