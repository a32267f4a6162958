"""Arrays of every kind, in and out; the filters of the planes in place of a network."""

import numpy as np
import pytest
import torch

from hsidenoise import Cube, denoise
from hsidenoise.classical.methods import BASELINES
from hsidenoise.inference.arrays import as_cube
from hsidenoise.noise.cases import corrupt

PLANES = BASELINES["planes"]
xarray = pytest.importorskip("xarray")


@pytest.fixture(scope="module")
def noisy(real_crop):
    return corrupt(real_crop, "gaussian-30").noisy


@pytest.fixture(scope="module")
def wanted(noisy):
    result = denoise(noisy, PLANES)
    result.setflags(write=False)
    return result


def test_axes_of_arrays(noisy, wanted):
    for axes in ("hwb", "wbh", "BHW"):
        order = ["bhw".index(axis) for axis in axes.lower()]
        given = np.ascontiguousarray(noisy.transpose(order))
        found = denoise(given, PLANES, axes=axes)
        assert type(found) is np.ndarray
        np.testing.assert_array_equal(found, wanted.transpose(order))
    for wrong in ("hw", "hwc", "hhb", ""):
        with pytest.raises(ValueError, match="h, w and b once each"):
            denoise(noisy, PLANES, axes=wrong)


def test_bands_that_do_not_come_first_are_found_and_said(noisy, wanted):
    last = noisy.transpose(1, 2, 0)
    with pytest.warns(UserWarning, match=r'31 bands of 48x64, because its values say axis 3 .* give axes="hwb" if'):
        found = denoise(last, PLANES)
    np.testing.assert_array_equal(found, wanted.transpose(1, 2, 0))
    assert not np.array_equal(denoise(last, PLANES, axes="bhw"), found)  # told so: without a word
    small = last[:24, :16, ::2]
    with pytest.warns(UserWarning, match=r"24 bands of 16x16, but its values say axis 3 is the spectrum"):
        assert as_cube(small).letters == "bhw"  # a hint only


def test_tensors_come_back_as_tensors_on_their_device(noisy, wanted, device):
    given = torch.from_numpy(noisy).to(device)
    found = denoise(given.requires_grad_(), PLANES)
    assert isinstance(found, torch.Tensor)
    assert (found.device, found.dtype, found.requires_grad) == (given.device, torch.float32, False)
    np.testing.assert_array_equal(found.cpu().numpy(), wanted)
    last = denoise(given.detach().permute(1, 2, 0), PLANES, axes="hwb")
    np.testing.assert_array_equal(last.cpu().numpy(), wanted.transpose(1, 2, 0))


def test_a_cube_comes_back_as_a_cube(noisy, wanted):
    cube = Cube(noisy, np.linspace(400, 700, len(noisy)))
    found = denoise(cube, PLANES)
    assert isinstance(found, Cube)
    assert found.wavelengths is cube.wavelengths
    np.testing.assert_array_equal(found.values, wanted)
    with pytest.raises(ValueError, match="has the axes bhw already"):
        denoise(cube, PLANES, axes="hwb")


def test_masked_arrays_come_back_masked(noisy):
    given = np.ma.MaskedArray(noisy, mask=np.zeros(noisy.shape, bool), fill_value=-1)
    given[:, :4] = np.ma.masked
    found = denoise(given, PLANES)
    assert isinstance(found, np.ma.MaskedArray)
    assert found.fill_value == -1
    np.testing.assert_array_equal(found.mask, given.mask)
    found[3, 20, 20] = np.ma.masked
    assert not given.mask[3, 20, 20]


@pytest.mark.parametrize(
    "names",
    [
        ("y", "x", "band"),
        ("lat", "lon", "wavelength"),
        ("rows", "cols", "spectral_band"),
        ("line", "sample", "channels"),
        ("Northing", "Easting", "what"),
    ],
)
def test_dimensions_of_a_data_array_go_by_name(noisy, wanted, names):
    y, x, band = names
    given = xarray.DataArray(
        noisy.transpose(1, 2, 0),
        dims=names,
        coords={y: np.arange(noisy.shape[1]), band: np.linspace(400, 700, len(noisy)), "time": 3},
        attrs={"units": "W"},
        name="radiance",
    )
    found = denoise(given, PLANES)
    assert found.dims == names
    assert (found.name, found.attrs) == ("radiance", {"units": "W"})
    assert set(found.coords) == set(given.coords)
    np.testing.assert_array_equal(found.values, wanted.transpose(1, 2, 0))
    with_time = denoise(given.expand_dims("time").transpose(y, "time", x, band), PLANES)
    assert with_time.dims == (y, "time", x, band)
    np.testing.assert_array_equal(with_time.values[:, 0], found.values)


def test_a_mask_has_the_axes_of_its_array(noisy):
    square = noisy[:, :40, :40]
    mask = np.ones((40, 40), bool)
    mask[:5] = False
    wanted = denoise(square, PLANES, mask=mask)
    assert np.array_equal(wanted[:, :5], square[:, :5])
    given = xarray.DataArray(square, dims=("band", "y", "x")).transpose("x", "band", "y")
    for dims in (("y", "x"), ("x", "y"), ("x", "y", "band"), ("band", "y", "x")):
        known = xarray.DataArray(mask, dims=("y", "x")).expand_dims(band=31).transpose("band", "y", "x")
        known = (known if "band" in dims else known[0]).transpose(*dims)
        np.testing.assert_array_equal(denoise(given, PLANES, mask=known).transpose("band", "y", "x"), wanted)
    with pytest.raises(ValueError, match="dimension z of the mask or noise level is none of x, band, y"):
        denoise(given, PLANES, mask=xarray.DataArray(mask, dims=("z", "y")))
    sideways = np.ascontiguousarray(square.transpose(2, 1, 0))
    np.testing.assert_array_equal(denoise(sideways, PLANES, axes="whb", mask=mask.T).transpose(2, 1, 0), wanted)
    np.testing.assert_array_equal(denoise(torch.from_numpy(square.copy()), PLANES, mask=torch.from_numpy(mask)), wanted)


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_cube_is_refused_in_one_line(noisy):
    for wrong, message in (
        (noisy[0], r"shape \(48, 64\); .*give a single band as array\[None\]"),
        (noisy[None], "three axes"),
        ("a.mat", "'a.mat' is the name of a file: denoise_file"),
    ):
        with pytest.raises(ValueError, match=message):
            denoise(wrong, PLANES)
    with pytest.raises(ValueError, match=r"\(bands, height, width\), not of shape \(48, 64\)"):
        Cube(noisy[0])
    given = xarray.DataArray(noisy, dims=("band", "y", "x"))
    with pytest.warns(UserWarning, match="axes 'hwb' is not what the dimensions band, y, x say"):
        as_cube(given, ["h", "w", "b"])


def test_a_mask_of_bands(noisy):
    keep = np.arange(31) != 5
    found = denoise(noisy, PLANES, mask=keep)
    assert np.array_equal(found[5], noisy[5])
    assert not np.array_equal(found[6], noisy[6])
    named = xarray.DataArray(keep, dims="band")
    np.testing.assert_array_equal(denoise(xarray.DataArray(noisy, dims=("band", "y", "x")), PLANES, mask=named), found)


def test_what_attributes_say_of_no_data(noisy):
    for attributes, encoding, expected in (
        ({"_FillValue": -1.0}, {}, -1.0),
        ({}, {"_FillValue": 7}, 7.0),
        ({}, {"_FillValue": 0, "add_offset": -0.1}, None),  # of the values before they were unpacked
        ({"missing_value": [], "nodata": "None"}, {}, None),
    ):
        given = xarray.DataArray(noisy, dims=("band", "y", "x"), attrs=attributes)
        given.encoding = encoding
        assert as_cube(given).nodata == expected


def test_dimensions_without_telling_names(noisy):
    given = xarray.DataArray(noisy, dims=("dim_0", "dim_1", "dim_2"))
    with pytest.raises(ValueError, match="which of the dimensions dim_0, dim_1, dim_2 is the spectrum"):
        denoise(given, PLANES)
    assert denoise(given, PLANES, axes="bhw").dims == given.dims
    with pytest.raises(ValueError, match="give one of a"):
        denoise(xarray.Dataset({"a": given}), PLANES)
    with pytest.raises(ValueError, match="three dimensions"):
        denoise(given[0], PLANES)


def test_rioxarray_keeps_its_place_on_earth(noisy, wanted):
    pytest.importorskip("rioxarray")
    given = xarray.DataArray(noisy, dims=("band", "y", "x"), coords={"y": np.arange(48.0)[::-1], "x": np.arange(64.0)})
    given = given.rio.write_crs("EPSG:32633").rio.write_nodata(-9999.0)
    assert as_cube(given).nodata == -9999
    found = denoise(given, PLANES)
    assert (found.rio.crs, found.rio.nodata) == (given.rio.crs, -9999)
    assert found.coords.equals(given.coords)
    np.testing.assert_array_equal(found.values, wanted)


def test_corrupt_warns_of_values_beyond_its_range(real_crop):
    with pytest.warns(UserWarning, match=r"lie in 0 .. 4095; the noise cases are for cubes in \[0, 1\]"):
        corrupt(real_crop * 4095, "gaussian-30")


class TestKnownNoise:
    """The option noise: by the filters, and with the network behind them."""

    @pytest.mark.parametrize("model", [PLANES, None])
    def test_of_each_band(self, real_crop, model):
        clean = 200 + 50 * real_crop
        sigma = np.where(np.arange(31) % 2, 1.0, 8.0)
        noisy = clean + np.random.default_rng(0).normal(0, 1, clean.shape) * sigma[:, None, None]
        off = {scale: np.square(denoise(noisy, model, noise=scale * sigma) - clean).mean() for scale in (0.1, 1, 10)}
        assert off[1] < 0.7 * off[0.1]
        assert off[1] < 0.7 * off[10]
        assert off[1] < 1.1 * np.square(denoise(noisy, model) - clean).mean()
        with_axes = denoise(noisy.transpose(1, 2, 0), model, axes="hwb", noise=sigma)
        np.testing.assert_allclose(with_axes.transpose(2, 0, 1), denoise(noisy, model, noise=sigma))

    def test_of_each_pixel(self, real_crop):
        level = np.where(np.arange(64) < 32, 0.02, 0.2) * np.ones((48, 1))
        noisy = real_crop + np.random.default_rng(0).normal(0, 1, real_crop.shape) * level
        plain, known = (np.square(denoise(noisy, PLANES, noise=noise) - real_crop) for noise in (None, level))
        assert known[..., :28].mean() < plain[..., :28].mean()
        assert known.mean() < plain.mean()
        whole = denoise(noisy, PLANES, noise=np.broadcast_to(level, noisy.shape))
        np.testing.assert_allclose(whole, denoise(noisy, PLANES, noise=level))

    def test_what_is_no_noise_level(self, noisy):
        for wrong, message in (
            (np.ones(7), "give one number"),
            (np.zeros(31), "above 0 is needed"),
            (np.zeros((48, 64)), "nowhere above 0"),
        ):
            with pytest.raises(ValueError, match=message):
                denoise(noisy, PLANES, noise=wrong)
        with pytest.raises(ValueError, match="cannot be given a noise level"):
            denoise(noisy, lambda cube: cube, noise=0.1)

    def test_none_is_needed_of_a_band_without_data(self, noisy):
        given, sigma = noisy.copy(), np.full(31, 30 / 255)
        given[4], sigma[4] = np.nan, np.nan
        with pytest.warns(RuntimeWarning, match="NaN"):
            assert np.isfinite(np.delete(denoise(given, PLANES, noise=sigma), 4, axis=0)).all()


def test_a_function_that_answers_with_no_cube_is_refused(noisy):
    for answer in (lambda cube: cube[:3], lambda cube: cube * np.nan, lambda cube: 1.0):
        with pytest.raises(ValueError, match="did not answer with a cube of finite numbers"):
            denoise(noisy, answer)


def test_bands_are_named_by_their_numbers_in_the_whole_cube(real_crop):
    given = real_crop.copy()
    given[0] = np.nan
    given[8] = 30 * np.random.default_rng(0).normal(size=given[8].shape)
    given[12] = 0.5
    with pytest.warns(RuntimeWarning) as said:
        denoise(given, PLANES)
    text = " | ".join(str(each.message) for each in said)
    assert "noise alone: band 8;" in text
    assert "band 12" in text
