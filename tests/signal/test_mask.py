import numpy as np
import pytest
import torch
from scipy.ndimage import rotate

from hsidenoise.noise.cases import corrupt
from hsidenoise.signal.mask import find_extremes, find_mask, parse_bands, spans
from hsidenoise.signal.planes.estimate import denoise_by_planes


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


def test_every_kind_of_no_data_is_left_out_and_said(scene):
    cube, wanted = scene.copy(), np.ones(scene.shape, dtype=bool)
    given = np.ones(scene.shape[1:], dtype=bool)
    for where, value in (
        (np.s_[:, :3], 5.0),
        (np.s_[:, 40:, :9], 0.25),
        (np.s_[4, 20:30], np.nan),
        (np.s_[5, 20, 20:23], -np.inf),
        (np.s_[:, :, 60:], -9999),
        (np.s_[7, 10, 10], 3e8),
        (np.s_[13:15], cube[13:15]),
    ):
        cube[where], wanted[where] = value, False
    given[:3] = False
    good = np.arange(31) // 2 != 7
    good[13] = False
    good[15] = True
    found = find_mask(cube, nodata=0.25, given=given, good_bands=good)
    assert np.array_equal(found.valid, wanted)
    assert found.reasons == (
        "not in the given mask: 192 pixels of bands 0-30",
        "0.25, the nodata value, in 72 pixels of bands 0-30",
        "bad by the header: bands 13-14",
        "NaN in 600 pixels of band 4",
        "infinite values in 3 pixels of band 5",
        "-9999 in 180 pixels of bands 0-12, 15-30: no measurement, it seems",
        "3e+08 in 1 pixel of band 7: no measurement, it seems",
    )
    assert found.asked == 2
    assert np.array_equal(find_mask(cube, bad_bands=[13, 14], nodata=0.25, given=given).valid, wanted)
    assert find_mask(scene) == (None, (), 0)


@pytest.mark.parametrize("value", [-3.4e38, 3.4028235e38, 9.96921e36, 1e20])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_nodata_value_is_found_however_it_was_rounded(scene, value, dtype):
    cube = scene.astype(dtype)
    cube[:, 5:9] = np.sign(value) * np.finfo(np.float32).max if abs(value) > 3e38 else dtype(value)
    for nodata in (value, None):
        assert np.array_equal(find_mask(cube, nodata=nodata).valid, np.abs(cube) < 1e10)


@pytest.mark.parametrize("angle", [2, 20, 45])
@pytest.mark.parametrize(("scale", "dtype"), [(1, np.float32), (1e4, np.int16), (200, np.uint8)])
@pytest.mark.parametrize("bands", [3, 31])
def test_the_zeros_around_a_rotated_flight_line_are_no_data(scene, angle, scale, dtype, bands):
    cube = np.round((0.05 + 0.9 * scene[:bands]) * scale, 0 if scale > 1 else 9).astype(dtype)
    rows, columns = np.mgrid[:48, :64]
    turn = np.exp(1j * np.deg2rad(angle)) * ((columns - 31.5) + 1j * (rows - 23.5))
    inside = (np.abs(turn.real) < 30) & (np.abs(turn.imag) < 22)
    cube[:, ~inside] = 0
    found = find_mask(cube)
    assert np.array_equal(found.valid, np.broadcast_to(inside, cube.shape))
    assert found.reasons == (f"0 in all bands of {(~inside).sum()} pixels: no data, it seems",)


def turned(shape, angle=20):
    """Outside of a rotated flight line."""
    height, width = shape
    rows, columns = np.mgrid[:height, :width]
    turn = np.exp(1j * np.deg2rad(angle)) * ((columns - width / 2 + 0.5) + 1j * (rows - height / 2 + 0.5))
    return (np.abs(turn.real) > 0.47 * width) | (np.abs(turn.imag) > 0.46 * height)


@pytest.mark.parametrize("where", ["turned", "most", "scattered", "all but a line"])
@pytest.mark.parametrize(
    ("scale", "offset", "dtype", "mark"),
    [
        (1, 0, "f4", -1),
        (1, 0, "f4", -0.1),
        (1, 0, "f4", -0.9999),
        (1, 0, "f8", 1),
        (1, 2, "f4", 0),
        (1, 0, "f4", 100),
        (1e4, 100, "i2", -1),
        (240, 5, "u1", 255),
        (5e4, 5e3, "u2", 65534),
    ],
)
def test_marks_near_the_scene_are_found_as_one_spectrum_of_many_pixels(scene, rng, where, scale, offset, dtype, mark):
    cube = (scene + rng.normal(0, 0.02, scene.shape)).clip(-1, 1.03) * scale + offset
    cube = (np.rint(cube) if scale > 1 else cube).astype(dtype)
    assert find_mask(cube) == (None, (), 0)
    bad = turned(scene.shape[1:])
    if where == "most":
        bad = ~np.isin(np.arange(64), range(20, 28))[None] | bad
    if where == "scattered":
        bad = rng.random(bad.shape) < 0.3
    if where == "all but a line":
        bad = np.arange(48)[:, None] != np.full(64, 30)
    cube[:, bad] = mark
    found = find_mask(cube)
    assert np.array_equal(found.valid, np.broadcast_to(~bad, cube.shape))
    assert [reason.split(" in ")[0] for reason in found.reasons] == [f"{mark:.6g}"]


def test_marks_of_one_detector_and_of_each_band_are_found(scene, rng):
    """Bands 0-15 have nothing in some columns, the others in other ones; after a calibration each has its own mark."""
    cube = scene + rng.normal(0, 0.02, scene.shape)
    wanted = np.ones(cube.shape, bool)
    wanted[:16, :, :7] = wanted[16:, :, 55:] = False
    for mark in (0, 0.3, 1, np.linspace(0.3, 0.6, 31)[:, None, None]):
        found = find_mask(np.where(wanted, cube, mark))
        assert np.array_equal(found.valid, wanted)
        assert sorted(reason.split(" pixels ")[1].split(":")[0] for reason in found.reasons) == [
            "of bands 0-15",
            "of bands 16-30",
        ]


@pytest.mark.parametrize(("dtype", "scale", "mark"), [("f4", 1, -1), ("u1", 200, 255), ("u2", 5e4, 65534)])
def test_marks_of_few_bands_lie_apart_in_areas(scene, rng, dtype, scale, mark):
    cube = np.tile(scene, (1, 2, 2))[[3, 11, 24]] + rng.normal(0, 0.02, (3, 96, 128))
    cube = (np.rint(cube.clip(0, 1) * scale) if scale > 1 else cube).astype(dtype)
    assert find_mask(cube) == (None, (), 0)
    bad = turned(cube.shape[1:])
    cube[:, bad] = mark
    assert np.array_equal(find_mask(cube).valid, np.broadcast_to(~bad, cube.shape))


@pytest.mark.parametrize("bands", [1, 3, 8, 31])
@pytest.mark.parametrize("noise", [0, 0.02])
def test_what_is_saturated_or_dark_is_data(scene, rng, bands, noise):
    cube = np.tile(scene, (1, 2, 2))[:: 31 // bands][:bands]
    noisy = cube + rng.normal(0, noise, cube.shape)
    for share in (0.03, 0.1):
        low, high = np.quantile(cube, (share, 1 - share))
        for clipped in (np.clip(noisy, None, high), np.clip(noisy, low, high), np.clip(noisy, low, None)):
            for values in (clipped, np.rint(255 * (clipped - low).clip(0) / (high - low)).astype(np.uint8)):
                assert find_mask(values) == (None, (), 0)
    single = np.rint(200 * noisy.clip(0, 1)).astype(np.uint8)
    single[bands // 2] = np.rint(900 * noisy[bands // 2].clip(0, 255 / 900))
    assert find_mask(single) == (None, (), 0)


def test_a_clean_scene_made_up_before_a_flat_background_is_data():
    rows, columns = np.mgrid[:48, :64]
    share = np.stack([np.sin(rows / 5), np.cos(columns / 7), np.sin((rows + columns) / 9)]) + 1.5
    cube = np.tensordot(np.random.default_rng(0).random((31, 3)), share, 1)
    cube[:, (rows > 20) & (rows < 24) & (columns > 30) & (columns < 40)] = 0.0
    for background in (0.0, 0.2, 9.0):
        assert find_mask(np.where(cube == 0, background, cube)) == (None, (), 0)


@pytest.mark.parametrize("bands", [3, 31])
@pytest.mark.parametrize(("mark", "scale"), [(-9999, 1), (-9999, 1e4), (-3.4e38, 1), (-1, 1), (65535, 1)])
def test_pixels_that_were_interpolated_with_a_mark_are_no_data(scene, rng, bands, mark, scale):
    cube = (np.tile(scene, (1, 2, 2))[:bands] + rng.normal(0, 0.02, (bands, 96, 128))) * scale
    bad = turned(cube.shape[1:])
    weight = np.pad(bad, 1, mode="edge").astype(float)
    weight = np.where(bad, 1, (weight[:-2, 1:-1] + weight[2:, 1:-1] + weight[1:-1, :-2] + weight[1:-1, 2:]) / 4)
    blended = np.where(weight > 0, weight * mark + (1 - weight) * cube, cube).astype(np.float32)
    found = find_mask(blended)
    left = found.valid.any(axis=0)
    assert not left[bad].any()
    assert left[weight == 0].all()
    assert left[(weight > 0) & ~bad].mean() < (0.01 if abs(mark) > scale else 0.5)
    # of -3.4e38 float32 leaves nothing of the scene: a spectrum for each share
    assert mark < -1e30 or found.reasons[-1].startswith("a blend with what is no data in all bands of ")


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize(("mark", "scale", "dtype"), [(-9999, 1, "f4"), (-9999, 9000, "i2"), (65535, 9000, "u2")])
@pytest.mark.parametrize("angle", [2, -20])
def test_a_flight_line_that_was_turned_by_interpolation_is_free_of_its_mark(
    scene, rng, order, mark, scale, dtype, angle
):
    cube = (np.tile(scene, (1, 2, 2))[::5] + rng.normal(0, 0.02, (7, 96, 128))) * scale + 300 * (scale > 1)
    lowest, highest = cube.min(), cube.max()
    around = np.pad(cube, ((0, 0), (20, 20), (20, 20)), constant_values=mark)
    weight = np.pad(np.ones(cube.shape[1:]), 20)
    turned, weight = (
        rotate(each, angle, axes=(-2, -1), order=order, prefilter=False, reshape=False, cval=outside)[
            ..., 12:-28, 9:-31
        ]
        for each, outside in ((around, mark), (weight, 0))
    )
    limits = (-1e9, 1e9) if dtype == "f4" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    turned = (turned if dtype == "f4" else np.rint(turned)).clip(*limits).astype(dtype)
    left = find_mask(turned).valid
    assert left[:, weight > 1 - 1e-9].mean() > 0.99
    strange = left & ((turned < lowest - 0.25 * scale) | (turned > highest + 0.25 * scale))
    assert strange.any(axis=0).sum() <= 15


@pytest.mark.parametrize("bands", [1, 3, 31])
def test_honest_zeros_of_a_dark_scene_are_data(scene, bands, rng):
    cube = scene[:bands]
    noisy = cube + rng.normal(0, 0.02, cube.shape)
    for steps in (0.5, 2, 5, 20):
        dark = [np.round(cube * steps), np.round(noisy.clip(0) * steps), rng.poisson(cube * steps)]
        for counts in dark:
            assert not any("0 in all" in reason for reason in find_mask(counts.astype(np.uint8)).reasons)
    for share in (0.2, 0.5, 0.8):
        for values in (cube, noisy):
            reasons = find_mask((values - np.quantile(values, share)).clip(0)).reasons
            assert not any("0 in all" in reason for reason in reasons)


def test_lists_of_bands_are_read_as_they_are_written():
    assert parse_bands(spans([0, 1, 2, 7, 9, 10])) == (0, 1, 2, 7, 9, 10)
    for text in ("", "3-1", "a", "1,,2", "-4", "1-", "0-99999999999"):
        with pytest.raises(ValueError, match="write auto, keep, or numbers from 0"):
            parse_bands(text)


def test_masks_that_do_not_fit_are_refused(scene):
    for given in (np.ones((3, 4)), np.ones(30), np.ones((31, 48, 63))):
        with pytest.raises(ValueError, match=r"the mask has shape .* takes one of \(31, 48, 64\), \(48, 64\) or"):
            find_mask(scene, given=given)
    with pytest.raises(ValueError, match="bad band 31: the cube has bands 0 to 30"):
        find_mask(scene, bad_bands="0-2,31")


@pytest.mark.usefixtures("unchecked")
def test_bad_bands_are_whole_numbers(scene):
    for wrong in ([1.5], np.arange(31) == 5, ["3"]):  # True would be taken for 1
        with pytest.raises(ValueError, match=r"bad bands are numbers from 0, such as \[0, 3, 104\], not"):
            find_mask(scene, bad_bands=wrong)


@pytest.mark.parametrize("bands", [1, 3])
def test_salt_and_pepper_far_from_the_scene_is_repaired_and_a_mark_is_not(scene, rng, bands):
    clean = scene[::10][:bands]
    cube = (clean + rng.normal(0, 0.02, clean.shape)).astype(np.float32)
    hit = rng.random(cube.shape) < 0.1
    salt = np.where(hit, 6 * rng.integers(0, 2, cube.shape), cube).astype(np.float32)
    assert find_mask(salt) == (None, (), 0)
    repaired = denoise_by_planes(torch.from_numpy(salt)).denoised.numpy()
    assert np.sqrt(np.square(repaired - clean).mean()) < 0.03
    assert np.array_equal(find_mask(salt, nodata=6).valid, salt != 6)
    for bad in (hit[:1] & hit[-1:], np.isin(np.arange(64), range(20, 28))[None, None]):  # whole pixels, an area
        marked = np.where(bad, np.float32(6), cube)
        assert np.array_equal(find_mask(marked).valid, np.broadcast_to(~bad, cube.shape))
    few = cube.copy()
    few[0, 3:40:9, 3:60:9] = 6
    found = find_mask(few)
    assert np.array_equal(found.valid, few != 6)
    assert found.reasons[0].endswith("(if it is salt or pepper, put the median of its neighbours there first)")
