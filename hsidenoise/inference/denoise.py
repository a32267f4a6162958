"""Denoising of arrays and files of any size: scale, cut into tiles, run the network, blend, scale back."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Shaped

from hsidenoise.data.options import ReadOptions
from hsidenoise.inference.arrays import as_cube
from hsidenoise.inference.job import run_model
from hsidenoise.inference.network import (
    Model,
    name_of,
)
from hsidenoise.inference.options import DenoiseOptions
from hsidenoise.inference.record import record_of, text_of
from hsidenoise.signal.mask import BadBands, Mask, find_mask, fitting_mask
from hsidenoise.signal.scaling import Scaling
from hsidenoise.system.options import takes_options, with_changes

if TYPE_CHECKING:
    from hsidenoise.data.io import Cube


@dataclass(frozen=True)
class DenoisedFile:
    """What :func:`denoise_file` did.

    Attributes:
        source: The file that was read.
        target: The file that was written.
        cube: What was read.
        denoised: What was written, before the file's dtype rounded it; its metadata has the record as text.
        scaling: The scaling that took the values to the network's range; ``reason`` says why.
        tile: Height and width of the tiles in the end, pixels.
        overlap: Smallest overlap of the tiles, pixels.
        windows: Number of windows of bands.
        pilot_rounds: Rounds of the pilot filter behind the network.
        device: Where the network ran, such as ``cpu`` or ``cuda:0``.
        model: Name of the weights, or of the network's class.
        seconds: Time for denoising, without reading and writing.
        warnings: What a user should know, already issued as warnings.
        record: How it was done, and what was taken away from each band, see :mod:`hsidenoise.inference.record`.
        recorded: The file that holds this: the target, there without the numbers of each band, or
            ``<target>.json`` where its format has no place for it; None if that could not be written.
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
    record: dict[str, Any]
    recorded: Path | None


@takes_options(DenoiseOptions)
def denoise(
    noisy: Any,
    model: Model | None = None,
    options: DenoiseOptions | None = None,
    *,
    axes: str | None = None,
    mask: Any = None,
    nodata: float | None = None,
    bad_bands: BadBands = "auto",
    **changes: Any,
) -> Any:
    """Denoise a cube of any size and any number of bands.

    The cube is scaled to about [0, 1] as a whole, cut into overlapping tiles, and the network's answers are blended
    with tapers and scaled back. For a network of a fixed number of bands it is cut along the spectrum, too, into
    overlapping windows of as many bands; a cube of fewer bands is mirrored at its last band, and cropped afterwards.
    Nothing is clipped.

    A tile that does not fit the device's memory is tried again at half the size, with a warning, down to 32 pixels.

    Args:
        noisy: Cube of shape (bands, height, width), in any unit and of any integer or floating dtype: a NumPy array,
            masked array, torch tensor, xarray DataArray or :class:`hsidenoise.Cube`. Not written to.
        model: A network with an attribute ``bands``, or what the option ``weights`` names. A network is used where it
            is: its training mode is restored, and if ``device`` moves it, it is moved back. Any other function of a
            (bands, height, width) float32 array to one like it, such as a classical method, gets the scaled cube as a
            whole; of the options, ``normalize`` alone is for it.
        options: The options together; the defaults if None.
        axes: What the axes are, such as ``"hwb"`` for (height, width, bands). None: bands first, unless the values say
            clearly otherwise (with a warning); of a DataArray, what its dimensions are called (band or wavelength, y or
            lat, x or lon, and the like).
        mask: Where there is data (nonzero): an array of the shape of the cube, of its height and width in the order of
            ``axes``, or of (bands,); dimensions with names are taken by their names.
        nodata: The value that stands for no data.
        bad_bands: Bands without data: numbers from 0, or a text such as ``0-3,104``. Bands of nothing but noise, so
            strong that they would drown the others, are replaced by what the others explain of them; with ``keep`` they
            come back as they are.
        **changes: Options by name:

    No data: what does not hold data (see :func:`hsidenoise.signal.mask.find_mask`: also NaN, marks such as -9999, hot
    pixels, the zeros around a flight line, bands of one value) takes no part in anything, and comes back bit for bit.

    Tiles: without ``tile``, the sizes near 96, or near what the weights ask for, that cover height and width with
    little to spare (near 96: an axis of up to about 130 pixels goes whole, 512 as seven tiles of 96); smaller ones,
    with a warning, where the memory is little. Larger tiles are faster by what overlaps less, need memory in proportion
    to their area, and denoise no better. HCANet's attention between channels is over the whole tile, so that its output
    at a pixel depends on the size of the tile: use that of the training patches. The windows of bands always overlap by
    about a third.

    Precision: with the default weights, bfloat16 is off by up to 1.1e-4 of the range in the mean, 4e-3 at most, and its
    PSNR by 0.002 dB (the scenes of `cave/validation`, centre 128 x 128, gaussian-5, gaussian-50 and mixture). ``auto``
    takes it on NVIDIA GPUs since Ampere and on CPUs with AMX.

    More of single options: :func:`hsidenoise.signal.scaling.fit_scaling` (``normalize``),
    :class:`hsidenoise.models.compiled.Compiled` (how long ``compile`` takes, and when it pays),
    :class:`hsidenoise.inference.network.Ensemble`, :func:`hsidenoise.signal.pilot_filter.pilot_filter`.

    Returns:
        The denoised cube, of the kind of ``noisy`` (its axes, coordinates, attributes, mask, device) and in its unit:
        float64 if ``noisy`` is float64 or has integers of 32 bits or more, else float32. The network computes in
        float32 on values from which the offset is subtracted, so that an offset costs no digits.

    Warns:
        RuntimeWarning: For each kind of values that hold no data and were not named by the caller.

    Raises:
        ValueError: If the array is not a cube of real and not all equal numbers, if fewer than 4 of its pixels hold
            data, if an option is out of range, if the device is missing, if the memory does not suffice even for the
            smallest tile, or if the network is not a network of this kind or answers with values that are not finite.
        TypeError: If there is no option of that name.

    Example:
        >>> from torch import nn
        >>> class Mean3x3(nn.AvgPool2d):
        ...     bands = 31
        >>> noisy = np.random.default_rng(0).normal(0.5, 0.1, (40, 30, 20))
        >>> denoised = denoise(noisy, Mean3x3(3, stride=1, padding=1, count_include_pad=False))
        >>> denoised.shape, denoised.dtype, bool(denoised.std() < 0.5 * noisy.std())
        ((40, 30, 20), dtype('float64'), True)
    """
    options = _options(options, changes, "denoise")
    given = as_cube(noisy, axes)
    cube = _as_cube(given.values)
    known = given.mask
    if mask is not None:
        fitting = np.broadcast_to(fitting_mask(given.same_way(mask), cube.shape), cube.shape)
        known = fitting if known is None else fitting & known
    nodata = given.nodata if nodata is None else nodata
    found = find_mask(cube, nodata=nodata, given=known, bad_bands=bad_bands)
    noise = None if options.noise is None else _known_noise(given.same_way(options.noise), cube.shape, found.valid)
    run = run_model(cube, found, model, options, keep=bad_bands == "keep", noise=noise)
    return given.back(_weaker(cube, run.values, options.strength))


@takes_options(DenoiseOptions, ReadOptions)
def denoise_file(
    source: str | Path,
    target: str | Path,
    model: Model | None = None,
    options: DenoiseOptions | None = None,
    *,
    reading: ReadOptions | None = None,
    announce: Callable[[Cube, Scaling], None] | None = None,
    **changes: Any,
) -> DenoisedFile:
    """Denoise the cube in a file and write a file of the same layout.

    Variable name, axis order and dtype stay, and every other variable of the file is carried over. The target is
    checked before anything is computed. How it was done is written too: into the file, or where its format has no
    place for that (MATLAB v4 and v5, .npy) beside it.

    Args:
        source: File to read, see :func:`hsidenoise.read_cube`.
        target: File to write; not the source.
        model: As for :func:`denoise`.
        options: As for :func:`denoise`.
        reading: How the source is read, see :func:`hsidenoise.read_cube`.
        announce: Called with what was read and how it will be scaled, before anything is computed; what it raises ends
            all.
        **changes: Options of either kind by name:

    Returns:
        What was read, written and chosen.

    Raises:
        ValueError: As :func:`denoise` and :func:`hsidenoise.read_cube`, or if the target is the source.
        OSError: If the source cannot be read or the target cannot be written.
    """
    from hsidenoise.data.io import check_cube_target, check_values, read_cube, write_cube
    from hsidenoise.data.layout import printable
    from hsidenoise.data.metadata import Metadata
    from hsidenoise.data.sources import check_name, check_other, locate, read_beside
    from hsidenoise.system.files import check_source, check_target

    given = {name: changes.pop(name) for name in list(changes) if name in ReadOptions.__dataclass_fields__}
    reading = with_changes(reading or ReadOptions(), given, "denoise_file")
    options = _options(options, changes, "denoise_file", ReadOptions.__dataclass_fields__)
    source, key = locate(source, reading.key)
    reading, target = dataclasses.replace(reading, key=key), Path(target)
    check_source(source)  # first: where both are wrong, the input is what is meant
    check_target(target)
    check_other(source, target, read=(reading.mask, options.noise))
    check_name(target, source)
    cube = read_cube(source, **reading.by_name(), exact=True)
    name = "the cube" if cube.layout is None else f"'{printable(cube.layout.key)}'"
    check_values(cube.values, f"{source}: {name}", cube.mask)
    _, _, inside = check_cube_target(target, cube)
    noise = options.noise
    if noise is not None:
        if isinstance(noise, str | Path) and cube.layout is not None:
            noise = read_beside(source, noise, cube.layout, cube.values.shape, "noise")
        noise = _known_noise(noise, cube.values.shape, cube.mask)
    start = time.perf_counter()
    run = run_model(
        _as_cube(cube.values),
        Mask(cube.mask, cube.not_data, asked=0),
        model,
        options,
        keep=reading.bad_bands == "keep",
        noise=noise,
        announce=None if announce is None else partial(announce, cube),
    )
    _weaker(cube.values, run.values, options.strength)
    seconds = time.perf_counter() - start
    denoised = dataclasses.replace(cube, values=run.values)
    record = record_of(cube, denoised, run, model, options, reading, target, seconds)
    text = text_of(record, short=inside)
    denoised = dataclasses.replace(denoised, metadata=dataclasses.replace(cube.metadata or Metadata(), record=text))
    recorded = write_cube(target, denoised)
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
        record=record,
        recorded=recorded,
    )


def _known_noise(noise: Any, shape: tuple[int, ...], valid: np.ndarray | None) -> np.ndarray:
    """A noise level that a caller gave: of each band, or (bands, height, width). NaN will do for bands without data."""
    given = np.asarray(noise, dtype=np.float64)
    if given.size == 1:
        given = np.full(shape[0], given.item())
    elif given.shape == shape[1:]:
        given = np.broadcast_to(given, shape)
    if given.shape not in (shape, shape[:1]):
        raise ValueError(
            f"a noise level of {given.shape} for a cube of {shape}; give one number, one for each band, pixel, or value"
        )
    usable = np.isfinite(given) & (given > 0)
    if given.ndim == 1 and valid is not None:
        usable |= ~np.broadcast_to(valid, shape).any(axis=(1, 2))
    if given.ndim == 1 and not usable.all():
        raise ValueError(
            f"the noise level of band {int(np.argmin(usable))} is {given[np.argmin(usable)]:g}; above 0 is needed"
        )
    if not usable.any():
        raise ValueError("the noise level is nowhere above 0")
    return given


def _weaker(noisy: np.ndarray, denoised: np.ndarray, strength: float) -> np.ndarray:
    """Take away a share only, in place."""
    if strength < 1:
        for band, target in zip(noisy, denoised, strict=True):
            changed = np.isfinite(band) & (target != band)  # what holds no data stays as it is
            before = band[changed].astype(np.float64)
            target[changed] = before + strength * (target[changed] - before)
    return denoised


def _options(
    options: DenoiseOptions | None, changes: Mapping[str, Any], function: str, others: Iterable[str] = ()
) -> DenoiseOptions:
    """What a caller gave in either way; a ``torch.device`` is taken by its name."""
    if changes.get("passes") is not None:
        raise TypeError(f"{function}() has no option 'passes'; pilot_rounds={changes['passes'] - 1} is the same")
    if isinstance(changes.get("device"), torch.device):
        changes = {**changes, "device": str(changes["device"])}
    return with_changes(options or DenoiseOptions(), changes, function, others)


def _as_cube(values: Shaped[np.ndarray, "bands height width"]) -> np.ndarray:
    """The same, refused unless it is a cube of real numbers."""
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
