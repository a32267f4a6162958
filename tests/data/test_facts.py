import json

import numpy as np
import pytest

from hsidenoise.cli.main import main
from hsidenoise.data.facts import describe, residual_of
from hsidenoise.data.io import Cube, write_arrays
from hsidenoise.signal.mask import find_mask


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
        # what seems left is detail of the scene, that of the noise cannot be told from it
        assert scaled["noise_after"]["median"] is plain["noise_after"]["median"] is None
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
            facts = describe(Cube(cube, mask=find_mask(cube).valid))
            noise = json.loads(json.dumps(facts, allow_nan=False))["noise"]
            assert facts["range"] == [noisy[~hole].min(), noisy[~hole].max()]
            assert noise["median"] == pytest.approx(0.05, rel=0.15)
            assert facts["bad_bands"] == [7]
            assert noise["worst_band"] == 7
            if hole is not holes[2]:  # gaps at random are filled by what little others say of them
                known = np.array([level for level in np.delete(noise["per_band"], 7) if level is not None])
                assert np.abs(known / 0.05 - 1).max() < 0.1
            assert (noise["per_band"][3] is None) == hole[3].all() == (3 not in noise["ranked"])
    few = np.where(rng.random(noisy.shape) < 0.99, np.nan, noisy)
    with (
        pytest.warns(UserWarning, match="noise and defects are rough"),
        pytest.warns(UserWarning, match="only .* values"),
    ):
        describe(Cube(few))


def test_the_residual_of_a_cube_with_gaps_is_that_of_all_its_pixels(structured_cube, rng):
    noisy = structured_cube + rng.normal(0, 0.05, structured_cube.shape)
    valid = rng.random(noisy.shape) > 0.2
    assert valid.all(axis=0).sum() < 10
    holed, clean = (np.where(valid, cube, np.nan) for cube in (noisy, structured_cube))
    found = residual_of(Cube(holed, mask=valid), Cube(clean))
    assert found["noise_before"]["median"] == pytest.approx(0.05, rel=0.1)
    assert np.median(found["removed"]) == pytest.approx(0.05, rel=0.1)
    assert found["structured"] == []
