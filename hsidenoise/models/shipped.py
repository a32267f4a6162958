"""The table of the weights that ship."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

SHIPPED = Path(__file__).parent / "trained"
_REPOSITORY = Path(__file__).parents[2] / "data" / "weights"  # what only comparisons need
DEFAULT_WEIGHTS = "hcanet-bra"


@dataclass(frozen=True)
class ShippedWeights:
    """One row of the table of shipped weights.

    Attributes:
        name: What ``--weights`` and :func:`load_model` call it.
        file: Name of the file.
        sha256: Hash of that file, so that a table of results can say which weights it used.
        model: Network, a name of ``hsidenoise.models.MODELS``.
        bands: Number of bands that the network takes at once.
        data: What it was trained on.
        noise: Noise cases it was trained for.
        licence: Terms under which the weights may be used.
        summary: One line for a person who chooses.
        scores: Noise case -> PSNR in dB, mean over the test scenes named in ``summary`` or in the card.
    """

    name: str
    file: str
    sha256: str
    model: str
    bands: int
    data: str
    noise: str
    licence: str
    summary: str
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Where the file lies: in the package, or in the repository that the package is a part of."""
        own = SHIPPED / self.file
        return own if own.exists() else _REPOSITORY / self.file


_CAVE = "15 training scenes of CAVE (512x512, 31 bands, 400-700 nm), each min-max scaled"
_BLIND = "blind: Gaussian of sigma 0-75, non-iid, stripe, deadline, impulse, mixture, T3SC's and MAFNet's cases"
_TERMS = "the package's; trained on CAVE (Columbia University), to be cited as Yasuma et al. 2010"

_ROWS = (
    ShippedWeights(
        name="hcanet-bra",
        file="hcanet-bra.safetensors",
        sha256="a3881e96a3b8ce302fa338adb7421d202599832d4ec0c6bde84ce40fddc11537",
        model="hcanet-bra",
        bands=31,
        data=_CAVE,
        noise=_BLIND,
        licence=_TERMS,
        summary="blind, any of the literature's noise; small enough for a laptop",
        scores={
            "gaussian-5": 46.72,
            "gaussian-30": 38.90,
            "gaussian-50": 36.76,
            "gaussian-70": 35.29,
            "blind": 36.93,
            "non-iid": 39.25,
            "stripe": 39.15,
            "deadline": 38.98,
            "impulse": 37.93,
            "mixture": 36.12,
        },
    ),
    ShippedWeights(
        name="hcanet-bra-small",
        file="hcanet-bra-small.safetensors",
        sha256="777e69ce131f2ece0645e2619e50cdeaeadc11920028adc77181ae90b890e458",
        model="hcanet-bra",
        bands=31,
        data=_CAVE,
        noise=_BLIND,
        licence=_TERMS,
        summary="blind, a third of the time or less for about 0.6 dB; for a laptop or a first look",
        scores={
            "gaussian-5": 46.07,
            "gaussian-30": 38.34,
            "gaussian-50": 36.12,
            "gaussian-70": 34.64,
            "blind": 36.28,
            "non-iid": 38.80,
            "stripe": 38.69,
            "deadline": 38.44,
            "impulse": 37.21,
            "mixture": 35.40,
        },
    ),
    ShippedWeights(
        name="hcanet",
        file="hcanet.safetensors",
        sha256="c309715af35c1a6da4b2ce7a0f126c38327de0f6ccfd25e8e8452eb886d8706f",
        model="hcanet",
        bands=31,
        data=_CAVE,
        noise=_BLIND,
        licence=_TERMS,
        summary="HCANet as in its paper, 173 minutes on a CPU core: for comparison, not for use",
        scores={
            "gaussian-5": 39.41,
            "gaussian-30": 34.89,
            "gaussian-50": 32.77,
            "gaussian-70": 30.21,
            "blind": 32.91,
            "non-iid": 32.78,
            "stripe": 32.64,
            "deadline": 32.19,
            "impulse": 29.65,
            "mixture": 27.49,
        },
    ),
)

#: Every shipped weights file by its name.
WEIGHTS: dict[str, ShippedWeights] = {row.name: row for row in _ROWS}
