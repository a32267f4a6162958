"""README.md as a reader meets it: length, commands and Python block; tables and links of every page."""

import csv
import re
import shlex
import shutil

import pytest
from command_line import ROOT, call, child

from hsidenoise.cli.main import main
from hsidenoise.models.shipped import WEIGHTS

PAGES = [
    ROOT / name
    for name in (
        "README.md", "hsidenoise/README.md", "hsidenoise/data/README.md", "hsidenoise/models/README.md",
        "configs/README.md", "data/README.md",
        "data/benchmarks/README.md", "data/samples/README.md", "data/splits/README.md",
    )
]  # fmt: skip
README = PAGES[0].read_text(encoding="utf-8")


def blocks(text, language):
    return [block for kind, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M) if kind == language]


def commands(text):
    lines = (line for block in blocks(text, "") for line in block.replace("\\\n", " ").splitlines())
    return [line.split(" # ")[0].strip() for line in lines if line.startswith("hsidenoise ")]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """What a fresh clone holds of what the commands of README.md name."""
    clone = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "data" / "samples", clone / "data" / "samples")
    return clone


def test_the_front_page_is_short():
    text = re.sub(r"```.*?```|<!--.*?-->", "", README, flags=re.S)
    text = re.sub(r"^\|.*$", "", text, flags=re.M)
    assert 900 <= len(text.split()) <= 1000


def test_every_command_of_the_front_page_runs_as_it_stands(clone):
    found = commands(README)
    verbs = [command.split()[1] for command in found]
    assert verbs == ["corrupt", "inspect", "denoise", "evaluate", "convert", "denoise"]
    printed = [call(*shlex.split(command)[1:], cwd=clone) for command in found]
    assert float(re.search(r"PSNR ([\d.]+) dB", printed[3])[1]) > 35
    header, _, record = (clone / "clean.hdr").read_text().partition("hsidenoise = ")
    assert (header, record.count("\n")) == ((clone / "scene.hdr").read_text(), 1)
    assert (clone / "page.png").stat().st_size > 10_000


def test_its_python_runs(clone):
    (example,) = blocks(README, "python")
    done = child("-c", example, cwd=clone)
    assert "psnr=" in done.stdout, done.stderr


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: str(page.relative_to(ROOT)))
def test_options_on_other_pages_are_those_of_the_command_line(page, capsys):
    for command in commands(page.read_text(encoding="utf-8")):
        _, verb, *words = shlex.split(command)
        if verb != "train":  # Lightning's command line; every configuration of the pages is trained in tests/training
            assert main([verb, "--help"]) == 0
            known = capsys.readouterr().out
            for word in words:
                assert not word.startswith("--") or re.search(rf"{re.escape(word)}\b", known), (command, word)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_is_there(page):
    text = page.read_text(encoding="utf-8")
    headings = {re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in text.splitlines()}
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        if file.startswith("http"):
            continue
        assert not file or (page.parent / file).exists(), target
        assert file or anchor in headings, target
    for name in re.findall(r"`((?:configs|scripts|data|tests|hsidenoise)/[\w./-]+\.\w+)`", text):
        assert (ROOT / name).exists() or (page.parent / name).exists(), name


def test_tables_are_those_of_the_command():
    """A table below a comment that names a table.md stands there in full, line by line."""
    text = (ROOT / "data" / "benchmarks" / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"<!-- (data/benchmarks/\w+/table\.md) -->\n\n((?:\|.*\n)+)", text)
    assert len(found) == 2
    for file, table in found:
        page = (ROOT / file).read_text(encoding="utf-8").splitlines()
        assert not [row for row in table.splitlines() if row not in page]


def scores(text):
    """The first table below a comment that names CSV files, and what these say: (method, case) -> row."""
    files, table = re.search(r"<!-- ((?:data/\S+\.csv ?)+)-->\n\n((?:\|.*\n)+)", text).groups()
    rows = {}
    for file in files.split():
        with (ROOT / file).open(newline="", encoding="utf-8") as stream:
            rows |= {(row["method"], row["case"]): row for row in csv.DictReader(stream)}
    header, _, *lines = ([cell.strip(" `") for cell in line.split("|")[1:-1]] for line in table.splitlines())
    return rows, header[1:], lines


def test_the_scores_of_the_front_page():
    rows, cases, lines = scores(README)
    for method, *cells in lines:
        assert cells == [f"{float(rows[method, case]['psnr']):.2f}" for case in cases], method


def test_the_scores_of_all_weights():
    rows, names, lines = scores((ROOT / "hsidenoise" / "models" / "README.md").read_text(encoding="utf-8"))
    assert set(names) == {"noisy", *WEIGHTS}
    label = {"hcanet": "HCANet", "hcanet-bra": "HCANet-BRA", "noisy": "noisy"}
    assert {case for case, *_ in lines} == {case for _, case in rows}
    for case, *cells in lines:
        for name, cell in zip(names, cells, strict=True):
            row = rows[label[name], case]
            said = f"{float(row['psnr']):.2f} / {float(row['ssim']):.3f} / {float(row['sam']):.3f}"
            assert cell == said, (name, case)
