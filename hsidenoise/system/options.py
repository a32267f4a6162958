"""Options that are written once: a field of a frozen dataclass with its type, default, range and help.

Signature and docstring of the Python function (:func:`takes_options`), the options of the command line
(:mod:`hsidenoise.cli.shared`) and what a YAML file may hold (:func:`from_mapping`) come from the fields. Imports
nothing heavy.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from reprlib import repr as short
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

_Options = TypeVar("_Options")
_Function = TypeVar("_Function", bound=Callable[..., Any])

Precision = Literal["float32", "bfloat16", "auto"]
Normalize = Literal["auto", "none", "minmax"]
EnsembleSize = Literal[1, 2, 4, 8]
Missing = Literal["error", "skip"]

MOST_ROUNDS = 15
"""Rounds of the pilot filter at most; one is usual, and more than two hardly change anything."""

REQUIRED: Any = dataclasses.MISSING
"""Default of an option that has none."""


def option(
    default: Any,
    help: str = "",
    *,
    least: float | None = None,
    most: float | None = None,
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
        most: Largest number.
        above: What a number must be greater than.
        metavar: What stands for its value in ``--help``; none for a flag.
        choices: Names that are taken, where the type is not a ``Literal``.
        flag: Its name on the command line, where that is not the field's.
        old: Older names on the command line, and what makes this option's value of theirs.
    """
    facts = {"help": help, "least": least, "most": most, "above": above, "choices": choices}
    return dataclasses.field(default=default, metadata=facts | {"metavar": metavar, "flag": flag, "old": old or {}})


def with_changes(options: _Options, changes: Mapping[str, Any], function: str, others: Iterable[str] = ()) -> _Options:
    """Options with some of them changed by name.

    Raises:
        TypeError: If there is no such option; the message suggests another name.
        ValueError: If a number is out of its range.

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
    changed = dataclasses.replace(options, **changes)  # type: ignore[type-var]
    for field in dataclasses.fields(changed):  # type: ignore[arg-type]
        value = getattr(changed, field.name)
        if isinstance(value, int | float) and not in_range(value, field.metadata):
            kind = float if field.type == "float" else type(value)
            raise ValueError(f"{field.name} is {value}; it is {said(kind, field.metadata)}")
    return changed


def from_mapping(
    of: type[_Options], found: Any, where: str, readers: Mapping[Any, Callable[[Any], Any]] | None = None, **given: Any
) -> _Options:
    """A dataclass of what a YAML file holds, each value checked by the type and range of its field.

    Args:
        of: The dataclass; a field may be a dataclass itself, a tuple, or None.
        found: What the file holds.
        where: Its place in the file, for messages; empty at the top.
        readers: What reads the values of further types.
        **given: Fields that the file does not set.

    Raises:
        ValueError: If a key is unknown or missing, or a value does not fit; in one line that names it.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Of:
        ...     tile: int | None = option(None, least=1)
        >>> from_mapping(Of, {"tile": 64}, "network").tile
        64
        >>> from_mapping(Of, {"tile": 0}, "network")
        Traceback (most recent call last):
        ...
        ValueError: network.tile is 0; it is a whole number from 1
    """
    fields = {field.name: field for field in dataclasses.fields(of) if field.name not in given}  # type: ignore[arg-type]
    if not isinstance(found, Mapping):
        raise ValueError(f"{where or 'the file'} is {short(found)}; it is a mapping with {', '.join(fields)}")
    for key in found:
        if key not in fields:
            near = did_you_mean(str(key), fields) or f"; known: {', '.join(fields)}"
            raise ValueError(f"{where or 'the file'} has no key {short(key)}{near}")
    prefix = f"{where}." if where else ""
    for name, field in fields.items():
        if name not in found and field.default is REQUIRED:
            raise ValueError(f"'{prefix}{name}' is missing")
    types = get_type_hints(of)
    return of(
        **{
            name: checked(value, types[name], f"{prefix}{name}", fields[name].metadata, readers or {})
            for name, value in found.items()
        },
        **given,
    )


def checked(
    value: Any,
    of: Any,
    where: str,
    facts: Mapping[str, Any] | None = None,
    readers: Mapping[Any, Callable[[Any], Any]] | None = None,
) -> Any:
    """A value out of a YAML file, as a type takes it.

    Args:
        value: What the file holds.
        of: A simple type, ``Literal``, tuple or dataclass, any of them perhaps with None.
        where: As for :func:`from_mapping`, like ``readers``.
        facts: What :func:`option` keeps of a field: its range and choices.
        readers: What reads the values of further types.

    Raises:
        ValueError: If it does not fit.

    Example:
        >>> checked([3, 4], tuple[int, int], "pixel")
        (3, 4)
    """
    facts, readers = facts or {}, readers or {}
    if of in readers:
        return readers[of](value)
    parts = get_args(of)
    if NoneType in parts:
        (rest,) = (each for each in parts if each is not NoneType)
        return None if value is None else checked(value, rest, where, facts, readers)
    if dataclasses.is_dataclass(of):
        return from_mapping(of, value, where, readers)  # type: ignore[arg-type]
    if get_origin(of) is tuple:
        if isinstance(value, list) and (Ellipsis in parts or len(value) == len(parts)):
            return tuple(checked(each, parts[0], f"{where}[{n}]", facts, readers) for n, each in enumerate(value))
        number = "a list" if Ellipsis in parts else f"a list of {len(parts)}"
        raise ValueError(f"{where} is {short(value)}; it is {number}, each {said(parts[0], facts)}")
    taken = _taken(of, facts)
    kind = type(taken[0]) if taken else of
    fits = type(value) is kind or (kind is float and type(value) is int)
    if not fits or (taken and value not in taken) or (kind in (int, float) and not in_range(value, facts)):
        near = did_you_mean(value, taken) if taken and kind is str and isinstance(value, str) else ""
        raise ValueError(f"{where} is {short(value)}; it is {said(of, facts)}{near}")
    if kind is str and not value.strip():
        raise ValueError(f"{where} is empty")
    return value


def in_range(value: float, facts: Mapping[str, Any]) -> bool:
    """Whether a number is finite and within the range that :func:`option` keeps of a field."""
    least, most, above = (facts.get(name) for name in ("least", "most", "above"))
    finite = isinstance(value, int) or math.isfinite(value)  # a whole number may be too large for a float
    above_all = (least is None or value >= least) and (above is None or value > above)
    return finite and above_all and (most is None or value <= most)


def said(of: Any, facts: Mapping[str, Any]) -> str:
    """What a value is to be, in words.

    Example:
        >>> said(int, {"least": 1}), said(str, {"choices": ("a", "b")})
        ('a whole number from 1', 'one of a, b')
    """
    if taken := _taken(of, facts):
        return f"one of {', '.join(str(each) for each in taken)}"
    ends = (("from", "least"), ("above", "above"), ("to", "most"))
    bounds = "".join(f" {word} {facts[name]}" for word, name in ends if facts.get(name) is not None)
    words: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return f"{words.get(of) or of.__name__.lower()}{bounds}"


def _taken(of: Any, facts: Mapping[str, Any]) -> Sequence[Any]:
    """The values that are taken; empty if they are not listed."""
    return get_args(of) if get_origin(of) is Literal else tuple(facts.get("choices") or ())


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
    least, most, above = (field.metadata[name] for name in ("least", "most", "above"))
    bound = f", from {least}" * (least is not None) + f", above {above}" * (above is not None)
    bound += f" to {most}" * (most is not None)
    text = f"{field.name} ({of}{bound}, default {field.default!r}): {field.metadata['help']}."
    return textwrap.wrap(text, 120, initial_indent=" " * 12, subsequent_indent=" " * 16)


def plain(text: str) -> str:
    r"""Text as a terminal may be given it: names out of files can hold what moves its cursor or renames its window.

    Example:
        >>> plain("cube\x1b[2J\n")
        'cube?[2J\n'
    """
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)
