"""Tiles through a network, several at a time, and windows of bands made one cube again."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Real
from torch import nn
from tqdm.auto import tqdm

from hsidenoise.inference.memory import USABLE_SHARE, fitting_batch
from hsidenoise.signal.noise_level import haar_details, spectral_covariance, unexplained_variance
from hsidenoise.signal.scaling import Scaling, floating
from hsidenoise.signal.tiling import Blend, Tile, Tiling, reflect_bands
from hsidenoise.system.machine import autocast, free_memory, is_out_of_memory

NOISE_LEFT = 0.01
"""Share of the noise's energy that is taken to be left in every plane.

Chosen with the shipped weights on the centre 96 x 96 pixels of two cubes, PSNR of `pavia_crop` (102 bands) / `MUUFL`
(64 bands) with a share of

* 0: gaussian-5 47.42 / 42.34, gaussian-50 38.89 / 32.05, mixture 39.79 / 33.22
* 0.01: 47.50 / 42.36, 39.69 / 32.16, 40.58 / 33.44
* 0.03: 47.41 / 42.34, 39.45 / 32.01, 40.48 / 33.22
* 0.1: 47.12 / 42.24, 38.48 / 31.69, 40.11 / 33.06
"""

PIXELS_PER_BAND = 4
"""Fewer pixels say too little about a covariance; the cube is left as it is then."""

_FLOOR = 1e-6  # least noise of a band, in units of the standard deviation of the cube: keeps whitening finite


def join_windows(
    noisy: Real[np.ndarray, "bands height width"], denoised: Float32[np.ndarray, "bands height width"]
) -> Float32[np.ndarray, "bands height width"]:
    """Lower what a cube that was denoised in windows of bands still holds of noise.

    What noise is left in one window the network has not compared with the other windows, so that it is nearly
    independent of theirs. The scene is not: its spectra lie near a subspace of a few dimensions, whatever the number of
    bands. So the planes of the denoised cube that hold hardly more energy than noise would leave there are lowered, as
    in the first step of any subspace method. How much noise a network leaves in a plane is not known; a hundredth of
    what there was is taken: far too little at low noise, where nothing happens then, and about right at sigma 50.

    The covariance C of the denoised spectra is whitened by the noise levels of the noisy bands, and a plane of whitened
    energy e keeps ``1 - 0.01 / e`` of itself. A band's noise is the smaller of two estimates, as in
    :mod:`hsidenoise.signal.spectral_wiener`: the energy of its diagonal Haar details, and what a regression on all
    other bands leaves.

    References:
        Bioucas-Dias & Nascimento, "Hyperspectral Subspace Identification", IEEE TGRS 46(8), 2008.
        doi:10.1109/TGRS.2008.918089

    The smaller the part of a scene, the more a covariance says of it, and the more a few pixels that are unlike all
    others count: :func:`hsidenoise.inference.tiles.run_tiles` joins each tile on its own.

    Args:
        noisy: Cube before, at most some 100 x 100 pixels of it.
        denoised: Cube after, in the same unit.

    Returns:
        The joined cube, a new array; with fewer than 4 pixels for each band the denoised one as it is.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> clean = rng.random((40, 1, 1)) * rng.random((1, 32, 30))
        >>> noisy = clean + rng.normal(0, 0.2, clean.shape)
        >>> denoised = (clean + 0.1 * (noisy - clean)).astype(np.float32)  # a hundredth of the energy is left
        >>> joined = join_windows(noisy, denoised)
        >>> bool(np.square(joined - clean).mean() < 0.2 * np.square(denoised - clean).mean())
        True
    """
    if noisy.shape != denoised.shape:
        raise ValueError(f"a noisy cube of shape {noisy.shape} and a denoised one of {denoised.shape} are not the same")
    bands, height, width = noisy.shape
    covariance = spectral_covariance(denoised)
    floor = _FLOOR * float(np.sqrt(covariance.diagonal().mean()))
    if min(height, width) < 2 or height * width < PIXELS_PER_BAND * bands or floor == 0:
        return denoised.copy()
    sigma = np.maximum(np.sqrt(_noise_variance(noisy)), floor)
    energy, planes = np.linalg.eigh(covariance / sigma[:, None] / sigma)
    lowered = np.minimum(NOISE_LEFT / np.maximum(energy, NOISE_LEFT), 1)
    # what is taken away, not what is kept: a cube with nothing to take stays as it is to the last digit
    taken = sigma[:, None] * ((planes * lowered) @ planes.T) / sigma
    spectra = denoised.reshape(bands, -1).astype(np.float64)
    spectra -= spectra.mean(axis=1, keepdims=True)
    joined: np.ndarray = denoised - (taken @ spectra).reshape(denoised.shape).astype(np.float32)
    return joined


def _noise_variance(noisy: np.ndarray) -> Float64[np.ndarray, " bands"]:
    """Energy of the noise of each band."""
    unexplained = unexplained_variance(spectral_covariance(noisy), noisy[0].size, _FLOOR**2)
    details = haar_details(noisy.astype(np.float64), step=2)
    variance: np.ndarray = np.minimum(unexplained, np.square(details).mean(axis=(1, 2)))
    return variance


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
    mirrors: bool = False,
    join: bool = False,
    precision: Literal["float32", "bfloat16"] = "float32",
    batch: int | None = None,
    progress: bool = False,
) -> Float[np.ndarray, "bands height width"]:
    """One pass over all tiles of a cube.

    Tiles of one tiling have one size, so any number of them goes through the network together. The values are scaled
    tile by tile, so that no scaled copy of the cube is kept. A batch that does not fit the memory is halved and tried
    again; only a single tile that does not fit is an error. The windows of bands of a place are made one tile of all
    bands before the tiles are blended.

    Args:
        noisy: Cube in its own unit.
        network: Network in evaluation mode, on the device.
        bands: Bands that the network takes.
        scaling: Takes the values to the network's range, and back.
        tiling: Tiles of at most ``bands`` bands that cover the cube.
        device: Where the network is.
        mirrors: Whether the network takes fewer bands as they are.
        join: Whether several windows of bands are joined by a last step across all of them, or blended only.
        precision: Precision of the products inside the network.
        batch: Tiles at a time, at least 1; chosen by the device's memory if None.
        progress: Show a bar on standard error.

    Returns:
        The denoised cube, in the unit of ``noisy`` and in the floating type that holds its values.

    Raises:
        ValueError: If the network changes the shape or answers with values that are not finite.
        RuntimeError: If memory does not suffice for one tile, like MemoryError and torch.OutOfMemoryError.

    Example:
        >>> from hsidenoise.signal.scaling import fit_scaling
        >>> noisy = np.random.default_rng(0).random((3, 40, 50), dtype=np.float32)
        >>> tiling, scaling = Tiling(noisy.shape, (3, 16, 16), (0, 4, 4)), fit_scaling(noisy)
        >>> same = run_tiles(noisy, nn.Identity(), 3, scaling, tiling, torch.device("cpu"), batch=5)
        >>> bool(np.allclose(same, noisy, atol=1e-6))
        True
    """
    places = _Places(noisy, scaling, tiling, join)
    tiles = list(tiling)
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
                answers = _answers(noisy, network, 0 if mirrors else bands, scaling, some, device)
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
                places.add(tile, answer)
            if on_gpu and batch is None and first == 0:
                taken = max(1, torch.cuda.max_memory_allocated(device) - before)
                room = USABLE_SHARE * (free_memory(device) or taken)
                at_once = max(1, min(MOST_AT_ONCE, int(room / taken)))
            first += len(some)
            bar.update(len(some))
    return scaling.invert(places.blend.result(), floating(noisy.dtype))


class _Places:
    """Answers to the windows of bands of one place after the other, made tiles of all bands, and those made a cube."""

    def __init__(self, noisy: np.ndarray, scaling: Scaling, tiling: Tiling, join: bool) -> None:
        self._noisy, self._scaling, self._join = noisy, scaling, join
        self._windows = tiling.counts[0]
        whole = Tiling(tiling.shape, (tiling.shape[0], *tiling.tile[1:]), (0, *tiling.overlap[1:]))
        self.blend = Blend(whole)
        self._ahead = iter(whole)  # in the order in which the windows come
        self._answers: list[tuple[Tile, np.ndarray]] = []

    def add(self, window: Tile, answer: Float32[np.ndarray, "bands height width"]) -> None:
        """Add the next window, and its place when it is complete."""
        self._answers.append((window, answer))
        if len(self._answers) < self._windows:
            return
        place = next(self._ahead)
        if self._windows > 1:
            answer = np.zeros(place.shape, dtype=np.float32)
            for tile, values in self._answers:
                answer[tile.index[0]] += values * tile.weights[0][:, None, None]
            if self._join:
                answer = join_windows(self._scaling.apply(self._noisy[place.index]), answer)
        self.blend.add(place, answer)
        self._answers.clear()


def _answers(
    noisy: np.ndarray, network: nn.Module, bands: int, scaling: Scaling, tiles: Sequence[Tile], device: torch.device
) -> np.ndarray:
    """What the network makes of some tiles, (tiles, bands of a tile, height, width)."""
    scaled = np.stack([reflect_bands(scaling.apply(noisy[tile.index], tile.index[0]), bands) for tile in tiles])
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
