"""The scripts that make tables and pictures for the README, on tiny inputs, and the examples."""

import csv
import json

import pytest
import yaml
from command_line import ROOT, run_script

from hsidenoise.models import create_model
from hsidenoise.models.weights import save_weights


def script(name, *arguments):
    done = run_script(ROOT / "scripts" / f"{name}.py", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_speed_of_the_released_formulations_and_ours(tmp_path):
    """Both sides get the same weights and input: they differ by rounding alone."""
    small = ("--sizes", 16, "--batch", 1, "--rounds", 1, "--threads", 1, "--device", "cpu")
    printed = script(
        "measure_speed", "--networks", "hcanet", "bra", "denoise", *small, "--json", tmp_path / "rows.json"
    )
    rows = {tuple(row.values())[:4]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert [key[0] for key in rows] == ["hcanet"] * 6 + ["bra"] * 6 + ["denoise"] * 2
    for network in ("hcanet", "bra"):
        for job, size in (("forward", 16), ("train", 64)):
            released, ours = (rows[network, job, size, name] for name in ("released", "float32"))
            assert ours["difference"] < 1e-5
            assert ours["times"] == pytest.approx(released["shortest"] / ours["shortest"])
            assert 0 < ours["shortest"] <= ours["seconds"]
            assert f"| {network} | {job} | {size} | float32 |" in printed
    assert 1e-5 < rows["hcanet", "forward", 16, "bfloat16"]["difference"] < 0.05  # not the same output twice


def test_the_attention_learns_inside_another_network():
    *_, together, first, _, last = script("examples/attention_elsewhere").splitlines()
    assert together.startswith("together")
    assert last.endswith("gradients in 36 of 36")
    assert first.split(",")[0] != last.split(",")[0]


def test_the_quickstart(tmp_path):
    *_, noisy, denoised = script("examples/quickstart", tmp_path).splitlines()
    psnr = [float(line.split("psnr=")[1].split(",")[0]) for line in (noisy, denoised)]
    assert psnr[1] > psnr[0] + 15
    assert {path.name for path in tmp_path.iterdir()} == {"quickstart.mat", "quickstart.png"}


def test_a_method_of_ones_own_in_a_table(tmp_path):
    script("examples/own_method_in_a_table", tmp_path)
    with (tmp_path / "own_method" / "table.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    psnr = {row["method"]: float(row["psnr"]) for row in rows if row["case"] == "mixture"}
    assert psnr["noisy"] < psnr["my median"] < psnr["HCANet-BRA small"]


def test_learning_curves_go_on_where_the_run_before_stopped(tmp_path):
    network = create_model("hcanet-bra", bands=6, dim=8, num_blocks=(1, 0, 0), heads=(1, 2, 4))
    for name, minutes, model, logs in (
        ("first", "6.0", {}, [["999,", "499,30", "999,31.5"], ["1499,32", "1999,33.25"]]),  # stopped once, and resumed
        ("second", "10.0", {"pilot_filter_weight": 0.5, "passes": 3}, [["1999,35"]]),
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
