"""The synthetic noise of the hyperspectral denoising literature: each case one cited row of one table.

Values refer to a clean cube scaled to [0, 1]. Sigmas are written on the 0-255 scale in names and in the table, as
the papers do, and are divided by 255 when applied. Nothing is clipped: neither are the published noisy sets.

References:
    QRNN3D: Wei et al., "3-D Quasi-Recurrent Neural Network for Hyperspectral Image Denoising", IEEE TNNLS 2021.
    doi:10.1109/TNNLS.2020.2978756 (section IV: the five complex cases, blind Gaussian in [10, 70] after HSID-CNN).
    T3SC: Bodrito et al., "A Trainable Spectral-Spatial Sparse Coding Model for Hyperspectral Image Restoration",
    NeurIPS 2021, arXiv:2111.09708 (section 4.1 and the released configurations).
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64, Int, Shaped

from hsidenoise.system.options import did_you_mean

QRNN3D = "QRNN3D, Wei et al. 2021, doi:10.1109/TNNLS.2020.2978756"
T3SC = "T3SC, Bodrito et al. 2021, arXiv:2111.09708"
PHOTONS = "Poissonian-Gaussian noise of a raw sensor, Foi et al. 2008, doi:10.1109/TIP.2008.2001399"
DETECTORS = "detectors of a pushbroom sensor, Carfantan and Idier 2010, doi:10.1109/TGRS.2009.2033587"
MAFNET = "the MAFNet training code that HCANet's authors point to"

_SCALE = 255.0  # papers write sigma for 8-bit images
_OUTSIDE = 0.01  # of [0, 1], that a scaled cube may be
_ROUNDING = 1e-9  # of a share of the bands


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
class Detectors:
    """Offset of every column, that of its detector: smooth over about ``length`` columns, ``amplitude`` rms.

    Columns next to each other are off alike, so that no column stands out from its neighbours.
    """

    amplitude: tuple[float, float]
    length: float

    def hit(
        self, noisy: Float32[np.ndarray, "bands height width"], bands: Int[np.ndarray, " hit"], rng: np.random.Generator
    ) -> None:
        """Apply to the named bands of ``noisy`` (bands, height, width), in place."""
        width, reach = noisy.shape[2], round(4 * self.length)
        kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / self.length) ** 2)
        for band in bands:
            amplitude = rng.uniform(*self.amplitude)
            offset = np.convolve(rng.standard_normal(width + 2 * reach), kernel, "valid")
            spread = offset.std()
            if spread > 0:  # a single column is off from none
                noisy[band] += (amplitude * (offset - offset.mean()) / spread).astype(noisy.dtype)


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


@dataclass(frozen=True)
class Corruption:
    """A noisy cube and what was done to it.

    Attributes:
        noisy: Noisy cube, in the unit of the clean one, not clipped.
        sigma: Standard deviation of the Gaussian part of each band, in the cube's unit (``50 / 255``); where it grows
            with the signal, its root mean square.
        affected: Bands hit by "stripe", "deadline" or "impulse", sorted, 0-based; kinds the case lacks are absent.
    """

    noisy: Float32[np.ndarray, "bands height width"]
    sigma: Float32[np.ndarray, " bands"]
    affected: dict[str, Int[np.ndarray, " hit"]]


@dataclass(frozen=True)
class NoiseCase:
    """One row of the table of noise cases: Gaussian noise first, then structured noise on a share of the bands.

    Attributes:
        name: Name on the command line and in tables.
        definition: What is done, in words.
        source: Where the case is defined.
        sigma: Rule that draws the Gaussian sigma of each band.
        photons: Fewest and most photons that a value of 1 stands for, drawn for each band on a log scale: adds noise
            with the variance of the signal over their number. None: no such part.
        stripe: Shifted columns, if any.
        deadline: Dead columns, if any.
        impulse: Salt and pepper, if any.
        share: Share of the bands (rounded down) that each structured kind hits. Several kinds hit disjoint bands.
    """

    name: str
    definition: str
    source: str
    sigma: SigmaRule
    photons: tuple[float, float] | None = None
    stripe: Columns | Detectors | None = None
    deadline: Columns | None = None
    impulse: Impulses | None = None
    share: float = 1 / 3

    def __post_init__(self) -> None:
        kinds = sum(hit is not None for hit in (self.stripe, self.deadline, self.impulse))
        if not 0.0 <= self.share * max(kinds, 1) <= 1.0 + _ROUNDING:
            raise ValueError(
                f"noise case '{self.name}': {kinds} structured kinds hit disjoint shares of {self.share:g} of the "
                "bands each; the share must be at least 0 and the sum at most 1"
            )

    @property
    def is_gaussian(self) -> bool:
        """Whether it is one sigma for all bands and nothing else; what has lists of its own in some data sets."""
        return isinstance(self.sigma, SameSigma) and not (self.photons or self.stripe or self.deadline or self.impulse)

    def add(self, clean: Shaped[np.ndarray, "bands height width"], rng: np.random.Generator) -> Corruption:
        """Add this noise to a clean cube, which is left untouched.

        Returns:
            The noisy cube in float32, the sigma of each band, and the bands that were hit.

        Raises:
            ValueError: If ``clean`` is not a real (bands, height, width) array with at least one value.
        """
        if clean.ndim != 3 or clean.size == 0:
            raise ValueError(f"noise: a (bands, height, width) cube is needed, got shape {clean.shape}")
        if np.iscomplexobj(clean):
            raise ValueError("noise: the cube holds complex numbers; take their magnitude first")
        if clean.dtype.kind not in "buif":
            raise ValueError(f"noise: the cube holds {clean.dtype}; convert it to real numbers first")
        bands = clean.shape[0]
        sigma = (self.sigma.draw(bands, rng) / _SCALE).astype(np.float32)
        noisy = rng.standard_normal(clean.shape, dtype=np.float32)
        if self.photons is None:
            noisy *= sigma[:, None, None]
        else:
            fewest, most = np.log(self.photons)
            count = np.exp(rng.uniform(fewest, most, size=bands)).astype(np.float32)
            variance = np.maximum(clean, 0, dtype=np.float32) / count[:, None, None] + np.square(sigma)[:, None, None]
            noisy *= np.sqrt(variance)
            sigma = np.sqrt(variance.mean(axis=(1, 2)))
        noisy += clean
        structured = (("stripe", self.stripe), ("deadline", self.deadline), ("impulse", self.impulse))
        kinds = {kind: hit for kind, hit in structured if hit is not None}
        # 1/3 of 30 bands is 10, whatever the last bit of the float says
        count = int(np.floor(bands * self.share + _ROUNDING))
        order = rng.permutation(bands) if kinds else np.empty(0, dtype=int)
        affected: dict[str, Int[np.ndarray, " hit"]] = {}
        for position, (kind, hit) in enumerate(kinds.items()):
            chosen = np.sort(order[position * count : (position + 1) * count])
            hit.hit(noisy, chosen, rng)
            affected[kind] = chosen
        return Corruption(noisy, sigma, affected)


_NON_IID = SigmaFromLevels((10, 30, 50, 70))
_STRIPE = Columns(0.05, 0.15, amplitude=0.25)
_DEADLINE = Columns(0.05, 0.15, amplitude=None, ceil=True)
_DETECTORS = Detectors((0.005, 0.05), length=3)
_IMPULSE = Impulses((0.1, 0.3, 0.5, 0.7))


def _gaussian(name: str, low: float, high: float) -> NoiseCase:
    text = (
        f"the same sigma {low:g} on every band"
        if low == high
        else f"one sigma per cube, uniform in [{low:g}, {high:g}]"
    )
    return NoiseCase(name, text, QRNN3D, SameSigma(low, high))


_ROWS = (
    _gaussian("gaussian-30", 30, 30),
    _gaussian("gaussian-50", 50, 50),
    _gaussian("gaussian-70", 70, 70),
    _gaussian("blind", 10, 70),
    NoiseCase("non-iid", "sigma of each band from {10, 30, 50, 70} (case 1)", QRNN3D, _NON_IID),
    NoiseCase(
        "stripe",
        "non-iid, then 5-15 % of the columns of a third of the bands shifted by -U(-.25, .25) (case 2)",
        QRNN3D,
        _NON_IID,
        stripe=_STRIPE,
    ),
    NoiseCase(
        "deadline",
        "non-iid, then 5-15 % of the columns of a third of the bands set to 0 (case 3)",
        QRNN3D,
        _NON_IID,
        deadline=_DEADLINE,
    ),
    NoiseCase(
        "impulse",
        "non-iid, then 10, 30, 50 or 70 % of the pixels of a third of the bands set to 0 or 1 (case 4)",
        QRNN3D,
        _NON_IID,
        impulse=_IMPULSE,
    ),
    NoiseCase(
        "mixture",
        "non-iid, then stripe, deadline and impulse on three disjoint thirds of the bands (case 5)",
        QRNN3D,
        _NON_IID,
        stripe=_STRIPE,
        deadline=_DEADLINE,
        impulse=_IMPULSE,
    ),
    *(
        NoiseCase(f"t3sc-uniform-{most}", f"sigma of each band uniform in [0, {most}]", T3SC, SigmaPerBand(0, most))
        for most in (15, 55, 95)
    ),
    NoiseCase(
        "t3sc-correlated", "sigma a Gaussian bump over the bands, beta 23.08, eta 0.157", T3SC, SigmaBump(23.08, 0.157)
    ),
    NoiseCase(
        "t3sc-stripes",
        "sigma 25, then 5-15 % of the columns of 33 % of the bands shifted by U(-.25, .25)",
        T3SC,
        SameSigma(25, 25),
        stripe=_STRIPE,
        share=0.33,
    ),
    NoiseCase(
        "mafnet-mixture",
        "mixture with sigmas from {30, 50, 70} and 5-10 % of the columns",
        MAFNET,
        SigmaFromLevels((30, 50, 70)),
        stripe=Columns(0.05, 0.10, amplitude=0.25),
        deadline=Columns(0.05, 0.10, amplitude=None, ceil=True),
        impulse=_IMPULSE,
    ),
    NoiseCase(
        "photon",
        "sigma 2, and noise of the signal: 100 to 10,000 photons for a value of 1, of each band",
        PHOTONS,
        SameSigma(2, 2),
        photons=(100, 10_000),
    ),
    NoiseCase(
        "detector",
        "sigma of each band uniform in [0, 15], then an offset of every column of a third of the bands, 0.005 to 0.05 "
        "rms, smooth over 3 columns",
        DETECTORS,
        SigmaPerBand(0, 15),
        stripe=_DETECTORS,
    ),
)

#: Every named noise case. ``gaussian-<sigma>`` and ``gaussian-<low>-<high>`` are understood beside these.
NOISE_CASES: dict[str, NoiseCase] = {case.name: case for case in _ROWS}

_GAUSSIAN_NAME = re.compile(r"gaussian-(\d+(?:\.\d+)?)(?:-(\d+(?:\.\d+)?))?")


def noise_case(name: str) -> NoiseCase:
    """Find a noise case by its name.

    Args:
        name: A key of ``NOISE_CASES``, or ``gaussian-<sigma>``, or ``gaussian-<low>-<high>`` for one sigma per cube
            drawn uniformly (0-255 scale).

    Raises:
        ValueError: If there is no such case; the message lists the names.

    Example:
        >>> noise_case("gaussian-25").definition
        'the same sigma 25 on every band'
    """
    if name in NOISE_CASES:
        return NOISE_CASES[name]
    match = _GAUSSIAN_NAME.fullmatch(name)
    if match:
        low = float(match[1])
        high = float(match[2]) if match[2] else low
        if low <= high:
            return _gaussian(name, low, high)
    raise ValueError(
        f"unknown noise case '{name}'; known: {', '.join(NOISE_CASES)}, gaussian-<sigma>, gaussian-<low>-<high>"
        f"{did_you_mean(name, NOISE_CASES)}"
    )


def corrupt(
    clean: Shaped[np.ndarray, "bands height width"],
    case: str | NoiseCase,
    *,
    seed: int = 0,
    rng: np.random.Generator | None = None,
) -> Corruption:
    """Add the noise of a named case to a clean cube.

    Args:
        clean: Clean cube scaled to [0, 1]. It is left untouched.
        case: Name of a noise case (see ``NOISE_CASES``) or a case of your own.
        seed: Seed of the noise; the same seed gives the same noise.
        rng: Source of randomness in place of ``seed``.

    Returns:
        The noisy cube (float32, not clipped) with the sigma of each band and the bands that were hit.

    Warns:
        UserWarning: If the values are not in [0, 1], for which the cases are defined.

    Raises:
        ValueError: If the case is unknown or the cube is not a real (bands, height, width) array.

    Example:
        >>> clean = np.full((6, 8, 10), 0.5, dtype=np.float32)
        >>> bool(np.all(corrupt(clean, "mixture", seed=1).noisy == corrupt(clean, "mixture", seed=1).noisy))
        True
    """
    rule = noise_case(case) if isinstance(case, str) else case
    clean = np.asarray(clean)
    if clean.size and clean.dtype.kind in "uif":
        low, high = float(clean.min()), float(clean.max())
        if low < -_OUTSIDE or high > 1 + _OUTSIDE:
            warnings.warn(
                f"the values of the cube lie in {low:.4g} .. {high:.4g}; the noise cases are for cubes in [0, 1]: "
                "scale it first, such as by its smallest and largest value",
                stacklevel=2,
            )
    return rule.add(clean, rng if rng is not None else np.random.default_rng(seed))
