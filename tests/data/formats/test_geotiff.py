import sys
import warnings
from dataclasses import replace

import h5py
import numpy as np
import pytest
import rasterio
from command_line import call, refused
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine

from hsidenoise.data.formats.geotiff import FORMAT
from hsidenoise.data.io import Cube, convert, read_cube, write_cube
from hsidenoise.data.metadata import Metadata

TRANSFORM = Affine(4.0, 0.0, 500000.0, 0.0, -3.0, 5400000.0)


def values_of(dtype="i2"):
    return np.random.default_rng(0).normal(2000, 500, (5, 60, 70)).astype(dtype)


def write(path, values, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        profile = {"count": 5, "height": 60, "width": 70, "dtype": values.dtype.name} | more
        with rasterio.open(path, "w", driver="GTiff", **profile) as file:
            file.write(values)
            file.update_tags(sensor="Made up")
            for band in file.indexes:
                file.set_band_description(band, f"band {band}")
                file.update_tags(band, wavelength=str(300 + 100 * band), wavelength_units="Nanometers", fwhm="9.5")


def georeferenced(path, values):
    write(path, values, crs="EPSG:32632", transform=TRANSFORM, nodata=-9999, tiled=True, blockxsize=32, blockysize=16,
          compress="deflate")  # fmt: skip


def test_a_copy_is_the_source_with_other_numbers(tmp_path):
    georeferenced(tmp_path / "a.tif", values_of())
    cube = read_cube(tmp_path / "a.tif")
    assert np.array_equal(cube.values, values_of())
    assert cube.layout.axes == "bhw"
    assert cube.wavelengths.tolist() == [400, 500, 600, 700, 800]
    about = cube.metadata
    assert (about.nodata, about.transform, about.fwhm.tolist()) == (-9999, tuple(TRANSFORM)[:6], [9.5] * 5)
    assert about.band_names == tuple(f"band {band}" for band in range(1, 6))
    write_cube(tmp_path / "b.tif", Cube(cube.values + 1, cube.wavelengths, cube.layout, cube.path, about))
    with rasterio.open(tmp_path / "a.tif") as old, rasterio.open(tmp_path / "b.tif") as new:
        assert np.array_equal(new.read(), values_of() + 1)
        assert dict(new.profile) == dict(old.profile)
        assert new.tags() == old.tags()
        assert (new.descriptions, new.tags(3)) == (old.descriptions, old.tags(3))


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "i8", "f4", "f8"])
def test_a_new_file(tmp_path, dtype):
    values = values_of("f8").astype(dtype) if dtype not in ("u1", "i1") else (values_of() % 100 + 1).astype(dtype)
    about = Metadata(
        fwhm=np.full(5, 6.5), good_bands=np.array([1, 0, 1, 1, 1], bool), nodata=0.0, crs="EPSG:32632",
        transform=tuple(TRANSFORM)[:6], attributes={"sensor": "X"},
    )  # fmt: skip
    np.save(tmp_path / "a.npy", values.transpose(1, 2, 0))
    stored = read_cube(tmp_path / "a.npy", axes="hwb", exact=True)
    write_cube(tmp_path / "b.tif", Cube(stored.values, np.linspace(400.0, 800, 5), stored.layout, stored.path, about))
    with rasterio.open(tmp_path / "b.tif") as new:
        assert new.dtypes[0] == np.dtype(dtype).name
        assert np.array_equal(new.read(), values)
        assert (new.crs.to_epsg(), new.transform, new.nodata) == (32632, TRANSFORM, 0)
        assert new.descriptions[1] == "500 nm"
        assert new.tags(2, ns="IMAGERY") == {"CENTRAL_WAVELENGTH_UM": "0.5", "FWHM_UM": "0.0065"}
        assert new.tags()["sensor"] == "X"
    again = read_cube(tmp_path / "b.tif")
    assert again.wavelengths.tolist() == [400, 500, 600, 700, 800]
    assert again.metadata.good_bands.tolist() == about.good_bands.tolist()


def test_a_lossy_source(tmp_path):
    values = np.random.default_rng(0).integers(0, 255, (3, 64, 80)).astype("u1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        for more in ({"photometric": "ycbcr", "tiled": True}, {}):
            size = {"count": 3, "height": 64, "width": 80, "dtype": "uint8"}
            with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", compress="jpeg", **size, **more) as file:
                file.write(values)
            cube = read_cube(tmp_path / "a.tif")
            write_cube(tmp_path / "out.tif", Cube(255 - cube.values, None, cube.layout, cube.path, cube.metadata))
            with rasterio.open(tmp_path / "out.tif") as new:
                assert np.array_equal(new.read(), 255 - cube.values)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_nodata_value_can_be_given(tmp_path):
    np.save(tmp_path / "a.npy", values_of())
    call("convert", "a.npy", "b.tif", "--axes", "bhw", "--nodata", "-1", cwd=tmp_path)
    with rasterio.open(tmp_path / "b.tif") as new:
        assert new.nodata == -1


def test_to_envi_and_back(tmp_path):
    georeferenced(tmp_path / "a.tif", values_of())
    convert(tmp_path / "a.tif", tmp_path / "b.img")
    with rasterio.open(tmp_path / "b.img") as envi:
        assert np.array_equal(envi.read(), values_of())
        assert (envi.crs.to_epsg(), envi.transform, envi.nodata) == (32632, TRANSFORM, -9999)
    convert(tmp_path / "b.hdr", tmp_path / "c.tiff")
    with rasterio.open(tmp_path / "c.tiff") as new:
        assert (new.crs.to_epsg(), new.transform, new.nodata) == (32632, TRANSFORM, -9999)
        assert new.descriptions[0] == "band 1"


def test_without_a_position_and_a_part(tmp_path):
    write(tmp_path / "a.tif", values_of("f4"))
    cube = read_cube(tmp_path / "a.tif")
    assert (cube.metadata.crs, cube.metadata.transform) == (None, None)
    part = (slice(1, 4), slice(24, 51), slice(None, 40))
    assert np.array_equal(FORMAT.load_variable(tmp_path / "a.tif", "a", part), values_of("f4")[part])


def test_bad_files_are_one_line(tmp_path):
    georeferenced(tmp_path / "a.tif", values_of())
    content = (tmp_path / "a.tif").read_bytes()
    bad = {
        "short.tif": (content[: len(content) // 2], "truncated or damaged"),
        "head.tif": (content[:20], "truncated or damaged"),
        "text.tif": (b"a picture", "not a GeoTIFF file"),
        "none.tif": (b"", "is empty"),
    }
    for name, (data, message) in bad.items():
        (tmp_path / name).write_bytes(data)
        said = call("denoise", name, "-o", "out.tif", cwd=tmp_path, code=2)
        assert refused(said), said
        assert message in said
    assert not (tmp_path / "out.tif").exists()


def test_without_the_extra_it_is_named(tmp_path, monkeypatch):
    georeferenced(tmp_path / "a.tif", values_of())
    np.save(tmp_path / "a.npy", values_of())
    monkeypatch.setitem(sys.modules, "rasterio", None)
    for arguments in (("a.tif", "o.npy"), ("a.npy", "o.tif")):
        said = call("convert", *arguments, cwd=tmp_path, code=2)
        assert refused(said)
        assert "pip install 'hsidenoise[geo]'" in said


@pytest.mark.filterwarnings("ignore:.*other header fields")
def test_its_own_mask_is_read_and_kept(tmp_path):
    georeferenced(tmp_path / "a.tif", values_of())
    mask = np.ones((60, 70), bool)
    mask[:7, 5:] = False
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(tmp_path / "a.tif", "r+") as file:
        file.write_mask(mask)
    cube = read_cube(tmp_path / "a.tif")
    assert (cube.mask == mask).all()
    write_cube(tmp_path / "b.tif", cube)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "b.tif"]
    with rasterio.open(tmp_path / "b.tif") as file:
        assert np.array_equal(file.dataset_mask() != 0, mask)
    with pytest.warns(UserWarning, match="the mask of .*a.tif has no place in it: left out"):
        convert(tmp_path / "a.tif", tmp_path / "b.npz")


@pytest.mark.parametrize("suffix", [".nc", ".hdr", ".zarr"])
@pytest.mark.parametrize("scales", [(0.5,) * 5, (0.5, 1, 2, 3, 4)])
def test_scales_and_offsets_go_along(tmp_path, suffix, scales):
    georeferenced(tmp_path / "a.tif", values_of())
    with rasterio.open(tmp_path / "a.tif", "r+") as file:
        file.scales, file.offsets = scales, (7.0,) * 5
    convert(tmp_path / "a.tif", tmp_path / f"b{suffix}")
    if suffix == ".nc" and len(set(scales)) == 1:
        with h5py.File(tmp_path / "b.nc") as file:
            assert (file["a"].attrs["scale_factor"], file["a"].attrs["add_offset"]) == (0.5, 7)
    convert(tmp_path / f"b{suffix}", tmp_path / "c.tif")
    with rasterio.open(tmp_path / "c.tif") as file:
        assert np.array_equal(file.read(), values_of())
        assert (file.scales, file.offsets) == (scales, (7,) * 5)


@pytest.mark.parametrize(("zone", "side", "code"), [(33, "North", 32633), (1, "South", 32701)])
@pytest.mark.parametrize("suffix", [".tif", ".nc"])
def test_utm_of_an_envi_header_arrives(tmp_path, zone, side, code, suffix):
    np.save(tmp_path / "a.npy", values_of())
    convert(tmp_path / "a.npy", tmp_path / "a.hdr", axes="bhw")
    with (tmp_path / "a.hdr").open("a") as file:
        file.write(f"map info = {{UTM, 1, 1, 5e5, 5.4e6, 2, 3, {zone}, {side}, WGS-84, units=Meters}}\n")
    convert(tmp_path / "a.hdr", tmp_path / f"b{suffix}")
    metadata = read_cube(tmp_path / f"b{suffix}").metadata
    assert rasterio.crs.CRS.from_wkt(metadata.crs) == rasterio.crs.CRS.from_epsg(code)
    assert metadata.transform == (2, 0, 5e5, 0, -3, 5.4e6)


@pytest.mark.parametrize("axes", ["bhw", "hwb"])
def test_a_stack_of_images_is_a_cube(tmp_path, axes):
    """What tifffile, scikit-image and ImageJ write: a page for each band, or each line; GDAL shows the first alone."""
    tifffile = pytest.importorskip("tifffile")  # of scikit-image
    stored = values_of().transpose(["bhw".index(letter) for letter in axes])
    tifffile.imwrite(tmp_path / "a.tif", stored, compression="zlib")
    cube = read_cube(tmp_path / "a.tif", axes=axes)
    assert np.array_equal(cube.values, values_of())
    part = np.s_[1:4, 2:5, 1:3]
    assert np.array_equal(FORMAT.load_variable(tmp_path / "a.tif", "a", part), stored[part])
    write_cube(tmp_path / "b.tif", replace(cube, values=cube.values + 1))
    assert np.array_equal(tifffile.imread(tmp_path / "b.tif"), stored + 1)
    tifffile.imwrite(tmp_path / "b.tif", stored[0, :3], append=True)
    with pytest.warns(UserWarning, match=r"the first of \d+ images is read, which differ"):
        assert read_cube(tmp_path / "b.tif").values.shape == (1, *stored.shape[1:])
