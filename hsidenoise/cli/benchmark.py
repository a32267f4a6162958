"""The verb `benchmark` of the command line; `cli_options` has its options."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path


def tables(options: argparse.Namespace) -> None:
    """Make the tables of a configuration, with their figures.

    Args:
        options: ``config``, ``root``, ``methods``, ``cases``, ``protocols``, ``seed``, ``out``, ``workers``,
            ``device``, ``allow_leaks``, ``fresh`` and ``no_code`` as on the command line.

    Raises:
        ValueError: If the configuration is wrong, weights were trained on a scene under
            test, or a method fails.
        OSError: If a file cannot be read or written.
    """
    from hsidenoise.benchmark.config import read_config, refuse_code, with_choice
    from hsidenoise.benchmark.make import make_tables

    config = with_choice(
        read_config(options.config),
        root=options.root,
        methods=options.methods,
        cases=options.cases,
        protocols=options.protocols,
        seed=options.seed,
    )
    if options.no_code:
        refuse_code(config)
    elif str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # where a person's own package.module:function lies
    written = make_tables(
        config,
        Path(options.out) / config.name,
        workers=options.workers,
        device=options.device,
        allow_leaks=options.allow_leaks,
        fresh=options.fresh,
        command=shlex.join(["hsidenoise", *options.arguments]),
    )
    for path in written:
        print(f"wrote    {path}")
