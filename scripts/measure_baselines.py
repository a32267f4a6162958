"""Measure classical baselines, and weights beside them, on clean scenes; a Markdown table.

    python scripts/measure_baselines.py ../shared/cave/test --crop 256 --csv results/cave_test_256.csv
    python scripts/measure_baselines.py ../shared/cave/test --crop 256 --methods noisy svd-tv weights:hcanet-bra

Scenes, noise and scores are those of measure_quality.py. A method that is not blind is told the true sigma of each
band. The CSV file grows with each score, and what an earlier run has written there is not measured again: it must be
of the same options.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from pathlib import Path

import numpy as np
from measure_quality import CASES, METRICS, clean_scene

import hsidenoise
from hsidenoise import corrupt, evaluate
from hsidenoise.baselines import BASELINES, Baseline, find_method, run_baseline

HEADER = ["scene", "case", "cube", *METRICS, "seconds"]
WEIGHTS = "weights:"
Key = tuple[str, str, str]


def earlier_rows(path: Path | None) -> dict[Key, list[float]]:
    """Scores that a CSV file holds, by scene, case and method."""
    if path is None or not path.exists():
        return {}
    with path.open(newline="") as file:
        reader = csv.reader(file)
        if next(reader, None) != HEADER:
            sys.exit(f"measure_baselines: {path} is no table of this script; name another file")
        return {(row[0], row[1], row[2]): [float(value) for value in row[3:]] for row in reader}


def append_row(path: Path | None, key: Key, values: list[float]) -> None:
    """Write one score at once, so that a run that is stopped loses little."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if fresh:
            writer.writerow(HEADER)
        writer.writerow([*key, *values])


def with_weights(name: str) -> Baseline:
    """Weights as one more method, as `hsidenoise denoise` uses them."""
    network = hsidenoise.load_model(name.removeprefix(WEIGHTS))
    return Baseline(
        name, lambda noisy, sigma=None: hsidenoise.denoise(noisy, network), blind=True, summary="", reference=""
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="folder of clean .mat cubes")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["noisy", *(name for name, row in BASELINES.items() if row.extra is None)],
        help="names of baselines, package.module:function, weights:<name or file>, or noisy (default: all that need no "
        "extra)",
    )
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--crop", type=int, default=None, help="side of the centre crop (default: the whole scene)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--protocol", default="standard")
    parser.add_argument("--csv", type=Path, default=None, help="append every score to this file")
    options = parser.parse_args()

    scenes = sorted(options.folder.glob("*.mat"))
    if not scenes:
        sys.exit(f"measure_baselines: no .mat files in {options.folder}")
    methods = {
        name: None if name == "noisy" else with_weights(name) if name.startswith(WEIGHTS) else find_method(name)
        for name in options.methods
    }
    rows = earlier_rows(options.csv)
    for name, method in methods.items():
        for path in scenes:
            clean = clean_scene(path, options.crop)
            for case in options.cases:
                key = (path.stem, case, name)
                if key in rows:
                    continue
                corruption = corrupt(clean, case, seed=options.seed)
                # processor time: what else runs on the machine does not count
                start = time.process_time()
                denoised = corruption.noisy
                if method is not None:
                    denoised = run_baseline(method, corruption.noisy, None if method.blind else corruption.sigma)
                seconds = time.process_time() - start
                scores = evaluate(denoised, clean, protocol=options.protocol)
                rows[key] = [*(getattr(scores, metric) for metric in METRICS), seconds]
                append_row(options.csv, key, rows[key])
                print(f"{path.stem:<28} {case:<12} {name:<16} {rows[key][0]:6.2f} dB", file=sys.stderr, flush=True)

    print(f"| method | {' | '.join(options.cases)} | seconds |\n|{'---|' * (len(options.cases) + 2)}")
    for name in methods:
        means = [np.mean([rows[path.stem, case, name] for path in scenes], axis=0) for case in options.cases]
        cells = [f"{psnr:.2f} / {ssim:.3f} / {sam:.3f}" for psnr, ssim, sam, _ in means]
        print(f"| {name} | {' | '.join(cells)} | {np.mean([mean[3] for mean in means]):.1f} |")


if __name__ == "__main__":
    main()
