"""Noisy sets as they are made: the same as `corrupt`, gone on with after an interruption, never mixed."""

import json
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import scipy.io
from command_line import ENVIRONMENT, ROOT, run

import hsidenoise
from hsidenoise.cli import main as cli
from hsidenoise.data.datasets import read_split
from hsidenoise.data.formats.mat import write_mat
from hsidenoise.data.formats.png import save_bands
from hsidenoise.data.noisy_set_maker import MANIFEST, CaseFolder, corrupt_file, make_noisy_set
from hsidenoise.data.noisy_sets import PUBLISHED_CASES, find_noisy_set, read_pair
from hsidenoise.data.options import CorruptOptions
from hsidenoise.data.scenes import read_clean
from hsidenoise.noise.cases import NOISE_CASES, corrupt

SAMPLE = ROOT / "data" / "samples" / "superballs.mat"


def contents(folder):
    """Every file below a folder, hidden ones too, with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_icvl(path, rng, bands=31, columns=23, rows=19):
    """A file as ICVL's: v7.3, HDF5 shows `rad` as (bands, columns, rows), with `bands` and `rgb` beside it."""
    with h5py.File(path, "w", userblock_size=512) as file:
        file["rad"] = rng.random((bands, columns, rows)) * 4095
        file["rgb"] = rng.random((3, columns, rows))
        file["bands"] = np.linspace(400, 700, bands)[:, None]
        for name in file:
            file[name].attrs["MATLAB_class"] = np.bytes_(b"double")
    with path.open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(116) + bytes(8) + b"\0\2IM")


@pytest.fixture
def source(tmp_path, rng):
    """Two clean cubes of (height 12, width 14, bands 9)."""
    folder = tmp_path / "trees"
    folder.mkdir()
    for name in ("oak", "Fir"):
        write_mat(
            folder / f"{name}.mat",
            {"cube": rng.random((12, 14, 1)) * np.linspace(100, 900, 9) + 50 * rng.random((12, 14, 9))},
        )
    return folder


class TestMake:
    def test_nine_published_folders_by_default(self, source, tmp_path):
        done = make_noisy_set(source, tmp_path / "sets", crop=10)
        names = [f"trees_10_{suffix}" for suffix in PUBLISHED_CASES]
        assert done == tuple(
            CaseFolder(case, tmp_path / "sets" / name, 2, 0)
            for case, name in zip(list(NOISE_CASES)[:9], names, strict=True)
        )
        expected = {MANIFEST} | {f"{name}/{scene}.mat" for name in names for scene in ("oak", "Fir")}
        assert set(contents(tmp_path / "sets")) == expected
        for case, files in find_noisy_set(tmp_path / "sets"):
            for file in files:
                clean = read_clean(source / file.name, crop=10)
                result = corrupt(clean, case, seed=0)
                pair = read_pair(file)
                np.testing.assert_array_equal(pair.clean, clean)
                np.testing.assert_array_equal(pair.noisy, result.noisy)
                np.testing.assert_allclose(pair.sigma, result.sigma, atol=1e-6)
                assert clean.shape == (9, 10, 10)

    def test_a_file_is_what_corrupt_writes(self, tmp_path):
        (tmp_path / "clean").mkdir()
        (tmp_path / "clean" / "balls.mat").write_bytes(SAMPLE.read_bytes())
        make_noisy_set(tmp_path / "clean", tmp_path / "sets", cases=["mixture", "blind"], crop=40, seed=3, prefix="a")
        for case in ("mixture", "blind"):
            options = ["--noise", case, "--seed", "3", "--crop", "40"]
            assert cli.main(["corrupt", str(SAMPLE), str(tmp_path / "one.mat"), *options]) == 0
            one = scipy.io.loadmat(tmp_path / "one.mat")
            file = tmp_path / "sets" / f"a_{case}" / "balls.mat"
            ours = scipy.io.loadmat(file)
            assert file.read_bytes().startswith(b"MATLAB 5.0 MAT-file, hsidenoise ")
            assert {"gt", "input", "sigma", "wavelength"} == {name for name in ours if name[0] != "_"}
            for name in ("gt", "input", "sigma", "wavelength"):
                np.testing.assert_array_equal(ours[name], one[name])
                assert ours[name].dtype == one[name].dtype
                assert ours[name].shape == one[name].shape

    def test_icvl_files_by_the_list_of_their_split(self, tmp_path, rng):
        names = read_split("icvl_sert_test.txt")
        (tmp_path / "icvl" / "part").mkdir(parents=True)
        write_icvl(tmp_path / "icvl" / "part" / names[4], rng)
        write_icvl(tmp_path / "icvl" / names[2], rng)
        write_icvl(tmp_path / "icvl" / read_split("icvl_sert_train.txt")[0], rng)
        arguments = {"cases": ["50", "noniid"], "crop": 16, "dataset": "icvl"}
        with pytest.raises(ValueError, match=r"48 test scene\(s\).*and 43 more.*--missing skip"):
            make_noisy_set(tmp_path / "icvl", tmp_path / "sets", **arguments)
        assert not (tmp_path / "sets").exists()
        with pytest.warns(UserWarning, match="left out"):
            make_noisy_set(tmp_path / "icvl", tmp_path / "sets", **arguments, missing="skip")
        found = dict(find_noisy_set(tmp_path / "sets"))
        assert list(found) == ["gaussian-50", "non-iid"]
        file = tmp_path / "sets" / "icvl_16_50" / names[4]
        assert found["gaussian-50"] == tuple(sorted([file, file.with_name(names[2])]))
        with h5py.File(tmp_path / "icvl" / "part" / names[4]) as stored:
            rad = stored["rad"][:, 3:19, 1:17].transpose(0, 2, 1)  # centre 16 of 23 columns and of 19 rows
        pair = read_pair(file)
        np.testing.assert_allclose(pair.clean, (rad - rad.min()) / (rad.max() - rad.min()), atol=1e-6)
        np.testing.assert_array_equal(pair.noisy, corrupt(pair.clean, "gaussian-50", seed=0).noisy)
        np.testing.assert_array_equal(pair.wavelengths, np.linspace(400, 700, 31))
        manifest = json.loads((tmp_path / "sets" / MANIFEST).read_text())
        assert (manifest["split"], manifest["hsidenoise"]) == ("sert", hsidenoise.__version__)

    def test_qrnn3d_has_other_scenes_for_complex_noise(self, tmp_path, rng):
        (tmp_path / "icvl").mkdir()
        gaussian, mixed = (read_split(f"icvl_qrnn3d_test_{kind}.txt")[0] for kind in ("gaussian", "complex"))
        write_icvl(tmp_path / "icvl" / gaussian, rng)
        write_icvl(tmp_path / "icvl" / mixed, rng)
        arguments = {"crop": None, "dataset": "icvl", "split": "qrnn3d", "missing": "skip"}
        for cases in (["blind", "gaussian-25"], ["mixture", "non-iid"]):  # one after the other, into one set
            with pytest.warns(UserWarning, match="left out"):
                make_noisy_set(tmp_path / "icvl", tmp_path / "sets", cases=cases, **arguments)
        found = {case: [path.name for path in files] for case, files in find_noisy_set(tmp_path / "sets")}
        assert found == {"blind": [gaussian], "gaussian-25": [gaussian], "mixture": [mixed], "non-iid": [mixed]}
        assert read_pair(tmp_path / "sets" / "icvl_blind" / gaussian).clean.shape == (31, 19, 23)
        (tmp_path / "icvl" / gaussian).unlink()
        with pytest.raises(ValueError, match="no cube for the noisy set"):
            make_noisy_set(tmp_path / "icvl", tmp_path / "more", cases=["30"], **arguments)

    def test_scenes_of_other_noise_may_be_missing(self, tmp_path, rng):
        (tmp_path / "icvl").mkdir()
        names = read_split("icvl_qrnn3d_test_gaussian.txt")
        for name in names:
            write_mat(tmp_path / "icvl" / name, {"rad": rng.random((5, 6, 3))})
        arguments = {"crop": 4, "dataset": "icvl", "split": "qrnn3d"}
        assert make_noisy_set(tmp_path / "icvl", tmp_path / "sets", cases=["30"], **arguments)[0].written == len(names)
        with pytest.raises(ValueError, match="are missing"):
            make_noisy_set(tmp_path / "icvl", tmp_path / "sets", cases=["mixture"], **arguments)

    def test_folders_of_png_and_a_sub_folder_test(self, tmp_path, rng):
        scene = tmp_path / "cave" / "test" / "balloons_ms"
        (tmp_path / "cave" / "train").mkdir(parents=True)
        scene.mkdir(parents=True)
        stored = rng.integers(0, 65536, (8, 11, 4)).astype(np.uint16)
        save_bands(scene, "balloons_ms", stored)
        for name, folder in (("a", tmp_path / "cave"), ("b", tmp_path / "cave" / "test")):
            make_noisy_set(folder, tmp_path / name, cases=["impulse"], crop=6)
        assert contents(tmp_path / "a") == contents(tmp_path / "b")  # named after the data set, not its part
        pair = read_pair(tmp_path / "a" / "cave_6_impulse" / "balloons_ms.mat")
        middle = stored[1:7, 2:8].transpose(2, 0, 1).astype(float)
        np.testing.assert_allclose(pair.clean, (middle - middle.min()) / (middle.max() - middle.min()), atol=1e-6)

    def test_the_clean_one_of_a_pair_is_taken_but_no_map_of_classes(self, tmp_path, rng):
        (tmp_path / "pairs").mkdir()
        clean = rng.random((7, 8, 5))
        write_mat(tmp_path / "pairs" / "a.mat", {"gt": clean, "input": clean + 1 + rng.random(clean.shape)})
        write_mat(tmp_path / "pairs" / "b.mat", {"gt": rng.random((7, 8)), "indian_pines": clean})
        make_noisy_set(tmp_path / "pairs", tmp_path / "sets", cases=["30"], crop=None)
        scaled = ((clean - clean.min()) / (clean.max() - clean.min())).transpose(2, 0, 1)
        for scene in "ab":
            pair = read_pair(tmp_path / "sets" / "pairs_30" / f"{scene}.mat")
            np.testing.assert_allclose(pair.clean, scaled, atol=1e-6)

    def test_too_few_bands_for_a_kind_of_noise_are_warned_of(self, tmp_path, rng):
        (tmp_path / "clean").mkdir()
        write_mat(tmp_path / "clean" / "a.mat", {"cube": rng.random((7, 8, 2))})
        with pytest.warns(UserWarning, match="stripe on no band: 2 bands are too few"):
            make_noisy_set(tmp_path / "clean", tmp_path / "sets", cases=["stripe"], crop=5)


class TestAgain:
    def test_a_second_call_changes_nothing_and_makes_what_is_missing_anew(self, source, tmp_path):
        target = tmp_path / "sets"
        first = make_noisy_set(source, target, cases=["30", "mixture"], crop=10)
        before = contents(target)
        times = {path: path.stat().st_mtime_ns for path in target.rglob("*.mat")}
        again = make_noisy_set(source, target, cases=["30", "mixture"], crop=10)
        assert [(folder.written, folder.kept) for folder in first + again] == [(2, 0)] * 2 + [(0, 2)] * 2
        assert {path: path.stat().st_mtime_ns for path in target.rglob("*.mat")} == times
        (target / "trees_10_mixture" / "oak.mat").unlink()
        time.sleep(1.1)  # MATLAB's header has a date with seconds
        third = make_noisy_set(source, target, cases=["30", "mixture"], crop=10)
        assert [(folder.written, folder.kept) for folder in third] == [(0, 2), (1, 1)]
        assert contents(target) == before

    def test_cases_can_be_added(self, source, tmp_path):
        make_noisy_set(source, tmp_path / "a", cases=["30"], crop=10)
        make_noisy_set(source, tmp_path / "a", cases=["gaussian-25", "30"], crop=10)
        make_noisy_set(source, tmp_path / "b", cases=["30", "gaussian-25"], crop=10)
        assert contents(tmp_path / "a") == contents(tmp_path / "b")

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"seed": 1}, "holds a noisy set with seed 0, not 1"),
            ({"crop": 9, "prefix": "trees_10"}, "crop 10, not 9"),
            ({"prefix": "wood"}, "prefix trees_10, not wood"),
            ({"cases": ["50"], "seed": 2}, "seed 0, not 2"),
        ],
    )
    def test_other_options_are_refused(self, source, tmp_path, changed, message):
        arguments = {"cases": ["30"], "crop": 10}
        make_noisy_set(source, tmp_path / "sets", **arguments)
        before = contents(tmp_path / "sets")
        with pytest.raises(ValueError, match=message):
            make_noisy_set(source, tmp_path / "sets", **(arguments | changed))
        assert contents(tmp_path / "sets") == before

    def test_another_version_is_refused(self, source, tmp_path):
        make_noisy_set(source, tmp_path / "sets", cases=["30"], crop=10)
        manifest = tmp_path / "sets" / MANIFEST
        manifest.write_text(manifest.read_text().replace('"hsidenoise": "', '"hsidenoise": "9'))
        with pytest.raises(ValueError, match=r"hsidenoise 9\S+, not "):
            make_noisy_set(source, tmp_path / "sets", cases=["50"], crop=10)

    def test_other_clean_cubes_are_refused(self, source, tmp_path, rng):
        make_noisy_set(source, tmp_path / "sets", cases=["30"], crop=10)
        write_mat(source / "elm.mat", {"cube": rng.random((12, 14, 9))})
        with pytest.raises(ValueError, match="'elm' is not in both"):
            make_noisy_set(source, tmp_path / "sets", cases=["50"], crop=10)
        (source / "elm.mat").unlink()
        write_mat(source / "oak.mat", {"cube": rng.random((12, 14, 9))})
        with pytest.raises(ValueError, match="'oak' differs"):
            make_noisy_set(source, tmp_path / "sets", cases=["30"], crop=10)

    def test_files_of_somebody_else_are_refused_and_left_alone(self, source, tmp_path, rng):
        theirs = tmp_path / "sets" / "trees_10_30" / "oak.mat"
        theirs.parent.mkdir(parents=True)
        for name in ("oak.mat", "willow.mat"):
            write_mat(theirs.with_name(name), {"gt": rng.random((4, 5, 6))})
            before = contents(tmp_path / "sets")
            with pytest.raises(ValueError, match=f"{name}: was not made by this command"):
                make_noisy_set(source, tmp_path / "sets", cases=["30"], crop=10)
            assert contents(tmp_path / "sets") == before
            theirs.with_name(name).unlink()

    def test_without_its_manifest_a_set_is_still_known(self, source, tmp_path):
        make_noisy_set(source, tmp_path / "sets", cases=["30"], crop=10)
        before = contents(tmp_path / "sets")
        (tmp_path / "sets" / MANIFEST).unlink()
        with pytest.raises(ValueError, match="was not made by this command with these options"):
            make_noisy_set(source, tmp_path / "sets", cases=["30"], crop=10, seed=1)
        assert make_noisy_set(source, tmp_path / "sets", cases=["30"], crop=10)[0].kept == 2
        assert contents(tmp_path / "sets") == before
        (tmp_path / "sets" / MANIFEST).unlink()
        write_mat(source / "oak.mat", {"cube": np.arange(1512.0).reshape(12, 14, 9)})
        with pytest.raises(ValueError, match=r"oak\.mat: was not made"):
            make_noisy_set(source, tmp_path / "sets", cases=["30"], crop=10)

    @pytest.mark.parametrize("text", ["{", "[]", "{}", '{"cases": 3, "scenes": {}}'])
    def test_a_damaged_manifest(self, source, tmp_path, text):
        (tmp_path / "sets").mkdir()
        (tmp_path / "sets" / MANIFEST).write_text(text)
        with pytest.raises(ValueError, match="does not say how the set was made"):
            make_noisy_set(source, tmp_path / "sets", cases=["30"], crop=10)


class TestRefused:
    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"cases": ["30", "fog"]}, "unknown noise case 'fog'"),
            ({"crop": 13}, r"Fir\.mat: 12x14 pixels are less than the crop of 13"),
            ({"crop": -1}, "crop is -1; it is a whole number from 0"),
            ({"prefix": "a/b"}, "prefix 'a/b'"),
            ({"prefix": ".a"}, r"prefix '\.a'"),
            ({"prefix": ""}, "prefix ''"),
            ({"dataset": "cvae"}, "unknown data set 'cvae'; known: icvl, cave, folder"),
            ({"split": "hsir"}, "no published splits"),
            ({"dataset": "cave", "split": "sert"}, "no split 'sert'; known: hsir"),
        ],
    )
    def test_before_anything_is_written(self, source, tmp_path, changed, message):
        with pytest.raises(ValueError, match=message) as caught:
            make_noisy_set(source, tmp_path / "sets", **({"crop": 10} | changed))
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "sets").exists()

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (np.full((12, 14, 9), np.nan), "NaN in bands 0-8"),
            (np.pad(np.ones((10, 10, 9)), ((1, 1), (2, 2), (0, 0))), "every value is 1"),
            (
                np.where(np.arange(1512) == 700, 1e4, np.arange(1512) % 90).reshape(12, 14, 9),
                "10000 in 1 pixel.*no meas",
            ),
        ],
    )
    def test_a_scene_that_cannot_be_used(self, source, tmp_path, values, message):
        write_mat(source / "zelkova.mat", {"cube": values})  # the last one
        with pytest.raises(ValueError, match=f"zelkova.mat.*{message}"):
            make_noisy_set(source, tmp_path / "sets", crop=10)
        assert not (tmp_path / "sets").exists()

    def test_a_large_offset_costs_no_digits(self, source, tmp_path, rng):
        values = rng.random((12, 14, 9))
        for offset in (0, 1e6):
            write_mat(source / "oak.mat", {"cube": values + offset})
            make_noisy_set(source, tmp_path / str(offset), cases=["30"], crop=10, prefix="a")
        plain, offset = (read_pair(tmp_path / str(offset) / "a_30" / "oak.mat") for offset in (0, 1e6))
        np.testing.assert_allclose(offset.noisy, plain.noisy, atol=1e-6)

    def test_places(self, source, tmp_path):
        (tmp_path / "empty").mkdir()
        (tmp_path / "file").touch()
        with pytest.raises(FileNotFoundError, match="no such folder"):
            make_noisy_set(tmp_path / "nowhere", tmp_path / "sets")
        with pytest.raises(ValueError, match="no cube for the noisy set found"):
            make_noisy_set(tmp_path / "empty", tmp_path / "sets")
        with pytest.raises(ValueError, match="clean cubes are looked for there"):
            make_noisy_set(source, source, crop=10)
        (source / read_split("cave_hsir_test.txt")[0]).with_suffix(".mat").write_bytes(
            (source / "oak.mat").read_bytes()
        )
        with pytest.warns(match="left out"), pytest.raises(ValueError, match="clean cubes are looked for there"):
            make_noisy_set(source, source / "sets", crop=10, dataset="cave", missing="skip")
        with pytest.raises(NotADirectoryError, match="it is a file"):
            make_noisy_set(source, tmp_path / "file", crop=10)
        make_noisy_set(source, source / "sets", crop=10, cases=["30"])  # beside the cubes is fine
        assert len(find_noisy_set(source / "sets")[0][1]) == 3

    def test_two_files_of_one_scene(self, source, tmp_path):
        (source / "oak_ms.mat").write_bytes((source / "oak.mat").read_bytes())
        with pytest.raises(ValueError, match=r"oak.mat and oak_ms.mat have the same scene name"):
            make_noisy_set(source, tmp_path / "sets", crop=10)


class TestCommand:
    def test_options_reach_the_set(self, source, tmp_path):
        arguments = [
            "make-noisy-set",
            "trees",
            "sets",
            "--cases",
            "noniid",
            "gaussian-25",
            "--crop",
            "0",
            "--seed",
            "5",
        ]
        code, out, err = run(*arguments, "--prefix", "wood", cwd=tmp_path)
        assert (code, err) == (0, "")
        assert out.splitlines() == [
            "sets/wood_noniid: non-iid, seed 5, 2 scenes",
            "sets/wood_gaussian-25: gaussian-25, seed 5, 2 scenes",
        ]
        make_noisy_set(source, tmp_path / "b", cases=["noniid", "gaussian-25"], crop=None, seed=5, prefix="wood")
        assert contents(tmp_path / "sets") == contents(tmp_path / "b")
        assert read_pair(tmp_path / "sets" / "wood_noniid" / "oak.mat").clean.shape == (9, 12, 14)
        code, out, _ = run(*arguments, "--prefix", "wood", cwd=tmp_path)
        assert code == 0
        assert out.splitlines()[0] == "sets/wood_noniid: non-iid, seed 5, 2 scenes, 2 of them there already"

    def test_a_published_split(self, tmp_path, rng):
        (tmp_path / "icvl").mkdir()
        name = read_split("icvl_qrnn3d_test_gaussian.txt")[1]
        write_icvl(tmp_path / "icvl" / name, rng)
        arguments = ["make-noisy-set", "icvl", "sets", "--dataset", "icvl", "--split", "qrnn3d", "--crop", "16"]
        code, out, err = run(*arguments, cwd=tmp_path)
        assert (code, out) == (2, "")
        assert err.startswith("hsidenoise: error: icvl: ")
        assert err.count("\n") == 1
        assert not (tmp_path / "sets").exists()
        code, out, err = run(*arguments, "--cases", "70", "--missing", "skip", cwd=tmp_path)
        assert (code, out) == (0, "sets/icvl_16_70: gaussian-70, seed 0, 1 scene\n")
        assert err.startswith("hsidenoise: warning: icvl: ")

    def test_a_scene_smaller_than_the_crop_is_one_line(self, source, tmp_path):
        code, out, err = run("make-noisy-set", "trees", "sets", cwd=tmp_path)
        assert (code, out) == (2, "")
        assert err.startswith("hsidenoise: error: trees/Fir.mat: 12x14 pixels are less than the crop of 512")
        assert err.count("\n") == 1
        assert [path.name for path in tmp_path.iterdir()] == ["trees"]

    def test_an_interrupted_run_goes_on(self, tmp_path):
        (tmp_path / "clean").mkdir()
        for name in "abc":
            (tmp_path / "clean" / f"{name}.mat").write_bytes(SAMPLE.read_bytes())
        arguments = ["make-noisy-set", "clean", "sets", "--crop", "96"]
        command = [sys.executable, "-m", "hsidenoise", *arguments]
        process = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and not list(tmp_path.glob("sets/*/*.mat")):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err.count("\n")) == (130, 1)
        before = contents(tmp_path / "sets")
        assert MANIFEST in before
        assert 1 < len(before) < 1 + 27
        assert not [name for name in before if ".hsidenoise" in name]
        code, out, _ = run(*arguments, cwd=tmp_path)
        assert (code, "there already" in out) == (0, True)
        after = contents(tmp_path / "sets")
        assert len(after) == 1 + 27
        assert {name: after[name] for name in before} == before


def test_what_holds_no_data_has_no_say_in_the_scaling_and_no_noise(tmp_path, rng):
    values = rng.uniform(100, 300, (40, 30, 5)).astype(np.float32)
    values[:, :8] = -9999
    scipy.io.savemat(tmp_path / "a.mat", {"cube": values})
    with pytest.warns(UserWarning, match="-9999 in 320 pixels of bands 0-4.*NaN in what is written"):
        done = corrupt_file(tmp_path / "a.mat", tmp_path / "b.mat", CorruptOptions(noise="gaussian-30"))
    assert done.value_range == pytest.approx((100, 300), abs=2)
    found = scipy.io.loadmat(tmp_path / "b.mat")
    for cube in (found["input"], found["gt"]):
        assert np.isnan(cube[:, :8]).all()
        assert np.isfinite(cube[:, 8:]).all()
    np.testing.assert_allclose(
        found["gt"][:, 8:], (values[:, 8:] - done.value_range[0]) / np.ptp(values[:, 8:]), atol=1e-5
    )
    assert np.std((found["input"] - found["gt"])[:, 8:]) == pytest.approx(30 / 255, rel=0.05)
