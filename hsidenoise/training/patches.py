"""Clean patches drawn on the fly from cubes that are kept at several scales, in memory or memory-mapped.

No prepared data base: each cube is read once, scaled to [0, 1], reduced by area averaging to each scale and kept.
A patch is then a crop, a flip, a quarter turn and perhaps a reversal of the bands: views until the last copy. Fewer
bands, wider steps between them and another brightness make the patches of one sensor stand for others.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32, Shaped
from torch.nn import functional as F

from hsidenoise.data.scenes import read_clean
from hsidenoise.data.sources import files_of
from hsidenoise.system.files import replacing
from hsidenoise.system.machine import free_memory

#: Scales of the usual ICVL preparation (QRNN3D, SERT, HSIR): 1, 1/2 and 1/4.
SCALES = (1.0, 0.5, 0.25)

# Part of the name of a mapped file: raise it whenever another content or form is written for the same cube and options.
_FORM = 3

# Quantised to 16 bits a value moves by at most 1/131070: 0.002 of a grey level of 255, far under any noise here.
_STEPS = 65535

# Bands are drawn once for a batch; their generator must not be that of an item.
_BAND_STREAM = 0x4241_4E44

_ANYWHERE = 0.3  # share of the patches whose bands are drawn one by one

_MEMORY_UNKNOWN = 4 << 30  # bytes that are taken for free where the system does not tell

Cache = Literal["auto", "memory", "mmap"]


@dataclass(frozen=True)
class BandChoice:
    """Bands of the patches of one batch: ``count`` of them, every ``stride``-th of the cube."""

    count: int
    stride: int = 1

    @property
    def span(self) -> int:
        """Neighbouring bands of a cube that they lie in."""
        return (self.count - 1) * self.stride + 1


class BandAugment:
    """Draws how many bands, and how far apart, the patches of a batch have; one choice per batch, by its number.

    The network has to take fewer bands than it was made for, as ``HCANetBRA`` does.

    Args:
        bands: Bands of the network, and the most of a patch.
        strides: Strides to draw from, each at least 1. Stride 2 takes every second band.
        fewest: Fewest bands of a patch; a number from there to what a stride leaves is drawn. None: all that it leaves.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> augment = BandAugment(31, strides=[1, 2, 3])
        >>> sorted({augment.choice(0, batch, available=31).count for batch in range(50)})
        [11, 16, 31]
    """

    def __init__(self, bands: int, strides: Sequence[int] = (1,), fewest: int | None = None) -> None:
        if not strides or min(strides) < 1:
            raise ValueError(f"band_strides {list(strides)}: at least one is needed, each at least 1")
        if fewest is not None and not 1 <= fewest <= bands:
            raise ValueError(f"fewest_bands {fewest}: must be from 1 to {bands}, the bands of the network")
        self.bands, self.strides, self.fewest = bands, tuple(strides), fewest

    @property
    def active(self) -> bool:
        """Whether there is anything to draw."""
        return self.strides != (1,) or self.fewest is not None

    def choice(self, seed: int, batch: int, available: int) -> BandChoice:
        """Bands of a batch.

        Args:
            seed: Seed of the run, not negative.
            batch: Number of the batch, counted over all epochs.
            available: Bands that every cube has at least.
        """
        if not self.active:
            return BandChoice(min(self.bands, available))
        rng = np.random.default_rng([_BAND_STREAM, seed, batch])
        stride = int(rng.choice(self.strides))
        most = min(self.bands, (available - 1) // stride + 1)
        fewest = most if self.fewest is None else min(self.fewest, most)
        return BandChoice(int(rng.integers(fewest, most + 1)), stride)


@dataclass(frozen=True)
class PatchPlace:
    """Where a patch is cut and how it is turned; which bands, if not those of the store."""

    level: int
    first_band: int
    top: int
    left: int
    turns: int = 0
    flip: bool = False
    reverse_bands: bool = False
    chosen: BandChoice | None = None


class CubeStore:
    """Clean cubes at several scales, from which patches are cut.

    Args:
        paths: Files (or folders) of the cubes; each is scaled to [0, 1] by its smallest and largest value, and of one
            in which some pixels hold no data only the largest rectangle without them is used.
        patch_size: Side of a patch in pixels. A scale at which it does not fit a cube is left out for that cube.
        bands: Bands of a patch; a cube with more gives a random run of neighbouring ones. None: all bands.
        scales: Factors in (0, 1] by which the cubes are reduced.
        cache: ``memory`` (float32, or 16 bits where only that fits), ``mmap`` (16 bits, on disk), or ``auto``.
        cache_dir: Folder of the memory-mapped files; one in the system's temporary folder by default.
        ragged: Whether the cubes may differ in bands, if ``bands`` is None.
        key: Variable to read from each file.
        crop: Side of the centre square that is used of each cube, in pixels.
        mirror: Whether a cube smaller than a patch is continued by mirroring; else it is an error.

    Raises:
        ValueError: If there is no cube, a cube has too few bands or pixels, an option is out of range, or there is no
            room for the cache in its folder.
        OSError: If a cube cannot be read.

    Example:
        >>> from hsidenoise.data.io import write_arrays
        >>> cube = np.random.default_rng(0).random((20, 24, 5), dtype=np.float32)  # MATLAB: height, width, bands
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_arrays(f"{folder}/a.mat", {"cube": cube})
        ...     store = CubeStore([f"{folder}/a.mat"], patch_size=8, bands=4)
        >>> store.patch(np.random.default_rng(1)).shape
        (4, 8, 8)
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        *,
        patch_size: int = 64,
        bands: int | None = None,
        scales: Sequence[float] = SCALES,
        cache: Cache = "auto",
        cache_dir: str | Path | None = None,
        key: str | None = None,
        crop: int | None = None,
        mirror: bool = False,
        ragged: bool = False,
    ) -> None:
        if not paths:
            raise ValueError("no cube to cut patches from: give at least one")
        if patch_size < 1:
            raise ValueError(f"patch size {patch_size}: must be at least 1 pixel")
        if not scales or not all(0 < scale <= 1 for scale in scales):
            raise ValueError(f"scales {list(scales)}: each must be above 0 and at most 1")
        if cache not in ("auto", "memory", "mmap"):
            raise ValueError(f"unknown cache '{cache}'; known: auto, memory, mmap")
        self.patch_size, self.bands, self.mirror = patch_size, bands, mirror
        self.scales = tuple(sorted(set(scales), reverse=True))
        self.cubes: list[list[np.ndarray]] = []
        self.cache: str = cache
        # Always one folder for one user's caches: a second run finds what the first one made.
        folder = Path(cache_dir) if cache_dir else Path(tempfile.gettempdir()) / f"hsidenoise-{os.getuid()}"
        dtype: type[np.generic] = np.float32
        for number, path in enumerate(paths):
            # named before it is read: if it changes meanwhile, the next run reads it again
            file = self._file(path, folder, key, crop) if self.cache != "memory" else folder
            found = _read_levels(file) if self.cache == "mmap" else None
            # one with too few bands is read again, so that the message of what is wrong is the same
            if found and len(found[0]) >= (bands or 0):
                self.cubes.append(found)
                continue
            levels = self._levels(read_clean(path, key=key, crop=crop, valid_part=True), path)
            if number == 0:
                need = sum(level.nbytes for level in levels) * len(paths)
                free = free_memory(torch.device("cpu"))
                dtype = self._choose(need, _MEMORY_UNKNOWN if free is None else free)
            if self.cache == "mmap":
                _write_levels(levels, file)
                levels = _read_levels(file) or [_quantised(level) for level in levels]  # gone at once: from memory
            elif dtype is np.uint16:
                levels = [_quantised(level) for level in levels]
            self.cubes.append(levels)
        if bands is None and not ragged and len({levels[0].shape[0] for levels in self.cubes}) > 1:
            raise ValueError("the cubes differ in their number of bands: say how many a patch has (--data.bands)")

    def __len__(self) -> int:
        return len(self.cubes)

    @property
    def nbytes(self) -> int:
        """Bytes that the cubes take, in memory or on disk."""
        return sum(level.nbytes for levels in self.cubes for level in levels)

    @property
    def fewest_bands(self) -> int:
        """Bands of the cube that has the fewest."""
        return min(len(levels[0]) for levels in self.cubes)

    def patch(
        self, rng: np.random.Generator, *, augment: bool = True, chosen: BandChoice | None = None
    ) -> Float32[np.ndarray, "bands size size"]:
        """Draw a patch: a cube, then a scale (the larger the likelier), then a place and a turn.

        Args:
            rng: Source of randomness; the same state draws the same patch.
            augment: Whether to flip, turn and reverse the bands.
            chosen: How many bands, how far apart. None: those of the store, side by side.

        Returns:
            A copy, in [0, 1].
        """
        cube = int(rng.integers(len(self.cubes)))
        return self.cut(cube, self.place(cube, rng, augment=augment, chosen=chosen))

    def place(
        self, cube: int, rng: np.random.Generator, *, augment: bool = True, chosen: BandChoice | None = None
    ) -> PatchPlace:
        """Draw where to cut a patch from a cube.

        Args:
            cube: Number of the cube.
            rng: Source of randomness.
            augment: Whether to flip, turn and reverse the bands.
            chosen: How many bands, how far apart.
        """
        levels = self.cubes[cube]
        # In proportion to the side of the level, between the counts of patches that the usual strides of 64, 32 and
        # 32 pixels give (on a 512x512 cube 64 : 49 : 9) and equal shares.
        share = np.array([level.shape[1] + level.shape[2] for level in levels], dtype=np.float64)
        level = int(rng.choice(len(levels), p=share / share.sum()))
        bands, height, width = levels[level].shape
        span = chosen.span if chosen is not None else self.bands or bands
        first = int(rng.integers(bands - span + 1))
        top = int(rng.integers(height - self.patch_size + 1))
        left = int(rng.integers(width - self.patch_size + 1))
        if not augment:
            return PatchPlace(level, first, top, left, chosen=chosen)
        turns, flip, reverse = int(rng.integers(4)), bool(rng.integers(2)), bool(rng.integers(2))
        return PatchPlace(level, first, top, left, turns, flip, reverse, chosen)

    def cut(self, cube: int, place: PatchPlace) -> Float32[np.ndarray, "bands size size"]:
        """Cut the patch of a place from a cube.

        Args:
            cube: Number of the cube.
            place: Where, as :meth:`place` gives it.
        """
        level = self.cubes[cube][place.level]
        chosen, size = place.chosen or BandChoice(self.bands or level.shape[0]), self.patch_size
        patch = level[
            place.first_band : place.first_band + chosen.span : chosen.stride,
            place.top : place.top + size,
            place.left : place.left + size,
        ]
        if place.reverse_bands:
            patch = patch[::-1]
        if place.flip:
            patch = patch[:, :, ::-1]
        patch = np.rot90(patch, place.turns, axes=(1, 2))
        copy = np.array(patch, dtype=np.float32, order="C")
        if patch.dtype == np.uint16:
            copy *= np.float32(1 / _STEPS)
        return copy

    def _levels(self, clean: Float32[np.ndarray, "bands height width"], path: str | Path) -> list[np.ndarray]:
        if self.mirror:
            short = [(0, max(0, self.patch_size - side)) for side in clean.shape[1:]]
            clean = np.pad(clean, [(0, 0), *short], mode="symmetric")
        bands, height, width = clean.shape
        if self.bands is not None and bands < self.bands:
            raise ValueError(f"{path}: {bands} bands, {self.bands} are needed: lower --data.bands or leave it out")
        if min(height, width) * self.scales[0] < self.patch_size:
            raise ValueError(
                f"{path}: {height}x{width} pixels, too small for patches of {self.patch_size} at scale "
                f"{self.scales[0]:g}: lower --data.patch_size or leave it out"
            )
        levels = [reduced(clean, scale) for scale in self.scales]
        return [level for level in levels if min(level.shape[1:]) >= self.patch_size]

    def _choose(self, need: int, available: int) -> type[np.generic]:
        """Settle ``auto``; half of the memory is left to the network. ``need``: bytes in float32."""
        if self.cache == "auto":
            self.cache = "memory" if need // 2 <= available // 2 else "mmap"
        return np.float32 if self.cache == "memory" and need <= available // 2 else np.uint16

    def _file(self, path: str | Path, folder: Path, key: str | None, crop: int | None) -> Path:
        """Name of a cube's memory-mapped file; another option, or a file that is not the same, gives another name."""
        source = Path(path).resolve()
        # the time of the last change of any kind too: a copy may keep size and time of another file
        stats = [
            (part.name, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for part in files_of(Path(path)) for s in [part.stat()]
        ]
        what = (_FORM, str(source), stats, key, crop, self.patch_size, self.scales, self.mirror)
        name = hashlib.sha256(repr(what).encode()).hexdigest()[:16]
        return folder / f"{source.stem}-{name}.levels"


def reduced(
    clean: Float32[np.ndarray, "bands height width"], scale: float
) -> Float32[np.ndarray, "bands reduced_height reduced_width"]:
    """Reduce a cube in height and width; each new pixel is the mean of the area that it covers (no aliasing).

    Args:
        clean: Cube.
        scale: Factor in (0, 1]; the new sides are rounded down.

    Example:
        >>> reduced(np.arange(8, dtype=np.float32).reshape(1, 2, 4), 0.5)
        array([[[2.5, 4.5]]], dtype=float32)
    """
    if scale == 1:
        return clean
    height, width = (max(1, int(side * scale)) for side in clean.shape[1:])
    return np.asarray(F.adaptive_avg_pool2d(torch.from_numpy(np.ascontiguousarray(clean)), (height, width)).numpy())


def band_count(bands: tuple[int, int], seed: int, batch: int) -> int:
    """Bands of the patches of a batch, for a network that takes any number; the root of the count is uniform.

    Args:
        bands: Fewest and most.
        seed: Seed of the run, not negative.
        batch: Number of the batch, counted over all epochs.

    Example:
        >>> [band_count((1, 64), 0, batch) for batch in range(8)]
        [41, 12, 22, 38, 10, 36, 17, 2]
    """
    fewest, most = np.sqrt(bands)
    rng = np.random.default_rng([_BAND_STREAM, seed, batch])
    return round(float(rng.uniform(fewest, most)) ** 2)


def another_sensor(
    clean: Float32[np.ndarray, "bands height width"], count: int, rng: np.random.Generator
) -> Float32[np.ndarray, "count height width"]:
    """A patch as a sensor of so many bands would see it.

    Some of its bands, side by side and perhaps some steps apart, or anywhere; where there are too few, all of them and
    what lies between, interpolated along the spectrum.

    Args:
        clean: Patch; left untouched.
        count: Bands wanted.
        rng: Source of randomness.

    Example:
        >>> patch = np.arange(6, dtype=np.float32)[:, None, None] * np.ones((1, 2, 3), dtype=np.float32)
        >>> [another_sensor(patch, n, np.random.default_rng(1))[:, 0, 0].tolist() for n in (2, 4)]
        [[1.0, 5.0], [2.0, 3.0, 4.0, 5.0]]
        >>> another_sensor(patch, 8, np.random.default_rng(1)).shape
        (8, 2, 3)
    """
    bands = len(clean)
    if count > bands:
        place = np.sort(rng.uniform(0, bands - 1, count))
        below = np.minimum(place.astype(int), max(bands - 2, 0))
        share = (place - below)[:, None, None].astype(np.float32)
        return np.asarray(clean[below] * (1 - share) + clean[np.minimum(below + 1, bands - 1)] * share)
    if rng.random() < _ANYWHERE:
        return clean[np.sort(rng.choice(bands, count, replace=False))]
    stride = int(rng.integers(1, max(1, (bands - 1) // max(1, count - 1) if count > 1 else 1) + 1))
    first = int(rng.integers(bands - (count - 1) * stride))
    return np.ascontiguousarray(clean[first : first + (count - 1) * stride + 1 : stride])


def scaled(
    clean: Float32[np.ndarray, "bands height width"], gain: tuple[float, float], rng: np.random.Generator
) -> Float32[np.ndarray, "bands height width"]:
    """A patch in another light: all of it times one number.

    Args:
        clean: Patch; left untouched.
        gain: Smallest and largest factor, drawn uniformly. Equal ones draw nothing.
        rng: Source of randomness.

    Example:
        >>> scaled(np.ones((2, 3, 4), dtype=np.float32), (0.5, 0.5), np.random.default_rng(0)).mean()
        np.float32(0.5)
    """
    low, high = gain
    if low == high:
        return clean if low == 1 else clean * np.float32(low)
    return clean * np.float32(rng.uniform(low, high))


def _quantised(level: Shaped[np.ndarray, "bands height width"]) -> np.ndarray:
    return np.asarray(np.rint(level * np.float32(_STEPS)).astype(np.uint16))


def _write_levels(levels: Sequence[np.ndarray], file: Path) -> None:
    """Write all levels of a cube to one file, whole or not at all. Two processes may do so at once."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary, temporary.open("wb") as stream:
            np.save(stream, np.array([level.shape for level in levels], dtype=np.int64))
            for level in levels:
                stream.write(np.ascontiguousarray(_quantised(level)).data)
    except OSError as error:
        raise ValueError(
            f"{file}: the cache of a cube cannot be written ({error.strerror or error}): name a folder with room "
            f"for it (--data.cache_dir)"
        ) from error


def _read_levels(file: Path) -> list[np.ndarray] | None:
    """Map the levels of a cube; None if there is no such file, or it is not whole."""
    try:
        with file.open("rb") as stream:
            shapes = [tuple(map(int, shape)) for shape in np.load(stream, allow_pickle=False)]
            start, size = stream.tell(), os.fstat(stream.fileno()).st_size
        ends = np.cumsum([0, *(math.prod(shape) for shape in shapes)])
        if len(shapes) == 0 or size != start + 2 * int(ends[-1]):
            return None
        values = np.memmap(file, dtype=np.uint16, mode="r", offset=start, shape=(int(ends[-1]),))
        return [values[a:b].reshape(shape) for shape, a, b in zip(shapes, ends[:-1], ends[1:], strict=True)]
    except (OSError, EOFError, ValueError, TypeError):
        return None
