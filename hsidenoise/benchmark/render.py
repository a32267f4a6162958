"""Tables as papers print them: methods x noise cases x PSNR, SSIM and SAM, as Markdown, LaTeX and CSV.

Text out of data (:mod:`hsidenoise.benchmark.table`), nothing is read or measured here. A page must say what its numbers
may be used for: facts at its head, lines that were given sigma and lines that leak marked inside it, cells of fewer
scenes than the others counted and left out of the ranking, published numbers apart. Two runs of the same benchmark
differ in the seconds only, which have a column of their own.

Markdown holds one small table per metric, because three numbers with their deviations in one cell are unreadable from
five noise cases on; LaTeX holds one float with three rows per method, because that is how papers print it.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence

from hsidenoise.benchmark.table import (
    METRICS,
    Cell,
    Line,
    Metric,
    PublishedLine,
    Table,
    cells,
    mean_and_deviation,
)

AS_PUBLISHED = "as published, other images"

_GIVEN = "given the true sigma of every band; the other methods are not"
_PARAMETERS, _GFLOP, _SECONDS = "params (M)", "GFLOP", "seconds"


def to_csv(table: Table) -> str:
    """One row per method and noise case: means and sample standard deviations, six digits after the point.

    Example:
        >>> from hsidenoise.benchmark.table import Score
        >>> score = Score("toys", 30.0, 0.9, 0.1, 2.0)
        >>> print(to_csv(Table("t", ("blind",), (Line("svd-tv", {"blind": (score,)}),), ())), end="")
        method,case,scenes,psnr,psnr_std,ssim,ssim_std,sam,sam_std,seconds,parameters,gflop,given_sigma,marks
        svd-tv,blind,1,30.000000,,0.900000,,0.100000,,2.000,,,no,
    """
    head = ["method", "case", "scenes", *(f"{metric}{end}" for metric in METRICS for end in ("", "_std"))]
    rows: list[list[str]] = [[*head, "seconds", "parameters", "gflop", "given_sigma", "marks"]]
    for line in table.lines:
        given, marks = "yes" if line.given_sigma else "no", "; ".join(line.marks)
        for case in (case for case in table.cases if line.scores.get(case)):
            scores = line.scores[case]
            numbers = [
                _plain(value)
                for metric in METRICS
                for value in mean_and_deviation([getattr(score, metric) for score in scores])
            ]
            seconds = _plain(mean_and_deviation([score.seconds for score in scores])[0], 3)
            parameters = "" if line.parameters is None else str(line.parameters)
            gflop = "" if line.gflop is None else _plain(line.gflop, 3)
            rows.append([line.label, case, str(len(scores)), *numbers, seconds, parameters, gflop, given, marks])
    return _csv(rows)


def scenes_csv(table: Table) -> str:
    """One row per method, noise case and scene, six digits after the point.

    Example:
        >>> from hsidenoise.benchmark.table import Score
        >>> score = Score("toys", 30.0, 0.9, 0.1, 2.0)
        >>> print(scenes_csv(Table("t", ("blind",), (Line("svd-tv", {"blind": (score,)}),), ())), end="")
        method,case,scene,psnr,ssim,sam,seconds
        svd-tv,blind,toys,30.000000,0.900000,0.100000,2.000
    """
    rows = [["method", "case", "scene", *METRICS, "seconds"]]
    for line in table.lines:
        for case in table.cases:
            for score in line.scores.get(case, ()):
                values = [_plain(getattr(score, metric)) for metric in METRICS]
                rows.append([line.label, case, score.scene, *values, _plain(score.seconds, 3)])
    return _csv(rows)


def to_markdown(table: Table) -> str:
    """The page for people: facts, a table per metric, warnings and notes, and what others published.

    Per metric and noise case the best mean is bold and the second best underlined; cost stands beside the PSNR.

    Example:
        >>> from hsidenoise.benchmark.table import Score
        >>> scores = {"blind": (Score("toys", 30.0, 0.9, 0.1, 2.0), Score("hairs", 34.0, 0.8, 0.2, 4.0))}
        >>> page = to_markdown(Table("CAVE", ("blind", "impulse"), (Line("svd-tv", scores),), (("seed", "0"),)))
        >>> next(line for line in page.splitlines() if "svd-tv" in line)
        '| svd-tv | **32.00**±2.83 | – | 3.00 |'
    """
    parts = [f"# {_md(table.title)}", "", *(f"- **{_md(name)}**: {_md(value)}" for name, value in table.facts)]
    for metric in METRICS:
        cost = _cost(table.lines) if metric == "psnr" else []
        parts += ["", f"## {_heading(metric, table.sam_unit)}", "", *_md_head(["method", *table.cases, *cost])]
        columns = [cells(table, metric, case) for case in table.cases]
        for number, line in enumerate(table.lines):
            row = [_md_cell(column[number], _decimals(metric, table.sam_unit)) for column in columns]
            parts.append(_md_row([_md_label(line), *row, *(_cost_value(line, name) for name in cost)]))
    warnings = [f"**{_md(line.label)}: {_md(mark)}**" for line in table.lines for mark in line.marks]
    parts += ["", *_bullets(warnings), *_bullets([_md(note) for note in _notes(table)])]
    if table.published:
        cost = [name for name in _cost(table.published) if name != _SECONDS]
        parts += [f"## PSNR (dB), {AS_PUBLISHED}", "", *_md_head(["method", *table.cases, *cost], ["source"])]
        for published in table.published:
            row = [_number(published.scores.get(case, math.nan), 2) for case in table.cases]
            row += [_cost_value(published, name) for name in cost]
            parts.append(_md_row([_md(published.label), *row, _md(published.source)]))
        parts.append("")
    return "\n".join(parts).rstrip("\n") + "\n"


def to_latex(table: Table) -> str:
    r"""A complete ``table*`` for a paper, to be taken in by ``\input``; it needs the package booktabs only.

    Three rows per method (PSNR, SSIM, SAM), deviations small, best bold and second best underlined; published
    numbers, PSNR only, below a rule of their own. The facts stand in comments at the head.

    Example:
        >>> from hsidenoise.benchmark.table import Score
        >>> score = Score("toys", 30.0, 0.9, 0.1, 2.0)
        >>> page = to_latex(Table("CAVE", ("blind",), (Line("svd_tv", {"blind": (score,)}),), (("seed", "0"),)))
        >>> next(line for line in page.splitlines() if "svd" in line)
        'svd\\_tv & PSNR & \\textbf{30.00} & 2.00 \\\\'
    """
    cost = _cost((*table.lines, *table.published))
    width = 2 + len(table.cases) + len(cost)
    head = ["method", "", *table.cases, *cost]
    size, gap = ("footnotesize", "3pt") if len(table.cases) <= 6 else ("scriptsize", "2pt")  # nine fit a page
    parts = [
        *(f"% {_one_line(name)}: {_one_line(value)}" for name, value in table.facts),
        "% needs \\usepackage{booktabs} and UTF-8; \\input this file; for one column, take the star from both table*.",
        "\\begin{table*}[t]",
        f"\\centering\\{size}\\setlength{{\\tabcolsep}}{{{gap}}}",
        f"\\caption{{{_tex(table.title)}}}",
        f"\\begin{{tabular}}{{ll{'r' * (len(table.cases) + len(cost))}}}",
        "\\toprule",
        _tex_row([_tex(name) for name in head]),
        "\\midrule",
    ]
    columns = {metric: [cells(table, metric, case) for case in table.cases] for metric in METRICS}
    for number, line in enumerate(table.lines):
        parts += ["\\addlinespace"] if number else []
        parts += [f"\\multicolumn{{{width}}}{{l}}{{\\textbf{{{_tex('! ' + mark)}}}}} \\\\" for mark in line.marks]
        label = _tex(line.label) + ("$^\\dagger$" if line.given_sigma else "")
        for metric in METRICS:
            first = metric == METRICS[0]
            row = [_tex_cell(column[number], _decimals(metric, table.sam_unit)) for column in columns[metric]]
            costs = [_tex(_cost_value(line, name)) if first else "" for name in cost]
            parts.append(_tex_row([label if first else "", metric.upper(), *row, *costs]))
    if table.published:
        parts += ["\\midrule", f"\\multicolumn{{{width}}}{{l}}{{\\emph{{{AS_PUBLISHED}}}}} \\\\"]
        for published in table.published:
            row = [_number(published.scores.get(case, math.nan), 2) for case in table.cases]
            costs = [_cost_value(published, name) for name in cost]
            parts.append(_tex_row([_tex(text) for text in (published.label, "PSNR", *row, *costs)]))
    notes = [_tex(note) for note in _notes(table)]
    notes += [f"{_tex(published.label)}: {_tex(published.source)}." for published in table.published]
    warnings = [f"\\textbf{{{_tex(f'{line.label}: {mark}')}}}" for line in table.lines for mark in line.marks]
    below = [f"{text}\\par" for text in (*warnings, *notes)]
    parts += ["\\bottomrule", "\\end{tabular}", "\\par\\smallskip", "\\parbox{\\linewidth}{\\raggedright", *below, "}"]
    return "\n".join([*parts, "\\end{table*}", ""])


def _notes(table: Table) -> list[str]:
    """Sentences that every page needs to be read rightly, then the table's own."""
    every = [cell for metric in METRICS for case in table.cases for cell in cells(table, metric, case)]
    counts = sorted({cell.of for cell in every if cell.of})
    scenes = " to ".join(dict.fromkeys(str(count) for count in (counts[:1] + counts[-1:]))) or "0"
    notes = [
        f"Mean ± sample standard deviation over {scenes} scene{'' if scenes == '1' else 's'}; best bold, second "
        f"best underlined; SAM in {table.sam_unit}; seconds per scene, mean over all cells."
    ]
    if any(line.given_sigma for line in table.lines):
        notes.append(f"† {_GIVEN}.")
    if any(0 < cell.scenes < cell.of for cell in every):
        notes.append("(n/N): only n of the N scenes of this case are done; not ranked.")
    return [*notes, *table.notes]


def _heading(metric: Metric, sam_unit: str) -> str:
    return {
        "psnr": "PSNR (dB, larger is better)",
        "ssim": "SSIM (larger is better)",
        "sam": f"SAM ({sam_unit}, smaller is better)",
    }[metric]


def _decimals(metric: Metric, sam_unit: str) -> int:
    return 2 if metric == "psnr" or (metric == "sam" and sam_unit == "degrees") else 3


def _cost(lines: Iterable[Line | PublishedLine]) -> list[str]:
    """Columns of cost that any line can fill."""
    known = list(lines)
    columns = [_PARAMETERS] if any(line.parameters is not None for line in known) else []
    columns += [_GFLOP] if any(line.gflop is not None for line in known) else []
    return [*columns, _SECONDS]


def _cost_value(line: Line | PublishedLine, column: str) -> str:
    if column == _PARAMETERS:
        value = None if line.parameters is None else line.parameters / 1e6
    elif column == _GFLOP:
        value = line.gflop
    else:
        value = line.seconds() if isinstance(line, Line) and not line.is_input else None
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.2g}" if value < 0.01 else f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def _number(value: float, decimals: int, missing: str = "–") -> str:
    """Three decimals are of numbers below one: they go without their zero, as in papers."""
    if not math.isfinite(value):
        return missing if math.isnan(value) else "∞" if value > 0 else "-∞"
    text = f"{value:.{decimals}f}"
    text = text.lstrip("-") if float(text) == 0 else text
    return text.replace("0.", ".", 1) if decimals == 3 and text.lstrip("-").startswith("0.") else text


def _deviation(cell: Cell, decimals: int) -> str:
    # one scene has none, an infinite mean neither
    return f"±{_number(cell.deviation, decimals)}" if math.isfinite(cell.deviation) else ""


def _md_cell(cell: Cell, decimals: int) -> str:
    if not cell.scenes:
        return "–"
    mean = _number(cell.mean, decimals, "nan")
    mean = f"**{mean}**" if cell.rank == 1 else f"<u>{mean}</u>" if cell.rank == 2 else mean
    return mean + _deviation(cell, decimals) + (f" ({cell.scenes}/{cell.of})" if cell.scenes < cell.of else "")


def _tex_cell(cell: Cell, decimals: int) -> str:
    if not cell.scenes:
        return "--"
    mean = _tex(_number(cell.mean, decimals, "nan"))
    mean = f"\\textbf{{{mean}}}" if cell.rank == 1 else f"\\underline{{{mean}}}" if cell.rank == 2 else mean
    small = _tex(_deviation(cell, decimals)) + (f" ({cell.scenes}/{cell.of})" if cell.scenes < cell.of else "")
    return f"{mean}{{\\tiny{small}}}" if small else mean


def _md_label(line: Line) -> str:
    marks = "".join(f"<br>**{_md(mark)}**" for mark in line.marks)
    return _md(line.label) + (" †" if line.given_sigma else "") + marks


def _md(text: str) -> str:
    for letter in "\\|*":
        text = text.replace(letter, f"\\{letter}")
    return _one_line(text).replace("<", "&lt;")


def _md_row(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _md_head(names: Sequence[str], left: Sequence[str] = ()) -> list[str]:
    return [_md_row([_md(name) for name in (*names, *left)]), f"|---|{'---:|' * (len(names) - 1)}{'---|' * len(left)}"]


def _bullets(texts: Sequence[str]) -> list[str]:
    return [*(f"- {text}" for text in texts), ""] if texts else []


_TEX = {
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
    "|": "\\textbar{}",
    "±": "$\\pm$",
    "×": "$\\times$",
    "σ": "$\\sigma$",
    "∞": "$\\infty$",
    "†": "$^\\dagger$",
    "–": "--",
    "[": "{[}",  # these two would belong to the line break before, where a row starts with them
    "*": "{*}",
} | {letter: f"\\{letter}" for letter in "&%$#_{}"}


def _tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in _one_line(text))


def _tex_row(texts: Sequence[str]) -> str:
    return f"{' & '.join(texts)} \\\\"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _plain(value: float, digits: int = 6) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def _csv(rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
