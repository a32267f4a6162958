"""The command line: one thin verb per job.

Nothing heavy is imported before a verb runs, so that ``--help`` answers at once. What the user can mend (ValueError,
OSError, ImportError, too little memory) becomes one line on stderr and exit status 2; any other exception is a bug and
keeps its traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import TextIO

from hsidenoise.cli.options import make_parser


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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a console without the letters of a name shows their codes
    with _plain_warnings():
        try:
            status = _run(arguments)
            if sys.stdout is not None:  # None: closed by the caller (`>&-`)
                sys.stdout.flush()
            return status
        except BrokenPipeError:
            _print_no_more()
            return 141
        except KeyboardInterrupt:
            _complain("interrupted; nothing half-written was left behind")
            return 130
        except (ValueError, OSError, ImportError) as error:
            _complain(f"error: {_one_line(error)}")
            return 2
        except (MemoryError, RuntimeError) as error:
            from hsidenoise.system.device import is_out_of_memory

            if not is_out_of_memory(error):
                raise
            print(
                f"hsidenoise: error: not enough memory ({_one_line(error)}): close other programs, allow this one "
                "more, or take a smaller cube",
                file=sys.stderr,
            )
            return 2


def _run(arguments: list[str]) -> int:
    try:
        if arguments[:1] == ["train"]:
            from hsidenoise.training.run import main as train

            train(arguments[1:])
        else:
            options = make_parser().parse_args(arguments, argparse.Namespace(arguments=arguments))
            with _printed_at_the_end(needed=options.answers):
                getattr(importlib.import_module(options.module), options.verb)(options)
    except SystemExit as stop:  # argparse: 0 after --help, 2 after a wrong argument
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


@contextlib.contextmanager
def _printed_at_the_end(*, needed: bool) -> Iterator[None]:
    """Keep what a verb prints until its job is done: a console that fails must not end it half-way.

    Args:
        needed: Whether the print is the job. If not, a job whose report cannot be printed is done all the same.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            yield
    except BaseException:
        with contextlib.suppress(OSError):
            print(said.getvalue(), end="", flush=True)
        raise
    try:
        print(said.getvalue(), end="", flush=True)
    except OSError as error:
        _print_no_more()
        if needed:
            raise
        if not isinstance(error, BrokenPipeError):
            _complain(f"warning: done, but the report could not be printed ({error.strerror})")


def _print_no_more() -> None:
    """The reader (`| head`) has gone. Python would complain once more when it flushes stdout at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(f"hsidenoise: {text}", file=sys.stderr)


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
        _complain(f"warning: {' '.join(str(message).split())}")

    before = warnings.showwarning
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


if __name__ == "__main__":
    raise SystemExit(main())
