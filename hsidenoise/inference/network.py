"""Which network a caller means, and where it is to run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from hsidenoise.inference.onnx_network import OnnxNetwork
from hsidenoise.models.shipped import DEFAULT_WEIGHTS
from hsidenoise.models.weights import load_model
from hsidenoise.system.device import find_device, home
from hsidenoise.system.options import Precision


def choose_model(
    model: nn.Module | str | Path | None,
    device: str | torch.device | None = None,
    precision: Precision = "float32",
    compile: bool = False,
) -> tuple[nn.Module, torch.device]:
    """The network to run, and where to run it.

    Args:
        model: A network, the name of shipped weights, or the path of a weights or ``.onnx`` file; the default weights
            if None.
        device: Where to run; a network's own device if None, or the best one here for a name or a file.
        precision: As asked for; an exported network has its own.
        compile: As asked for; an exported network needs none.

    Raises:
        ValueError: If it is not a model, the device is missing, or an exported network cannot do what is asked.
        FileNotFoundError: If there is no such file.

    Example:
        >>> choose_model(nn.Conv2d(3, 3, 1))[1]
        device(type='cpu')
    """
    place = None if device is None else find_device(device)
    if model is not None and not isinstance(model, nn.Module | str | Path):
        raise ValueError(f"a model is a network, a name or a path of weights, not {type(model).__name__}")
    if isinstance(model, str | Path) and Path(model).suffix.lower() == ".onnx":
        model = OnnxNetwork(model, device=place)
    if isinstance(model, OnnxNetwork):
        if precision == "bfloat16" or compile:
            asked = "compile" if compile else "precision bfloat16"
            raise ValueError(f"{model.path} runs as it was exported, in float32; {asked} goes with weights only")
        return model, place or model.device
    if isinstance(model, nn.Module):
        return model, place or home(model) or torch.device("cpu")
    place = place or find_device()
    return load_model(DEFAULT_WEIGHTS if model is None else model, device=place), place


def bands_of(network: nn.Module) -> int:
    """The number of bands that a network takes at once.

    Args:
        network: Any network.

    Raises:
        ValueError: If it does not say.

    Example:
        >>> bands_of(nn.Identity())
        Traceback (most recent call last):
        ...
        ValueError: Identity has no attribute `bands`, the number of bands that it takes; set it
    """
    bands = getattr(network, "bands", None)
    if not isinstance(bands, int) or bands < 1:
        raise ValueError(
            f"{type(network).__name__} has no attribute `bands`, the number of bands that it takes; set it"
        )
    return bands


def name_of(model: nn.Module | str | Path | None) -> str:
    """What to call a model in a report.

    Args:
        model: As :func:`choose_model` takes it.

    Example:
        >>> name_of(None), name_of(nn.Identity())
        ('hcanet-bra', 'Identity')
    """
    if isinstance(model, OnnxNetwork):
        return str(model.path)
    if isinstance(model, nn.Module):
        return type(model).__name__
    return DEFAULT_WEIGHTS if model is None else str(model)
