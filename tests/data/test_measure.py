import json
import warnings

import numpy as np
import pytest

from hsidenoise.cli.main import main
from hsidenoise.data.facts import describe, residual_of
from hsidenoise.data.io import Cube, write_arrays
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


def test_a_band_without_data_and_any_unit_are_looked_at_too(rng):
    clean = 1 + np.linspace(1, 2, 5)[:, None, None] * rng.random((40, 50)).cumsum(1)
    noisy = clean + rng.normal(0, 0.3, clean.shape)
    plain = residual_of(Cube(noisy), Cube(clean))
    holed = [np.insert(values, 2, np.nan, axis=0) for values in (noisy, clean)]
    mask = np.isfinite(holed[0])
    found = residual_of(Cube(holed[0], mask=mask), Cube(holed[1]))
    for name in ("removed", "whiteness", "eaten", "structure"):
        assert found[name].pop(2) is None
        assert found[name] == plain[name]
    assert found["contrast"] == plain["contrast"]
    for unit in (1e-200, 1e200):
        scaled = residual_of(Cube(noisy * unit), Cube(clean * unit))
        assert scaled["noise_before"]["median"] == pytest.approx(plain["noise_before"]["median"] * unit, rel=1e-4)
        assert scaled["noise_after"]["median"] == pytest.approx(plain["noise_after"]["median"] * unit, rel=1e-2)
        assert scaled["whiteness"] == pytest.approx(plain["whiteness"], rel=1e-3)


@pytest.mark.filterwarnings("ignore:NaN in band 3; left out")
def test_a_cube_with_a_band_of_nan_is_denoised_and_recorded(tmp_path, structured_cube, rng):
    noisy = structured_cube.astype(np.float64) + rng.normal(0, 0.05, structured_cube.shape)
    noisy[3] = np.nan
    write_arrays(tmp_path / "a.mat", {"cube": noisy.transpose(1, 2, 0)})
    assert main(["denoise", str(tmp_path / "a.mat"), "--method", "planes", "-o", str(tmp_path / "b.npz")]) == 0
    with np.load(tmp_path / "b.npz") as file:
        assert np.isnan(file["cube"][..., 3]).all()
        record = json.loads(str(file["hsidenoise"]))
    assert record["reading"]["bad_bands"] == "auto"
    assert record["residual"]["noise_before"]["median"] == pytest.approx(0.05, rel=0.2)


def test_a_cube_with_gaps_is_described_by_what_it_has(structured_cube, rng):
    """Of a band without data, a border, gaps at random, and two detectors side by side with no pixel in common."""
    noisy = structured_cube.astype(np.float64) + rng.normal(0, 0.05, structured_cube.shape)
    noisy[7] = rng.normal(0.5, 0.3, noisy[7].shape)
    bands, _, width = noisy.shape
    holes = np.zeros((4, *noisy.shape), bool)
    holes[0, 3] = holes[1, :, :5] = True
    holes[2] = rng.random(noisy.shape) < 0.2
    holes[3, : bands // 3, :, : width // 2] = holes[3, bands // 3 :, :, width // 2 :] = True
    for hole, marks in (
        (holes[0], (np.nan, -9999)),
        (holes[1], (-9999,)),
        (holes[2], (np.nan,)),
        (holes[3], (np.nan,)),
    ):
        for mark in marks:
            cube = np.where(hole, mark, noisy)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "50% of the values are missing")
                facts = describe(Cube(cube, mask=find_mask(cube).valid))
            noise = json.loads(json.dumps(facts, allow_nan=False))["noise"]
            assert facts["range"] == [noisy[~hole].min(), noisy[~hole].max()]
            assert noise["median"] == pytest.approx(0.05, rel=0.15)
            assert facts["bad_bands"] == [7]
            assert noise["worst_band"] == 7 or hole.mean() == 0.5  # too much is filled to tell how strong it is
            assert (noise["per_band"][3] is None) == hole[3].all() == (3 not in noise["ranked"])
    few = np.where(rng.random(noisy.shape) < 0.99, np.nan, noisy)
    with (
        pytest.warns(UserWarning, match="noise and defects are rough"),
        pytest.warns(UserWarning, match="only .* values"),
    ):
        describe(Cube(few))


def test_bands_that_the_user_calls_bad_are_not_scored(tmp_path, structured_cube):
    spoilt = structured_cube.copy()
    spoilt[3] += 0.5
    write_arrays(tmp_path / "c.mat", {"cube": structured_cube.transpose(1, 2, 0)})
    write_arrays(tmp_path / "d.mat", {"cube": spoilt.transpose(1, 2, 0)})
    done = evaluate_files(tmp_path / "d.mat", tmp_path / "c.mat", reading=ReadOptions(bad_bands="3"))
    assert done.bands_left_out == (3,)
    assert done.scores.ergas == 0


def test_the_residual_of_a_cube_with_gaps_is_that_of_all_its_pixels(structured_cube, rng):
    noisy = structured_cube + rng.normal(0, 0.05, structured_cube.shape)
    valid = rng.random(noisy.shape) > 0.2
    assert valid.all(axis=0).sum() < 10
    holed, clean = (np.where(valid, cube, np.nan) for cube in (noisy, structured_cube))
    found = residual_of(Cube(holed, mask=valid), Cube(clean))
    assert found["noise_before"]["median"] == pytest.approx(0.05, rel=0.1)
    assert np.median(found["removed"]) == pytest.approx(0.05, rel=0.1)
    assert found["structured"] == []
