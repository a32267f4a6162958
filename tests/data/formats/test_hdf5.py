import contextlib
import os
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from command_line import call, refused, run

from hsidenoise.data.formats.mat import list_mat, load_variable, write_mat
from hsidenoise.data.io import read_cube, write_cube
from hsidenoise.data.sources import list_variables

STORED = np.random.default_rng(0).random((5, 7, 6)).astype(np.float32)  # (bands, width, height) as HDF5 shows it
VALUES = STORED.transpose(0, 2, 1)


def elsewhere(folder, kind):
    """A v7.3 file whose cube lies in another file, and that other file."""
    source, other = folder / "a.mat", folder / "other"
    if kind == "raw":
        other.write_bytes(bytes(8) + STORED.tobytes())
    else:
        with h5py.File(other, "w") as file:
            file["deep/x"] = STORED
            file["deep/x"].attrs["MATLAB_class"] = np.bytes_(b"single")
    with h5py.File(source, "w", userblock_size=512) as file:
        file["note"] = np.arange(4.0)
        if kind == "link":
            file["cube"] = h5py.ExternalLink("other", "/deep/x")
        elif kind == "link to a group":
            file["far"] = h5py.ExternalLink("other", "/deep")
            file["cube"] = h5py.SoftLink("/far/x")
        elif kind == "raw":
            file.create_dataset("cube", STORED.shape, "f4", external=[(os.fspath(other), 8, h5py.h5f.UNLIMITED)])
        else:
            virtual = h5py.VirtualLayout(STORED.shape, "f4")
            virtual[...] = h5py.VirtualSource("other", "deep/x", STORED.shape)
            file.create_virtual_dataset("cube", virtual)
        if kind in ("raw", "virtual"):
            file["cube"].attrs["MATLAB_class"] = np.bytes_(b"single")
    return source, other


KINDS = ["link", "link to a group", "raw", "virtual"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_in_another_file_is_read_if_allowed_and_never_written(tmp_path, kind):
    source, other = elsewhere(tmp_path, kind)
    before = source.read_bytes(), other.read_bytes()
    with pytest.raises(ValueError, match=r"'cube' lies in another file \(.*other\), not read without --allow-external"):
        read_cube(source)
    with pytest.raises(ValueError, match="'cube' lies in another file"):
        read_cube(source, key="cube")
    with pytest.raises(ValueError, match="in another file"):
        load_variable(source, "cube")
    cube = read_cube(source, allow_external=True)
    assert np.array_equal(cube.values, VALUES)
    for target in (tmp_path / "out.mat", source):
        # the group that the cube was found through still lies there
        left = pytest.warns(match="far lies in another") if kind == "link to a group" else contextlib.nullcontext()
        with left:
            write_cube(target, replace(cube, values=VALUES + 1))
        assert np.array_equal(read_cube(target, key="cube").values, VALUES + 1)  # in the file itself
        assert np.array_equal(load_variable(target, "note").ravel(), np.arange(4.0))
        with h5py.File(target) as file:
            assert isinstance(file.get("cube", getlink=True), h5py.HardLink)
            assert file["cube"].attrs["MATLAB_class"] == b"single"
        assert other.read_bytes() == before[1]
        if target != source:
            assert source.read_bytes() == before[0]


@pytest.mark.parametrize("kind", KINDS)
def test_other_variables_elsewhere_are_carried_over_as_they_are(tmp_path, kind):
    source, other = elsewhere(tmp_path, kind)
    with h5py.File(source, "r+") as file:
        file["data"] = STORED
    before = other.read_bytes()
    cube = read_cube(source)
    assert cube.layout.key == "data"
    with pytest.warns(UserWarning, match=r"cube lies in another file \(.*other\).*: the output points there too"):
        write_cube(tmp_path / "out.mat", replace(cube, values=cube.values + 1))
    assert other.read_bytes() == before
    assert list_mat(tmp_path / "out.mat") == list_mat(source)
    assert np.array_equal(load_variable(tmp_path / "out.mat", "cube", allow_external=True), STORED.T)


def test_external_storage_pulls_no_file_in_and_needs_all_of_it(tmp_path):
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file.create_dataset("cube", (4, 5, 6), "u1", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])
        file.create_dataset("size", (1,), "u1", external=[("/etc/passwd", 0, 1)])
    message = call("corrupt", "a.mat", "b.mat", "--noise", "blind", cwd=tmp_path, code=2)
    assert refused(message)
    assert "'cube' lies in another file (/etc/passwd), not read without --allow-external" in message
    assert not (tmp_path / "b.mat").exists()
    for kind in ("raw", "virtual"):
        (tmp_path / kind).mkdir()
        source, other = elsewhere(tmp_path / kind, kind)
        other.write_bytes(other.read_bytes()[:-20])
        with pytest.raises(ValueError, match=r"a\.mat"):  # the library fills up with zeros
            read_cube(source, allow_external=True)
        other.unlink()
        with pytest.raises(ValueError, match="other is missing"):
            read_cube(source, allow_external=True)


def test_links_that_lead_nowhere_are_listed_and_pipes_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file["cube"] = STORED
        file["again"], file["soft"] = file["cube"], h5py.SoftLink("/group/x")
        file["group/x"] = np.arange(3)
        file["group/up"] = h5py.SoftLink("/")
        file["a"], file["b"] = h5py.SoftLink("/b"), h5py.SoftLink("/a")
        file["pipe"] = h5py.ExternalLink("pipe", "/x")
        file["self"] = h5py.ExternalLink("a.mat", "/self")
    for allowed in (False, True):
        found = {item.name: item for item in list_mat(tmp_path / "a.mat", allow_external=allowed)}
        assert set(found) == {"cube", "again", "soft", "group/x", "a", "b", "pipe", "self"}
        assert found["soft"].shape == (3,)
        assert found["a"].note == "broken link, not read"
    cube = read_cube(tmp_path / "a.mat", key="again")
    with pytest.warns(UserWarning, match="pipe lies in another file .*; self lies in another file"):
        write_cube(tmp_path / "b.mat", replace(cube, values=cube.values + 1))
    with h5py.File(tmp_path / "b.mat") as file:
        assert file["again"] == file["cube"]  # still one data set with two names
        assert np.array_equal(file["cube"][()], STORED + 1)


def test_a_graph_of_groups_is_walked_once(tmp_path):
    with h5py.File(tmp_path / "a.mat", "w") as file:
        group = file
        for _ in range(28):  # 2**28 paths to the last
            below = group.create_group("a")
            group["b"] = below
            group = below
        group["x"] = STORED
        group["up"] = file["/"]
    (variable,) = list_mat(tmp_path / "a.mat")
    assert variable.name == "a/" * 28 + "x"
    assert sorted(read_cube(tmp_path / "a.mat").values.shape) == [5, 6, 7]
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file["a/" * 3000 + "x"] = STORED
    with pytest.raises(ValueError, match="a/a group in 32 groups, not searched"):
        read_cube(tmp_path / "a.mat")


def test_a_promise_of_gigabytes_is_checked_before_anything_is_allocated(tmp_path):
    shape = (1400, 1480, 1490)
    for name, options in {
        "chunked": {"chunks": (1, 1480, 1490), "compression": "gzip"},
        "contiguous": {},
        "one chunk": {"chunks": (100, 1480, 1490), "compression": "gzip"},
    }.items():
        with h5py.File(tmp_path / "a.mat", "w") as file:
            dataset = file.create_dataset("cube", shape, "f4", **options)
            if name == "one chunk":
                dataset.id.write_direct_chunk((0, 0, 0), b"x" * 100)
        with pytest.raises(ValueError, match=r"'/?cube' promises 12,349,120,000 bytes"):
            read_cube(tmp_path / "a.mat")


@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"fletcher32": True}, {"compression": "lzf"}])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<i2", ">u2", "f8", "u1"])
def test_chunks_are_unpacked_as_the_library_does(tmp_path, options, dtype):
    stored = (STORED * 200).astype(dtype)
    with h5py.File(tmp_path / "a.mat", "w", userblock_size=512) as file:
        file.create_dataset("x", data=stored, chunks=(2, 3, 4), **{"compression": "gzip"} | options)
        file.create_dataset("partly", (50, 60), dtype, chunks=(7, 8), fillvalue=3, **options)
        file["partly"][:9, 10:33] = 5
    with h5py.File(tmp_path / "a.mat") as file:
        partly = file["partly"][()]
    assert np.array_equal(load_variable(tmp_path / "a.mat", "x"), stored)
    assert np.array_equal(load_variable(tmp_path / "a.mat", "partly"), partly)


def test_chunks_that_were_not_filtered(tmp_path):
    noise = np.random.default_rng(1).integers(0, 256, (4, 30, 31)).astype(np.uint8)  # deflate would make it longer
    with h5py.File(tmp_path / "a.mat", "w") as file:
        dataset = file.create_dataset("x", noise.shape, "u1", chunks=(1, 30, 31), compression="gzip")
        for band in range(4):
            dataset.id.write_direct_chunk((band, 0, 0), noise[band].tobytes(), filter_mask=1)
    assert np.array_equal(load_variable(tmp_path / "a.mat", "x"), noise)
    with h5py.File(tmp_path / "b.mat", "w") as file:  # the library reads beyond the end of such a chunk
        dataset = file.create_dataset("x", noise.shape, "u1", chunks=(1, 30, 31), compression="gzip")
        for band in range(4):
            dataset.id.write_direct_chunk((band, 0, 0), noise[band, :9].tobytes(), filter_mask=1)
    with pytest.raises(ValueError, match="a chunk of '/x' is not as long as it should be"):
        load_variable(tmp_path / "b.mat", "x")


def test_a_class_wider_than_its_storage_decides(tmp_path):
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file["cube"] = (STORED * 200).astype(np.uint8)
        file["cube"].attrs["MATLAB_class"] = np.bytes_(b"double")
    cube = read_cube(tmp_path / "a.mat")
    assert cube.layout.dtype == np.float64
    write_cube(tmp_path / "b.mat", replace(cube, values=cube.values + np.float32(0.25)))
    assert np.array_equal(read_cube(tmp_path / "b.mat").values, cube.values + np.float32(0.25))


def test_names_that_move_the_cursor_are_not_printed_raw(tmp_path):
    name = "cube\x1b[2J\x1b]0;gone\x07\u202e"
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file[name] = STORED
        file[name].attrs["MATLAB_class"] = np.bytes_(b"x\x1b[2J")
        file["far\x1b"] = h5py.ExternalLink("\x1b[2J", "/x")
        file["y\x1b[2J"] = STORED
        file["z\x1b[2J"] = np.zeros(3, [("a\x1b", "f8"), ("b", "f8")])
        file.create_group("g\x1b[2J").attrs["MATLAB_class"] = np.bytes_(b"struct\x1b")
    for arguments in (
        ["inspect"],
        ["inspect", "--key", "none\x1b"],
        ["inspect", "--key", name],
        ["evaluate", tmp_path],
    ):
        done = run(*arguments, "a.mat", cwd=tmp_path)
        printed = done.stdout + done.stderr
        assert printed
        assert not [letter for letter in printed if not letter.isprintable() and letter != "\n"], printed
    assert list_variables(tmp_path / "a.mat")[0].name == name  # which `--key` takes


def test_a_file_on_which_the_library_crashes_is_one_line(tmp_path, monkeypatch):
    write_mat(tmp_path / "a.mat", {"cube": STORED.T}, hdf5=True)
    cube = read_cube(tmp_path / "a.mat")
    # not a mock: the other process starts with a module that ends it as a crash does
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))
    with pytest.raises(OSError, match=r"cannot write .*b\.mat: .*crashed on it \(SIGSEGV\).*nothing was left behind"):
        write_cube(tmp_path / "b.mat", cube)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.mat", "site"]


@pytest.mark.parametrize(("name", "signal"), [("crash", "SIGSEGV"), ("endless", "SIGXCPU")])
def test_a_virtual_data_set_that_the_library_cannot_open_is_one_line(name, signal):
    # found by tests/fuzz.py: the list of its parts is damaged
    damaged = Path(__file__).parents[2] / "golden" / f"virtual_{name}.mat"
    message = call("inspect", damaged, cwd=damaged.parent, code=2)
    assert refused(message)
    assert "damaged (the HDF5 library" in message
    assert signal in message
