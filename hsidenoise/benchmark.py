"""The benchmarks of the command line: what each measures and where it writes. `cli` parses their options."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

UNKNOWN_COMMIT = "unknown"


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
    from hsidenoise.speed_table import bars, to_csv, to_markdown

    find_device(options.device)  # refused before anything is measured
    groups = plan(options.networks, options.sizes, options.variants, options.jobs or JOBS, options.batch)
    if not groups:
        raise ValueError("nothing to measure: these networks have none of these variants in these jobs")
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
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
    write_files(folder, {"speed.csv": to_csv(done.rows), "speed.md": page})
    for line in bars(done.rows):
        print(line)
    print(f"wrote    {folder / 'speed.csv'} and {folder / 'speed.md'}")


def commit(package: Path = Path(__file__).parent) -> str:
    """Commit that the code of this package is at, with ``-dirty`` if a tracked file differs from it.

    Args:
        package: Folder of the package, directly inside its repository.

    Returns:
        The short hash; ``unknown`` without git, or where the package does not lie in a repository of its own.

    Example:
        >>> commit(Path("/nowhere"))
        'unknown'
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != package.resolve().parent:
            return UNKNOWN_COMMIT  # installed somewhere inside a repository of something else
        dirty = "-dirty" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "--short", "HEAD") + dirty
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN_COMMIT


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write text files, each whole or not at all.

    Args:
        folder: An existing folder.
        files: Contents by name.

    Raises:
        OSError: If one cannot be written.

    Example:
        >>> with tempfile.TemporaryDirectory() as name:
        ...     write_files(Path(name), {"a.txt": "text"})
        ...     (Path(name) / "a.txt").read_text()
        'text'
    """
    for name, content in files.items():
        with tempfile.NamedTemporaryFile("w", dir=folder, prefix=f".{name}.", delete=False, encoding="utf-8") as file:
            temporary = Path(file.name)
            try:
                file.write(content)
                file.close()
                temporary.chmod(0o644)  # temporary files are their owner's alone
                temporary.replace(folder / name)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
