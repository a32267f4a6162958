import struct
import subprocess
import sys
import zlib

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse

from hsidenoise.data.formats.mat import list_mat, load_variable, mat_format, replace_variable, write_mat
from hsidenoise.data.formats.mat5 import elements


def rich_v5(path, *, compress=True):
    """A v5 file with every kind of variable that scipy can write, the cube in the middle."""
    rng = np.random.default_rng(0)
    content = {
        "title": "Jasper Ridge",
        "names": np.array(["tree", "water"], dtype=object),
        "info": {"sensor": "AVIRIS", "gain": 1.5, "nested": {"roi": np.array([[1, 2]], np.uint8)}},
        "sparse": scipy.sparse.csc_array(np.eye(3)),
        "cube": rng.integers(0, 60000, (6, 7, 5)).astype(np.uint16),
        "mask": np.array([[True, False]]),
        "scalar": 3,
        "none": np.zeros((0, 3)),
        "phase": np.array([[1 + 2j]]),
        "gt": rng.random((6, 7)),
    }
    scipy.io.savemat(path, content, do_compression=compress)
    return content["cube"]


def test_format_by_content(tmp_path):
    write_mat(tmp_path / "a", {"x": np.eye(2)})
    write_mat(tmp_path / "b", {"x": np.eye(2)}, hdf5=True)
    with h5py.File(tmp_path / "c.mat", "w") as file:
        file["x"] = np.eye(2)
    scipy.io.savemat(tmp_path / "d.mat", {"x": np.eye(2)}, format="4")
    assert [mat_format(tmp_path / name) for name in ("a", "b", "c.mat", "d.mat")] == ["mat5", "mat73", "mat73", "mat4"]


@pytest.mark.parametrize("content", [b"", b"hello", b"x" * 2000, bytes(2000), b"\x89PNG\r\n\x1a\n" + bytes(300)])
def test_no_mat_file(tmp_path, content):
    (tmp_path / "a.mat").write_bytes(content)
    with pytest.raises(ValueError, match="not a MATLAB file"):
        mat_format(tmp_path / "a.mat")


def test_list_v5(tmp_path):
    rich_v5(tmp_path / "a.mat")
    found = {variable.name: variable for variable in list_mat(tmp_path / "a.mat") if not variable.inside}
    expected = {name: shape for name, shape, _ in scipy.io.whosmat(tmp_path / "a.mat")}
    expected["title"] = (1, 12)  # scipy counts strings, MATLAB letters
    assert {name: variable.shape for name, variable in found.items()} == expected
    assert found["cube"].dtype == np.uint16
    assert found["phase"].dtype == np.complex128
    assert found["mask"].dtype == np.bool_
    assert [name for name, variable in found.items() if not variable.is_number] == [
        "title",
        "names",
        "info",
        "sparse",
        "mask",
    ]


@pytest.mark.parametrize("compress", [True, False])
def test_replace_v5_keeps_every_other_byte(tmp_path, compress):
    cube = rich_v5(tmp_path / "a.mat", compress=compress)
    replace_variable(tmp_path / "a.mat", tmp_path / "b.mat", "cube", cube[::-1])
    before, after = elements(tmp_path / "a.mat"), elements(tmp_path / "b.mat")
    assert [element.variable for element in before] == [element.variable for element in after]
    old, new = (tmp_path / "a.mat").read_bytes(), (tmp_path / "b.mat").read_bytes()
    assert old[:128] == new[:128]
    for one, two in zip(before, after, strict=True):
        assert (old[one.start : one.stop] == new[two.start : two.stop]) == (one.variable.name != "cube")
    found = scipy.io.loadmat(tmp_path / "b.mat")
    assert np.array_equal(found["cube"], cube[::-1])
    assert found["info"]["nested"][0, 0]["roi"][0, 0].tolist() == [[1, 2]]


def matrix(name, array, order, *, kind, storage, flags=0):
    """One uncompressed v5 element, written from the specification for this test."""

    def part(number, data):
        return struct.pack(f"{order}II", number, len(data)) + data + bytes(-len(data) % 8)

    body = part(6, struct.pack(f"{order}II", kind | flags, 0))
    body += part(5, np.array(array.shape, f"{order}i4").tobytes()) + part(1, name.encode())
    return part(14, body + part(storage, array.tobytes(order="F")))


def header(order, pointer=0):
    mark = b"IM" if order == "<" else b"MI"
    version = b"\0\1" if order == "<" else b"\1\0"
    return b"MATLAB 5.0 MAT-file".ljust(116) + struct.pack(f"{order}Q", pointer) + version + mark


@pytest.mark.parametrize("order", ["<", ">"])
def test_class_decides_and_byte_order_stays(tmp_path, order):
    stored = np.arange(60).reshape(4, 5, 3).astype(f"{order}u2")
    data = header(order) + matrix("cube", stored, order, kind=6, storage=4)
    (tmp_path / "a.mat").write_bytes(data)
    (variable,) = list_mat(tmp_path / "a.mat")
    assert (variable.dtype, variable.shape) == (np.float64, (4, 5, 3))
    assert variable.note == "double in MATLAB, stored as uint16"
    assert load_variable(tmp_path / "a.mat", "cube").dtype == np.float64
    replace_variable(tmp_path / "a.mat", tmp_path / "b.mat", "cube", stored[::-1] / 4)
    assert np.array_equal(load_variable(tmp_path / "b.mat", "cube"), stored[::-1] / 4)
    assert scipy.io.loadmat(tmp_path / "b.mat", mat_dtype=True)["cube"].dtype.str[1:] == "f8"  # what MATLAB sees
    assert (tmp_path / "b.mat").read_bytes()[:128] == data[:128]


def test_pointer_to_object_data_moves_along(tmp_path):
    cube = np.arange(60).reshape(4, 5, 3).astype(np.uint16)
    other = matrix("", np.full((1, 16), 7, np.uint8), "<", kind=9, storage=2)
    # a name of four letters may lie in its own tag, as MATLAB writes it: eight bytes less than written anew
    long = matrix("cube", cube, "<", kind=11, storage=4)
    short = long.replace(struct.pack("<II4s4x", 1, 4, b"cube"), struct.pack("<HH4s", 1, 4, b"cube"))
    short = struct.pack("<II", 14, len(short) - 8) + short[8:]
    (tmp_path / "a.mat").write_bytes(header("<", 128 + len(short)) + short + other)
    replace_variable(tmp_path / "a.mat", tmp_path / "b.mat", "cube", cube)
    written = (tmp_path / "b.mat").read_bytes()
    (pointer,) = struct.unpack("<Q", written[116:124])
    assert pointer == 128 + len(long)
    assert written[pointer:] == other


def test_v4(tmp_path):
    content = {"Y": np.arange(12, dtype=np.int16).reshape(2, 6), "title": np.array(["abc"]), "n": np.array([[2.0]])}
    scipy.io.savemat(tmp_path / "a.mat", content, format="4")
    assert [variable.shape for variable in list_mat(tmp_path / "a.mat") if variable.is_number] == [(2, 6), (1, 1)]
    before = load_variable(tmp_path / "a.mat", "Y")
    assert before.dtype == np.float64  # version 4 knows no other class, whatever it stores
    replace_variable(tmp_path / "a.mat", tmp_path / "b.mat", "Y", before + 0.25)
    found = scipy.io.loadmat(tmp_path / "b.mat")
    assert mat_format(tmp_path / "b.mat") == "mat4"
    assert np.array_equal(found["Y"], content["Y"] + 0.25)
    assert found["n"] == 2
    assert found["title"] == content["title"]


def matlab_hdf5(path):
    """A v7.3 file as MATLAB lays it out: cells and structs, references, attributes, compressed chunks."""
    write_mat(path, {"cube": np.arange(210, dtype=np.uint16).reshape(6, 7, 5), "mask": np.eye(2, 3) > 0}, hdf5=True)
    with h5py.File(path, "r+") as file:
        hidden = file.create_dataset("#refs#/a", data=np.array([[97, 98]], np.uint16))
        cell = file.create_dataset("names", data=np.array([[hidden.ref]], dtype=h5py.ref_dtype))
        cell.attrs["MATLAB_class"] = np.bytes_(b"cell")
        text = file.create_dataset("title", data=np.array([[97], [98]], np.uint16))
        text.attrs["MATLAB_class"] = np.bytes_(b"char")
        file.create_group("info").attrs["MATLAB_class"] = np.bytes_(b"struct")
        file["info/gain"] = np.array([[1.5]])
        empty = file.create_dataset("none", data=np.array([0, 3], np.uint64))
        empty.attrs["MATLAB_class"], empty.attrs["MATLAB_empty"] = np.bytes_(b"double"), np.uint8(1)
        file.create_dataset("phase", data=np.zeros((2, 3), [("real", "f8"), ("imag", "f8")]))
        file["phase"].attrs["MATLAB_class"] = np.bytes_(b"double")
        file["lost"] = h5py.SoftLink("/nowhere")
        file["plain/deep"] = np.zeros((2, 3, 4))


def test_list_hdf5(tmp_path):
    matlab_hdf5(tmp_path / "a.mat")
    found = {variable.name: variable for variable in list_mat(tmp_path / "a.mat")}
    inside = {"names{1}", "info/gain"}
    assert set(found) == {"cube", "mask", "names", "title", "info", "none", "phase", "lost", "plain/deep", *inside}
    assert {name for name, variable in found.items() if variable.inside} == inside
    assert found["cube"].shape == (6, 7, 5)
    assert found["none"].shape == (0, 3)
    assert found["phase"].dtype == np.complex128
    assert found["plain/deep"].shape == (4, 3, 2)
    assert not found["plain/deep"].foreign  # in a file that MATLAB wrote
    assert not found["cube"].foreign
    numbers = ["cube", "info/gain", "names{1}", "none", "phase", "plain/deep"]
    assert [name for name, variable in found.items() if variable.is_number] == numbers


def test_replace_hdf5_keeps_the_rest(tmp_path):
    matlab_hdf5(tmp_path / "a.mat")
    cube = load_variable(tmp_path / "a.mat", "cube")
    replace_variable(tmp_path / "a.mat", tmp_path / "b.mat", "cube", cube[::-1])
    assert np.array_equal(load_variable(tmp_path / "b.mat", "cube"), cube[::-1])
    assert list_mat(tmp_path / "a.mat") == list_mat(tmp_path / "b.mat")
    assert (tmp_path / "b.mat").read_bytes()[:512] == (tmp_path / "a.mat").read_bytes()[:512]
    with h5py.File(tmp_path / "b.mat") as file:
        assert file[file["names"][0, 0]][0].tolist() == [97, 98]
        assert file["info/gain"][0, 0] == 1.5
        assert file["cube"].attrs["MATLAB_class"] == b"uint16"
        assert file["cube"].chunks == (1, 7, 6)
        assert file["cube"].compression == "gzip"


def test_new_hdf5_has_matlab_header(tmp_path):
    write_mat(tmp_path / "a.mat", {"x": np.zeros((4, 5, 3)), "v": np.arange(3)}, hdf5=True)
    head = (tmp_path / "a.mat").read_bytes()[:520]
    assert head.startswith(b"MATLAB 7.3 MAT-file")
    assert head[124:128] == b"\0\2IM"
    assert head[512:] == b"\x89HDF\r\n\x1a\n"
    with h5py.File(tmp_path / "a.mat") as file:
        assert file["x"].shape == (3, 5, 4)  # reversed on disk
    assert list_mat(tmp_path / "a.mat")[0].shape == (3, 1)


def test_replace_refuses_what_is_no_longer_there(tmp_path):
    write_mat(tmp_path / "a.mat", {"x": np.eye(2)})
    for name, array in (("y", np.eye(2)), ("x", np.eye(3)), ("x", np.eye(2, dtype=np.float32))):
        with pytest.raises(ValueError, match="no longer holds it"):
            replace_variable(tmp_path / "a.mat", tmp_path / "b.mat", name, array)


@pytest.mark.parametrize("value", [[1 + 2j], [None], np.zeros(2, np.float16)])
def test_write_refuses_what_is_no_number(tmp_path, value):
    with pytest.raises(ValueError, match="cannot write 'x'"):
        write_mat(tmp_path / "a.mat", {"x": np.asarray(value)})


@pytest.mark.parametrize("hdf5", [False, True])
def test_truncated_anywhere_is_one_line(tmp_path, hdf5):
    rng = np.random.default_rng(1)
    write_mat(tmp_path / "a.mat", {"cube": rng.random((6, 7, 5)), "gt": rng.random((6, 7))}, hdf5=hdf5)
    data = (tmp_path / "a.mat").read_bytes()
    whole = load_variable(tmp_path / "a.mat", "cube")
    complaints = 0
    for length in [*range(20, 700, 37), *range(700, len(data), 251), len(data) - 1]:
        (tmp_path / "b.mat").write_bytes(data[:length])
        found, complaint = whole, None
        try:  # between two variables of a v5 file a cut cannot be seen; then what is there must be right
            if "cube" in [variable.name for variable in list_mat(tmp_path / "b.mat")]:
                found = load_variable(tmp_path / "b.mat", "cube")
        except ValueError as error:
            complaint = str(error)
        assert np.array_equal(found, whole)
        if complaint is not None:
            assert "b.mat" in complaint
            assert "\n" not in complaint
            assert "truncated" in complaint or "not a MATLAB file" in complaint
        complaints += complaint is not None
    assert complaints > 8


@pytest.mark.parametrize("hdf5", [False, True])
def test_damaged_content_is_an_error(tmp_path, hdf5):
    write_mat(tmp_path / "a.mat", {"cube": np.random.default_rng(1).random((16, 17, 15))}, hdf5=hdf5)
    data = bytearray((tmp_path / "a.mat").read_bytes())
    middle = len(data) * 3 // 4
    data[middle : middle + 200] = bytes(200)
    (tmp_path / "a.mat").write_bytes(data)
    with pytest.raises(ValueError, match="truncated or damaged"):
        load_variable(tmp_path / "a.mat", "cube")


@pytest.mark.parametrize("kind", ["mat5", "plain", "mat73"])
def test_flipped_bytes_never_cause_another_error(tmp_path, kind):
    rng = np.random.default_rng(3)
    content = {"gt": np.eye(3), "cube": rng.random((12, 13, 9))}
    if kind == "plain":
        scipy.io.savemat(tmp_path / "a.mat", content)
    else:
        write_mat(tmp_path / "a.mat", content, hdf5=kind == "mat73")
    data = (tmp_path / "a.mat").read_bytes()
    first = 512 if kind == "mat73" else 128
    complaints = []
    for _ in range(120):
        flipped = bytearray(data)
        flipped[rng.integers(first, first + 600)] = rng.integers(256)
        (tmp_path / "b.mat").write_bytes(flipped)
        try:
            for variable in list_mat(tmp_path / "b.mat"):
                if variable.is_number:
                    load_variable(tmp_path / "b.mat", variable.name)
        except ValueError as error:
            complaints.append(str(error))
    assert complaints
    assert not [complaint for complaint in complaints if "\n" in complaint]


@pytest.mark.parametrize("packed", [False, True])
def test_a_promise_of_gigabytes_in_v5_is_checked_before_anything_is_allocated(tmp_path, packed):
    honest = matrix("cube", np.arange(60, dtype=np.uint8).reshape(4, 5, 3), "<", kind=9, storage=2)
    sizes = np.array([1400, 1480, 1490], "<i4").tobytes()
    element = honest.replace(np.array([4, 5, 3], "<i4").tobytes(), sizes)
    count = struct.pack("<II", 2, 1400 * 1480 * 1490)
    for lie in (element, element.replace(struct.pack("<II", 2, 60), count)):
        content = struct.pack("<I", 14) + struct.pack("<I", 1400 * 1480 * 1490 + 100) + lie[8:] if packed else lie
        if packed:
            content = zlib.compress(content)
            content = struct.pack("<II", 15, len(content)) + content
        (tmp_path / "a.mat").write_bytes(header("<") + content)
        with pytest.raises(ValueError, match="'cube' of 1400x1480x1490 promises more or less than the file holds"):
            list_mat(tmp_path / "a.mat")


def test_a_promise_of_gigabytes_in_v4_is_checked_before_anything_is_allocated(tmp_path):
    data = struct.pack("<5i", 0, 40000, 40000, 0, 2) + b"x\0" + bytes(2000)
    (tmp_path / "a.mat").write_bytes(data)
    with pytest.raises(ValueError, match="variable 1 ends beyond the end"):
        list_mat(tmp_path / "a.mat")


@pytest.mark.parametrize("order", ["<", ">"])
def test_v4_keeps_every_other_byte(tmp_path, order):
    def one(code, array, name, imaginary=0):
        head = struct.pack(f"{order}5i", code + 1000 * (order == ">"), *array.shape, imaginary, len(name) + 1)
        return head + name.encode() + b"\0" + array.tobytes(order="F")

    stored = np.arange(12).reshape(3, 4).astype(f"{order}i2")
    text, before = one(1, np.full((1, 3), 65.0), "t"), one(50, np.full((2, 2), 7, np.uint8), "u")
    phase = (
        struct.pack(f"{order}5i", 1000 * (order == ">"), 1, 1, 1, 2) + b"z\0" + np.array([1, 2], f"{order}f8").tobytes()
    )
    (tmp_path / "a.mat").write_bytes(before + one(30, stored, "Y") + text + phase)
    assert [item.name for item in list_mat(tmp_path / "a.mat") if item.is_number] == ["u", "Y", "z"]
    assert np.array_equal(load_variable(tmp_path / "a.mat", "Y"), stored)
    assert load_variable(tmp_path / "a.mat", "z") == 1 + 2j
    replace_variable(tmp_path / "a.mat", tmp_path / "b.mat", "Y", stored / 8)
    assert np.array_equal(scipy.io.loadmat(tmp_path / "b.mat")["Y"], stored / 8)
    written = (tmp_path / "b.mat").read_bytes()
    assert written.startswith(before)
    assert written.endswith(text + phase)


def test_more_than_the_memory_at_hand_is_refused(tmp_path):
    scipy.io.savemat(tmp_path / "a.mat", {"x": np.zeros((300, 400, 500), np.uint8)}, do_compression=True)
    code = """
import resource, sys
from pathlib import Path
import torch
from hsidenoise.data.formats.mat import load_variable
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + (100 << 20), -1))
try:
    load_variable(Path(sys.argv[1]), "x")
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.mat"], capture_output=True, text=True, check=False)
    assert "'x' takes 0.3 GiB, more than the 0.1 GiB of memory at hand" in done.stdout, done.stderr


def test_of_two_variables_of_one_name_the_same_is_read_and_replaced(tmp_path):
    first, second = (matrix("cube", np.full((4, 5, 3), n, np.uint8), "<", kind=9, storage=2) for n in (1, 2))
    (tmp_path / "a.mat").write_bytes(header("<") + first + second)
    read = load_variable(tmp_path / "a.mat", "cube")
    replace_variable(tmp_path / "a.mat", tmp_path / "b.mat", "cube", read + np.uint8(1))
    assert np.array_equal(load_variable(tmp_path / "b.mat", "cube"), read + 1)
