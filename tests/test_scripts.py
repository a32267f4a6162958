"""The scripts that make tables and pictures for the README, on tiny inputs, and the examples."""

import csv
import json

import pytest
import torch
from command_line import ROOT, run_script

from hsidenoise.models import create_model
from hsidenoise.models.weights import load_model, save_weights


def script(name, *arguments):
    done = run_script(ROOT / "scripts" / f"{name}.py", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_speed_of_the_released_formulations_and_ours(tmp_path):
    """Both sides get the same weights and input: they differ by rounding alone."""
    small = ("--sizes", 16, "--batch", 1, "--rounds", 1, "--threads", 1, "--device", "cpu")
    rows, printed = {}, ""
    for chosen in (["hcanet", "denoise", "--jobs", "forward"], ["bra"]):
        printed += script("measure_speed", "--networks", *chosen, *small, "--json", tmp_path / "rows.json")
        rows |= {tuple(row.values())[:4]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert [key[0] for key in rows] == ["hcanet"] * 3 + ["denoise"] * 2 + ["bra"] * 6
    for network, job, size in (("hcanet", "forward", 16), ("bra", "forward", 16), ("bra", "train", 64)):
        released, ours = (rows[network, job, size, name] for name in ("released", "float32"))
        assert ours["difference"] < 1e-5
        assert ours["times"] == pytest.approx(released["shortest"] / ours["shortest"])
        assert 0 < ours["shortest"] <= ours["seconds"]
        assert f"| {network} | {job} | {size} | float32 |" in printed
    assert 1e-5 < rows["hcanet", "forward", 16, "bfloat16"]["difference"] < 0.05  # not the same output twice


def test_narrower_weights_do_nearly_the_same(tmp_path):
    """Where half of the products are copies of the others, nothing is lost with them."""
    torch.manual_seed(0)
    size = {"planes": 3, "dim": 8, "num_blocks": (0, 0, 1), "num_refinement_blocks": 0, "heads": (1, 1, 1)}
    wide = create_model("hcanet-bra", **size, expansion=2.0, attention=("none", "none", "none")).eval()
    network = wide.middle[0].feed_forward
    with torch.no_grad():  # the second half of the products of the one block is the first once more
        for third in network.project_in.weight.chunk(3):
            third[32:] = third[:32]
        for view in (network.dwconv1, network.dwconv2, network.dwconv3):
            view.weight[32:] = view.weight[:32]
    save_weights(tmp_path / "wide.safetensors", wide, name="hcanet-bra")
    path, scene = ROOT / "scripts" / "recipes" / "narrow.py", ROOT / "data" / "samples" / "superballs.mat"
    for attention, status in (("none", 0), ("bra", 2)):
        words = ("--expansion", 1, "--attention", "none", "none", attention, "--clean", scene)
        done = run_script(path, tmp_path / "wide.safetensors", tmp_path / f"{attention}.safetensors", *words)
        assert done.returncode == status, done.stderr
    assert not (tmp_path / "bra.safetensors").exists()
    narrow = load_model(tmp_path / "none.safetensors")
    x = torch.randn(1, 32, 20, 20)
    torch.testing.assert_close(narrow.middle[0].feed_forward(x), network(x), rtol=1e-2, atol=1e-3)
    assert narrow.config["expansion"] == 1


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
    assert psnr["noisy"] < psnr["my median"] < psnr["HCANet-BRA"]
