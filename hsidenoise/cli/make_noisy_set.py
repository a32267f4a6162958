"""Write a noisy set in the published layout.

TARGET gets a folder for each noise case, such as cave_512_30 or cave_512_noniid, with a file for each scene, equal to
what `corrupt` writes. Started again after an interruption, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys

from hsidenoise.cli.shared import add_options, options_of, path
from hsidenoise.data.options import NoisySetOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the verb takes."""
    parser.add_argument(
        "source", type=path, metavar="SOURCE", help="folder of clean cubes (files of any format, or folders of PNG)"
    )
    parser.add_argument("target", type=path, metavar="TARGET", help="folder to write to; made if missing")
    add_options(parser, NoisySetOptions)


def run(arguments: argparse.Namespace) -> None:
    """Write a noisy set in the published layout from a folder of clean cubes."""
    from hsidenoise.data.noisy_set_maker import make_noisy_set

    options = options_of(NoisySetOptions, arguments)
    progress = sys.stderr is not None and sys.stderr.isatty()
    for folder in make_noisy_set(arguments.source, arguments.target, options, progress=progress):
        count = folder.written + folder.kept
        kept = f", {folder.kept} of them there already" if folder.kept else ""
        print(f"{folder.path}: {folder.case}, seed {options.seed}, {count} scene{'s' * (count != 1)}{kept}")
