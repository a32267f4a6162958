"""Cubes from and to files: the only place that knows another axis order than (bands, height, width).

A cube is float32. Integers beyond 24 bits and float64 lose their last digits on the way in, unless they are asked for
as they are; the stored type comes back on the way out, integers rounded and clipped to its range.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from hsidenoise.data.formats.mat import list_mat, load_variable, mat_format, replace_variable, write_mat
from hsidenoise.data.formats.png import CAVE_WAVELENGTHS, find_bands, load_bands, save_bands
from hsidenoise.data.layout import Layout, Variable, find_layout, find_wavelengths, printable
from hsidenoise.data.metadata import Metadata
from hsidenoise.signal.scaling import floating, value_range
from hsidenoise.system.files import check_source, check_target, replacing

__all__ = [
    "ABOUT",
    "Cube",
    "Layout",
    "Variable",
    "check_cube_target",
    "check_values",
    "list_variables",
    "read_cube",
    "write_arrays",
    "write_cube",
]

#: Free text in the header of a .mat file, between "MATLAB 5.0 MAT-file" and the binary part.
ABOUT = slice(19, 116)

_V5_LIMIT = 2**31 - 1  # bytes of one variable that a v5 file can hold
_HDF5_NAMES = {".h5", ".hdf5", ".hdf", ".he5"}


@dataclass(frozen=True, eq=False)
class Cube:
    """A hyperspectral cube and where it came from.

    Attributes:
        values: (bands, height, width), in the unit of the file; float32, or float64 if read with ``exact``.
        wavelengths: Centre of each band in nm, None if unknown.
        layout: How it lay in its file; None for a cube that was computed.
        path: The file or folder it was read from.
        metadata: What the file says of it beside that; None if nothing was read.

    Example:
        >>> Cube(np.zeros((3, 4, 5), np.float32)).values.shape
        (3, 4, 5)
    """

    values: Float[np.ndarray, "bands height width"]
    wavelengths: Float64[np.ndarray, " bands"] | None = None
    layout: Layout | None = None
    path: Path | None = None
    metadata: Metadata | None = None


def read_cube(
    path: str | Path,
    *,
    key: str | None = None,
    axes: str | None = None,
    size: tuple[int, int] | None = None,
    allow_external: bool = False,
    exact: bool = False,
) -> Cube:
    """Read a cube from a .mat file (v4, v5, v7.3; told apart by content) or a folder of one PNG per band.

    How the variable and its spectral axis are chosen is in `hsidenoise.data.layout.find_layout`, and for a given
    file in ``cube.layout.reason``.

    Args:
        path: File or folder.
        key: Name of the variable, or of the scene in a folder; None to choose.
        axes: Axes in the order that the writer of the file sees (MATLAB's of what MATLAB wrote, NumPy's of all else):
            ``"hwb"``, ``"bhw"``, ...; ``"bp"`` or ``"pb"`` for an unfolded matrix of bands and pixels (column after
            column, or row after row); None to choose.
        size: (height, width) in pixels, of an unfolded matrix.
        allow_external: Whether the numbers may lie in other files, as a v7.3 file can say (external links, external
            storage, virtual data sets): it can name any file that you may read. What it names is never written.
        exact: Whether to keep the values as they are stored: as float64 where float32 would round them (float64,
            integers of 32 bits or more), and with those that are not finite.

    Returns:
        The cube, its values float32 and finite, unless ``exact``.

    Warns:
        UserWarning: If which axis is the spectrum is a guess.

    Raises:
        OSError: If the file is missing or cannot be opened.
        ValueError: If it is truncated or of another kind; if no variable or several could be the cube; if the cube is
            complex, empty or constant, or has a value that is not finite and ``exact`` is not asked for.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_arrays(Path(folder, "a.mat"), {"rad": np.arange(120).reshape(5, 8, 3)})
        ...     cube = read_cube(Path(folder, "a.mat"))
        >>> cube.values.shape, cube.layout.axes
        ((3, 5, 8), 'hwb')
    """
    path = Path(path)
    check_source(path)
    if path.is_dir():
        scene, files = find_bands(path, key)
        stored = load_bands(files)
        if axes not in (None, "hwb") or size is not None:
            raise ValueError(f"{path}: band images have their axes and size already; leave out --axes and --size")
        reason = f"scene '{printable(scene)}' is {len(files)} band images in the order of their numbers"
        layout = Layout("png", scene, "hwb", stored.shape, stored.dtype, None, reason)
        wavelengths = np.array(CAVE_WAVELENGTHS) if len(files) == len(CAVE_WAVELENGTHS) else None
    else:
        variables = list_mat(path, allow_external=allow_external)
        form = mat_format(path)

        loaded: dict[str, np.ndarray] = {}

        def load(name: str) -> np.ndarray:
            if name not in loaded:
                loaded[name] = load_variable(path, name, allow_external=allow_external)
            return loaded[name]

        try:
            layout = find_layout(variables, load, format=form, key=key, axes=axes, size=size)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        stored = load(layout.key)
        wavelengths = None
    dtype = floating(stored.dtype) if exact else np.dtype(np.float32)
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite, and is refused here or below
        values = np.require(layout.to_bands_first(stored), dtype, ["C", "W"])
    name = printable(layout.key)
    if not exact:
        if np.isinf(values).any() and np.isfinite(stored).all():
            raise ValueError(f"{path}: '{name}' has values beyond single precision (3.4e38); save it in another unit")
        check_values(values, f"{path}: '{name}'")
    if layout.format != "png":
        wavelengths = find_wavelengths(variables, load, values.shape[0])
    return Cube(values, wavelengths, layout, path)


def check_values(values: Float[np.ndarray, "bands height width"], name: str = "the cube") -> None:
    """Refuse values that no denoiser can use.

    Raises:
        ValueError: If an axis is empty, a value is not finite, or all values are the same.
    """
    low, high = value_range(values, name)
    if low == high:
        raise ValueError(f"{name} is constant: every value is {low:g}; nothing can be denoised")


def list_variables(path: str | Path, *, allow_external: bool = False) -> list[Variable]:
    """List what a file or a folder of band images holds, without loading it.

    Args:
        path: A .mat file (v4, v5, v7.3), or a folder of one PNG per band.
        allow_external: Whether what a v7.3 file keeps in other files is described too.

    Raises:
        OSError: If the file is missing or cannot be opened.
        ValueError: If it is not such a file, truncated or damaged.
    """
    path = Path(path)
    check_source(path)
    if not path.is_dir():
        return list_mat(path, allow_external=allow_external)
    scene, files = find_bands(path)
    first = load_bands(files[:1])
    return [Variable(scene, (*first.shape[:2], len(files)), first.dtype, f"{len(files)} band images")]


def write_cube(path: str | Path, cube: Cube) -> None:
    """Write a cube the way it was read.

    A cube of a .mat file goes into a copy of that file (same version, name, axes, type), every other variable
    carried over byte for byte; if the file is unknown (``cube.path`` None) into a new one. A cube of a folder of PNG
    goes into a new folder of PNG of the same names, or, if ``path`` has a suffix, into a v5 file as ``cube`` with
    ``wavelength``. So does, in float32, a cube without a layout.

    Args:
        path: The target; it may be the file that the cube was read from.
        cube: The cube; finite values.

    Raises:
        OSError: If the target cannot be written, or the file the cube came from is gone.
        ValueError: If a value is not finite, the sizes are not those of ``cube.layout``, or the target's name ends as
            that of another kind of file does.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_cube(Path(folder, "a.mat"), Cube(np.arange(60, dtype=np.float32).reshape(3, 4, 5)))
        ...     [(item.name, item.shape) for item in list_variables(Path(folder, "a.mat"))]
        [('cube', (4, 5, 3))]
    """
    target, layout = Path(path), cube.layout
    check_cube_target(path, cube)
    if not np.isfinite(cube.values).all():
        raise ValueError(f"cannot write {path}: the cube has NaN or infinite values")
    if layout is None:
        layout = Layout("mat5", "cube", "hwb", (), np.dtype(np.float32), None, "")
        stored = cube.values.transpose(1, 2, 0)
    else:
        stored = layout.from_bands_first(cube.values)
    stored = _cast(stored, layout.dtype)
    if layout.format == "png" and not target.suffix:
        with replacing(target, folder=True) as temporary:
            save_bands(temporary, layout.key, stored)
        return
    if layout.format != "png" and cube.layout is not None and cube.path is not None:
        with replacing(target) as temporary:
            replace_variable(cube.path, temporary, layout.key, stored)
        return
    arrays = {"cube" if layout.format == "png" else layout.key: stored}
    if cube.wavelengths is not None and "wavelength" not in arrays:
        arrays["wavelength"] = cube.wavelengths[:, None]
    _write_new(target, arrays, hdf5=layout.format == "mat73")


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
        if not (name.isascii() and name.isidentifier() and not name.startswith("_") and len(name) <= 31):
            raise ValueError(f"'{name}' is not a name for a MATLAB variable; use up to 31 letters, digits and _")
    check_cube_target(path)
    _write_new(Path(path), arrays, about=about)


def check_cube_target(path: str | Path, cube: Cube | None = None) -> None:
    """Find out, before hours of computing, whether a cube can be written, and whether its file's name would be true.

    Args:
        path: The target of :func:`write_cube`, or without a cube of :func:`write_arrays`.
        cube: What will be written, as it was read; its values may still change.

    Raises:
        OSError: If the place cannot be written, with what to do.
        ValueError: If the name ends as a file of another kind does.

    Example:
        >>> check_cube_target("clean.tif")
        Traceback (most recent call last):
        ValueError: cannot write clean.tif: a MATLAB file would be written, which is not called .tif; name it .mat
    """
    check_target(path)
    target, layout = Path(path), None if cube is None else cube.layout
    known, kind = {"", ".mat"}, "a MATLAB file"
    if layout is not None and layout.format == "mat73":
        known, kind = known | _HDF5_NAMES, "an HDF5 file"
    if cube is not None and cube.path is not None and layout is not None and layout.format != "png":
        known.add(cube.path.suffix.lower())  # whatever it is called, the new file is of the same kind
    if target.suffix.lower() not in known:
        folder = " (or without an ending: a folder of PNG)" if layout is not None and layout.format == "png" else ""
        raise ValueError(
            f"cannot write {path}: {kind} would be written, which is not called {target.suffix}; name it .mat{folder}"
        )


def _write_new(target: Path, arrays: Mapping[str, np.ndarray], *, hdf5: bool = False, about: bytes = b"") -> None:
    with replacing(target) as temporary:
        write_mat(temporary, arrays, hdf5=hdf5 or any(np.asarray(item).nbytes > _V5_LIMIT for item in arrays.values()))
        with temporary.open("r+b") as stream:
            stream.seek(ABOUT.start)
            stream.write(about[: ABOUT.stop - ABOUT.start])


def _cast(values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Bring values into a stored type; integers are rounded and clipped to their range."""
    if dtype.kind not in "iu":
        with np.errstate(over="ignore"):
            return values.astype(dtype, copy=False)
    limits = np.iinfo(dtype)
    # float64 holds every limit up to 32 bits; of 64 bits the largest is rounded up, so one step less
    high = float(limits.max) if limits.bits < 64 else float(np.nextafter(float(limits.max), 0))
    exact = np.float32 if limits.bits <= 16 else np.float64  # half the memory where it suffices
    clipped: np.ndarray = np.clip(np.rint(values.astype(exact)), float(limits.min), high)
    return clipped.astype(dtype)
