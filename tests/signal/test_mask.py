import numpy as np
import pytest

from hsidenoise.noise.cases import corrupt
from hsidenoise.signal.mask import find_extremes, scorable


@pytest.fixture
def scene(real_crop):
    return real_crop.astype(np.float64)


@pytest.mark.parametrize(
    ("scale", "dtype", "value"),
    [
        (1, np.float32, -9999),
        (1, np.float64, 1e20),
        (10000, np.int16, -9999),
        (10000, np.int16, -32768),
        (5000, np.uint16, 65535),
        (1, np.float32, 1e6),
        (1, np.float32, -700),
    ],
)
@pytest.mark.parametrize("where", [np.s_[:, :, :20], np.s_[:, 7, 9], np.s_[11:14], np.s_[:, :30]])
def test_marks_are_found_in_every_shape(scene, scale, dtype, value, where):
    cube = np.round(scene * scale, 0 if scale > 1 else 9).astype(dtype)
    cube[where] = value
    marked = cube == dtype(value)
    extremes = find_extremes(cube)
    assert [(found.lowest, found.highest) for found in extremes.found] == [(dtype(value), dtype(value))]
    assert extremes.found[0].pixels == marked.any(axis=0).sum()
    assert extremes.found[0].bands == tuple(np.flatnonzero(marked.any(axis=(1, 2))))
    assert np.array_equal((cube < extremes.low) | (cube > extremes.high), marked)


@pytest.mark.parametrize("case", ["gaussian-5", "gaussian-70", "deadline", "impulse", "mixture"])
def test_noise_impulses_and_dead_columns_are_no_marks(scene, case):
    noisy = corrupt(scene.astype(np.float32), case, seed=1).noisy
    counts = np.clip(np.rint(noisy * 8000 + 1000), 0, 65535).astype(np.uint16)
    for cube in (noisy, counts, np.clip(noisy, 0, 1), scene, np.zeros((2, 3, 4)), scene > 0.5):
        assert find_extremes(np.asarray(cube, dtype=cube.dtype if cube.dtype != bool else np.uint8)).found == ()


def test_bright_things_that_values_lead_to_are_no_marks(scene):
    cube = scene.copy()
    for step in range(20):  # a lamp forty times as bright as the scene
        cube[:, 4, step] *= 1 + 2 * step
    assert find_extremes(cube).found == ()
    cube[3, 40, 40] = 400
    assert [str(found) for found in find_extremes(cube).found] == ["400 in 1 pixel of band 3"]


def test_both_ends_and_several_values(scene):
    cube = scene.copy()
    cube[2, 3, 4], cube[5, 6, 7], cube[8, 9, 10] = 1e6, 2e6, -500
    low, high = find_extremes(cube).found
    assert (low.lowest, low.highest, low.bands) == (-500, -500, (8,))
    assert (high.lowest, high.highest, high.pixels, high.bands) == (1e6, 2e6, 2, (2, 5))
    cube[:, :20] = -9999
    cube[8, 9, 10] = -3e7
    found = find_extremes(cube).found
    assert [(each.lowest, each.highest) for each in found] == [(-9999, -9999), (-3e7, -3e7), (1e6, 2e6)][: len(found)]


def test_only_what_both_cubes_share_is_left_out_of_a_score(scene):
    denoised, clean = scene + 0.01, scene.copy()
    denoised[:, :6] = clean[:, :6] = -9999
    clean[4, 20, 20] = np.nan
    clean[:, 30, 30] = -9999
    left = scorable(denoised, clean)
    assert left.bands.all()
    wanted = np.ones(scene.shape[1:], dtype=bool)
    wanted[:6] = False
    wanted[20, 20] = False
    assert np.array_equal(left.pixels, wanted)
    assert any(reason.startswith("-9999 in both cubes: 384 pixels, bands 0-30") for reason in left.reasons)
    assert "31 values are -9999 in the clean cube only" in " ".join(left.reasons)
    with pytest.raises(ValueError, match="no pixel holds data in all bands of both cubes: NaN or infinite"):
        scorable(np.full_like(scene, np.nan), scene)
