"""Overlapping tiles of a cube, and their seamless recombination.

A cube is cut along bands, height and width alike: into windows of as many bands as a network has, and into tiles that
fit its memory. The answers are blended with tapers, weights that fall off towards a neighbouring tile and
sum to one everywhere. They are products of three tapers, one per axis, so their sum over the grid of tiles is
one as soon as it is one along each axis: no volume of weights has to be kept or divided by.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product

import numpy as np
from jaxtyping import Float32, Float64, Real

DEFAULT_TILE = 96
"""Height and width of a tile that is aimed at where none is asked for (see :func:`tile_size`).

Chosen on `cave/validation` (hcanet-bra, gaussian-50): trained on patches of 64, a region finds more wrong ones in
larger tiles (37.2 dB with 96 pixels, 36.5 with 128, 35.9 with 256); trained on 96 too, as shipped, 128 does as well."""
DEFAULT_OVERLAP = 24
"""Overlap of neighbouring tiles, in pixels; a quarter of the tile where that is less."""


def plan(length: int, tile: int, overlap: int) -> tuple[int, ...]:
    """First positions of the tiles that cover one axis.

    As few tiles as the overlap allows, all of them full, the first at the beginning and the last at the end of the
    axis, the others spread evenly between: the room that is left over widens the overlaps instead of being
    wasted on the last pair. An axis that is no longer than a tile gets a single tile, the whole of it (networks
    take any height and width; too few bands are mirrored by :func:`reflect_bands`).

    Args:
        length: Size of the axis, at least 1.
        tile: Size of a tile, at least 1.
        overlap: Smallest overlap of neighbours, from 0 to ``tile - 1``.

    Returns:
        Starts, ascending; neighbours overlap by at least ``overlap``.

    Raises:
        ValueError: If a size is below 1 or the overlap is not from 0 to ``tile - 1``.

    Example:
        >>> plan(length=100, tile=40, overlap=10)
        (0, 30, 60)
        >>> plan(length=30, tile=40, overlap=10)
        (0,)
    """
    if length < 1 or tile < 1:
        raise ValueError(f"an axis of {length} cannot be cut into tiles of {tile}; both must be at least 1")
    if not 0 <= overlap < tile:
        raise ValueError(f"an overlap of {overlap} does not go with tiles of {tile}; choose one from 0 to {tile - 1}")
    room = length - tile
    if room <= 0:
        return (0,)
    steps = math.ceil(room / (tile - overlap))
    # floor, not round: no step then exceeds ceil(room / steps) <= tile - overlap
    return tuple(room * step // steps for step in range(steps + 1))


def balanced_tile(length: int, tile: int, overlap: int) -> int:
    """Size of tile near a wanted one that covers an axis with little to spare.

    Tiles of 256 overlapping by 32 need three per side of a 512 image and compute 2.25 times its pixels; two of
    272 do with 1.13 times. So the number of tiles is rounded to the nearest, and the size follows from it: about
    0.75 to 1.5 times the wanted one, the whole axis where it is no longer than that.

    Returns:
        The size, at most ``length``.

    Example:
        >>> balanced_tile(512, 256, 32), balanced_tile(145, 256, 32), balanced_tile(1392, 256, 32)
        (272, 145, 272)
    """
    plan(length, tile, overlap)
    count = max(1, round((length - overlap) / (tile - overlap)))
    if count == 1:
        return length
    return min(length, math.ceil(math.ceil((length + (count - 1) * overlap) / count) / 16) * 16)


def tile_size(
    height: int, width: int, tile: int | None = None, overlap: int | None = None, *, usual: int = DEFAULT_TILE
) -> tuple[tuple[int, int], int]:
    """Height and width of a tile, and the overlap of neighbours, where not all is asked for.

    Args:
        height: Height of the image, pixels.
        width: Width of the image, pixels.
        tile: Side of a tile, taken as it is; if None, sizes near ``usual`` that suit the image
            (:func:`balanced_tile`).
        overlap: Smallest overlap, from 0 to ``tile - 1``; if None, 24 or a quarter of the tile where that is less.
        usual: Side that is aimed at where none is asked for.

    Raises:
        ValueError: If the tile is below 1 or the overlap is not from 0 to ``tile - 1``.

    Example:
        >>> tile_size(512, 145), tile_size(512, 145, tile=64)
        (((96, 96), 24), ((64, 64), 16))
    """
    wanted = usual if tile is None else tile
    if wanted < 1:
        raise ValueError(f"a tile of {wanted} pixels is too small; choose 1 or more ({DEFAULT_TILE} is usual)")
    if overlap is None:
        overlap = min(DEFAULT_OVERLAP, wanted // 4)
    if not 0 <= overlap < wanted:
        raise ValueError(
            f"an overlap of {overlap} does not go with tiles of {wanted}; choose one from 0 to {wanted - 1}"
        )
    if tile is not None:
        return (tile, tile), overlap
    return (balanced_tile(height, wanted, overlap), balanced_tile(width, wanted, overlap)), overlap


def tapers(length: int, tile: int, overlap: int) -> Float64[np.ndarray, "tiles tile"]:
    """Blending weights along one axis, one row per start of :func:`plan`.

    Each falls off as a squared sine over what it shares with its neighbour and is flat elsewhere, also at the two
    ends of the axis; then all are divided by their sum, so that the weights at any position add up to one.

    Returns:
        Weights above 0 and at most 1; the rows are as long as a tile, or as the axis if that is shorter.

    Example:
        >>> tapers(length=6, tile=4, overlap=2).round(3).tolist()
        [[1.0, 1.0, 0.854, 0.146], [0.146, 0.854, 1.0, 1.0]]
    """
    starts = plan(length, tile, overlap)
    size = min(tile, length)
    weights = np.ones((len(starts), size))
    for left, (start, following) in enumerate(pairwise(starts)):
        shared = start + size - following
        # half a step inside, so that no weight is 0: where only one tile reaches, its weight divides itself
        ramp = np.sin(np.pi / 2 * (np.arange(shared) + 0.5) / max(shared, 1)) ** 2
        weights[left, size - shared :] *= ramp[::-1]
        weights[left + 1, :shared] *= ramp
    total = np.zeros(length)
    for start, row in zip(starts, weights, strict=True):
        total[start : start + size] += row
    for start, row in zip(starts, weights, strict=True):
        row /= total[start : start + size]
    return weights


def reflect_bands(
    cube: Real[np.ndarray, "bands height width"], count: int
) -> Real[np.ndarray, "at_least_count height width"]:
    """Mirror a cube along its band axis until it has enough bands.

    The last band is not repeated (0 1 2 1 0 1 ...), and mirroring goes on for as long as needed; a single band is
    replicated. The cube itself comes first, so the answer is cropped with ``[:bands]``.

    Returns:
        The cube itself if it has enough bands, else a new array of ``count`` bands.

    Example:
        >>> cube = np.arange(3.0).reshape(3, 1, 1)
        >>> reflect_bands(cube, 8).ravel().tolist()
        [0.0, 1.0, 2.0, 1.0, 0.0, 1.0, 2.0, 1.0]
    """
    bands = cube.shape[0]
    if bands >= count:
        return cube
    period = max(2 * (bands - 1), 1)
    index = np.arange(count) % period
    mirrored: np.ndarray = cube[np.where(index < bands, index, period - index)]
    return mirrored


@dataclass(frozen=True)
class Tile:
    """Where one tile lies in its cube, and how much each of its values counts.

    Attributes:
        index: Slices of bands, height and width.
        weights: Tapers along bands, height and width.
    """

    index: tuple[slice, slice, slice]
    weights: tuple[Float32[np.ndarray, " _"], Float32[np.ndarray, " _"], Float32[np.ndarray, " _"]]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Bands, height and width of the tile."""
        bands, rows, columns = (weights.size for weights in self.weights)
        return bands, rows, columns


@dataclass(frozen=True)
class Tiling:
    """A grid of overlapping tiles over a cube; iterate over it for its :class:`Tile` objects.

    Tiles come row by row, all the windows of bands of one place before the next place.

    Attributes:
        shape: Bands, height and width of the cube.
        tile: Size of a tile along the same axes; an axis that is shorter is taken whole.
        overlap: Smallest overlap along the same axes.

    Example:
        >>> tiling = Tiling(shape=(40, 100, 70), tile=(31, 64, 64), overlap=(10, 16, 16))
        >>> len(tiling), next(iter(tiling)).index
        (8, (slice(0, 31, None), slice(0, 64, None), slice(0, 64, None)))
    """

    shape: tuple[int, int, int]
    tile: tuple[int, int, int]
    overlap: tuple[int, int, int]

    def __post_init__(self) -> None:
        for axis in zip(self.shape, self.tile, self.overlap, strict=True):
            plan(*axis)

    @cached_property
    def _axes(self) -> tuple[list[tuple[slice, np.ndarray]], ...]:
        axes = []
        for length, tile, overlap in zip(self.shape, self.tile, self.overlap, strict=True):
            rows = tapers(length, tile, overlap).astype(np.float32)
            starts = plan(length, tile, overlap)
            axes.append([(slice(start, start + row.size), row) for start, row in zip(starts, rows, strict=True)])
        return tuple(axes)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Number of tiles along bands, height and width."""
        bands, rows, columns = (len(axis) for axis in self._axes)
        return bands, rows, columns

    def __len__(self) -> int:
        return math.prod(self.counts)

    def __iter__(self) -> Iterator[Tile]:
        bands, rows, columns = self._axes
        for row, column, band in product(rows, columns, bands):
            yield Tile((band[0], row[0], column[0]), (band[1], row[1], column[1]))


class Blend:
    """Weighted sum of the tiles of a cube, fed one tile at a time.

    Example:
        >>> cube = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
        >>> tiling = Tiling(cube.shape, tile=(2, 3, 3), overlap=(0, 0, 2))
        >>> blend = Blend(tiling)
        >>> for tile in tiling:
        ...     blend.add(tile, cube[tile.index])
        >>> bool(np.allclose(blend.result(), cube))
        True
    """

    def __init__(self, tiling: Tiling) -> None:
        self._missing = len(tiling)
        self._sum = np.zeros(tiling.shape, dtype=np.float32)

    def add(self, tile: Tile, values: Float32[np.ndarray, "bands height width"]) -> None:
        """Add what was computed for one tile.

        Raises:
            ValueError: If the values do not have the tile's shape.
        """
        if values.shape != tile.shape:
            raise ValueError(f"a tile of shape {tile.shape} got values of shape {values.shape}")
        bands, rows, columns = tile.weights
        self._sum[tile.index] += values * (bands[:, None, None] * (rows[:, None] * columns))
        self._missing -= 1

    def result(self) -> Float32[np.ndarray, "bands height width"]:
        """The blended cube.

        Raises:
            ValueError: If not every tile was added, once.
        """
        if self._missing:
            raise ValueError(f"{self._missing} tiles are missing from the blend; add each tile of the tiling once")
        return self._sum
