"""Where a network runs and in which precision, and how it is lent for a while and given back as it was."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from hsidenoise.system.options import Precision

#: oneDNN says no more when it finds no memory. What it cannot do at all ends in "a primitive descriptor ...".
_ONEDNN = re.compile(r"could not (create|execute) a (primitive|memory)(?! descriptor)")


def find_device(device: str | torch.device | None = None) -> torch.device:
    """The device that a caller names, or else the best one here.

    Args:
        device: Such as ``cpu``, ``cuda`` or ``cuda:1``. None: the GPU if CUDA has one, else the CPU.

    Raises:
        ValueError: If there is no such kind of device, or this machine has none.
    """
    if device is None:
        # Apple's GPU is not chosen by itself: it lacks the eigen-decomposition that the networks here use
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {str(device)!r}; choose cpu, cuda, cuda:1, mps, ...") from error
    available = {
        "cuda": torch.cuda.is_available() and (place.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
        "xpu": torch.xpu.is_available(),
        "cpu": True,
    }
    if not available.get(place.type, False):
        raise ValueError(f"there is no device {str(place)!r} on this machine; choose cpu, or leave it out")
    return place


def home(network: nn.Module) -> torch.device | None:
    """Where a network is; None if it has no tensors."""
    tensors = (*network.parameters(), *network.buffers())
    return tensors[0].device if tensors else None


@contextmanager
def in_use(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Network on a device and in evaluation mode; both as they were afterwards, module by module."""
    modes = {module: module.training for module in network.modules()}
    before = home(network) or device
    try:
        network.eval()
        if before != device:
            network.to(device)
        yield
    finally:
        if before != device:
            network.to(before)
        for module, training in modes.items():
            module.training = training


def find_precision(precision: Precision, device: torch.device) -> Literal["float32", "bfloat16"]:
    """The precision to run in where a caller leaves the choice to the device.

    Args:
        precision: ``float32`` and ``bfloat16`` stay what they are. ``auto``: bfloat16 where the hardware multiplies
            matrices in it (NVIDIA GPUs since Ampere, CPUs with AMX), float32 elsewhere.
        device: Where to run.

    Raises:
        ValueError: If it is none of the three.
    """
    if precision not in ("float32", "bfloat16", "auto"):
        raise ValueError(f"unknown precision {precision!r}; choose float32, bfloat16 or auto")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        able = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        able = device.type == "cpu" and _has_amx()
    return "bfloat16" if able else "float32"


def _has_amx() -> bool:
    # capabilities have been public since PyTorch 2.10 only
    ask = getattr(torch.cpu, "get_capabilities", None)
    return ask is not None and bool(ask().get("amx_bf16", False))


def autocast(device: torch.device, precision: Literal["float32", "bfloat16"]) -> torch.autocast:
    """Context in which a network runs in a precision; its weights stay as they are."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; the CPU's allocator and some CUDA libraries have no type for it.

    Example:
        >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
        True
    """
    text = str(error).lower()
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or any(
            phrase in text
            for phrase in (
                "can't allocate memory",
                "failed to allocate memory",
                "not enough memory",
                "out of memory",
                "alloc_failed",
                "bad_alloc",
            )
        )
        or (isinstance(error, RuntimeError) and _ONEDNN.search(text) is not None)
    )
