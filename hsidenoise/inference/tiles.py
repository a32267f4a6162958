"""Tiles through a network, several at a time, and windows of bands made one cube again."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Real
from torch import nn
from tqdm.auto import tqdm

from hsidenoise.inference.memory import USABLE_SHARE, fitting_batch
from hsidenoise.signal.lost_values import replaced_values
from hsidenoise.signal.scaling import Scaling, floating
from hsidenoise.signal.tiling import Blend, Tile, Tiling, reflect_bands
from hsidenoise.system.machine import autocast, free_memory, is_out_of_memory

MOST_AT_ONCE = 64
"""A GPU has enough to do long before; larger batches only wait longer for their copies."""


def run_tiles(
    noisy: Real[np.ndarray, "bands height width"],
    network: nn.Module,
    bands: int,
    scaling: Scaling,
    tiling: Tiling,
    device: torch.device,
    *,
    precision: Literal["float32", "bfloat16"] = "float32",
    batch: int | None = None,
    progress: bool = False,
    pixels: Bool[np.ndarray, "height width"] | None = None,
) -> tuple[Float[np.ndarray, "bands height width"], Bool[np.ndarray, "bands height width"] | None]:
    """One pass over all tiles of a cube.

    Tiles of one tiling have one size, so any number of them goes through the network together. The values are scaled
    tile by tile, so that no scaled copy of the cube is kept. A batch that does not fit the memory is halved and tried
    again; only a single tile that does not fit is an error.

    Args:
        noisy: Cube in its own unit.
        network: Network in evaluation mode, on the device.
        bands: Bands that the network takes.
        scaling: Takes the values to the network's range, and back.
        tiling: Tiles of at most ``bands`` bands that cover the cube.
        device: Where the network is.
        precision: Precision of the products inside the network.
        batch: Tiles at a time, at least 1; chosen by the device's memory if None.
        progress: Show a bar on standard error.
        pixels: Those that hold data. A tile without any stays as it is.

    Returns:
        The denoised cube, in the unit of ``noisy`` and in the floating type that holds its values; and which values
        were replaced, None if the network does not say.

    Raises:
        ValueError: If the network changes the shape or answers with values that are not finite.
        RuntimeError: If memory does not suffice for one tile, like MemoryError and torch.OutOfMemoryError.

    Example:
        >>> from hsidenoise.signal.scaling import fit_scaling
        >>> noisy = np.random.default_rng(0).random((3, 40, 50), dtype=np.float32)
        >>> tiling, scaling = Tiling(noisy.shape, (3, 16, 16), (0, 4, 4)), fit_scaling(noisy)
        >>> same, _ = run_tiles(noisy, nn.Identity(), 3, scaling, tiling, torch.device("cpu"), batch=5)
        >>> bool(np.allclose(same, noisy, atol=1e-6))
        True
    """
    blend, replaced = Blend(tiling), None
    tiles = []
    for tile in tiling:
        if pixels is None or pixels[tile.index[1:]].any():
            tiles.append(tile)
        else:
            blend.add(tile, scaling.apply(noisy[tile.index]))
    on_gpu = device.type == "cuda"
    # on a GPU one tile goes first, to see what it takes
    at_once = batch or (1 if on_gpu else fitting_batch(network, tiles[0].shape, free_memory(device)))
    bar = tqdm(total=len(tiles), desc="denoise", unit="tile", disable=not progress, file=sys.stderr)
    with bar, torch.inference_mode(), autocast(device, precision):
        first = 0
        while first < len(tiles):
            left = len(tiles) - first
            some = tiles[first : first + -(-left // -(-left // at_once))]  # batches as equal as can be
            if on_gpu:
                torch.cuda.reset_peak_memory_stats(device)
                before = torch.cuda.memory_allocated(device)
            try:
                with replaced_values() as seen:
                    answers = _answers(noisy, network, bands, scaling, some, device)
            except (RuntimeError, MemoryError) as error:
                if len(some) == 1 or not is_out_of_memory(error):
                    raise
                answers = None
            if answers is None:  # outside of the except clause, whose traceback keeps the tensors alive
                at_once = len(some) // 2
                if on_gpu:
                    torch.cuda.empty_cache()
                continue
            for tile, answer in zip(some, answers, strict=True):
                _check_finite(tile, answer)
                blend.add(tile, answer)
            for tile, found in zip(some, seen, strict=False):  # an ensemble begins with the tiles as they are
                if found.shape == tile.shape:  # else a network looked at something of its own
                    replaced = np.zeros(noisy.shape, np.bool_) if replaced is None else replaced
                    replaced[tile.index] |= found.cpu().numpy()
            if on_gpu and batch is None and first == 0:
                taken = max(1, torch.cuda.max_memory_allocated(device) - before)
                room = USABLE_SHARE * (free_memory(device) or taken)
                at_once = max(1, min(MOST_AT_ONCE, int(room / taken)))
            first += len(some)
            bar.update(len(some))
    return scaling.invert(blend.result(), floating(noisy.dtype)), replaced


def _answers(
    noisy: np.ndarray, network: nn.Module, bands: int, scaling: Scaling, tiles: Sequence[Tile], device: torch.device
) -> np.ndarray:
    """What the network makes of some tiles, (tiles, bands of a tile, height, width)."""
    scaled = np.stack([reflect_bands(scaling.apply(noisy[tile.index]), bands) for tile in tiles])
    batch = torch.from_numpy(scaled).to(device, memory_format=torch.channels_last)
    denoised = network(batch)
    if denoised.shape != batch.shape:
        raise ValueError(
            f"the network answered {tuple(batch.shape)} with {tuple(denoised.shape)}; "
            "it must keep (batch, bands, height, width)"
        )
    answers: np.ndarray = denoised[:, : tiles[0].shape[0]].float().cpu().numpy()
    return answers


def _check_finite(tile: Tile, answer: np.ndarray) -> None:
    if np.isfinite(answer).all():
        return
    bands, rows, columns = (f"{axis.start}-{axis.stop - 1}" for axis in tile.index)
    raise ValueError(
        f"the network answered with NaN or infinite values at bands {bands}, rows {rows}, columns {columns}; "
        "try another normalisation, other weights, or precision float32"
    )
