"""Denoise a cube.

The output has the same variable name, axis order and dtype, and every other variable of the file.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsidenoise.cli.shared import add_json, add_options, number, options_of, path, print_read, say_now
from hsidenoise.data.options import ReadOptions
from hsidenoise.inference.options import DenoiseOptions

if TYPE_CHECKING:
    from hsidenoise.classical.methods import Baseline
    from hsidenoise.data.io import Cube
    from hsidenoise.signal.scaling import Scaling


class _Stop(Exception):  # noqa: N818 - nothing went wrong
    """A dry run ends here."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the verb takes."""
    parser.add_argument("noisy", type=path, help="file of a cube (see `hsidenoise convert`), or folder of PNG")
    parser.add_argument(
        "-o",
        "--output",
        type=path,
        metavar="FILE",
        help="output, in the format of its name; <noisy>_denoised beside the input, in its format, if absent",
    )
    add_options(parser, DenoiseOptions, without=("progress",))
    parser.add_argument(
        "--method",
        metavar="NAME",
        help="a classical method in place of a network, without weights, such as planes; `hsidenoise benchmark` knows "
        "the same names",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be read and done, and stop: nothing is written"
    )
    add_json(parser)
    parser.add_argument(
        "--save-noise",
        type=path,
        metavar="FILE.mat",
        help="also write the noise level of each band, as --noise reads it",
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
    import numpy as np

    from hsidenoise.data.facts import variable_of
    from hsidenoise.data.io import check_arrays_target, write_arrays
    from hsidenoise.data.sources import check_other, locate
    from hsidenoise.system.files import check_source

    source, key = locate(arguments.noisy, arguments.key)
    target = arguments.output or _beside(source)
    options = options_of(DenoiseOptions, arguments, progress=sys.stderr is not None and sys.stderr.isatty())
    reading = replace(options_of(ReadOptions, arguments), key=key)
    check_source(source)  # first: where the output is wrong too, the input is what is meant
    if arguments.save_noise:
        check_arrays_target(arguments.save_noise)
        check_other(source, arguments.save_noise, read=(reading.mask, options.noise))
        if arguments.save_noise.resolve() == target.resolve():
            raise ValueError(f"{target}: is the denoised cube already; name another file for the noise level")
    _check_picture(arguments.picture, arguments.band, source, target, reading)

    from hsidenoise.inference.denoise import denoise_file
    from hsidenoise.inference.network import name_of

    model = None if arguments.method is None else _method(arguments.method, options)

    def announce(cube: Cube, scaling: Scaling) -> None:
        if not arguments.json:
            print_read(source, cube)
            print(f"scaling  {scaling.mode}: {scaling.reason}")
            summary = "" if model is None else f": {model.summary}"
            print(f"method   {name_of(options.weights if model is None else model)}{summary}")
        if arguments.dry_run:
            plan = {
                "dry_run": True,
                "input": str(source),
                "output": str(target),
                "variable": variable_of(cube),
                "bands": cube.values.shape[0],
                "height": cube.values.shape[1],
                "width": cube.values.shape[2],
                "axes": None if cube.layout is None else cube.layout.reason,
                "not_data": cube.not_data,
                "scaling": scaling.reason,
                "method": name_of(options.weights if model is None else model),
            }
            print(json.dumps(plan, indent=2) if arguments.json else "dry run  nothing was computed or written")
            raise _Stop
        say_now()

    try:
        done = denoise_file(source, target, model, options=options, reading=reading, announce=announce)
    except _Stop:
        return
    report = done.record
    if arguments.save_noise:
        if not report["residual"]:
            raise ValueError(
                f"{target} was written, but not {arguments.save_noise}: nothing can be said of the noise of {source}"
            )
        levels = report["residual"]["noise_before"]["per_band"]
        write_arrays(arguments.save_noise, {"noise": np.array(levels, np.float64)})
    if arguments.json:
        print(json.dumps(report, indent=2))
        return
    if model is not None:
        print(f"done     {done.seconds:.1f} s")
    tiles = f"tiles of {done.tile[0]} x {done.tile[1]}, overlap {done.overlap}"
    windows = f", {done.windows} windows of bands" if done.windows > 1 else ""
    if options.ensemble > 1:
        windows += f", ensemble of {options.ensemble}"
    if done.pilot_rounds:
        windows += f", pilot filter{f' x {done.pilot_rounds}' * (done.pilot_rounds > 1)}"
    if model is None:
        print(f"network  {done.model} on {done.device}, {tiles}{windows}, {done.seconds:.1f} s")
    if (replaced := report["replaced"]) is not None:
        where = f" in {len(replaced['bands'])} of {len(done.cube.values)} bands, {replaced['share']:.2g} of all"
        kinds = "impulses, outliers, stuck pixels, dead lines"
        print(f"replaced {replaced['values']} values{where * bool(replaced['values'])} ({kinds})")
    _print_quality(report["residual"])
    print(f"wrote    {target}")
    if done.recorded == target:
        print("record   in it: versions, weights, options, noise before and after; of each band with --json")
    elif done.recorded:
        print(f"record   {done.recorded}: versions, weights, options, noise of each band before and after")
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
            mask=done.cube.mask,
        )
        print(f"picture  {arguments.picture}")


def _print_quality(found: dict[str, Any]) -> None:
    """What can be said of the result without a clean cube."""
    if not found:
        return
    before, after = found["noise_before"], found["noise_after"]
    left = "too little to be told from the detail of the scene" if after["median"] is None else f"{after['median']:.3g}"
    print(f"noise    {before['median']:.3g} before (median of bands); left of it, from pixel to pixel: {left}")
    print("         not the error: smooth noise that is left, and what the scene has lost, are not in it")
    print(
        f"residual largest autocorrelation {found['whiteness_most']:.2f}, largest correlation with the image "
        f"{found['eaten_most']:.2f}; about 0 if it is nothing but noise"
    )
    contrast = found["contrast"]
    print(
        f"contrast of a weak absorption (1 % deep): {contrast['before_ridge']:.3g} standard deviations before, "
        f"{contrast['after_ridge']:.3g} after; the more, the easier it is found"
    )


def _method(name: str, options: DenoiseOptions) -> Baseline:
    """A classical method by its name; options that only a network has are refused."""
    from hsidenoise.classical.methods import BASELINES
    from hsidenoise.system.options import did_you_mean

    if name not in BASELINES:
        raise ValueError(f"--method {name}: not a method{did_you_mean(name, BASELINES)} ({', '.join(BASELINES)})")
    usual = replace(
        DenoiseOptions(),
        normalize=options.normalize,
        strength=options.strength,
        noise=options.noise,
        progress=options.progress,
    )
    if options != usual:
        raise ValueError(
            f"--method {name} has no weights, tiles or pilot filter: of their options it takes only --normalize, "
            "--strength and --noise"
        )
    return BASELINES[name]


def _beside(source: Path) -> Path:
    """Where the denoised cube goes if the user names no file."""
    whole = source if source.name not in ("", "..") else source.resolve()
    if whole.is_dir() and whole.suffix != ".zarr":
        return whole.with_name(f"{whole.name}_denoised.mat")
    return whole.with_name(f"{whole.stem}_denoised{whole.suffix}")


def _check_picture(picture: Path | None, band: int | None, source: Path, target: Path, reading: ReadOptions) -> None:
    """Refuse before computing what would fail after it."""
    from hsidenoise.data.io import read_cube
    from hsidenoise.figures.cubes import check_picture

    if picture:
        check_picture(picture, source, target)
    if band is not None:
        if not picture:
            raise ValueError("--band chooses the band of the picture; name one with --picture, or leave --band out")
        bands = len(read_cube(source, **reading.by_name()).values)
        if band >= bands:
            raise ValueError(f"--band {band}: {source} has bands 0 to {bands - 1}")
