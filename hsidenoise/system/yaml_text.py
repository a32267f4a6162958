"""YAML of somebody else: bounded before anything is built of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from hsidenoise.system.files import check_no_pipe

LARGEST, DEEPEST, MOST_ALIASES = 40_000, 20, 10
"""Characters, levels and references (``*name``) of a configuration at most; those that ship have 4,000, 4 and none."""

MISFITS = (ValueError, LookupError, TypeError, AttributeError, OverflowError)
"""What PyYAML raises where a value does not fit its tag, such as ``!!bool x`` or ``!!int ''``."""

_EVENTS = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def check_yaml(text: str) -> None:
    r"""Refuse a text that is too large, too deep, or grows by references to what it holds.

    Raises:
        yaml.YAMLError: If it is, or no YAML.

    Example:
        >>> check_yaml("a: &a [x, x]\nb: &b [*a, *a]")
        >>> check_yaml("[" * 30)
        Traceback (most recent call last):
        ...
        yaml.error.YAMLError: more than 20 levels
    """
    if len(text) > LARGEST:
        raise yaml.YAMLError(f"more than {LARGEST} characters")
    aliases, parents = 0, list[str | None]()
    for event in yaml.parse(text, Loader=_EVENTS):
        if isinstance(event, yaml.CollectionStartEvent):
            parents.append(event.anchor)
        elif isinstance(event, yaml.CollectionEndEvent):
            parents.pop()
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
            if event.anchor in parents:
                raise yaml.YAMLError(f"*{event.anchor} lies in what it refers to")
        if len(parents) > DEEPEST:
            raise yaml.YAMLError(f"more than {DEEPEST} levels")
        if aliases > MOST_ALIASES:
            raise yaml.YAMLError(f"more than {MOST_ALIASES} references (*name)")


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file of plain values.

    Raises:
        ValueError: If it is none, or :func:`check_yaml` refuses it; in one line.
        OSError: If it cannot be read.
    """
    check_no_pipe(path)
    try:
        with Path(path).open(encoding="utf-8") as file:
            text = file.read(LARGEST + 1)
        check_yaml(text)
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error
    except MISFITS as error:
        raise ValueError(f"{path}: a value does not fit its tag (!!bool, !!int, ...): {error}") from error
