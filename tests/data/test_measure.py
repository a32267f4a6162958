import numpy as np
import pytest

from hsidenoise.data.io import write_arrays
from hsidenoise.data.measure import evaluate_files, scorable
from hsidenoise.data.options import ReadOptions
from hsidenoise.metrics.functional import evaluate
from hsidenoise.signal.mask import find_mask


def test_what_holds_no_truth_is_left_out_of_a_score(real_crop):
    scene = real_crop.astype(np.float64)
    denoised, clean = scene + 0.01, scene.copy()
    denoised[:, :6] = clean[:, :6] = -9999
    clean[4, 20, 20] = np.nan
    clean[:, 30, 30] = -9999
    denoised[3, 40, 40:43] = -9999
    denoised[7, 41, 9] = np.inf
    masks = find_mask(denoised).valid, find_mask(clean).valid
    left = scorable(denoised, clean, *masks)
    assert left.bands.all()
    wanted = np.ones(scene.shape, dtype=bool)
    wanted[:, :6] = wanted[4, 20, 20] = wanted[:, 30, 30] = wanted[7, 41, 9] = False
    assert np.array_equal(left.valid, wanted)
    assert np.array_equal(left.pixels, wanted.any(axis=0))
    some = "pixels hold data in some bands only, and are scored in these"
    alone = "3 values seem to be no data in the denoised cube only: scored as they are"
    assert left.reasons == (alone, f"2 {some}")
    wanted[3, 40, 40:43] = False
    left = scorable(denoised, clean, *masks, asked=True)
    assert np.array_equal(left.valid, wanted)
    assert left.reasons == (f"5 {some}",)
    with pytest.raises(ValueError, match="no pixel holds data in both cubes"):
        scorable(np.full_like(scene, np.nan), scene)


def test_a_band_is_scored_on_all_that_it_has(tmp_path, rng):
    """One value in a hundred is lost somewhere: few pixels have all 300 bands, all bands most pixels."""
    clean = rng.random((24, 26, 300))
    denoised = clean + rng.normal(0, 0.1, clean.shape)
    whole = evaluate(denoised.transpose(2, 0, 1), clean.transpose(2, 0, 1))
    clean[rng.random(clean.shape) < 0.01] = np.nan
    assert np.isfinite(clean).all(axis=2).mean() < 0.1
    write_arrays(tmp_path / "c.mat", {"cube": clean})
    write_arrays(tmp_path / "d.mat", {"cube": denoised})
    done = evaluate_files(tmp_path / "d.mat", tmp_path / "c.mat")
    assert (done.pixels_scored, done.bands_left_out) == (24 * 26, ())
    for name in ("psnr", "ssim", "sam", "ergas"):
        assert getattr(done.scores, name) == pytest.approx(getattr(whole, name), rel=0.02)


def test_bands_that_the_user_calls_bad_are_not_scored(tmp_path, structured_cube):
    spoilt = structured_cube.copy()
    spoilt[3] += 0.5
    write_arrays(tmp_path / "c.mat", {"cube": structured_cube.transpose(1, 2, 0)})
    write_arrays(tmp_path / "d.mat", {"cube": spoilt.transpose(1, 2, 0)})
    done = evaluate_files(tmp_path / "d.mat", tmp_path / "c.mat", reading=ReadOptions(bad_bands="3"))
    assert done.bands_left_out == (3,)
    assert done.scores.ergas == 0
