"""The networks by name, and one way to make them."""

from __future__ import annotations

from collections.abc import Mapping
from reprlib import repr as short
from typing import Any

from torch import nn

from hsidenoise.models.hcanet import HCANet
from hsidenoise.models.hcanet_bra import HCANetBRA

MODELS: dict[str, type[nn.Module]] = {"hcanet": HCANet, "hcanet-bra": HCANetBRA}

#: Smallest and largest value of what a configuration says in numbers: far beyond what has ever been of use, and small
#: enough to fail at once where it is a mistake. Whole numbers, unless the bounds are none.
BOUNDS: dict[str, tuple[float, float]] = {
    "bands": (1, 4096),
    "planes": (1, 256),
    "dim": (1, 1024),
    "num_blocks": (0, 64),
    "num_refinement_blocks": (0, 64),
    "heads": (1, 256),
    "region_size": (1, 64),  # the cost grows with its square, also where the image is smaller
    "topk": (1, 4096),
    "expansion": (0.001, 16.0),
}
_LISTS, _FLAGS = ("num_blocks", "heads"), ("bias", "released_local_branch")
_LEVELS = 3


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse a configuration with wild numbers or wrong types, before anything is built.

    Raises:
        ValueError: If one is out of :data:`BOUNDS` or of another type; it names the argument.
    """
    for name, value in config.items():
        if name in _FLAGS and not isinstance(value, bool):
            raise ValueError(f"{name} is {short(value)}: true or false is expected")
        if name not in BOUNDS:
            continue
        low, high = BOUNDS[name]
        whole = isinstance(low, int)
        kind = f"a {'whole ' * whole}number from {low:g} to {high:g}"
        many = name in _LISTS
        if many and not (isinstance(value, list | tuple) and len(value) == _LEVELS):
            raise ValueError(f"{name} is {short(value)}: a list of {_LEVELS} is expected, each {kind}")
        for each in value if many else [value]:
            number = isinstance(each, int if whole else int | float) and not isinstance(each, bool)
            if not (number and low <= each <= high):
                raise ValueError(f"{name} is {short(value)}: {kind} is expected")


def create_model(name: str, **config: Any) -> nn.Module:
    """Make a network with random weights.

    Args:
        name: A key of ``MODELS``.
        config: Arguments of its constructor.

    Raises:
        ValueError: If the name or an argument is unknown, or :func:`check_config` refuses an argument.

    Example:
        >>> create_model("hcanet", bands=8, dim=8, num_blocks=[1, 1, 1, 1], heads=[1, 1, 1, 1]).bands
        8
    """
    if name not in MODELS:
        raise ValueError(f"unknown model '{name}'; known: {', '.join(MODELS)}")
    check_config(config)
    try:
        return MODELS[name](**config)
    except TypeError as error:
        raise ValueError(f"model '{name}': {error}") from error
