"""Cubes from and to files: the one door, which picks the format by content (reading) and by name (writing).

Only this package knows another axis order than (bands, height, width).

A cube is float32. Integers beyond 24 bits and float64 lose their last digits on the way in, unless they are asked for
as they are; the stored type comes back on the way out, integers rounded and clipped to its range.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Shaped

from hsidenoise.data.casting import cast, put_back
from hsidenoise.data.formats.base import Format, NewCube, Wavelengths
from hsidenoise.data.formats.mat import V5_LIMIT, write_mat
from hsidenoise.data.formats.mat5 import MATLAB_NAMES
from hsidenoise.data.layout import Layout, find_layout, printable
from hsidenoise.data.metadata import OF_BANDS, WORDS, Metadata, keep_record, record_beside
from hsidenoise.data.options import ReadOptions
from hsidenoise.data.sources import FORMATS, check_name, check_other, format_of, locate, read_beside
from hsidenoise.signal.mask import BadBands, find_mask
from hsidenoise.signal.scaling import floating, value_range
from hsidenoise.system.files import check_source, check_target, replacing, replacing_all
from hsidenoise.system.options import takes_options, with_changes

#: Free text in the header of a .mat file, between "MATLAB 5.0 MAT-file" and the binary part.
ABOUT = slice(19, 116)


@dataclass(frozen=True, eq=False)
class Cube:
    """A hyperspectral cube and where it came from.

    Attributes:
        values: (bands, height, width), in the unit of the file; float32, or float64 if read with ``exact``.
        wavelengths: Centre of each band in nm, None if unknown.
        layout: How it lay in its file; None for a cube that was computed.
        path: The file or folder it was read from.
        metadata: What the file says of it beside that; None if nothing was read.
        mask: True where a value holds data; None if all of them do.
        not_data: What does not, and why, one line a kind.

    Example:
        >>> Cube(np.zeros((3, 4, 5), np.float32)).values.shape
        (3, 4, 5)
    """

    values: Float[np.ndarray, "bands height width"]
    wavelengths: Float64[np.ndarray, " bands"] | None = None
    layout: Layout | None = None
    path: Path | None = None
    metadata: Metadata | None = None
    mask: Bool[np.ndarray, "bands height width"] | None = None
    not_data: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(shape := np.shape(self.values)) != 3:
            raise ValueError(f"the values of a Cube are (bands, height, width), not of shape {shape}")


def read_cube(
    path: str | Path,
    *,
    key: str | None = None,
    axes: str | None = None,
    size: tuple[int, int] | None = None,
    allow_external: bool = False,
    exact: bool = False,
    nodata: float | None = None,
    mask: str | Path | None = None,
    bad_bands: BadBands = "auto",
) -> Cube:
    """Read a cube from a file of any format that is known, told by its content, or from a folder of one PNG per band.

    How the variable and its spectral axis are chosen is in `hsidenoise.data.layout.find_layout`, and for a given
    file in ``cube.layout.reason``. Formats: ``hsidenoise/data/README.md``.

    Args:
        path: File or folder; of ENVI the header or the data file; ``file.he5:/group/variable`` names the variable too.
        key: Name of the variable, or of the scene in a folder; None to choose. ``group/name`` in HDF5, ``hsi.cube`` and
            ``c{2}`` in structs and cells of MATLAB, which counts from 1.
        axes: Axes in the order that the writer of the file sees (MATLAB's of what MATLAB wrote, NumPy's of all else):
            ``"hwb"``, ``"bhw"``, ...; ``"bp"`` or ``"pb"`` for an unfolded matrix of bands and pixels (column after
            column, or row after row); None to choose.
        size: (height, width) in pixels, of an unfolded matrix.
        allow_external: Whether the numbers may lie in other files, as a v7.3 file can say (external links, external
            storage, virtual data sets): it can name any file that you may read. What it names is never written.
        exact: Whether to keep the values as they are stored: as float64 where float32 would round them (float64,
            integers of 32 bits or more), also if they are constant.
        nodata: The value that stands for no data; the one that the file names if None.
        mask: Where there is data: a variable of the file, another file, or a variable of that (``FILE:/VARIABLE``),
            nonzero where a pixel (or value) holds data; None for the mask that a GeoTIFF may have.
        bad_bands: Bands without data, see :func:`hsidenoise.signal.mask.find_mask`.

    Returns:
        The cube, its values float32 unless ``exact``, as they are stored also where there is no data
        (:func:`hsidenoise.signal.mask.find_mask`).

    Raises:
        OSError: If the file is missing or cannot be opened.
        ValueError: If it is truncated or of another kind; if no variable or several could be the cube; if the cube is
            complex, empty, constant or without any data, or the mask does not fit.
        ImportError: If it takes a library that is not installed; the message names the extra to install.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_arrays(Path(folder, "a.mat"), {"rad": np.arange(120).reshape(5, 8, 3)})
        ...     cube = read_cube(Path(folder, "a.mat"))
        >>> cube.values.shape, cube.layout.axes
        ((3, 5, 8), 'hwb')
    """
    path, key = locate(path, key)
    stored, layout, wavelengths, metadata = _read(path, key=key, axes=axes, size=size, allow_external=allow_external)
    form = format_of(path)
    dtype = floating(stored.dtype) if exact else np.dtype(np.float32)
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite, and is refused here or below
        values = np.require(stored, dtype, ["C", "W"])
    if metadata.nodata is None and nodata is not None:
        metadata = replace(metadata, nodata=float(nodata))
    name = printable(layout.key)
    if not exact and np.isinf(values).any() and np.isfinite(stored).all():
        raise ValueError(f"{path}: '{name}' has values beyond single precision (3.4e38); save it in another unit")
    try:
        found = find_mask(
            values,
            nodata=metadata.nodata if nodata is None else nodata,
            given=form.own_mask(path) if mask is None else read_beside(path, mask, layout, values.shape, "mask"),
            good_bands=metadata.good_bands,
            bad_bands=bad_bands,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not exact:
        check_values(values, f"{path}: '{name}'", found.valid)
    return Cube(values, wavelengths, layout, path, metadata, found.valid, found.reasons)


def _read(
    path: Path, *, key: str | None, axes: str | None, size: tuple[int, int] | None, allow_external: bool
) -> tuple[Shaped[np.ndarray, "bands height width"], Layout, Wavelengths, Metadata]:
    """A cube as it is stored, bands first; how it lies; and what the file says of it."""
    check_source(path)
    form = format_of(path)
    variables = form.list_variables(path, allow_external=allow_external)

    loaded: dict[str, np.ndarray] = {}

    def load(name: str) -> np.ndarray:
        if name not in loaded:
            loaded[name] = form.load_variable(path, name, allow_external=allow_external)
        return loaded[name]

    try:
        layout = find_layout(variables, load, format=form.kind(path), key=key, axes=axes, size=size)
    except ValueError as error:
        if str(path) in str(error):  # said of the file while a variable was loaded
            raise
        raise ValueError(f"{path}: {error}") from error
    stored = layout.to_bands_first(load(layout.key))
    wavelengths, metadata = form.read_metadata(path, layout, variables, allow_external=allow_external)
    if path.is_file() and not form.holds_record(path):
        metadata = replace(metadata, record=record_beside(path))
    return stored, layout, wavelengths, metadata


def check_values(
    values: Float[np.ndarray, "bands height width"],
    name: str = "the cube",
    mask: Bool[np.ndarray, "bands height width"] | None = None,
) -> None:
    """Refuse values that no denoiser can use.

    Args:
        values: The values.
        name: What a message calls them.
        mask: Those that hold data; None: all.

    Raises:
        ValueError: If an axis is empty, nothing holds data, or what does is not finite or all the same.
    """
    if mask is not None and values.size:
        if not mask.any():
            raise ValueError(f"{name} has no valid value")
        values = values[mask][None, None]
    low, high = value_range(values, name)
    if low == high:
        raise ValueError(f"{name} is constant: every value is {low:g}; nothing can be denoised")


def write_cube(path: str | Path, cube: Cube | Shaped[np.ndarray, "bands height width"]) -> Path | None:
    """Write a cube in the format that the target's name asks for.

    If the cube was read from a file of that format, a copy of that file is written with the cube in its place: same
    version, name, axes and type, everything else carried over. So it is for a target without an ending, or with that of
    the source. Into another format go the values in the type of the source, wavelengths, and of the metadata what that
    format has a place for; a cube without a layout goes as float32.

    The record of how a cube was computed, ``cube.metadata.record``, goes where the format has no place for it (MATLAB
    v4 and v5, .npy) into a file of its own beside the target, ``<path>.json``.

    Args:
        path: The target; it may be the file that the cube was read from, but not one of an ENVI pair.
        cube: The cube; finite values. An array of (bands, height, width) goes as it is, in its own type.

    Returns:
        The file that holds the record; None without one.

    Raises:
        OSError: If the target cannot be written, or the file the cube came from is gone.
        ValueError: If a value is not finite, the sizes are not those of ``cube.layout``, what the metadata has for each
            band is not of as many bands, no format has such a name, or
            it has no such numbers.
        TypeError: If what is given is no path, or no cube.
        ImportError: If the format takes a library that is not installed.

    Warns:
        UserWarning: Of what another format has no place for, or if a record cannot be put beside the target.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     _ = write_cube(Path(folder, "a.mat"), np.arange(60, dtype=np.int16).reshape(3, 4, 5))
        ...     cube = read_cube(Path(folder, "a.mat"), axes="hwb")
        >>> cube.layout.shape, cube.layout.dtype
        ((4, 5, 3), dtype('int16'))
    """
    if not isinstance(path, str | Path):
        raise TypeError(f"write_cube takes the path first, then the cube: write_cube(path, cube), not {_kind(path)}")
    if not isinstance(cube, Cube):
        return _write(Path(path), *_of_array(cube))
    if not np.isfinite(cube.values if cube.mask is None else cube.values[cube.mask]).all():
        raise ValueError(f"cannot write {path}: the cube has NaN or infinite values")
    dtype = _dtype(cube)
    stored = cast(cube.values, dtype, cube.mask, cube.metadata.nodata if cube.metadata is not None else None)
    wide = dtype.itemsize >= cube.values.dtype.itemsize and dtype != cube.values.dtype.newbyteorder(dtype.byteorder)
    if wide and cube.mask is not None and cube.layout is not None and cube.path is not None and cube.path.exists():
        form = format_of(cube.path)
        source = cube.layout.to_bands_first(form.load_variable(cube.path, cube.layout.key, allow_external=True))
        if source.shape == stored.shape and source.dtype == stored.dtype:
            put_back(stored, cube.values, source, cube.mask)
    return _write(Path(path), cube, stored)


@takes_options(ReadOptions)
def convert(source: str | Path, target: str | Path, *, reading: ReadOptions | None = None, **changes: Any) -> Cube:
    """Write the cube of one file into another, in the format that its name asks for; not a digit changes.

    Args:
        source: As for :func:`read_cube`.
        target: As for :func:`write_cube`; not the source.
        reading: How the source is read; the defaults if None.
        **changes: The same by name:

    Returns:
        The cube, its values as they are stored.

    Raises:
        OSError: As :func:`read_cube` and :func:`write_cube`.
        ValueError: As those, except for values that are not finite.

    Warns:
        UserWarning: Of what the format of the target has no place for.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_arrays(Path(folder, "a.mat"), {"rad": np.arange(120).reshape(5, 8, 3)})
        ...     _ = convert(Path(folder, "a.mat"), Path(folder, "b.hdr"), axes="hwb")
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['a.mat', 'b.hdr', 'b.img']
    """
    reading = with_changes(reading or ReadOptions(), changes, "convert")
    path, key = locate(source, reading.key)
    check_source(path)
    check_other(path, target)
    check_name(Path(target), path)
    stored, layout, wavelengths, metadata = _read(
        path, key=key, axes=reading.axes, size=reading.size, allow_external=reading.allow_external
    )
    if reading.nodata is not None:
        metadata = replace(metadata, nodata=reading.nodata)
    cube = Cube(stored.astype(floating(stored.dtype)), wavelengths, layout, path, metadata)
    _write(Path(target), cube, stored)
    return cube


def _of_array(values: Any) -> tuple[Cube, np.ndarray]:
    """A cube of an array, and the array."""
    if not isinstance(values, np.ndarray) or values.ndim != 3 or values.dtype.kind not in "iuf":
        raise TypeError(
            f"write_cube takes a Cube or an array of numbers (bands, height, width), not {_kind(values)}; "
            "make one of what you have: Cube(values), bands first"
        )
    layout = Layout("array", "cube", "bhw", values.shape, values.dtype, None, "given")
    return Cube(values.astype(floating(values.dtype), copy=False), layout=layout), values


def _kind(value: Any) -> str:
    return f"{value.dtype} of {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__


def _dtype(cube: Cube) -> np.dtype[Any]:
    return np.dtype(np.float32) if cube.layout is None else cube.layout.dtype


def _write(target: Path, cube: Cube, stored: Shaped[np.ndarray, "bands height width"]) -> Path | None:
    form, like, inside = check_cube_target(target, cube)
    metadata, suffix = cube.metadata or Metadata(), target.suffix.lower()
    for what, each in (("wavelengths", cube.wavelengths), *((name, vars(metadata)[name]) for name in OF_BANDS)):
        if each is not None and len(each) != len(stored):
            raise ValueError(f"cannot write {target}: '{what}' is for {len(each)} bands, the cube has {len(stored)}")
    record = metadata.record
    if not inside:
        metadata = replace(metadata, record=None)
    if like is not None and cube.layout is not None:
        arranged = cube.layout.from_bands_first(stored)
        with replacing_all(form.targets(target, like), folder=form.folder) as temporaries:
            form.write_like(like, temporaries, cube.layout, arranged, suffix, metadata.record)
        return keep_record(target, record, inside=inside)
    name = "cube" if cube.layout is None or cube.layout.format == "png" else cube.layout.leaf
    said = metadata.said if cube.wavelengths is None else ("wavelengths", *metadata.said)
    if lost := [WORDS[each] for each in said if each not in (*form.holds, "record")]:
        warnings.warn(f"{target}: {form.name} has no place for {', '.join(lost)}: left out", stacklevel=3)
    if cube.path is not None and cube.path.exists() and format_of(cube.path).own_mask(cube.path) is not None:
        warnings.warn(f"{target}: the mask of {cube.path} has no place in it: left out", stacklevel=3)
    with replacing_all(form.targets(target, None), folder=form.folder) as temporaries:
        form.write_new(temporaries, NewCube(stored, cube.wavelengths, metadata, name, suffix, _large(cube)))
    return keep_record(target, record, inside=inside)


def _large(cube: Cube) -> bool:
    """Whether a new file takes the version for large files."""
    as_before = cube.layout is not None and cube.layout.format == "mat73"
    return as_before or cube.values.size * _dtype(cube).itemsize > V5_LIMIT


def check_cube_target(path: str | Path, cube: Cube) -> tuple[Format, Path | None, bool]:
    """Find out, before hours of computing, whether a cube can be written under a name.

    Args:
        path: The target of :func:`write_cube`.
        cube: What will be written, as it was read; its values may still change.

    Returns:
        The format; the source that the file will be like, None for a new one; whether it will hold the record.

    Raises:
        OSError: If the place cannot be written, with what to do.
        ValueError: If no format is called so, or it has no numbers of the cube's type.
        ImportError: If the format takes a library that is not installed.

    Example:
        >>> check_cube_target("clean.jpg", Cube(np.zeros((1, 2, 3), np.float32)))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: cannot write clean.jpg: no format of cubes is called .jpg; known: ... MATLAB .mat, ENVI .hdr...
    """
    target, layout, source = Path(path), cube.layout, cube.path
    check_target(target)
    suffix = target.suffix.lower()
    own = None if layout is None else next((form for form in FORMATS if layout.format in form.kinds), None)
    like = suffix == "" or (source is not None and suffix == source.suffix.lower())
    check_name(target, None if own is None else source)
    form = own if own is not None and like else next(form for form in FORMATS if (suffix or ".mat") in form.suffixes)
    form.ready()
    if form.folder and target.exists():
        raise NotADirectoryError(
            f"cannot write {path}: it is a file, {form.name} takes a new folder; choose another name"
        )
    original = source if source is not None and layout is not None and layout.format in form.kinds else None
    if original is None and form.types is not None and (dtype := _dtype(cube)).str[1:] not in form.types:
        fits = " or .mat" if dtype.str[1:] in MATLAB_NAMES else ""
        raise ValueError(f"cannot write {path}: {form.name} has no numbers of type {dtype}; name it .npy{fits}")
    targets = form.targets(target, original)
    for each in targets:
        check_target(each)
    if original is not None and len(form.files(original)) > 1:
        check_other(original, target, targets)
    if not target.exists() and (there := next((each for each in targets if each.exists()), None)):
        raise FileExistsError(
            f"cannot write {target}: {there} would be written too, and is there already, perhaps of another file; "
            "choose another name, or remove it"
        )
    return form, original, form.holds_record(original, _large(cube))


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray], *, about: bytes = b"") -> None:
    """Write arrays as they are into a new .mat file: v5, or v7.3 if one is larger than 2 GB.

    Args:
        path: The target.
        arrays: Name to array of numbers, in MATLAB's axis order; vectors become columns.
        about: Text for the part :data:`ABOUT` of the file's header, in place of the date.

    Raises:
        OSError: If the target cannot be written.
        ValueError: If an array is not of numbers that MATLAB has, a name is none of MATLAB's, or the file's name ends
            as that of another kind does.
    """
    for name in arrays:
        if np.asarray(arrays[name]).dtype.kind == "U":
            raise ValueError(f"cannot write '{name}': it is text, not an array of numbers")
        if not (name.isascii() and name.isidentifier() and not name.startswith("_") and len(name) <= 31):
            raise ValueError(f"'{name}' is not a name for a MATLAB variable; use up to 31 letters, digits and _")
    check_arrays_target(path)
    with replacing(path) as temporary:
        write_mat(temporary, arrays)
        with temporary.open("r+b") as stream:
            stream.seek(ABOUT.start)
            stream.write(about[: ABOUT.stop - ABOUT.start])


def check_arrays_target(path: str | Path) -> None:
    """Find out, before hours of computing, whether :func:`write_arrays` can write a file.

    Raises:
        OSError: If the place cannot be written, with what to do.
        ValueError: If the name ends as a file of another kind does.

    Example:
        >>> check_arrays_target("noisy.tif")
        Traceback (most recent call last):
        ValueError: cannot write noisy.tif: a MATLAB file would be written, which is not called .tif; name it .mat
    """
    check_target(path)
    if (suffix := Path(path).suffix.lower()) not in ("", ".mat"):
        raise ValueError(
            f"cannot write {path}: a MATLAB file would be written, which is not called {suffix}; name it .mat"
        )
