"""Weights of the released HCANet code, brought into this project's HCANet.

The released 3x3x3 kernels run over a volume of depth one and meet only padding with their outer slices: the middle
slices alone, and other names, make them weights of :class:`~hsidenoise.models.hcanet.HCANet`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hsidenoise.models.hcanet import LEVELS, HCANet

RELEASED_DEFAULTS: Mapping[str, Any] = {
    "inp_channels": 31,
    "out_channels": 31,
    "dim": 48,
    "num_blocks": (2, 3, 3, 4),
    "num_refinement_blocks": 1,
    "heads": (1, 2, 4, 8),
    "ffn_expansion_factor": 2.66,
    "bias": False,
    "LayerNorm_type": "WithBias",
}
"""Arguments of the released network and their defaults; the fourth entries belong to no level and are ignored."""

CHECKPOINT_KEYS = ("state_dict", "net", "model")
CHECKPOINT_PREFIXES = ("module.", "net.", "model.")


def load_released_hcanet(state: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> HCANet:
    """Build an HCANet from weights of the released code.

    Args:
        state: Tensors or arrays by the names of the released file. A checkpoint that holds them under
            ``state_dict``, ``net`` or ``model``, and names with a ``module.``, ``net.`` or ``model.`` in front,
            are taken too.
        config: Arguments of the released network by their released names (``inp_channels``, ``dim``,
            ``LayerNorm_type`` ...); what is left out has its released default.

    Returns:
        The network in evaluation mode, with the released local branch, which gives the released file's output.

    Raises:
        ValueError: If an argument is unknown, or a weight is missing, unexpected or of another shape.

    Example:
        >>> load_released_hcanet({}, {"inp_channels": 5, "out_channels": 5, "dim": 8, "num_blocks": [1, 1, 1]})
        Traceback (most recent call last):
        ...
        ValueError: the weights are not those of this HCANet configuration: 109 missing (patch_embed.proj.weight, ...)
    """
    network = HCANet(**_own_arguments(config or {}))
    expected = {_released_name(name): (name, weight) for name, weight in network.state_dict().items()}
    given = _unwrap(state)
    problems = [
        f"{len(names)} {what} ({names[0]}{', ...' if len(names) > 1 else ''})"
        for what, names in (
            ("missing", [name for name in expected if name not in given]),
            ("unexpected", [name for name in given if name not in expected]),
        )
        if names
    ]
    weights = {}
    for released, (name, weight) in expected.items():
        if released not in given:
            continue
        value = _as_tensor(released, given[released])
        weights[name] = _drop_depth(value, weight.ndim)
        if weights[name].shape != weight.shape:
            problems.append(
                f"{released} has shape {tuple(value.shape)}, not {tuple(weight.shape)} with or without depth"
            )
            break
    if problems:
        raise ValueError(f"the weights are not those of this HCANet configuration: {'; '.join(problems)}")
    network.load_state_dict(weights)
    return network.eval()


def _own_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Translate released arguments into those of HCANet."""
    unknown = sorted(set(config) - set(RELEASED_DEFAULTS))
    if unknown:
        raise ValueError(
            f"unknown argument {unknown[0]!r} of the released HCANet: one of {', '.join(RELEASED_DEFAULTS)}"
        )
    released = {**RELEASED_DEFAULTS, **config}
    for name in ("num_blocks", "heads"):
        if not isinstance(released[name], Sequence):
            raise ValueError(f"{name}={released[name]!r} of the released HCANet must be a list, one entry per level")
    if released["inp_channels"] != released["out_channels"]:
        raise ValueError(
            "HCANet adds its input to its output: inp_channels and out_channels must be the same, "
            f"not {released['inp_channels']} and {released['out_channels']}"
        )
    return {
        "bands": released["inp_channels"],
        "dim": released["dim"],
        "num_blocks": tuple(released["num_blocks"])[:LEVELS],
        "num_refinement_blocks": released["num_refinement_blocks"],
        "heads": tuple(released["heads"])[:LEVELS],
        "expansion": released["ffn_expansion_factor"],
        "bias": released["bias"],
        # the released code takes every other word for WithBias; a typo is refused here
        "layer_norm": released["LayerNorm_type"],
        "released_local_branch": True,
    }


def _released_name(name: str) -> str:
    """Name of one of our weights in the released file."""
    parts = name.split(".")
    if parts[0] == "patch_embed":
        parts.insert(1, "proj")
    elif parts[0].startswith(("down", "up")):
        parts[1:2] = ["body", "0"]
    elif parts[-2] in ("norm1", "norm2"):
        parts.insert(-1, "body")
    return ".".join(parts)


def _unwrap(state: Mapping[str, Any]) -> dict[str, Any]:
    """Find the weights inside a checkpoint and take a common prefix off their names."""
    for key in CHECKPOINT_KEYS:
        if isinstance(state.get(key), Mapping):
            return _unwrap(state[key])
    for prefix in CHECKPOINT_PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            return _unwrap({name.removeprefix(prefix): value for name, value in state.items()})
    return dict(state)


def _as_tensor(name: str, value: Any) -> Tensor:
    """Copy an array or tensor of the released file."""
    try:
        tensor = value.detach().clone() if isinstance(value, Tensor) else torch.tensor(np.asarray(value))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the weight {name} is a {type(value).__name__}, not an array of numbers") from error
    if not tensor.isfinite().all():
        raise ValueError(f"the weight {name} has values that are not finite: the file is damaged")
    return tensor


def _drop_depth(weight: Tensor, dimensions: int) -> Tensor:
    """Take the one slice of a 3-D kernel that a volume of depth one ever meets."""
    if weight.ndim == dimensions + 1 == 5 and weight.shape[2] % 2:
        return weight[:, :, weight.shape[2] // 2]
    return weight
