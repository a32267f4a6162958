"""What the verbs share: a parser with errors of one line, and options out of the dataclasses that hold them.

Not jsonargparse, of which training makes use: it has no dashes in names, no flags and no lists without brackets, its
errors take ten lines, and it takes 0.13 s to import.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from hsidenoise.system.options import REQUIRED, did_you_mean, in_range, plain, said

if TYPE_CHECKING:
    from hsidenoise.data.io import Cube

_Options = TypeVar("_Options")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as every other error of this program, and suggest the name that is meant."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end."""
        print(f"hsidenoise: error: {plain(message)} (see `{self.prog} --help`)", file=sys.stderr)
        raise SystemExit(2)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            message = f"there is no {value!r}; choose from {', '.join(names)}{did_you_mean(str(value), names)}"
            raise argparse.ArgumentError(action, message)

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """End with what is not known among the arguments."""
        name = next((each for each in unknown if each.startswith("-")), unknown[0])
        self.error(f"unknown argument {name}{did_you_mean(name.partition('=')[0], self._option_string_actions)}")


def add_options(
    parser: argparse._ActionsContainer, options: type, prefix: str = "", without: Sequence[str] = ()
) -> None:
    """Make an option of the command line of each field of a dataclass.

    Args:
        parser: What they are added to.
        options: Dataclass whose fields :func:`hsidenoise.system.options.option` made.
        prefix: What their names begin with, such as ``clean-``.
        without: Fields that are left out.
    """
    for field in dataclasses.fields(options):
        if field.name not in without:
            _add_option(parser, field, get_type_hints(options)[field.name], prefix)


def options_of(options: type[_Options], arguments: argparse.Namespace, prefix: str = "", **others: Any) -> _Options:
    """The dataclass out of the parsed arguments.

    Args:
        options: As for :func:`add_options`.
        arguments: What was parsed.
        prefix: As for :func:`add_options`.
        **others: Fields that the command line does not set.
    """
    names = [field.name for field in dataclasses.fields(options)]  # type: ignore[arg-type]
    parsed = {name: getattr(arguments, prefix + name) for name in names if hasattr(arguments, prefix + name)}
    return options(**parsed, **others)


def path(text: str) -> Path:
    """The type of an argument that names a file or a folder."""
    return Path(_text(text))


def number(of: type, **facts: float | None) -> Callable[[str], Any]:
    """The type of an argument that is a number of a range."""

    def value_of(text: str) -> Any:
        try:
            value = of(text)
            fits = in_range(value, facts)
        except ValueError:
            fits = False
        if not fits:
            raise argparse.ArgumentTypeError(f"{text!r} is not {said(of, facts)}")
        return value

    return value_of


def print_read(source: Path, cube: Cube) -> None:
    """Print what was read, along which axes and why: along wrong ones the result is wrong without any error."""
    from hsidenoise.data.facts import sizes_of, variable_of

    dtype = "" if cube.layout is None else f" {cube.layout.dtype}"
    reason = "" if cube.layout is None else f"; axes {cube.layout.axes}: {cube.layout.reason}"
    print(f"read     {source}: {variable_of(cube)},{dtype}, {sizes_of(cube)}{reason}")
    for line in cube.not_data:
        print(f"no data  {line}")


def say_now() -> None:
    """Show what was printed so far, before hours of computing."""
    getattr(sys.stdout, "now", lambda: None)()


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the option of verbs whose answer a program may read."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_option(parser: argparse._ActionsContainer, field: dataclasses.Field[Any], of: Any, prefix: str) -> None:
    facts = field.metadata
    name, target = facts["flag"] or prefix + field.name.replace("_", "-"), prefix + field.name
    help = facts["help"].replace("%", "%%")
    if of is bool:
        flag, action, text = (
            (f"--no-{name}", "store_false", f"do not {help}") if field.default else (f"--{name}", "store_true", help)
        )
        parser.add_argument(flag, dest=target, action=action, help=text)
        return
    of = next((each for each in get_args(of) if each is not NoneType), of) if NoneType in get_args(of) else of
    required = field.default is REQUIRED
    named: dict[str, Any] = {"default": None if required else field.default, "required": required}
    choices = get_args(of) if get_origin(of) is Literal else facts["choices"]
    if of == Sequence[str]:
        named["nargs"] = "+"
    if choices is not None:
        named |= {"choices": choices, "metavar": facts["metavar"] or "|".join(str(choice) for choice in choices)}
    else:
        named["metavar"] = facts["metavar"]
    of = type(choices[0]) if choices else of
    named["type"] = _TYPES.get(of) or number(of, **{name: facts[name] for name in ("least", "most", "above")})
    known = f" (default: {field.default})" if not required and field.default is not None else ""
    parser.add_argument(f"--{name}", dest=target, help=help + known, **named)
    for old, convert in facts["old"].items():
        parser.add_argument(
            f"--{old}", dest=target, action=_Old, type=int, new=f"--{name}", convert=convert, help=argparse.SUPPRESS
        )


class _Old(argparse.Action):
    """An older name of an option: taken, with a hint."""

    def __init__(self, *, new: str, convert: Callable[[int], int], **named: Any) -> None:
        super().__init__(**named)
        self.new, self.convert = new, convert

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        value = self.convert(values)
        if value < 0:
            raise argparse.ArgumentError(self, f"{values} is too small")
        print(f"hsidenoise: hint: {self.option_strings[0]} {values} is {self.new} {value}", file=sys.stderr)
        setattr(namespace, self.dest, value)


def _text(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("an empty name; give one, or leave the option out")
    return text


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write HEIGHTxWIDTH, such as 100x120")
    return int(parts[0]), int(parts[1])


_TYPES: dict[Any, Callable[[str], Any]] = {str: _text, Any: _text, Sequence[str]: _text, tuple[int, int]: _size}
