"""Say what a file holds and how it would be read."""

from __future__ import annotations

import argparse
import json
from typing import Any

from hsidenoise.cli.shared import add_json, add_options, options_of, path
from hsidenoise.data.options import ReadOptions

_NO_NOISE = "not estimated: that takes 2 x 2 pixels with data, and a band that is not constant"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the verb takes."""
    parser.add_argument("cube", type=path, help="file of a cube or folder of PNG")
    add_options(parser, ReadOptions)
    add_json(parser)
    parser.add_argument("--plot", type=path, metavar="FILE.png", help="also draw the noise of each band")


def run(arguments: argparse.Namespace) -> None:
    """Say what a file holds and how it would be read."""
    from hsidenoise.data.facts import describe
    from hsidenoise.data.io import read_cube
    from hsidenoise.data.sources import list_variables, locate
    from hsidenoise.signal.scaling import told_apart

    reading = options_of(ReadOptions, arguments)
    if arguments.plot:
        from hsidenoise.figures.cubes import check_picture

        check_picture(arguments.plot, locate(arguments.cube)[0])
    variables = list_variables(locate(arguments.cube)[0], allow_external=reading.allow_external)
    facts, problem = None, None
    try:
        cube = read_cube(arguments.cube, **reading.by_name())
        facts = describe(cube)
    except ValueError as error:
        # The list of variables is the answer to most problems of reading, so it is shown all the same.
        if reading.key or reading.axes or reading.size or arguments.plot:
            raise
        problem = " ".join(str(error).split())
    if arguments.plot and facts is not None:
        from hsidenoise.figures.cubes import plot_noise

        if facts["noise"] is None:
            raise ValueError(f"{arguments.cube}: {_NO_NOISE}; leave out --plot")
        plot_noise(facts["noise"]["per_band"], facts["noise"]["snr_db"], cube.wavelengths, arguments.plot)
    types = ["" if item.dtype is None else str(item.dtype) for item in variables]
    if arguments.json:
        rows = [
            {"name": item.name, "shape": item.shape, "dtype": dtype or None, "note": item.note}
            for item, dtype in zip(variables, types, strict=True)
        ]
        found = {"file": str(arguments.cube), "variables": rows, "cube": facts, "problem": problem}
        print(json.dumps(found, indent=2, allow_nan=False))
        return
    print(f"{arguments.cube}: {len(variables)} variable{'s' * (len(variables) != 1)}")
    for item, dtype in zip(variables, types, strict=True):
        shape = " x ".join(str(size) for size in item.shape)
        print(f"  {item.label:<24} {shape:<20} {dtype:<10} {item.note}".rstrip())
    if facts is None:
        print(f"no cube chosen: {problem}")
        return
    low, high = facts["range"]
    first, last = facts["wavelengths"] or (None, None)
    print(f"cube         {facts['variable']}, {facts['bands']} bands, height {facts['height']}, width {facts['width']}")
    print(f"axes         {facts['axes']}: {facts['reason']}")
    print(f"range        {' to '.join(told_apart(low, high, 6))}")
    for found in facts["not_data"]:
        print(f"no data      {found}")
    print("wavelengths  " + ("not in the file" if first is None else f"{first:g} to {last:g} nm"))
    level, bad = facts["noise"], facts["bad_bands"]
    if level is None:
        print(f"noise        {_NO_NOISE}")
        return
    print(
        f"noise        estimated, median over the bands {level['median']:.4g} ({level['median_share']:.2%} of the "
        f"range); worst band {level['worst_band']} (0-based) {level['worst']:.4g}"
    )
    _print_bands(level)
    if arguments.plot:
        print(f"plot         {arguments.plot}")
    print("bad bands    " + (", ".join(str(band) for band in bad) + " (0-based)" if bad else "none found"))


def _print_bands(noise: dict[str, Any]) -> None:
    """A line for each band, the noisiest first by its signal-to-noise ratio."""
    height, width = noise["size"]
    print(f"bands        by signal-to-noise ratio, the worst first; of the {height} x {width} pixels in the middle")
    print("   band      sigma   SNR dB  impulses  dead columns/rows  stripes along columns/rows")
    for band in noise["ranked"]:
        sigma, snr, impulses = (noise[name][band] for name in ("per_band", "snr_db", "impulses"))
        shown = "      -" if sigma is None else f"{sigma:10.4g}"
        ratio = "       -" if snr is None else f"{snr:8.1f}"
        print(
            f"  {band:5d} {shown:>10} {ratio} {impulses:8.2%} {noise['dead_columns'][band]:>10d} / "
            f"{noise['dead_rows'][band]:<6d} {noise['stripes_columns'][band]:>10d} / {noise['stripes_rows'][band]:d}"
        )
