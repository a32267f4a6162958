import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import skimage.io
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hsidenoise.data.formats.mat import load_variable, write_mat
from hsidenoise.data.io import Cube, check_values, read_cube, write_arrays, write_cube
from hsidenoise.data.layout import Layout
from hsidenoise.data.sources import list_variables
from hsidenoise.system.files import check_target

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
TYPES = ["u1", "i1", "u2", "i2", "i4", "u4", "i8", "u8", "f4", "f8"]


def cube_values(bands=5, height=6, width=7):
    return np.random.default_rng(0).random((bands, height, width), dtype=np.float32)


def names(folder):
    return sorted(item.name for item in folder.iterdir())


def stored(draw_shape, dtype, seed):
    dtype = np.dtype(dtype)
    rng = np.random.default_rng(seed)
    if dtype.kind == "f":
        return rng.normal(size=draw_shape).astype(np.float32).astype(dtype)
    limits = np.iinfo(dtype)  # float32 keeps integers up to 2**24
    return rng.integers(max(limits.min, -(2**24)), min(limits.max, 2**24), draw_shape, endpoint=True).astype(dtype)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.permutations([3, 4, 6]),
    axes=st.permutations("hwb").map("".join),
    dtype=st.sampled_from(TYPES),
    hdf5=st.sampled_from([False, False, True]),  # which takes ten times as long
    seed=st.integers(0, 2**16),
)
def test_untouched_round_trip_is_exact(sizes, axes, dtype, hdf5, seed):
    original = stored(sizes, dtype, seed)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "a.mat"), Path(folder, "b.mat")
        write_mat(source, {"note": np.arange(4), "img": original, "mask": np.eye(2) > 0}, hdf5=hdf5)
        cube = read_cube(source, axes=axes)
        expected = original.transpose([axes.index(letter) for letter in "bhw"])
        assert np.array_equal(cube.values, expected.astype(np.float32))
        assert cube.values.dtype == np.float32
        assert cube.values.flags.c_contiguous
        write_cube(target, cube)
        assert list_variables(target) == list_variables(source)
        for variable in list_variables(source):
            before, after = load_variable(source, variable.name), load_variable(target, variable.name)
            assert before.dtype == after.dtype
            assert np.array_equal(before, after)
        again = read_cube(target, axes=axes)
        assert again.layout == cube.layout
        assert np.array_equal(again.values, cube.values)


@settings(max_examples=20, deadline=None)
@given(
    axes=st.sampled_from(["bp", "pb"]), size=st.permutations([4, 5]), hdf5=st.booleans(), dtype=st.sampled_from(TYPES)
)
def test_unfolded_round_trip(axes, size, hdf5, dtype):
    original = stored((3, 20) if axes == "bp" else (20, 3), dtype, 0)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "a.mat"), Path(folder, "b.mat")
        write_mat(source, {"Y": original, "GT": np.ones((3, 1))}, hdf5=hdf5)
        cube = read_cube(source, size=tuple(size))
        assert (cube.layout.axes, cube.values.shape) == (axes, (3, *size))
        write_cube(target, cube)
        assert np.array_equal(load_variable(target, "Y"), original)


def test_singleton_axes_come_back(tmp_path):
    original = stored((1, 12, 13, 5), "u2", 0)
    write_mat(tmp_path / "a.mat", {"x": original})
    cube = read_cube(tmp_path / "a.mat")
    assert np.array_equal(cube.values, original[0].transpose(2, 0, 1))
    write_cube(tmp_path / "b.mat", cube)
    assert np.array_equal(load_variable(tmp_path / "b.mat", "x"), original)


def test_icvl_as_hdf5_shows_it(tmp_path):
    """ICVL: key `rad`, HDF5 gives (bands, columns, rows), with `bands` and `rgb` beside it."""
    rad = np.random.default_rng(0).random((31, 13, 14)) * 4095
    for marked in (True, False):
        with h5py.File(tmp_path / "scene.mat", "w", userblock_size=512) as file:
            file["rad"], file["rgb"] = rad, np.zeros((3, 13, 14))
            file["bands"] = np.arange(400.0, 701, 10)[:, None]
            for name in file if marked else ():
                file[name].attrs["MATLAB_class"] = np.bytes_(b"double")
        with (tmp_path / "scene.mat").open("r+b") as file:
            file.write(b"MATLAB 7.3 MAT-file")
        cube = read_cube(tmp_path / "scene.mat")
        assert (cube.layout.key, cube.layout.axes, cube.layout.shape) == ("rad", "hwb", (14, 13, 31))
        assert np.array_equal(cube.values, rad.transpose(0, 2, 1).astype(np.float32))
        assert cube.wavelengths.tolist() == list(range(400, 701, 10))


def test_row_major_hdf5_of_another_program(tmp_path):
    values = np.random.default_rng(0).random((40, 50, 9))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data/cube"] = values
    cube = read_cube(tmp_path / "a.h5")
    assert np.array_equal(cube.values, values.transpose(2, 0, 1).astype(np.float32))
    write_cube(tmp_path / "b.h5", cube)
    with h5py.File(tmp_path / "b.h5") as file:
        assert file["data/cube"].shape == (40, 50, 9)


def test_published_pair(tmp_path):
    clean = cube_values().transpose(1, 2, 0)
    write_arrays(tmp_path / "a.mat", {"gt": clean, "input": clean + 1, "sigma": np.ones(5)})
    assert read_cube(tmp_path / "a.mat").layout.key == "input"
    assert np.array_equal(read_cube(tmp_path / "a.mat", key="gt").values, cube_values())


def test_integers_are_rounded_and_clipped(tmp_path):
    values = np.array([-3.0, 0.4, 0.6, 254.7, 255.4, 300.0], np.float32).reshape(1, 2, 3)
    for dtype in TYPES[:8]:
        limits = np.iinfo(dtype)
        layout = Layout("mat5", "x", "hwb", (2, 3, 1), np.dtype(dtype), None, "")
        write_cube(tmp_path / "a.mat", Cube(values * np.float32(1 + (limits.max > 1e9) * 1e19), layout=layout))
        found = load_variable(tmp_path / "a.mat", "x").ravel()
        assert found.dtype == np.dtype(dtype)
        if limits.max == 255:  # of 0.4, 0.6, 254.7 and 255.4 each is the nearest
            assert found.tolist() == [0, 0, 1, 255, 255, 255]
        assert found[0] == (limits.min if limits.max > 1e9 else max(limits.min, -3))
        assert found[-1] >= min(limits.max - 4096, 300)


def test_new_file(tmp_path):
    cube = Cube(cube_values(), np.linspace(400.0, 700.0, 5))
    write_cube(tmp_path / "a.mat", cube)
    found = scipy.io.loadmat(tmp_path / "a.mat")
    assert found["cube"].dtype == np.float32
    assert np.array_equal(found["cube"], cube.values.transpose(1, 2, 0))
    assert np.array_equal(found["wavelength"], cube.wavelengths[:, None])
    again = read_cube(tmp_path / "a.mat")
    assert np.array_equal(again.values, cube.values)
    assert np.array_equal(again.wavelengths, cube.wavelengths)
    write_cube(tmp_path / "b.mat", replace(again, path=None, layout=replace(again.layout, format="mat73")))
    assert h5py.is_hdf5(tmp_path / "b.mat")
    assert np.array_equal(read_cube(tmp_path / "b.mat").values, cube.values)


@pytest.mark.usefixtures("unchecked")
def test_an_array_is_written_as_it_is(tmp_path):
    values = np.arange(60, dtype=np.int64).reshape(3, 4, 5) + 2**62
    write_cube(tmp_path / "a.mat", values)
    assert np.array_equal(scipy.io.loadmat(tmp_path / "a.mat")["cube"], values.transpose(1, 2, 0))
    write_cube(tmp_path / "a.hdr", np.where(values % 2, np.nan, 1.5))
    assert np.array_equal(np.fromfile(tmp_path / "a.img").reshape(3, 4, 5), np.where(values % 2, np.nan, 1.5), True)
    with pytest.raises(TypeError, match=r"takes the path first, then the cube: write_cube\(path, cube\), not int64 of"):
        write_cube(values, tmp_path / "b.mat")
    for wrong in (values[0], values + 1j, values.tolist(), torch.ones(3, 4, 5)):
        with pytest.raises(TypeError, match=r"takes a Cube or an array of numbers \(bands, height, width\), not "):
            write_cube(tmp_path / "b.mat", wrong)
    assert not (tmp_path / "b.mat").exists()


def test_target_may_be_the_source(tmp_path):
    for hdf5 in (False, True):
        write_mat(tmp_path / "a.mat", {"x": cube_values().transpose(1, 2, 0), "y": np.ones((2, 2))}, hdf5=hdf5)
        (tmp_path / "a.mat").chmod(0o640)
        cube = read_cube(tmp_path / "a.mat")
        write_cube(tmp_path / "a.mat", replace(cube, values=cube.values * 2))
        assert np.array_equal(read_cube(tmp_path / "a.mat").values, cube.values * 2)
        assert load_variable(tmp_path / "a.mat", "y").sum() == 4
        assert (tmp_path / "a.mat").stat().st_mode & 0o777 == 0o640
    assert names(tmp_path) == ["a.mat"]


def test_a_link_stays_a_link_and_modes_follow_the_umask(tmp_path):
    (tmp_path / "link.mat").symlink_to(tmp_path / "real.mat")
    write_arrays(tmp_path / "link.mat", {"x": np.ones(3)})
    assert (tmp_path / "link.mat").is_symlink()
    assert load_variable(tmp_path / "real.mat", "x").sum() == 3
    (tmp_path / "plain").touch()
    assert (tmp_path / "real.mat").stat().st_mode == (tmp_path / "plain").stat().st_mode


def png_folder(folder, bands=31):
    folder.mkdir()
    cube = stored((8, 9, bands), "u2", 0)
    cube[0, 0, 0] = 65535
    for band in range(bands):
        skimage.io.imsave(folder / f"beads_ms_{band + 1:02d}.png", cube[..., band], check_contrast=False)
    return cube


def test_cave_folder(tmp_path):
    original = png_folder(tmp_path / "beads_ms")
    cube = read_cube(tmp_path / "beads_ms")
    assert np.array_equal(cube.values, original.transpose(2, 0, 1))
    assert cube.wavelengths.tolist() == list(range(400, 701, 10))
    (variable,) = list_variables(tmp_path / "beads_ms")
    assert (variable.name, variable.shape, variable.dtype) == ("beads_ms", (8, 9, 31), np.uint16)
    write_cube(tmp_path / "clean", replace(cube, values=cube.values + 0.4))
    assert np.array_equal(read_cube(tmp_path / "clean").values, cube.values)
    write_cube(tmp_path / "clean.mat", cube)
    found = scipy.io.loadmat(tmp_path / "clean.mat")
    assert found["cube"].dtype == np.uint16
    assert np.array_equal(found["cube"], original)
    assert np.array_equal(read_cube(tmp_path / "clean.mat").wavelengths, cube.wavelengths)
    assert names(tmp_path) == ["beads_ms", "clean", "clean.mat"]
    with pytest.raises(ValueError, match="no 2-D variable"):
        read_cube(tmp_path / "beads_ms", size=(8, 9))
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        write_cube(tmp_path / "clean", cube)


def test_other_folders_have_no_wavelengths(tmp_path):
    png_folder(tmp_path / "x", bands=12)
    assert read_cube(tmp_path / "x").wavelengths is None


@pytest.mark.parametrize(
    ("content", "choice", "message"),
    [
        ({"t": np.ones((3, 1))}, {}, "no 3-D variable; the file holds t 3x1"),
        ({"a": np.ones((3, 4, 5)), "b": np.ones((3, 4, 6))}, {}, "choose one with --key"),
        ({"a": np.ones((3, 4, 5))}, {"key": "b"}, "no variable 'b'; the file holds a 3x4x5"),
        ({"a": np.full((3, 4, 5), 7.0)}, {}, "is constant: every value is 7"),
        ({"a": np.ones((3, 0, 5))}, {}, "is empty"),
        ({"a": np.ones((3, 4, 5)) * 1j}, {}, "complex numbers"),
        (
            {"a": np.where(np.arange(60).reshape(3, 4, 5) == 9, np.nan, 0)},
            {},
            "is constant: every value is 0",
        ),
        ({"a": np.full((3, 4, 5), np.inf)}, {"axes": "bhw"}, "has no valid value"),
        ({"a": np.arange(60).reshape(3, 4, 5)}, {"bad_bands": "2,5-6"}, "bad band 5: the cube has bands 0 to 4"),
        ({"a": np.arange(60).reshape(3, 4, 5)}, {"bad_bands": "2-"}, "bad bands '2-': write auto, keep, or numbers"),
        ({"a": np.arange(60).reshape(3, 4, 5)}, {"mask": "m"}, r"the mask 'm' is neither a variable of it \(a\) nor a"),
        ({"a": np.linspace(0, 1e300, 60).reshape(3, 4, 5)}, {}, "beyond single precision"),
    ],
)
@pytest.mark.parametrize("hdf5", [False, True])
def test_bad_input_is_one_line_with_the_path(tmp_path, content, choice, message, hdf5):
    path = tmp_path / "bad.mat"
    if not hdf5:
        scipy.io.savemat(path, content)
    else:
        with h5py.File(path, "w") as file:
            for name, value in content.items():
                file.create_dataset(name, data=value.T).attrs["MATLAB_class"] = np.bytes_(b"double")
    with pytest.raises(ValueError, match=message) as caught:
        read_cube(path, **choice)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("axes", ["hwb", "bhw", "whb"])
@pytest.mark.parametrize("where", ["variable", "file", "variable of a file", "cube", "bands", "on its side"])
def test_a_mask_is_a_variable_or_a_file(tmp_path, axes, where):
    rng = np.random.default_rng(0)
    cube, mask = rng.random((3, 7, 5)), rng.random((7, 5)) < 0.7
    order = ["bhw".index(axis) for axis in axes]
    image = mask.T if axes == "whb" else mask
    arrays = {"a": cube.transpose(order)}
    given = "m"
    if where == "variable":
        arrays["m"] = image
    elif where == "cube":
        mask = rng.random(cube.shape) < 0.7
        arrays["m"] = mask.transpose(order).astype(np.uint8)
    elif where == "bands":
        mask = np.array([1, 0, 1])[:, None, None]
        arrays["m"] = mask[:, 0]
    else:
        given = str(tmp_path / "m.mat")
        scipy.io.savemat(given, {"m": image.T if where == "on its side" else image})
        if where == "variable of a file":
            scipy.io.savemat(given, {"other": 1 - image, "m": image})
            given += ":/m"
    scipy.io.savemat(tmp_path / "a.mat", arrays)
    read = read_cube(tmp_path / "a.mat", key="a", axes=axes, mask=given)
    assert np.array_equal(read.mask, np.broadcast_to(mask != 0, cube.shape))
    assert read.not_data[0].startswith("not in the given mask: ")
    scipy.io.savemat(tmp_path / "a.mat", {"a": cube.transpose(order), "m": np.ones((2, 2))})
    with pytest.raises(ValueError, match="the mask 'm' is 2x2; the cube has 3 bands of 7x5 pixels"):
        read_cube(tmp_path / "a.mat", key="a", axes=axes, mask="m")
    if where == "variable of a file":
        with pytest.raises(ValueError, match=r"m.mat holds other, m; .* as in .*m.mat:/NAME"):
            read_cube(tmp_path / "a.mat", key="a", axes=axes, mask=given[: -len("m")] + "none")


def test_no_file_and_no_mat_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_cube(tmp_path / "none.mat")
    (tmp_path / "a.mat").write_text("rad")
    with pytest.raises(ValueError, match="not a MATLAB file"):
        read_cube(tmp_path / "a.mat")
    with pytest.raises(ValueError, match="folder without band images"):
        read_cube(tmp_path)


def test_check_values_names_the_place():
    values = cube_values()
    check_values(values)
    values[3, 2, 1] = np.nan
    values[4, 0, 0] = -np.inf
    with pytest.raises(ValueError, match=r"x has NaN .* 2 of 210, the first in band 3, row 2, column 1"):
        check_values(values, "x")
    with pytest.raises(ValueError, match="is empty"):
        check_values(values[:0])


def test_unwritable_targets(tmp_path):
    (tmp_path / "file").touch()
    for target, kind, message in [
        (tmp_path, IsADirectoryError, "it is a folder"),
        (tmp_path / "none" / "a.mat", FileNotFoundError, "create it first"),
        (tmp_path / "file" / "a.mat", NotADirectoryError, "is a file, not a folder"),
        (Path("/dev/null"), OSError, "not a regular file"),
        (Path("/proc/a.mat"), OSError, "no file can be created|is missing"),
    ]:
        with pytest.raises(kind, match=message):
            check_target(target)
        with pytest.raises(kind, match=message):
            write_arrays(target, {"x": np.ones(3)})
    check_target(tmp_path / "new.mat")
    check_target(tmp_path / "file")
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_write_protected(tmp_path):
    (tmp_path / "a.mat").touch(mode=0o444)
    with pytest.raises(PermissionError, match="write-protected"):
        check_target(tmp_path / "a.mat")
    tmp_path.chmod(0o555)
    with pytest.raises(PermissionError, match="no file can be created"):
        check_target(tmp_path / "b.mat")
    tmp_path.chmod(0o755)


FULL_DISK = """
import resource, sys
from pathlib import Path
from hsidenoise.data.io import read_cube, write_arrays, write_cube
folder = Path(sys.argv[1])
cubes = [read_cube(folder / name) for name in ("v5.mat", "v73.mat", "png")]
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
for number, cube in enumerate(cubes):
    try:
        write_cube(folder / f"out{number}", cube)
    except OSError as error:
        print(error)
try:
    write_arrays(folder / "out.mat", {"x": cubes[0].values})
except OSError as error:
    print(error)
"""


def test_a_disk_that_fills_up_leaves_nothing(tmp_path):
    values = cube_values().transpose(1, 2, 0)
    write_mat(tmp_path / "v5.mat", {"x": values})
    write_mat(tmp_path / "v73.mat", {"x": values}, hdf5=True)
    png_folder(tmp_path / "png")
    before = names(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.stdout.count("nothing was left behind") == 4, done.stderr
    assert done.stdout.count("\n") == 4
    assert names(tmp_path) == before
    assert np.array_equal(load_variable(tmp_path / "v5.mat", "x"), values)


def test_failures_on_the_way_leave_nothing(tmp_path):
    write_mat(tmp_path / "a.mat", {"x": cube_values().transpose(1, 2, 0)})
    cube = read_cube(tmp_path / "a.mat")
    with pytest.raises(ValueError, match="NaN or infinite"):
        write_cube(tmp_path / "b.mat", replace(cube, values=cube.values * np.nan))
    with pytest.raises(ValueError, match="cannot take the place"):
        write_cube(tmp_path / "b.mat", replace(cube, values=cube.values[:3]))
    with pytest.raises(ValueError, match="cannot write 'b'"):
        write_arrays(tmp_path / "b.mat", {"a": np.ones(3), "b": np.array(["text"])})
    for name in ("_x", "1x", "a b", "x" * 40, ""):
        with pytest.raises(ValueError, match="not a name for a MATLAB variable"):
            write_arrays(tmp_path / "b.mat", {name: np.ones(3)})
    write_mat(tmp_path / "a.mat", {"x": np.ones((2, 2))})
    with pytest.raises(ValueError, match="no longer holds it"):
        write_cube(tmp_path / "b.mat", cube)
    (tmp_path / "a.mat").unlink()
    with pytest.raises(FileNotFoundError, match="no such file"):
        write_cube(tmp_path / "b.mat", cube)
    assert names(tmp_path) == []


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared folder is not beside the project")
@pytest.mark.parametrize(
    ("name", "key", "shape", "dtype"),
    [
        ("remote_sensing/Indian_pines_corrected.mat", "indian_pines_corrected", (200, 145, 145), "f8"),
        ("remote_sensing/jasperRidge2_R198.mat", "Y", (198, 100, 100), "u2"),
        ("remote_sensing/Samson.mat", "SamSon", (156, 95, 95), "f8"),
        ("remote_sensing/MUUFL.mat", "data", (64, 100, 100), "f4"),
        ("remote_sensing/pavia_crop.mat", "data", (102, 100, 100), "f8"),
        ("remote_sensing/satellite_17band.mat", "img", (17, 229, 394), "u2"),
        ("cave/test/face.mat", "cube", (31, 512, 512), "u2"),
    ],
)
def test_real_files_as_they_are(tmp_path, name, key, shape, dtype):
    source, target = tmp_path / "source", tmp_path / "target.mat"  # no suffix: told by content
    shutil.copyfile(SHARED / name, source)
    cube = read_cube(source)
    assert (cube.layout.key, cube.values.shape, cube.layout.dtype) == (key, shape, np.dtype(dtype))
    assert (cube.wavelengths is not None) == name.startswith("cave")
    write_cube(target, cube)
    # a class double that MATLAB stored as integers is stored as double by now, which its note says
    before, after = ([replace(item, note="") for item in list_variables(file)] for file in (source, target))
    assert before == after
    for variable in list_variables(source):
        if variable.is_number:
            before, after = load_variable(source, variable.name), load_variable(target, variable.name)
            exact = variable.name != key or dtype != "f8"  # float64 is computed in float32
            assert np.array_equal(before if exact else before.astype(np.float32), after)
