"""What a path names: which format it has, told by its content, which files belong to it, which variables are in it."""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from hsidenoise.data.formats import envi, geotiff, mat, netcdf, npy, png, zarr
from hsidenoise.data.formats.base import Format
from hsidenoise.data.layout import Layout, Variable, times
from hsidenoise.system.files import check_source, sha256

#: Every format, in the order in which they are tried on the content of a file; of some only their neighbours tell.
FORMATS: tuple[Format, ...] = (
    zarr.FORMAT, png.FORMAT, npy.NPY, npy.NPZ, geotiff.FORMAT, netcdf.FORMAT, mat.FORMAT, envi.FORMAT,
)  # fmt: skip


def locate(source: str | Path, key: str | None = None) -> tuple[Path, str | None]:
    """Split ``file.he5:/group/variable`` into the file and the name of the variable.

    Args:
        source: A path, perhaps with ``:/`` and a name behind it.
        key: Name of the variable, which goes before that.

    Example:
        >>> locate("no/such.he5:/HDFEOS/Data")
        (PosixPath('no/such.he5'), '/HDFEOS/Data')
    """
    path, _, name = str(source).rpartition(":/")
    if not path or not name or Path(source).exists():
        return Path(source), key
    return Path(path), key or f"/{name}"


def list_variables(path: str | Path, *, allow_external: bool = False) -> list[Variable]:
    """List what a file or a folder of band images holds, without loading it.

    Args:
        path: As for :func:`hsidenoise.read_cube`.
        allow_external: Whether what a v7.3 file keeps in other files is described too.

    Raises:
        OSError: If the file is missing or cannot be opened.
        ValueError: If it is not such a file, truncated or damaged.
    """
    path, _ = locate(path)
    check_source(path)
    return format_of(path).list_variables(path, allow_external=allow_external)


def read_beside(
    path: Path, mask: str | Path, layout: Layout, shape: tuple[int, ...], what: str
) -> Shaped[np.ndarray, "*axes"]:
    """What goes with a cube, out of its own file or another one, in the axes of the cube.

    Args:
        path: File of the cube.
        mask: Variable of it, or another file, perhaps with ``:/`` and the name of a variable behind it.
        layout: How the cube lies in its file.
        shape: (bands, height, width).
        what: What it is, for messages; in a file of several arrays also its name.

    Returns:
        (bands, height, width), (height, width) or (bands,).

    Raises:
        OSError: If the file cannot be read.
        ValueError: If there is no such variable or file, or its sizes are none of these.
    """
    own = [item.name for item in list_variables(path)]
    if str(mask) in own:
        source, name = path, str(mask)
    elif locate(mask)[0].is_file():
        source, asked = locate(mask)
        found = [item.name for item in list_variables(source) if math.prod(item.shape) > 1]
        fitting = [each for each in found if each.strip("/") == (asked or what).strip("/")]
        if not fitting and (asked or len(found) != 1):
            raise ValueError(
                f"{source} holds {', '.join(found) or 'no array'}; a file of a {what} has one, one named {what}, or "
                f"the one that is named behind it, as in {source}:/NAME"
            )
        name = (fitting or found)[0]
    else:
        raise ValueError(f"the {what} '{mask}' is neither a variable of it ({', '.join(own)}) nor a file")
    stored = format_of(source).load_variable(source, name)
    bands, height, width = shape
    if stored.shape == layout.shape:
        return layout.to_bands_first(stored)
    flat = stored.reshape([length for length in stored.shape if length > 1] if stored.ndim > 2 else stored.shape)
    # whether the images of the file lie on their side
    across = "p" not in layout.axes and layout.axes.find("w") < layout.axes.find("h")
    for image in (flat.T, flat) if across else (flat, flat.T):
        if image.shape == (height, width):
            return image
    if flat.size == height * width and layout.size is not None:
        return flat.reshape(width, height).T  # pixels as those of an unfolded matrix, column after column
    if flat.size == bands:
        return flat.ravel()
    raise ValueError(
        f"the {what} '{mask}' is {times(stored.shape)}; the cube has {bands} bands of {times((height, width))} pixels"
    )


def format_of(path: Path) -> Format:
    """The format of a file that is there.

    Raises:
        ValueError: If its content is of none.
    """
    for form in FORMATS:
        if form.recognises(path):
            return form
    named = next((form for form in FORMATS if path.suffix.lower() in form.suffixes), None)
    if named is not None:
        raise ValueError(
            f"cannot read {path}: not {_a(named.name)} file, whatever its name says: truncated, damaged or another "
            "kind; copy or download it again"
        )
    raise ValueError(f"cannot read {path}: none of the formats that are known; convert it to one: {known_formats()}")


def is_cube(path: Path) -> bool:
    """Whether a file or folder is called like a cube; of an ENVI pair the header is, a hidden file never."""
    return not path.name.startswith(".") and any(form.is_named(path) for form in FORMATS)


def files_of(path: Path) -> list[Path]:
    """The files that a cube is read from: both of an ENVI pair, all in a folder.

    Raises:
        OSError: If there is no such file.
        ValueError: If its content is of no format that is known.
    """
    check_source(path)
    parts = (
        part for each in format_of(path).files(path) for part in (each, *(each.rglob("*") if each.is_dir() else ()))
    )
    return sorted(part for part in parts if part.is_file())


def digest_of(path: Path, *, ending: str = "") -> str:
    """SHA-256 of what a cube is read from, see :func:`hsidenoise.system.files.sha256`; of an ENVI pair, of both.

    Raises:
        OSError: If there is no such file.
        ValueError: If its content is of no format that is known.
    """
    check_source(path)
    each = [sha256(part, ending=ending) for part in format_of(path).files(path)]
    return each[0] if len(each) == 1 else hashlib.sha256("".join(each).encode()).hexdigest()


def _a(name: str) -> str:
    return f"an {name}" if name.startswith(("E", "H")) else f"a {name}"


def known_formats() -> str:
    """Every format with the endings of its files, for messages."""
    return ", ".join(f"{form.name} {'/'.join(form.suffixes)}" for form in FORMATS if form.suffixes)


def check_name(target: Path, source: Path | None = None) -> None:
    """Refuse a name of which no format can be told.

    Args:
        target: What will be written.
        source: What was read, whose ending will do, too.

    Raises:
        ValueError: If its ending is that of no format.
    """
    suffix = target.suffix.lower()
    like = "" if source is None else source.suffix.lower()
    if suffix not in ("", like) and not any(suffix in form.suffixes for form in FORMATS):
        raise ValueError(f"cannot write {target}: no format of cubes is called {suffix}; known: {known_formats()}")


def check_other(
    source: Path, target: str | Path, targets: Sequence[Path] | None = None, read: Sequence[Any] = ()
) -> None:
    """Refuse a target that is the source or inside of it, of the files that belong to it, or another file that is read.

    Args:
        source: The file that is read.
        target: The name of what will be written.
        targets: Its files.
        read: What may name further files that are read.

    Raises:
        ValueError: If it is.
    """
    files = format_of(source).files(source)
    others = [path for path, _ in (locate(each) for each in read if isinstance(each, str | Path)) if path.is_file()]
    inside = source.resolve()
    for each in (Path(target), *(targets or ())):
        if source.is_dir() and inside in each.resolve().parents:
            raise ValueError(f"{each} lies inside of the source {source}; choose an output name beside it")
        if each.exists() and any(each.samefile(file) for file in files):
            raise ValueError(f"{each} is the source itself and would be lost; choose another output name")
        if each.exists() and any(each.samefile(file) for file in others):
            raise ValueError(f"{each} is read by this command and would be lost; choose another output name")
