"""How much memory there is at hand, how much a tile takes, and the tile that fits.

On Linux an allocation that is too large rarely fails: memory is given out on trust, and a process that then uses more
than there is gets killed without a word. So the size of a tile is chosen by what there is, before anything runs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

SMALLEST_TILE = 32
"""A tile that does not fit is halved, but never below this: less is not an image to a network."""
USABLE_SHARE = 0.7
"""Share of the memory at hand that tiles may take; the rest is for the cube, its result and whatever else grows."""
MAPS = 48
"""Feature maps alive at once, in units of the first convolution's width; an upper bound for the networks here.

Measured (growth of the process' peak, tiles of 192 and 320 pixels, float32): HCANet 20 on a CPU, where features are
computed in pieces, and 47 where they are whole (compiled, or on a GPU); HCANetBRA 24 and 34.
"""

BATCH_ON_CPU = 4
"""Tiles at a time on a CPU at most, and pixels in them: beyond that the features leave the caches.

Measured before features were computed in pieces, seconds of one thread per tile in batches of 1 / 2 / 4 / 8: shipped
HCANetBRA 0.084 / 0.077 / 0.075 / 0.076 (tile 64) and 0.209 / 0.193 / 0.191 / 0.204 (tile 96); HCANet 0.165 / 0.161 /
0.158 / 0.172 and 0.371 / 0.385 / 0.471 / 0.499.
"""
_PIXELS_ON_CPU = 2 * 96 * 96

_LEAST_WIDTH = 16


def free_memory(device: torch.device) -> int | None:
    """Memory in bytes that a process may still take on a device; None where the system does not tell.

    On a CPU the least of what the system has to spare, what the control group (a container) allows, and what
    ``ulimit -v`` allows. On a GPU what the driver has to spare and what PyTorch keeps for reuse.

    Args:
        device: Such as ``torch.device("cpu")``.

    Example:
        >>> free = free_memory(torch.device("cpu"))
        >>> free is None or free > 0
        True
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu" or sys.platform != "linux":
        return None
    limits = [_spare(), _group_v2(), _group_v1(), _address_space()]
    known = [limit for limit in limits if limit is not None]
    return max(0, min(known)) if known else None


def tile_memory(network: nn.Module, bands: int, height: int, width: int) -> int:
    """Memory in bytes that a network takes for one tile, at most: a rule of thumb in float32.

    The features of full height and width make up the most of it, and their width is that of the first convolution
    or a small multiple. A network without any (a filter, an ONNX file) is taken for one as wide as it has bands. A
    network with a number ``extra_cubes`` (an ensemble) holds so many more cubes.

    Args:
        network: Any network.
        bands: Bands of the tile.
        height: Height in pixels.
        width: Width in pixels.

    Example:
        >>> tile_memory(nn.Conv2d(31, 48, 3), bands=31, height=96, width=96) // 2**20
        85
    """
    first = next((parameter for parameter in network.parameters() if parameter.ndim == 4), None)
    maps = MAPS * max(_LEAST_WIDTH, bands if first is None else first.shape[0])
    cubes = 4 + int(getattr(network, "extra_cubes", 0))
    return 4 * height * width * (maps + cubes * bands)


def fitting_tile(network: nn.Module, bands: int, tile: tuple[int, int], free: int | None) -> tuple[int, int]:
    """The tile, halved as often as it takes to fit the memory at hand.

    Args:
        network: Network to run.
        bands: Bands of the tile.
        tile: Wanted height and width in pixels.
        free: Memory at hand in bytes, see :func:`free_memory`; None for no limit.

    Returns:
        The tile as it was where it fits, else a square one of at least 32 pixels.

    Example:
        >>> network = nn.Conv2d(31, 48, 3)
        >>> fitting_tile(network, 31, (96, 120), None), fitting_tile(network, 31, (96, 120), 64 * 2**20)
        ((96, 120), (60, 60))
    """
    while free is not None and tile_memory(network, bands, *tile) > USABLE_SHARE * free and max(tile) > SMALLEST_TILE:
        side = max(max(tile) // 2, SMALLEST_TILE)
        tile = (side, side)
    return tile


def fitting_batch(network: nn.Module, tile: tuple[int, int, int], free: int | None) -> int:
    """Tiles that a CPU does best to take at a time.

    Args:
        network: Network to run.
        tile: Bands, height and width of a tile.
        free: Memory at hand in bytes, None for no limit.

    Example:
        >>> network = nn.Conv2d(31, 48, 3)
        >>> [fitting_batch(network, (31, side, side), None) for side in (64, 96, 128, 256)]
        [4, 2, 1, 1]
    """
    _, height, width = tile
    most = min(BATCH_ON_CPU, _PIXELS_ON_CPU // (height * width))
    if free is not None:
        most = min(most, int(USABLE_SHARE * free) // tile_memory(network, *tile))
    return max(1, most)


def _spare() -> int | None:
    """What the system could give without swapping."""
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _group_v2() -> int | None:
    """What the control group of this process still allows (cgroup 2, as in today's containers)."""
    path = next((line[3:] for line in _read("/proc/self/cgroup").splitlines() if line.startswith("0::")), "/")
    return _group("/sys/fs/cgroup", path, "memory.max", "memory.current", "inactive_file")


def _group_v1() -> int | None:
    """The same for cgroup 1."""
    lines = (line.split(":", 2) for line in _read("/proc/self/cgroup").splitlines())
    path = next((parts[2] for parts in lines if "memory" in parts[1].split(",")), "/")
    names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
    return _group("/sys/fs/cgroup/memory", path, *names)


def _group(root: str, path: str, limit: str, usage: str, cache: str) -> int | None:
    """The least that a control group and those above it allow."""
    # inside a container the path is that of the host: only its root may be there to be read
    folder = Path(root) / path.lstrip("/")
    rooms = []
    for place in (folder, *folder.parents)[: len(folder.parts) - len(Path(root).parts) + 1]:
        most, used = _read(place / limit).strip(), _read(place / usage).strip()
        if most.isdigit() and used.isdigit():
            stat = dict(line.split() for line in _read(place / "memory.stat").splitlines())
            rooms.append(int(most) - int(used) + int(stat.get(cache, 0)))  # cached files give way
    return min(rooms, default=None)


def _address_space() -> int | None:
    """What ``ulimit -v`` still allows."""
    import resource

    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = _read("/proc/self/statm").split()
    if most == resource.RLIM_INFINITY or not pages:
        return None
    return most - int(pages[0]) * resource.getpagesize()


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
