"""The scripts that make tables and pictures for the README, on tiny cubes and tables."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
import yaml

from hsidenoise.models import create_model
from hsidenoise.weights import save_weights

ROOT = Path(__file__).parents[1]


def script(name, *arguments):
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / f"{name}.py", *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with one cube of 40 bands and the weights of a small network."""
    folder = tmp_path_factory.mktemp("measure")
    rng = np.random.default_rng(0)
    cube = (rng.random((40, 3)) @ rng.random((3, 26 * 22))).reshape(40, 26, 22)
    scipy.io.savemat(folder / "cube.mat", {"cube": cube.transpose(1, 2, 0)})
    torch.manual_seed(0)
    network = create_model("hcanet-bra", bands=31, dim=8, num_blocks=(1, 0, 0), heads=(1, 2, 4))
    save_weights(folder / "small.safetensors", network, name="hcanet-bra")
    return folder


def test_routing_attention_is_drawn_again(tmp_path):
    rows = (ROOT / "data" / "benchmarks" / "bra.csv").read_text()
    (tmp_path / "bra.csv").write_text(rows)
    script("measure_bra", "--from-csv", tmp_path / "bra.csv")
    assert (tmp_path / "bra.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "bra.csv").read_text() == rows


def test_quality_with_every_option(place, tmp_path):
    printed = script(
        *("measure_quality", place, "--weights", place / "small.safetensors", "--cases", "gaussian-30", "mixture"),
        *("--crop", 20, "--ensemble", 2, "--precision", "bfloat16", "--csv", tmp_path / "scores.csv"),
    )
    lines = printed.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| gaussian-30", "| mixture"]
    assert "parameters; " in lines[-1]
    assert lines[-1].endswith("threads), precision bfloat16, ensemble 2")
    with (tmp_path / "scores.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 2 * 2


def test_remote_sensing(place, tmp_path):
    names = ["noisy", "model", "blended", "estimate", "estimate-all"]
    printed = script(
        *("measure_remote_sensing", place / "cube.mat", "--weights", place / "small.safetensors", "--cases", "non-iid"),
        *("--methods", *names, "--csv", tmp_path / "scores.csv", "--ensemble", 2),
    )
    assert "cube, 40 bands, 26 x 22" in printed
    assert [line.split(" | ")[0].strip("| ") for line in printed.splitlines()[-5:]] == names
    with (tmp_path / "scores.csv").open(newline="") as file:
        scores = {row["method"]: float(row["psnr"]) for row in csv.DictReader(file)}
    assert scores["noisy"] < min(scores["estimate"], scores["estimate-all"])
    assert scores["model"] != scores["blended"]


def test_learning_curves_go_on_where_the_run_before_stopped(tmp_path):
    network = create_model("hcanet-bra", bands=6, dim=8, num_blocks=(1, 0, 0), heads=(1, 2, 4))
    for name, minutes, model, logs in (
        ("first", "6.0", {}, [["999,", "499,30", "999,31.5"], ["1499,32", "1999,33.25"]]),  # stopped once, and resumed
        ("second", "10.0", {"second_step_weight": 0.5, "passes": 3}, [["1999,35"]]),
    ):
        run = tmp_path / name
        for version, lines in enumerate(logs):
            (run / "csv" / f"version_{version}").mkdir(parents=True)
            text = "\n".join(["step,val/psnr", *lines]) + "\n"
            (run / "csv" / f"version_{version}" / "metrics.csv").write_text(text)
        (run / "config.yaml").write_text(yaml.safe_dump({"model": model}))
        save_weights(
            run / "weights.safetensors", network, name="hcanet-bra", metadata={"minutes": minutes, "steps": "1000"}
        )
    out = tmp_path / "curves"
    script(
        "draw_learning_curves", out, f"own={tmp_path / 'first'},{tmp_path / 'second'}", f"brief={tmp_path / 'first'}"
    )
    with out.with_suffix(".csv").open(newline="") as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file)]
    assert rows[:5] == [
        ("own", "1", "1", "500", "3.0", "30.00"),
        ("own", "1", "1", "1000", "6.0", "31.50"),
        ("own", "1", "1", "1500", "9.0", "32.00"),
        ("own", "1", "1", "2000", "12.0", "33.25"),
        ("own", "2", "3", "2000", "32.0", "35.00"),
    ]
    assert {row[0] for row in rows[5:]} == {"brief"}
    drawn = out.with_suffix(".png").read_bytes()
    out.with_suffix(".png").unlink()
    script("draw_learning_curves", out, "--from-csv")
    assert out.with_suffix(".png").read_bytes() == drawn
