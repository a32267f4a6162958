"""What noise cases are made of: how sigmas are drawn, which columns are hit, which pixels.

:mod:`hsidenoise.noise.cases` puts these together, with the papers' numbers. Values refer to a clean cube scaled to [0,
1]; sigmas are on the 0-255 scale, as the papers write them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64, Int


@runtime_checkable
class SigmaRule(Protocol):
    """How the standard deviation of the Gaussian part is drawn, 0-255 scale."""

    def draw(self, bands: int, rng: np.random.Generator) -> Float64[np.ndarray, " bands"]:
        """Draw one sigma per band, shape (bands,)."""
        ...


@dataclass(frozen=True)
class SameSigma:
    """The same sigma on every band, drawn once per cube from [low, high]; low = high makes it a constant."""

    low: float
    high: float

    def draw(self, bands: int, rng: np.random.Generator) -> Float64[np.ndarray, " bands"]:
        """Draw one sigma and repeat it over the bands."""
        sigma = self.low if self.low == self.high else rng.uniform(self.low, self.high)
        return np.full(bands, sigma, dtype=np.float64)


@dataclass(frozen=True)
class SigmaFromLevels:
    """Each band draws its own sigma from a few levels."""

    levels: tuple[float, ...]

    def draw(self, bands: int, rng: np.random.Generator) -> Float64[np.ndarray, " bands"]:
        """Draw one level per band."""
        return rng.choice(np.asarray(self.levels, dtype=float), size=bands)


@dataclass(frozen=True)
class SigmaPerBand:
    """Each band draws its own sigma uniformly from [low, high]."""

    low: float
    high: float

    def draw(self, bands: int, rng: np.random.Generator) -> Float64[np.ndarray, " bands"]:
        """Draw one sigma per band."""
        return rng.uniform(self.low, self.high, size=bands)


@dataclass(frozen=True)
class SigmaBump:
    """A Gaussian bump over the bands: sigma_b = beta * exp(-(b / bands - 1/2)^2 / (4 eta^2))."""

    beta: float
    eta: float

    def draw(self, bands: int, rng: np.random.Generator) -> Float64[np.ndarray, " bands"]:
        """Return the bump; nothing is random."""
        position = np.arange(bands) / bands - 0.5
        return np.asarray(self.beta * np.exp(-(position**2) / (4.0 * self.eta**2)))


@dataclass(frozen=True)
class Columns:
    """Columns of a band that are hit: a whole number from [low * width, high * width), at least one.

    ``amplitude`` is None for dead columns (set to 0); else each column is shifted by minus U(-amplitude, amplitude).
    ``ceil`` rounds both limits up instead of down.
    """

    low: float
    high: float
    amplitude: float | None
    ceil: bool = False

    def limits(self, width: int) -> tuple[int, int]:
        """Fewest (inclusive) and most (exclusive) columns for a band of this width."""
        rounding = np.ceil if self.ceil else np.floor
        fewest = max(1, int(rounding(self.low * width)))
        return fewest, max(fewest + 1, int(rounding(self.high * width)))

    def hit(
        self, noisy: Float32[np.ndarray, "bands height width"], bands: Int[np.ndarray, " hit"], rng: np.random.Generator
    ) -> None:
        """Apply to the named bands of ``noisy`` (bands, height, width), in place."""
        width = noisy.shape[2]
        for band in bands:
            count = rng.integers(*self.limits(width))
            columns = rng.choice(width, size=min(count, width), replace=False)
            if self.amplitude is None:
                noisy[band][:, columns] = 0.0
            else:
                shift = rng.uniform(-self.amplitude, self.amplitude, size=len(columns))
                noisy[band][:, columns] -= shift.astype(noisy.dtype)


@dataclass(frozen=True)
class Impulses:
    """Salt and pepper: each pixel of a band is hit with a probability drawn from ``shares``; 0 or 1, half each."""

    shares: tuple[float, ...]

    def hit(
        self, noisy: Float32[np.ndarray, "bands height width"], bands: Int[np.ndarray, " hit"], rng: np.random.Generator
    ) -> None:
        """Apply to the named bands of ``noisy`` (bands, height, width), in place."""
        for band in bands:
            share = rng.choice(np.asarray(self.shares))
            draw = rng.random(noisy.shape[1:], dtype=np.float32)
            noisy[band][draw < share] = 1.0
            noisy[band][draw < share / 2] = 0.0
