"""The benchmarks of the command line: what each measures and where it writes. `cli` parses their options."""

from __future__ import annotations

import argparse
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path


def speed(options: argparse.Namespace) -> None:
    """Measure the released formulations against ours; write speed.csv and speed.md.

    Args:
        options: ``networks``, ``sizes``, ``variants``, ``jobs``, ``batch``, ``threads``, ``device``, ``rounds``,
            ``seconds``, ``limit`` as in ``hsidenoise.benchmark_speed``, ``out`` the folder, and ``arguments`` the
            command line as given.

    Raises:
        ValueError: If a name is unknown or a number too small.
        OSError: If the folder cannot be written to.
    """
    from hsidenoise.benchmark_speed import JOBS, plan, run
    from hsidenoise.device import find_device
    from hsidenoise.files import check_target, commit, write_text
    from hsidenoise.speed_table import bars, to_csv, to_markdown

    find_device(options.device)  # refused before anything is measured
    groups = plan(options.networks, options.sizes, options.variants, options.jobs or JOBS, options.batch)
    if not groups:
        raise ValueError("nothing to measure: these networks have none of these variants in these jobs")
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    check_target(folder / "speed.csv")
    done = run(
        groups,
        threads=options.threads,
        device=options.device,
        rounds=options.rounds,
        seconds=options.seconds,
        limit=options.limit,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    page = to_markdown(
        done,
        command=shlex.join(["hsidenoise", *options.arguments]),
        commit=commit(),
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
    )
    write_text(folder / "speed.csv", to_csv(done.rows))
    write_text(folder / "speed.md", page)
    for line in bars(done.rows):
        print(line)
    print(f"wrote    {folder / 'speed.csv'} and {folder / 'speed.md'}")


def tables(options: argparse.Namespace) -> None:
    """Make the tables of a configuration, with their figures.

    Args:
        options: ``config``, ``root``, ``methods``, ``cases``, ``protocols``, ``seed``, ``out``, ``workers``,
            ``device``, ``allow_leaks`` and ``fresh`` as on the command line.

    Raises:
        ValueError: If nothing is to be measured, the configuration is wrong, weights were trained on a scene under
            test, or a method fails.
        OSError: If a file cannot be read or written.
    """
    if options.config is None:
        raise ValueError("what is to be measured? name a table by --config configs/tables/NAME.yaml, or `speed`")
    from hsidenoise.benchmark_tables import make_tables
    from hsidenoise.table_config import read_config, with_choice

    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # where a person's own package.module:function lies
    config = with_choice(
        read_config(options.config),
        root=options.root,
        methods=options.methods,
        cases=options.cases,
        protocols=options.protocols,
        seed=options.seed,
    )
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
