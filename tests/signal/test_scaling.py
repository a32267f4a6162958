import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsidenoise.noise.cases import corrupt
from hsidenoise.signal.scaling import NORMALIZE_MODES, Scaling, fit_scaling, to_unit_range


def scene(rng: np.random.Generator, shape: tuple[int, int, int] = (9, 40, 30)) -> np.ndarray:
    """A spectrally smooth cube on [0, 1], skewed to the dark as real ones are."""
    bands, height, width = shape
    abundance = rng.random((3, height, width)) ** 2
    spectra = np.sin(np.linspace(0, 3, bands)[:, None] + np.arange(3)) ** 2
    cube = np.einsum("bk,khw->bhw", spectra, abundance)
    return (cube - cube.min()) / (cube.max() - cube.min())


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("case", ["gaussian-5", "gaussian-30", "gaussian-50", "gaussian-70", "non-iid", "stripe"])
@pytest.mark.parametrize(("low", "width"), [(0, 1), (0, 2.1), (955, 8000), (-1, 2), (0, 1e-3)])
def test_auto_finds_the_range_of_the_clean_cube_whatever_the_noise_and_the_unit(real_crop, case, low, width):
    noisy = low + width * corrupt(real_crop, case, seed=0).noisy.astype(np.float64)
    scaling = fit_scaling(noisy)
    assert (scaling.offset - low) / width == pytest.approx(0, abs=0.05)
    assert 0.6 < scaling.scale / width < 1.1  # a thousandth of this cube's values is above 0.85


@pytest.mark.parametrize("case", ["impulse", "mixture"])
def test_impulses_say_what_the_range_is_in_counts_too(real_crop, case):
    noisy = corrupt(real_crop, case, seed=0).noisy
    for low, width, dtype in ((0, 1, np.float32), (1000, 8000, np.int16), (-1e6, 3, np.float64)):
        values = low + width * noisy.astype(np.float64)
        scaling = fit_scaling((np.rint(values) if dtype == np.int16 else values).astype(dtype))
        assert (scaling.offset, scaling.scale) == pytest.approx((low, width))


def test_range_and_its_double_are_scaled_alike(rng):
    noisy = scene(rng) + rng.normal(0, 0.05, (9, 40, 30))
    one, more = fit_scaling(2.0 * noisy), fit_scaling(2.1 * noisy)
    assert one.mode == more.mode == "auto"
    assert more.scale / one.scale == pytest.approx(1.05)


def test_hot_pixels_marks_and_bands_of_noise_set_no_range(rng):
    cube = 1000 + 3000 * scene(rng, (30, 48, 42)) + rng.normal(0, 30, (30, 48, 42))
    plain = fit_scaling(cube)
    bad = cube.copy()
    bad[:, :, :9], bad[20:22], bad[:, 7, 11], bad[2, 3, 5] = -9999, -9999, 1e6, -3e7
    scaling = fit_scaling(bad)
    assert scaling.offset == pytest.approx(plain.offset, abs=0.03 * plain.scale)
    assert scaling.scale == pytest.approx(plain.scale, rel=0.3)
    assert np.array_equal(scaling.hides(bad), bad != cube)
    bad = cube.copy()
    bad[10:12] = rng.normal(0, [[[1e4]], [[3e5]]], (2, 48, 42))
    scaling = fit_scaling(bad)
    assert scaling.offset == pytest.approx(plain.offset, abs=0.03 * plain.scale)
    assert scaling.scale == pytest.approx(plain.scale, rel=0.1)
    assert scaling.lost == (10, 11)
    assert "; bands 10-11 are noise alone" in scaling.reason


@pytest.mark.parametrize("shape", [(10, 14, 26), (10, 27, 14), (23, 11, 35)])
def test_no_band_drowns_others_that_are_noise_as_well(shape):
    noisy = np.random.default_rng(0).normal(0.5, 0.3, shape).astype(np.float32)
    assert fit_scaling(noisy, "auto").lost == ()


def test_scaling_is_one_for_the_whole_cube(rng):
    cube = 500 + 4000 * scene(rng)
    cube[3] *= 7
    scaled = fit_scaling(cube).apply(cube).astype(np.float64)
    # spectra may be stretched and shifted as a whole, never bent: all differences keep their ratios
    ratio = np.diff(scaled, axis=0) / np.diff(cube, axis=0)
    assert np.ptp(ratio) / ratio.mean() < 0.02


def test_minmax_spans_exactly_zero_to_one(rng):
    cube = 37 + 900 * scene(rng)
    scaled = fit_scaling(cube, "minmax").apply(cube)
    assert (scaled.min(), scaled.max()) == (0, 1)


def test_none_copies(rng):
    cube = scene(rng).astype(np.float32)
    scaled = fit_scaling(cube, "none").apply(cube)
    assert np.array_equal(scaled, cube)
    assert not np.shares_memory(scaled, cube)


@given(
    exponent=st.floats(-6, 9),
    shift=st.floats(-100, 100),
    outlier=st.floats(-50, 50),
    mode=st.sampled_from(NORMALIZE_MODES),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_invert_undoes_apply_to_rounding(exponent, shift, outlier, mode, seed):
    rng = np.random.default_rng(seed)
    cube = ((rng.random((3, 5, 7)) + shift) * 10**exponent).astype(np.float32)
    cube[0, 0, 0] *= outlier
    scaling = fit_scaling(cube, mode)
    before = cube.copy()
    back = scaling.invert(scaling.apply(cube))
    assert np.array_equal(cube, before)
    seen = ~scaling.hides(cube)
    bound = 2.0**-23 * np.maximum(np.abs(cube), np.abs(cube - scaling.offset)) + np.finfo(np.float32).tiny
    assert (np.abs(back.astype(np.float64) - cube) <= bound)[seen].all()


def test_nearly_empty_cube_falls_back_to_minmax():
    cube = np.zeros((5, 40, 60), dtype=np.float32)
    cube[2, 3, 4] = 80
    scaling = fit_scaling(cube)
    assert (scaling.mode, scaling.scale) == ("auto", 80)
    assert not scaling.hides(cube).any()


def test_half_precision_and_big_endian_are_read_right(rng):
    cube = scene(rng) * 200
    wanted = fit_scaling(cube)
    assert fit_scaling(cube.astype(np.float16)).scale == pytest.approx(wanted.scale, rel=1e-3)
    swapped = cube.astype(">f4")
    assert fit_scaling(swapped).scale == pytest.approx(wanted.scale, rel=1e-6)
    assert np.allclose(wanted.apply(swapped), wanted.apply(cube), atol=1e-6)
    assert wanted.apply(swapped).dtype == np.float32


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_with_their_place(rng, value):
    cube = scene(rng)
    cube[2, 30, 7] = cube[6, 1, 1] = value
    with pytest.raises(ValueError, match=r"NaN or infinite values: 2 of .*, the first in band 2, row 30, column 7"):
        fit_scaling(cube)


@pytest.mark.parametrize("mode", NORMALIZE_MODES)
def test_constant_cube_is_refused(mode):
    with pytest.raises(ValueError, match="every value of the cube is 7"):
        fit_scaling(np.full((2, 3, 4), 7, dtype=np.uint8), mode)


def test_other_bad_input_is_refused(rng):
    with pytest.raises(ValueError, match="unknown normalisation 'max'; choose one of auto, none"):
        fit_scaling(scene(rng), "max")
    with pytest.raises(ValueError, match="empty"):
        fit_scaling(np.zeros((0, 3, 4)))
    with pytest.raises(ValueError, match="single precision"):
        fit_scaling(scene(rng) * 1e40)


def test_messages_are_one_line(rng):
    for mode in NORMALIZE_MODES:
        reason = fit_scaling(500 * scene(rng), mode).reason
        assert reason
        assert "\n" not in reason
    low, high = re.search(r"\(([\d.]+), ([\d.]+)\)", fit_scaling(1e9 + scene(rng)).reason).groups()
    assert float(high) - float(low) > 0.1


def test_scaling_formula():
    scaling = Scaling("minmax", offset=10, scale=4, reason="")
    assert scaling.apply(np.array([[[10, 12, 16]]])).tolist() == [[[0, 0.5, 1.5]]]
    assert scaling.invert(np.array([[[0, 0.5, 1.5]]])).tolist() == [[[10, 12, 16]]]
    scaling = Scaling("minmax", offset=1e-310, scale=4e-310, reason="")
    assert scaling.apply(np.array([[[1e-310, 3e-310, 5e-310]]])).tolist() == [[[0, 0.5, 1]]]


def test_clean_cube_of_a_large_offset_keeps_its_digits(rng):
    clean = scene(rng)
    assert np.abs(to_unit_range(1e6 + clean)[0] - to_unit_range(clean)[0]).max() < 1e-6
