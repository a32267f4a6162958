"""Denoise a cube.

The output has the same variable name, axis order and dtype, and every other variable of the file.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hsidenoise.cli.shared import add_options, number, options_of, path, print_read
from hsidenoise.data.options import ReadOptions
from hsidenoise.inference.options import DenoiseOptions

if TYPE_CHECKING:
    from hsidenoise.classical.methods import Baseline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the verb takes."""
    parser.add_argument("noisy", type=path, help=".mat file (v5 or v7.3), or a folder of one PNG per band")
    parser.add_argument(
        "-o", "--output", type=path, metavar="FILE", help="output; <noisy>_denoised.mat beside the input if absent"
    )
    add_options(parser, DenoiseOptions, without=("progress",))
    parser.add_argument(
        "--method",
        metavar="NAME",
        help="a classical method in place of a network, without weights, such as planes; `hsidenoise benchmark` knows "
        "the same names",
    )
    parser.add_argument("--picture", type=path, metavar="FILE.png", help="also draw a before/after page")
    parser.add_argument(
        "--band",
        type=number(int, least=0),
        metavar="N",
        help="band shown on that picture, 0-based; the noisiest if absent",
    )
    add_options(parser.add_argument_group("reading"), ReadOptions)


def run(arguments: argparse.Namespace) -> None:
    """Denoise the cube of a file."""
    from hsidenoise.system.files import check_source

    source: Path = arguments.noisy
    target = arguments.output or _beside(source)
    options = options_of(DenoiseOptions, arguments, progress=sys.stderr is not None and sys.stderr.isatty())
    reading = options_of(ReadOptions, arguments)
    check_source(source)  # first: where the output is wrong too, the input is what is meant
    _check_picture(arguments.picture, arguments.band, source, target, reading)

    from hsidenoise.inference.denoise import denoise_file

    model = None if arguments.method is None else _method(arguments.method, options)
    done = denoise_file(source, target, model, options=options, reading=reading)
    print_read(source, done.cube)
    print(f"scaling  {done.scaling.mode}: {done.scaling.reason}")
    if model is not None:
        print(f"method   {done.model}: {model.summary}, {done.seconds:.1f} s")
    tiles = f"tiles of {done.tile[0]} x {done.tile[1]}, overlap {done.overlap}"
    windows = f", {done.windows} windows of bands" if done.windows > 1 else ""
    if options.ensemble > 1:
        windows += f", ensemble of {options.ensemble}"
    if done.pilot_rounds:
        windows += f", pilot filter{f' x {done.pilot_rounds}' * (done.pilot_rounds > 1)}"
    if model is None:
        print(f"network  {done.model} on {done.device}, {tiles}{windows}, {done.seconds:.1f} s")
    print(f"wrote    {target}")
    if arguments.picture:
        from hsidenoise.data.noisy_sets import clean_beside
        from hsidenoise.figures.cubes import before_after

        before_after(
            done.cube.values,
            done.denoised.values,
            clean_beside(source, done.cube),
            wavelengths=done.cube.wavelengths,
            band=arguments.band,
            path=arguments.picture,
        )
        print(f"picture  {arguments.picture}")


def _method(name: str, options: DenoiseOptions) -> Baseline:
    """A classical method by its name; options that only a network has are refused."""
    from hsidenoise.classical.methods import BASELINES
    from hsidenoise.system.options import did_you_mean

    if name not in BASELINES:
        raise ValueError(f"--method {name}: not a method{did_you_mean(name, BASELINES)} ({', '.join(BASELINES)})")
    usual = replace(DenoiseOptions(), normalize=options.normalize, progress=options.progress)
    if options != usual:
        raise ValueError(
            f"--method {name} has no weights, tiles or pilot filter: of their options it takes only --normalize"
        )
    return BASELINES[name]


def _beside(source: Path) -> Path:
    """Where the denoised cube goes if the user names no file."""
    whole = source if source.name not in ("", "..") else source.resolve()
    return whole.with_name(f"{whole.name if whole.is_dir() else whole.stem}_denoised.mat")


def _check_picture(picture: Path | None, band: int | None, source: Path, target: Path, reading: ReadOptions) -> None:
    """Refuse before computing what would fail after it."""
    from hsidenoise.data.io import read_cube
    from hsidenoise.system.files import check_target

    if picture:
        if picture.resolve() in (source.resolve(), target.resolve()):
            raise ValueError(f"{picture}: is a cube of this command and would be lost; name another picture")
        if picture.suffix.lower() not in (".png", ".pdf", ".svg"):
            raise ValueError(f"{picture}: name a picture .png, .pdf or .svg")
        check_target(picture)
    if band is not None:
        if not picture:
            raise ValueError("--band chooses the band of the picture; name one with --picture, or leave --band out")
        bands = len(read_cube(source, **reading.by_name()).values)
        if band >= bands:
            raise ValueError(f"--band {band}: {source} has bands 0 to {bands - 1}")
