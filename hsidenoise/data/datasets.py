"""The data sets that are known by name, and their published splits: lists of scenes that ship with the package.

One table, :data:`DATASETS`, has a row per data set and, in it, a row per published split (lists in
``hsidenoise/data/splits``). Imports nothing heavy.

References:
    ICVL: Arad and Ben-Shahar, "Sparse Recovery of Hyperspectral Signal from Natural RGB Images", ECCV 2016.
    doi:10.1007/978-3-319-46478-7_2
    CAVE: Yasuma et al., "Generalized Assorted Pixel Camera", IEEE TIP 2010. doi:10.1109/TIP.2010.2046811
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

SPLITS = Path(__file__).parent / "splits"

_ENDING = re.compile(
    r"(\.(mat|hdr|img|dat|bsq|bil|bip|tiff?|np[yz]|h5|hdf5?|he5|nc4?|zarr))+$", re.IGNORECASE
)  # of every format; the modules of the formats, which know them, would be imported with the weights


@dataclass(frozen=True)
class Split:
    """One published split of a data set.

    Attributes:
        source: Who published it.
        train: List of training scenes, a file name in the package's ``splits`` folder.
        test: Lists of test scenes.
        validation: List of validation scenes; one that is also in the training list is taken out of that.
        held_out: Without a validation list, this many scenes at the end of the training list become validation.
    """

    source: str
    train: str
    test: tuple[str, ...]
    validation: str | None = None
    held_out: int = 0


@dataclass(frozen=True)
class Dataset:
    """One row of the table of data sets.

    Attributes:
        name: What ``--data.dataset`` calls it.
        summary: What it is.
        key: Variable that holds the cube, where every file has the same one.
        splits: Published splits by name; the first is the default. None: sub-folders make the split.
    """

    name: str
    summary: str
    key: str | None = None
    splits: Mapping[str, Split] = field(default_factory=dict)


_ROWS = (
    Dataset(
        "icvl",
        "ICVL, 201 scenes 1392x1300, 31 bands 400-700 nm, MATLAB v7.3",
        key="rad",
        splits={
            "sert": Split("SERT", "icvl_sert_train.txt", ("icvl_sert_test.txt",), "icvl_sert_val.txt"),
            "qrnn3d": Split(
                "QRNN3D",
                "icvl_qrnn3d_train.txt",
                ("icvl_qrnn3d_test_gaussian.txt", "icvl_qrnn3d_test_complex.txt"),
                held_out=5,
            ),
        },
    ),
    Dataset(
        "cave",
        "CAVE, 32 scenes 512x512, 31 bands 400-700 nm, folders of PNG or .mat",
        splits={
            "hsir": Split("HSIR", "cave_hsir_train.txt", ("cave_hsir_test.txt",), "cave_hsidenoise_validation.txt")
        },
    ),
    Dataset("folder", "any folder of cubes of any format, with or without sub-folders train, validation and test"),
)

#: Every data set that ``hsidenoise train`` knows.
DATASETS: dict[str, Dataset] = {row.name: row for row in _ROWS}


def scene_name(path: str | Path) -> str:
    """Name of a scene, the same for ``balloons.mat``, ``balloons_ms`` and ``Balloons_ms.mat``.

    Example:
        >>> scene_name("cave/balloons_ms"), scene_name("BGU_0403-1419-1.mat")
        ('balloons', 'bgu_0403-1419-1')
    """
    return plain_name(path).removesuffix("_ms").lower()


def plain_name(path: str | Path) -> str:
    """Name of a file or folder without the ending of a format of cubes.

    Example:
        >>> plain_name("oak.mat"), plain_name("elm.img.hdr"), plain_name("fir_v1.2")
        ('oak', 'elm', 'fir_v1.2')
    """
    return _ENDING.sub("", Path(path).name)


def read_split(file: str) -> tuple[str, ...]:
    """Scene names of one list that ships with the package, in the order of the list."""
    text = (SPLITS / file).read_text(encoding="utf-8")
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def find_split(dataset: str, split: str | None = None) -> Split | None:
    """Find a published split of a data set.

    Args:
        dataset: Name of a row of :data:`DATASETS`.
        split: Its name; the data set's first by default.

    Raises:
        ValueError: If there is no such data set or split.
    """
    if dataset not in DATASETS:
        raise ValueError(f"unknown data set '{dataset}'; known: {', '.join(DATASETS)}")
    splits = DATASETS[dataset].splits
    if not splits:
        if split is not None:
            raise ValueError(f"data set '{dataset}' has no published splits; leave out split '{split}'")
        return None
    name = next(iter(splits)) if split is None else split
    if name not in splits:
        raise ValueError(f"data set '{dataset}' has no split '{name}'; known: {', '.join(splits)}")
    return splits[name]
