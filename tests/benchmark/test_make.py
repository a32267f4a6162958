"""`hsidenoise benchmark --config` as a person runs it, stops it, repeats it; what it refuses."""

import csv
import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from command_line import call

from hsidenoise import corrupt, denoise, evaluate
from hsidenoise.benchmark.cells import compute
from hsidenoise.benchmark.config import read_config, with_choice
from hsidenoise.benchmark.make import make_tables
from hsidenoise.benchmark.options import TableOptions
from hsidenoise.benchmark.plan import leaks, plan_table
from hsidenoise.classical.methods import run_baseline
from hsidenoise.cli import main as cli
from hsidenoise.data.datasets import read_split
from hsidenoise.data.formats.mat import write_mat
from hsidenoise.data.io import write_arrays
from hsidenoise.data.noisy_sets import published_arrays
from hsidenoise.data.scenes import read_clean
from hsidenoise.models import create_model
from hsidenoise.models.weights import save_weights

TABLES = Path(__file__).parents[2] / "configs" / "tables"
PEER = """
import os, time
from pathlib import Path
def half(noisy): return noisy * 0.5
def touchy(noisy):
    if Path("flag").exists() and noisy.shape[2] == 34: raise RuntimeError("no\\nluck")
    return noisy
def dies(noisy): os._exit(3)
def sleeps(noisy):
    if noisy.shape[2] == 34:
        Path("sleeping").touch()
        time.sleep(600)
    return noisy
"""
SCORES = ("psnr", "ssim", "sam")


def smooth(width):
    rows, columns = np.mgrid[:28, :width]
    return 500 + 400 * np.sin(rows[..., None] / 6 + np.arange(5) / 3) * np.cos(columns[..., None] / 8)


def make_weights(path, seed=0, name="hcanet-bra", **header):
    torch.manual_seed(seed)
    number = {"planes": 3} if name == "hcanet-bra" else {"bands": 5}
    network = create_model(name, **number, dim=8, num_blocks=(1, 0, 0), num_refinement_blocks=0)
    save_weights(path, network, name=name, metadata={key: json.dumps(value) for key, value in header.items()})


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of a person: two scenes of 5 bands, their own method, weights that have seen a scene, a table."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "cubes").mkdir()
    for name, width in (("ash", 32), ("oak", 34)):
        write_arrays(folder / "cubes" / f"{name}.mat", {"cube": smooth(width)})
    (folder / "peer_of_tables.py").write_text(PEER)
    make_weights(folder / "seen.safetensors", name="hcanet", training_scenes=["ash"], validation_scenes=["oak"])
    make_weights(folder / "own.safetensors", training_scenes=["elm"])
    table = {
        "title": "Two trees",
        "data": {"root": "cubes", "crop": 30},
        "cases": ["gaussian-50", "mixture"],
        "methods": [
            "noisy",
            "svd-tv",
            "peer_of_tables:half",
            {"method": "weights:own.safetensors", "label": "own, 1 pass", "passes": 1},
            {"method": "weights:seen.safetensors", "label": "seen"},
        ],
        "protocols": ["standard", "sert"],
        "seed": 5,
        "figure": {"case": "mixture", "scene": "oak"},
        "published": ["noisy"],
        "notes": ["Trees are patient."],
    }
    (folder / "trees.yaml").write_text(yaml.safe_dump(table))
    return folder


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def without_seconds(name, content):
    """A page without what is measured by a clock."""
    if name.endswith(".csv"):
        found = list(csv.DictReader(content.decode().splitlines()))
        return [{key: value for key, value in row.items() if key != "seconds"} for row in found]
    if name.endswith((".md", ".tex")):
        lines = content.decode().splitlines()
        return [re.sub(r"[|&] [\d.e-]+ (\||\\\\)$", "", line) for line in lines]
    return content


def run_here(config, folder, **options):
    """All cells in this process, which is quicker than starting others, then the table of them."""
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    for job, name in plan_table(config, "cpu").jobs.values():
        compute(job, str(folder / "cells"), name, keep=True)
    return make_tables(config, folder, device="cpu", **options)


ARGUMENTS = ["benchmark", "--config", "trees.yaml", "--out", "results", "--workers", "2", "--allow-leaks"]
ARGUMENTS += ["--device", "cpu"]


@pytest.fixture(scope="module")
def done(place):
    """The whole run, by the command."""
    return call(*ARGUMENTS, cwd=place)


class TestWholeRun:
    def test_it_writes_a_table_for_each_protocol_and_says_so(self, place, done):
        names = [f"{stem}_{name}.{end}" for name in ("standard", "sert") for stem, end in
                 (("table", "md"), ("table", "csv"), ("table", "tex"), ("scenes", "csv"))]  # fmt: skip
        names += ["comparison.png", "spectra.png"]
        folder = place / "results" / "trees"
        assert sorted(path.name for path in folder.iterdir()) == sorted([*names, "cells"])
        assert {line.split()[-1] for line in done.splitlines()} == {f"results/trees/{name}" for name in names}
        # 2 scenes x 2 cases x 5 methods, once for both protocols, and a cost for each method; no temporary is left
        cells = [path.name for path in (folder / "cells").iterdir()]
        assert len([name for name in cells if name.endswith(".json") and not name.startswith("cost-")]) == 20
        assert len([name for name in cells if name.startswith("cost-")]) == 5
        assert not [name for name in cells if name.startswith(".")]

    def test_the_numbers_are_those_of_the_library(self, place, done):
        methods = {
            "noisy": lambda noisy: noisy,
            "svd-tv": lambda noisy: run_baseline("svd-tv", noisy),
            "peer_of_tables:half": lambda noisy: noisy * np.float32(0.5),
            "own, 1 pass": lambda noisy: denoise(noisy, place / "own.safetensors", pilot_rounds=0, normalize="none"),
            "seen": lambda noisy: denoise(noisy, place / "seen.safetensors", normalize="none"),
        }
        found = {
            (protocol, row["method"], row["case"], row["scene"]): row
            for protocol in ("standard", "sert")
            for row in rows(place / "results" / "trees" / f"scenes_{protocol}.csv")
        }
        assert len(found) == 40
        for scene in ("ash", "oak"):
            clean = read_clean(place / "cubes" / f"{scene}.mat", crop=30)
            for case in ("gaussian-50", "mixture"):
                noisy = corrupt(clean, case, seed=5).noisy
                for label, method in methods.items():
                    denoised = method(noisy)
                    for protocol in ("standard", "sert"):
                        expected = evaluate(denoised, clean, protocol=protocol)
                        row = found[protocol, label, case, scene]
                        for metric in SCORES:
                            assert float(row[metric]) == pytest.approx(getattr(expected, metric), abs=2e-5), row

    def test_the_page_says_what_its_numbers_may_be_used_for(self, place, done):
        page = (place / "results" / "trees" / "table_standard.md").read_text()
        assert "# Two trees, protocol standard" in page
        assert f"hsidenoise {shlex.join(ARGUMENTS)}" in page
        for text in (
            "ash, oak; centre 30x30",
            "seed 5",
            "sha256",
            "what it was trained on is not known",
            "Trees are p",
        ):
            assert text in page, text
        assert "radians" in page
        assert "degrees" in (place / "results" / "trees" / "table_sert.md").read_text()
        assert "as published, other images" in page

    def test_a_leak_is_marked_and_not_ranked(self, place, done):
        folder = place / "results" / "trees"
        for row in rows(folder / "table_standard.csv"):
            expected = "LEAK: trained on ash; chosen by its scores on oak" if row["method"] == "seen" else ""
            assert row["marks"] == expected
        for line in (folder / "table_standard.md").read_text().splitlines():
            if line.startswith("| seen"):
                assert "LEAK: trained on ash" in line
                assert "<u>" not in line
                assert not re.search(r"\*\*\d", line)

    def test_without_being_allowed_it_is_refused_before_anything_is_computed(self, place, done, capsys, monkeypatch):
        monkeypatch.chdir(place)
        monkeypatch.setattr(sys, "path", list(sys.path))
        refused = [*ARGUMENTS[:3], "--out", "elsewhere"]
        assert cli.main(refused) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("hsidenoise: error: weights:seen.safetensors were trained on ash, which the table")
        assert "--allow-leaks" in line
        assert not (place / "elsewhere").exists()
        # the scene that weights were chosen by is not a leak, and a scene they never saw is nothing
        config = read_config("trees.yaml")
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, scenes=("oak",)))
        assert _marks(config) == {"seen": ("chosen by its scores on oak",)}

    def test_once_more_computes_nothing_and_gives_the_same_bytes(self, place, done, monkeypatch, capsys):
        monkeypatch.chdir(place)
        monkeypatch.setattr(sys, "path", list(sys.path))
        folder = place / "results" / "trees"
        before = contents(folder)
        times = {path: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        assert cli.main(ARGUMENTS) == 0
        assert contents(folder) == before
        assert {path: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()} == times

    def test_one_process_and_fresh_cells_give_the_same_bytes_apart_from_the_seconds(self, place, done, monkeypatch):
        monkeypatch.chdir(place)
        monkeypatch.syspath_prepend(place)
        folder = place / "results" / "trees"
        before = contents(folder)
        times = {path: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}
        text = shlex.join(["hsidenoise", *ARGUMENTS])
        options = {"workers": 1, "device": "cpu", "allow_leaks": True, "fresh": True, "command": text}
        make_tables(read_config("trees.yaml"), folder, **options)
        after = contents(folder)
        assert after.keys() == before.keys()
        for name in before:
            if not name.endswith(".json"):
                assert without_seconds(name, after[name]) == without_seconds(name, before[name]), name
        for name in (name for name in before if name.endswith(".json") and "cost-" not in name):
            assert json.loads(after[name])["scores"] == json.loads(before[name])["scores"]
        now = {path: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}
        assert all(now[path] != times[path] for path in times if "cost-" not in path.name)


def _marks(config):
    return leaks(config.methods, plan_table(config, "cpu").scenes, False)


class TestCells:
    """Which cells are others: by their names."""

    @pytest.fixture
    def config(self, place, monkeypatch):
        monkeypatch.chdir(place)
        monkeypatch.syspath_prepend(place)
        return read_config("trees.yaml")

    def test_a_change_makes_other_cells_where_it_counts(self, config):
        first = names(config)
        assert names(config) == first
        for changed in (
            with_choice(config, TableOptions("t", seed=6)),
            with_choice(config, TableOptions("t", protocols=["standard"])),
            dataclasses.replace(config, data=dataclasses.replace(config.data, crop=29)),
        ):
            other = names(changed)
            assert other.keys() == first.keys()
            assert not set(other.values()) & set(first.values())
        methods = tuple(
            dataclasses.replace(method, options={"pilot_rounds": 1}) if method.label.startswith("own") else method
            for method in config.methods
        )
        other = names(dataclasses.replace(config, methods=methods))
        assert {key[0] for key in first if first[key] != other[key]} == {"own, 1 pass"}
        titled = dataclasses.replace(config, title="Other", notes=(), published=(), figure=None)
        assert names(titled) == first

    def test_other_weights_under_the_same_name(self, config, place):
        first = names(config)
        kept = (place / "own.safetensors").read_bytes()
        make_weights(place / "own.safetensors", 1, training_scenes=["elm"])
        other = names(config)
        (place / "own.safetensors").write_bytes(kept)
        assert {key[0] for key in first if first[key] != other[key]} == {"own, 1 pass"}
        assert names(config) == first

    def test_another_cube_under_the_same_name(self, config, place):
        first = names(config)
        kept = (place / "cubes" / "oak.mat").read_bytes()
        write_arrays(place / "cubes" / "oak.mat", {"cube": smooth(34) + 1})
        other = names(config)
        (place / "cubes" / "oak.mat").write_bytes(kept)
        assert {key[1] for key in first if first[key] != other[key]} == {"oak"}


def names(config):
    return {key: name for key, (_, name) in plan_table(config, "cpu").jobs.items()}


def table_of(folder, method, **other):
    values = {"title": "t", "data": {"root": "cubes"}, "cases": ["gaussian-50"], "methods": ["noisy", method]}
    (folder / "short.yaml").write_text(yaml.safe_dump(values | other))


class TestStopped:
    @pytest.fixture
    def own(self, place, tmp_path, monkeypatch):
        (tmp_path / "cubes").symlink_to(place / "cubes")
        (tmp_path / "peer_of_tables.py").write_text(PEER)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))
        return tmp_path

    def test_a_method_that_fails_keeps_what_is_finished_and_goes_on(self, own, capsys):
        table_of(own, "peer_of_tables:touchy")
        (own / "flag").touch()
        arguments = ["benchmark", "--config", "short.yaml", "--workers", "1", "--device", "cpu"]
        assert cli.main(arguments) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line == ("hsidenoise: error: peer_of_tables:touchy on oak, gaussian-50: RuntimeError: no luck")
        folder = own / "results" / "short"
        assert [path.name for path in folder.iterdir()] == ["cells"]
        kept = {path: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}
        assert len(kept) == 3
        (own / "flag").unlink()
        assert cli.main(arguments) == 0
        assert {row["scene"] for row in rows(folder / "scenes.csv")} == {"ash", "oak"}
        assert all(path.stat().st_mtime_ns == time for path, time in kept.items())

    def test_a_process_that_dies_is_one_line(self, own, capsys):
        table_of(own, "peer_of_tables:dies")
        assert cli.main(["benchmark", "--config", "short.yaml", "--workers", "1", "--device", "cpu"]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("hsidenoise: error: a process ended by itself")
        assert "peer_of_tables:dies on ash, gaussian-50" in line

    @pytest.mark.parametrize("how", ["ctrl-c", "killed"])
    def test_interrupted(self, own, how):
        table_of(own, "peer_of_tables:sleeps")
        arguments = ["benchmark", "--config", "short.yaml", "--workers", "1", "--device", "cpu"]
        process = subprocess.Popen(
            [sys.executable, "-m", "hsidenoise", *arguments],
            cwd=own,
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        wait_for(lambda: (own / "sleeping").exists() or process.poll() is not None)
        assert process.poll() is None
        if how == "ctrl-c":
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all of them
        else:
            process.kill()
        _, errors = process.communicate(timeout=100)
        wait_for(lambda: not alive(process.pid))  # its processes too
        if how == "ctrl-c":
            assert process.returncode == 130
            assert errors.splitlines()[-1].startswith("hsidenoise: interrupted")
            assert "Traceback" not in errors
        cells = own / "results" / "short" / "cells"
        assert len([path for path in cells.iterdir() if path.suffix == ".json"]) == 3
        assert not [path for path in cells.iterdir() if path.name.startswith(".")]


def wait_for(what, seconds=200):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


def alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


class TestRefused:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"data": {"root": "nowhere"}}, "nowhere: no such folder; --data.root"),
            ({"data": {"root": "empty"}}, "empty: no cube found in it"),
            ({"cases": ["gausian-50"]}, "unknown noise case 'gausian-50'"),
            ({"methods": ["nobody:knows"]}, "there is no module 'nobody'"),
            ({"methods": ["noisy_peer:function"]}, "there is no module 'noisy_peer'"),
            ({"methods": ["math:nothing"]}, "module 'math' has no 'nothing'"),
            ({"methods": ["weights:nowhere.safetensors"]}, "nowhere.safetensors"),
            ({"methods": ["weights:nowhere.onnx"]}, "nowhere.onnx: no such file"),
            ({"published": ["Nobody 2031"]}, "no published numbers of 'Nobody 2031'"),
            ({"methods": ["noisy"], "efficiency": "gaussian-50"}, "efficiency: there is no method but the noisy"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_before_anything_is_written(self, place, tmp_path, monkeypatch, capsys, change, message):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))
        (tmp_path / "cubes").symlink_to(place / "cubes")
        (tmp_path / "empty").mkdir()
        table_of(tmp_path, "tv", **change)
        assert cli.main(["benchmark", "--config", "short.yaml", "--device", "cpu"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("hsidenoise: error: ")
        assert message in line
        assert not (tmp_path / "results").exists()

    def test_a_file_in_the_way_of_the_results(self, place, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "cubes").symlink_to(place / "cubes")
        (tmp_path / "results").write_text("in the way")
        table_of(tmp_path, "tv")
        assert cli.main(["benchmark", "--config", "short.yaml", "--device", "cpu"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "results" in line


class TestFigureAndEfficiency:
    @pytest.fixture
    def config(self, place, monkeypatch):
        monkeypatch.chdir(place)
        table_of(place, "svd-tv", figure={"case": "gaussian-50"}, efficiency="gaussian-50")
        config = read_config("short.yaml")
        own = dataclasses.replace(read_config("trees.yaml").methods[3], label='own, "1" pass')
        return dataclasses.replace(config, methods=(*config.methods, own))

    def test_the_numbers_of_the_plot(self, config, tmp_path):
        written = run_here(config, tmp_path / "a")
        assert {path.name for path in written} == {path.name for path in (tmp_path / "a").iterdir()} - {"cells"}
        found = {row["method"]: row for row in rows(tmp_path / "a" / "efficiency.csv")}
        table = {row["method"]: row for row in rows(tmp_path / "a" / "table.csv")}
        assert list(found) == ["svd-tv", 'own, "1" pass']
        for label, row in found.items():
            assert float(row["psnr"]) == pytest.approx(float(table[label]["psnr"]), abs=1e-3)
            assert float(row["seconds"]) > 0
            assert float(row["memory_mb"]) >= 0
            assert row["parameters"] == table[label]["parameters"]
            assert (row["gflop"] == "") == (label == "svd-tv")
        network = found['own, "1" pass']
        assert int(network["parameters"]) > 0
        assert float(network["gflop"]) == pytest.approx(float(table['own, "1" pass']["gflop"]), abs=1e-3)
        before = contents(tmp_path / "a")
        make_tables(config, tmp_path / "a", device="cpu")
        assert contents(tmp_path / "a") == before  # the seconds too: they are kept

    def test_a_figure_of_a_scene_that_is_not_there_shows_another(self, config, tmp_path):
        figure = dataclasses.replace(config.figure, scene="elm")
        config = dataclasses.replace(config, figure=figure, efficiency=None, methods=config.methods[:1])
        with pytest.warns(UserWarning, match="no scene 'elm' of the case 'gaussian-50'; it shows ash"):
            run_here(config, tmp_path / "b")
        assert (tmp_path / "b" / "comparison.png").exists()


class TestOthersData:
    def test_icvl_as_it_is_downloaded(self, tmp_path, rng):
        """v7.3 files, HDF5 order (bands, columns, rows), `rad` beside `rgb` and `bands`, in sub-folders."""
        gaussian, complex_ = (read_split(f"icvl_qrnn3d_test_{kind}.txt") for kind in ("gaussian", "complex"))
        only = [next(name for name in lists if name not in others) for lists, others in
                ((gaussian, complex_), (complex_, gaussian))]  # fmt: skip
        root = tmp_path / "icvl"
        for number, name in enumerate(only):
            path = root / str(number) / name
            path.parent.mkdir(parents=True)
            planes = smooth(40).transpose(2, 1, 0)  # 5 bands, 40 columns, 28 rows
            rad = np.concatenate([planes] * 7)[:31] * (4 + number)
            with h5py.File(path, "w", userblock_size=512) as file:
                file["rad"], file["rgb"] = rad, rng.random((3, 40, 28))
                file["bands"] = np.arange(400.0, 701, 10)[:, None]
                for each in file:
                    file[each].attrs["MATLAB_class"] = np.bytes_(b"double")
        for kind, name in zip(("gaussian", "complex"), only, strict=True):
            config = with_choice(
                read_config(TABLES / f"icvl_{kind}.yaml"), TableOptions("t", root=str(root), methods=["noisy", "pca"])
            )
            with pytest.warns(UserWarning, match="scene.s. of the split of QRNN3D are missing"):
                run_here(config, tmp_path / kind)
            table = rows(tmp_path / kind / "scenes.csv")
            assert {row["scene"] for row in table} == {name.removesuffix(".mat")}
            assert list(dict.fromkeys(row["case"] for row in table)) == list(config.cases)
            clean = read_clean(next(root.rglob(name)), key="rad", crop=512)
            assert clean.shape == (31, 28, 40)
            for row in table:
                noisy = corrupt(clean, row["case"], seed=0).noisy
                answer = noisy if row["method"] == "noisy" else run_baseline("pca", noisy)
                assert float(row["psnr"]) == pytest.approx(evaluate(answer, clean, protocol="hsir").psnr, abs=1e-5)
            page = (tmp_path / kind / "table.md").read_text()
            assert "trained on CAVE, not on ICVL" in page
            assert "SERT" in page
            assert (tmp_path / kind / "comparison.png").exists()

    def test_a_published_noisy_set_noise_included(self, tmp_path, rng):
        pairs = {}
        for folder, scene, width in (("icvl_512_50", "a", 30), ("icvl_512_50", "b", 26), ("icvl_512_mixture", "b", 26)):
            clean = rng.random((5, 24, width), dtype=np.float32)
            noisy = clean + rng.normal(0, 0.2, clean.shape).astype(np.float32)
            path = tmp_path / "set" / folder / f"{scene}.mat"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_mat(path, published_arrays(noisy, clean, np.full(5, 50 / 255, np.float32)))
            pairs["gaussian-50" if folder.endswith("50") else "mixture", scene] = noisy, clean
        config = with_choice(
            read_config(TABLES / "icvl_noisy_set.yaml"),
            TableOptions("t", root=str(tmp_path / "set"), methods=["noisy", "pca"]),
        )
        run_here(config, tmp_path / "out")
        table = rows(tmp_path / "out" / "scenes.csv")
        assert len(table) == 6
        for row in table:
            noisy, clean = pairs[row["case"], row["scene"]]
            answer = noisy if row["method"] == "noisy" else run_baseline("pca", noisy)
            assert float(row["psnr"]) == pytest.approx(evaluate(answer, clean, protocol="hsir").psnr, abs=1e-5)
        assert "**noise**: as in the files" in (tmp_path / "out" / "table.md").read_text()
        with pytest.raises(ValueError, match="has no case 'stripe'"):
            make_tables(with_choice(config, TableOptions("t", cases=["stripe"])), tmp_path / "out", device="cpu")
