"""Every noise case against its published definition, re-derived here: no constant is taken from the module."""

import dataclasses
import math
from fractions import Fraction

import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsidenoise.noise.cases import NOISE_CASES, Columns, Corruption, Impulses, NoiseCase, SameSigma, corrupt, noise_case

pytestmark = pytest.mark.filterwarnings("ignore:the values of the cube lie in")  # noise is the same anywhere

STRIPED = ("stripe", "mixture", "t3sc-stripes", "mafnet-mixture")
DEAD = ("deadline", "mixture", "mafnet-mixture")
IMPULSIVE = ("impulse", "mixture", "mafnet-mixture")
FIVE_PERCENT, TEN_PERCENT, FIFTEEN_PERCENT = Fraction(5, 100), Fraction(10, 100), Fraction(15, 100)


def flat(bands, height, width, value=0.5):
    return np.full((bands, height, width), value, dtype=np.float32)


def quiet(name):
    """The case without its Gaussian part: what is left is the structured noise, exactly."""
    return dataclasses.replace(noise_case(name), sigma=SameSigma(0, 0))


def hit_columns(result, kind, clean_value=0.5):
    """(band, columns) of each band hit by ``kind``; the case must be a quiet one, the clean cube flat."""
    for band in result.affected[kind]:
        yield band, np.flatnonzero((result.noisy[band] != clean_value).any(axis=0))


@pytest.fixture
def unchecked():
    """As for a user: outside pytest nothing checks annotations before the function's own words are heard."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_the_table_has_every_case_of_the_literature():
    expected = {"gaussian-30", "gaussian-50", "gaussian-70", "blind", "non-iid", "stripe", "deadline", "impulse"}
    expected |= {"mixture", "t3sc-uniform-15", "t3sc-uniform-55", "t3sc-uniform-95", "t3sc-correlated"}
    expected |= {"t3sc-stripes", "mafnet-mixture", "photon", "detector"}
    assert set(NOISE_CASES) == expected
    for name, case in NOISE_CASES.items():
        assert case.name == name
        assert case.definition
        assert "arXiv" in case.source or "doi" in case.source or "MAFNet" in case.source


@pytest.mark.parametrize("name", NOISE_CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.float16])
def test_the_clean_cube_is_left_alone_and_noise_is_float32(name, dtype):
    clean = (np.random.default_rng(0).random((9, 20, 40)) * 3).astype(dtype)
    clean.setflags(write=False)
    before = clean.copy()
    result = corrupt(clean, name, seed=1)
    assert np.array_equal(clean, before)
    assert not np.shares_memory(result.noisy, clean)
    assert result.noisy.dtype == result.sigma.dtype == np.float32
    assert (result.noisy.shape, result.sigma.shape) == (clean.shape, (9,))


@pytest.mark.parametrize("name", NOISE_CASES)
def test_noise_repeats_with_its_seed_and_changes_with_another(name):
    clean = np.random.default_rng(0).random((9, 20, 40), dtype=np.float32)
    first, again, other = (corrupt(clean, name, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.noisy, again.noisy)
    assert np.array_equal(first.sigma, again.sigma)
    assert (first.noisy != other.noisy).mean() > 0.5


def test_a_generator_takes_the_place_of_the_seed_and_moves_on():
    clean = flat(9, 20, 40)
    rng = np.random.default_rng(5)
    first, second = (corrupt(clean, "mixture", rng=rng).noisy for _ in range(2))
    assert np.array_equal(first, corrupt(clean, "mixture", seed=5).noisy)
    assert not np.array_equal(first, second)


def test_the_global_generator_is_neither_used_nor_moved():
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    corrupt(flat(9, 20, 40), "mixture")
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_a_transposed_cube_gets_the_same_noise_as_its_copy():
    pixels_first = np.random.default_rng(0).random((20, 40, 9), dtype=np.float32)
    view = pixels_first.transpose(2, 0, 1)
    assert np.array_equal(corrupt(view, "mixture").noisy, corrupt(view.copy(), "mixture").noisy)


@pytest.mark.parametrize("name", [name for name in NOISE_CASES if name != "t3sc-correlated"])
def test_nothing_is_clipped(name):
    case = noise_case(name)
    assert corrupt(flat(31, 60, 70, 0.95), case).noisy.max() > 1.0
    assert corrupt(flat(31, 60, 70, 0.05), case).noisy.min() < 0.0


@pytest.mark.parametrize("name", NOISE_CASES)
def test_the_gaussian_part_has_the_sigma_that_is_reported(name):
    clean = flat(31, 96, 112)
    result = corrupt(clean, name, seed=3)
    noise = result.noisy - clean
    untouched = np.setdiff1d(np.arange(31), np.concatenate([[-1], *result.affected.values()]))
    pixels = noise[untouched].reshape(len(untouched), -1)
    # five standard errors of a standard deviation and of a mean
    error = 5 / math.sqrt(2 * pixels.shape[1])
    np.testing.assert_allclose(pixels.std(axis=1), result.sigma[untouched], rtol=error)
    assert np.all(np.abs(pixels.mean(axis=1)) < 5 * result.sigma[untouched] / math.sqrt(pixels.shape[1]))
    # Gaussian, not of another shape: the fourth moment of a normal variable is 3 (standard error sqrt(96 / n))
    scaled = pixels[:8] / pixels[:8].std(axis=1, keepdims=True)
    assert abs((scaled**4).mean() - 3) < 5 * math.sqrt(96 / scaled.size)


def test_noise_of_neighbouring_pixels_and_bands_is_independent():
    noise = corrupt(flat(5, 200, 210), "gaussian-50").noisy - 0.5
    for a, b in ((noise[1:], noise[:-1]), (noise[:, 1:], noise[:, :-1]), (noise[:, :, 1:], noise[:, :, :-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / math.sqrt(a.size)


@pytest.mark.parametrize("name", ["stripe", "deadline", "impulse", "mixture"])
def test_complex_cases_are_the_non_iid_case_plus_structure(name):
    """Cases 2-5 start with case 1: bands that are not hit are what case 1 makes of them."""
    clean = np.random.default_rng(0).random((31, 20, 40), dtype=np.float32)
    result, first = corrupt(clean, name, seed=4), corrupt(clean, "non-iid", seed=4)
    hit = np.concatenate(list(result.affected.values()))
    others = np.setdiff1d(np.arange(31), hit)
    assert np.array_equal(result.sigma, first.sigma)
    assert np.array_equal(result.noisy[others], first.noisy[others])
    assert all((result.noisy[band] != first.noisy[band]).any() for band in hit)


@given(
    name=st.sampled_from(sorted(NOISE_CASES)),
    bands=st.integers(1, 12),
    height=st.integers(1, 9),
    width=st.integers(1, 30),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_any_shape_and_seed(name, bands, height, width, seed):
    clean = np.random.default_rng(0).random((bands, height, width), dtype=np.float32)
    before = clean.copy()
    result = corrupt(clean, name, seed=seed)
    assert isinstance(result, Corruption)
    assert result.noisy.shape == clean.shape
    assert np.isfinite(result.noisy).all()
    assert np.array_equal(clean, before)
    assert np.array_equal(result.noisy, corrupt(clean, name, seed=seed).noisy)
    chosen = [int(band) for kind in result.affected.values() for band in kind]
    assert len(chosen) == len(set(chosen))
    assert set(chosen) <= set(range(bands))
    for kind in result.affected.values():
        assert np.array_equal(kind, np.sort(kind))


@pytest.mark.parametrize(("name", "expected"), [("gaussian-30", 18.59), ("gaussian-50", 14.15), ("gaussian-70", 11.23)])
def test_noisy_psnr_is_the_published_one(name, expected):
    clean = flat(31, 120, 130)
    error = np.square(corrupt(clean, name).noisy - clean, dtype=np.float64).mean(axis=(1, 2))
    assert abs((10 * np.log10(1 / error)).mean() - expected) < 0.05


@pytest.mark.parametrize(("name", "sigma"), [("gaussian-30", 30), ("gaussian-50", 50), ("gaussian-70", 70)])
def test_gaussian_sigma_is_the_same_on_every_band(name, sigma):
    np.testing.assert_allclose(corrupt(flat(7, 3, 4), name).sigma, np.full(7, sigma / 255), rtol=1e-6)


def test_blind_draws_one_sigma_per_cube_from_10_to_70():
    drawn = np.array([corrupt(flat(3, 1, 2), "blind", seed=seed).sigma for seed in range(600)]) * 255
    assert np.ptp(drawn, axis=1).max() == 0
    assert drawn.min() >= 10 - 1e-4
    assert drawn.max() <= 70 + 1e-4
    # uniform: the empirical distribution stays within the 99.9 % Kolmogorov band of a straight line
    steps = np.abs(np.sort(drawn[:, 0]) - np.linspace(10, 70, 600)) / 60
    assert steps.max() < 1.95 / math.sqrt(600)


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        *((name, (10, 30, 50, 70)) for name in ("non-iid", "stripe", "deadline", "impulse", "mixture")),
        ("mafnet-mixture", (30, 50, 70)),
    ],
)
def test_non_iid_sigmas_come_from_the_levels_equally_often(name, levels):
    drawn = np.concatenate([corrupt(flat(31, 1, 7), name, seed=seed).sigma for seed in range(60)]) * 255
    values, counts = np.unique(drawn.round(3), return_counts=True)
    assert values.tolist() == list(levels)
    share = 1 / len(levels)
    assert np.all(np.abs(counts / drawn.size - share) < 5 * math.sqrt(share * (1 - share) / drawn.size))


@pytest.mark.parametrize("most", [15, 55, 95])
def test_t3sc_uniform_draws_each_band_from_0_to_its_maximum(most):
    drawn = np.sort(corrupt(flat(1000, 1, 2), f"t3sc-uniform-{most}").sigma) * 255
    assert drawn[0] >= 0
    assert drawn[-1] <= most
    assert np.abs(drawn - np.linspace(0, most, 1000)).max() < most * 1.95 / math.sqrt(1000)


@pytest.mark.parametrize("bands", [1, 2, 31, 191])
def test_t3sc_correlated_sigma_is_the_bump(bands):
    expected = [23.08 * math.exp(-((b / bands - 0.5) ** 2) / (4 * 0.157**2)) / 255 for b in range(bands)]
    np.testing.assert_allclose(corrupt(flat(bands, 2, 3), "t3sc-correlated").sigma, expected, rtol=1e-6)


def test_t3sc_stripes_has_sigma_25_everywhere():
    np.testing.assert_allclose(corrupt(flat(31, 2, 40), "t3sc-stripes").sigma, np.full(31, 25 / 255), rtol=1e-6)


@pytest.mark.parametrize(("bands", "third"), [(1, 0), (2, 0), (3, 1), (10, 3), (30, 10), (31, 10), (33, 11), (191, 63)])
@pytest.mark.parametrize("name", ["stripe", "deadline", "impulse", "mixture", "mafnet-mixture"])
def test_a_third_of_the_bands_rounded_down_is_hit(name, bands, third):
    result = corrupt(flat(bands, 6, 40), quiet(name))
    assert {kind: len(hit) for kind, hit in result.affected.items()} == {
        kind: third
        for kind, names in (("stripe", STRIPED), ("deadline", DEAD), ("impulse", IMPULSIVE))
        if name in names
    }
    changed = np.flatnonzero((result.noisy != 0.5).any(axis=(1, 2)))
    assert np.array_equal(changed, np.sort(np.concatenate(list(result.affected.values()))))


@pytest.mark.parametrize(("bands", "count"), [(2, 0), (3, 0), (4, 1), (31, 10), (100, 33), (191, 63)])
def test_t3sc_stripes_hits_33_percent_of_the_bands(bands, count):
    assert len(corrupt(flat(bands, 2, 40), "t3sc-stripes").affected["stripe"]) == count


def test_the_three_thirds_of_a_mixture_are_disjoint_and_random():
    seen = {kind: set() for kind in ("stripe", "deadline", "impulse")}
    for seed in range(40):
        affected = corrupt(flat(9, 1, 7), "mixture", seed=seed).affected
        assert sorted(np.concatenate(list(affected.values())).tolist()) == list(range(9))
        for kind, bands in affected.items():
            seen[kind] |= set(bands.tolist())
    assert all(bands == set(range(9)) for bands in seen.values())


@pytest.mark.parametrize("width", [47, 60, 64, 100])
@pytest.mark.parametrize(("name", "high"), [("stripe", FIFTEEN_PERCENT), ("t3sc-stripes", FIFTEEN_PERCENT)])
def test_number_of_striped_columns(name, high, width):
    result = corrupt(flat(330, 3, width), quiet(name))
    counts = {len(columns) for _, columns in hit_columns(result, "stripe")}
    assert counts == set(range(math.floor(FIVE_PERCENT * width), math.floor(high * width)))


@pytest.mark.parametrize("width", [47, 60, 64, 100])
def test_number_of_dead_columns(width):
    result = corrupt(flat(330, 3, width), quiet("deadline"))
    counts = {len(columns) for _, columns in hit_columns(result, "deadline")}
    assert counts == set(range(math.ceil(FIVE_PERCENT * width), math.ceil(FIFTEEN_PERCENT * width)))


@pytest.mark.parametrize(("name", "high"), [("mixture", FIFTEEN_PERCENT), ("mafnet-mixture", TEN_PERCENT)])
@pytest.mark.parametrize(("kind", "rounding"), [("stripe", math.floor), ("deadline", math.ceil)])
def test_number_of_columns_in_mixtures(name, high, kind, rounding):
    result = corrupt(flat(330, 3, 64), quiet(name))
    counts = {len(columns) for _, columns in hit_columns(result, kind)}
    assert counts == set(range(rounding(FIVE_PERCENT * 64), rounding(high * 64)))


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("name", sorted({*STRIPED, *DEAD}))
def test_a_very_narrow_cube_has_one_column_hit(name, width):
    """Below 7 columns the published ranges are empty; one column is the least that can be called a stripe."""
    result = corrupt(flat(31, 2, width), quiet(name))
    for kind in set(result.affected) - {"impulse"}:
        assert {len(columns) for _, columns in hit_columns(result, kind)} == {1}


@pytest.mark.parametrize("bands", [1, 2])
@pytest.mark.parametrize("name", ["stripe", "deadline", "impulse", "mixture"])
def test_of_one_or_two_bands_none_is_hit(name, bands):
    result = corrupt(flat(bands, 5, 40), quiet(name))
    assert np.all(result.noisy == 0.5)
    assert all(hit.size == 0 for hit in result.affected.values())


def test_columns_are_chosen_all_over_and_anew_for_every_band():
    result = corrupt(flat(330, 2, 40), quiet("deadline"))
    chosen = [tuple(columns.tolist()) for _, columns in hit_columns(result, "deadline")]
    assert {column for columns in chosen for column in columns} == set(range(40))
    assert len(set(chosen)) > 0.9 * len(chosen)


@pytest.mark.parametrize("name", STRIPED)
def test_stripes_shift_whole_columns_by_up_to_a_quarter(name):
    result = corrupt(flat(330, 4, 64), quiet(name))
    shifts = []
    for band, columns in hit_columns(result, "stripe"):
        shift = result.noisy[band][:, columns] - 0.5
        assert np.ptp(shift, axis=0).max() == 0  # the same along a column
        shifts.extend(shift[0])
    shifts = np.sort(shifts)
    assert np.abs(shifts).max() <= 0.25 + 1e-6
    assert np.abs(shifts - np.linspace(-0.25, 0.25, shifts.size)).max() < 0.5 * 1.95 / math.sqrt(shifts.size)


def test_a_shifted_column_keeps_its_scene_and_its_gaussian_noise():
    clean = np.random.default_rng(0).random((31, 20, 40), dtype=np.float32)
    first, striped = corrupt(clean, "non-iid", seed=2), corrupt(clean, "stripe", seed=2)
    for band in striped.affected["stripe"]:
        shift = striped.noisy[band] - first.noisy[band]
        np.testing.assert_allclose(shift, np.broadcast_to(shift[:1], shift.shape), atol=1e-6)


@pytest.mark.parametrize("name", DEAD)
def test_dead_columns_are_zero_over_the_full_height(name):
    result = corrupt(np.random.default_rng(0).random((31, 20, 40)) + 5.0, name, seed=2)
    for band, values in enumerate(result.noisy):
        dead = (values == 0).all(axis=0)
        if band in result.affected["deadline"]:
            assert math.ceil(FIVE_PERCENT * 40) <= dead.sum() < math.ceil(FIFTEEN_PERCENT * 40)
            assert (values[:, ~dead] != 0).all()
        else:
            assert not dead.any()


@pytest.mark.parametrize("name", IMPULSIVE)
def test_impulses_hit_a_published_share_half_salt_half_pepper(name):
    result = corrupt(flat(330, 50, 60), quiet(name))
    pixels, shares = 50 * 60, np.array([0.1, 0.3, 0.5, 0.7])
    drawn = []
    for band in result.affected["impulse"]:
        values = result.noisy[band]
        assert set(np.unique(values).tolist()) <= {0.0, 0.5, 1.0}
        hit = (values != 0.5).mean()
        share = shares[np.argmin(np.abs(shares - hit))]
        assert abs(hit - share) < 5 * math.sqrt(share * (1 - share) / pixels)
        assert abs((values == 1).sum() - (values == 0).sum()) < 5 * math.sqrt(share * pixels)
        drawn.append(share)
    for share in shares:
        assert abs(drawn.count(share) / len(drawn) - 0.25) < 5 * math.sqrt(0.25 * 0.75 / len(drawn))


def test_impulses_replace_the_gaussian_noise():
    result = corrupt(flat(31, 50, 60), "impulse")
    for band in result.affected["impulse"]:
        extreme = np.isin(result.noisy[band], [0.0, 1.0]).mean()
        assert np.abs(extreme - np.array([0.1, 0.3, 0.5, 0.7])).min() < 0.05


@pytest.mark.parametrize(("name", "low", "high"), [("gaussian-25", 25, 25), ("gaussian-7.5", 7.5, 7.5)])
def test_a_gaussian_of_any_sigma(name, low, high):
    assert noise_case(name).name == name
    np.testing.assert_allclose(corrupt(flat(3, 4, 5), name).sigma * 255, [low] * 3, rtol=1e-6)


def test_a_gaussian_with_a_range_draws_one_sigma_per_cube():
    drawn = np.array([corrupt(flat(3, 1, 2), "gaussian-10-20", seed=seed).sigma for seed in range(300)]) * 255
    assert np.ptp(drawn, axis=1).max() == 0
    assert np.abs(np.sort(drawn[:, 0]) - np.linspace(10, 20, 300)).max() < 10 * 1.95 / math.sqrt(300)


def test_no_noise_is_the_clean_cube():
    clean = np.random.default_rng(0).random((3, 4, 5), dtype=np.float32)
    assert np.array_equal(corrupt(clean, "gaussian-0").noisy, clean)


@pytest.mark.parametrize(
    "name",
    ["", "gauss", "gaussian", "gaussian-", "gaussian--5", "gaussian-70-10", "gaussian-5-", "Mixture", "blind "],
)
def test_an_unknown_name_is_refused_with_the_names_that_are_known(name):
    with pytest.raises(ValueError, match="unknown noise case") as raised:
        corrupt(flat(3, 4, 5), name)
    message = str(raised.value)
    assert all(known in message for known in [*NOISE_CASES, f"'{name}'", "gaussian-<sigma>", "gaussian-<low>-<high>"])
    assert "\n" not in message


@pytest.mark.parametrize("shape", [(), (5,), (4, 5), (2, 3, 4, 5), (0, 4, 5), (3, 0, 5), (3, 4, 0)])
@pytest.mark.parametrize("name", ["gaussian-30", "mixture"])
@pytest.mark.usefixtures("unchecked")
def test_what_is_no_cube_is_refused(name, shape):
    with pytest.raises(ValueError, match="bands, height, width"):
        corrupt(np.zeros(shape), name)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones((3, 4, 5), complex), "magnitude"),
        (np.ones((3, 4, 5), object), "object"),
        (np.full((3, 4, 5), "1"), "<U1"),
    ],
)
def test_what_is_not_real_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        corrupt(values, "gaussian-30")


def test_a_case_of_ones_own():
    case = NoiseCase("mine", "half the columns dead", "me", SameSigma(0, 0), deadline=Columns(0.5, 0.5, None), share=1)
    result = corrupt(flat(3, 4, 10), case)
    assert result.affected["deadline"].tolist() == [0, 1, 2]
    assert ((result.noisy == 0).all(axis=1).sum(axis=1) == 5).all()
    assert np.array_equal(case.add(flat(3, 4, 10), np.random.default_rng(0)).noisy, result.noisy)


def test_a_share_that_floats_cannot_say_is_still_rounded_right():
    """0.29 * 100 is 28.999999999999996."""
    case = NoiseCase("mine", "", "me", SameSigma(0, 0), impulse=Impulses((0.5,)), share=0.29)
    assert len(corrupt(flat(100, 2, 3), case).affected["impulse"]) == 29


def test_columns_that_are_more_than_there_are_hit_all():
    case = NoiseCase("all", "all dead", "me", SameSigma(30, 30), deadline=Columns(2.0, 3.0, None), share=1)
    assert np.all(corrupt(flat(3, 4, 10), case).noisy == 0)


@pytest.mark.parametrize("share", [-0.1, 0.51, 1.5])
def test_shares_that_cannot_be_disjoint_are_refused(share):
    with pytest.raises(ValueError, match="'mine'"):
        NoiseCase(
            "mine",
            "",
            "",
            SameSigma(0, 0),
            stripe=Columns(0.1, 0.2, 0.25),
            impulse=Impulses((0.1,)),
            share=share,
        )


def test_photon_noise_grows_with_the_signal():
    """Variance is signal over photons plus a floor: linear in the signal, of each band its own slope."""
    ramp = np.linspace(0, 1, 41, dtype=np.float32)[:, None] * np.ones((6, 1, 4000), dtype=np.float32)
    variance = np.square(corrupt(ramp, "photon", seed=2).noisy - ramp).mean(axis=2)
    for band in variance:
        slope, floor = np.polyfit(np.linspace(0, 1, 41), band, 1, w=1 / band)
        assert 1e-4 * 0.9 < slope < 1e-2 * 1.1
        assert floor == pytest.approx((2 / 255) ** 2, rel=0.3)
        np.testing.assert_allclose(slope * np.linspace(0, 1, 41) + floor, band, rtol=0.15)


def test_offsets_of_detectors_are_smooth_and_the_same_in_every_row():
    result = corrupt(flat(31, 10, 400), quiet("detector"), seed=4)
    (hit,) = result.affected.values()
    assert len(hit) == 10
    for band in result.noisy[hit] - 0.5:
        assert np.ptp(band, axis=0).max() < 1e-6
        offset = band[0]
        assert 0.005 * 0.99 < offset.std() < 0.05 * 1.01
        assert np.corrcoef(offset[1:], offset[:-1])[0, 1] > 0.9
    assert (np.delete(result.noisy, hit, axis=0) == 0.5).all()
