import itertools
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsidenoise.data.datasets import DATASETS, SPLITS, plain_name, read_split, scene_name
from hsidenoise.data.io import convert, write_arrays
from hsidenoise.data.scenes import _largest_rectangle, cubes_in, find_scenes, read_clean
from hsidenoise.data.sources import FORMATS, digest_of


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_published_lists_have_the_published_sizes_and_share_no_scene_between_parts():
    sizes = {"cave_hsir_train": 20, "cave_hsir_test": 12, "icvl_qrnn3d_train": 100, "icvl_sert_train": 100}
    assert {name: len(read_split(f"{name}.txt")) for name in sizes} == sizes
    for row in DATASETS.values():
        for split in row.splits.values():
            train = {scene_name(name) for name in read_split(split.train)}
            test = {scene_name(name) for file in split.test for name in read_split(file)}
            assert not train & test
            if split.validation is not None:
                assert not test & {scene_name(name) for name in read_split(split.validation)}


def test_every_list_is_used_by_the_table():
    used = {file for row in DATASETS.values() for s in row.splits.values() for file in (s.train, s.validation, *s.test)}
    assert {path.name for path in SPLITS.iterdir()} == used - {None}


def test_folder_with_parts(tmp_path):
    touch(tmp_path, "train/b.mat", "train/a.mat", "train/notes.txt", "validation/c.mat", "test/d.mat")
    scenes = find_scenes("folder", tmp_path)
    assert [path.name for path in scenes.train] == ["a.mat", "b.mat"]
    assert [path.name for path in scenes.validation + scenes.test] == ["c.mat", "d.mat"]


def test_folder_of_png_folders_counts_as_cubes(tmp_path):
    touch(tmp_path, "a_ms/a_ms_01.png", "a_ms/a_ms_02.png", "b.mat", "preview/only.png")
    scenes = find_scenes("folder", tmp_path)
    assert [path.name for path in scenes.train + scenes.validation] == ["a_ms", "b.mat"]


@pytest.mark.parametrize("dataset", ["folder", "cave"])
def test_hidden_files_are_no_cubes(tmp_path, dataset):
    """macOS puts ._a.mat beside a.mat on disks that are not its own."""
    parts = {"train": read_split("cave_hsir_train.txt"), "test": read_split("cave_hsir_test.txt")}
    names = [f"{part}/{scene_name(name)}.mat" for part, some in parts.items() for name in some]
    validation = {scene_name(name) for name in read_split("cave_hsidenoise_validation.txt")}
    names = [n.replace("train/", "validation/") if scene_name(n) in validation else n for n in names]
    hidden = [f"{Path(name).parent}/._{Path(name).name}" for name in names]
    touch(tmp_path, *names, *hidden, "train/._x_ms/1.png", "train/p/._1.png", "train/p/._2.png", "train/p/1.png")
    scenes = find_scenes(dataset, tmp_path)
    assert sorted(str(p.relative_to(tmp_path)) for p in scenes.train + scenes.validation + scenes.test) == sorted(names)


@pytest.mark.parametrize(("parts", "left"), [(True, "3 .*odd.mat, other/o.mat, train/sub/b.mat"), (False, "1 .*sub/b")])
def test_cubes_that_are_left_out_are_told(tmp_path, parts, left):
    if parts:
        touch(tmp_path, "train/a.mat", "train/sub/b.mat", "validation/v.mat", "other/o.mat", "odd.mat")
    else:
        touch(tmp_path, "a.mat", "b.mat", "sub/b.mat")
    with pytest.warns(UserWarning, match=rf"{left}.*only those directly in"):
        scenes = find_scenes("folder", tmp_path)
    assert [path.stem for path in scenes.train] == ["a"]


def test_folder_without_parts_holds_out_the_last_tenth(tmp_path):
    touch(tmp_path, *(f"{letter}.mat" for letter in "abcdefghijklmnopqrstu"))
    scenes = find_scenes("folder", tmp_path)
    assert "".join(path.stem for path in scenes.validation) == "tu"
    assert len(scenes.train) == 19
    assert not scenes.test


@pytest.mark.parametrize(("files", "message"), [([], "0 cube"), (["a.mat"], "1 cube")])
def test_too_few_cubes(tmp_path, files, message):
    touch(tmp_path, *files)
    with pytest.raises(ValueError, match=message):
        find_scenes("folder", tmp_path)


def test_a_scene_in_two_parts_is_refused(tmp_path):
    touch(tmp_path, "train/a.mat", "train/b.mat", "validation/A_ms.mat")
    with pytest.raises(ValueError, match="scene 'a' is in train and in validation"):
        find_scenes("folder", tmp_path)


def test_unknown_names_and_folders(tmp_path):
    with pytest.raises(ValueError, match="known: icvl, cave, folder"):
        find_scenes("cvae", tmp_path)
    with pytest.raises(ValueError, match="known: sert, qrnn3d"):
        find_scenes("icvl", tmp_path, split="t3sc")
    with pytest.raises(ValueError, match="no published splits"):
        find_scenes("folder", tmp_path, split="sert")
    with pytest.raises(FileNotFoundError, match=r"--data\.root"):
        find_scenes("cave", tmp_path / "nowhere")


def test_cave_as_png_folders_and_mat_files_with_and_without_suffix(tmp_path):
    names = [*read_split("cave_hsir_train.txt"), *read_split("cave_hsir_test.txt")]
    for i, name in enumerate(names):
        bare = name.removesuffix("_ms")
        kinds = [[f"{name}/{name}/{name}_{k:02d}.png" for k in (1, 2)], [f"{name}.mat"], [f"deep/{bare}.mat"]]
        touch(tmp_path, *kinds[i % 3])
    scenes = find_scenes("cave", tmp_path)
    assert sorted(scene_name(path) for path in scenes.validation) == ["chart_and_stuffed_toy", "superballs"]
    assert (len(scenes.train), len(scenes.test)) == (18, 12)
    assert scene_name(scenes.train[0]) == "fake_and_real_sushi"  # the order of the list


def test_icvl_ignores_case_and_holds_out_where_no_validation_list_exists(tmp_path):
    names = read_split("icvl_qrnn3d_train.txt")
    touch(tmp_path, *(name.upper().replace(".MAT", ".mat") for name in names))
    scenes = find_scenes("icvl", tmp_path, split="qrnn3d")
    assert [scene_name(path) for path in scenes.validation] == [scene_name(name) for name in names[-5:]]
    assert len(scenes.train) == len(names) - 5


def test_missing_scenes_are_named_or_skipped(tmp_path):
    touch(tmp_path, "balloons_ms.mat", "superballs.mat")
    with pytest.raises(ValueError, match=r"18 scene\(s\).*fake_and_real_sushi_ms.*and 13 more.*--data.missing skip"):
        find_scenes("cave", tmp_path)
    with pytest.warns(UserWarning, match="left out: "):
        scenes = find_scenes("cave", tmp_path, missing="skip")
    assert [path.name for path in scenes.train + scenes.validation] == ["balloons_ms.mat", "superballs.mat"]


def test_no_scene_left_is_an_error(tmp_path):
    touch(tmp_path, "balloons_ms.mat")
    with pytest.warns(UserWarning, match="left out"), pytest.raises(ValueError, match="no validation cube"):
        find_scenes("cave", tmp_path, missing="skip")


def test_read_clean_scales_the_whole_cube_after_cropping(tmp_path, rng):
    stored = rng.uniform(5, 9, (20, 30, 4))  # height, width, bands
    stored[0, 0, 0] = 100  # outside the crop
    write_arrays(tmp_path / "a.mat", {"cube": stored})
    clean = read_clean(tmp_path / "a.mat", crop=10)
    inner = stored[5:15, 10:20].transpose(2, 0, 1)
    np.testing.assert_allclose(clean, (inner - inner.min()) / (inner.max() - inner.min()), atol=1e-6)
    assert clean.dtype == np.float32


def test_read_clean_picks_bands_before_it_scales(tmp_path, rng):
    stored = rng.uniform(5, 9, (20, 30, 7))  # height, width, bands
    stored[0, 0, 0] = 100  # in a band that is not picked
    write_arrays(tmp_path / "a.mat", {"cube": stored})
    picked = stored[..., [1, 3, 5]].transpose(2, 0, 1)
    clean = read_clean(tmp_path / "a.mat", bands=3)
    np.testing.assert_allclose(clean, (picked - picked.min()) / (picked.max() - picked.min()), atol=1e-6)
    with pytest.raises(ValueError, match=r"a\.mat: 8 bands of it are wanted, and it has 7"):
        read_clean(tmp_path / "a.mat", bands=8)


def test_read_clean_takes_the_named_variable_of_icvl(tmp_path, rng):
    with h5py.File(tmp_path / "scene.mat", "w") as file:
        file["rad"] = rng.uniform(0, 4095, (4, 9, 7))  # bands, width, height as HDF5 shows it
        file["rgb"] = rng.uniform(0, 1, (3, 9, 7))
        for name in file:
            file[name].attrs["MATLAB_class"] = np.bytes_(b"double")
    assert read_clean(tmp_path / "scene.mat", key=DATASETS["icvl"].key).shape == (4, 7, 9)


def test_read_clean_refuses_a_constant_cube(tmp_path):
    write_arrays(tmp_path / "a.mat", {"cube": np.full((6, 7, 5), 3.0)})
    with pytest.raises(ValueError, match="every value is 3"):
        read_clean(tmp_path / "a.mat")


def test_read_clean_keeps_the_digits_of_a_large_offset(tmp_path, rng):
    stored = rng.random((12, 14, 5))
    for name, unit, offset in (("a", 1, 0), ("b", 1, 1e6), ("c", 1e300, 0), ("d", 1e-310, 0)):
        write_arrays(tmp_path / f"{name}.mat", {"cube": stored * unit + offset})
    plain, *others = (read_clean(tmp_path / f"{name}.mat") for name in "abcd")
    for other in others:
        np.testing.assert_allclose(other, plain, atol=1e-6)


EVERY = ("a.mat", "b.HDR", "b.img", "c.tif", "d.npy", "e.npz", "f.h5", "g.nc", "h.img.hdr", "h.img", "i.hdr", "i")
OTHERS = (
    "._a.mat",
    ".b.hdr",
    "notes.txt",
    "lone.img",
    "lone.dat",
    "x.json",
    ".hidden/k.mat",
    "j.zarr/c/0.npy",
    "a.mat.json",
)


def test_a_folder_of_every_format_has_each_cube_once(tmp_path):
    touch(tmp_path, *EVERY, *OTHERS, "j.zarr/zarr.json")
    scenes = find_scenes("folder", tmp_path)
    found = [path.name for path in scenes.train + scenes.validation]
    assert found == ["a.mat", "b.HDR", "c.tif", "d.npy", "e.npz", "f.h5", "g.nc", "h.img.hdr", "i.hdr", "j.zarr"]
    assert "".join(scene_name(path) for path in found) == "abcdefghij"


def test_endings_are_those_of_the_formats():
    for ending in (suffix for form in FORMATS for suffix in form.suffixes):
        assert plain_name(f"a.b{ending}") == plain_name(f"a.b{ending.upper()}") == "a.b"
    assert plain_name("a.raw") == "a.raw"


def test_raw_data_of_icvl_beside_its_cubes_are_not_taken(tmp_path):
    names = [scene_name(name).upper() for name in read_split("icvl_sert_train.txt")]
    names += [scene_name(name).upper() for name in read_split("icvl_sert_val.txt")]
    touch(tmp_path, *(f"{name}{ending}" for name in names for ending in (".mat", ".hdr", ".raw")))
    scenes = find_scenes("icvl", tmp_path)
    assert {path.suffix for path in scenes.train + scenes.validation} == {".mat"}


def test_a_scene_is_read_from_every_format(tmp_path, rng):
    stored = rng.uniform(1, 9, (12, 14, 5))
    write_arrays(tmp_path / "a.mat", {"cube": stored})
    for suffix in (".hdr", ".tif", ".npz", ".nc", ".zarr"):
        convert(tmp_path / "a.mat", tmp_path / f"{suffix[1:]}{suffix}", axes="hwb")
    clean, *others = (read_clean(path) for path in cubes_in(tmp_path))
    assert len(others) == 5
    for other in others:
        assert np.array_equal(clean, other)
    before = {path: digest_of(path) for path in cubes_in(tmp_path)}
    (tmp_path / "hdr.img").write_bytes(bytes(8 * 12 * 14 * 5))
    (tmp_path / "zarr.zarr" / "more").write_text("")
    changed = [path.name for path, digest in before.items() if digest_of(path) != digest]
    assert changed == ["hdr.hdr", "zarr.zarr"]


def test_the_valid_part_of_a_scene_is_taken_and_said(tmp_path, rng):
    """A border without data must neither set the scaling nor be learnt from."""
    stored = rng.uniform(5, 9, (40, 50, 4))
    border = np.zeros((40, 50), bool)
    border[:, :9] = border[30:, 45:] = True
    stored[border] = -9999
    stored[..., 3] = np.nan
    write_arrays(tmp_path / "a.mat", {"cube": stored})
    with pytest.raises(ValueError, match=r"a.mat: NaN in band 3; -9999 in 410 pixels"):
        read_clean(tmp_path / "a.mat")
    said = r"a.mat: .*-9999 in 410 pixels.*of its 40x50 pixels only 40x36 are used, from row 0 and column 9 on"
    with pytest.warns(UserWarning, match=said):
        clean = read_clean(tmp_path / "a.mat", valid_part=True)
    inner = stored[:, 9:45, :3].transpose(2, 0, 1)
    np.testing.assert_allclose(clean, (inner - inner.min()) / (inner.max() - inner.min()), atol=1e-6)
    write_arrays(tmp_path / "b.mat", {"cube": np.full_like(stored, np.nan)})
    with pytest.raises(ValueError, match=r"b.mat holds no data \(NaN in bands 0-3\): leave the file out"):
        read_clean(tmp_path / "b.mat", valid_part=True)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_largest_rectangle(data):
    height, width, finest = data.draw(st.tuples(st.integers(1, 7), st.integers(1, 7), st.sampled_from([3, 1000])))
    pixels = np.array(data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width)))
    pixels = pixels.reshape(height, width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hsidenoise.data.scenes._FINEST", finest)
        rows, columns = _largest_rectangle(pixels)
    found = pixels[rows, columns]
    assert found.all()
    sizes = [
        pixels[a:b, c:d].size
        for a, b in itertools.combinations(range(height + 1), 2)
        for c, d in itertools.combinations(range(width + 1), 2)
        if pixels[a:b, c:d].all()
    ]
    assert found.size == max(sizes, default=0) or (finest == 3 and found.size > 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"border": -9999}, "-9999 in 36 pixels of bands 0-4: no measurement, it seems; put other"),
        ({"pixel": 1e4}, "10000 in 1 pixel of band 3: no measurement"),
        ({"border": -9999, "pixel": 1e4}, "-9999 in 36 pixels of bands 0-4.*; 10000 in 1 pixel of band 3: no"),
        ({"pixel": np.nan}, "NaN in 1 pixel of band 3"),
        ({"border": 0}, "0 in all bands of 36 pixels"),
        ({"pixel": 1e308, "border": -1e308}, "no measurement"),
    ],
)
def test_read_clean_refuses_values_that_would_squeeze_all_others(tmp_path, rng, values, message):
    """Training, validation and tables read their clean cubes so."""
    stored = rng.random((12, 14, 5))
    if "border" in values:
        stored[:, :3] = values["border"]
    if "pixel" in values:
        stored[5, 6, 3] = values["pixel"]
    write_arrays(tmp_path / "a.mat", {"cube": stored})
    with pytest.raises(ValueError, match=f"a.mat.*{message}"):
        read_clean(tmp_path / "a.mat")
    if "pixel" not in values:
        assert read_clean(tmp_path / "a.mat", crop=6).max() == 1  # the rest of the message: cut that part off
