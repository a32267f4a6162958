"""Cubes inside of structs and cells of MATLAB files."""

import h5py
import numpy as np
import pytest
import scipy.io
from command_line import call, refused

from hsidenoise.data.formats.mat import load_variable
from hsidenoise.data.io import Cube, convert, read_cube, write_cube
from hsidenoise.data.sources import list_variables


def values_of(dtype="f4", seed=0):
    return np.random.default_rng(seed).normal(2000, 500, (12, 9, 5)).astype(dtype)


def v5(path, compressed):
    cell = np.empty((2, 2), object)
    cell[0, 0], cell[1, 0], cell[0, 1], cell[1, 1] = "text", values_of("i2", 1), np.zeros((0, 0)), np.eye(3)
    several = np.array([(values_of("u2", 2), 1.5), (values_of("u2", 3), 2.5)], [("x", object), ("gain", object)])
    content = {
        "before": np.arange(4.0),
        "hsi": {
            "name": "line 7",
            "cube": values_of(),
            "wavelength": np.linspace(400, 800, 5),
            "in": {"y": values_of("f8", 4)},
        },
        "c": cell,
        "s": several,
        "after": "the end",
    }
    scipy.io.savemat(path, content, do_compression=compressed)


def v73(path):
    with h5py.File(path, "w", userblock_size=512) as file:

        def put(where, array, kind):
            node = file.create_dataset(where, data=array.T, chunks=array.T.shape, compression="gzip")
            node.attrs["MATLAB_class"] = np.bytes_(kind)
            return node

        file.create_group("hsi").attrs["MATLAB_class"] = np.bytes_("struct")
        put("hsi/cube", values_of(), "single")
        put("hsi/wavelength", np.linspace(400, 800, 5)[:, None], "double")
        file.create_group("hsi/in").attrs["MATLAB_class"] = np.bytes_("struct")
        put("hsi/in/y", values_of("f8", 4), "double")
        inside = [put("#refs#/a", np.eye(2), "double"), put("#refs#/b", values_of("i2", 1), "int16")]
        inside += [put("#refs#/c", values_of("u2", 2), "uint16"), put("#refs#/d", values_of("u2", 3), "uint16")]
        cell = file.create_dataset("c", data=np.array([[inside[0].ref, inside[1].ref]], h5py.ref_dtype))
        cell.attrs["MATLAB_class"] = np.bytes_("cell")
        file.create_group("s").attrs["MATLAB_class"] = np.bytes_("struct")
        file["s/x"] = np.array([[inside[2].ref], [inside[3].ref]], h5py.ref_dtype)
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file")


MAKE = {"v5": lambda path: v5(path, False), "v5 compressed": lambda path: v5(path, True), "v7.3": v73}
KEYS = {
    "hsi.cube": ("f4", 0),
    "hsi/cube": ("f4", 0),
    "hsi.in.y": ("f8", 4),
    "c{2}": ("i2", 1),
    "s(1).x": ("u2", 2),
    "s(2).x": ("u2", 3),
}


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("key", KEYS)
def test_read_and_written_back_with_everything_else_kept(tmp_path, kind, key):
    MAKE[kind](tmp_path / "a.mat")
    dtype, seed = KEYS[key]
    cube = read_cube(tmp_path / "a.mat", key=key, axes="hwb", exact=True)
    assert cube.layout.dtype == np.dtype(dtype)
    assert np.array_equal(cube.values, values_of(dtype, seed).transpose(2, 0, 1))
    write_cube(tmp_path / "b.mat", Cube(cube.values[:, ::-1].copy(), None, cube.layout, cube.path))
    assert list_variables(tmp_path / "b.mat") == list_variables(tmp_path / "a.mat")
    for item in list_variables(tmp_path / "a.mat"):
        if item.dtype is not None:
            before, after = (load_variable(tmp_path / name, item.name) for name in ("a.mat", "b.mat"))
            assert np.array_equal(after, before[::-1] if item.name == cube.layout.key else before)
    if kind == "v7.3":
        with h5py.File(tmp_path / "b.mat") as file:
            node = {"hsi.cube": "hsi/cube", "hsi/cube": "hsi/cube", "hsi.in.y": "hsi/in/y"}.get(key)
            node = node or {"c{2}": "#refs#/b", "s(1).x": "#refs#/c", "s(2).x": "#refs#/d"}[key]
            assert np.array_equal(file[node][()].T, values_of(dtype, seed)[::-1])
            assert file[file["c"][0, 1]].attrs["MATLAB_class"] == b"int16"
        return
    found = scipy.io.loadmat(tmp_path / "b.mat", mat_dtype=True)
    wanted = scipy.io.loadmat(tmp_path / "a.mat", mat_dtype=True)
    places = {
        "hsi.cube": lambda file: file["hsi"]["cube"][0, 0], "hsi.in.y": lambda file: file["hsi"]["in"][0, 0]["y"][0, 0],
        "c{2}": lambda file: file["c"][1, 0], "s(1).x": lambda file: file["s"]["x"][0, 0],
        "s(2).x": lambda file: file["s"]["x"][0, 1],
    }  # fmt: skip
    for name, place in places.items():
        changed = name == key.replace("/", ".")
        assert np.array_equal(place(found), place(wanted)[::-1] if changed else place(wanted))
    assert found["after"] == ["the end"]
    assert found["hsi"]["name"][0, 0] == ["line 7"]
    assert found["c"][0, 0] == ["text"]


def test_cells_of_texts_are_band_names(tmp_path):
    names = np.empty((1, 5), object)
    names[0] = ["a", "bc", "d", "e", "f"]
    scipy.io.savemat(tmp_path / "a.mat", {"cube": values_of(), "band_names": names})
    v73(tmp_path / "b.mat")
    with h5py.File(tmp_path / "b.mat", "r+") as file:
        file["cube"] = file["hsi/cube"]
        texts = [
            file.create_dataset(f"#refs#/t{name}", data=[[ord(each)] for each in name], dtype="u2") for name in names[0]
        ]
        for each in texts:
            each.attrs["MATLAB_class"] = np.bytes_("char")
        file["band_names"] = np.array([[each.ref] for each in texts], h5py.ref_dtype)
        file["band_names"].attrs["MATLAB_class"] = np.bytes_("cell")
    for name in ("a.mat", "b.mat"):
        assert read_cube(tmp_path / name, key="cube", axes="hwb").metadata.band_names == tuple(names[0])


@pytest.mark.parametrize("kind", ["v5", "v7.3"])
def test_the_only_cube_is_found_inside(tmp_path, kind):
    if kind == "v5":
        scipy.io.savemat(tmp_path / "a.mat", {"hsi": {"cube": values_of(), "wavelength": np.linspace(400, 800, 5)}})
    else:
        v73(tmp_path / "a.mat")
        with h5py.File(tmp_path / "a.mat", "r+") as file:
            del file["c"], file["s"], file["hsi/in"]
    cube = read_cube(tmp_path / "a.mat")
    assert cube.layout.leaf == "cube"
    assert cube.wavelengths.tolist() == [400, 500, 600, 700, 800]
    convert(tmp_path / "a.mat", tmp_path / "b.npz")
    with np.load(tmp_path / "b.npz") as out:
        assert np.array_equal(out["cube"], values_of())


def test_several_inside_are_named_and_a_wrong_key_lists_them(tmp_path):
    v5(tmp_path / "a.mat", True)
    with pytest.raises(ValueError, match=r"several variables may be the cube: hsi.cube 12x9x5, hsi.in.y .*c\{2\}"):
        read_cube(tmp_path / "a.mat")
    assert read_cube(tmp_path / "a.mat", key="c", axes="hwb").layout.key == "c{2}"  # the one cube in it
    assert read_cube(tmp_path / "a.mat", key="s(2)", axes="hwb").layout.key == "s(2).x"
    for key in ("c{1}", "c{3}", "c{9}", "hsi.none", "hsi", "s"):
        said = call("denoise", "a.mat", "--key", key, "-o", "b.mat", cwd=tmp_path, code=2)
        assert refused(said), said
    assert not (tmp_path / "b.mat").exists()


def test_a_double_in_bytes_inside_stays_double(tmp_path):
    """What MATLAB does with whole numbers; scipy does not, so the bytes are put together here."""
    import struct

    def element(kind, data):
        return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)

    stored = (values_of() // 20).astype("u1")
    sizes = element(5, struct.pack("<3i", *stored.shape))
    inner = element(6, struct.pack("<II", 6, 0)) + sizes + element(1, b"") + element(2, stored.tobytes("F"))
    fields = struct.pack("<HHI", 5, 4, 5) + element(1, b"cube\0")
    body = element(6, struct.pack("<II", 2, 0)) + element(5, struct.pack("<2i", 1, 1)) + element(1, b"hsi")
    body += fields + element(14, inner)
    (tmp_path / "a.mat").write_bytes(
        b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 256) + b"IM" + element(14, body)
    )
    assert np.array_equal(scipy.io.loadmat(tmp_path / "a.mat")["hsi"]["cube"][0, 0], stored)
    cube = read_cube(tmp_path / "a.mat", axes="hwb")
    assert cube.layout.dtype == np.float64
    write_cube(tmp_path / "b.mat", Cube(cube.values + np.float32(0.25), None, cube.layout, cube.path))
    found = scipy.io.loadmat(tmp_path / "b.mat", mat_dtype=True)["hsi"]["cube"][0, 0]
    assert found.dtype == np.float64
    assert np.array_equal(found, stored + 0.25)


def test_a_damaged_struct_hides_nothing_else(tmp_path):
    scipy.io.savemat(tmp_path / "a.mat", {"hsi": {"x": np.eye(3)}, "cube": values_of()})
    content = bytearray((tmp_path / "a.mat").read_bytes())
    at = content.index(b"\x0e\0\0\0", 136)  # the tag of what is inside
    content[at + 4 : at + 8] = b"\xff\xff\0\0"
    (tmp_path / "a.mat").write_bytes(content)
    assert [item.name for item in list_variables(tmp_path / "a.mat")] == ["hsi", "cube"]
    assert np.array_equal(read_cube(tmp_path / "a.mat", axes="hwb").values, values_of().transpose(2, 0, 1))
