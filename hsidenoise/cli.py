"""The command line: one thin verb per job.

Nothing heavy is imported before a verb runs, so that ``--help`` answers at once. What the user can mend (ValueError,
OSError, ImportError) becomes one line on stderr and exit status 2; any other exception is a bug and keeps its
traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import TextIO

from hsidenoise.cli_options import make_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; those of the process if absent.

    Returns:
        Exit status: 0 done, 2 something the user can mend, 130 interrupted.

    Example:
        >>> main(["corrupt", "--list"])  # doctest: +ELLIPSIS
        gaussian-30 ...
        0
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with _plain_warnings():
        try:
            status = _run(arguments)
            if sys.stdout is not None:  # None: closed by the caller (`>&-`)
                sys.stdout.flush()
            return status
        except BrokenPipeError:
            # The reader (`| head`) has gone. Python would complain once more when it flushes stdout at exit.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except KeyboardInterrupt:
            print("hsidenoise: interrupted; nothing half-written was left behind", file=sys.stderr)
            return 130
        except (ValueError, OSError, ImportError) as error:
            print(f"hsidenoise: error: {_one_line(error)}", file=sys.stderr)
            return 2


def _run(arguments: list[str]) -> int:
    try:
        if arguments[:1] == ["train"]:
            from hsidenoise.training import main as train

            train(arguments[1:])
        else:
            options = make_parser().parse_args(arguments, argparse.Namespace(arguments=arguments))
            getattr(importlib.import_module(options.module), options.verb)(options)
    except SystemExit as stop:  # argparse: 0 after --help, 2 after a wrong argument
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show warnings as one line, without the path and source line of this package's code."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        print(f"hsidenoise: warning: {' '.join(str(message).split())}", file=sys.stderr)

    before = warnings.showwarning
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


if __name__ == "__main__":
    raise SystemExit(main())
