"""The networks, and one way to make them by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from hsidenoise.models.hcanet import HCANet
from hsidenoise.models.hcanet_bra import HCANetBRA

MODELS: dict[str, type[nn.Module]] = {"hcanet": HCANet, "hcanet-bra": HCANetBRA}


def create_model(name: str, **config: Any) -> nn.Module:
    """Make a network with random weights.

    Args:
        name: A key of ``MODELS``.
        config: Arguments of its constructor.

    Raises:
        ValueError: If the name or an argument is unknown.

    Example:
        >>> create_model("hcanet-bra", bands=8, dim=8, num_blocks=[1, 1, 1], heads=[1, 1, 1]).bands
        8
    """
    if name not in MODELS:
        raise ValueError(f"unknown model '{name}'; known: {', '.join(MODELS)}")
    try:
        return MODELS[name](**config)
    except TypeError as error:
        raise ValueError(f"model '{name}': {error}") from error
