"""Validation PSNR of training runs against time, as a table (CSV) and a picture.

    python scripts/draw_learning_curves.py data/benchmarks/learning_curves hcanet=runs/first,runs/second

Each argument is a name and the folders of the runs that made it, in their order: each goes on where the one before
stopped. Time is that of training, `minutes` over `steps` in the header of the weights that a run left.
With --from-csv the picture is drawn again from the table.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import yaml
from matplotlib.figure import Figure

from hsidenoise.benchmark.figures import COLOURS
from hsidenoise.figures.cubes import save_figure
from hsidenoise.models.weights import read_header
from hsidenoise.system.files import replacing

FIELDS = ["name", "part", "passes", "step", "minutes", "psnr"]


def curve(name: str, runs: list[Path]) -> list[dict[str, str]]:
    """Rows of the table for one set of weights."""
    rows = []
    minutes = 0.0
    for part, run in enumerate(runs, 1):
        header = read_header(run / "weights.safetensors")
        each = float(header["minutes"]) / int(header["steps"])
        model = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["model"]
        passes = model.get("passes", 2) if model.get("pilot_filter_weight") else 1
        scores: dict[int, str] = {}
        for log in sorted(run.glob("csv/version_*/metrics.csv")):  # a run that was resumed has several
            with log.open(newline="", encoding="utf-8") as file:
                scores |= {int(row["step"]) + 1: row["val/psnr"] for row in csv.DictReader(file) if row.get("val/psnr")}
        if not scores:
            sys.exit(f"draw_learning_curves: {run} was never validated; nothing to draw")
        for step, psnr in sorted(scores.items()):
            values = (name, part, passes, step, f"{minutes + each * step:.1f}", f"{float(psnr):.2f}")
            rows.append(dict(zip(FIELDS, map(str, values), strict=True)))
        minutes += each * max(scores)
    return rows


def draw(rows: list[dict[str, str]], path: Path) -> None:
    """One line for each run, one colour for each name; where the score counts further passes the line is thick."""
    figure = Figure(figsize=(7.2, 4.2), dpi=150)
    axes = figure.add_axes((0.09, 0.12, 0.88, 0.83))
    for colour, name in zip(COLOURS, dict.fromkeys(row["name"] for row in rows), strict=False):
        own = [row for row in rows if row["name"] == name]
        for part in sorted({row["part"] for row in own}):
            points = [row for row in own if row["part"] == part]
            passes = int(points[0]["passes"])
            axes.plot(
                [float(row["minutes"]) for row in points],
                [float(row["psnr"]) for row in points],
                color=colour,
                marker="o",
                markersize=4 if passes > 1 else 2.5,
                linewidth=2.5 if passes > 1 else 1.2,
                label=name if part == own[0]["part"] else None,
            )
    axes.set_xlabel("minutes of training on one CPU core")
    axes.set_ylabel("PSNR (dB), mean of nine cases, validation")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=9, title="thick: behind the pilot filter", title_fontsize=8)
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path, help="path of the table and the picture, without ending")
    parser.add_argument("runs", nargs="*", metavar="NAME=RUN[,RUN...]")
    parser.add_argument("--from-csv", action="store_true", help="draw the table that is there")
    options = parser.parse_args()
    table, picture = options.output.with_suffix(".csv"), options.output.with_suffix(".png")
    if options.from_csv:
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    else:
        pairs = [text.partition("=") for text in options.runs]
        if not pairs or not all(name and folders for name, _, folders in pairs):
            sys.exit("draw_learning_curves: give at least one NAME=RUN[,RUN...]")
        rows = [row for name, _, folders in pairs for row in curve(name, [Path(run) for run in folders.split(",")])]
        with replacing(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    draw(rows, picture)


if __name__ == "__main__":
    main()
