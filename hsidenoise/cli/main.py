"""The command line: one thin module per verb.

Nothing heavy is imported before a verb runs, so that ``--help`` answers at once. What the user can mend (ValueError,
OSError, ImportError, too little memory) becomes one line on stderr and exit status 2; any other exception is a bug and
keeps its traceback.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import TextIO

from hsidenoise import __version__
from hsidenoise.cli.shared import Parser
from hsidenoise.system.options import plain

VERBS = (
    "denoise", "inspect", "convert", "corrupt", "make-noisy-set", "evaluate", "benchmark", "train", "weights", "export",
)  # fmt: skip
"""The verbs; each is the module of its name (with ``_``), whose docstring is its help."""

_ANSWERS = ("inspect", "evaluate", "weights")  # what they print is their job
# PyTorch's threads wait for each other busily, for long: where other processes keep both of two cores, 200 bands of
# 80x80 pixels take 100 s, and 3 to 8 s with this. Alone they are hardly slower.
_SPINS = "2000"
_OLD = {"make-testset": "make-noisy-set"}


def make_parser() -> tuple[Parser, dict[str, Parser]]:
    """The parser of the whole command line, and that of each verb.

    Example:
        >>> make_parser()[0].parse_args(["weights"]).verb
        'weights'
    """
    parser = Parser(
        prog="hsidenoise",
        description="Denoise hyperspectral cubes, measure the result, train networks for it.",
        epilog="`hsidenoise VERB --help` says more about a verb.",
    )
    parser.add_argument("--version", action="version", version=f"hsidenoise {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", dest="verb", parser_class=Parser)
    parsers = {}
    for name in VERBS:
        module = _module(name)
        first, _, more = (module.__doc__ or f"{name}.").partition("\n\n")
        parsers[name] = verbs.add_parser(
            name, help=f"{first[0].lower()}{first[1:].rstrip('.')}", description=f"{first} {more}".strip()
        )
        if name != "train":  # which never comes here, see `_run`
            module.add_arguments(parsers[name])
    return parser, parsers


def _module(verb: str) -> ModuleType:
    return importlib.import_module(f"hsidenoise.cli.{verb.replace('-', '_')}")


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
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
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
            from hsidenoise.system.machine import is_out_of_memory

            if not is_out_of_memory(error):
                raise
            _complain(
                f"error: not enough memory ({_one_line(error)}): close other programs, allow this one more, or take a "
                "smaller cube"
            )
            return 2


def _run(arguments: list[str]) -> int:
    if arguments and arguments[0] in _OLD:
        verb = _OLD[arguments[0]]
        _complain(f"hint: {arguments[0]} is {verb}")
        arguments = [verb, *arguments[1:]]
    try:
        if arguments[:1] == ["train"]:
            _module("train").run(arguments[1:])
            return 0
        parser, parsers = make_parser()
        options, unknown = parser.parse_known_args(arguments)
        if unknown:
            parsers.get(options.verb, parser).refuse(unknown)
        if options.verb is None:
            parser.print_help()
            return 0
        options.given = arguments
        with _printed_at_the_end(needed=options.verb in _ANSWERS):
            _module(options.verb).run(options)
    except SystemExit as stop:  # argparse: 0 after --help, 2 after a wrong argument
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


class _Said(io.StringIO):
    """What is printed, kept until it is to be seen; :meth:`now` shows what there is."""

    def __init__(self) -> None:
        super().__init__()
        self.stream = sys.stdout

    def now(self) -> None:
        """Show what was said so far; a console that fails is met again at the end."""
        text = self.getvalue()
        with contextlib.suppress(OSError, ValueError):
            print(plain(text), end="", flush=True, file=self.stream)
            self.seek(0)
            self.truncate()


@contextlib.contextmanager
def _printed_at_the_end(*, needed: bool) -> Iterator[None]:
    """Keep what a verb prints until its job is done: a console that fails must not end it half-way.

    Args:
        needed: Whether the print is the job. If not, a job whose report cannot be printed is done all the same.
    """
    said = _Said()
    try:
        with contextlib.redirect_stdout(said):
            yield
    except BaseException:
        with contextlib.suppress(OSError):
            print(plain(said.getvalue()), end="", flush=True)
        raise
    try:
        print(plain(said.getvalue()), end="", flush=True)
    except OSError as error:
        _print_no_more()
        if needed and not isinstance(error, BrokenPipeError):
            raise OSError(f"the answer could not be printed ({error.strerror})") from error
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
        print(f"hsidenoise: {plain(text)}", file=sys.stderr)


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
