"""A cube in memory through one model: what holds data, what stands apart, scaling, tiles, the pilot filter."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import nn

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
from hsidenoise.signal.bad_bands import bands_apart, explained_by_others
from hsidenoise.signal.lost_values import fill_gaps, replaced_values
from hsidenoise.signal.mask import Extremes, Mask, constant_bands, named_bands
from hsidenoise.signal.pilot_filter import repeat_pilot_filter
from hsidenoise.signal.scaling import Scaling, fit_scaling, floating, level_offsets
from hsidenoise.signal.tiling import Tiling, tile_size
from hsidenoise.system.machine import find_precision, free_memory, in_use

# Windows of bands overlap by a third of the network's bands: at its edges a window lacks neighbours to compare with.
_BAND_OVERLAP = 3

_MANY_HIDDEN = 0.1  # share of a band that is too far outside of the range for a network: a band in another unit
_FEWEST_PIXELS = 4  # fewer are no image
_HERE = str(Path(__file__).parent)


@dataclass(frozen=True)
class Run:
    """A denoised array and how it came about.

    Attributes:
        values: The denoised array.
        replaced: True where a value was not denoised but replaced by what others say; None if the model does not tell.
        scaling: What took the values to the model's range.
        tiling: The tiles.
        pilot_rounds: Rounds of the pilot filter.
        device: Where the model ran.
        warnings: What a user should know.
    """

    values: Float[np.ndarray, "bands height width"]
    replaced: Bool[np.ndarray, "bands height width"] | None
    scaling: Scaling
    tiling: Tiling
    pilot_rounds: int
    device: torch.device
    warnings: tuple[str, ...]

    def within(self, values: np.ndarray, index: Any, known: np.ndarray | bool = True) -> Run:
        """The run of a whole cube, of values that hold those of this part, which are some places of it."""
        replaced = None
        if self.replaced is not None:
            replaced = np.zeros(values.shape, np.bool_)
            replaced[index] = self.replaced & known
        return dataclasses.replace(self, values=values, replaced=replaced)


def run_model(
    noisy: Shaped[np.ndarray, "bands height width"],
    found: Mask,
    model: Model | None,
    options: DenoiseOptions,
    *,
    keep: bool = False,
    noise: Float[np.ndarray, "*levels"] | None = None,
    announce: Callable[[Scaling], None] | None = None,
) -> Run:
    """Denoise a cube: what :func:`hsidenoise.denoise` and :func:`hsidenoise.denoise_file` share.

    Args:
        noisy: The cube, in any unit.
        found: What of it holds data.
        model: As for :func:`hsidenoise.denoise`, as are the options.
        options: All but ``strength`` and ``noise``.
        keep: Whether bands of nothing but noise come back as they are.
        noise: Noise level of each band, or of each value, in the unit of the cube; None: estimated.
        announce: Called with the scaling before a model is loaded; what it raises ends all.
    """
    if noise is not None and noise.ndim == 3:
        return _even(noisy, found, model, options, keep, noise, announce)
    mirrorings(options.ensemble)  # refused before anything is read or loaded
    job = _Job(model, options, keep, np.arange(len(noisy)), noise, [] if announce is None else [announce])
    for reason in found.reasons[found.asked :]:
        job.note(f"{reason}; left out and kept as it is")
    run = job.valid_part(noisy, found.valid)
    return dataclasses.replace(run, warnings=tuple(job.notes))


def _even(
    noisy: np.ndarray,
    found: Mask,
    model: Model | None,
    options: DenoiseOptions,
    keep: bool,
    noise: np.ndarray,
    announce: Callable[[Scaling], None] | None,
) -> Run:
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
    run = run_model(values, found, model, options, keep=keep, noise=level, announce=announce)
    for band in range(len(noisy)):
        here = usable[band]
        back = run.values[band]
        same = back == values[band]
        back[here] = (back[here] - middle[band]) * relative[band][here] + middle[band]
        back[same] = noisy[band][same]
    return run


@dataclass(frozen=True)
class _Job:
    """What is the same for every part of a cube.

    Attributes:
        model: As for :func:`denoise`.
        options: As for :func:`denoise`.
        keep: Whether bands of nothing but noise come back as they are.
        numbers: Which bands of the whole cube the part has.
        sigma: Noise level of each band of the part, in the unit of the cube; None: estimated.
        announce: Who is to be told of the scaling, once.
        notes: What a user should know.
    """

    model: Model | None
    options: DenoiseOptions
    keep: bool
    numbers: np.ndarray
    sigma: np.ndarray | None = None
    announce: list[Callable[[Scaling], None]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def note(self, text: str) -> None:
        """Warn, in the name of whoever called the public function."""
        if text in self.notes:
            return
        self.notes.append(text)
        frame: FrameType | None = sys._getframe()
        level = outermost = 0
        while frame is not None:
            level += 1
            if frame.f_code.co_filename.startswith(_HERE):
                outermost = level
            frame = frame.f_back
        warnings.warn(text, RuntimeWarning, stacklevel=outermost + 1)

    def of(self, bands: np.ndarray) -> _Job:
        """The same for some of the bands."""
        sigma = None if self.sigma is None else self.sigma[bands]
        return dataclasses.replace(self, numbers=self.numbers[bands], sigma=sigma)

    def named(self, bands: Any) -> str:
        """Bands of the part, for people: by their numbers in the whole cube."""
        return named_bands(self.numbers[bands].tolist())

    def scaled_sigma(self, scaling: Scaling) -> np.ndarray | None:
        """The noise level on the scale that a network sees."""
        return None if self.sigma is None else np.asarray(self.sigma / scaling.scale, np.float64)

    def valid_part(self, noisy: np.ndarray, valid: Bool[np.ndarray, "bands height width"] | None) -> Run:
        """Denoise what holds data; all else comes back as it is."""
        if noisy[0].size < _FEWEST_PIXELS and noisy.min() < noisy.max():  # a constant cube is refused as any other
            return self.untouched(noisy)
        constant = constant_bands(noisy, valid)
        if constant.any() and not constant.all():  # of a cube that is constant as a whole, that is said
            self.note(f"one value only: {self.named(constant)}; left out and kept as it is")
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
        return run.within(values, (bands, *box), known)

    def whole(
        self,
        noisy: np.ndarray,
        pixels: Bool[np.ndarray, "height width"] | None,
        level: bool = False,
        scaled: bool = False,
        shared: bool = False,
    ) -> Run:
        """Denoise a cube of which every value is a number.

        Args:
            noisy: The cube.
            pixels: Those that hold data; the others only look like it.
            level: Whether bands of far levels were looked for.
            scaled: Whether bands of far larger values were.
            shared: Whether bands that share nothing with the others were.
        """
        if min(noisy.shape[1:]) == 1:
            return self.line(noisy, pixels)
        if not level and self.options.normalize == "auto" and (offsets := level_offsets(noisy)).any():
            return self.without_offsets(noisy, offsets, pixels)
        scaling = fit_scaling(noisy, self.options.normalize, Extremes(-np.inf, np.inf, ()))
        if not shared and (apart := self.apart(noisy, scaling.lost)).any():
            return self.without_apart(noisy, apart, pixels)
        if (far := scaling.hides(noisy)).any():
            loud = far.mean(axis=(1, 2)) > _MANY_HIDDEN
            loud[list(scaling.lost)] = False
            if loud.any() and not loud.all() and not scaled:
                return self.without_gains(noisy, loud, pixels)
            return self.valid_part(noisy, ~(far | loud[:, None, None]))
        if 0 < len(scaling.lost) < len(noisy):
            return self.without_lost(noisy, scaling, pixels)
        return self.through_model(noisy, scaling, pixels)

    def untouched(self, noisy: np.ndarray) -> Run:
        """Give a cube back as it is, in which noise cannot be told from scene."""
        few = " x ".join(map(str, noisy.shape[1:]))
        self.note(f"{few} pixels are too few to tell noise from scene: the cube comes back as it is")
        scaling = Scaling("none", 0.0, 1.0, "none: nothing is denoised")
        while self.announce:
            self.announce.pop()(scaling)
        values = noisy.astype(floating(noisy.dtype))
        return Run(values, None, scaling, Tiling(noisy.shape, noisy.shape, (0, 0, 0)), 0, torch.device("cpu"), ())

    def line(self, noisy: np.ndarray, pixels: np.ndarray | None) -> Run:
        """Denoise a scan line, folded into an image of two rows: methods for images take no less."""
        count = noisy[0].size
        half = -(-count // 2)
        # the second half runs back below the first; the last pixel of an odd number stands there twice
        places = np.stack([np.arange(half), np.minimum(np.arange(2 * half - 1, half - 1, -1), count - 1)])
        known = None if pixels is None else pixels.reshape(-1)[places]
        run = self.whole(noisy.reshape(len(noisy), -1)[:, places], known)
        values = np.empty(noisy.shape, run.values.dtype)
        index: Any = np.s_[:, *np.unravel_index(places, noisy.shape[1:])]
        values[index] = run.values
        return run.within(values, index)

    def without_offsets(self, noisy: np.ndarray, offsets: np.ndarray, pixels: np.ndarray | None) -> Run:
        """Denoise a cube without the offsets of some of its bands, which come back at the end."""
        exact = floating(noisy.dtype)
        level = np.empty(noisy.shape, exact)
        for band, target, offset in zip(noisy, level, offsets, strict=True):
            target[...] = band.astype(np.float64) - offset
        self.note(
            f"{self.named(offsets != 0)}: more than a hundred times as far from the other bands as their own values "
            "are from each other; denoised without that offset, which is added at the end"
        )
        run = self.whole(level, pixels, level=True)
        for band, before, noisy_band, offset in zip(run.values, level, noisy, offsets, strict=True):
            # what came back as it was is what it was
            band[...] = np.where(band == before, noisy_band, band.astype(np.float64) + offset)
        return run

    def without_gains(self, noisy: np.ndarray, loud: np.ndarray, pixels: np.ndarray | None) -> Run:
        """Denoise a cube some of whose bands are in another unit, at the scale of the others."""
        low, high = np.quantile(noisy.reshape(len(noisy), -1), (0.01, 0.99), axis=1)
        factor = np.where(loud, (high - low) / (np.median((high - low)[~loud]) or 1.0), 1.0)
        factor[~(factor > 0)] = 1.0
        self.note(f"{self.named(loud)}: values far beyond those of the other bands; denoised at their scale")
        exact = floating(noisy.dtype)
        even = np.stack([(band / each).astype(exact) for band, each in zip(noisy, factor, strict=True)])
        sigma = None if self.sigma is None else self.sigma / factor
        run = dataclasses.replace(self, sigma=sigma).whole(even, pixels, scaled=True)
        for band, before, noisy_band, each in zip(run.values, even, noisy, factor, strict=True):
            band[...] = np.where(band == before, noisy_band, band * each)
        return run

    def apart(self, noisy: np.ndarray, lost: tuple[int, ...]) -> np.ndarray:
        """Bands that are not to be denoised with the others, beside those that are lost in noise."""
        pattern, noise = bands_apart(noisy)
        noise[list(lost)] = False
        if noise.any():
            done = "left out and kept as it is" if self.keep else "what comes out is what the other bands say of it"
            self.note(f"noise alone, or nearly: {self.named(noise)}; {done}")
        if pattern.any():
            done = "left out and kept as it is" if self.keep else "denoised alone"
            self.note(f"nothing in common with the other bands: {self.named(pattern)}; {done}")
        return np.asarray(pattern | (noise & self.keep))

    def without_apart(self, noisy: np.ndarray, apart: np.ndarray, pixels: np.ndarray | None) -> Run:
        """Denoise the bands that share something, and each other band alone, if at all."""
        run = self.of(np.flatnonzero(~apart)).whole(noisy[~apart], pixels, level=True, shared=True)
        values = noisy.astype(run.values.dtype)
        values[~apart] = run.values
        run = run.within(values, np.flatnonzero(~apart))
        for band in [] if self.keep else np.flatnonzero(apart):
            one = slice(band, band + 1)
            alone = self.of(np.array([band])).whole(noisy[one], pixels, level=True, shared=True)
            values[one] = alone.values
            if run.replaced is not None and alone.replaced is not None:
                run.replaced[one] = alone.replaced
        return run

    def without_lost(self, noisy: np.ndarray, scaling: Scaling, pixels: np.ndarray | None) -> Run:
        """Denoise the bands that are not noise alone, and say of these what the others explain."""
        lost = list(scaling.lost)
        others = np.setdiff1d(np.arange(len(noisy)), lost)
        done = "left out and kept as it is" if self.keep else "replaced by what the other bands explain of it"
        self.note(f"noise alone: {self.named(lost)}; {done}")
        run = self.of(others).whole(noisy[others], pixels, level=True)
        values = np.empty(noisy.shape, run.values.dtype)
        values[others] = run.values
        values[lost] = noisy[lost] if self.keep else explained_by_others(noisy[lost].astype(values.dtype), run.values)
        return run.within(values, others)

    def through_model(self, noisy: np.ndarray, scaling: Scaling, pixels: np.ndarray | None) -> Run:
        """Denoise a cube."""
        while self.announce:
            self.announce.pop()(scaling)
        model, options = self.model, self.options
        size, overlap = tile_size(noisy.shape[1], noisy.shape[2], options.tile, options.overlap)
        if callable(model) and not isinstance(model, nn.Module | str | Path):
            place = torch.device("cpu")
            with enough_memory(
                place, f"for {name_of(model)}, which takes the whole cube at once", "denoise a part of it"
            ):
                told = self.scaled_sigma(scaling)
                if told is not None and "sigma" not in signature(model).parameters:
                    raise ValueError(f"{name_of(model)} cannot be given a noise level; leave --noise out")
                with replaced_values() as seen:
                    answer = np.asarray(model(scaling.apply(noisy), *([] if told is None else [told])))
                if answer.shape != noisy.shape or answer.dtype.kind not in "iuf" or not np.isfinite(answer).all():
                    raise ValueError(
                        f"{name_of(model)} did not answer with a cube of finite numbers of {noisy.shape}: "
                        f"{answer.dtype} of {answer.shape}"
                    )
                values = scaling.invert(answer, floating(noisy.dtype))
            replaced = seen[0].numpy() if len(seen) == 1 and seen[0].shape == noisy.shape else None
            tiling = Tiling(noisy.shape, noisy.shape, (0, 0, 0))
            return Run(values, replaced, scaling, tiling, 0, place, ())
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

        def in_tiles(tile: tuple[int, int], overlap: int) -> tuple[tuple[np.ndarray, np.ndarray | None], Tiling]:
            tiling = _tiling(noisy.shape, bands, tile, overlap)
            answer = run_tiles(
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
            return answer, tiling

        with in_use(run, place):
            (values, replaced), tiling = in_fitting_tiles(in_tiles, size, overlap, place, self.note)
        with enough_memory(
            place,
            f"for the pilot filter, which takes the whole cube of {noisy.shape} at once",
            "the network alone (--pilot-rounds 0) does without it",
        ):
            values = repeat_pilot_filter(noisy, values, rounds, scaling, device=place)
        return Run(values, replaced, scaling, tiling, rounds, place, ())


def _tiling(shape: tuple[int, ...], bands: int, tile: tuple[int, int], overlap: int) -> Tiling:
    """Tiles of one window of bands; an axis that fits into a tile is taken whole, and nothing overlaps there."""
    axes = zip(shape, (bands, *tile), (bands // _BAND_OVERLAP, overlap, overlap), strict=True)
    (depth, z, dz), (height, y, dy), (width, x, dx) = (
        (length, min(size, length), shared if size < length else 0) for length, size, shared in axes
    )
    return Tiling((depth, height, width), (z, y, x), (dz, dy, dx))
