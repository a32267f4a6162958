import zipfile

import numpy as np
import pytest
from command_line import call, refused

from hsidenoise.data.formats.npy import NPY, NPZ
from hsidenoise.data.io import convert, read_cube, write_cube
from hsidenoise.data.sources import list_variables


def stored(dtype="u2"):
    return np.random.default_rng(0).integers(0, 4000, (60, 7, 5)).astype(dtype)


@pytest.mark.parametrize("dtype", ["u1", "i2", ">u2", "i4", "f4", ">f8", "f8"])
@pytest.mark.parametrize("fortran", [False, True])
def test_npy_round_trip(tmp_path, dtype, fortran):
    array = stored(dtype)
    np.save(tmp_path / "a.npy", np.asfortranarray(array) if fortran else array)
    cube = read_cube(tmp_path / "a.npy", axes="hwb", exact=True)
    assert np.array_equal(cube.values, array.transpose(2, 0, 1))
    write_cube(tmp_path / "b.npy", cube)
    again = np.load(tmp_path / "b.npy")
    assert again.dtype == array.dtype
    assert again.flags.fnc == fortran
    assert np.array_equal(again, array)
    part = (slice(3, 9), slice(0, 7), slice(2, 4))
    assert np.array_equal(NPY.load_variable(tmp_path / "a.npy", "a", part), array[part])


def test_npz_round_trip_carries_the_rest(tmp_path):
    array = stored()
    others = {"note": np.array(["text"]), "wavelength": np.linspace(400, 800, 5), "bbl": np.array([1, 0, 1, 1, 1])}
    np.savez(tmp_path / "a.npz", cube=array, objects=np.array([{}], object), **others)
    cube = read_cube(tmp_path / "a.npz")
    assert (cube.layout.key, cube.layout.axes) == ("cube", "hwb")
    assert cube.wavelengths.tolist() == others["wavelength"].tolist()
    assert cube.metadata.good_bands.tolist() == [True, False, True, True, True]
    write_cube(tmp_path / "b.npz", cube)
    with np.load(tmp_path / "b.npz", allow_pickle=True) as found:
        assert found.files == ["cube", "objects", "note", "wavelength", "bbl"]
        assert np.array_equal(found["cube"], array)
        assert found["note"] == ["text"]
    part = (slice(3, 9), slice(0, 7), slice(2, 4))
    assert np.array_equal(NPZ.load_variable(tmp_path / "a.npz", "cube", part), array[part])


def test_to_npz_and_npy_from_another_format(tmp_path):
    np.savez(tmp_path / "a.npz", cube=stored(), wavelength=np.linspace(400, 800, 5))
    with pytest.warns(UserWarning, match=r"b.npy: NumPy has no place for wavelengths: left out"):
        convert(tmp_path / "a.npz", tmp_path / "b.npy")
    assert np.array_equal(np.load(tmp_path / "b.npy"), stored())
    convert(tmp_path / "a.npz", tmp_path / "c.mat")
    convert(tmp_path / "c.mat", tmp_path / "d.npz")
    with np.load(tmp_path / "d.npz") as found:
        assert np.array_equal(found["cube"], stored())
        assert found["wavelength"].tolist() == np.linspace(400, 800, 5).tolist()


def test_bad_files_are_one_line(tmp_path):
    np.save(tmp_path / "a.npy", stored())
    content = (tmp_path / "a.npy").read_bytes()
    np.savez(tmp_path / "a.npz", cube=stored())
    archive = (tmp_path / "a.npz").read_bytes()
    np.save(tmp_path / "object.npy", np.array([{}], object))
    bad = {
        "short.npy": (content[:-1], "promises"),
        "head.npy": (content[:20], "truncated or damaged"),
        "shape.npy": (content.replace(b"(60, 7, 5)", b"(-6, 7, 5)"), "truncated or damaged"),
        "wide.npy": (content.replace(b"(60, 7, 5)", b"(99, 9, 9)"), "promises"),
        "type.npy": (content.replace(b"'<u2'", b"'<U2'"), "promises"),
        "none.npy": (b"", "is empty"),
        "text.npy": (b"0.5 0.6\n", "not a NumPy file"),
        "short.npz": (archive[:-30], "truncated or damaged"),
        "flip.npz": (archive[:300] + bytes([archive[300] ^ 255]) + archive[301:], "truncated or damaged"),
    }
    for name, (data, message) in bad.items():
        (tmp_path / name).write_bytes(data)
        said = call("denoise", name, "-o", "out.npy", cwd=tmp_path, code=2)
        assert refused(said), said
        assert any(each in said for each in message.split("|")), said
    assert "no 3-D" in call("denoise", "object.npy", "-o", "out.npy", cwd=tmp_path, code=2)
    assert not (tmp_path / "out.npy").exists()


def test_a_zip_of_something_else_is_none(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("scene.mat", b"")
    with pytest.raises(ValueError, match="is a zip archive; unpack it"):
        list_variables(tmp_path / "a.npz")
