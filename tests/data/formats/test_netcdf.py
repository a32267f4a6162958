import h5py
import hdf5plugin
import numpy as np
import pytest
import rioxarray  # noqa: F401
import xarray
from command_line import call, refused

from hsidenoise.data.formats.mat import write_mat
from hsidenoise.data.formats.netcdf import FORMAT
from hsidenoise.data.io import Cube, convert, read_cube, write_cube
from hsidenoise.data.metadata import Metadata
from hsidenoise.data.sources import list_variables, locate

UTM = 'PROJCS["WGS 84 / UTM zone 32N",GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,298.257223563]],PRIMEM["Greenwich",0],UNIT["degree",0.0174532925199433]],PROJECTION["Transverse_Mercator"],PARAMETER["latitude_of_origin",0],PARAMETER["central_meridian",9],PARAMETER["scale_factor",0.9996],PARAMETER["false_easting",500000],PARAMETER["false_northing",0],UNIT["metre",1],AUTHORITY["EPSG","32632"]]'  # noqa: E501


def values_of(dtype="i2"):
    values = np.random.default_rng(0).normal(2000, 500, (5, 60, 70))
    return values.astype(dtype)


def emit(path):
    """What EMIT's L2A files have: (downtrack, crosstrack, bands), wavelengths in a group beside."""
    values = values_of("f4").transpose(1, 2, 0)
    data = xarray.DataArray(values, dims=("downtrack", "crosstrack", "bands"), attrs={"long_name": "Reflectance"})
    data.encoding["_FillValue"] = -9999.0
    xarray.Dataset({"reflectance": data}, attrs={"title": "EMIT", "spatial_ref": "GEOGCS[]"}).to_netcdf(
        path, engine="h5netcdf"
    )
    bands = {
        "wavelengths": ("bands", np.linspace(400, 800, 5).astype("f4")),
        "fwhm": ("bands", np.full(5, 8.5, "f4")),
        "good_wavelengths": ("bands", np.array([1, 1, 0, 1, 1], "u1")),
    }
    xarray.Dataset(bands).to_netcdf(path, engine="h5netcdf", mode="a", group="sensor_band_parameters")
    return values


def prisma(path):
    cube = values_of("u2").transpose(1, 0, 2)  # rows, bands, columns
    with h5py.File(path, "w") as file:
        group = file.create_group("HDFEOS/SWATHS/PRS_L2D_HCO/Data Fields")
        for name in ("VNIR_Cube", "SWIR_Cube"):
            group.create_dataset(name, data=cube + (name == "SWIR_Cube"), chunks=(20, 5, 70), compression="gzip")
        file.attrs["List_Cw_Vnir"] = np.array([800, 700, 600, 500, 0], "f4")
        file.attrs["List_Fwhm_Vnir"] = np.array([9, 9, 9, 9, 0], "f4")
        file.attrs["List_Cw_Swir"] = np.linspace(2000, 900, 5)
        file.attrs["L2ScaleVnirMax"] = 0.7
    return cube


def test_emit(tmp_path):
    values = emit(tmp_path / "emit.nc")
    cube = read_cube(tmp_path / "emit.nc")
    assert (cube.layout.key, cube.layout.axes) == ("reflectance", "hwb")
    assert np.array_equal(cube.values, values.transpose(2, 0, 1))
    assert cube.wavelengths.tolist() == [400, 500, 600, 700, 800]
    about = cube.metadata
    assert (about.fwhm.tolist(), about.nodata, about.crs) == ([8.5] * 5, -9999, None)
    assert about.good_bands.tolist() == [True, True, False, True, True]
    write_cube(tmp_path / "out.nc", Cube(cube.values + 1, cube.wavelengths, cube.layout, cube.path, about))
    with xarray.open_dataset(tmp_path / "out.nc", engine="h5netcdf", mask_and_scale=False) as out:
        assert np.array_equal(out["reflectance"].values, values + 1)
        assert out["reflectance"].attrs["_FillValue"] == -9999
        assert out["reflectance"].dims == ("downtrack", "crosstrack", "bands")
        assert out.attrs["title"] == "EMIT"
    with xarray.open_dataset(tmp_path / "out.nc", engine="h5netcdf", group="sensor_band_parameters") as out:
        assert out["fwhm"].values.tolist() == [8.5] * 5


def test_prisma_by_path(tmp_path):
    cube = prisma(tmp_path / "prs.he5")
    where = "/HDFEOS/SWATHS/PRS_L2D_HCO/Data Fields/VNIR_Cube"
    with pytest.raises(ValueError, match="several variables may be the cube"):
        read_cube(tmp_path / "prs.he5")
    for given in ({"path": f"{tmp_path}/prs.he5:{where}"}, {"path": tmp_path / "prs.he5", "key": where}):
        found = read_cube(**given)
        assert np.array_equal(found.values, cube.transpose(1, 0, 2))
        assert found.wavelengths.tolist() == [800, 700, 600, 500, 0]
        assert found.metadata.good_bands.tolist() == [True] * 4 + [False]
        assert found.metadata.fwhm.tolist() == [9, 9, 9, 9, 0]
    assert found.metadata.attributes["L2ScaleVnirMax"] == 0.7
    printed = call("evaluate", f"prs.he5:{where}", f"prs.he5:{where.replace('VNIR', 'SWIR')}", cwd=tmp_path)
    assert "SWIR_Cube" in printed
    call("convert", f"prs.he5:{where.replace('VNIR', 'SWIR')}", "out.he5", cwd=tmp_path)
    with h5py.File(tmp_path / "out.he5") as out, h5py.File(tmp_path / "prs.he5") as source:
        assert np.array_equal(out[where], source[where])
        assert out.attrs["L2ScaleVnirMax"] == 0.7


def test_scale_and_offset_stay_attributes(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        node = file.create_dataset("g/data", data=values_of().transpose(1, 2, 0))
        node.attrs.update({"scale_factor": 1e-4, "add_offset": 3.0, "Data_Ignore_Value": np.int16(-32768)})
    cube = read_cube(tmp_path / "a.h5", axes="hwb")
    assert np.array_equal(cube.values, values_of())
    assert cube.metadata.nodata == -32768
    assert cube.metadata.attributes == {"scale_factor": 1e-4, "add_offset": 3.0}
    write_cube(tmp_path / "b.h5", cube)
    with h5py.File(tmp_path / "b.h5") as out:
        assert dict(out["g/data"].attrs) == {"scale_factor": 1e-4, "add_offset": 3.0, "Data_Ignore_Value": -32768}


@pytest.mark.filterwarnings("ignore:Use `@` matmul")  # rioxarray's
@pytest.mark.parametrize("name", ["new.nc", "new.h5", "new.he5"])
def test_a_new_file(tmp_path, name):
    about = Metadata(
        fwhm=np.full(5, 6.5), band_names=tuple("abcde"), good_bands=np.array([1, 0, 1, 1, 1], bool), nodata=-1.0,
        crs=UTM, transform=(2.0, 0.0, 500000.0, 0.0, -3.0, 5400000.0), attributes={"sensor": "X", "gain": [1, 2]},
    )  # fmt: skip
    values = values_of("f4")
    write_cube(tmp_path / name, Cube(values, np.linspace(400.0, 800, 5), None, None, about))
    with xarray.open_dataset(tmp_path / name, engine="h5netcdf", mask_and_scale=False, decode_coords="all") as out:
        assert np.array_equal(out["cube"].values, values)
        assert out["cube"].dims == ("wavelength", "y", "x")
        assert out["wavelength"].values.tolist() == [400, 500, 600, 700, 800]
        assert out["cube"].rio.crs.to_epsg() == 32632
        assert tuple(out["cube"].rio.transform())[:6] == about.transform
        assert out["cube"].attrs["_FillValue"] == -1
        assert (out["fwhm"].values.tolist(), out.attrs["sensor"]) == ([6.5] * 5, "X")
    cube = read_cube(tmp_path / name)
    assert cube.layout.axes == "bhw"
    again = cube.metadata
    assert (again.fwhm.tolist(), again.band_names, again.nodata) == ([6.5] * 5, about.band_names, -1)
    assert (again.good_bands.tolist(), again.crs, again.transform) == (about.good_bands.tolist(), UTM, about.transform)
    assert again.attributes["sensor"] == "X"


def test_without_anything_known(tmp_path):
    write_cube(tmp_path / "a.nc", Cube(values_of("f4")))
    with xarray.open_dataset(tmp_path / "a.nc", engine="h5netcdf") as out:
        assert (out["cube"].dims, list(out.coords)) == (("band", "y", "x"), [])


def test_a_part_is_read_without_the_rest(tmp_path):
    stored = values_of()
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("chunks", data=stored, chunks=(2, 25, 30), compression="gzip", shuffle=True)
        file["plain"] = stored
        file.create_dataset("other", data=stored, chunks=(5, 25, 30), compression="lzf")
        file.create_dataset("few", (5, 60, 70), "i2", chunks=(2, 25, 30), fillvalue=7)
        file["few"][3:4, 30:50] = 1
        few = file["few"][()]
    part = (slice(1, 4), slice(24, 51), slice(None, 40))
    for name in ("chunks", "plain", "other"):
        assert np.array_equal(FORMAT.load_variable(tmp_path / "a.h5", name, part), stored[part])
    assert np.array_equal(FORMAT.load_variable(tmp_path / "a.h5", "few", part), few[part])


def test_filters_of_hdf5plugin(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("cube", data=values_of(), chunks=(5, 20, 20), **hdf5plugin.Zstd())
    cube = read_cube(tmp_path / "a.h5", axes="bhw")
    assert np.array_equal(cube.values, values_of())
    write_cube(tmp_path / "b.h5", cube)
    with h5py.File(tmp_path / "b.h5") as out:
        assert np.array_equal(out["cube"], values_of())
        assert "32015" in out["cube"]._filters
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda code: code != 32015)
    with pytest.raises(ValueError, match=r"filter 32015; .* pip install 'hsidenoise\[hdf5\]'"):
        read_cube(tmp_path / "a.h5", axes="bhw")


def test_a_v7_3_file_under_another_name_is_not_of_matlab(tmp_path):
    write_mat(
        tmp_path / "a.mat",
        {"cube": values_of().transpose(1, 2, 0), "wavelength": np.arange(400.0, 900, 100)},
        hdf5=True,
    )
    convert(tmp_path / "a.mat", tmp_path / "b.nc")
    with xarray.open_dataset(tmp_path / "b.nc", engine="h5netcdf") as out:
        assert out["cube"].dims == ("wavelength", "y", "x")
        assert np.array_equal(out["cube"].values, values_of())


def test_from_and_to_matlab(tmp_path):
    write_cube(tmp_path / "a.nc", Cube(values_of("f4"), np.linspace(400.0, 800, 5), None, None, Metadata(nodata=-5.0)))
    convert(tmp_path / "a.nc", tmp_path / "b.mat")
    cube = read_cube(tmp_path / "b.mat")
    assert np.array_equal(cube.values, values_of("f4"))
    assert (cube.wavelengths.tolist(), cube.metadata.nodata) == ([400, 500, 600, 700, 800], -5)


def test_bad_files_are_one_line(tmp_path):
    emit(tmp_path / "a.nc")
    content = (tmp_path / "a.nc").read_bytes()
    bad = {
        "short.nc": (content[: len(content) // 2], "truncated or damaged"),
        "head.nc": (content[:20], "truncated or damaged"),
        "text.nc": (b"netcdf a {", "not an HDF5/NetCDF file"),
        "none.he5": (b"", "is empty"),
        "classic.nc": (b"CDF\x01" + bytes(40), "classic NetCDF"),
    }
    for name, (data, message) in bad.items():
        (tmp_path / name).write_bytes(data)
        said = call("denoise", name, "-o", "out.nc", cwd=tmp_path, code=2)
        assert refused(said), said
        assert message in said
    assert "no variable '/none'" in call("denoise", "a.nc:/none", "-o", "out.nc", cwd=tmp_path, code=2)
    assert not (tmp_path / "out.nc").exists()


def test_a_path_with_a_colon_is_a_path(tmp_path):
    (tmp_path / "a:").mkdir()
    emit(tmp_path / "a:" / "b.nc")
    assert locate(f"{tmp_path}/a:/b.nc") == (tmp_path / "a:" / "b.nc", None)
    assert {item.name for item in list_variables(f"{tmp_path}/a:/b.nc")} >= {"reflectance"}


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")
def test_units_and_dimensions_go_by_their_names(tmp_path, suffix):
    values = np.random.default_rng(0).random((9, 8, 5))
    for dims, unit, scale in (
        (("line", "sample", "spectral_channel"), "Angstroms", 10),
        (("Along track", "Cross track", "Band"), "m", 1e-9),
        (("number_of_lines", "number_of_samples", "number_of_bands"), "cm-1", 1),
        (("y", "x", "z"), None, 1e-3),
    ):
        waves = (dims[2], np.arange(400.0, 900, 100) * scale, {} if unit is None else {"units": unit})
        data = xarray.Dataset({"rad": (dims, values)}, {"wavelength": waves}, {"units": "of the file"})
        path = tmp_path / f"{dims[2]}{suffix}"
        data.to_netcdf(path, engine="h5netcdf") if suffix == ".nc" else data.to_zarr(path, consolidated=False)
        cube = read_cube(path)
        assert cube.layout.axes == "hwb"
        if unit == "cm-1":  # a wavenumber
            assert cube.wavelengths is None
        else:
            np.testing.assert_allclose(cube.wavelengths, np.arange(400, 900, 100))
