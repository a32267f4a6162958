"""Add synthetic noise to a clean cube.

Writes `input`, `gt` and `sigma` as the published ICVL noisy sets do: the clean cube scaled to [0, 1] by its own minimum
and maximum, the noise not clipped.
"""

from __future__ import annotations

import argparse

from hsidenoise.cli.shared import add_options, options_of, path, print_read
from hsidenoise.data.options import CorruptOptions, ReadOptions


class _ListNoise(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        from hsidenoise.noise.cases import NOISE_CASES

        for case in NOISE_CASES.values():
            print(f"{case.name:<18} {case.definition}  [{case.source}]")
        print(f"{'gaussian-<sigma>':<18} the same sigma on every band, 0-255 scale")
        print(f"{'gaussian-<a>-<b>':<18} one sigma per cube, uniform in [a, b]")
        parser.exit(0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the verb takes."""
    parser.add_argument("clean", type=path, help="file of a cube or folder of PNG")
    parser.add_argument("noisy", type=path, help=".mat file to write")
    add_options(parser, CorruptOptions)
    parser.add_argument("--list", action=_ListNoise, nargs=0, help="list the noise cases with their sources and stop")
    add_options(parser.add_argument_group("reading"), ReadOptions)


def run(arguments: argparse.Namespace) -> None:
    """Write a noisy cube, its clean one and the noise level."""
    from hsidenoise.data.noisy_set_maker import corrupt_file
    from hsidenoise.data.noisy_sets import CLEAN_KEY, NOISY_KEY, SIGMA_KEY
    from hsidenoise.signal.scaling import told_apart

    options = options_of(CorruptOptions, arguments)
    done = corrupt_file(arguments.clean, arguments.noisy, options, reading=options_of(ReadOptions, arguments))
    print_read(arguments.clean, done.cube)
    if options.crop is not None:
        print(f"crop     centre {options.crop} x {options.crop}")
    if options.minmax:
        low, high = done.value_range
        print(f"scaling  ({' .. '.join(told_apart(low, high, 6))}) to (0 .. 1), one scale for the whole cube")
    least, most = done.sigma_range
    print(f"noise    {done.case.name}, seed {options.seed}: {done.case.definition}; sigma {least:g} to {most:g} of 255")
    for kind, bands in done.result.affected.items():
        if len(bands):
            print(f"         {kind} on {len(bands)} bands: {', '.join(str(band) for band in bands)} (0-based)")
    print(f"wrote    {arguments.noisy}: {NOISY_KEY}, {CLEAN_KEY} (height, width, bands), {SIGMA_KEY} (0-255 scale)")
