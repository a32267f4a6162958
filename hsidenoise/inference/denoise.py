"""Denoising of arrays and files of any size: scale, cut into tiles, run the network, blend, scale back."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import nn

from hsidenoise.data.options import ReadOptions
from hsidenoise.inference.memory import by, enough_memory, fitting_tile, in_fitting_tiles
from hsidenoise.inference.network import Ensemble, Model, OnnxNetwork, choose_model, mirrorings, name_of, traits_of
from hsidenoise.inference.options import DenoiseOptions
from hsidenoise.inference.tiles import run_tiles
from hsidenoise.models.compiled import Compiled
from hsidenoise.signal.mask import find_extremes, spans
from hsidenoise.signal.pilot_filter import repeat_pilot_filter
from hsidenoise.signal.scaling import Scaling, fit_scaling, floating, level_offsets
from hsidenoise.signal.tiling import Tiling, tile_size
from hsidenoise.system.machine import find_precision, free_memory, in_use
from hsidenoise.system.options import takes_options, with_changes

if TYPE_CHECKING:
    from hsidenoise.data.io import Cube

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
        pilot_rounds: Rounds of the pilot filter behind the network.
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
    pilot_rounds: int
    device: str
    model: str
    seconds: float
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Run:
    """A denoised array and how it came about."""

    values: Float[np.ndarray, "bands height width"]
    scaling: Scaling
    tiling: Tiling
    pilot_rounds: int
    device: torch.device
    warnings: tuple[str, ...]


@takes_options(DenoiseOptions)
def denoise(
    noisy: Shaped[np.ndarray, "*axes"] | Shaped[torch.Tensor, "*axes"],
    model: Model | None = None,
    options: DenoiseOptions | None = None,
    **changes: Any,
) -> Float[np.ndarray, "bands height width"]:
    """Denoise a cube of any size and any number of bands.

    The cube is scaled to about [0, 1] as a whole, cut into overlapping tiles, and the network's answers are blended
    with tapers and scaled back. For a network of a fixed number of bands it is cut along the spectrum, too, into
    overlapping windows of as many bands; a cube of fewer bands is mirrored at its last band, and cropped afterwards.
    Nothing is clipped.

    A tile that does not fit the device's memory is tried again at half the size, with a warning, down to 32 pixels.

    Args:
        noisy: Cube of shape (bands, height, width), in any unit and of any integer or floating dtype. Not written to.
        model: A network with an attribute ``bands``, or what the option ``weights`` names. A network is used where it
            is: its training mode is restored, and if ``device`` moves it, it is moved back. Any other function of a
            (bands, height, width) float32 array to one like it, such as a classical method, gets the scaled cube as a
            whole; of the options, ``normalize`` alone is for it.
        options: The options together; the defaults if None.
        **changes: Options by name:

    Tiles: without ``tile``, the sizes near 96, or near what the weights ask for, that cover height and width with
    little to spare (near 96: an axis of up to about 130 pixels goes whole, 512 as seven tiles of 96); smaller ones,
    with a warning, where the memory is little. Larger tiles are faster by what overlaps less, need memory in proportion
    to their area, and denoise no better. HCANet's attention between channels is over the whole tile, so that its output
    at a pixel depends on the size of the tile: use that of the training patches. The windows of bands always overlap by
    about a third.

    Precision: with the default weights, bfloat16 is off by up to 1.1e-4 of the range in the mean, 4e-3 at most, and its
    PSNR by 0.002 dB (the scenes of `cave/validation`, centre 128 x 128, gaussian-5, gaussian-50 and mixture). ``auto`` takes it on NVIDIA GPUs since Ampere and on CPUs with AMX.

    More of single options: :func:`hsidenoise.signal.scaling.fit_scaling` (``normalize``),
    :class:`hsidenoise.models.compiled.Compiled` (how long ``compile`` takes, and when it pays),
    :class:`hsidenoise.inference.network.Ensemble`, :func:`hsidenoise.signal.pilot_filter.pilot_filter`.

    Returns:
        The denoised cube, in the unit of ``noisy``: float64 if ``noisy`` is float64 or has integers of 32 bits or more,
        else float32. The network computes in float32 on values from which the offset is subtracted, so that an offset
        costs no digits.

    Warns:
        RuntimeWarning: If values are no measurement (:func:`hsidenoise.signal.mask.find_extremes`). The network does
            not see them and they come back as they are, unless ``normalize`` is not ``auto``.

    Raises:
        ValueError: If the array is not a cube of real, finite and not all equal numbers, if an option is out of
            range, if the device is missing, if the memory does not suffice even for the smallest tile, or if the
            network is not a network of this kind or answers with values that are not finite.
        TypeError: If there is no option of that name.

    Example:
        >>> class Mean3x3(nn.AvgPool2d):
        ...     bands = 31
        >>> noisy = np.random.default_rng(0).normal(0.5, 0.1, (40, 30, 20))
        >>> denoised = denoise(noisy, Mean3x3(3, stride=1, padding=1, count_include_pad=False))
        >>> denoised.shape, denoised.dtype, bool(denoised.std() < 0.5 * noisy.std())
        ((40, 30, 20), dtype('float64'), True)
    """
    options = _options(options, changes, "denoise")
    return _denoise(_as_cube(noisy), model, options).values


@takes_options(DenoiseOptions, ReadOptions)
def denoise_file(
    source: str | Path,
    target: str | Path,
    model: Model | None = None,
    options: DenoiseOptions | None = None,
    *,
    reading: ReadOptions | None = None,
    **changes: Any,
) -> DenoisedFile:
    """Denoise the cube in a file and write a file of the same layout.

    Variable name, axis order and dtype stay, and every other variable of the file is carried over. The target is
    checked before anything is computed.

    Args:
        source: File to read, see :func:`hsidenoise.read_cube`.
        target: File to write; not the source.
        model: As for :func:`denoise`.
        options: As for :func:`denoise`.
        reading: How the source is read, see :func:`hsidenoise.read_cube`.
        **changes: Options of either kind by name:

    Returns:
        What was read, written and chosen.

    Raises:
        ValueError: As :func:`denoise` and :func:`hsidenoise.read_cube`, or if the target is the source.
        OSError: If the source cannot be read or the target cannot be written.
    """
    from hsidenoise.data.io import check_cube_target, check_values, read_cube, write_cube
    from hsidenoise.data.layout import printable
    from hsidenoise.system.files import check_source, check_target

    given = {name: changes.pop(name) for name in list(changes) if name in ReadOptions.__dataclass_fields__}
    reading = with_changes(reading or ReadOptions(), given, "denoise_file")
    options = _options(options, changes, "denoise_file", ReadOptions.__dataclass_fields__)
    check_source(source)  # first: where both are wrong, the input is what is meant
    check_target(target)
    source, target = Path(source), Path(target)
    if target.exists() and source.samefile(target):
        raise ValueError(f"{target} is the noisy file itself and would be lost; choose another output name")
    cube = read_cube(source, **reading.by_name(), exact=True)
    name = "the cube" if cube.layout is None else f"'{printable(cube.layout.key)}'"
    check_values(cube.values, f"{source}: {name}")
    check_cube_target(target, cube)
    start = time.perf_counter()
    run = _denoise(_as_cube(cube.values), model, options)
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
        pilot_rounds=run.pilot_rounds,
        device=str(run.device),
        model=name_of(options.weights if model is None else model),
        seconds=seconds,
        warnings=run.warnings,
    )


def _options(
    options: DenoiseOptions | None, changes: Mapping[str, Any], function: str, others: Iterable[str] = ()
) -> DenoiseOptions:
    """What a caller gave in either way; a ``torch.device`` is taken by its name."""
    if changes.get("passes") is not None:
        raise TypeError(f"{function}() has no option 'passes'; pilot_rounds={changes['passes'] - 1} is the same")
    if isinstance(changes.get("device"), torch.device):
        changes = {**changes, "device": str(changes["device"])}
    return with_changes(options or DenoiseOptions(), changes, function, others)


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
    if values.dtype.kind in "iu" and values.itemsize == 8 and abs(float(np.median(values))) > 2.0**53:
        raise ValueError(
            f"integers about {float(np.median(values)):.4g} are not told apart in double precision; "
            "subtract an offset from the cube first"
        )
    return values


def _denoise(noisy: np.ndarray, model: Model | None, options: DenoiseOptions, *, level: bool = False) -> _Run:
    """Everything that :func:`denoise` and :func:`denoise_file` share."""
    mirrorings(options.ensemble)  # refused before anything is read or loaded
    if not level and options.normalize == "auto" and (offsets := level_offsets(noisy)).any():
        return _denoise_level(noisy, offsets, model, options)
    extremes = find_extremes(noisy)
    scaling = fit_scaling(noisy, options.normalize, extremes)
    size, overlap = tile_size(noisy.shape[1], noisy.shape[2], options.tile, options.overlap)
    notes: list[str] = []

    def note(text: str, level: int = 4) -> None:  # the level of whoever called the public function
        notes.append(text)
        warnings.warn(text, RuntimeWarning, stacklevel=level)

    for found in extremes.found:
        advice = "kept from the network and left as it is" if scaling.mode == "auto" else "harms what is around it"
        note(f"{found}: no measurement, it seems; {advice}. Replace it, or leave out these bands or pixels, to be sure")
    if callable(model) and not isinstance(model, nn.Module | str | Path):
        place, (bands, height, width) = torch.device("cpu"), noisy.shape
        with enough_memory(place, f"for {name_of(model)}, which takes the whole cube at once", "denoise a part of it"):
            values = scaling.invert(model(scaling.apply(noisy)), floating(noisy.dtype))
        hidden = scaling.hides(noisy)
        values[hidden] = noisy[hidden]
        whole = Tiling((bands, height, width), (bands, height, width), (0, 0, 0))
        return _Run(values, scaling, whole, 0, place, tuple(notes))
    network, place = choose_model(
        options.weights if model is None else model, options.device, options.precision, options.compile
    )
    traits = traits_of(network)
    if options.tile is None and traits.tile is not None:
        size, overlap = tile_size(noisy.shape[1], noisy.shape[2], None, options.overlap, usual=traits.tile)
    size = min(size[0], noisy.shape[1]), min(size[1], noisy.shape[2])
    precision = find_precision("float32" if isinstance(network, OnnxNetwork) else options.precision, place)
    bands = traits.bands or len(noisy)
    rounds = traits.pilot_rounds if options.pilot_rounds is None else options.pilot_rounds
    run: nn.Module = Compiled(network) if options.compile else network
    if options.ensemble > 1:
        run = Ensemble(run, options.ensemble)
    if options.tile is None:
        wanted = size
        size = fitting_tile(run, bands, wanted, free_memory(place))
        if size != wanted:
            overlap = min(overlap * max(size) // max(wanted), max(size) - 1)
            note(f"little memory is left on {place}; taking tiles of {by(size)} pixels, overlap {overlap}")

    def in_tiles(tile: tuple[int, int], overlap: int) -> tuple[np.ndarray, Tiling]:
        tiling = _tiling(noisy.shape, bands, tile, overlap)
        values = run_tiles(
            noisy,
            run,
            bands,
            scaling,
            tiling,
            place,
            precision=precision,
            batch=options.batch,
            progress=options.progress,
        )
        return values, tiling

    with in_use(run, place):
        values, tiling = in_fitting_tiles(in_tiles, size, overlap, place, partial(note, level=5))
    with enough_memory(
        place,
        f"for the pilot filter, which takes the whole cube of {noisy.shape} at once",
        "the network alone (--pilot-rounds 0) does without it",
    ):
        values = repeat_pilot_filter(noisy, values, rounds, scaling, device=place)
    hidden = scaling.hides(noisy)
    values[hidden] = noisy[hidden]
    return _Run(values, scaling, tiling, rounds, place, tuple(notes))


def _denoise_level(noisy: np.ndarray, offsets: np.ndarray, model: Model | None, options: DenoiseOptions) -> _Run:
    """Denoise a cube without the offsets of some of its bands, which come back at the end."""
    exact = floating(noisy.dtype)
    level = np.empty(noisy.shape, exact)
    for band, target, offset in zip(noisy, level, offsets, strict=True):
        target[...] = band.astype(np.float64) - offset
    far = np.flatnonzero(offsets).tolist()
    text = (
        f"band{'s' * (len(far) != 1)} {spans(far)}: more than a hundred times as far from the other bands as "
        "their own values are from each other; denoised without that offset, which is added at the end"
    )
    warnings.warn(text, RuntimeWarning, stacklevel=4)
    run = _denoise(level, model, options, level=True)
    hidden = run.scaling.hides(level)
    for band, offset in zip(run.values, offsets, strict=True):
        band[...] = band.astype(np.float64) + offset
    run.values[hidden] = noisy[hidden]
    return dataclasses.replace(run, warnings=(text, *run.warnings))


def _tiling(shape: tuple[int, ...], bands: int, tile: tuple[int, int], overlap: int) -> Tiling:
    """Tiles of one window of bands; an axis that fits into a tile is taken whole, and nothing overlaps there."""
    axes = zip(shape, (bands, *tile), (bands // _BAND_OVERLAP, overlap, overlap), strict=True)
    (depth, z, dz), (height, y, dy), (width, x, dx) = (
        (length, min(size, length), shared if size < length else 0) for length, size, shared in axes
    )
    return Tiling((depth, height, width), (z, y, x), (dz, dy, dx))
