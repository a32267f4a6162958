"""How much memory a network takes for a tile, and the tile and the batch that fit.

On Linux an allocation that is too large rarely fails: memory is given out on trust, and a process that then uses more
than there is gets killed without a word. So the size of a tile is chosen by what there is, before anything runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from hsidenoise.inference.network import Ensemble
from hsidenoise.system.machine import is_out_of_memory

_Result = TypeVar("_Result")

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


def tile_memory(network: nn.Module, bands: int, height: int, width: int) -> int:
    """Memory in bytes that a network takes for one tile, at most: a rule of thumb in float32.

    The features of full height and width make up the most of it, and their width is that of the first convolution
    or a small multiple. A network without any (a filter, an ONNX file) is taken for one as wide as it has bands.

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
    cubes = 4 + (Ensemble.extra_cubes if isinstance(network, Ensemble) else 0)
    return 4 * height * width * (maps + cubes * bands)


def fitting_tile(network: nn.Module, bands: int, tile: tuple[int, int], free: int | None) -> tuple[int, int]:
    """The tile, halved as often as it takes to fit the memory at hand.

    Args:
        network: Network to run.
        bands: Bands of the tile.
        tile: Wanted height and width in pixels.
        free: Memory at hand in bytes, see :func:`hsidenoise.system.machine.free_memory`; None for no limit.

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


def in_fitting_tiles(
    run: Callable[[tuple[int, int], int], _Result],
    tile: tuple[int, int],
    overlap: int,
    device: torch.device,
    note: Callable[[str], None],
) -> _Result:
    """Run in tiles, halved down to 32 pixels as often as the memory does not suffice.

    Args:
        run: Takes height and width of the tiles and their overlap, in pixels.
        tile: Height and width to begin with, not beyond those of the cube.
        overlap: Overlap to begin with.
        device: Where it runs.
        note: Is given a sentence about each halving.

    Raises:
        ValueError: If the memory does not suffice for the smallest tiles.

    Example:
        >>> def run(tile, overlap):
        ...     if max(tile) > 50:
        ...         raise MemoryError
        ...     return tile, overlap
        >>> in_fitting_tiles(run, (80, 96), 24, torch.device("cpu"), print)
        tiles of 80x96 pixels do not fit the memory of cpu; starting over with tiles of 48x48, overlap 12
        ((48, 48), 12)
    """
    while True:
        smallest = max(tile) <= SMALLEST_TILE
        try:
            with enough_memory(
                device, f"even for a tile of {by(tile)} pixels", "choose another device, or a smaller network", smallest
            ):
                return run(tile, overlap)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # outside of the except clause, whose traceback keeps the tensors of the failed run alive
        side = max(max(tile) // 2, SMALLEST_TILE)
        overlap = min(overlap * side // max(tile), side - 1)
        note(
            f"tiles of {by(tile)} pixels do not fit the memory of {device}; starting over with tiles of "
            f"{side}x{side}, overlap {overlap}"
        )
        tile = (side, side)
        if device.type == "cuda":
            torch.cuda.empty_cache()


@contextmanager
def enough_memory(device: torch.device, what: str, remedy: str, last: bool = True) -> Iterator[None]:
    """Say in one line what the memory did not suffice for.

    Args:
        device: Where it runs.
        what: For what, as the sentence goes on.
        remedy: What to do about it.
        last: Whether nothing else is tried; otherwise the error goes on as it is.

    Raises:
        ValueError: If memory ran out within.

    Example:
        >>> with enough_memory(torch.device("cpu"), "for this", "take less"):
        ...     raise MemoryError
        Traceback (most recent call last):
        ...
        ValueError: not enough memory on cpu for this; take less
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not (last and is_out_of_memory(error)):
            raise
        raise ValueError(f"not enough memory on {device} {what}; {remedy}") from error


def by(size: tuple[int, int]) -> str:
    """Height and width in words, such as 96x120."""
    return f"{size[0]}x{size[1]}"
