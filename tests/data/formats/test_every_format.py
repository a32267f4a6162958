"""What holds for every format: values and type arrive, a full disk leaves nothing, what was lost is said."""

import json
import os
from dataclasses import replace
from urllib.parse import unquote

import h5py
import numpy as np
import pytest
import rasterio
import spectral.io.envi
import xarray
import zarr
from command_line import call, child, refused

from hsidenoise.data.formats.mat import write_mat
from hsidenoise.data.io import Cube, convert, read_cube, write_cube
from hsidenoise.data.metadata import Metadata
from hsidenoise.data.sources import FORMATS, list_variables

SUFFIXES = [suffix for form in FORMATS for suffix in form.suffixes]
FULL_DISK = """
import resource, sys, warnings
from pathlib import Path
import hsidenoise.data.io
from hsidenoise.data.io import read_cube, write_cube
warnings.simplefilter("ignore")
folder = Path(sys.argv[1])
axes = {".npy": "hwb", ".npz": "hwb", ".mat": "hwb"}
paths = [path for path in folder.glob("a.*") if path.suffix != ".hdr"]
cubes = {path: read_cube(path, axes=axes.get(path.suffix)) for path in paths}
new = cubes[folder / "a.npy"]
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))  # in the midst of a file, where HDF5 would break down at exit
hsidenoise.data.io.V5_LIMIT = 1000  # so that new.mat is v7.3
for suffix in (".nc", ".mat", ".npy"):
    try:
        write_cube(folder / f"new{suffix}", new)
    except OSError as error:
        print(error)
hsidenoise.data.io.V5_LIMIT = 1 << 30
resource.setrlimit(resource.RLIMIT_FSIZE, (9, 9))
for source, cube in [*cubes.items(), *((path, new) for path in cubes)]:
    try:
        write_cube(folder / f"out{source.suffix}", cube)
        print("written", source)
    except OSError as error:
        print(error)
"""


def values_of(dtype="i2"):
    return np.random.default_rng(0).integers(0, 90, (5, 60, 70)).astype(dtype)


def everything(folder):
    """The same cube in one file of each format."""
    np.save(folder / "a.npy", values_of().transpose(1, 2, 0))
    for suffix in (".mat", ".npz", ".img", ".tif", ".nc", ".zarr"):
        convert(folder / "a.npy", folder / f"a{suffix}")
    return sorted(path for path in folder.iterdir() if path.suffix != ".hdr")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", ["i2", "f8"])
@pytest.mark.filterwarnings("ignore:.* has no place for")
def test_values_and_type_arrive_in_every_format(tmp_path, suffix, dtype):
    np.savez(tmp_path / "a.npz", cube=values_of(dtype).transpose(1, 2, 0), wavelength=np.linspace(400, 800, 5))
    convert(tmp_path / "a.npz", tmp_path / f"b{suffix}")
    cube = read_cube(tmp_path / f"b{suffix}", exact=True)
    assert np.array_equal(cube.values, values_of(dtype))
    assert cube.layout.dtype == np.dtype(dtype)
    assert len(list_variables(tmp_path / f"b{suffix}")) >= 1
    if suffix != ".npy":
        assert cube.wavelengths.tolist() == [400, 500, 600, 700, 800]


def test_a_full_disk_leaves_nothing_in_any_format(tmp_path):
    files = everything(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = child("-c", FULL_DISK, tmp_path, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 2 * len(files) + 3, done.stdout
    for line in lines:
        assert line.endswith(("File too large; nothing was left behind", "disk full?; nothing was left behind")), line
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_no_permission_in_any_format(tmp_path):
    files = everything(tmp_path)
    (tmp_path / "closed").mkdir(mode=0o555)
    for path in files:
        assert refused(call("convert", path.name, f"closed/b{path.suffix}", cwd=tmp_path, code=2))
        (path / "zarr.json" if path.is_dir() else path).chmod(0)
        assert "no permission to read it; ask" in call("convert", path.name, "b.npy", cwd=tmp_path, code=2)


def test_what_a_format_has_no_place_for_is_said(tmp_path):
    about = Metadata(
        np.full(5, 9.0), tuple("abcde"), np.ones(5, bool), -1.0, "LOCAL_CS[]", (1.0, 0, 0, 0, 1.0, 0), {"a": "b"}
    )
    cube = Cube(values_of("f4"), np.linspace(400.0, 800, 5), None, None, about)
    with pytest.warns(
        UserWarning, match="no place for wavelengths, FWHM, band names, bad-band list, nodata value, coor"
    ):
        write_cube(tmp_path / "a.npy", cube)
    with pytest.warns(UserWarning, match="MATLAB has no place for other header fields: left out"):
        write_cube(tmp_path / "a.mat", cube)
    assert read_cube(tmp_path / "a.mat").metadata.transform == about.transform


def test_types_that_a_format_has_not(tmp_path):
    np.save(tmp_path / "half.npy", values_of("f2"))
    np.save(tmp_path / "byte.npy", values_of("i1"))
    for source, suffix in (("half", ".mat"), ("half", ".img"), ("half", ".tif"), ("byte", ".hdr")):
        said = call("convert", f"{source}.npy", f"b{suffix}", "--axes", "bhw", cwd=tmp_path, code=2)
        assert refused(said)
        assert "has no numbers of type" in said
        assert said.rstrip().endswith("name it .npy" if source == "half" else "name it .npy or .mat")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["byte.npy", "half.npy"]


def test_the_target_is_looked_at_before_the_work(tmp_path):
    files = everything(tmp_path)
    for path in files:
        for target in ("b.jpg", "none/b.mat", "-"):
            assert refused(call("denoise", path.name, "-o", target, cwd=tmp_path, code=2))
        assert "would be lost" in call("convert", path.name, path.name, cwd=tmp_path, code=2) or path.is_dir()


def test_numbers_that_no_float_holds_are_converted_as_they_are(tmp_path):
    values = np.array([2**63 - 1, -(2**63), 2**53 + 1, 7] * 15).reshape(3, 4, 5)
    np.save(tmp_path / "a.npy", values)
    for suffix in (".mat", ".img", ".tif", ".h5", ".zarr"):
        call("convert", "a.npy", f"b{suffix}", "--axes", "bhw", cwd=tmp_path)
        call(
            "convert",
            f"b{suffix}",
            f"c{suffix[1:]}.npy",
            *(["--axes", "hwb"] if suffix == ".mat" else []),
            cwd=tmp_path,
        )
        assert np.array_equal(np.load(tmp_path / f"c{suffix[1:]}.npy"), values.transpose(1, 2, 0))


@pytest.mark.filterwarnings("ignore:.* has no place for")
def test_values_that_are_not_finite_are_converted_as_they_are(tmp_path):
    values = values_of("f4")
    values[0, 0, :3] = np.nan, np.inf, -np.inf
    np.save(tmp_path / "a.npy", values)
    for suffix in (".mat", ".img", ".tif", ".nc", ".zarr"):
        convert_in = ["--axes", "bhw"]
        call("convert", "a.npy", f"b{suffix}", *convert_in, cwd=tmp_path)
        again = read_cube(tmp_path / f"b{suffix}", exact=True, axes="hwb" if suffix == ".mat" else None)
        assert np.array_equal(again.values, values, equal_nan=True)


def by_another(path):
    """The record of a file, by a reader of somebody else."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            return str(file["hsidenoise"])
    if path.suffix == ".hdr":
        with rasterio.open(path.with_suffix(".img")) as file:
            text = file.tags(ns="ENVI")["hsidenoise"]
        assert spectral.io.envi.read_envi_header(str(path))["hsidenoise"] == text
        return unquote(text)
    if path.suffix == ".tif":
        with rasterio.open(path) as file:
            return file.tags()["hsidenoise"]
    if path.suffix == ".zarr":
        with xarray.open_zarr(path) as data:
            return next(iter(data.values())).attrs["hsidenoise"]
    if path.suffix == ".nc":
        with xarray.open_dataset(path, engine="h5netcdf") as data:
            return next(iter(data.values())).attrs["hsidenoise"]
    with h5py.File(path) as file:
        return bytes(file["cube"].attrs["hsidenoise"]).decode()


RECORD = json.dumps({"hsidenoise": "1", "options": {"tile": None}, "warnings": ["100 % {of; it}, = \n \u00e9"]})


@pytest.mark.parametrize("suffix", [".hdr", ".tif", ".npz", ".nc", ".zarr", ".mat"])
@pytest.mark.filterwarnings("ignore:.*[Cc]onsolidated metadata", "ignore:Dataset has no geotransform")
def test_a_record_is_put_in_and_replaced(tmp_path, suffix):
    """Other readers find it."""
    before, after = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    if suffix == ".mat":
        write_mat(before, {"cube": values_of().transpose(1, 2, 0), "odd": np.eye(3)}, hdf5=True)
    else:
        assert write_cube(before, Cube(values_of("f4"), metadata=Metadata(record=RECORD))) == before
        assert by_another(before) == RECORD
    if suffix == ".zarr":  # as xarray writes it
        zarr.consolidate_metadata(str(before))
    cube = read_cube(before, key="cube" if suffix == ".mat" else None)
    assert cube.metadata.record == (None if suffix == ".mat" else RECORD)
    assert "hsidenoise" not in cube.metadata.attributes
    metadata = replace(cube.metadata, record=RECORD.replace("1", "2"))
    assert write_cube(after, replace(cube, values=cube.values + 1, metadata=metadata)) == after
    assert by_another(after) == metadata.record
    again = read_cube(after)
    assert again.metadata.record == metadata.record
    assert np.array_equal(again.values, cube.values + 1)
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.filterwarnings("ignore:.*[Cc]onsolidated metadata", "ignore:Dataset has no geotransform")
def test_a_record_is_converted(tmp_path):
    metadata = Metadata(record=RECORD)
    assert write_cube(tmp_path / "a.npy", Cube(values_of("f4"), metadata=metadata)) == tmp_path / "a.npy.json"
    path = tmp_path / "a.npy"
    for suffix in (".hdr", ".tif", ".npz", ".nc", ".zarr"):
        convert(path, path := tmp_path / f"b{suffix}", axes="hwb" if path.suffix == ".npy" else None)
        assert by_another(path).strip() == RECORD
    convert(path, tmp_path / "c.mat")
    assert (tmp_path / "c.mat.json").read_text().strip() == RECORD


def test_a_record_beside_a_file_goes_with_it(tmp_path):
    cube = Cube(values_of("f4"), metadata=Metadata(record=RECORD))
    target, beside = tmp_path / "a.mat", tmp_path / "a.mat.json"
    assert write_cube(target, cube) == beside
    assert read_cube(target, axes="hwb").metadata.record.strip() == RECORD
    write_cube(target, replace(cube, metadata=None))
    assert not beside.exists()
    beside.write_text("mine")
    with pytest.warns(UserWarning, match=r"a.mat.json is there and of something else"):
        assert write_cube(target, cube) is None
    assert beside.read_text() == "mine"
    assert read_cube(target, axes="hwb").metadata.record is None


def test_a_long_record_and_an_array_of_its_name(tmp_path):
    record = json.dumps({"hsidenoise": "1", "all": list(range(20000))})
    write_mat(tmp_path / "a.mat", {"cube": values_of().transpose(1, 2, 0)}, hdf5=True)
    np.savez(tmp_path / "a.npz", cube=values_of().transpose(1, 2, 0), hsidenoise=np.eye(3))
    for name, place in (("a.mat", "b.mat"), ("a.npz", "b.npz.json")):
        cube = read_cube(tmp_path / name)
        target = tmp_path / f"b{cube.path.suffix}"
        assert write_cube(target, replace(cube, metadata=replace(cube.metadata, record=record))).name == place
        assert read_cube(target).metadata.record.strip() == record
    assert np.array_equal(np.load(tmp_path / "b.npz")["hsidenoise"], np.eye(3))


@pytest.mark.parametrize("suffix", [".tif", ".nc", ".hdr", ".zarr"])
@pytest.mark.parametrize(
    ("dtype", "nodata", "near"),
    [("u2", 0, 0.4), ("u1", 255, 254.7), ("i2", -9999, -9999.2), ("f4", -1, -1), ("f8", 0, 0), ("i4", -(2**31), -3e9)],
)
def test_data_do_not_become_no_data(tmp_path, suffix, dtype, nodata, near):
    first = tmp_path / f"a{suffix}"
    np.save(tmp_path / "a.npy", values_of(dtype) + np.dtype(dtype).type(9))
    convert(tmp_path / "a.npy", first, axes="bhw", nodata=nodata)
    cube = read_cube(first, exact=True)
    values = cube.values.copy()
    values[0, 0, :5] = near, nodata, nodata, 50, 60
    mask = np.ones(values.shape, bool)
    mask[0, 0, 2] = False
    for name, valid in (("b", None), ("c", mask)):
        write_cube(tmp_path / f"{name}{suffix}", replace(cube, values=values, mask=valid))
        for exact in (True, False):
            found = read_cube(tmp_path / f"{name}{suffix}", exact=exact)
            expected = [valid is not None, 50, 60]
            assert [found.values[0, 0, 2] == nodata, *found.values[0, 0, 3:5]] == expected
            assert not (found.values[0, 0, :2] == nodata).any()
            assert np.abs(found.values[0, 0, :2].astype(float) - nodata).max() <= max(1, abs(nodata) * 1e-6)


@pytest.mark.parametrize(
    ("dtype", "number"),
    [("i8", -(2**63) + 2), ("i8", 2**63 - 1), ("u8", 2**64 - 1), ("u4", 2**32 - 1), ("f8", -9999.1)],
)
def test_no_data_keep_every_bit(tmp_path, dtype, number):
    stored = values_of(dtype)
    stored[:, :3, :3] = number
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("cube", data=stored).attrs["_FillValue"] = number
    for exact in (True, False):
        cube = read_cube(tmp_path / "a.h5", exact=exact)
        write_cube(tmp_path / "b.h5", replace(cube, values=np.where(cube.mask, cube.values + 1, cube.values)))
        with h5py.File(tmp_path / "b.h5") as file:
            assert np.array_equal(file["cube"][:, :3, :3], stored[:, :3, :3])
            assert np.array_equal(file["cube"][:, 3:], stored[:, 3:] + 1)


@pytest.mark.parametrize("suffix", [".hdr", ".tif", ".mat", ".nc"])
@pytest.mark.parametrize("about", [{"fwhm": np.ones(3)}, {"band_names": ("a", "b")}, {"good_bands": np.ones(6, bool)}])
def test_metadata_of_other_bands_are_refused(tmp_path, suffix, about):
    with pytest.raises(ValueError, match=r"is for \d bands, the cube has 5"):
        write_cube(tmp_path / f"a{suffix}", Cube(values_of("f4"), metadata=Metadata(**about)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".mat", "v7.3.mat", ".npz"])
def test_texts_come_back(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr("hsidenoise.data.io.V5_LIMIT", 1000 if "v7.3" in suffix else 10**9)
    about = Metadata(crs='LOCAL_CS["x"]', band_names=("a", "bcd", "e f", "µ", "h"), record='{"hsidenoise": 1}')
    recorded = write_cube(tmp_path / f"a{suffix}", Cube(values_of("f4"), metadata=about))
    assert recorded == tmp_path / ("a.mat.json" if suffix == ".mat" else f"a{suffix}")  # v5 has no place for it
    found = read_cube(tmp_path / f"a{suffix}").metadata
    assert (found.crs, found.band_names) == (about.crs, about.band_names)
    assert found.record.strip() == about.record
