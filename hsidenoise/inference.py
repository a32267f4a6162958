"""Denoising of arrays and files of any size: scale, cut into tiles, run the network, blend, scale back."""

from __future__ import annotations

import dataclasses
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float32, Shaped
from torch import nn
from tqdm.auto import tqdm

from hsidenoise.device import Precision, autocast, check_precision, find_device, home, in_use, is_out_of_memory
from hsidenoise.normalize import Scaling, fit_scaling
from hsidenoise.tiling import Blend, Tiling, reflect_bands, tile_size

if TYPE_CHECKING:
    from hsidenoise.data.io import Cube

SMALLEST_TILE = 32
"""A tile that does not fit is halved, but never below this: less is no image to a network."""
# Windows of bands overlap by a third of the network's bands: at its edges a window lacks neighbours to compare with.
_BAND_OVERLAP = 3


@dataclass(frozen=True)
class DenoisedFile:
    """What :func:`denoise_file` did.

    Attributes:
        source: The file that was read.
        target: The file that was written.
        cube: What was read.
        denoised: What was written, before the file's dtype rounded it.
        scaling: The scaling that took the values to the network's range; ``reason`` says why.
        tile: Height and width of the tiles in the end, pixels.
        overlap: Smallest overlap of the tiles, pixels.
        windows: Number of windows of bands.
        device: Where the network ran, such as ``cpu`` or ``cuda:0``.
        model: Name of the weights, or of the network's class.
        seconds: Time for denoising, without reading and writing.
        warnings: What a user should know, already issued as warnings.
    """

    source: Path
    target: Path
    cube: Cube
    denoised: Cube
    scaling: Scaling
    tile: tuple[int, int]
    overlap: int
    windows: int
    device: str
    model: str
    seconds: float
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Run:
    """A denoised array and how it came about."""

    values: Float32[np.ndarray, "bands height width"]
    scaling: Scaling
    tiling: Tiling
    device: torch.device
    warnings: tuple[str, ...]


def denoise(
    noisy: Shaped[np.ndarray, "*axes"] | Shaped[torch.Tensor, "*axes"],
    model: nn.Module | str | Path | None = None,
    *,
    tile: int | None = None,
    overlap: int | None = None,
    normalize: str = "auto",
    device: str | torch.device | None = None,
    precision: Precision = "float32",
    progress: bool = False,
) -> Float32[np.ndarray, "bands height width"]:
    """Denoise a cube of any size and any number of bands.

    The cube is scaled to about [0, 1] as a whole, cut into overlapping tiles, and the network's answers are blended
    with tapers and scaled back. Along the spectrum it is cut into overlapping windows of as many bands as the network
    has; a cube of fewer bands is mirrored at its last band, and cropped afterwards. (A network with a true attribute
    ``mirrors_bands`` gets it as it is: mirrored bands share their noise, which a network that tells signal from noise
    by what bands have in common must not see.) Nothing is clipped.

    A tile that does not fit the device's memory is tried again at half the size, with a warning, down to 32 pixels.

    Args:
        noisy: Cube of shape (bands, height, width), in any unit and of any integer or floating dtype. Not written to.
        model: A network with an attribute ``bands``, or the name of shipped weights, or the path of a weights file;
            the default weights if None. A network is used where it is: its training mode is restored, and if
            ``device`` moves it, it is moved back.
        tile: Height and width of a tile in pixels. If None, the sizes near 96 that cover height and width with little
            to spare: an axis of up to about 130 pixels goes whole, 512 as seven tiles of 96. Larger tiles are faster by
            what overlaps less, need memory in proportion to their area, and denoise a little worse.
        overlap: Smallest overlap of neighbouring tiles in pixels, from 0 to ``tile - 1``; 24 or a quarter of the tile
            if None. The windows of bands always overlap by about a third.
        normalize: Scaling of values, see :func:`hsidenoise.normalize.fit_scaling`.
        device: Where to run, such as ``cpu`` or ``cuda``. If None, a network stays on its own device, and weights go
            to the GPU if CUDA has one, else to the CPU.
        precision: ``bfloat16`` runs the network under autocast: faster on recent GPUs, about two decimal digits.
        progress: Show a progress bar on standard error.

    Returns:
        The denoised cube, in the unit of ``noisy``.

    Raises:
        ValueError: If the array is not a cube of real, finite and not all equal numbers, if an option is out of
            range, if the device is missing, if the memory does not suffice even for the smallest tile, or if the
            network is no network of this kind or answers with values that are not finite.

    Example:
        >>> class Mean3x3(nn.AvgPool2d):
        ...     bands = 31
        >>> noisy = np.random.default_rng(0).normal(0.5, 0.1, (40, 30, 20))
        >>> denoised = denoise(noisy, Mean3x3(3, stride=1, padding=1, count_include_pad=False))
        >>> denoised.shape, denoised.dtype, bool(denoised.std() < 0.5 * noisy.std())
        ((40, 30, 20), dtype('float32'), True)
    """
    return _denoise(_as_cube(noisy), model, tile, overlap, normalize, device, precision, progress).values


def denoise_file(
    source: str | Path,
    target: str | Path,
    model: nn.Module | str | Path | None = None,
    *,
    key: str | None = None,
    axes: str | None = None,
    size: tuple[int, int] | None = None,
    tile: int | None = None,
    overlap: int | None = None,
    normalize: str = "auto",
    device: str | torch.device | None = None,
    precision: Precision = "float32",
    progress: bool = False,
) -> DenoisedFile:
    """Denoise the cube in a file and write a file of the same layout.

    Variable name, axis order and dtype stay, and every other variable of the file is carried over. The target is
    checked before anything is computed.

    Args:
        source: File to read, see :func:`hsidenoise.read_cube`.
        target: File to write; not the source.
        model: As for :func:`denoise`.
        key: Name of the variable; found if None.
        axes: Order of the axes as MATLAB sees them, such as ``hwb`` or ``bp``; found if None.
        size: Height and width of an unfolded (bands x pixels) matrix.
        tile: As for :func:`denoise`, like all that follow.
        overlap: Smallest overlap of neighbouring tiles, pixels.
        normalize: Scaling of values.
        device: Where to run.
        precision: ``float32`` or ``bfloat16``.
        progress: Show a progress bar on standard error.

    Returns:
        What was read, written and chosen.

    Raises:
        ValueError: As :func:`denoise` and :func:`hsidenoise.read_cube`, or if the target is the source.
        OSError: If the source cannot be read or the target cannot be written.
    """
    from hsidenoise.data.io import check_target, read_cube, write_cube

    source, target = Path(source), Path(target)
    if source.exists() and target.exists() and source.samefile(target):
        raise ValueError(f"{target} is the noisy file itself and would be lost; choose another output name")
    check_target(target)
    cube = read_cube(source, key=key, axes=axes, size=size)
    start = time.perf_counter()
    run = _denoise(_as_cube(cube.values), model, tile, overlap, normalize, device, precision, progress)
    seconds = time.perf_counter() - start
    denoised = dataclasses.replace(cube, values=run.values)
    write_cube(target, denoised)
    return DenoisedFile(
        source=source,
        target=target,
        cube=cube,
        denoised=denoised,
        scaling=run.scaling,
        tile=run.tiling.tile[1:],
        overlap=max(run.tiling.overlap[1:]),
        windows=run.tiling.counts[0],
        device=str(run.device),
        model=_name(model),
        seconds=seconds,
        warnings=run.warnings,
    )


def _as_cube(noisy: Shaped[np.ndarray, "*axes"] | Shaped[torch.Tensor, "*axes"]) -> np.ndarray:
    """The array behind what a caller gave, refused unless it is a cube of real numbers."""
    if isinstance(noisy, torch.Tensor):
        noisy = noisy.detach().cpu()
        values = (noisy.float() if noisy.dtype == torch.bfloat16 else noisy).resolve_neg().numpy()
    else:
        values = np.asarray(noisy)
    if values.ndim != 3:
        raise ValueError(f"a cube has three axes (bands, height, width), this array has shape {values.shape}")
    if values.dtype.kind not in "iuf":
        raise ValueError(f"a cube holds integers or floating-point numbers, this array holds {values.dtype}")
    if values.size == 0:
        raise ValueError(f"the cube is empty, its shape is {values.shape} (bands, height, width)")
    return values


def _denoise(
    noisy: np.ndarray,
    model: nn.Module | str | Path | None,
    tile: int | None,
    overlap: int | None,
    normalize: str,
    device: str | torch.device | None,
    precision: Precision,
    progress: bool,
) -> _Run:
    """Everything that :func:`denoise` and :func:`denoise_file` share."""
    check_precision(precision)
    scaling = fit_scaling(noisy, normalize)
    size, overlap = tile_size(noisy.shape[1], noisy.shape[2], tile, overlap)
    network, place = _network(model, device)
    bands = _bands(network)
    notes: list[str] = []
    with in_use(network, place):
        while True:
            tiling = _tiling(noisy.shape, bands, size, overlap)
            try:
                values = _run_tiles(noisy, network, bands, scaling, tiling, place, precision, progress)
                return _Run(values, scaling, tiling, place, tuple(notes))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                _, height, width = tiling.tile
                smaller = max(max(height, width) // 2, SMALLEST_TILE)
                if max(height, width) <= SMALLEST_TILE:
                    raise ValueError(
                        f"not enough memory on {place} even for a tile of {height}x{width} pixels and {bands} bands; "
                        "choose another device, or a smaller network"
                    ) from error
            # outside of the except clause, whose traceback keeps the tensors of the failed run alive
            overlap = min(overlap * smaller // max(height, width), smaller - 1)
            size = (smaller, smaller)
            note = (
                f"tiles of {height}x{width} pixels do not fit the memory of {place}; starting over with tiles of "
                f"{smaller}x{smaller}, overlap {overlap}"
            )
            notes.append(note)
            warnings.warn(note, RuntimeWarning, stacklevel=3)
            if place.type == "cuda":
                torch.cuda.empty_cache()


def _run_tiles(
    noisy: np.ndarray,
    network: nn.Module,
    bands: int,
    scaling: Scaling,
    tiling: Tiling,
    device: torch.device,
    precision: Precision,
    progress: bool,
) -> np.ndarray:
    """One pass over all tiles; the values are scaled tile by tile, so that no scaled copy of the cube is kept."""
    blend = Blend(tiling)
    mirrors = bool(getattr(network, "mirrors_bands", False))
    bar = tqdm(tiling, desc="denoise", unit="tile", disable=not progress, file=sys.stderr)
    with bar, torch.inference_mode(), autocast(device, precision):
        for tile in bar:
            scaled = scaling.apply(noisy[tile.index])
            if not mirrors:
                scaled = reflect_bands(scaled, bands)
            batch = torch.from_numpy(scaled)[None].to(device, memory_format=torch.channels_last)
            denoised = network(batch)
            if denoised.shape != batch.shape:
                raise ValueError(
                    f"the network answered {tuple(batch.shape)} with {tuple(denoised.shape)}; "
                    "it must keep (batch, bands, height, width)"
                )
            answer = denoised[0, : tile.shape[0]].float().cpu().numpy()
            if not np.isfinite(answer).all():
                raise ValueError(
                    f"the network answered with NaN or infinite values at bands {_span(tile.index[0])}, rows "
                    f"{_span(tile.index[1])}, columns {_span(tile.index[2])}; try another normalisation, other "
                    "weights, or precision float32"
                )
            blend.add(tile, answer)
    return scaling.invert(blend.result())


def _tiling(shape: tuple[int, ...], bands: int, tile: tuple[int, int], overlap: int) -> Tiling:
    """Tiles of one window of bands; an axis that fits into a tile is taken whole, and nothing overlaps there."""
    axes = zip(shape, (bands, *tile), (bands // _BAND_OVERLAP, overlap, overlap), strict=True)
    (depth, z, dz), (height, y, dy), (width, x, dx) = (
        (length, min(size, length), shared if size < length else 0) for length, size, shared in axes
    )
    return Tiling((depth, height, width), (z, y, x), (dz, dy, dx))


def _network(model: nn.Module | str | Path | None, device: str | torch.device | None) -> tuple[nn.Module, torch.device]:
    """The network to run, and where to run it."""
    place = None if device is None else find_device(device)
    if isinstance(model, nn.Module):
        return model, place or home(model) or torch.device("cpu")
    if model is not None and not isinstance(model, str | Path):
        raise ValueError(f"a model is a network, a name or a path of weights, not {type(model).__name__}")

    from hsidenoise.weights import DEFAULT_WEIGHTS, load_model

    place = place or find_device()
    return load_model(DEFAULT_WEIGHTS if model is None else model, device=place), place


def _bands(network: nn.Module) -> int:
    bands = getattr(network, "bands", None)
    if not isinstance(bands, int) or bands < 1:
        raise ValueError(
            f"{type(network).__name__} has no attribute `bands`, the number of bands that it takes; set it"
        )
    return bands


def _name(model: nn.Module | str | Path | None) -> str:
    if isinstance(model, nn.Module):
        return type(model).__name__
    if model is None:
        from hsidenoise.weights import DEFAULT_WEIGHTS

        return DEFAULT_WEIGHTS
    return str(model)


def _span(axis: slice) -> str:
    return f"{axis.start}-{axis.stop - 1}"
