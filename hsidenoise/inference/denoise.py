"""Denoising of arrays and files of any size: scale, cut into tiles, run the network, blend, scale back."""

from __future__ import annotations

import dataclasses
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import nn

from hsidenoise.data.options import ReadOptions
from hsidenoise.inference.arrays import as_cube
from hsidenoise.inference.memory import by, enough_memory, fitting_tile, in_fitting_tiles
from hsidenoise.inference.network import (
    Ensemble,
    Model,
    OnnxNetwork,
    Told,
    choose_model,
    mirrorings,
    name_of,
    traits_of,
)
from hsidenoise.inference.options import DenoiseOptions
from hsidenoise.inference.tiles import run_tiles
from hsidenoise.models.compiled import Compiled
from hsidenoise.signal.lost_values import fill_gaps
from hsidenoise.signal.mask import BadBands, Extremes, Mask, constant_bands, find_mask, fitting_mask, named_bands
from hsidenoise.signal.noise_level import explained_by_others
from hsidenoise.signal.pilot_filter import repeat_pilot_filter
from hsidenoise.signal.scaling import Scaling, fit_scaling, floating, level_offsets
from hsidenoise.signal.tiling import Tiling, tile_size
from hsidenoise.system.machine import find_precision, free_memory, in_use
from hsidenoise.system.options import takes_options, with_changes

if TYPE_CHECKING:
    from hsidenoise.data.io import Cube

# Windows of bands overlap by a third of the network's bands: at its edges a window lacks neighbours to compare with.
_BAND_OVERLAP = 3

_FEWEST_PIXELS = 4  # with data: fewer are no image


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
    noisy: Any,
    model: Model | None = None,
    options: DenoiseOptions | None = None,
    *,
    axes: str | None = None,
    mask: Shaped[np.ndarray, "*mask_axes"] | None = None,
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
        axes: What the axes are, such as ``"hwb"`` for (height, width, bands). None: bands first, with a warning if the
            values say clearly otherwise; of a DataArray, what its dimensions are called (band or wavelength, y or lat,
            x or lon, and the like).
        mask: Where there is data (nonzero): an array of the shape of the cube, of (height, width) or of (bands,).
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
        ValueError: If the array is not a cube of real and not all equal numbers, if fewer than 2 x 2 pixels hold data,
            if an option is out of range, if the device is missing, if the memory does not suffice even for the smallest
            tile, or if the network is not a network of this kind or answers with values that are not finite.
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
    given = as_cube(noisy, axes)
    cube = _as_cube(given.values)
    known = given.mask
    if mask is not None:
        known = fitting_mask(given.same_way(mask), cube.shape) & (True if known is None else known)
    nodata = given.nodata if nodata is None else nodata
    found = find_mask(cube, nodata=nodata, given=known, bad_bands=bad_bands)
    noise = None if options.noise is None else _known_noise(given.same_way(options.noise), cube.shape)
    run = _denoise(cube, found, model, options, keep=bad_bands == "keep", noise=noise)
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
    checked before anything is computed.

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
    from hsidenoise.data.io import (
        check_cube_target,
        check_other,
        check_values,
        locate,
        read_beside,
        read_cube,
        write_cube,
    )
    from hsidenoise.data.layout import printable
    from hsidenoise.system.files import check_source, check_target

    given = {name: changes.pop(name) for name in list(changes) if name in ReadOptions.__dataclass_fields__}
    reading = with_changes(reading or ReadOptions(), given, "denoise_file")
    options = _options(options, changes, "denoise_file", ReadOptions.__dataclass_fields__)
    source, key = locate(source, reading.key)
    reading, target = dataclasses.replace(reading, key=key), Path(target)
    check_source(source)  # first: where both are wrong, the input is what is meant
    check_target(target)
    check_other(source, target)
    cube = read_cube(source, **reading.by_name(), exact=True)
    name = "the cube" if cube.layout is None else f"'{printable(cube.layout.key)}'"
    check_values(cube.values, f"{source}: {name}", cube.mask)
    check_cube_target(target, cube)
    noise = options.noise
    if noise is not None:
        if isinstance(noise, str | Path) and cube.layout is not None:
            noise = read_beside(source, noise, cube.layout, cube.values.shape, "noise")
        noise = _known_noise(noise, cube.values.shape)
    if announce is not None:
        announce(cube, _scaling_of(cube, options))
    start = time.perf_counter()
    found = Mask(cube.mask, cube.not_data, asked=0)
    run = _denoise(_as_cube(cube.values), found, model, options, keep=reading.bad_bands == "keep", noise=noise)
    _weaker(cube.values, run.values, options.strength)
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


def _known_noise(noise: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A noise level that a caller gave: of each band, or (bands, height, width)."""
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
    if given.ndim == 1 and not usable.all():
        raise ValueError(
            f"the noise level of band {int(np.argmin(usable))} is {given[np.argmin(usable)]:g}; above 0 is needed"
        )
    if not usable.any():
        raise ValueError("the noise level is nowhere above 0")
    return given


def _denoise_even(
    noisy: np.ndarray, found: Mask, model: Model | None, options: DenoiseOptions, keep: bool, noise: np.ndarray
) -> _Run:
    """Denoise a cube whose noise differs from pixel to pixel: the filters see one where it is the same.

    Around the mean of each band, values are divided by how strong the noise is there against the band, and multiplied
    again at the end. A pixel without a noise level above 0 counts as its band.
    """
    usable = np.isfinite(noise) & (noise > 0)
    if found.valid is not None:
        usable &= found.valid
    values = floating(noisy.dtype).type(1) * noisy
    middle, level = np.zeros(len(noisy)), np.ones(len(noisy))
    relative = np.ones(noisy.shape)
    for band in range(len(noisy)):
        here = usable[band]
        if here.any():
            level[band] = np.sqrt(np.square(noise[band][here]).mean())
            middle[band] = noisy[band][here].astype(np.float64).mean()
            relative[band][here] = noise[band][here] / level[band]
            values[band][here] = (noisy[band][here] - middle[band]) / relative[band][here] + middle[band]
    run = _denoise(values, found, model, options, keep=keep, noise=level)
    for band in range(len(noisy)):
        here = usable[band]
        back = run.values[band]
        same = back == values[band]
        back[here] = (back[here] - middle[band]) * relative[band][here] + middle[band]
        back[same] = noisy[band][same]
    return run


def _weaker(noisy: np.ndarray, denoised: np.ndarray, strength: float) -> np.ndarray:
    """Take away a share only, in place."""
    if strength < 1:
        for band, target in zip(noisy, denoised, strict=True):
            changed = np.isfinite(band) & (target != band)  # what holds no data stays as it is
            before = band[changed].astype(np.float64)
            target[changed] = before + strength * (target[changed] - before)
    return denoised


def _scaling_of(cube: Cube, options: DenoiseOptions) -> Scaling:
    values = cube.values
    if cube.mask is not None:
        values = np.where(cube.mask, values, np.median(values[cube.mask]))
    return fit_scaling(_as_cube(values), options.normalize, Extremes(-np.inf, np.inf, ()))


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


def _denoise(
    noisy: np.ndarray,
    found: Mask,
    model: Model | None,
    options: DenoiseOptions,
    *,
    keep: bool = False,
    noise: np.ndarray | None = None,
) -> _Run:
    """Everything that :func:`denoise` and :func:`denoise_file` share."""
    if noise is not None and noise.ndim == 3:
        return _denoise_even(noisy, found, model, options, keep, noise)
    mirrorings(options.ensemble)  # refused before anything is read or loaded
    job = _Job(model, options, keep, noise)
    for reason in found.reasons[found.asked :]:
        job.note(f"{reason}; left out and kept as it is")
    run = job.valid_part(noisy, found.valid)
    return dataclasses.replace(run, warnings=tuple(job.notes))


@dataclass(frozen=True)
class _Job:
    """What is the same for every part of a cube.

    Attributes:
        model: As for :func:`denoise`.
        options: As for :func:`denoise`.
        keep: Whether bands of nothing but noise come back as they are.
        sigma: Noise level of each band of the part, in the unit of the cube; None: estimated.
        notes: What a user should know.
    """

    model: Model | None
    options: DenoiseOptions
    keep: bool
    sigma: np.ndarray | None = None
    notes: list[str] = dataclasses.field(default_factory=list)

    def note(self, text: str) -> None:
        """Warn, in the name of whoever called the public function."""
        self.notes.append(text)
        frame: FrameType | None = sys._getframe()
        level = outermost = 0
        while frame is not None:
            level += 1
            if frame.f_code.co_filename == __file__:
                outermost = level
            frame = frame.f_back
        warnings.warn(text, RuntimeWarning, stacklevel=outermost + 1)

    def of(self, bands: np.ndarray) -> _Job:
        """The same for some of the bands."""
        return self if self.sigma is None else dataclasses.replace(self, sigma=self.sigma[bands])

    def scaled_sigma(self, scaling: Scaling) -> np.ndarray | None:
        """The noise level on the scale that a network sees."""
        return None if self.sigma is None else np.asarray(self.sigma / scaling.scale, np.float64)

    def valid_part(self, noisy: np.ndarray, valid: Bool[np.ndarray, "bands height width"] | None) -> _Run:
        """Denoise what holds data; all else comes back as it is."""
        constant = constant_bands(noisy, valid)
        if constant.any() and not constant.all():  # of a cube that is constant as a whole, that is said
            self.note(f"one value only: {named_bands(np.flatnonzero(constant).tolist())}; left out and kept as it is")
            valid = np.broadcast_to(~constant[:, None, None], noisy.shape) & (True if valid is None else valid)
        if valid is None:
            return self.whole(noisy, None)
        exact = floating(noisy.dtype)
        pixels = np.asarray(valid.any(axis=0))
        if (count := int(pixels.sum())) < _FEWEST_PIXELS:
            raise ValueError(f"only {count} of {pixels.size} pixels hold data: nothing can be denoised")
        rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        bands = np.flatnonzero(valid.any(axis=(1, 2)))
        known = valid[(bands, *box)]
        run = self.of(bands).whole(fill_gaps(noisy[(bands, *box)].astype(exact), known), pixels[box])
        values = noisy.astype(exact)
        values[(bands, *box)] = np.where(known, run.values, values[(bands, *box)])
        return dataclasses.replace(run, values=values)

    def whole(self, noisy: np.ndarray, pixels: Bool[np.ndarray, "height width"] | None, level: bool = False) -> _Run:
        """Denoise a cube of which every value is a number.

        Args:
            noisy: The cube.
            pixels: Those that hold data; the others only look like it.
            level: Whether bands of far levels were looked for.
        """
        if min(noisy.shape[1:]) == 1 and noisy[0].size >= _FEWEST_PIXELS:
            return self.line(noisy, pixels)
        if not level and self.options.normalize == "auto" and (offsets := level_offsets(noisy)).any():
            return self.without_offsets(noisy, offsets, pixels)
        scaling = fit_scaling(noisy, self.options.normalize, Extremes(-np.inf, np.inf, ()))
        if (far := scaling.hides(noisy)).any():
            return self.valid_part(noisy, ~far)
        if 0 < len(scaling.lost) < len(noisy):
            return self.without_lost(noisy, scaling, pixels)
        return self.through_model(noisy, scaling, pixels)

    def line(self, noisy: np.ndarray, pixels: np.ndarray | None) -> _Run:
        """Denoise a scan line, folded into an image of two rows: methods for images take no less."""
        count = noisy[0].size
        half = -(-count // 2)
        # the second half runs back below the first; the last pixel of an odd number stands there twice
        places = np.stack([np.arange(half), np.minimum(np.arange(2 * half - 1, half - 1, -1), count - 1)])
        known = None if pixels is None else pixels.reshape(-1)[places]
        run = self.whole(noisy.reshape(len(noisy), -1)[:, places], known)
        values = np.empty((len(noisy), count), run.values.dtype)
        values[:, places] = run.values
        return dataclasses.replace(run, values=values.reshape(noisy.shape))

    def without_offsets(self, noisy: np.ndarray, offsets: np.ndarray, pixels: np.ndarray | None) -> _Run:
        """Denoise a cube without the offsets of some of its bands, which come back at the end."""
        exact = floating(noisy.dtype)
        level = np.empty(noisy.shape, exact)
        for band, target, offset in zip(noisy, level, offsets, strict=True):
            target[...] = band.astype(np.float64) - offset
        far = np.flatnonzero(offsets).tolist()
        self.note(
            f"{named_bands(far)}: more than a hundred times as far from the other bands as their own values are from "
            "each other; denoised without that offset, which is added at the end"
        )
        run = self.whole(level, pixels, level=True)
        for band, before, noisy_band, offset in zip(run.values, level, noisy, offsets, strict=True):
            # what came back as it was is what it was
            band[...] = np.where(band == before, noisy_band, band.astype(np.float64) + offset)
        return run

    def without_lost(self, noisy: np.ndarray, scaling: Scaling, pixels: np.ndarray | None) -> _Run:
        """Denoise the bands that are not noise alone, and say of these what the others explain."""
        lost = list(scaling.lost)
        others = np.setdiff1d(np.arange(len(noisy)), lost)
        done = "left out and kept as it is" if self.keep else "replaced by what the other bands explain of it"
        self.note(f"noise alone: {named_bands(lost)}; {done}")
        run = self.of(others).whole(noisy[others], pixels, level=True)
        values = np.empty(noisy.shape, run.values.dtype)
        values[others] = run.values
        values[lost] = noisy[lost] if self.keep else explained_by_others(noisy[lost].astype(values.dtype), run.values)
        return dataclasses.replace(run, values=values)

    def through_model(self, noisy: np.ndarray, scaling: Scaling, pixels: np.ndarray | None) -> _Run:
        """Denoise a cube."""
        model, options = self.model, self.options
        size, overlap = tile_size(noisy.shape[1], noisy.shape[2], options.tile, options.overlap)
        if callable(model) and not isinstance(model, nn.Module | str | Path):
            place, (bands, height, width) = torch.device("cpu"), noisy.shape
            with enough_memory(
                place, f"for {name_of(model)}, which takes the whole cube at once", "denoise a part of it"
            ):
                told = self.scaled_sigma(scaling)
                if told is not None and "sigma" not in signature(model).parameters:
                    raise ValueError(f"{name_of(model)} cannot be given a noise level; leave --noise out")
                answer = model(scaling.apply(noisy), *([] if told is None else [told]))
                values = scaling.invert(answer, floating(noisy.dtype))
            return _Run(
                values, scaling, Tiling((bands, height, width), (bands, height, width), (0, 0, 0)), 0, place, ()
            )
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
        if (told := self.scaled_sigma(scaling)) is not None:  # the filters take it, which are not compiled
            run = Told(network, torch.from_numpy(told).float().to(place))
        if options.ensemble > 1:
            run = Ensemble(run, options.ensemble)
        if options.tile is None:
            wanted = size
            size = fitting_tile(run, bands, wanted, free_memory(place))
            if size != wanted:
                overlap = min(overlap * max(size) // max(wanted), max(size) - 1)
                self.note(f"little memory is left on {place}; taking tiles of {by(size)} pixels, overlap {overlap}")

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
                pixels=None if rounds else pixels,  # the pilot filter looks at all of them
            )
            return values, tiling

        with in_use(run, place):
            values, tiling = in_fitting_tiles(in_tiles, size, overlap, place, self.note)
        with enough_memory(
            place,
            f"for the pilot filter, which takes the whole cube of {noisy.shape} at once",
            "the network alone (--pilot-rounds 0) does without it",
        ):
            values = repeat_pilot_filter(noisy, values, rounds, scaling, device=place)
        return _Run(values, scaling, tiling, rounds, place, ())


def _tiling(shape: tuple[int, ...], bands: int, tile: tuple[int, int], overlap: int) -> Tiling:
    """Tiles of one window of bands; an axis that fits into a tile is taken whole, and nothing overlaps there."""
    axes = zip(shape, (bands, *tile), (bands // _BAND_OVERLAP, overlap, overlap), strict=True)
    (depth, z, dz), (height, y, dy), (width, x, dx) = (
        (length, min(size, length), shared if size < length else 0) for length, size, shared in axes
    )
    return Tiling((depth, height, width), (z, y, x), (dz, dy, dx))
