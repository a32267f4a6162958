"""Short training runs of equal cost, each with one thing changed: which choice of a recipe pays; CSV and Markdown.

    python scripts/measure_recipe.py --root ../shared/cave --seconds 240 --output runs/recipe

A row of configs/tables/recipe.yaml is a name and the options of `hsidenoise train` that differ from the base
configuration. Every run gets as many steps as fit in the same CPU seconds (measured first), with the whole
schedule inside them, and is scored at its end on the validation scenes. CPU time, not wall time: other work on the
machine does not count. Rows that a folder holds already are not run again.
"""

from __future__ import annotations

import argparse
import csv
import os
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import yaml

CASES = [
    "gaussian-5",
    "gaussian-30",
    "gaussian-50",
    "gaussian-70",
    "non-iid",
    "stripe",
    "deadline",
    "impulse",
    "mixture",
]
TIMED = 20  # steps over which the cost of a step is measured
WARM = 6


def train(options: list[str]) -> float:
    """CPU seconds of one call of `hsidenoise train`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "hsidenoise", "train", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"measure_recipe: {' '.join(command)}\n{done.stderr.strip()[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def steps_for(seconds: float, options: list[str], folder: Path) -> int:
    """Steps that fit in so many CPU seconds."""
    cost = {}
    for steps in (WARM, WARM + TIMED):
        silent = ["--trainer.limit_val_batches", "0", "--trainer.num_sanity_val_steps", "0"]
        cost[steps] = train(
            [*options, *silent, "--trainer.max_steps", str(steps), "--output", str(folder / f"time-{steps}")]
        )
    return max(TIMED, round(seconds * TIMED / (cost[WARM + TIMED] - cost[WARM])))


def score(folder: Path) -> dict[str, float]:
    """Last validation of a run."""
    (log,) = folder.glob("csv/version_*/metrics.csv")
    with log.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("val/psnr")]
    return {case: float(rows[-1][f"val/psnr/{case}"]) for case in CASES} | {"mean": float(rows[-1]["val/psnr"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", type=Path, default=Path("configs/tables/recipe.yaml"))
    parser.add_argument("--root", required=True, help="folder with train/ and validation/")
    parser.add_argument("--seconds", type=float, default=240.0, help="CPU seconds of a run")
    parser.add_argument("--output", type=Path, default=Path("runs/recipe"))
    parser.add_argument("--rows", nargs="+", default=None, help="names of rows (default: all)")
    options = parser.parse_args()

    recipe = yaml.safe_load(options.recipe.read_text())
    rows = recipe["rows"]
    unknown = set(options.rows or ()) - set(rows)
    if unknown:
        sys.exit(f"measure_recipe: no row {', '.join(sorted(unknown))} in {options.recipe}")
    table = options.output / "recipe.csv"
    options.output.mkdir(parents=True, exist_ok=True)
    done: dict[str, dict[str, str]] = {}
    if table.exists():
        with table.open(newline="") as file:
            done = {row["row"]: row for row in csv.DictReader(file)}
    for name in options.rows or rows:
        if name in done:
            continue
        folder = options.output / name
        first, *later = rows[name] if isinstance(rows[name], list) else [rows[name]]
        spent, steps, start = 0.0, 0, []
        for part, changes in enumerate([first, *later]):
            where = folder / f"part-{part}"
            given = ["--config", recipe["base"], "--data.root", options.root, *shlex.split(recipe["options"]), *start]
            given += shlex.split(changes)
            own = steps_for(options.seconds / (1 + len(later)), given, where)
            cases = ["--data.validation_noise", f"[{', '.join(CASES)}]"]
            # as many patches as the run takes: one epoch, one validation
            size = next(
                (int(given[i + 1]) for i in range(len(given) - 1, -1, -1) if given[i] == "--data.batch_size"), 4
            )
            whole = ["--data.patches_per_epoch", str(own * size), "--trainer.max_steps", str(own)]
            spent += train([*given, *cases, *whole, "--output", str(where / "run")])
            steps += own
            start = ["--model.initial_weights", str(where / "run" / "weights.safetensors")]
        scores = score(where / "run")
        done[name] = {
            "row": name,
            "options": " | ".join([first, *later]),
            "seconds": f"{options.seconds:g}",
            "steps": str(steps),
            **{key: f"{value:.2f}" for key, value in scores.items()},
        }
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(done[name]))
            writer.writeheader()
            writer.writerows(done.values())
        print(
            f"{name}: {steps} steps, {scores['mean']:.2f} dB ({spent:.0f} s with validation)",
            file=sys.stderr,
            flush=True,
        )
    print(f"| row | options | steps | mean | {' | '.join(CASES)} |\n|---|---|{'---:|' * (2 + len(CASES))}")
    for row in done.values():
        cells = [row["row"], f"`{row['options']}`", row["steps"], row["mean"], *(row[case] for case in CASES)]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
