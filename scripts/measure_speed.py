"""Measure what one denoising costs on this machine: seconds (median of some runs) and peak memory of the process.

python scripts/measure_speed.py --size 512 --threads 2
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import time

import numpy as np
import torch

from hsidenoise import corrupt, denoise, load_model
from hsidenoise.onnx_network import OnnxNetwork
from hsidenoise.shipped_weights import DEFAULT_WEIGHTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--bands", type=int, default=31)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--tile", type=int, default=None)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16", "auto"])
    parser.add_argument("--batch", type=int, default=None, help="tiles at a time (default: by the device)")
    parser.add_argument("--compile", action="store_true", help="compile the network first (counts in the first run)")
    parser.add_argument("--weights", default=None, help="name, weights file or .onnx (default: the shipped default)")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    exported = options.weights is not None and options.weights.endswith(".onnx")
    model = OnnxNetwork(options.weights) if exported else load_model(options.weights or DEFAULT_WEIGHTS)
    ramp = np.linspace(0, 1, options.size, dtype=np.float32)
    scene = (
        ramp[None, :, None] * ramp[None, None, :] * np.linspace(0.2, 1, options.bands, dtype=np.float32)[:, None, None]
    )
    noisy = corrupt(scene, "gaussian-50").noisy
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(options.runs):
        start = time.perf_counter()
        denoise(
            noisy,
            model,
            normalize="none",
            tile=options.tile,
            batch=options.batch,
            precision=options.precision,
            compile=options.compile,
        )
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{options.size} x {options.size} x {options.bands}, {options.precision}, {options.threads} threads, "
        f"torch {torch.__version__}, {platform.machine()}: {statistics.median(seconds):.1f} s "
        f"({min(seconds):.1f} to {max(seconds):.1f}), peak {peak / 2**20:.2f} GiB "
        f"({before / 2**20:.2f} GiB before the first run)"
    )


if __name__ == "__main__":
    main()
