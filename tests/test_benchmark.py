"""`hsidenoise benchmark speed` as a user runs it; which commit it names; files whole or not at all."""

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hsidenoise import cli, cli_options
from hsidenoise.benchmark_speed import JOBS, SIZES
from hsidenoise.cli_options import make_parser
from hsidenoise.results import commit, write_files
from hsidenoise.speed_cell import FORWARD_VARIANTS
from hsidenoise.speed_networks import NETWORKS

ROOT = Path(__file__).parents[1]


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
    assert "speed" in capsys.readouterr().out


def test_the_command_line_offers_what_there_is():
    assert tuple(NETWORKS) == cli_options.SPEED_NETWORKS
    assert cli_options.SPEED_VARIANTS == FORWARD_VARIANTS
    assert cli_options.SPEED_JOBS == JOBS
    assert make_parser().parse_args(["benchmark", "speed"]).sizes == SIZES


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_that_of_the_packages_own_repository(tmp_path, monkeypatch):
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # set where tests run from a hook
        monkeypatch.delenv(name, raising=False)

    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    package = tmp_path / "package"
    package.mkdir()
    (package / "file").write_text("1")
    assert commit(package) == "unknown"
    git("init", "-q")
    assert commit(package) == "unknown"  # nothing committed yet
    git("add", ".")
    git("commit", "-q", "-m", "first")
    head = git("rev-parse", "--short", "HEAD")
    (tmp_path / "untracked").write_text("")
    assert commit(package) == head
    (package / "file").write_text("2")
    assert commit(package) == f"{head}-dirty"
    inner = package / "site-packages" / "hsidenoise"
    inner.mkdir(parents=True)
    assert commit(inner) == "unknown"


def test_without_git_the_commit_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(ROOT / "hsidenoise") == "unknown"


def test_files_appear_whole_or_not_at_all(tmp_path):
    (tmp_path / "a.md").write_text("old")
    write_files(tmp_path, {"a.md": "new", "b.csv": "µ"})
    assert (tmp_path / "a.md").read_text() == "new"
    assert (tmp_path / "b.csv").read_text(encoding="utf-8") == "µ"
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_files(tmp_path, {"folder": "text"})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.md", "b.csv", "folder"]
