"""Options that are written once: a field of a frozen dataclass with its type, default, range and help.

Signature and docstring of the Python function (:func:`takes_options`) and the options of the command line
(:mod:`hsidenoise.cli.arguments`) come from the fields. Imports nothing heavy.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

_Options = TypeVar("_Options")
_Function = TypeVar("_Function", bound=Callable[..., Any])

Precision = Literal["float32", "bfloat16", "auto"]
Normalize = Literal["auto", "none", "minmax"]
EnsembleSize = Literal[1, 2, 4, 8]
Missing = Literal["error", "skip"]

REQUIRED: Any = dataclasses.MISSING
"""Default of an option that has none."""


def option(
    default: Any,
    help: str,
    *,
    least: float | None = None,
    above: float | None = None,
    metavar: str | None = None,
    choices: Iterable[str] | None = None,
    flag: str | None = None,
    old: Mapping[str, Callable[[int], int]] | None = None,
) -> Any:
    """A field of a dataclass of options.

    Args:
        default: Its default, or :data:`REQUIRED`.
        help: What it does and what its absence means, in one line of a ``--help``.
        least: Smallest number.
        above: What a number must be greater than.
        metavar: What stands for its value in ``--help``; none for a flag.
        choices: Names that are taken, where the type is not a ``Literal``.
        flag: Its name on the command line, where that is not the field's.
        old: Older names on the command line, and what makes this option's value of theirs.
    """
    facts = {"help": help, "least": least, "above": above, "metavar": metavar, "choices": choices, "flag": flag}
    facts["old"] = old or {}
    return dataclasses.field(default=default, metadata=facts)


def with_changes(options: _Options, changes: Mapping[str, Any], function: str, others: Iterable[str] = ()) -> _Options:
    """Options with some of them changed by name.

    Raises:
        TypeError: If there is no such option; the message suggests another name.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Of:
        ...     tile: int = option(96, "side of a tile")
        >>> with_changes(Of(), {"title": 32}, "denoise")
        Traceback (most recent call last):
        ...
        TypeError: denoise() has no option 'title'; did you mean 'tile'?
    """
    names = [field.name for field in dataclasses.fields(options)]  # type: ignore[arg-type]
    for name in changes:
        if name not in names:
            known = did_you_mean(name, [*names, *others]) or f"; it has {', '.join(names)}"
            raise TypeError(f"{function}() has no option '{name}'{known}")
    return dataclasses.replace(options, **changes)  # type: ignore[type-var]


def takes_options(*groups: type) -> Callable[[_Function], _Function]:
    """Show the options that a function takes as ``**changes`` in its signature and docstring.

    Args:
        groups: Dataclasses of options. Their lines follow the one of ``**changes`` in the docstring.
    """

    def decorate(function: _Function) -> _Function:
        signature = inspect.signature(function)
        fields = [(each, _type(group, each)) for group in groups for each in dataclasses.fields(group)]
        named = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        keyword = inspect.Parameter.KEYWORD_ONLY
        shown = [inspect.Parameter(each.name, keyword, default=each.default, annotation=of) for each, of in fields]
        function.__signature__ = signature.replace(parameters=[*named, *shown])  # type: ignore[attr-defined]
        lines = (function.__doc__ or "").splitlines()
        place = next((index + 1 for index, line in enumerate(lines) if line.lstrip().startswith("**changes")), None)
        lines[place:place] = [line for each, of in fields for line in _described(each, of)] if place else []
        function.__doc__ = "\n".join(lines)
        return function

    return decorate


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The known name that is most like one that is not known, as the end of a message; empty if none is.

    Example:
        >>> did_you_mean("gausian-50", ["blind", "gaussian-50"]), did_you_mean("x", ["blind"])
        ("; did you mean 'gaussian-50'?", '')
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _type(group: type, field: dataclasses.Field[Any]) -> str:
    """A field's type in words, with the names that it takes."""
    of = get_type_hints(group)[field.name]
    names = get_args(of) if get_origin(of) is Literal else field.metadata["choices"]
    return str(field.type) if names is None else " | ".join(repr(name) for name in names)


def _described(field: dataclasses.Field[Any], of: str) -> list[str]:
    """The lines of a docstring about an option."""
    least, above = field.metadata["least"], field.metadata["above"]
    bound = f", from {least}" * (least is not None) + f", above {above}" * (above is not None)
    text = f"{field.name} ({of}{bound}, default {field.default!r}): {field.metadata['help']}."
    return textwrap.wrap(text, 120, initial_indent=" " * 12, subsequent_indent=" " * 16)
