"""Data sets of clean cubes: where their scenes lie in a folder, and which scene is for what.

Scenes are looked up by name (:mod:`hsidenoise.data.datasets`) wherever they lie under the root, and always in the order
of their list or sorted: never in the order of a directory.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float32

from hsidenoise.data.datasets import Split, find_split, read_split, scene_name
from hsidenoise.data.io import Cube, read_cube
from hsidenoise.data.layout import times
from hsidenoise.data.sources import is_cube
from hsidenoise.noise.cases import noise_case
from hsidenoise.signal.scaling import centre_crop, to_unit_range

#: What a folder of cubes has to hold, for messages.
NEEDED = ".mat, .hdr, .tif, .npy, .h5, .zarr and the like, or folders of PNG bands, are needed"
_TRAIN, _VALIDATION, _TEST = ("train",), ("validation", "val"), ("test",)
_FINEST = 1000  # blocks of a side in which a rectangle is looked for: a second


@dataclass(frozen=True)
class Scenes:
    """Files (or folders of PNG) of the three parts of a data set; no scene is in two of them."""

    train: tuple[Path, ...]
    validation: tuple[Path, ...]
    test: tuple[Path, ...]


def scenes_for_tests(split: Split, cases: Sequence[str]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Test scenes of a split and the noise cases that they are for.

    QRNN3D's split of ICVL has other scenes for Gaussian than for complex noise.

    Returns:
        For each list of the split its scene names and its part of the cases.
    """
    if len(split.test) == 1:
        return [(read_split(split.test[0]), tuple(cases))]
    parts = {gaussian: tuple(c for c in cases if noise_case(c).is_gaussian == gaussian) for gaussian in (True, False)}
    return [(read_split(file), parts[file.endswith("_gaussian.txt")]) for file in split.test]


def find_scenes(
    dataset: str,
    root: str | Path,
    *,
    split: str | None = None,
    missing: Literal["error", "skip"] = "error",
) -> Scenes:
    """Locate the training, validation and test scenes of a data set.

    For ``folder``: sub-folders ``train``, ``validation`` (or ``val``) and ``test`` where there is a ``train``; else the
    last tenth (at least one) of the folder's cubes, sorted by name, is for validation, and there is no test part. Cubes
    that lie anywhere else under ``root`` are left out, with a warning. Hidden files are none.

    Args:
        dataset: Name of a row of :data:`DATASETS`.
        root: Folder that holds the scenes; those of a published split at any depth.
        split: Name of a published split; the data set's first by default.
        missing: What to do about scenes of the split that are not under ``root``: fail, or warn and leave them out.

    Raises:
        ValueError: If the data set or split is unknown, scenes are missing, a part is empty, or a scene is in two
            parts.
        FileNotFoundError: If ``root`` is not a folder.
    """
    published, root = find_split(dataset, split), Path(root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; --data.root names the folder of the clean cubes")
    if published is None:
        scenes = _folder_scenes(root)
        taken = {*scenes.train, *scenes.validation, *scenes.test}
        others = sorted(str(path.relative_to(root)) for path in _cubes_under(root) if path not in taken)
        if others:
            warnings.warn(
                f"{root}: {len(others)} cube(s) in other folders left out ({some_of(others)}): only those directly in "
                f"train, validation and test are taken, or directly in {root} if it has no train",
                stacklevel=2,
            )
    else:
        scenes = _split_scenes(published, root, missing)
    for part, paths in (("train", scenes.train), ("validation", scenes.validation)):
        if not paths:
            raise ValueError(f"{root}: no {part} cube found; {NEEDED}")
    _check_disjoint({"train": scenes.train, "validation": scenes.validation, "test": scenes.test})
    return scenes


def read_clean(
    path: str | Path,
    *,
    key: str | None = None,
    crop: int | None = None,
    bands: int | None = None,
    valid_part: bool = False,
) -> Float32[np.ndarray, "bands height width"]:
    """Read a clean cube and scale it to [0, 1] by its smallest and largest value (one scaling for all bands).

    Bands without data, such as those that the header calls bad, are left out.

    Args:
        path: File or folder of PNG.
        key: Variable to read, where a file has several.
        crop: Side of the centre square to cut first, in pixels; a cube that is smaller is left as it is.
        bands: Number of bands to pick first, evenly spaced: the centres of so many equal parts of the spectrum.
        valid_part: Whether, if some pixels hold no data, the largest rectangle without them is taken, with a warning;
            else such a cube is refused.

    Warns:
        UserWarning: Of what is left out of a cube, with the name of the file.

    Raises:
        ValueError: If the cube is constant, some of its pixels hold no data, or it has fewer bands than are wanted;
            with the name of the file.
    """
    cube = read_cube(path, key=key, exact=True)
    if bands is not None:
        if len(cube.values) < bands:
            raise ValueError(f"{path}: {bands} bands of it are wanted, and it has {len(cube.values)}")
        picked = evenly_spaced(len(cube.values), bands)
        mask = None if cube.mask is None else cube.mask[picked]
        cube = dataclasses.replace(cube, values=cube.values[picked], mask=mask)
    if crop is not None:
        mask = None if cube.mask is None else centre_crop(cube.mask, crop)
        cube = dataclasses.replace(cube, values=centre_crop(cube.values, crop), mask=mask)
    if valid_part and cube.mask is not None:
        cube = _valid_part(cube, cube.mask, str(path))
    return clean_range(cube, str(path))


def evenly_spaced(bands: int, wanted: int) -> np.ndarray:
    """Indices of so many of the bands: the centres of equal parts of the spectrum.

    Example:
        >>> evenly_spaced(31, 3)
        array([ 5, 15, 25])
    """
    return (2 * np.arange(wanted) + 1) * bands // (2 * wanted)


def clean_range(cube: Cube, name: str) -> Float32[np.ndarray, "bands_with_data height width"]:
    """Scale a clean cube to [0, 1] by its smallest and largest value; bands without any data are left out.

    Args:
        cube: The clean cube.
        name: What a message calls it.

    Raises:
        ValueError: If the cube is constant, nothing holds data, or some pixels of a band do not: as an end of the
            range they would make all else nearly one value.
    """
    values = cube.values
    if cube.mask is not None:
        with_data = cube.mask.any(axis=(1, 2))
        if not with_data.any():
            raise ValueError(f"{name} holds no data ({'; '.join(cube.not_data)}): leave the file out")
        values = values[with_data]
        if not cube.mask[with_data].all():
            raise ValueError(
                f"{name}: {'; '.join(cube.not_data)}; put other values there, cut that part off, or leave the file out"
            )
    return to_unit_range(values, name)[0]


def _valid_part(cube: Cube, mask: Bool[np.ndarray, "bands height width"], name: str) -> Cube:
    """The largest rectangle of a cube in which every pixel holds data."""
    pixels = np.asarray(mask[mask.any(axis=(1, 2))].all(axis=0))
    if pixels.all() or not pixels.any():
        return cube
    rows, columns = _largest_rectangle(pixels)
    height, width = pixels[rows, columns].shape
    warnings.warn(
        f"{name}: {'; '.join(cube.not_data)}; of its {times(pixels.shape)} pixels only {height}x{width} are used, "
        f"from row {rows.start} and column {columns.start} on, which all hold data",
        stacklevel=4,
    )
    return dataclasses.replace(cube, values=cube.values[:, rows, columns], mask=mask[:, rows, columns])


def _largest_rectangle(pixels: Bool[np.ndarray, "height width"]) -> tuple[slice, slice]:
    """Rows and columns of the largest rectangle of pixels that are all True; of a large image to a few pixels."""
    step = -(-max(pixels.shape) // _FINEST)
    height, width = (side // step for side in pixels.shape)
    blocks = np.asarray(pixels[: height * step, : width * step].reshape(height, step, width, step).all(axis=(1, 3)))
    if step > 1 and not blocks.any():
        blocks, step = pixels, 1
    # columns of True that end in a row; each time one is shorter than those before it, their rectangles are complete
    tall = np.zeros(blocks.shape[1] + 1, int)
    largest, found = 0, (slice(0, 0), slice(0, 0))
    for row, line in enumerate(blocks):
        tall[:-1] = (tall[:-1] + 1) * line
        open_ones: list[tuple[int, int]] = []
        for column, length in enumerate(tall.tolist()):
            start = column
            while open_ones and open_ones[-1][1] >= length:
                start, before = open_ones.pop()
                if before * (column - start) > largest:
                    largest = before * (column - start)
                    found = slice((row + 1 - before) * step, (row + 1) * step), slice(start * step, column * step)
            open_ones.append((start, length))
    return found


def cubes_in(folder: Path) -> list[Path]:
    """Cubes that lie directly in a folder, by their names (:func:`hsidenoise.data.sources.is_cube`), sorted."""
    return sorted(path for path in folder.iterdir() if is_cube(path))


def _cubes_under(root: Path) -> Iterator[Path]:
    """Cubes at any depth; nothing inside of a zarr store or a hidden folder is one."""
    for path in root.iterdir():
        if is_cube(path):
            yield path
        if path.is_dir() and not path.is_symlink() and path.suffix.lower() != ".zarr" and path.name[0] != ".":
            yield from _cubes_under(path)


def _folder_scenes(root: Path) -> Scenes:
    def part(names: Sequence[str]) -> tuple[Path, ...]:
        folders = [root / name for name in names if (root / name).is_dir()]
        return tuple(path for folder in folders for path in cubes_in(folder))

    if (root / _TRAIN[0]).is_dir():
        return Scenes(part(_TRAIN), part(_VALIDATION), part(_TEST))
    cubes = cubes_in(root)
    if len(cubes) < 2:
        raise ValueError(
            f"{root}: {len(cubes)} cube(s) found; at least two are needed, one of them for validation "
            f"(or sub-folders train, validation and test of them); {NEEDED}"
        )
    held_out = max(1, len(cubes) // 10)
    return Scenes(tuple(cubes[:-held_out]), tuple(cubes[-held_out:]), ())


def _split_scenes(split: Split, root: Path, missing: str) -> Scenes:
    train = list(read_split(split.train))
    if split.validation is not None:
        validation = list(read_split(split.validation))
    else:
        validation = train[len(train) - split.held_out :]
    taken = {scene_name(name) for name in validation}
    train = [name for name in train if scene_name(name) not in taken]
    test = [name for names, _ in scenes_for_tests(split, ()) for name in names]

    known = scenes_under(root)
    absent = [name for name in (*train, *validation, *test) if scene_name(name) not in known]
    needed = [name for name in (*train, *validation) if scene_name(name) not in known]
    if needed and missing == "error":
        raise ValueError(
            f"{root}: {len(needed)} scene(s) of the split of {split.source} are missing ({some_of(needed)}); get them, "
            f"or leave them out with --data.missing skip"
        )
    if absent and missing == "skip":
        warnings.warn(
            f"{root}: {len(absent)} scene(s) of the split of {split.source} left out: {some_of(absent)}",
            stacklevel=3,
        )

    def paths(names: Iterable[str]) -> tuple[Path, ...]:
        return tuple(known[scene_name(name)] for name in names if scene_name(name) in known)

    return Scenes(paths(train), paths(validation), paths(test))


def scenes_under(root: Path) -> dict[str, Path]:
    """Every cube under a folder by scene name. Of two with one name the one nearest to the root counts.

    Of two at one place a .mat file comes first: ICVL has raw data of the same names beside its cubes.
    """
    scenes: dict[str, Path] = {}

    def order(path: Path) -> tuple[Any, ...]:
        return len(path.parts), path.is_dir(), path.suffix.lower() != ".mat", path

    for path in sorted(_cubes_under(root), key=order):
        scenes.setdefault(scene_name(path), path)
    return scenes


def some_of(names: Sequence[str], most: int = 5) -> str:
    """Names for people, not too many of them.

    Example:
        >>> some_of(["oak", "fir", "elm"], most=2)
        'oak, fir and 1 more'
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _check_disjoint(parts: Mapping[str, Sequence[Path]]) -> None:
    owner: dict[str, str] = {}
    for part, paths in parts.items():
        for path in paths:
            name = scene_name(path)
            if owner.setdefault(name, part) != part:
                raise ValueError(
                    f"scene '{name}' is in {owner[name]} and in {part} ({path}): remove it from one of them"
                )
