"""Measure on remote sensing, outside of 31 bands: simulated noise on cubes of the size and bands that they come in.

    python scripts/measure_remote_sensing.py ../shared/remote_sensing/Samson.mat --crop 96 --csv results/samson.csv

Each cube is cropped at its centre where asked for, min-max scaled to [0, 1] with all of its bands, and corrupted as by
`hsidenoise corrupt`. Methods: `noisy`; `model` (`denoise` as a user gets it); `one-step` (`--passes 1`);
`blended` (`--passes 1 --no-join`: windows of bands are blended only); `blended-again` (`--no-join`: blended, then
the second step); `estimate` (in place of the network the spectral Wiener estimate that it starts from, in the same
windows); `estimate-all` (that estimate of all bands at once); and the classical ones of `hsidenoise.baselines`, blind,
by their names. Prints a Markdown table for each cube: PSNR (dB) / SSIM / SAM (radians), best PSNR bold.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measure_quality import EstimateAlone, clean_scene

from hsidenoise import corrupt, denoise, evaluate, load_model

CASES = ["gaussian-30", "gaussian-50", "non-iid", "stripe", "deadline", "impulse", "mixture"]
OURS = ["noisy", "model", "one-step", "blended", "blended-again", "estimate", "estimate-all"]
METRICS = ("psnr", "ssim", "sam")

Method = Callable[[np.ndarray], np.ndarray]


def all_bands(noisy: np.ndarray) -> np.ndarray:
    """The spectral Wiener estimate of all bands of a cube at once."""
    return EstimateAlone()(torch.from_numpy(noisy)[None])[0].numpy()


def methods(names: list[str] | None, weights: str | None, ensemble: int) -> dict[str, Method]:
    """The methods by name; every baseline there is if none are named."""
    model, estimate = (load_model(weights) if weights else load_model()), EstimateAlone()
    scaled = {"normalize": "none"}  # each cube is on [0, 1]
    found: dict[str, Method] = {
        "noisy": lambda noisy: noisy,
        "model": lambda noisy: denoise(noisy, model, ensemble=ensemble, **scaled),
        "one-step": lambda noisy: denoise(noisy, model, ensemble=ensemble, passes=1, **scaled),
        "blended": lambda noisy: denoise(noisy, model, ensemble=ensemble, join=False, passes=1, **scaled),
        "blended-again": lambda noisy: denoise(noisy, model, ensemble=ensemble, join=False, passes=2, **scaled),
        "estimate": lambda noisy: denoise(noisy, estimate, join=False, **scaled),
        "estimate-all": all_bands,
    }
    if names is None or set(names) - set(found):
        try:
            table = importlib.import_module("hsidenoise.baselines").BASELINES
        except ImportError as error:
            if names is not None:
                sys.exit(f"measure_remote_sensing: no baselines: {error}")
            print(f"measure_remote_sensing: without baselines: {error}", file=sys.stderr)
        else:
            found |= {name: baseline.function for name, baseline in table.items()}
    if unknown := set(names or []) - set(found):
        sys.exit(f"measure_remote_sensing: no method {', '.join(sorted(unknown))}; there are {', '.join(found)}")
    return {name: found[name] for name in names or found}


def table(rows: list[list[str | float]], cases: list[str]) -> str:
    """Markdown: a line for each method, a column for each case, and the seconds for one cube."""
    lines = [f"| | {' | '.join(cases)} | seconds |", "|---" * (len(cases) + 2) + "|"]
    best = {case: max(float(row[3]) for row in rows if row[1] == case) for case in cases}
    for name in dict.fromkeys(row[2] for row in rows):
        cells = []
        of_method = {row[1]: row for row in rows if row[2] == name}
        for case in cases:
            psnr, ssim, sam = (float(value) for value in of_method[case][3:6])
            cell = f"**{psnr:.2f}**" if psnr == best[case] else f"{psnr:.2f}"
            cells.append(f"{cell} / {ssim:.3f} / {sam:.3f}")
        seconds = np.median([float(row[6]) for row in of_method.values()])
        lines.append(f"| {name} | {' | '.join(cells)} | {seconds:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cubes", type=Path, nargs="+", help="clean .mat cubes")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help=f"of {', '.join(OURS)} and the baselines; all")
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--weights", default=None, help="name or file (default: the shipped default)")
    parser.add_argument("--ensemble", type=int, choices=(1, 2, 4, 8), default=1, help="mirrored passes to average")
    parser.add_argument("--crop", type=int, default=None, help="side of the centre crop (default: the whole cube)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--protocol", default="standard")
    parser.add_argument("--csv", type=Path, default=None, help="write every score to this file")
    options = parser.parse_args()

    chosen = methods(options.methods, options.weights, options.ensemble)
    rows: list[list[str | float]] = []
    for path in options.cubes:
        clean = clean_scene(path, options.crop)
        for case in options.cases:
            noisy = corrupt(clean, case, seed=options.seed).noisy
            for name, method in chosen.items():
                start = time.perf_counter()
                denoised = method(noisy)
                seconds = time.perf_counter() - start
                scores = evaluate(denoised, clean, protocol=options.protocol)
                rows.append([path.stem, case, name, *(getattr(scores, metric) for metric in METRICS), seconds])
                print(f"{path.stem} {case:<12} {name:<14} {scores.psnr:6.2f} dB {seconds:7.1f} s", file=sys.stderr)
        bands, height, width = clean.shape
        print(f"\n{path.stem}, {bands} bands, {height} x {width}\n")
        print(table([row for row in rows if row[0] == path.stem], options.cases), flush=True)
    if options.csv is not None:
        options.csv.parent.mkdir(parents=True, exist_ok=True)
        with options.csv.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["cube", "case", "method", *METRICS, "seconds"])
            writer.writerows(rows)


if __name__ == "__main__":
    main()
