import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsidenoise.normalize import NORMALIZE_MODES, Scaling, fit_scaling


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


@pytest.mark.parametrize("sigma", [0, 5, 30, 75])
def test_auto_leaves_unit_range_alone_whatever_the_noise(rng, sigma):
    clean = scene(rng)
    noisy = clean + rng.normal(0, sigma / 255, clean.shape)
    scaling = fit_scaling(noisy.astype(np.float32))
    assert (scaling.mode, scaling.offset, scaling.scale) == ("none", 0.0, 1.0)


def test_auto_leaves_unit_range_alone_with_impulses_and_dead_columns(rng):
    noisy = scene(rng) + rng.normal(0, 70 / 255, (9, 40, 30))
    noisy[1:4, :, ::9] = 0
    hit = rng.random((3, 40, 30)) < 0.7
    noisy[5:8][hit] = rng.integers(0, 2, hit.sum())
    assert fit_scaling(noisy).mode == "none"


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [
        (0, 65535, np.uint16),
        (0, 1023, np.uint16),
        (955, 9604, np.uint16),
        (0, 255, np.uint8),
        (-300, 12000, np.int16),
        (0, 10000, np.float32),
        (0, 0.05, np.float32),
        (-1, 1, np.float64),
    ],
)
def test_auto_brings_every_other_range_to_about_unit(rng, low, high, dtype):
    cube = (low + scene(rng) * (high - low)).astype(dtype)
    scaling = fit_scaling(cube)
    assert scaling.mode == "percentile"
    scaled = scaling.apply(cube)
    assert np.percentile(scaled, 0.1) == pytest.approx(0, abs=1e-3)
    assert np.percentile(scaled, 99.9) == pytest.approx(1, abs=1e-3)
    assert "0.1 and 99.9 percentiles" in scaling.reason


def test_hot_and_dead_pixels_set_no_range_and_are_not_clipped(rng):
    cube = 1000 + 3000 * scene(rng)
    plain = fit_scaling(cube)
    cube[4, 7, 11], cube[2, 3, 5] = 65535, 0
    scaling = fit_scaling(cube)
    assert scaling.scale == pytest.approx(plain.scale, rel=0.02)
    scaled = scaling.apply(cube)
    assert scaled[4, 7, 11] > 15
    assert scaled[2, 3, 5] < -0.2


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
    bound = 2.0**-23 * np.maximum(np.abs(cube), np.abs(cube - scaling.offset)) + np.finfo(np.float32).tiny
    assert (np.abs(back.astype(np.float64) - cube) <= bound).all()


def test_nearly_empty_cube_falls_back_to_minmax():
    cube = np.zeros((5, 40, 60), dtype=np.float32)
    cube[2, 3, 4] = 80
    scaling = fit_scaling(cube)
    assert (scaling.mode, scaling.scale) == ("minmax", 80)


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
    with pytest.raises(ValueError, match="2 values that are NaN or infinite, the first at band 2, row 30, column 7"):
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


def test_scaling_formula():
    scaling = Scaling("minmax", offset=10, scale=4, reason="")
    assert scaling.apply(np.array([[[10, 12, 16]]])).tolist() == [[[0, 0.5, 1.5]]]
    assert scaling.invert(np.array([[[0, 0.5, 1.5]]])).tolist() == [[[10, 12, 16]]]
