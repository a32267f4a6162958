"""What makes the patches of one sensor stand for others: fewer bands, wider steps between them, other brightness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

# Bands are drawn once for a batch; their generator must not be that of an item.
_BAND_STREAM = 0x4241_4E44


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
