"""The options of what reads and writes files, each written once: Python, the command line and ``--help`` show these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hsidenoise.data.datasets import DATASETS
from hsidenoise.metrics.protocols import PROTOCOLS
from hsidenoise.system.options import REQUIRED, Missing, option


@dataclass(frozen=True)
class ReadOptions:
    """How a cube is read from a file, see :func:`hsidenoise.read_cube`."""

    key: str | None = option(
        None,
        "variable that holds the cube, such as cube, group/name, or inside of MATLAB's structs and cells hsi.cube, "
        "c{2}; found if absent",
        metavar="NAME",
    )
    axes: str | None = option(
        None,
        "meaning of the variable's axes as who wrote it sees them (MATLAB; Python, if that wrote it): hwb, bhw, ... "
        "(height, width, bands), or bp / pb for a bands x pixels matrix; found if absent",
        metavar="AXES",
    )
    size: tuple[int, int] | None = option(None, "height and width of such a matrix", metavar="HxW")
    allow_external: bool = option(
        False,
        "read what a v7.3 file keeps in other files, which it may name at will (links, external storage, virtual data "
        "sets); refused if absent",
    )
    nodata: float | None = option(
        None, "value that stands for no data; NaN, and marks such as -9999, are found if absent", metavar="VALUE"
    )
    mask: str | None = option(
        None,
        "where there is data: a variable of the file, another file, or one of its variables (FILE:/VARIABLE), nonzero "
        "for valid pixels",
        metavar="VARIABLE|FILE",
    )
    bad_bands: str = option(
        "auto",
        "bands without data, which come back as they were: numbers from 0, such as 0-3,104; auto: those of the "
        "header, and bands of nothing but noise are replaced by what the others say of them; keep: such bands come "
        "back as they were, too",
        metavar="auto|keep|LIST",
    )

    def __post_init__(self) -> None:
        if self.axes is not None:
            object.__setattr__(self, "axes", self.axes.lower())

    def by_name(self) -> dict[str, Any]:
        """The arguments of :func:`hsidenoise.read_cube`."""
        return dict(vars(self))


@dataclass(frozen=True)
class CorruptOptions:
    """How a noisy cube is made of a clean one."""

    noise: str = option(REQUIRED, "noise case; `hsidenoise corrupt --list` shows all", metavar="CASE")
    seed: int = option(0, "seed of the noise", least=0, metavar="N")
    crop: int | None = option(None, "take the centre N x N pixels first", least=1, metavar="N")
    minmax: bool = option(True, "scale the values to [0, 1] by their minimum and maximum")


@dataclass(frozen=True)
class EvaluateOptions:
    """How a denoised cube is measured."""

    protocol: str = option("standard", "whose metrics", choices=tuple(PROTOCOLS))
    data_range: float | None = option(
        None, "range of clean values; nothing is scaled then; by the values if absent", above=0, metavar="X"
    )


@dataclass(frozen=True)
class NoisySetOptions:
    """How a noisy set is made."""

    cases: Sequence[str] | None = option(
        None, "noise cases, as of `corrupt --list`; the published nine if absent", metavar="CASE"
    )
    crop: int | None = option(512, "centre N x N pixels; 0 for whole scenes", least=0, metavar="N")
    seed: int = option(0, "seed of the noise", least=0, metavar="N")
    prefix: str | None = option(
        None, "beginning of the folders' names; data set and crop if absent, such as cave_512", metavar="NAME"
    )
    dataset: str = option(
        "folder",
        "folder: every cube in SOURCE; else the test scenes of a published split, at any depth",
        choices=tuple(DATASETS),
    )
    split: str | None = option(None, "published split of that data set; its first if absent", metavar="NAME")
    missing: Missing = option("error", "what to do about scenes of it that are not there: fail, or leave them out")
