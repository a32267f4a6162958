import sys

import numpy as np
import pytest

from hsidenoise.classical.methods import BASELINES, find_method, run_baseline
from hsidenoise.metrics.functional import evaluate
from hsidenoise.noise.cases import corrupt

BLIND = [name for name, row in BASELINES.items() if row.blind]
BAND_WISE = {"nlm", "tv"}
STRIPED = {"svd-tv-robust", "svd-dct-robust", "planes", "rpca", "3dtv"}


REAL_CROP_GAIN = {  # dB at sigma 30, 48 x 64 pixels
    "nlm": 5, "tv": 5, "pca": 6, "mnf": 6, "svd-tv": 9, "svd-nlm": 9, "svd-dct": 9, "svd-tv-robust": 9,
    "svd-dct-robust": 9, "planes": 9, "rpca": 7, "3dtv": 7,
}  # fmt: skip


def halve(cube):
    return cube / 2


def write_to_input(cube):
    cube[:] = 0
    return cube


def return_none(cube):
    return None


def return_one_band(cube):
    return cube[:1]


def return_nan(cube):
    return cube * np.nan


def return_complex(cube):
    return cube * 1j


def return_whole_numbers(cube):
    return np.zeros(cube.shape, dtype=np.int64)


def take_nothing():
    return None


NOT_CALLABLE = 3


@pytest.fixture(autouse=True)
def _this_module_has_a_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "my_methods", sys.modules[__name__])


def test_every_row_is_complete():
    for name, row in BASELINES.items():
        assert row.name == name
        assert row.summary
        assert "doi:" in row.reference
        assert find_method(name) is row
    assert {name for name, row in BASELINES.items() if row.extra} == {"bm4d"}


@pytest.mark.parametrize("name", BLIND)
def test_gain_on_a_real_crop_and_what_every_method_promises(name, real_crop):
    noisy = corrupt(real_crop, "gaussian-30", seed=0).noisy
    before = noisy.copy()
    denoised = run_baseline(name, noisy)
    np.testing.assert_array_equal(noisy, before)
    assert denoised.dtype == np.float32
    assert denoised.shape == noisy.shape
    np.testing.assert_array_equal(denoised, BASELINES[name](noisy))  # deterministic, and a row can be called
    gain = evaluate(denoised, real_crop).psnr - evaluate(noisy, real_crop).psnr
    assert gain > REAL_CROP_GAIN[name]
    told = run_baseline(name, noisy, 30 / 255)
    assert evaluate(told, real_crop).psnr == pytest.approx(evaluate(denoised, real_crop).psnr, abs=1.0)
    per_band = run_baseline(name, noisy, np.full(31, 30 / 255))
    np.testing.assert_allclose(per_band, told, atol=1e-5)


@pytest.mark.parametrize("name", BLIND)
def test_a_hardly_noisy_cube_comes_back_nearly_itself(name, structured_cube):
    denoised = run_baseline(name, structured_cube, 0.0)
    assert np.sqrt(np.mean((denoised - structured_cube) ** 2)) < 2e-3


@pytest.mark.parametrize("name", BLIND)
def test_a_constant_cube_stays_constant(name):
    cube = np.full((6, 20, 24), 0.4, dtype=np.float32)
    np.testing.assert_allclose(run_baseline(name, cube), cube, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in BLIND if name not in {"pca"}])
def test_unequal_noise_gains_at_least_as_the_noisiest_bands_need(name, real_crop):
    corruption = corrupt(real_crop, "non-iid", seed=0)
    denoised = run_baseline(name, corruption.noisy)
    error = ((denoised - real_crop) ** 2).mean(axis=(1, 2))
    noisiest = corruption.sigma == corruption.sigma.max()
    assert error[noisiest].max() < 0.25 * corruption.sigma.max() ** 2
    assert (error < 1.2 * corruption.sigma**2).all()  # and the cleanest lose nothing by the others


@pytest.mark.parametrize("case", ["impulse", "mixture"])
@pytest.mark.parametrize("name", sorted(STRIPED))
def test_methods_with_a_sparse_part_beat_those_without(name, case, real_crop):
    noisy = corrupt(real_crop, case, seed=0).noisy
    without = evaluate(run_baseline("mnf", noisy), real_crop).psnr
    assert evaluate(run_baseline(name, noisy), real_crop).psnr > without + 1.0


@pytest.mark.parametrize("name", BLIND)
@pytest.mark.parametrize("shape", [(1, 12, 17), (2, 3, 2), (40, 3, 5)])
def test_small_cubes_and_few_bands(name, shape, rng):
    noisy = (0.5 + 0.1 * rng.normal(size=shape)).astype(np.float32)
    denoised = run_baseline(name, noisy)
    assert np.abs(denoised - noisy).max() < 0.6


@pytest.mark.parametrize("name", sorted(BAND_WISE))
def test_band_wise_methods_do_not_mix_bands(name, real_crop):
    noisy = corrupt(real_crop, "gaussian-30", seed=0).noisy[4:7]
    alone = run_baseline(name, noisy[1:2].copy(), 30 / 255)
    np.testing.assert_allclose(run_baseline(name, noisy, 30 / 255)[1:2], alone, atol=1e-6)


@pytest.mark.parametrize(
    ("cube", "message"),
    [
        (np.zeros((3, 1, 5), dtype=np.float32), "2x2"),
        (np.full((3, 4, 5), np.nan, dtype=np.float32), "NaN"),
    ],
)
def test_unusable_cubes_are_refused(cube, message):
    with pytest.raises(ValueError, match=message):
        run_baseline("pca", cube)


def test_unusable_types_and_shapes_are_refused(unchecked):
    with pytest.raises(ValueError, match="float32"):
        run_baseline("pca", np.zeros((3, 4, 5)))
    with pytest.raises(ValueError, match="bands, height, width"):
        run_baseline("pca", np.zeros((4, 5), dtype=np.float32))
    with pytest.raises(ValueError, match="sigma"):
        run_baseline("pca", np.zeros((3, 4, 5), dtype=np.float32), -1.0)


def test_a_method_that_is_not_blind_must_be_told():
    with pytest.raises(ValueError, match="bm4d is not blind: pass sigma"):
        run_baseline("bm4d", np.zeros((3, 4, 5), dtype=np.float32))


def test_bm4d_without_its_package_names_extra_and_licence(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm4d", None)
    with pytest.raises(ImportError, match=r"hsidenoise\[bm4d\].*non-commercial"):
        run_baseline("bm4d", np.zeros((3, 4, 5), dtype=np.float32), 0.1)


def test_bm4d_where_it_is_installed(structured_cube):
    pytest.importorskip("bm4d")
    corruption = corrupt(structured_cube, "non-iid", seed=0)
    denoised = run_baseline("bm4d", corruption.noisy, corruption.sigma)
    assert evaluate(denoised, structured_cube).psnr > evaluate(corruption.noisy, structured_cube).psnr + 6


def test_a_callable_of_ones_own(real_crop):
    method = find_method("my_methods:halve")
    assert method.blind
    np.testing.assert_array_equal(run_baseline(method, real_crop, 0.1), real_crop / 2)
    before = real_crop.copy()
    assert not run_baseline("my_methods:write_to_input", real_crop).any()
    np.testing.assert_array_equal(real_crop, before)
    assert run_baseline("my_methods:return_whole_numbers", real_crop).dtype == np.float32
    assert run_baseline("numpy:ndarray.copy", real_crop).shape == real_crop.shape


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("svd", "unknown method 'svd'; known: nlm, "),
        (":halve", "write package.module:function"),
        ("my_methods:", "write package.module:function"),
        ("no_such_package.module:f", "there is no module 'no_such_package'"),
        ("numpy.no_such:f", "there is no module 'numpy.no_such'"),
        ("my_methods:missing", "module 'my_methods' has no 'missing'"),
        ("my_methods:NOT_CALLABLE", "type int and cannot be called"),
    ],
)
def test_methods_that_cannot_be_found_say_why_in_one_line(name, message):
    with pytest.raises(ValueError, match=message) as error:
        find_method(name)
    assert "\n" not in str(error.value)


def test_a_module_that_fails_to_import_is_told_from_a_missing_one(tmp_path, monkeypatch):
    (tmp_path / "broken_method.py").write_text("import no_such_requirement\n")
    (tmp_path / "raising_method.py").write_text("raise RuntimeError('two\\nlines')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"importing it fails: ModuleNotFoundError: .*no_such_requirement"):
        find_method("broken_method:f")
    with pytest.raises(ValueError, match="importing it fails: RuntimeError: two lines"):
        find_method("raising_method:f")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("return_none", "returned NoneType"),
        ("return_one_band", r"returned shape \(1, 48, 64\) for a cube of \(31, 48, 64\)"),
        ("return_nan", "NaN or infinite"),
        ("return_complex", "complex128|complex64"),
        ("take_nothing", "did not take the cube: TypeError"),
    ],
)
def test_wrong_results_of_a_callable_are_refused(function, message, real_crop):
    with pytest.raises(ValueError, match=message):
        run_baseline(f"my_methods:{function}", real_crop)
