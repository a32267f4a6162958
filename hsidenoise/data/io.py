"""Cubes from and to files: the only place that knows another axis order than (bands, height, width).

A cube is float32. Integers beyond 24 bits and float64 lose their last digits on the way in, unless they are asked for
as they are; the stored type comes back on the way out, integers rounded and clipped to its range. A write goes to a
temporary file beside the target that takes its name at the end, so a failure leaves neither half a file nor a harmed
input.
"""

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from hsidenoise.data.layout import Layout, Variable, find_layout, find_wavelengths
from hsidenoise.data.matfile import list_mat, load_variable, mat_format, replace_variable, write_mat
from hsidenoise.data.pngfolder import CAVE_WAVELENGTHS, find_bands, load_bands, save_bands
from hsidenoise.normalize import floating

__all__ = [
    "Cube",
    "Layout",
    "Variable",
    "check_target",
    "check_values",
    "list_variables",
    "read_cube",
    "write_arrays",
    "write_cube",
]

_V5_LIMIT = 2**31 - 1  # bytes of one variable that a v5 file can hold


@dataclass(frozen=True, eq=False)
class Cube:
    """A hyperspectral cube and where it came from.

    Attributes:
        values: (bands, height, width), in the unit of the file; float32, or float64 if read with ``exact``.
        wavelengths: Centre of each band in nm, None if unknown.
        layout: How it lay in its file; None for a cube that was computed.
        path: The file or folder it was read from.

    Example:
        >>> Cube(np.zeros((3, 4, 5), np.float32)).values.shape
        (3, 4, 5)
    """

    values: Float[np.ndarray, "bands height width"]
    wavelengths: Float64[np.ndarray, " bands"] | None = None
    layout: Layout | None = None
    path: Path | None = None


def read_cube(
    path: str | Path,
    *,
    key: str | None = None,
    axes: str | None = None,
    size: tuple[int, int] | None = None,
    exact: bool = False,
) -> Cube:
    """Read a cube from a .mat file (v4, v5, v7.3; told apart by content) or a folder of one PNG per band.

    How the variable and its spectral axis are chosen is in `hsidenoise.data.layout.find_layout`, and for a given
    file in ``cube.layout.reason``.

    Args:
        path: File or folder.
        key: Name of the variable, or of the scene in a folder; None to choose.
        axes: Axes in MATLAB's order, ``"hwb"``, ``"bhw"``, ...; ``"bp"`` or ``"pb"`` for an unfolded matrix of
            bands and pixels (column after column); None to choose.
        size: (height, width) in pixels, of an unfolded matrix.
        exact: Whether to keep the values as they are stored: as float64 where float32 would round them (float64,
            integers of 32 bits or more), and with those that are not finite.

    Returns:
        The cube, its values float32 and finite, unless ``exact``.

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
    if path.is_dir():
        scene, files = find_bands(path, key)
        stored = load_bands(files)
        if axes not in (None, "hwb") or size is not None:
            raise ValueError(f"{path}: band images have their axes and size already; leave out --axes and --size")
        reason = f"scene '{scene}' is {len(files)} band images in the order of their numbers"
        layout = Layout("png", scene, "hwb", stored.shape, stored.dtype, None, reason)
        wavelengths = np.array(CAVE_WAVELENGTHS) if len(files) == len(CAVE_WAVELENGTHS) else None
    else:
        variables = list_mat(path)
        form = mat_format(path)

        def load(name: str) -> np.ndarray:
            return load_variable(path, name)

        try:
            layout = find_layout(variables, load, format=form, key=key, axes=axes, size=size)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        stored = load(layout.key)
        wavelengths = None
    dtype = floating(stored.dtype) if exact else np.dtype(np.float32)
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite, and is refused here or below
        values = np.ascontiguousarray(layout.to_bands_first(stored), dtype=dtype)
    if not exact and np.isinf(values).any() and np.isfinite(stored).all():
        raise ValueError(f"{path}: '{layout.key}' has values beyond single precision (3.4e38); save it in another unit")
    if not exact:
        check_values(values, f"{path}: '{layout.key}'")
    if layout.format != "png":
        wavelengths = find_wavelengths(variables, load, values.shape[0])
    return Cube(values, wavelengths, layout, path)


def check_values(values: Float[np.ndarray, "bands height width"], name: str = "the cube") -> None:
    """Refuse values that no denoiser can use.

    Args:
        values: The cube.
        name: What to call it in the message.

    Raises:
        ValueError: If an axis is empty, a value is not finite, or all values are the same.

    Example:
        >>> check_values(np.ones((2, 3, 4), np.float32))
        Traceback (most recent call last):
        ValueError: the cube is constant: every value is 1; nothing can be denoised
    """
    if values.size == 0:
        raise ValueError(f"{name} is empty: an axis of {values.shape} has no element")
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):  # the extremes of an array with a NaN are NaN
        wrong = ~np.isfinite(values)
        band, row, column = (int(index) for index in np.unravel_index(wrong.argmax(), values.shape))
        raise ValueError(
            f"{name} has NaN or infinite values: {int(wrong.sum())} of {values.size}, the first in band {band}, "
            f"row {row}, column {column} (counted from 0); replace them or remove these bands before"
        )
    if low == high:
        raise ValueError(f"{name} is constant: every value is {low:g}; nothing can be denoised")


def list_variables(path: str | Path) -> list[Variable]:
    """List what a file or a folder of band images holds, without loading it.

    Args:
        path: A .mat file (v4, v5, v7.3), or a folder of one PNG per band.

    Returns:
        Variables in the order of the file, shapes as MATLAB shows them; for a folder one, the scene.

    Raises:
        OSError: If the file is missing or cannot be opened.
        ValueError: If it is no such file, truncated or damaged.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_arrays(Path(folder, "a.mat"), {"rad": np.zeros((5, 8, 3), np.uint16)})
        ...     list_variables(Path(folder, "a.mat"))[0].dtype
        dtype('uint16')
    """
    path = Path(path)
    if not path.is_dir():
        return list_mat(path)
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
        ValueError: If a value is not finite, or the sizes are not those of ``cube.layout``.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_cube(Path(folder, "a.mat"), Cube(np.arange(60, dtype=np.float32).reshape(3, 4, 5)))
        ...     [(item.name, item.shape) for item in list_variables(Path(folder, "a.mat"))]
        [('cube', (4, 5, 3))]
    """
    target, layout = Path(path), cube.layout
    if not np.isfinite(cube.values).all():
        raise ValueError(f"cannot write {path}: the cube has NaN or infinite values")
    if layout is None:
        layout = Layout("mat5", "cube", "hwb", (), np.dtype(np.float32), None, "")
        stored = cube.values.transpose(1, 2, 0)
    else:
        stored = layout.from_bands_first(cube.values)
    stored = _cast(stored, layout.dtype)
    if layout.format == "png" and not target.suffix:
        with _replacing(target, folder=True) as temporary:
            save_bands(temporary, layout.key, stored)
        return
    if layout.format != "png" and cube.layout is not None and cube.path is not None:
        with _replacing(target) as temporary:
            replace_variable(cube.path, temporary, layout.key, stored)
        return
    arrays = {"cube" if layout.format == "png" else layout.key: stored}
    if cube.wavelengths is not None and "wavelength" not in arrays:
        arrays["wavelength"] = cube.wavelengths[:, None]
    _write_new(target, arrays, hdf5=layout.format == "mat73")


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as they are into a new .mat file: v5, or v7.3 if one is larger than 2 GB.

    Args:
        path: The target.
        arrays: Name to array of numbers, in MATLAB's axis order; vectors become columns.

    Raises:
        OSError: If the target cannot be written.
        ValueError: If an array is not of numbers that MATLAB has, or a name is none of MATLAB's.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_arrays(Path(folder, "a.mat"), {"gt": np.zeros((4, 5, 3)), "sigma": np.ones(3)})
        ...     [(item.name, item.shape) for item in list_variables(Path(folder, "a.mat"))]
        [('gt', (4, 5, 3)), ('sigma', (3, 1))]
    """
    for name in arrays:
        if not (name.isascii() and name.isidentifier() and not name.startswith("_") and len(name) <= 31):
            raise ValueError(f"'{name}' is no name for a MATLAB variable; use up to 31 letters, digits and _")
    _write_new(Path(path), arrays, hdf5=any(np.asarray(array).nbytes > _V5_LIMIT for array in arrays.values()))


def check_target(path: str | Path) -> None:
    """Find out, before hours of computing, whether a file can be written.

    Args:
        path: The file to be written, or the folder (which must not exist yet) for band images.

    Raises:
        OSError: If not, with what to do.

    Example:
        >>> check_target("/no/such/folder/clean.mat")
        Traceback (most recent call last):
        FileNotFoundError: cannot write /no/such/folder/clean.mat: folder /no/such/folder is missing; create it first
    """
    target = Path(os.path.realpath(path))  # through a link, so that the link stays one
    folder = target.parent
    if target.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder; give the name of a new file or folder")
    if target.exists() and not target.is_file():
        raise OSError(f"cannot write {path}: it exists and is no regular file; choose another name")
    if target.exists() and not os.access(target, os.W_OK):
        raise PermissionError(f"cannot write {path}: it is write-protected; choose another name")
    if not folder.exists():
        raise FileNotFoundError(f"cannot write {path}: folder {folder} is missing; create it first")
    if not folder.is_dir():
        raise NotADirectoryError(f"cannot write {path}: {folder} is a file, not a folder; choose another place")
    try:  # permissions alone do not tell: read-only mounts, quotas, the superuser
        probe = _temporary(folder)
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        probe.unlink()
    except OSError as error:
        raise type(error)(
            f"cannot write {path}: no file can be created in {folder} ({error.strerror}); choose another place"
        ) from error


def _temporary(folder: Path) -> Path:
    return folder / f".hsidenoise-{secrets.token_hex(6)}.part"


@contextmanager
def _replacing(target: Path, *, folder: bool = False) -> Iterator[Path]:
    """Give a temporary path beside the target that becomes the target on success and vanishes otherwise."""
    check_target(target)
    final = Path(os.path.realpath(target))
    temporary = _temporary(final.parent)
    try:
        if folder:
            temporary.mkdir()
        yield temporary
        if not folder:
            if final.exists():
                shutil.copymode(final, temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())  # the name must not get ahead of the content if the machine dies
        temporary.replace(final)
    except (OSError, RuntimeError) as error:
        if isinstance(error, FileNotFoundError) and error.errno is None:  # ours, on the source
            raise
        what = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise OSError(f"cannot write {target}: {what}; nothing was left behind") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def _write_new(target: Path, arrays: Mapping[str, np.ndarray], *, hdf5: bool) -> None:
    with _replacing(target) as temporary:
        write_mat(temporary, arrays, hdf5=hdf5 or any(np.asarray(item).nbytes > _V5_LIMIT for item in arrays.values()))


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
