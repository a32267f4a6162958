"""Make the table of a paper.

Methods x noise cases x scenes, as Markdown, CSV and LaTeX with figures. Finished cells are kept below --out, so that a
run that was stopped goes on. A method package.module:function is code that is run: run only tables that you trust, or
with --no-code.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from hsidenoise.benchmark.options import TableOptions
from hsidenoise.cli.shared import add_options, options_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the verb takes."""
    add_options(parser, TableOptions)


def run(arguments: argparse.Namespace) -> None:
    """Make the tables of a configuration, with their figures."""
    from hsidenoise.benchmark.config import read_config, refuse_code, with_choice
    from hsidenoise.benchmark.make import make_tables

    options = options_of(TableOptions, arguments)
    config = with_choice(read_config(options.config), options)
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
        command=shlex.join(["hsidenoise", *arguments.given]),
    )
    for path in written:
        print(f"wrote    {path}")
