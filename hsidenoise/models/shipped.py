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
        bands: Number of bands that the network takes at once; None for any.
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
    bands: int | None
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


_CASES = (
    "gaussian-5", "gaussian-30", "gaussian-50", "gaussian-70", "blind",
    "non-iid", "stripe", "deadline", "impulse", "mixture",
)  # fmt: skip


def _trained_on_cave(
    name: str,
    model: str,
    sha256: str,
    summary: str,
    *scores: float,
    bands: int | None = 31,
    data: str = "",
    noise: str = "",
) -> ShippedWeights:
    return ShippedWeights(
        name=name,
        file=f"{name}.safetensors",
        sha256=sha256,
        model=model,
        bands=bands,
        data="15 training scenes of CAVE (512x512, 31 bands, 400-700 nm), each min-max scaled" + data,
        noise="blind: Gaussian of sigma 0-75, non-iid, stripe, deadline, impulse, mixture, T3SC's and MAFNet's cases"
        + noise,
        licence="the package's; trained on CAVE (Columbia University), to be cited as Yasuma et al. 2010",
        summary=summary,
        scores=dict(zip(_CASES, scores, strict=True)),
    )


_ROWS = (
    _trained_on_cave(
        "hcanet-bra", "hcanet-bra", "9f307ac759e274ae5f8cdc11ba8c18725b875dd391ce13a864fce06146912887",
        "blind, any of the literature's noise, any number of bands in one pass",
        48.07, 39.70, 37.30, 35.78, 37.49, 40.14, 40.12, 40.04, 39.88, 39.44,
        bands=None, data=", and 18 clean scenes from the air", noise="; photons, detectors",
    ),
    _trained_on_cave(
        "hcanet", "hcanet", "c309715af35c1a6da4b2ce7a0f126c38327de0f6ccfd25e8e8452eb886d8706f",
        "HCANet as in its paper, 173 minutes on a CPU core: for comparison, not for use",
        39.41, 34.89, 32.77, 30.21, 32.91, 32.78, 32.64, 32.19, 29.65, 27.49,
    ),
)  # fmt: skip

#: Every shipped weights file by its name.
WEIGHTS: dict[str, ShippedWeights] = {row.name: row for row in _ROWS}
