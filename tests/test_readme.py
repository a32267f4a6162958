"""Every command and the Python example of README.md run, in the order in which they stand there."""

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from hsidenoise.data.datasets import read_split
from hsidenoise.data.io import write_arrays
from hsidenoise.models import create_model
from hsidenoise.models.shipped import WEIGHTS
from hsidenoise.models.weights import save_weights

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.S | re.M)
SHELL_LINES = [line for language, block in BLOCKS if not language for line in block.replace("\\\n", " ").splitlines()]
COMMANDS = [line.split("#")[0].strip() for line in SHELL_LINES if line.startswith("hsidenoise ")]
PYTHON = [block for language, block in BLOCKS if language == "python"]

# A real run takes hours; these two steps go through everything that it goes through.
BRIEF = "--trainer.max_steps 2 --trainer.val_check_interval 1 --trainer.limit_val_batches 1 --trainer.accelerator cpu"
SMALL = "--data.patch_size 16 --data.batch_size 2 --data.patches_per_epoch 8 --data.validation_crop 32 --data.workers 0"


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder as the README's reader has it: the repository's files, own cubes, a noisy one."""
    desk = tmp_path_factory.mktemp("desk")
    for folder in ("configs", "data"):
        shutil.copytree(ROOT / folder, desk / folder, ignore=shutil.ignore_patterns("*.png"))
    rng = np.random.default_rng(0)
    for part, names in (("train", "ab"), ("validation", "c")):
        for folder in ("my_cubes", "cave"):
            (desk / folder / part).mkdir(parents=True)
            for name in names:
                cube = rng.random((70, 80, 31)).astype(np.float32)
                write_arrays(desk / folder / part / f"{name}.mat", {"cube": cube})
    for folder in ("cave/test", "my_cave_folder"):
        (desk / folder).mkdir(parents=True)
        for name in ("beads_ms", "flowers_ms"):  # of HSIR's test list
            write_arrays(desk / folder / f"{name}.mat", {"cube": rng.random((36, 40, 31)).astype(np.float32)})
    (desk / "my_icvl_folder").mkdir()
    for name in (read_split("icvl_qrnn3d_test_gaussian.txt")[0], read_split("icvl_qrnn3d_test_complex.txt")[0]):
        with h5py.File(desk / "my_icvl_folder" / name, "w", userblock_size=512) as file:
            file["rad"] = rng.random((31, 40, 36)).astype(np.float32)  # (bands, columns, rows), as HDF5 shows ICVL
    (desk / "my_module.py").write_text("def my_method(noisy):\n    return noisy * 0.9\n", encoding="utf-8")
    shutil.copy(ROOT / "data" / "samples" / "superballs.mat", desk / "clean.mat")
    shutil.copy(ROOT / "data" / "samples" / "superballs.mat", desk / "cube.mat")
    subprocess.run(
        [sys.executable, "-m", "hsidenoise", "corrupt", "clean.mat", "noisy.mat", "--noise", "gaussian-30"],
        cwd=desk,
        check=True,
        env=environment(),
    )
    shutil.copy(desk / "noisy.mat", desk / "denoised.mat")
    small = create_model("hcanet-bra", dim=8, num_blocks=[0, 0, 1], num_refinement_blocks=0, heads=[1, 1, 1])
    save_weights(desk / "small.safetensors", small, name="hcanet-bra", metadata={})
    return desk


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_the_readme_shows_every_verb():
    shown = {command.split()[1] for command in COMMANDS}
    assert shown == {
        "denoise",
        "inspect",
        "corrupt",
        "evaluate",
        "train",
        "weights",
        "export",
        "benchmark",
        "make-noisy-set",
    }


@pytest.mark.parametrize("name", sorted(path.parent.name for path in ROOT.glob("data/benchmarks/*/table.md")))
def test_tables_are_those_of_the_command(name):
    """A table of the README stands below a comment with the file that the command wrote."""
    page = (ROOT / "data" / "benchmarks" / name / "table.md").read_text(encoding="utf-8").splitlines()
    shown = re.findall(rf"<!-- data/benchmarks/{name}/table.md -->\n\n((?:\|.*\n)+)", README)
    for row in "".join(shown).splitlines():
        assert row in page


def test_the_scores_of_all_weights_are_those_of_the_command():
    (files, block) = re.search(r"<!-- ((?:data/\S+\.csv ?)+)-->\n\n((?:\|.*\n)+)", README).groups()
    scores = {}
    for file in files.split():
        with (ROOT / file).open(newline="", encoding="utf-8") as table:
            for row in csv.DictReader(table):
                values = (float(row["psnr"]), float(row["ssim"]), float(row["sam"]))
                scores[row["method"], row["case"]] = "{:.2f} / {:.3f} / {:.3f}".format(*values)
    labels = {"hcanet": "HCANet", "noisy": "noisy"} | {
        name: name.replace("hcanet-bra", "HCANet-BRA").replace("-BRA-", "-BRA ") for name in WEIGHTS if name != "hcanet"
    }
    (_, *names), _, *rows = ([cell.strip(" `") for cell in line.split("|")[1:-1]] for line in block.splitlines())
    assert set(names) == set(labels)
    assert {case for case, *_ in rows} == {case for _, case in scores}
    for case, *cells in rows:
        for name, cell in zip(names, cells, strict=True):
            assert cell == scores.get((labels[name], case), ""), (name, case)


@pytest.mark.slow
def test_every_command_runs(desk):
    for command in COMMANDS:
        words = shlex.split(command.replace("../shared/cave", "cave"))[1:]
        if words[0] == "train":
            words += shlex.split(f"{BRIEF} {SMALL}")
        if words[0] == "make-noisy-set":
            words += ["--missing", "skip", "--crop", "32"]  # two scenes of the split's hundred, and small ones
        if words[0] == "export":  # that of the shipped network takes a minute or more
            words += ["--weights", "small.safetensors"]
        done = subprocess.run(
            [sys.executable, "-m", "hsidenoise", *words], cwd=desk, capture_output=True, text=True, env=environment()
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def test_the_python_examples_run(desk):
    printed = ["psnr=", "'svd-dct'", "torch.Size([1, 60, 80, 64]) torch.Size([1, 64, 60, 80])"]
    for example, expected in zip(PYTHON, printed, strict=True):
        done = subprocess.run(
            [sys.executable, "-c", example], cwd=desk, capture_output=True, text=True, env=environment()
        )
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout


def test_every_file_that_it_names_is_there():
    links = [target for target in re.findall(r"\]\(([^)]+)\)", README) if not target.startswith("http")]
    named = re.findall(r"`((?:configs|scripts|data|hsidenoise|models)/[\w./-]+)`", README)
    assert links
    headings = {re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in README.splitlines()}
    for anchor in (target for target in links if target.startswith("#")):
        assert anchor[1:] in headings
    for target in [link for link in links if not link.startswith("#")] + named:
        inside = "hsidenoise/" + target if target.startswith("models/") else target
        assert (ROOT / inside).exists(), target
