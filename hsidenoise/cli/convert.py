"""Write a cube in another format.

The format follows the name: .mat, .hdr/.img/.dat/.bsq/.bil/.bip (ENVI), .npy, .npz, .tif, .h5, .nc, .zarr. Not a digit
of a value changes; wavelengths and metadata come along as far as the format has a place for them, and what it has none
for is said.
"""

from __future__ import annotations

import argparse

from hsidenoise.cli.shared import add_options, options_of, path, print_read
from hsidenoise.data.options import ReadOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the verb takes."""
    parser.add_argument("source", type=path, metavar="SOURCE", help="file to read, or folder of PNG")
    parser.add_argument("target", type=path, metavar="TARGET", help="file to write, named for its format")
    add_options(parser.add_argument_group("reading"), ReadOptions, without=("mask", "bad_bands"))


def run(arguments: argparse.Namespace) -> None:
    """Write a cube in another format."""
    from hsidenoise.data.io import convert

    cube = convert(arguments.source, arguments.target, reading=options_of(ReadOptions, arguments))
    print_read(arguments.source, cube)
    print(f"wrote    {arguments.target}")
