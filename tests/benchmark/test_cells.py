import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import hsidenoise
from hsidenoise import corrupt, denoise, evaluate
from hsidenoise.benchmark import cells as table_cells
from hsidenoise.benchmark.cells import Job, compute, main, read_cell
from hsidenoise.benchmark.cells import version_of as version_of_method
from hsidenoise.classical.methods import BASELINES, Baseline, run_baseline
from hsidenoise.data.formats.mat import write_mat
from hsidenoise.data.io import write_arrays
from hsidenoise.data.noisy_sets import published_arrays
from hsidenoise.data.scenes import read_clean
from hsidenoise.inference.method import _network, make_method
from hsidenoise.models import create_model
from hsidenoise.models.weights import save_weights
from hsidenoise.system import code_version
from hsidenoise.system.files import sha256

PEER = """
import sys
import numpy as np
def half(noisy): noisy *= 0.5; return noisy
def fails(noisy): raise RuntimeError("no\\nluck")
def leaves(noisy): sys.exit(0)
def text(noisy): return "nonsense"
def small(noisy): return noisy[:, 1:]
def empty(noisy): return noisy * np.nan
"""


@pytest.fixture
def scene(tmp_path, rng):
    """A smooth clean cube of 5 bands, 24 x 30, stored as whole numbers."""
    rows, columns = np.mgrid[:24, :30]
    stored = 1000 + 400 * np.sin(rows[..., None] / 6 + np.arange(5) / 3) * np.cos(columns[..., None] / 8)
    write_arrays(tmp_path / "oak.mat", {"cube": np.round(stored).astype(np.uint16)})
    return tmp_path / "oak.mat"


@pytest.fixture
def peer(tmp_path, monkeypatch):
    (tmp_path / "peer_of_cells.py").write_text(PEER)
    monkeypatch.syspath_prepend(tmp_path)
    return "peer_of_cells"


@pytest.fixture
def weights(tmp_path):
    return make_weights(tmp_path / "own.safetensors", 0)


def make_weights(path, seed):
    torch.manual_seed(seed)
    network = create_model("hcanet-bra", planes=3, dim=8, num_blocks=(1, 0, 0), num_refinement_blocks=0)
    save_weights(path, network, name="hcanet-bra")
    return f"weights:{path}"


def version_of(name):
    return version_of_method(make_method(name))


def job(method, source, **other):
    values = {
        "method": method, "options": {}, "scene": "oak", "source": str(source), "pair": False, "case": "gaussian-30",
        "seed": 0, "crop": None, "bands": None, "key": None, "protocols": ("standard",), "device": None,
    }  # fmt: skip
    return Job(**values | other)


def computed(what, folder, name="cell", keep=False):
    compute(what, str(folder), name, keep)
    return read_cell(folder, name)


class TestIdentity:
    @pytest.mark.parametrize(
        "change",
        [
            {"method": "tv"}, {"options": {"pilot_rounds": 1}}, {"scene": "fir"}, {"case": "blind"}, {"seed": 1},
            {"crop": 9}, {"key": "rad"}, {"protocols": ("sert",)}, {"protocols": ("standard", "sert")},
            {"device": "cuda"}, {"pair": True},
        ],
        ids=str,
    )  # fmt: skip
    def test_all_that_decides_a_score_makes_another_cell(self, change):
        first = job("noisy", "a.mat")
        assert dataclasses.replace(first, **change).identity("v", "d") != first.identity("v", "d")

    def test_so_do_version_and_data_but_not_the_place(self):
        first = job("noisy", "a.mat")
        assert len({first.identity("v", "d"), first.identity("w", "d"), first.identity("v", "e")}) == 3
        assert dataclasses.replace(first, source="elsewhere/b.mat").identity("v", "d") == first.identity("v", "d")

    def test_a_pair_holds_its_noise_so_that_seed_and_crop_do_not_matter(self):
        first = job("noisy", "a.mat", pair=True)
        assert dataclasses.replace(first, seed=5, crop=8, key="gt").identity("v", "d") == first.identity("v", "d")


CHANGES = {
    "models/weights.py": "n", "inference/network.py": "n", "signal/pilot_filter.py": "nc",
    "models/attention/bra.py": "n", "classical/filters.py": "c", "metrics/functional.py": "nci",
    "noise/cases.py": "nci", "benchmark/cells.py": "nci", "data/formats/mat5.py": "nci", "benchmark/figures.py": "",
    "training/task.py": "", "cli/main.py": "",
}  # fmt: skip
"""File of the package -> which cells are others once it has changed: of a network, a classical method, the input."""

CHANGE_EACH = r"""
import sys
from pathlib import Path
import hsidenoise
from hsidenoise.benchmark.cells import version_of
from hsidenoise.inference.method import make_method

def versions():
    return [version_of(make_method(name)) for name in ("weights:hcanet-bra", "svd-dct", "noisy")]

before = versions()
assert len(set(before)) == 3
for name in sys.argv[1:]:
    path = Path(hsidenoise.__file__).parent / name
    kept = path.read_bytes()
    path.write_bytes(kept + b"\n# more\n")
    print(name, "".join(kind for kind, a, b in zip("nci", versions(), before) if a != b), sep=":")
    path.write_bytes(kept)
assert versions() == before
"""


class TestVersion:
    def test_weights_that_change_under_their_name(self, tmp_path, weights):
        before = version_of(weights)
        kept = (tmp_path / "own.safetensors").read_bytes()
        assert version_of(make_weights(tmp_path / "own.safetensors", 1)) != before
        (tmp_path / "own.safetensors").write_bytes(kept)
        assert version_of(weights) == before

    def test_a_peers_module_that_changes(self, tmp_path, peer):
        before = version_of(f"{peer}:half")
        (tmp_path / "peer_of_cells.py").write_text(PEER + "# more")
        assert version_of(f"{peer}:half") != before

    def test_and_what_it_imports(self, tmp_path, monkeypatch):
        """At the top, inside a function, relative, from a folder without __init__.py; not what it leaves alone."""
        (tmp_path / "peers_lab" / "deep").mkdir(parents=True)
        for name, text in {
            "peers_lab/net.py": "from .deep import part\ndef run(noisy):\n    import peers_tool\n    return noisy",
            "peers_lab/deep/part.py": "import numpy",
            "peers_tool.py": "",
            "peers_other.py": "",
        }.items():
            (tmp_path / name).write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        before = version_of("peers_lab.net:run")
        for name, counts in {
            "peers_lab/net.py": True, "peers_lab/deep/part.py": True, "peers_tool.py": True, "peers_other.py": False,
        }.items():  # fmt: skip
            kept = (tmp_path / name).read_text()
            (tmp_path / name).write_text(kept + "\n# more")
            assert (version_of("peers_lab.net:run") != before) == counts, name
            (tmp_path / name).write_text(kept)
        assert version_of("peers_lab.net:run") == before

    def test_a_peers_method_in_a_library_and_without_a_file(self):
        assert version_of("numpy:positive") != version_of("scipy.ndimage:gaussian_filter")
        assert version_of("builtins:abs") != version_of("numpy:positive")

    def test_a_changed_module_makes_other_cells_of_those_that_run_it(self, tmp_path):
        package = Path(hsidenoise.__file__).parent
        shutil.copytree(package, tmp_path / "hsidenoise", ignore=shutil.ignore_patterns("__pycache__"))
        command, there = [sys.executable, "-c", CHANGE_EACH, *CHANGES], os.environ | {"PYTHONPATH": str(tmp_path)}
        done = subprocess.run(command, cwd=tmp_path, env=there, capture_output=True, text=True, check=True)
        assert dict(line.split(":") for line in done.stdout.split()) == CHANGES

    def test_libraries_count(self, monkeypatch):
        before = [version_of(method) for method in ("noisy", "svd-tv", "weights:hcanet-bra")]
        real = code_version.version
        monkeypatch.setattr(code_version, "version", lambda name: "0" if name == "scipy" else real(name))
        assert not set(before) & {version_of(method) for method in ("noisy", "svd-tv", "weights:hcanet-bra")}

    @pytest.mark.parametrize(
        "method", ["noisy", "weights", "nlm", "tv", "mnf", "svd-dct-robust", "rpca", "3dtv", "pair"]
    )
    def test_no_code_of_this_package_runs_that_is_not_hashed(self, tmp_path, scene, weights, monkeypatch, method):
        """The roots are named in one place: this catches a module that a cell runs and that nothing there leads to."""
        ran = set()
        what = job(
            weights if method == "weights" else method, scene, crop=12, protocols=("standard", "sert"), case="mixture"
        )
        if method == "pair":
            clean = read_clean(scene)
            write_mat(tmp_path / "a.mat", published_arrays(clean, clean, np.full(5, 0.1, np.float32)))
            what = job("svd-dct", tmp_path / "a.mat", pair=True)
        called = make_method(what.method).called
        roots = {function.__module__ for function in (*table_cells._EVERY, *called)}
        table_cells.read_given.cache_clear()
        _network.cache_clear()
        package = str(Path(hsidenoise.__file__).parent)

        def watch(frame, event, argument):
            # what is executed while a module is imported is not part of the answer
            if frame.f_code.co_filename.startswith(package) and frame.f_code.co_name != "<module>":
                ran.add(frame.f_code.co_filename)

        sys.setprofile(watch)
        try:
            compute(what, str(tmp_path), "cell")
        finally:
            sys.setprofile(None)
        hashed = {str(path) for path in code_version.imported_files(*roots)[0].values()}
        # cell and method themselves, hashed too, and how the cell is written
        assert {Path(name).stem for name in ran - hashed} <= {"cells", "method", "files"}

    def test_a_folder_counts_with_names_and_contents(self, tmp_path):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "1.png").write_bytes(b"one")
        first = sha256(tmp_path / "a")
        assert sha256(tmp_path / "a" / "1.png") != first
        (tmp_path / "a" / "1.png").write_bytes(b"two")
        second = sha256(tmp_path / "a")
        (tmp_path / "a" / "1.png").rename(tmp_path / "a" / "2.png")
        assert len({first, second, sha256(tmp_path / "a")}) == 3


class TestCompute:
    @pytest.mark.parametrize("case", ["gaussian-30", "mixture"])
    def test_scores_are_those_of_the_library(self, tmp_path, scene, weights, case):
        clean = read_clean(scene, crop=20)
        noisy = corrupt(clean, case, seed=4).noisy
        answers = {
            "noisy": noisy,
            "svd-tv": run_baseline("svd-tv", noisy),
            weights: denoise(noisy, weights[8:], normalize="none"),
        }
        for method, answer in answers.items():
            found = computed(job(method, scene, case=case, seed=4, crop=20, protocols=("standard", "sert")), tmp_path)
            for protocol in ("standard", "sert"):
                expected = dataclasses.asdict(evaluate(answer, clean, protocol=protocol))
                assert found["scores"][protocol] == expected, method
            assert (found["method"], found["scene"], found["case"]) == (method, "oak", case)
            assert (found["seconds"] == 0.0) == (method == "noisy")

    def test_options_reach_the_network(self, tmp_path, scene, weights):
        noisy = corrupt(read_clean(scene), "gaussian-30", seed=0).noisy
        scores = []
        for options in (
            {"pilot_rounds": 0},
            {"pilot_rounds": 1},
            {"ensemble": 2, "pilot_rounds": 0},
            {"normalize": "minmax", "pilot_rounds": 0},
        ):
            compute(job(weights, scene, options=options), str(tmp_path), "cell", True)
            wanted = denoise(noisy, weights[8:], **{"normalize": "none"} | options)  # scenes are on [0, 1]
            np.testing.assert_array_equal(np.load(tmp_path / "cell.npy"), wanted)
            scores.append(read_cell(tmp_path, "cell")["scores"]["standard"]["psnr"])
        assert len(set(scores)) == 4

    def test_only_what_the_figures_need_is_kept_and_nothing_else_is_left(self, tmp_path, scene):
        (tmp_path / "cells").mkdir()
        computed(job("noisy", scene), tmp_path / "cells", "one")
        computed(job("noisy", scene), tmp_path / "cells", "two", keep=True)
        assert sorted(path.name for path in (tmp_path / "cells").iterdir()) == ["one.json", "two.json", "two.npy"]

    def test_a_peers_method_may_write_into_its_cube(self, tmp_path, scene, peer):
        clean = read_clean(scene)
        noisy = corrupt(clean, "gaussian-30", seed=0).noisy
        found = computed(job(f"{peer}:half", scene), tmp_path)
        assert found["scores"]["standard"]["psnr"] == evaluate(noisy * np.float32(0.5), clean).psnr
        assert computed(job("noisy", scene), tmp_path)["scores"]["standard"]["psnr"] == evaluate(noisy, clean).psnr

    @pytest.mark.parametrize(
        ("function", "reason"),
        [
            ("fails", "RuntimeError: no luck"),
            ("leaves", "SystemExit: 0"),
            ("text", "returned str"),
            ("small", "returned shape"),
            ("empty", "returned NaN"),
        ],
    )
    def test_what_fails_is_named_in_one_line_and_nothing_is_written(self, tmp_path, scene, peer, function, reason):
        (tmp_path / "cells").mkdir()
        with pytest.raises(ValueError, match=reason) as caught:
            compute(job(f"{peer}:{function}", scene), str(tmp_path / "cells"), "cell", True)
        assert str(caught.value).startswith(f"{peer}:{function} on oak, gaussian-30: ")
        assert "\n" not in str(caught.value)
        assert not list((tmp_path / "cells").iterdir())

    def test_a_file_that_is_no_cube_is_named(self, tmp_path):
        (tmp_path / "cut.mat").write_bytes(b"MATLAB 5.0 MAT-file")
        with pytest.raises(ValueError, match=r"cut\.mat"):
            compute(job("noisy", tmp_path / "cut.mat"), str(tmp_path), "cell")

    def test_rubbish_is_no_finished_cell(self, tmp_path):
        for text in ("", "{", "[1]", "null"):
            (tmp_path / "a.json").write_text(text)
            assert read_cell(tmp_path, "a") is None
        assert read_cell(tmp_path, "b") is None


class TestPairs:
    @pytest.fixture
    def pair(self, tmp_path, rng):
        clean = rng.random((5, 24, 30), dtype=np.float32)
        sigma = np.array([10, 30, 50, 70, 20], np.float32) / 255
        noisy = clean + rng.normal(0, 1, clean.shape).astype(np.float32) * sigma[:, None, None]
        write_mat(tmp_path / "a.mat", published_arrays(noisy, clean, sigma))
        return tmp_path / "a.mat", noisy, clean, sigma

    def test_the_noise_is_that_of_the_file(self, tmp_path, pair):
        path, noisy, clean, _ = pair
        found = computed(job("noisy", path, pair=True, case="stripe", seed=9, crop=8), tmp_path, keep=True)
        np.testing.assert_array_equal(np.load(tmp_path / "cell.npy"), noisy)
        assert found["scores"]["standard"]["psnr"] == evaluate(noisy, clean).psnr

    @pytest.fixture
    def given(self, monkeypatch):
        """A method that must be given sigma, and remembers it."""
        seen = []

        def function(noisy, sigma=None):
            seen.append(sigma)
            return noisy

        monkeypatch.setitem(BASELINES, "given", Baseline("given", function, "s", "r", blind=False))
        return seen

    def test_a_method_that_must_be_given_sigma_gets_the_files(self, tmp_path, pair, given):
        compute(job("given", pair[0], pair=True), str(tmp_path), "cell")
        np.testing.assert_allclose(given[0], pair[3], rtol=1e-6)

    def test_or_that_of_the_noise_made_here(self, tmp_path, scene, given):
        compute(job("given", scene, case="non-iid", seed=2), str(tmp_path), "cell")
        np.testing.assert_array_equal(given[0], corrupt(read_clean(scene), "non-iid", seed=2).sigma)

    def test_without_one_it_is_refused_and_blind_methods_go_on(self, tmp_path, pair, given):
        write_mat(tmp_path / "b.mat", {"input": pair[1].transpose(1, 2, 0), "gt": pair[2].transpose(1, 2, 0)})
        with pytest.raises(ValueError, match=r"given on oak, gaussian-30: .*which this noisy set does not hold"):
            compute(job("given", tmp_path / "b.mat", pair=True), str(tmp_path), "cell")
        assert not given
        assert computed(job("pca", tmp_path / "b.mat", pair=True), tmp_path)["seconds"] > 0


def test_operations_of_a_network_and_of_none(weights):
    parameters, per_pixel = make_method(weights).cost()
    network = create_model("hcanet-bra", planes=3, dim=8, num_blocks=(1, 0, 0), num_refinement_blocks=0)
    assert parameters == sum(weight.numel() for weight in network.parameters())
    assert per_pixel > parameters / 4
    assert all(make_method(name).cost() is None for name in ("noisy", "svd-tv", "weights:a.ONNX"))


def test_measuring_a_method_alone(tmp_path, scene):
    what = dataclasses.asdict(job("svd-tv", scene))
    assert main([json.dumps(what), str(tmp_path / "cost.json")]) == 0
    cost = json.loads((tmp_path / "cost.json").read_text())
    assert set(cost) == {"seconds", "memory_mb"}
    assert cost["seconds"] > 0
    assert cost["memory_mb"] >= 0
