"""The command line as a person meets it: exit codes, messages, and what is left on the disk."""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import scipy.io
import torch
from command_line import ENVIRONMENT, ROOT, call, child, refused, run

from hsidenoise import evaluate
from hsidenoise.cli.main import VERBS, main
from hsidenoise.data.formats.mat import write_mat
from hsidenoise.data.formats.png import save_bands
from hsidenoise.metrics.protocols import PROTOCOLS
from hsidenoise.models import create_model
from hsidenoise.models.shipped import WEIGHTS
from hsidenoise.models.weights import read_header, save_weights
from hsidenoise.noise.cases import NOISE_CASES, corrupt

SAMPLE = ROOT / "data" / "samples" / "superballs.mat"


@pytest.mark.skipif(sys.platform != "linux", reason="of GNU's OpenMP")
def test_threads_do_not_wait_busily_for_long():
    program = "import sys; from hsidenoise.cli.main import main; main(['corrupt', '--list']); import torch"
    asked = {"OMP_DISPLAY_ENV": "verbose"}
    for chosen in ({}, {"GOMP_SPINCOUNT": "7"}):
        environment = {name: value for name, value in os.environ.items() if "GOMP" not in name} | asked | chosen
        said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment).stderr
        assert f"GOMP_SPINCOUNT = '{chosen.get('GOMP_SPINCOUNT', '2000')}'" in said


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small network, not trained: the command line does not care how good it is."""
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = create_model("hcanet", bands=31, dim=16, num_blocks=(1, 1, 1))
    save_weights(path, network, name="hcanet")
    return path


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """The sample's centre with the mixture, as `corrupt` writes it."""
    path = tmp_path_factory.mktemp("noisy") / "noisy.mat"
    printed = call("corrupt", SAMPLE, path, "--noise", "mixture", "--seed", "4", "--crop", "48", cwd=path.parent)
    assert "mixture, seed 4" in printed
    return path


class TestStart:
    def test_help_imports_nothing_heavy(self, tmp_path):
        program = (
            "import sys; import hsidenoise; from hsidenoise.cli.main import VERBS, main\n"
            "dir(hsidenoise)\n"
            "heavy = {'numpy', 'torch', 'scipy', 'h5py', 'matplotlib', 'lightning', 'jsonargparse', 'tqdm'}\n"
            "help_of_verbs = [[verb, '--help'] for verb in VERBS if verb != 'train']\n"
            "for arguments in ([], ['--help'], ['--version'], *help_of_verbs):\n"
            "    assert main(arguments) == 0, arguments\n"
            "    assert not heavy & set(sys.modules), (arguments, heavy & set(sys.modules))\n"
        )
        done = child("-c", program, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        for verb in VERBS:
            assert verb == "train" or f"usage: hsidenoise {verb} " in done.stdout

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["clean"], "choose from denoise, inspect"),
            (["denois"], "did you mean 'denoise'"),
            (["denoise", "a.mat", "--tille", "3"], "did you mean '--tile'"),
            (["denoise", "a.mat", "--passes", "0"], "0 is too small"),
            (["denoise"], "required: noisy"),
            (["denoise", "a.mat", "--tile", "0"], "--tile"),
            (["denoise", "a.mat", "--size", "10"], "HEIGHTxWIDTH"),
            (["denoise", "a.mat", "--normalize", "z-score"], "--normalize"),
            (["denoise", "a.mat", "--ensemble", "3"], "choose from 1, 2, 4, 8"),
            (["corrupt", "a.mat", "b.mat"], "--noise"),
            (["evaluate", "a.mat", "b.mat", "--data-range", "-1"], "--data-range"),
        ],
    )
    def test_wrong_arguments(self, capsys, arguments, says):
        assert main(arguments) == 2
        message = capsys.readouterr().err
        assert refused(message)
        assert says in message

    @pytest.mark.filterwarnings("ignore:what was taken away")  # by weights that were not trained
    def test_older_names_are_taken_with_a_hint(self, noisy, weights, tmp_path, capsys):
        options = ["--weights", str(weights)]
        rounds = {"a.mat": ["--passes", "2"], "b.mat": ["--pilot-rounds", "1"], "c.mat": ["--pilot-rounds", "0"]}
        for name, wanted in rounds.items():
            assert main(["denoise", str(noisy), "-o", str(tmp_path / name), *options, *wanted]) == 0
        shown = capsys.readouterr()
        assert shown.err == "hsidenoise: hint: --passes 2 is --pilot-rounds 1\n"
        assert shown.out.count("pilot filter") == 2
        a, b, c = (scipy.io.loadmat(tmp_path / name)["input"] for name in rounds)
        assert np.array_equal(a, b)
        assert not np.array_equal(a, c)
        assert main(["make-testset", str(tmp_path / "none"), str(tmp_path / "set")]) == 2
        assert capsys.readouterr().err.startswith("hsidenoise: hint: make-testset is make-noisy-set\n")

    def test_a_reader_that_has_gone_is_no_error(self, tmp_path):
        reading, writing = os.pipe()
        os.close(reading)
        with os.fdopen(writing, "wb") as gone:
            done = child("-m", "hsidenoise", "corrupt", "--list", cwd=tmp_path, stdout=gone)
        assert (done.returncode, done.stderr) == (141, "")

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
    def test_an_answer_that_cannot_be_printed_is_one_line(self, tmp_path):
        with Path("/dev/full").open("wb") as full:
            done = child("-m", "hsidenoise", "inspect", SAMPLE, cwd=tmp_path, stdout=full)
        assert done.returncode == 2
        assert done.stderr == "hsidenoise: error: the answer could not be printed (No space left on device)\n"

    def test_an_interrupt_is_quiet(self, capsys, monkeypatch):
        def interrupted(options):
            raise KeyboardInterrupt

        monkeypatch.setattr("hsidenoise.cli.inspect.run", interrupted)
        assert main(["inspect", "a.mat"]) == 130
        assert capsys.readouterr().err.count("\n") == 1

    def test_a_bug_keeps_its_traceback(self, monkeypatch):
        def broken(options):
            raise RuntimeError("a bug")

        monkeypatch.setattr("hsidenoise.cli.inspect.run", broken)
        with pytest.raises(RuntimeError, match="a bug"):
            main(["inspect", "a.mat"])


class TestCorrupt:
    def test_writes_what_published_noisy_sets_hold(self, noisy):
        content = scipy.io.loadmat(noisy)
        stored = scipy.io.loadmat(SAMPLE)["cube"][40:88, 56:104].astype(np.float64)
        clean = (stored - stored.min()) / (stored.max() - stored.min())
        np.testing.assert_allclose(content["gt"], clean, atol=1e-6)
        result = corrupt(content["gt"].transpose(2, 0, 1), "mixture", seed=4)
        np.testing.assert_array_equal(content["input"].transpose(2, 0, 1), result.noisy)
        assert content["sigma"].shape == (1, 31)
        assert set(np.unique(content["sigma"])) <= {10, 30, 50, 70}
        np.testing.assert_allclose(content["sigma"][0] / 255, result.sigma, rtol=1e-5)
        np.testing.assert_array_equal(content["wavelength"][0], np.arange(400, 701, 10))

    def test_one_sigma_is_one_number(self, tmp_path):
        call("corrupt", SAMPLE, "n.mat", "--noise", "gaussian-25", "--crop", "20", cwd=tmp_path)
        assert scipy.io.loadmat(tmp_path / "n.mat")["sigma"].tolist() == [[25.0]]

    def test_list_has_every_case_with_its_source(self, capsys):
        assert main(["corrupt", "--list"]) == 0
        lines = capsys.readouterr().out.splitlines()
        for case in NOISE_CASES.values():
            assert any(line.startswith(case.name) and case.source in line for line in lines)

    def test_kept_values_outside_0_to_1_are_warned_of(self, tmp_path):
        done = run("corrupt", SAMPLE, "n.mat", "--noise", "blind", "--no-minmax", "--crop", "20", cwd=tmp_path)
        assert done.returncode == 0
        assert done.stderr.startswith("hsidenoise: warning: the values of the cube lie in")
        assert done.stderr.count("\n") == 1
        assert scipy.io.loadmat(tmp_path / "n.mat")["gt"].max() > 100

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["--noise", "gausian-50"], "gaussian-50"),
            (["--noise", "blind", "--crop", "129"], "128x160"),
            (["--noise", "blind", "--key", "nothing"], "cube"),
        ],
    )
    def test_refusals(self, tmp_path, capsys, arguments, says):
        assert main(["corrupt", str(SAMPLE), str(tmp_path / "n.mat"), *arguments]) == 2
        message = capsys.readouterr().err
        assert refused(message)
        assert says in message
        assert not list(tmp_path.iterdir())

    def test_too_few_bands_for_a_kind_of_noise_are_warned_of(self, tmp_path, rng):
        scipy.io.savemat(tmp_path / "a.mat", {"cube": rng.random((9, 10, 2))})
        done = run("corrupt", "a.mat", "n.mat", "--noise", "stripe", cwd=tmp_path)
        assert done.returncode == 0
        assert "stripe on no band" in done.stderr

    def test_the_clean_cube_is_not_overwritten(self, tmp_path, capsys):
        path = tmp_path / "clean.mat"
        path.write_bytes(SAMPLE.read_bytes())
        assert main(["corrupt", str(path), str(path), "--noise", "blind"]) == 2
        assert "is the source itself" in capsys.readouterr().err
        assert path.read_bytes() == SAMPLE.read_bytes()


class TestDenoise:
    def test_a_classical_method_in_place_of_a_network(self, noisy, tmp_path, capsys):
        out = tmp_path / "planes.mat"
        assert main(["denoise", str(noisy), "-o", str(out), "--method", "planes"]) == 0
        assert "method   planes: " in capsys.readouterr().out
        stored = scipy.io.loadmat(noisy)
        score = [evaluate(cube[k].transpose(2, 0, 1), stored["gt"].transpose(2, 0, 1)).psnr
                 for cube, k in ((stored, "input"), (scipy.io.loadmat(out), "input"))]  # fmt: skip
        assert score[1] > score[0] + 15
        wrong = {("plane",): "did you mean 'planes'?", ("tv", "--tile", "64"): "no weights, tiles"}
        for more, says in wrong.items():
            assert main(["denoise", str(noisy), "-o", str(out), "--method", *more]) == 2
            assert says in capsys.readouterr().err

    def test_an_ensemble_and_windows_of_bands(self, weights, tmp_path, rng):
        spectra = rng.random((70, 2)) @ rng.random((2, 24 * 20))
        cube = (spectra + rng.normal(0, 0.1, spectra.shape)).reshape(70, 24, 20).transpose(1, 2, 0)
        scipy.io.savemat(tmp_path / "a.mat", {"cube": cube})
        wanted = {(): "windows of bands,", ("--ensemble", 4): "windows of bands, ensemble of 4,"}
        results = []
        for index, (options, says) in enumerate(wanted.items()):
            target = f"{index}.mat"
            printed = call("denoise", "a.mat", "-o", target, "--weights", weights, *options, cwd=tmp_path)
            assert says in printed
            results.append(scipy.io.loadmat(tmp_path / target)["cube"])
        assert np.abs(results[1] - results[0]).max() > 1e-6

    def test_file_in_file_out(self, noisy, weights, tmp_path):
        printed = call(
            *("denoise", noisy, "-o", "clean.mat", "--weights", weights, "--picture", "page.png", "--band", 3),
            *("--tile", 32, "--overlap", 8),
            cwd=tmp_path,
        )
        before, after = scipy.io.loadmat(noisy), scipy.io.loadmat(tmp_path / "clean.mat")
        assert {"input", "gt", "sigma", "wavelength"} == {name for name in after if not name.startswith("__")}
        assert after["input"].dtype == before["input"].dtype
        assert after["input"].shape == before["input"].shape
        assert not np.array_equal(after["input"], before["input"])
        for name in ("gt", "sigma", "wavelength"):
            np.testing.assert_array_equal(after[name], before[name])
        for said in ("axis 3 is the spectrum", "float32", "scaling", "tiles of 32 x 32", "clean.mat", "page.png"):
            assert said in printed
        assert sorted(path.name for path in tmp_path.iterdir()) == ["clean.mat", "clean.mat.json", "page.png"]

    def test_batch_and_precision_reach_the_network(self, noisy, weights, tmp_path):
        cubes = {}
        for name, options in (("a", []), ("b", ["--batch", 1, "--tile", 32]), ("c", ["--batch", 3, "--tile", 32])):
            call("denoise", noisy, "-o", f"{name}.mat", "--weights", weights, *options, cwd=tmp_path)
            cubes[name] = scipy.io.loadmat(tmp_path / f"{name}.mat")["input"]
        assert np.abs(cubes["b"] - cubes["c"]).max() < 1e-5 < np.abs(cubes["b"] - cubes["a"]).max()
        call("denoise", noisy, "-o", "d.mat", "--weights", weights, "--precision", "bfloat16", cwd=tmp_path)
        assert 1e-6 < np.abs(scipy.io.loadmat(tmp_path / "d.mat")["input"] - cubes["a"]).max() < 0.1

    def test_without_a_target_it_writes_beside_the_noisy_cube(self, weights, tmp_path):
        cube = scipy.io.loadmat(SAMPLE)["cube"][30:62, 20:60]
        scipy.io.savemat(tmp_path / "scene.mat", {"cube": cube, "note": "kept"})
        call("denoise", "scene.mat", "--weights", weights, cwd=tmp_path)
        after = scipy.io.loadmat(tmp_path / "scene_denoised.mat")
        assert (after["cube"].shape, after["cube"].dtype) == (cube.shape, np.uint16)
        assert after["note"].tolist() == ["kept"]
        assert scipy.io.loadmat(tmp_path / "scene.mat")["cube"].tolist() == cube.tolist()

    def test_a_folder_may_be_named_by_a_dot(self, weights, tmp_path, rng):
        folder = tmp_path / "scene.v2"
        folder.mkdir()
        save_bands(folder, "scene", rng.integers(0, 65536, (9, 10, 4), dtype=np.uint16))
        call("denoise", ".", "--weights", weights, cwd=folder)
        after = scipy.io.loadmat(tmp_path / "scene.v2_denoised.mat")
        assert (after["cube"].shape, after["cube"].dtype) == ((9, 10, 4), np.uint16)

    def test_closed_streams_are_no_error(self, noisy, weights, tmp_path):
        words = sys.executable, "-m", "hsidenoise", "denoise", noisy, "-o", "a.mat", "--weights", weights
        closed = f"{shlex.join(map(str, words))} <&- >&- 2>&-"
        done = subprocess.run(closed, shell=True, cwd=tmp_path, env=ENVIRONMENT, timeout=300)
        assert done.returncode == 0
        assert names(tmp_path) == ["a.mat", "a.mat.json"]

    def test_axes_and_size_are_passed_on(self, weights, tmp_path):
        cube = scipy.io.loadmat(SAMPLE)["cube"][30:50, 20:50]
        scipy.io.savemat(tmp_path / "a.mat", {"Y": cube.reshape(-1, 31, order="F").T})
        printed = call(
            *("denoise", "a.mat", "--weights", weights, "--key", "Y", "--axes", "bp", "--size", "20x30"), cwd=tmp_path
        )
        assert "31 bands of 20 x 30" in printed
        assert scipy.io.loadmat(tmp_path / "a_denoised.mat")["Y"].shape == (31, 600)

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["-o", "noisy.mat"], "noisy"),
            (["-o", "no/such/folder.mat"], "no/such"),
            (["-o", "x.mat", "--weights", "nonsense.safetensors"], "not a weights file"),
            (["-o", "x.mat", "--weights", "no-such-weights"], "no-such-weights"),
            (["-o", "x.mat", "--picture", "page.mat"], ".png"),
            (["-o", "x.mat", "--picture", "no/such/page.png"], "no/such"),
            (["-o", "x.mat", "--overlap", "40", "--tile", "32"], "overlap"),
            (["-o", "x.mat", "--device", "abacus"], "abacus"),
            (["-o", "x.mat", "--device", "meta"], "meta"),
            (["-o", "x.png", "--picture", "x.png"], "name another picture"),
            (["-o", "x.mat", "--picture", "./noisy.mat.png/../noisy.mat"], "name another picture"),
            (["-o", "x.mat", "--picture", "page.png", "--band", "31"], "bands 0 to 30"),
            (["-o", "x.mat", "--band", "3"], "--picture"),
        ],
        ids=lambda value: value[-1] if isinstance(value, list) else None,
    )
    def test_refusals(self, noisy, weights, tmp_path, capsys, monkeypatch, arguments, says):
        monkeypatch.chdir(tmp_path)
        Path("noisy.mat").write_bytes(noisy.read_bytes())
        Path("nonsense.safetensors").write_bytes(b"no weights at all, just text")
        if "--weights" not in arguments:
            arguments = [*arguments, "--weights", str(weights)]
        assert main(["denoise", "noisy.mat", *arguments]) == 2
        message = capsys.readouterr().err
        assert refused(message)
        assert says in message
        assert sorted(path.name for path in tmp_path.iterdir()) == ["noisy.mat", "nonsense.safetensors"]
        assert Path("noisy.mat").read_bytes() == noisy.read_bytes()

    def test_the_shipped_weights_help(self, noisy, tmp_path):
        call("denoise", noisy, "-o", "clean.mat", cwd=tmp_path)
        before, after = (
            json.loads(call("evaluate", path, noisy, "--json", cwd=tmp_path)) for path in (noisy, "clean.mat")
        )
        assert after["psnr"] > before["psnr"] + 10
        assert after["ssim"] > before["ssim"] + 0.3
        assert after["sam"] < before["sam"] / 2


def bad_files():
    """Name of the file -> how to make it, and what its one-line error says."""
    cube = np.random.default_rng(0).random((6, 8, 5))
    hole = cube.copy()
    hole[2, 3, 4] = np.nan
    many = scipy.io.savemat

    def text(path):
        path.write_text("no MATLAB file, only a long enough text to hold a header of 128 bytes" * 5)

    def cut(path):
        path.write_bytes(SAMPLE.read_bytes()[:5000])

    return {
        "text.mat": (text, r"not a MATLAB file"),
        "empty.mat": (Path.touch, r"empty"),
        "truncated.mat": (cut, r"truncated|cut short|incomplete|damaged"),
        "flat.mat": (lambda path: many(path, {"a": np.eye(3), "b": "text"}), r"\ba\b"),
        "two.mat": (lambda path: many(path, {"one": cube, "two": cube}), r"one.*two"),
        "constant.mat": (lambda path: many(path, {"cube": np.full((6, 8, 5), 7.0)}), r"7|constant"),
        "no_axis.mat": (lambda path: many(path, {"cube": np.zeros((6, 0, 5))}), r"6x0x5|empty"),
        "complex.mat": (lambda path: many(path, {"cube": cube * 1j}), r"complex"),
        "missing.mat": (lambda path: None, r"missing\.mat"),
    }


class TestBadInput:
    """Each: exit status 2, one line on stderr that names the file or variable, nothing written."""

    @pytest.mark.parametrize("name", bad_files())
    def test_bad_file(self, tmp_path, weights, name):
        make, says = bad_files()[name]
        make(tmp_path / name)
        before = sorted(tmp_path.iterdir())
        message = call("denoise", name, "-o", "clean.mat", "--weights", weights, cwd=tmp_path, code=2)
        assert refused(message)
        assert re.search(says, message), message
        assert sorted(tmp_path.iterdir()) == before

    def test_wrong_key_lists_the_variables(self, tmp_path, weights):
        message = call("denoise", SAMPLE, "--key", "cub", "-o", "c.mat", "--weights", weights, cwd=tmp_path, code=2)
        assert refused(message)
        assert "cube" in message
        assert not list(tmp_path.iterdir())

    def test_unwritable_target(self, tmp_path, weights):
        (tmp_path / "folder.mat").mkdir()
        message = call("denoise", SAMPLE, "-o", "folder.mat", "--weights", weights, cwd=tmp_path, code=2)
        assert refused(message)
        assert "folder.mat" in message


class TestPaths:
    """What every verb says of files that it cannot read or write."""

    @pytest.mark.parametrize(
        ("verb", "name"),
        [
            *(("denoise", name) for name in ("o.png", "o.v2", "-", "")),
            *(("convert", name) for name in ("o.jpg", "o.v2", "-", "")),
            *(("corrupt", name) for name in ("o.npy", "o.tif", "o.hdr", "o.h5", "o.v2", "-", "")),
        ],
    )
    def test_a_name_that_would_be_untrue(self, noisy, weights, tmp_path, capsys, monkeypatch, verb, name):
        monkeypatch.chdir(tmp_path)
        options = {
            "denoise": ["-o", name, "--weights", str(weights)],
            "convert": [name],
            "corrupt": [name, "--noise", "blind"],
        }[verb]
        assert main([verb, str(noisy), *options]) == 2
        message = capsys.readouterr().err
        assert refused(message)
        assert re.search(
            {"-": "name of a file", "": "empty name"}.get(name, r"name it \.mat|known: .*\.mat, ENVI \.hdr"), message
        )
        assert names(tmp_path) == []

    def test_a_name_like_that_of_the_source_is_true(self, weights, tmp_path):
        cube = np.random.default_rng(0).random((9, 10, 4))
        scipy.io.savemat(tmp_path / "a.dat", {"cube": cube}, appendmat=False)
        call("denoise", "a.dat", "-o", "b.DAT", "--weights", weights, cwd=tmp_path)
        write_mat(tmp_path / "c.mat", {"cube": cube}, hdf5=True)
        call("denoise", "c.mat", "-o", "d.h5", "--weights", weights, cwd=tmp_path)
        assert [name for name in names(tmp_path) if not name.endswith(".json")] == ["a.dat", "b.DAT", "c.mat", "d.h5"]

    @pytest.mark.parametrize("option", ["--out", "--config", "--data.root"])
    def test_an_empty_name_is_no_folder(self, capsys, option):
        assert main(["benchmark", option, ""]) == 2
        assert "empty name" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("make", "says"),
        [
            (None, r"no such file: nowhere/x\.mat \(folder nowhere is missing\)"),
            (os.mkfifo, "it is a pipe"),
            (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(200)), "unpack"),
            (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid"), "git lfs pull"),
            (lambda path: path.write_text("<!DOCTYPE html><html>"), "web page"),
            (lambda path: path.write_bytes(b""), "is empty"),
        ],
        ids=["missing", "pipe", "zip", "lfs", "html", "empty"],
    )
    @pytest.mark.parametrize(
        "arguments",
        [
            ["denoise", "nowhere/x.mat"],
            ["denoise", "nowhere/x.mat", "-o", "also/nowhere.mat"],
            ["denoise", "nowhere/x.mat", "--picture", "also/nowhere.png", "--band", "0"],
            ["inspect", "nowhere/x.mat"],
            ["inspect", "nowhere/x.mat", "--json"],
            ["evaluate", "nowhere/x.mat", str(SAMPLE)],
            ["evaluate", str(SAMPLE), "nowhere/x.mat"],
            ["corrupt", "nowhere/x.mat", "also/nowhere.mat", "--noise", "blind"],
        ],
        ids=lambda value: " ".join(value[:-1]),
    )
    def test_the_input_is_looked_at_first(self, tmp_path, capsys, monkeypatch, arguments, make, says):
        monkeypatch.chdir(tmp_path)
        if make is not None:
            Path("nowhere").mkdir()
            make(Path("nowhere/x.mat"))
        before = sorted(tmp_path.rglob("*"))
        assert main(arguments) == 2
        message = capsys.readouterr().err
        assert refused(message)
        assert re.search(says, message), message
        assert sorted(tmp_path.rglob("*")) == before

    @pytest.mark.parametrize(
        "arguments", [["benchmark", "--config", "pipe"], ["train", "--config", "pipe"], ["train", "--config=pipe"]]
    )
    def test_a_pipe_as_configuration(self, tmp_path, capsys, monkeypatch, arguments):
        monkeypatch.chdir(tmp_path)
        os.mkfifo("pipe")
        assert main(arguments) == 2
        message = capsys.readouterr().err
        assert refused(message)
        assert "it is a pipe" in message

    def test_corrupt_names_a_hot_pixel_and_keeps_the_digits_of_a_large_offset(self, tmp_path):
        clean = np.linspace(0, 1, 12 * 13 * 5).reshape(12, 13, 5)
        clean[3, 4, 2] = 1e6
        scipy.io.savemat(tmp_path / "a.mat", {"cube": clean})
        scipy.io.savemat(tmp_path / "b.mat", {"cube": 1e9 + np.minimum(clean, 1)})
        done = run("corrupt", "a.mat", "n.mat", "--noise", "gaussian-5", cwd=tmp_path)
        assert "1e+06 in 1 pixel of band 2: no measurement, it seems; NaN in what is written" in done.stderr
        content = scipy.io.loadmat(tmp_path / "n.mat")
        assert (
            np.argwhere(np.isnan(content["input"])).tolist()
            == np.argwhere(np.isnan(content["gt"])).tolist()
            == [[3, 4, 2]]
        )
        assert np.nanmax(content["gt"]) == 1
        assert main(["corrupt", str(tmp_path / "b.mat"), str(tmp_path / "n.mat"), "--noise", "gaussian-5"]) == 0
        assert np.abs(scipy.io.loadmat(tmp_path / "n.mat")["gt"] - np.minimum(clean, 1)).max() < 1e-5

    def test_a_pipe_among_the_cubes_of_a_noisy_set(self, tmp_path, capsys):
        (tmp_path / "cubes").mkdir()
        os.mkfifo(tmp_path / "cubes" / "oak.mat")
        assert main(["make-noisy-set", str(tmp_path / "cubes"), str(tmp_path / "set")]) == 2
        assert "it is a pipe" in capsys.readouterr().err
        assert names(tmp_path) == ["cubes"]

    def test_missing_weights_come_before_a_missing_folder(self, tmp_path, capsys):
        assert main(["export", "--weights", "none.safetensors", "-o", str(tmp_path / "none" / "a.onnx")]) == 2
        assert "none.safetensors: neither" in capsys.readouterr().err

    def test_a_table_without_a_place_is_refused_before_it_is_computed(self, tmp_path, capsys, monkeypatch, rng):
        monkeypatch.chdir(tmp_path)
        Path("cubes").mkdir()
        scipy.io.savemat("cubes/oak.mat", {"cube": rng.random((20, 22, 4))})
        Path("a.yaml").write_text("{title: a, data: {root: cubes}, cases: [blind], methods: [noisy]}")
        Path("results/a/scenes.csv").mkdir(parents=True)
        assert main(["benchmark", "--config", "a.yaml"]) == 2
        assert "scenes.csv: it is a folder" in capsys.readouterr().err
        assert not list(Path("results/a/cells").iterdir())


class TestPrinting:
    """A job that is done is not called a failure because of what the console cannot show."""

    def run(self, *arguments, cwd, out=subprocess.PIPE, **environment):
        words = ("-m", "hsidenoise", *arguments)
        return child(*words, cwd=cwd, environment=environment, stdout=out, text=False)

    def test_a_console_without_the_letters_of_a_path(self, tmp_path):
        folder = tmp_path / "数据"
        folder.mkdir()
        command = ("corrupt", SAMPLE, folder / "n.mat", "--noise", "blind", "--crop", "20")
        done = self.run(*command, cwd=tmp_path, PYTHONIOENCODING="cp1252")
        assert (done.returncode, done.stderr) == (0, b"")
        assert rb"\u6570\u636e" in done.stdout
        assert names(folder) == ["n.mat"]
        failed = self.run("inspect", folder / "m.mat", cwd=tmp_path, PYTHONIOENCODING="cp1252:strict")
        assert failed.returncode == 2
        assert rb"no such file" in failed.stderr

    def test_nothing_that_a_file_says_moves_the_cursor(self, tmp_path, weights, noisy):
        name = "a\x1b[31m\x9b2J\u202e.mat"
        shutil.copy(noisy, tmp_path / name)
        header = read_header(weights) | {"model": "\x1b[31mx", "summary": "\x1b]0;gone\x07"}
        header.pop("parameters")
        safetensors.torch.save_file(safetensors.torch.load_file(weights), tmp_path / "w\x1b[2J", header)
        for status, *words in (
            (0, "inspect", name),
            (0, "denoise", name, "-o", "b\x1b[2J.mat", "--method", "pca"),
            (2, "denoise", name, "-o", "c.mat", "--weights", "w\x1b[2J"),
            (2, "inspect", f"none{name}"),
            (2, "inspect", name, "--\x1b[2J"),
            (2, "train", "--model.passes", "\x1b[2J"),
        ):
            done = run(*words, cwd=tmp_path)
            assert (done.returncode, printed := done.stdout + done.stderr)[0] == status, printed
            assert not [letter for letter in printed if not letter.isprintable() and letter != "\n"], printed
        found = json.loads(run("inspect", name, "--json", cwd=tmp_path).stdout)
        assert found["file"] == name

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_a_report_that_cannot_be_printed(self, tmp_path):
        with Path("/dev/full").open("wb") as full:
            command = ("corrupt", SAMPLE, "n.mat", "--noise", "blind", "--crop", "20")
            done = self.run(*command, cwd=tmp_path, out=full, PYTHONUNBUFFERED="1")
        assert done.returncode == 0
        assert done.stderr.startswith(b"hsidenoise: warning: done, but the report could not be printed")
        assert done.stderr.count(b"\n") == 1
        assert names(tmp_path) == ["n.mat"]

    def test_a_reader_that_has_gone_does_not_end_the_job(self, noisy, tmp_path):
        reading, writing = os.pipe()
        os.close(reading)
        command = ("denoise", noisy, "-o", "c.mat", "--method", "planes", "--picture", "page.png")
        with os.fdopen(writing, "wb") as gone:
            done = self.run(*command, cwd=tmp_path, out=gone, PYTHONUNBUFFERED="1")
        assert (done.returncode, done.stderr) == (0, b"")
        assert names(tmp_path) == ["c.mat", "c.mat.json", "page.png"]


class TestDisk:
    """A full disk, a folder that may not be written: one line, exit status 2, nothing left."""

    @pytest.mark.parametrize("verb", ["denoise", "corrupt", "make-noisy-set"])
    def test_a_full_disk(self, noisy, tmp_path, verb):
        (tmp_path / "cubes").mkdir()
        (tmp_path / "cubes" / "n.mat").write_bytes(noisy.read_bytes())
        (tmp_path / "out.mat").write_bytes(b"old")
        program = (
            "import resource, sys; from hsidenoise.cli.main import main\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); sys.exit(main(sys.argv[1:]))"
        )
        arguments = {
            "denoise": ["cubes/n.mat", "-o", "out.mat", "--method", "planes"],
            "corrupt": ["cubes/n.mat", "out.mat", "--noise", "blind"],
            "make-noisy-set": ["cubes", "set", "--crop", "20", "--cases", "blind"],
        }[verb]
        done = child("-c", program, verb, *arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert refused(done.stderr)
        assert "nothing was left behind" in done.stderr
        assert (tmp_path / "out.mat").read_bytes() == b"old"
        assert not list(tmp_path.rglob(".*"))

    @pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
    def test_a_folder_that_may_not_be_written(self, noisy, tmp_path, capsys):
        tmp_path.chmod(0o555)
        try:
            assert main(["corrupt", str(noisy), str(tmp_path / "a.mat"), "--noise", "blind"]) == 2
        finally:
            tmp_path.chmod(0o755)
        assert refused(capsys.readouterr().err)


class TestInspect:
    def test_says_what_would_be_read(self, capsys):
        assert main(["inspect", str(SAMPLE)]) == 0
        printed = capsys.readouterr().out
        for said in ("128 x 160 x 31", "uint16", "axis 3 is the spectrum", "1 to 983", "400 to 700 nm", "noise"):
            assert said in printed

    def test_json(self, capsys, tmp_path, rng):
        cube = np.linspace(1, 2, 30)[:, None] * np.linspace(1, 3, 24) + rng.normal(0, 0.01, (6, 30, 24))
        cube[4] = rng.random((30, 24))
        scipy.io.savemat(tmp_path / "a.mat", {"hsi": cube.transpose(1, 2, 0), "about": "text"})
        assert main(["inspect", str(tmp_path / "a.mat"), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert [item["name"] for item in found["variables"]] == ["hsi", "about"]
        assert found["variables"][0]["shape"] == [30, 24, 6]
        facts = found["cube"]
        assert (facts["bands"], facts["height"], facts["width"]) == (6, 30, 24)
        assert facts["bad_bands"] == [4]
        assert facts["noise"]["worst_band"] == 4
        assert facts["wavelengths"] is None
        assert 0.005 < facts["noise"]["median"] < 0.02

    def test_a_plot_of_the_noise_and_pixels_without_data(self, capsys, tmp_path, rng):
        image = np.add.outer(np.sin(np.arange(30) / 3), np.cos(np.arange(24) / 2)) + 3
        cube = np.linspace(1, 2, 6)[:, None, None] * image + rng.normal(0, 0.01, (6, 30, 24))
        cube[:, :, :5] = np.nan
        path, plot = tmp_path / "a.mat", tmp_path / "plot.png"
        scipy.io.savemat(path, {"hsi": cube.transpose(1, 2, 0)})
        before = path.read_bytes()
        assert main(["inspect", str(path), "--plot", str(plot)]) == 0
        printed = capsys.readouterr().out
        assert f"plot         {plot}\n" in printed
        assert "no data      NaN in 150 pixels" in printed
        assert plot.read_bytes().startswith(b"\x89PNG")
        for wrong, says in ((path, "name another picture"), (tmp_path / "plot.gif", "name a picture .png")):
            assert main(["inspect", str(path), "--plot", str(wrong)]) == 2
            assert says in capsys.readouterr().err
        assert path.read_bytes() == before

    def test_an_image_of_one_line_is_described_without_its_noise(self, capsys, tmp_path, rng):
        path = tmp_path / "line.mat"
        scipy.io.savemat(path, {"cube": rng.random((40, 1, 31))})
        assert main(["inspect", str(path)]) == 0
        printed = capsys.readouterr().out
        assert "31 bands, height 40, width 1" in printed
        assert "not estimated" in printed
        assert main(["inspect", str(path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["cube"]["noise"] is None

    def test_an_ambiguous_file_is_still_listed(self, capsys, tmp_path):
        path = tmp_path / "two.mat"
        scipy.io.savemat(path, {"one": np.ones((3, 4, 5)), "two": np.ones((3, 4, 5))})
        assert main(["inspect", str(path)]) == 0
        printed = capsys.readouterr().out
        assert "no cube chosen" in printed
        assert "3 x 4 x 5" in printed
        assert main(["inspect", str(path), "--key", "three"]) == 2

    def test_no_file(self, tmp_path):
        assert refused(call("inspect", "a.mat", cwd=tmp_path, code=2))


class TestEvaluate:
    def scores(self, capsys, *arguments):
        assert main(["evaluate", *map(str, arguments), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    def test_noisy_against_the_clean_cube_beside_it(self, noisy, capsys):
        content = scipy.io.loadmat(noisy)
        error = np.square(np.clip(content["input"].astype(float), 0, 1) - content["gt"]).mean(axis=(0, 1))
        scores = self.scores(capsys, noisy, noisy)
        assert scores["psnr"] == pytest.approx(np.mean(-10 * np.log10(error)), rel=1e-6)
        assert scores["protocol"] == "standard"
        assert "input" in scores["denoised"]
        assert "gt" in scores["clean"]

    @pytest.mark.parametrize("protocol", PROTOCOLS)
    def test_every_protocol(self, noisy, capsys, protocol):
        assert self.scores(capsys, noisy, noisy, "--protocol", protocol)["protocol"] == protocol
        assert main(["evaluate", str(noisy), str(noisy), "--protocol", protocol]) == 0
        assert ("degrees" in capsys.readouterr().out) == (protocol == "sert")

    def test_the_cube_that_was_corrupted_serves_as_clean(self, tmp_path, capsys):
        assert main(["corrupt", str(SAMPLE), str(tmp_path / "n.mat"), "--noise", "gaussian-30"]) == 0
        capsys.readouterr()
        beside = self.scores(capsys, tmp_path / "n.mat", tmp_path / "n.mat")
        original = self.scores(capsys, tmp_path / "n.mat", SAMPLE)
        assert original["psnr"] == pytest.approx(beside["psnr"], rel=1e-5)
        assert original["sam"] == pytest.approx(beside["sam"], rel=1e-4)

    def test_integers_are_measured_on_the_clean_range(self, tmp_path, capsys, rng):
        clean = rng.integers(100, 1101, (9, 11, 5)).astype(np.uint16)
        clean[0, 0, 0], clean[0, 0, 1] = 100, 1100
        denoised = clean.copy()
        denoised[:-1] += 10
        scipy.io.savemat(tmp_path / "c.mat", {"cube": clean})
        scipy.io.savemat(tmp_path / "d.mat", {"cube": denoised})
        scores = self.scores(capsys, tmp_path / "d.mat", tmp_path / "c.mat")
        difference = np.clip((denoised.astype(float) - 100) / 1000, 0, 1) - (clean.astype(float) - 100) / 1000
        expected = np.mean(-10 * np.log10(np.square(difference).mean(axis=(0, 1))))
        assert scores["psnr"] == pytest.approx(expected, rel=1e-4)
        assert "100 .. 1100" in scores["scaling"]
        given = self.scores(capsys, tmp_path / "d.mat", tmp_path / "c.mat", "--data-range", "2000")
        assert given["data_range"] == 2000
        assert given["psnr"] > scores["psnr"] + 5

    @pytest.mark.parametrize("value", [-9999.0, np.nan, 1e20, 0.0])
    def test_what_both_mark_as_no_data_is_left_out_and_said(self, capsys, tmp_path, real_crop, value):
        clean = 0.1 + 0.5 * real_crop.transpose(1, 2, 0).astype(np.float64)
        denoised = clean + np.random.default_rng(0).normal(0, 0.01, clean.shape)
        bands = [3, 4] if value else []  # a band of zeros is one that makes a score infinite
        for name, cube in (("d", denoised), ("c", clean)):
            cube[:, :20] = cube[..., bands] = value
            scipy.io.savemat(tmp_path / f"{name}.mat", {"cube": cube})
            scipy.io.savemat(tmp_path / f"{name}0.mat", {"cube": np.delete(cube[:, 20:], bands, axis=2)})
        alone = self.scores(capsys, tmp_path / "d0.mat", tmp_path / "c0.mat")
        scores = self.scores(capsys, tmp_path / "d.mat", tmp_path / "c.mat")
        for name in ("psnr", "ssim", "sam", "ergas"):
            assert scores[name] == pytest.approx(alone[name], rel=1e-9)
        assert (scores["pixels_scored"], scores["pixels"], scores["bands_left_out"]) == (48 * 44, 48 * 64, bands)
        assert main(["evaluate", str(tmp_path / "d.mat"), str(tmp_path / "c.mat")]) == 0
        said = capsys.readouterr().out
        what = "NaN" if np.isnan(value) else f"{value:.6g}"
        assert f"no data   denoised cube: {what} in " in said
        assert f"no data   clean cube: {what} in " in said
        assert f"scored    2112 of 3072 pixels{', without bands 3-4' * bool(bands)}" in said

    def test_marks_of_the_denoised_cube_alone_are_scored_unless_they_are_named(self, capsys, tmp_path, real_crop):
        clean = 0.1 + 0.5 * real_crop.transpose(1, 2, 0).astype(np.float64)
        denoised = clean + np.random.default_rng(0).normal(0, 0.01, clean.shape)
        scipy.io.savemat(tmp_path / "c0.mat", {"cube": clean[:, 20:]})
        scipy.io.savemat(tmp_path / "d0.mat", {"cube": denoised[:, 20:]})
        denoised[:, :20] = -9999
        mask = np.arange(64)[None] >= 20 * np.ones((48, 1))
        scipy.io.savemat(tmp_path / "c.mat", {"cube": clean})
        scipy.io.savemat(tmp_path / "d.mat", {"cube": denoised, "m": mask})
        paths = tmp_path / "d.mat", tmp_path / "c.mat"
        scores = json.loads(run("evaluate", *paths, "--json", "--key", "cube", cwd=tmp_path).stdout)
        assert scores["psnr"] < 25
        assert "29760 values seem to be no data in the denoised cube only: scored as they are" in scores["not_data"]
        alone = self.scores(capsys, tmp_path / "d0.mat", tmp_path / "c0.mat")
        for named in (["--nodata", "-9999"], ["--mask", "m"]):
            scores = self.scores(capsys, *paths, "--key", "cube", *named)
            assert scores["psnr"] == pytest.approx(alone["psnr"], rel=1e-9)
            assert scores["pixels_scored"] == 48 * 44

    def test_bands_beyond_the_scores_are_named(self, tmp_path, real_crop):
        clean = real_crop.transpose(1, 2, 0).copy()
        clean[..., 9] = 0
        denoised = clean + np.float32(0.01)
        for value, name, said in (
            (
                0,
                "bands_of_infinite_psnr",
                "the PSNR is infinite: both cubes are the same in band 9 (0-based); PSNR over",
            ),
            (1e-4, "bands_of_infinite_ergas", "the ERGAS is infinite: the clean mean is 0 in band 9 (0-based)"),
        ):
            denoised[..., 9] = value
            for path, cube in (("d.mat", denoised), ("c.mat", clean)):
                scipy.io.savemat(tmp_path / path, {"cube": cube})
            done = run("evaluate", "d.mat", "c.mat", "--json", cwd=tmp_path)
            assert json.loads(done.stdout)[name] == [9]
            assert said in done.stderr

    def test_axes_and_sizes_of_either_side(self, capsys, tmp_path, rng):
        cube = rng.random((9, 11, 5))
        scipy.io.savemat(tmp_path / "cube.mat", {"cube": cube})
        scipy.io.savemat(tmp_path / "matrix.mat", {"Y": cube.reshape(99, 5, order="F").T})
        paths = tmp_path / "matrix.mat", tmp_path / "cube.mat"
        assert self.scores(capsys, *paths, "--size", "9x11")["psnr"] is None
        assert self.scores(capsys, *reversed(paths), "--clean-size", "9x11", "--clean-axes", "BP")["psnr"] is None

    def test_identical_cubes_have_no_finite_psnr(self, capsys):
        assert self.scores(capsys, SAMPLE, SAMPLE)["psnr"] is None

    def test_other_units_are_warned_of(self, noisy, tmp_path):
        content = scipy.io.loadmat(noisy)
        scipy.io.savemat(tmp_path / "d.mat", {"cube": content["input"] * 1000})
        done = run("evaluate", "d.mat", noisy, cwd=tmp_path)
        assert done.returncode == 0
        assert done.stderr.startswith("hsidenoise: warning: ")
        assert "same unit" in done.stderr

    def test_other_sizes(self, noisy, capsys):
        assert main(["evaluate", str(noisy), str(SAMPLE)]) == 2
        message = capsys.readouterr().err
        assert refused(message)
        for said in ("48 x 48", "128 x 160", "cropped", "holds its own clean cube"):
            assert said in message

    def test_values_that_cannot_be_squared(self, capsys, tmp_path):
        write_mat(tmp_path / "a.mat", {"cube": np.linspace(0, 1e300, 504).reshape(9, 8, 7)})
        assert main(["evaluate", str(tmp_path / "a.mat"), str(tmp_path / "a.mat")]) == 2
        assert refused(message := capsys.readouterr().err)
        assert "a.mat: values of up to 1e+300 cannot be squared" in message


class TestWeights:
    def test_json_has_every_row(self, capsys):
        assert main(["weights", "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)
        assert [row["name"] for row in rows] == list(WEIGHTS)
        for row in rows:
            assert row["parameters"] > 1000
            assert row["bytes"] > 4 * row["parameters"]

    def test_table(self, capsys):
        assert main(["weights"]) == 0
        printed = capsys.readouterr().out
        assert printed.strip()
        for row in WEIGHTS.values():
            assert row.name in printed
            assert row.sha256 in printed


class TestTrain:
    def test_help_names_the_command(self, capsys):
        assert main(["train", "--help"]) == 0
        shown = capsys.readouterr().out
        assert shown.startswith("usage: hsidenoise train [")
        assert "__main__" not in shown
        assert "pytest" not in shown

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--nonsense"], "--nonsense"),
            (["--data.root", "x", "--trainer.max_steps", "many"], "trainer.max_steps.*many"),
            (["--config", "no.yaml"], "no.yaml"),
            ([], "data.root"),
        ],
    )
    def test_a_wrong_option_is_refused_in_one_line(self, capsys, arguments, message):
        assert main(["train", *arguments]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert refused(shown.err)
        assert re.search(message, shown.err)
        assert "hsidenoise train --help" in shown.err or "no.yaml" in arguments

    def test_options_reach_the_trainer(self, tmp_path):
        message = call("train", "--data.root", "nowhere", "--trainer.logger", "false", cwd=tmp_path, code=2)
        assert message.splitlines()[-1].startswith("hsidenoise: error: ")
        assert "nowhere" in message.splitlines()[-1]


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is that of Linux")
def test_too_little_memory_is_one_line(tmp_path):
    script = """
import resource, sys
import numpy
from hsidenoise.cli.main import VERBS, main
from hsidenoise.data.io import write_arrays
cube = numpy.random.default_rng(0).random((300, 300, 40), dtype=numpy.float32)
write_arrays(sys.argv[1], {"cube": cube})
write_arrays(sys.argv[2], {"cube": cube[:32, :32]})
assert main(["evaluate", sys.argv[2], sys.argv[2]]) == 0
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
for cubes in range(2, 15):  # at different places on the way
    resource.setrlimit(resource.RLIMIT_AS, (used + cubes * cube.nbytes, resource.RLIM_INFINITY))
    print(main(["evaluate", sys.argv[1], sys.argv[1], "--json"]), file=sys.stderr)
"""
    done = child("-c", script, "a.mat", "b.mat", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    # 0 alone, or a line and 2
    assert re.fullmatch(r"(0\n|hsidenoise: error: [^\n]*memory[^\n]*\n2\n)+", done.stderr), done.stderr
    assert "hsidenoise: error: not enough memory (" in done.stderr, done.stderr


class TestDenoiseSaysAndRecords:
    """What is said before and after the work, and kept beside the output; by the filters without a network."""

    @pytest.fixture
    def plain(self, tmp_path):
        path = tmp_path / "n.mat"
        assert main(["corrupt", str(SAMPLE), str(path), "--noise", "gaussian-10", "--crop", "48"]) == 0
        return path

    def test_a_dry_run_says_and_writes_nothing(self, plain, capsys):
        capsys.readouterr()
        assert main(["denoise", str(plain), "--dry-run"]) == 0
        said = capsys.readouterr().out
        assert [line.split()[0] for line in said.splitlines()] == ["read", "scaling", "method", "dry"]
        assert "31 bands of 48 x 48; axes hwb" in said
        assert main(["denoise", str(plain), "--dry-run", "--json", "--method", "planes"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["dry_run"] is True
        assert [found[name] for name in ("method", "variable", "bands", "height")] == ["planes", "input", 31, 48]
        assert names(plain.parent) == ["n.mat"]

    def test_what_is_read_is_said_before_the_work(self, plain, monkeypatch):
        seen = []
        stream = io.TextIOWrapper(io.BytesIO(), write_through=True)

        def work(*_, **__):
            seen.append(stream.buffer.getvalue().decode())
            raise ValueError("stop")

        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr("hsidenoise.inference.job.choose_model", work)
        assert main(["denoise", str(plain)]) == 2
        assert seen[0].startswith("read     ")
        assert "\nscaling  auto" in seen[0]
        assert stream.buffer.getvalue().decode().count("read     ") == 1

    def test_nothing_that_is_read_is_written_over(self, plain, tmp_path, capsys):
        scipy.io.savemat(tmp_path / "level.mat", {"noise": np.full((31, 1), 0.1)})
        scipy.io.savemat(tmp_path / "mask.mat", {"mask": np.ones((48, 48))})
        files = (plain, tmp_path / "level.mat", tmp_path / "mask.mat")
        before = [file.read_bytes() for file in files]
        out = str(tmp_path / "out.mat")
        read = ["--noise", str(tmp_path / "level.mat"), "--mask", f"{tmp_path / 'mask.mat'}:/mask"]
        for options in (
            ["-o", out, "--save-noise", str(plain)],
            ["-o", out, "--save-noise", out],
            ["-o", out, "--save-noise", str(tmp_path / "level.mat"), *read],
            ["-o", str(tmp_path / "level.mat"), *read],
            ["-o", str(tmp_path / "mask.mat"), *read],
            ["-o", out, "--save-noise", str(tmp_path / "level.txt")],
        ):
            assert main(["denoise", str(plain), "--method", "planes", *options]) == 2, options
            assert capsys.readouterr().err.count("\n") == 1
        assert [file.read_bytes() for file in files] == before
        assert not (tmp_path / "out.mat").exists()

    def test_strength(self, plain, tmp_path):
        found = {}
        for strength in ("0", "0.5", "1"):
            target = tmp_path / f"{strength}.mat"
            assert main(["denoise", str(plain), "-o", str(target), "--method", "planes", "--strength", strength]) == 0
            found[strength] = scipy.io.loadmat(target)["input"].astype(np.float64)
        record = json.loads((tmp_path / "0.5.mat.json").read_text())
        assert record["residual"]["noise_before"]["median"] == pytest.approx(10 / 255, rel=0.1)  # not half of it
        noisy = scipy.io.loadmat(plain)["input"].astype(np.float64)
        assert np.array_equal(found["0"], noisy)
        np.testing.assert_allclose(found["0.5"], (noisy + found["1"]) / 2, atol=1e-6)
        assert np.abs(noisy - found["1"]).mean() > 0.01

    def test_the_record_and_no_false_alarm(self, plain, tmp_path, capsys):
        target = tmp_path / "d.mat"
        capsys.readouterr()
        assert main(["denoise", str(plain), "-o", str(target), "--method", "planes", "--json"]) == 0
        shown = capsys.readouterr()
        assert shown.err == ""
        record = json.loads((tmp_path / "d.mat.json").read_text())
        assert json.loads(shown.out) == record
        assert (record["method"], record["options"]["strength"], record["residual"]["structured"]) == ("planes", 1, [])
        assert record["residual"]["noise_before"]["median"] == pytest.approx(10 / 255, rel=0.1)
        assert record["residual"]["noise_after"]["median"] < 10 / 255 / 4
        (tmp_path / "d.mat.json").write_text("mine")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            assert main(["denoise", str(plain), "-o", str(target), "--method", "planes"]) == 0
        assert (tmp_path / "d.mat.json").read_text() == "mine"
        shown = capsys.readouterr()
        assert "is there and of something else" in shown.err
        assert "record " not in shown.out
        for name, said in (("e.npz", "in it"), ("e.mat", f"{tmp_path / 'e.mat.json'}")):
            assert main(["denoise", str(plain), "-o", str(tmp_path / name), "--method", "planes"]) == 0
            assert f"\nrecord   {said}: versions" in capsys.readouterr().out

    def test_how_many_values_were_replaced(self, plain, tmp_path, capsys):
        values = scipy.io.loadmat(plain)["input"]
        hit = np.random.default_rng(0).random((48, 48, 5)) < 0.03
        values[:, :, 4:9] += 2.0 * hit
        scipy.io.savemat(plain, {"input": values})
        capsys.readouterr()
        assert main(["denoise", str(plain), "-o", str(tmp_path / "d.mat"), "--method", "planes"]) == 0
        found = json.loads((tmp_path / "d.mat.json").read_text())["replaced"]
        assert found["values"] == pytest.approx(hit.sum(), abs=4)
        assert found["share"] == pytest.approx(found["values"] / values.size, rel=1e-5)
        assert found["bands"] == [4, 5, 6, 7, 8]
        assert f"\nreplaced {found['values']} values in 5 of 31 bands, 0.0047 of all (" in capsys.readouterr().out
        assert main(["denoise", str(plain), "-o", str(tmp_path / "e.mat"), "--method", "tv", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["replaced"] is None  # it does not tell

    def test_bands_whose_signal_was_eaten_are_named(self, plain, tmp_path, capsys, monkeypatch):
        from hsidenoise.classical.methods import BASELINES, Baseline

        def eats(noisy, sigma=None):
            found = np.array(noisy)
            found[6] = found[6].mean()
            return found

        monkeypatch.setitem(BASELINES, "eats", Baseline("eats", eats, "band 6", "here"))
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            assert main(["denoise", str(plain), "-o", str(tmp_path / "d.mat"), "--method", "eats"]) == 0
        assert "taken away from band 6 (0-based) has a structure" in capsys.readouterr().err
        assert "from band 6 (0-based) has" in json.loads((tmp_path / "d.mat.json").read_text())["warnings"][-1]

    def test_inspect_ranks_bands(self, plain, capsys):
        content = scipy.io.loadmat(plain)
        content["input"][..., 5] += np.random.default_rng(0).normal(0, 0.5, (48, 48))
        content["input"][:, 7:9, 20] = 0
        scipy.io.savemat(plain, {name: content[name] for name in ("input", "gt", "wavelength")})
        capsys.readouterr()
        assert main(["inspect", str(plain), "--json"]) == 0
        noise = json.loads(capsys.readouterr().out)["cube"]["noise"]
        assert (noise["worst_band"], noise["dead_columns"][20], len(noise["ranked"])) == (5, 2, 31)
        assert noise["per_band"][5] == pytest.approx(np.hypot(0.5, 10 / 255), rel=0.1)
        assert np.delete(noise["per_band"], 5) == pytest.approx(10 / 255, rel=0.1)
        assert main(["inspect", str(plain)]) == 0
        lines = capsys.readouterr().out.splitlines()
        table = lines[[line.startswith("bands ") for line in lines].index(True) + 2 :]
        assert [int(line.split()[0]) for line in table[:31]] == noise["ranked"]

    @pytest.mark.filterwarnings("ignore:what was taken away")  # too much noise is too much taken away
    def test_noise_is_saved_and_taken(self, plain, tmp_path, capsys):
        base = ["denoise", str(plain), "--method", "planes", "-o"]
        assert main([*base, str(tmp_path / "a.mat"), "--save-noise", str(tmp_path / "s.mat")]) == 0
        sigma = scipy.io.loadmat(tmp_path / "s.mat")["noise"].ravel()
        assert sigma == pytest.approx(np.full(31, 10 / 255), rel=0.1)
        scipy.io.savemat(tmp_path / "three.mat", {"noise": 3 * sigma})
        assert main([*base, str(tmp_path / "b.mat"), "--noise", str(tmp_path / "s.mat")]) == 0
        assert main([*base, str(tmp_path / "c.mat"), "--noise", str(tmp_path / "three.mat")]) == 0
        a, b, c = (scipy.io.loadmat(tmp_path / f"{name}.mat")["input"] for name in "abc")
        noisy = scipy.io.loadmat(plain)["input"]
        assert np.abs(a - b).mean() < 0.1 * np.abs(a - noisy).mean()
        assert np.abs(a - c).mean() > 3 * np.abs(a - b).mean()
        capsys.readouterr()
        assert main([*base, str(tmp_path / "e.mat"), "--noise", "none.mat"]) == 2
        assert "the noise 'none.mat' is neither a variable of it" in capsys.readouterr().err
