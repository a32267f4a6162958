"""Measure weights on clean scenes: noise by `corrupt`, `denoise` as a user gets it, `evaluate`; a Markdown table.

    python scripts/measure_quality.py ../shared/cave/test --crop 256 --csv results/cave_test_256.csv

Each scene is cropped at its centre and min-max scaled to [0, 1], then corrupted, denoised and scored as the commands
of the same names do. The table holds the mean over the scenes; the CSV file every single one. Below it the parameters
and the median of the seconds that one `denoise` takes.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from pathlib import Path

import numpy as np
import torch

from hsidenoise import corrupt, denoise, evaluate, load_model, read_cube
from hsidenoise.data.datasets import centre_crop
from hsidenoise.models.spectral_wiener import spectral_wiener

GAUSSIAN = ["gaussian-0", "gaussian-5", "gaussian-10", "gaussian-30", "gaussian-50", "gaussian-70", "blind"]
CASES = [*GAUSSIAN, "non-iid", "stripe", "deadline", "impulse", "mixture"]
METRICS = ("psnr", "ssim", "sam")


class EstimateAlone(torch.nn.Module):
    """The spectral Wiener estimate that HCANet-BRA starts from, with nothing added."""

    bands = 31
    mirrors_bands = True

    def forward(self, noisy: torch.Tensor) -> torch.Tensor:
        """Robust estimate of the clean cubes."""
        return spectral_wiener(noisy).robust


def clean_scene(path: Path, crop: int | None) -> np.ndarray:
    """Centre crop of a scene, min-max scaled over the crop, as `hsidenoise corrupt --crop` does it."""
    cube = read_cube(path).values
    if crop is not None:
        cube = centre_crop(cube, crop)
    low, high = cube.min(), cube.max()
    return (cube - low) / (high - low)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="folder of clean .mat cubes")
    parser.add_argument("--weights", default=None, help="name or file (default: the shipped default)")
    parser.add_argument("--estimate-alone", action="store_true", help="no network: the spectral Wiener estimate")
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--crop", type=int, default=None, help="side of the centre crop (default: the whole scene)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tile", type=int, default=None)
    parser.add_argument("--precision", choices=("float32", "bfloat16", "auto"), default="float32")
    parser.add_argument("--ensemble", type=int, choices=(1, 2, 4, 8), default=1, help="mirrored passes to average")
    parser.add_argument("--passes", type=int, default=None, help="1: the network alone (default: what it asks for)")
    parser.add_argument("--compile", action="store_true", help="compile the network first")
    parser.add_argument("--protocol", default="standard")
    parser.add_argument("--csv", type=Path, default=None, help="write every score to this file")
    options = parser.parse_args()

    scenes = sorted(options.folder.glob("*.mat"))
    if not scenes:
        sys.exit(f"measure_quality: no .mat files in {options.folder}")
    model: torch.nn.Module = load_model(options.weights) if options.weights else load_model()
    if options.estimate_alone:
        model = EstimateAlone()
    rows, seconds = [], []
    for path in scenes:
        clean = clean_scene(path, options.crop)
        for case in options.cases:
            noisy = corrupt(clean, case, seed=options.seed).noisy
            start = time.perf_counter()
            denoised = denoise(
                noisy,
                model,
                normalize="none",  # the clean scene is on [0, 1]
                tile=options.tile,
                precision=options.precision,
                ensemble=options.ensemble,
                passes=options.passes,
                compile=options.compile,
            )
            seconds.append(time.perf_counter() - start)
            for method, cube in (("noisy", noisy), ("denoised", denoised)):
                scores = evaluate(cube, clean, protocol=options.protocol)
                rows.append([path.stem, case, method, *(getattr(scores, name) for name in METRICS)])
            print(
                f"{path.stem:<28} {case:<12} {rows[-2][3]:6.2f} -> {rows[-1][3]:6.2f} dB", file=sys.stderr, flush=True
            )
    if options.csv is not None:
        options.csv.parent.mkdir(parents=True, exist_ok=True)
        with options.csv.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["scene", "case", "cube", *METRICS])
            writer.writerows(rows)

    print(f"| noise | noisy | denoised | least gain |\n|{'---|' * 4}")
    for case in options.cases:
        of_case = {method: [row for row in rows if row[1:3] == [case, method]] for method in ("noisy", "denoised")}
        cells = []
        for method in ("noisy", "denoised"):
            psnr, ssim, sam = np.mean([row[3:] for row in of_case[method]], axis=0)
            cells.append(f"{psnr:.2f} / {ssim:.3f} / {sam:.3f}")
        gains = [after[3] - before[3] for before, after in zip(of_case["noisy"], of_case["denoised"], strict=True)]
        gain = f"{min(gains):+.2f} dB" if np.isfinite(gains).all() else "(noisy is clean)"
        print(f"| {case} | {cells[0]} | {cells[1]} | {gain} |")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"\n{parameters:,} parameters; {np.median(seconds):.2f} s for each cube (median of {len(seconds)}, "
        f"{torch.get_num_threads()} threads), precision {options.precision}, ensemble {options.ensemble}"
        + ", compiled"
        * options.compile
    )


if __name__ == "__main__":
    main()
