"""The verb of the command line that makes noisy sets. `cli` parses its options."""

import argparse
import sys


def make_noisy_set(options: argparse.Namespace) -> None:
    """Write a noisy set in the published layout from a folder of clean cubes."""
    from hsidenoise.data.noisy_set_maker import make_noisy_set

    folders = make_noisy_set(
        options.source,
        options.target,
        cases=options.cases,
        crop=options.crop or None,
        seed=options.seed,
        prefix=options.prefix,
        dataset=options.dataset,
        split=options.split,
        missing=options.missing,
        progress=sys.stderr is not None and sys.stderr.isatty(),
    )
    for folder in folders:
        count = folder.written + folder.kept
        kept = f", {folder.kept} of them there already" if folder.kept else ""
        print(f"{folder.path}: {folder.case}, seed {options.seed}, {count} scene{'s' * (count != 1)}{kept}")
