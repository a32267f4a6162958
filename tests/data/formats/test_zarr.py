import sys

import numpy as np
import pytest
import xarray
import zarr
from command_line import call, refused

from hsidenoise.data.formats.zarr import FORMAT
from hsidenoise.data.io import Cube, convert, read_cube, write_cube
from hsidenoise.data.metadata import Metadata


def values_of(dtype="i2"):
    return np.random.default_rng(0).normal(2000, 500, (5, 90, 70)).astype(dtype)


@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")
@pytest.mark.parametrize("version", [2, 3])
def test_a_copy_is_the_source_with_other_numbers(tmp_path, version):
    data = xarray.DataArray(
        values_of(), dims=("band", "y", "x"), coords={"wavelength": ("band", np.arange(400.0, 900, 100))}
    )
    xarray.Dataset({"rad": data, "other": ("t", np.arange(3))}, attrs={"title": "T"}).to_zarr(
        tmp_path / "a.zarr", zarr_format=version, consolidated=False
    )
    cube = read_cube(tmp_path / "a.zarr")
    assert (cube.layout.key, cube.layout.axes) == ("rad", "bhw")
    assert cube.wavelengths.tolist() == [400, 500, 600, 700, 800]
    assert cube.metadata.attributes["title"] == "T"
    assert np.array_equal(cube.values, values_of())
    write_cube(tmp_path / "b.zarr", Cube(cube.values + 1, cube.wavelengths, cube.layout, cube.path, cube.metadata))
    with xarray.open_zarr(tmp_path / "b.zarr", consolidated=False) as out:
        assert np.array_equal(out["rad"].values, values_of() + 1)
        assert (out.attrs["title"], out["other"].values.tolist()) == ("T", [0, 1, 2])
    part = (slice(1, 4), slice(24, 51), slice(None, 40))
    assert np.array_equal(FORMAT.load_variable(tmp_path / "a.zarr", "rad", part), values_of()[part])


def test_a_new_store(tmp_path):
    about = Metadata(
        fwhm=np.full(5, 6.5), nodata=-1.0, transform=(2.0, 0.0, 10.0, 0.0, -3.0, 20.0), attributes={"a": "b"}
    )
    np.save(tmp_path / "a.npy", values_of())
    stored = read_cube(tmp_path / "a.npy", axes="bhw", exact=True)
    write_cube(tmp_path / "b.zarr", Cube(stored.values, np.linspace(400.0, 800, 5), stored.layout, stored.path, about))
    root = zarr.open_group(tmp_path / "b.zarr", mode="r")
    assert root["a"].chunks == (5, 64, 64)  # whole spectra
    assert (root["a"].dtype, root.metadata.zarr_format) == (np.int16, 3)
    with xarray.open_zarr(tmp_path / "b.zarr", consolidated=False, mask_and_scale=False) as out:
        assert np.array_equal(out["a"].values, values_of())
        assert out["a"].dims == ("wavelength", "y", "x")
        assert (out["fwhm"].values.tolist(), out["a"].attrs["_FillValue"]) == ([6.5] * 5, -1)
        assert out["x"].values[:2].tolist() == [11, 13]
    cube = read_cube(tmp_path / "b.zarr")
    assert cube.wavelengths.tolist() == [400, 500, 600, 700, 800]
    assert (cube.metadata.nodata, cube.metadata.transform) == (-1, about.transform)


def test_nothing_is_written_inside_of_a_store_that_is_read(tmp_path):
    zarr.save(tmp_path / "a.zarr", values_of())
    before = sorted(tmp_path.rglob("*"))
    denoise = "denoise", "a.zarr", "--method", "planes"
    for words in (
        ("convert", "a.zarr", "a.zarr/new.npy"),
        (*denoise, "-o", "a.zarr/new.npy"),
        (*denoise, "--save-noise", "a.zarr/new.mat"),
        (*denoise, "--picture", "a.zarr/new.png"),
    ):
        message = call(*words, cwd=tmp_path, code=2)
        assert refused(message)
        assert "inside of" in message
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "b.zarr").write_text("a file")
    message = call("denoise", "a.zarr", "--dry-run", "-o", "b.zarr", cwd=tmp_path, code=2)  # before the work
    assert "it is a file, zarr takes a new folder" in message


def test_a_store_of_one_array(tmp_path):
    zarr.save_array(tmp_path / "a.zarr", values_of("f4"))
    cube = read_cube(tmp_path / "a.zarr", axes="bhw")
    assert np.array_equal(cube.values, values_of("f4"))
    convert(tmp_path / "a.zarr", tmp_path / "b.zarr")
    assert np.array_equal(zarr.load(tmp_path / "b.zarr"), values_of("f4"))


def test_bad_stores_are_one_line(tmp_path):
    zarr.save_array(tmp_path / "a.zarr", values_of("f4"))
    chunk = next(file for file in (tmp_path / "a.zarr" / "c").rglob("*") if file.is_file())
    chunk.write_bytes(chunk.read_bytes()[:30])
    (tmp_path / "none.zarr").mkdir()
    (tmp_path / "text.zarr").mkdir()
    (tmp_path / "text.zarr" / "zarr.json").write_text("{")
    for name in ("a.zarr", "none.zarr", "text.zarr"):
        said = call("convert", name, "out.npy", cwd=tmp_path, code=2)
        assert refused(said), said
        assert "truncated or damaged" in said
    np.save(tmp_path / "a.npy", values_of())
    assert "is a folder" in call("convert", "a.npy", "a.zarr", cwd=tmp_path, code=2)
    assert not (tmp_path / "out.npy").exists()


def test_without_the_extra_it_is_named(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", values_of())
    convert(tmp_path / "a.npy", tmp_path / "a.zarr")
    monkeypatch.setitem(sys.modules, "zarr", None)
    for arguments in (("a.zarr", "o.npy"), ("a.npy", "o.zarr")):
        said = call("convert", *arguments, cwd=tmp_path, code=2)
        assert refused(said)
        assert "pip install 'hsidenoise[zarr]'" in said
