"""`hsidenoise benchmark speed` as a user runs it."""

import csv
import subprocess
import sys

import pytest

from hsidenoise import cli, cli_options
from hsidenoise.benchmark_speed import JOBS, SIZES
from hsidenoise.cli_options import make_parser
from hsidenoise.speed_cell import FORWARD_VARIANTS
from hsidenoise.speed_networks import NETWORKS


def hsidenoise(*arguments, cwd):
    command = [sys.executable, "-m", "hsidenoise", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def test_the_command_writes_both_files_and_says_what_it_does(tmp_path):
    arguments = ("benchmark", "speed", "--networks", "bra-1-head", "--sizes", 16, "--variants", "float32")
    options = ("--jobs", "forward", "--batch", 2, "--threads", 1, "--device", "cpu", "--rounds", 1, "--seconds", 0.05)
    done = hsidenoise(*arguments, *options, "--limit", 250, "--out", tmp_path / "a" / "b", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "[1/1] round 1 of 1: forward bra-1-head 16x16, float32: " in done.stderr
    assert "HCANet 512x512, float32: not measured" in done.stdout
    assert f"wrote    {tmp_path / 'a' / 'b' / 'speed.csv'}" in done.stdout
    (row,) = csv.DictReader((tmp_path / "a" / "b" / "speed.csv").read_text().splitlines())
    assert (row["network"], row["size"], row["batch"], row["reason"]) == ("bra-1-head", "16", "2", "")
    assert float(row["seconds"]) > 0
    page = (tmp_path / "a" / "b" / "speed.md").read_text()
    assert "by `hsidenoise benchmark speed --networks bra-1-head --sizes 16 " in page
    assert "1 thread" in page
    assert sorted(file.name for file in (tmp_path / "a" / "b").iterdir()) == ["speed.csv", "speed.md"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "gpu0"], "unknown device 'gpu0'"),
        (["--networks", "bra", "--jobs", "train"], "nothing to measure"),
        (["--networks", "hcanot"], "invalid choice: 'hcanot'"),
        (["--sizes", "0"], "'0' is no whole number above zero"),
        (["--out", "file"], "file"),
    ],
)
def test_a_wrong_option_is_one_line_and_measures_nothing(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    assert cli.main(["benchmark", "speed", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("hsidenoise: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_benchmark_alone_says_what_there_is(capsys):
    assert cli.main(["benchmark"]) == 2
    error = capsys.readouterr().err
    assert "--config" in error
    assert "speed" in error
    assert cli.main(["benchmark", "--help"]) == 0
    assert "WHAT" in (page := capsys.readouterr().out)
    assert "speed" in page


def test_the_command_line_offers_what_there_is():
    assert tuple(NETWORKS) == cli_options.SPEED_NETWORKS
    assert cli_options.SPEED_VARIANTS == FORWARD_VARIANTS
    assert cli_options.SPEED_JOBS == JOBS
    assert make_parser().parse_args(["benchmark", "speed"]).sizes == SIZES
