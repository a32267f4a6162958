"""Where a network runs and in which precision, and how it is lent for a while and given back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

Precision = Literal["float32", "bfloat16"]


def find_device(device: str | torch.device | None = None) -> torch.device:
    """The device that a caller names, or else the best one here.

    Args:
        device: Such as ``cpu``, ``cuda`` or ``cuda:1``. None: the GPU if CUDA has one, else the CPU.

    Raises:
        ValueError: If there is no such kind of device, or this machine has none.

    Example:
        >>> find_device("cpu")
        device(type='cpu')
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
    """Where a network is; None if it has no tensors.

    Example:
        >>> home(nn.Linear(2, 3))
        device(type='cpu')
    """
    tensors = (*network.parameters(), *network.buffers())
    return tensors[0].device if tensors else None


@contextmanager
def in_use(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Network on a device and in evaluation mode; both as they were afterwards, module by module.

    Args:
        network: Network to use.
        device: Where to use it.

    Example:
        >>> network = nn.Dropout()
        >>> with in_use(network, torch.device("cpu")):
        ...     network.training
        False
        >>> network.training
        True
    """
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


def check_precision(precision: str) -> None:
    """Refuse what is no :data:`Precision`.

    Raises:
        ValueError: If it is neither ``float32`` nor ``bfloat16``.
    """
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"unknown precision {precision!r}; choose float32 or bfloat16")


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Context in which a network runs in a precision; its weights stay as they are.

    Args:
        device: Where it runs.
        precision: ``bfloat16`` for products and convolutions in bfloat16, ``float32`` for nothing to change.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; the CPU's allocator and some CUDA libraries have no type for it.

    Example:
        >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
        True
    """
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        phrase in text for phrase in ("can't allocate memory", "not enough memory", "out of memory", "alloc_failed")
    )
