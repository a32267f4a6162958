"""Tables: statistics, ranks, and text that says what its numbers may be used for."""

import csv
import io
import math
import re
import shutil
import statistics
import subprocess
from dataclasses import replace

import pytest

from hsidenoise.benchmark.render import scenes_csv, to_csv, to_latex, to_markdown
from hsidenoise.benchmark.table import METRICS, Line, PublishedLine, Score, Table, cells, mean_and_deviation

CASES = ("gaussian-30", "mixture")
SCENES = ("toys", "hairs", "peppers")


def scores(psnr, *, ssim=0.9, sam=0.1, seconds=2.0, scenes=SCENES):
    steps = range(len(scenes))
    return tuple(
        Score(scene, psnr + step, ssim + step / 100, sam + step / 100, seconds)
        for step, scene in zip(steps, scenes, strict=True)
    )


@pytest.fixture
def table():
    return Table(
        "CAVE, 6 scenes & more",
        CASES,
        (
            Line("noisy", {case: scores(99.0, ssim=0.99, sam=0.0) for case in CASES}, is_input=True),
            Line("svd_tv", {"gaussian-30": scores(36.0, sam=0.2), "mixture": scores(25.0)}),
            Line("bm4d", {"gaussian-30": scores(37.0, sam=0.3)}, given_sigma=True),
            Line("hcanet-bra", {case: scores(38.0, sam=0.1) for case in CASES}, parameters=1_910_000, gflop=97.14),
            Line("cheat", {case: scores(60.0) for case in CASES}, marks=("LEAK: trained on scene toys",)),
        ),
        (("commit", "abc1234"), ("protocol", "standard")),
        notes=("Scenes at 512x512 | cropped.",),
        published=(PublishedLine("SERT", {"gaussian-30": 43.99}, "README of SERT", 1_910_000, 1019.0),),
    )


def rows(page, label):
    return [line for line in page.splitlines() if line.startswith(f"| {label}")]


def one(value, **changes):
    return Table("t", ("blind",), (Line("m", {"blind": (Score("a", value, 0.5, 0.1, 1.0),)}, **changes),), ())


# --- numbers


@pytest.mark.parametrize("values", [[30.0, 34.0], [1.0, 2.0, 4.5, 8.0], [5.0, 5.0]])
def test_statistics(values):
    mean, deviation = mean_and_deviation(values)
    assert mean == pytest.approx(statistics.mean(values))
    assert deviation == pytest.approx(statistics.stdev(values))


def test_statistics_of_little():
    assert all(map(math.isnan, mean_and_deviation([])))
    mean, deviation = mean_and_deviation([4.0])
    assert mean == 4
    assert math.isnan(deviation)
    mean, deviation = mean_and_deviation([4.0, math.inf])
    assert mean == math.inf
    assert math.isnan(deviation)


def test_ranks_leave_out_input_and_leaks(table):
    assert [cell.rank for cell in cells(table, "psnr", "gaussian-30")] == [0, 0, 2, 1, 0]
    assert [cell.rank for cell in cells(table, "sam", "gaussian-30")] == [0, 2, 0, 1, 0]
    assert [cell.rank for cell in cells(table, "psnr", "mixture")] == [0, 2, 0, 1, 0]


def test_ranks_by_unrounded_means_and_ties_share():
    lines = [Line(str(dB), {"c": (Score("a", dB, 0.5, 0.1, 1.0),)}) for dB in (30.001, 30.002, 30.0)]
    tied = [*lines, Line("again", lines[1].scores)]
    assert [cell.rank for cell in cells(Table("t", ("c",), tuple(tied), ()), "psnr", "c")] == [2, 1, 0, 1]


def test_infinite_is_best_and_nan_is_nothing():
    values = {"exact": math.inf, "good": 50.0, "broken": math.nan}
    lines = tuple(Line(name, {"c": (Score("a", dB, 0.5, 0.1, 1.0),)}) for name, dB in values.items())
    table = Table("t", ("c",), lines, ())
    assert [cell.rank for cell in cells(table, "psnr", "c")] == [1, 2, 0]
    page = to_markdown(table)
    assert rows(page, "exact")[0].startswith("| exact | **∞** |")
    assert rows(page, "broken")[0].startswith("| broken | nan |")
    assert "\\textbf{$\\infty$}" in to_latex(table)
    assert "exact,c,1,inf,," in to_csv(table)


def test_cells_of_fewer_scenes_are_counted_and_not_ranked(table):
    best = Line("best", {"gaussian-30": scores(50.0, scenes=SCENES[:2])})
    more = replace(table, lines=(*table.lines, best))
    last = cells(more, "psnr", "gaussian-30")[-1]
    assert (last.rank, last.scenes, last.of) == (0, 2, 3)
    assert "| best | 50.50±.71 (2/3) |" in to_markdown(more).replace("0.71", ".71")
    assert "(n/N)" in to_markdown(more)
    assert "(n/N)" not in to_markdown(table)
    assert "(2/3)" in to_latex(more)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cases": ("mixture", "mixture")}, "'mixture' occurs twice"),
        ({"lines": (Line("a", {}), Line("a", {}))}, "'a' occurs twice"),
        ({"lines": (Line("a", {"blind": ()}),)}, "has the case 'blind'"),
        ({"lines": (Line("a", {"mixture": scores(3.0, scenes=("x", "x"))}),)}, "scene 'x' occurs twice"),
    ],
)
def test_what_is_ambiguous_is_refused(table, change, message):
    with pytest.raises(ValueError, match=message):
        replace(table, **change)


# --- Markdown


def test_markdown_cells(table):
    page = to_markdown(table)
    psnr, ssim, sam = rows(page, "hcanet-bra")
    assert psnr == "| hcanet-bra | **39.00**±1.00 | **39.00**±1.00 | 1.91 | 97.1 | 2.00 |"
    assert ssim == "| hcanet-bra | **.910**±.010 | **.910**±.010 |"
    assert sam == "| hcanet-bra | **.110**±.010 | **.110**±.010 |"
    assert rows(page, "svd_tv")[0] == "| svd_tv | 37.00±1.00 | <u>26.00</u>±1.00 | – | – | 2.00 |"
    assert rows(page, "bm4d")[0] == "| bm4d † | <u>38.00</u>±1.00 | – | – | – | 2.00 |"
    assert rows(page, "noisy")[0].endswith("| 100.00±1.00 | 100.00±1.00 | – | – | – |")


def test_markdown_says_what_it_is(table):
    page = to_markdown(table)
    assert page.startswith("# CAVE, 6 scenes & more\n\n- **commit**: abc1234\n- **protocol**: standard\n")
    assert "given the true sigma" in page
    assert "over 3 scenes" in page
    assert "Scenes at 512x512 \\| cropped." in page
    assert all("LEAK: trained on scene toys" in row for row in rows(page, "cheat"))
    assert page.count("LEAK") == 4  # in each of the three tables, and below them
    assert "as published, other images" in page
    assert rows(page, "SERT") == ["| SERT | 43.99 | – | 1.91 | 1019 | README of SERT |"]


def test_notes_only_where_they_are_needed():
    page = to_markdown(one(30.0))
    assert "given the true" not in page
    assert "published" not in page
    assert "params" not in page
    assert "over 1 scene;" in page
    assert "| m | **30.00** | 1.00 |" in page
    assert "† given" in to_markdown(one(30.0, given_sigma=True))


def test_markdown_tables_are_rectangular(table):
    page = to_markdown(table)
    blocks = [block for block in page.split("\n\n") if block.startswith("| method")]
    assert len(blocks) == 4
    for block in blocks:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1
        assert len(block.splitlines()) > 2


def test_letters_of_markdown_in_names_do_no_harm():
    line = Line("a|b*c\nd<e", {"blind": (Score("s", 30.0, 0.5, 0.1, 1.0),)})
    assert "| a\\|b\\*c d&lt;e |" in to_markdown(Table("t", ("blind",), (line,), ()))


def test_degrees(table):
    page = to_markdown(replace(table, sam_unit="degrees"))
    assert "## SAM (degrees, smaller is better)" in page
    assert rows(page, "hcanet-bra")[2] == "| hcanet-bra | **0.11**±0.01 | **0.11**±0.01 |"


def test_two_runs_differ_in_the_seconds_only(table):
    def at(seconds):
        lines = tuple(
            replace(
                line, scores={case: tuple(replace(s, seconds=seconds) for s in of) for case, of in line.scores.items()}
            )
            for line in table.lines
        )
        return to_markdown(replace(table, lines=lines))

    first, second = at(2.0), at(3.0)
    assert first != second
    assert first == second.replace("| 3.00 |", "| 2.00 |")


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.0012, "0.0012"), (0.5, "0.50"), (12.34, "12.3"), (123.4, "123"), (math.nan, "–")]
)
def test_digits_of_seconds(seconds, shown):
    table = Table("t", ("blind",), (Line("m", {"blind": (Score("a", 30.0, 0.5, 0.1, seconds),)}),), ())
    assert rows(to_markdown(table), "m")[1].endswith(f"| {shown} |")


# --- CSV


def test_csv_of_means(table):
    read = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert len(read) == 9  # bm4d has one case only
    row = next(row for row in read if (row["method"], row["case"]) == ("hcanet-bra", "mixture"))
    assert (row["scenes"], row["psnr"], row["psnr_std"]) == ("3", "39.000000", "1.000000")
    assert (row["ssim"], row["sam"], row["seconds"]) == ("0.910000", "0.110000", "2.000")
    assert (row["parameters"], row["gflop"], row["given_sigma"]) == ("1910000", "97.140", "no")
    assert next(row for row in read if row["method"] == "bm4d")["given_sigma"] == "yes"
    assert next(row for row in read if row["method"] == "cheat")["marks"] == "LEAK: trained on scene toys"


def test_csv_of_scenes_gives_the_means_back(table):
    read = list(csv.DictReader(io.StringIO(scenes_csv(table))))
    assert len(read) == 27
    assert {row["scene"] for row in read} == set(SCENES)
    for row in csv.DictReader(io.StringIO(to_csv(table))):
        cell = [one for one in read if (one["method"], one["case"]) == (row["method"], row["case"])]
        for metric in METRICS:
            assert statistics.mean(float(one[metric]) for one in cell) == pytest.approx(float(row[metric]), abs=1e-6)


# --- LaTeX


def body(page):
    """Rows of the tabular, and the number of columns."""
    columns = re.search(r"\\begin\{tabular\}\{(l+r+)\}", page)
    inside = page[page.index("\\toprule") : page.index("\\bottomrule")]
    return [line for line in inside.splitlines() if line.endswith("\\\\")], len(columns.group(1))


def test_latex_has_as_many_cells_in_every_row(table):
    lines, columns = body(to_latex(table))
    assert columns == 2 + 2 + 3
    assert len(lines) == 1 + 5 * 3 + 1 + 2  # head, three rows per method, the leak, the published block
    for line in lines:
        spans = [int(span) for span in re.findall(r"\\multicolumn\{(\d+)\}", line)]
        assert len(re.findall(r"(?<!\\)&", line)) + 1 + sum(spans) - len(spans) == columns


def test_latex_is_balanced_and_escaped(table):
    hard = Line("50%_#{x}~^\\ σ & $", {"mixture": scores(12.0)}, marks=("a_b & c",))
    page = to_latex(replace(table, lines=(*table.lines, hard)))
    assert "50\\%\\_\\#\\{x\\}\\textasciitilde{}\\textasciicircum{}\\textbackslash{} $\\sigma$ \\& \\$ & PSNR" in page
    bare = re.sub(r"\\[{}]", "", page)
    assert bare.count("{") == bare.count("}")
    depth = 0
    for letter in bare:
        depth += (letter == "{") - (letter == "}")
        assert depth >= 0
    assert re.findall(r"\\begin\{([a-z*]+)\}", page) == ["table*", "tabular"]
    assert re.findall(r"\\end\{([a-z*]+)\}", page) == ["tabular", "table*"]
    for rule in ("toprule", "bottomrule"):
        assert page.count(f"\\{rule}") == 1
    without_math = re.sub(r"\\\$", "", page)
    assert without_math.count("$") % 2 == 0
    assert not re.search(r"(?<!\\)_", "\n".join(line for line in page.splitlines() if not line.startswith("%")))
    assert not set("±σ†∞–×") & set(page)


def test_latex_says_what_it_is(table):
    page = to_latex(table)
    assert page.startswith("% commit: abc1234\n% protocol: standard\n")
    assert "\\caption{CAVE, 6 scenes \\& more}" in page
    assert "bm4d$^\\dagger$ & PSNR & \\underline{38.00}{\\tiny$\\pm$1.00} & --" in page
    assert "hcanet-bra & PSNR & \\textbf{39.00}{\\tiny$\\pm$1.00}" in page
    assert " & SAM & \\textbf{.110}{\\tiny$\\pm$.010}" in page
    assert page.count("LEAK: trained on scene toys") == 2
    assert "\\emph{as published, other images}" in page
    assert "SERT & PSNR & 43.99 & -- & 1.91 & 1019 & -- \\\\" in page
    assert "SERT: README of SERT." in page


def test_many_cases_are_printed_smaller(table):
    assert "\\centering\\footnotesize\\setlength{\\tabcolsep}{3pt}" in to_latex(table)
    wide = replace(table, cases=(*CASES, *"abcdefg"))
    assert "\\centering\\scriptsize\\setlength{\\tabcolsep}{2pt}" in to_latex(wide)


def test_line_breaks_in_facts_stay_comments(table):
    page = to_latex(replace(table, facts=(("machine", "two\ncores"),)))
    assert page.startswith("% machine: two cores\n%")


@pytest.mark.parametrize("label", ["[ours]", "*ours"])
def test_no_row_hands_an_option_to_the_break_before_it(table, label):
    page = to_latex(replace(table, lines=(*table.lines, Line(label, {"mixture": scores(12.0)}))))
    assert not re.search(r"\\\\\s*[\[*]", page)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no TeX on this machine")
def test_latex_compiles(tmp_path, table):
    (tmp_path / "table.tex").write_text(to_latex(table), encoding="utf-8")
    paper = "\\documentclass[twocolumn]{article}\\usepackage{booktabs}\\begin{document}\\input{table}\\end{document}"
    (tmp_path / "paper.tex").write_text(paper, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
