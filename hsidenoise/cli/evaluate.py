"""Measure a denoised cube against the clean one.

Of files that `corrupt` wrote, `input` is read on the denoised and `gt` on the clean side. Clean values that are not
floats in [0, 1] are brought there by their range, and the denoised ones by the same scale.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math

from hsidenoise.cli.shared import add_json, add_options, options_of, path
from hsidenoise.data.options import EvaluateOptions, ReadOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the verb takes."""
    parser.add_argument(
        "denoised", type=path, help="file of a cube or folder of PNG; also a noisy cube, to know where it started"
    )
    parser.add_argument(
        "clean", type=path, help="file of a cube or folder of PNG; may be the same file, if that is of `corrupt`"
    )
    add_options(parser, EvaluateOptions)
    add_json(parser)
    add_options(parser.add_argument_group("reading of the denoised cube"), ReadOptions)
    add_options(
        parser.add_argument_group("reading of the clean cube"), ReadOptions, "clean-", without=("allow_external",)
    )


def run(arguments: argparse.Namespace) -> None:
    """Measure a denoised cube against the clean one."""
    from hsidenoise.data.facts import sizes_of, variable_of
    from hsidenoise.data.measure import evaluate_files
    from hsidenoise.metrics.protocols import PROTOCOLS
    from hsidenoise.signal.mask import spans

    reading = options_of(ReadOptions, arguments)
    done = evaluate_files(
        arguments.denoised,
        arguments.clean,
        options_of(EvaluateOptions, arguments),
        reading=reading,
        clean_reading=options_of(ReadOptions, arguments, "clean-", allow_external=reading.allow_external),
    )
    names = {
        "denoised": f"{arguments.denoised} ({variable_of(done.denoised)})",
        "clean": f"{arguments.clean} ({variable_of(done.clean)})",
    }
    scores = dataclasses.asdict(done.scores)
    if arguments.json:
        # JSON has no word for the infinite PSNR of identical cubes
        finite = {name: None if score in (math.inf, -math.inf) else score for name, score in scores.items()}
        facts = {key: value for key, value in vars(done).items() if key not in ("denoised", "clean", "scores")}
        print(json.dumps({**finite, **facts, **names}, indent=2, allow_nan=False))
        return
    protocol, away = PROTOCOLS[done.scores.protocol], done.bands_left_out
    print(f"denoised  {names['denoised']}, {sizes_of(done.denoised)}")
    print(f"clean     {names['clean']}")
    print(f"scaling   {done.scaling}")
    for reason in done.not_data:
        print(f"no data   {reason}")
    if done.pixels_scored < done.pixels or away:
        without = f", without band{'s' * (len(away) != 1)} {spans(away)}" if away else ""
        print(f"scored    {done.pixels_scored} of {done.pixels} pixels{without}")
    print(f"protocol  {protocol.name} ({protocol.source})")
    print(
        f"PSNR {scores['psnr']:.2f} dB   SSIM {scores['ssim']:.4f}   SAM {scores['sam']:.4f} {protocol.sam_unit}   "
        f"ERGAS {scores['ergas']:.3f}"
    )
