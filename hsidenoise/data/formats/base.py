"""What a format of files can do: the protocol between :mod:`hsidenoise.data.io` and each module of a format.

Arrays enter and leave in the axes that the writer of the file sees: MATLAB's order for what MATLAB wrote, NumPy's for
all else. A part of a variable can be read without the rest, so that a cube need not be in memory as a whole.
"""

from __future__ import annotations

import math
import re
import struct
import tokenize
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float64, Shaped

from hsidenoise.data.layout import Layout, Variable, printable
from hsidenoise.data.metadata import RECORD, Metadata
from hsidenoise.system.files import NO_PERMISSION

_DAMAGE: tuple[type[Exception], ...] = (
    OSError,
    EOFError,
    KeyError,
    TypeError,
    ValueError,
    RuntimeError,
    IndexError,
    OverflowError,
)
_DAMAGE += (AttributeError, SyntaxError, tokenize.TokenError, zlib.error, struct.error, zipfile.BadZipFile)

_NAMES = {
    "b": ("band", "wavelength", "wl", "wvl", "spectr", "lambda", "channel", "feature", "frequency", "color", "colour"),
    "h": ("y", "lat", "row", "line", "north", "height", "downtrack", "alongtrack"),
    "w": ("x", "lon", "col", "sample", "east", "width", "crosstrack", "acrosstrack", "pixel"),
}
"""What names of dimensions begin with, `_` and `number_of` left out; x, y and b stand alone."""

NM = {
    "nm": 1.0, "nanometer": 1.0, "nanometre": 1.0, "um": 1e3, "µm": 1e3, "μm": 1e3, "micrometer": 1e3, "micron": 1e3,
    "micrometre": 1e3, "mm": 1e6, "millimeter": 1e6, "millimetre": 1e6, "m": 1e9, "meter": 1e9, "metre": 1e9,
    "angstrom": 0.1, "å": 0.1,
}  # fmt: skip
"""Nanometres in a unit of wavelengths; its name in lower case, without the s of several."""

_UNCHECKED = 1 << 28  # bytes that any machine has to spare

#: One slice of step 1 for each axis of a variable.
Part = tuple[slice, ...]
Wavelengths = Float64[np.ndarray, " bands"] | None


class RefusedError(ValueError):
    """What is wrong with no file but not done all the same: numbers of other files, more than the memory holds."""


@dataclass(frozen=True)
class NewCube:
    """What goes into a new file.

    Attributes:
        values: The cube in its stored type.
        wavelengths: In nm.
        metadata: What else is known of it.
        name: Name of its variable, where the format has names.
        suffix: How the name of the target ends, in lower case.
        large: Whether to take the version for large files, where the format has one.
    """

    values: Shaped[np.ndarray, "bands height width"]
    wavelengths: Wavelengths
    metadata: Metadata
    name: str = "cube"
    suffix: str = ""
    large: bool = False


class Format(ABC):
    """A format of files. A subclass lives in the module of its format, which has its one object, ``FORMAT``.

    Attributes:
        name: What people call it.
        kinds: What :attr:`Layout.format` says of its files; a cube of one of them is written back like its source.
        suffixes: Endings of names that ask for it, in lower case.
        holds: Names of fields of :class:`Metadata`, and ``wavelengths``, that a new file keeps.
        types: Types of numbers that a new file can hold, as ``"f4"``; None for all.
        folder: Whether it is a folder.
    """

    name: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]
    suffixes: ClassVar[tuple[str, ...]]
    holds: ClassVar[frozenset[str]] = frozenset()
    types: ClassVar[frozenset[str] | None] = None
    folder: ClassVar[bool] = False

    def holds_record(self, source: Path | None, large: bool = False) -> bool:
        """Whether what is written keeps :attr:`Metadata.record`.

        Args:
            source: What the file will be like; None for a new one.
            large: Of a new one :attr:`NewCube.large`.
        """
        return "record" in self.holds

    def ready(self) -> None:
        """Find out whether the libraries that it takes are there.

        Raises:
            ImportError: If one is not; the message names the extra.
        """
        return

    @abstractmethod
    def recognises(self, path: Path) -> bool:
        """Whether a file or folder is of this format, by its content."""

    def is_named(self, path: Path) -> bool:
        """Whether a file or folder is called like a cube of this format; of several that belong together, one is."""
        return path.suffix.lower() in self.suffixes and path.is_dir() == self.folder

    def kind(self, path: Path) -> str:
        """What the layout of a file's variables is called, one of :attr:`kinds`."""
        return self.kinds[0]

    def files(self, path: Path) -> tuple[Path, ...]:
        """The files that a source consists of."""
        return (path,)

    def targets(self, path: Path, source: Path | None) -> tuple[Path, ...]:
        """The files that will be written for a name; ``source`` is of this format, and what the cube was read from."""
        return (path,)

    @abstractmethod
    def list_variables(self, path: Path, *, allow_external: bool = False) -> list[Variable]:
        """What a file holds, without loading it."""

    @abstractmethod
    def load_variable(
        self, path: Path, name: str, part: Part | None = None, *, allow_external: bool = False
    ) -> Shaped[np.ndarray, "*axes"]:
        """One variable, or a part of it."""

    @abstractmethod
    def read_metadata(
        self, path: Path, layout: Layout, variables: Sequence[Variable], *, allow_external: bool = False
    ) -> tuple[Wavelengths, Metadata]:
        """Wavelengths in nm, and all else that the file says of a cube in it."""

    def own_mask(self, path: Path) -> Bool[np.ndarray, "height width"] | None:
        """Where a file says that its pixels hold data, apart from its values; None if it says nothing of it."""
        return None

    @abstractmethod
    def write_like(
        self,
        source: Path,
        targets: Sequence[Path],
        layout: Layout,
        stored: Shaped[np.ndarray, "*axes"],
        suffix: str,
        record: str | None,
    ) -> None:
        """Write a copy of a source with the numbers of one variable replaced; all else is kept.

        Args:
            source: The file to copy.
            targets: Temporary files (or a folder) to fill, one for each of :meth:`targets`.
            layout: How the variable lies in it.
            stored: Its numbers.
            suffix: How the name of the target ends, in lower case.
            record: Text to put in place of the source's; None leaves that.
        """

    @abstractmethod
    def write_new(self, targets: Sequence[Path], new: NewCube) -> None:
        """Write a new file with a cube and what :attr:`holds` says.

        Args:
            targets: Temporary files (or a folder) to fill, one for each of :meth:`targets`.
            new: The cube.
        """


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """One clear line for the many exceptions that a cut or damaged file causes in a library."""
    try:
        yield
    except RefusedError as error:
        raise ValueError(f"{path}: {error}") from error
    except MemoryError as error:
        raise ValueError(f"{path}: what is in it takes more than the memory at hand; cut it before") from error
    except PermissionError as error:
        raise PermissionError(f"cannot read {error.filename or path}: {NO_PERMISSION}") from error
    except _DAMAGE as error:
        told = error.__cause__ if "previous exception" in str(error) else error  # of rasterio
        what = printable((str(told).splitlines() or [type(error).__name__])[0])
        message = f"cannot read {path}: the file is truncated or damaged ({what}); copy or download it again"
        raise ValueError(message) from error


def check_room(name: str, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
    """Refuse, before anything is allocated, an array that does not fit into memory as stored and in float32.

    Raises:
        RefusedError: If it does not fit.
    """
    needed = math.prod(shape) * (dtype.itemsize + 4)
    if needed < _UNCHECKED:
        return
    import torch

    from hsidenoise.system.machine import free_memory

    free = free_memory(torch.device("cpu"))
    if needed > (1 << 46 if free is None else free):
        at_hand = "" if free is None else f", more than the {free / 2**30:.1f} GiB of memory at hand"
        raise RefusedError(f"{name} takes {needed / 2**30:.1f} GiB{at_hand}; cut it before")


def axes_of(names: Sequence[str], shape: Sequence[int]) -> str:
    """What the names of dimensions say of the axes: a letter for each; empty if they do not say it.

    Of more than three, those longer than one count. One name that says nothing is what is missing.

    Example:
        >>> axes_of(["time", "downtrack", "crosstrack", "bands"], (1, 8, 7, 5)), axes_of(["z", "y", "x"], (8, 7, 5))
        ('hwb', 'bhw')
    """
    if len(shape) > 3:
        names = [name for name, size in zip(names, shape, strict=False) if size != 1]
    letters = [_letter(name) for name in names]
    missing = sorted(set("bhw") - set(letters))
    if len(letters) == 3 and letters.count("") == 1 and len(missing) == 1:
        letters[letters.index("")] = missing[0]
    return "".join(letters) if sorted(letters) == ["b", "h", "w"] else ""


def _letter(name: str) -> str:
    """h, w or b for the name of a dimension; empty if it says nothing."""
    plain = re.sub(r"[\s_-]", "", name.lower()).removeprefix("numberof")
    for letter, starts in _NAMES.items():
        if any(plain == start or (len(start) > 1 and plain.startswith(start)) for start in starts) or plain == letter:
            return letter
    return ""


def in_nm(load: Callable[[str], np.ndarray], about: Callable[[str], Mapping[str, Any]]) -> Callable[[str], np.ndarray]:
    """A loader that gives wavelengths and widths in nm, if their attributes say in which unit they are.

    Args:
        load: Gives a variable by name.
        about: Gives its attributes.
    """

    def loaded(name: str) -> np.ndarray:
        values, said = load(name), about(name)
        unit = str(said.get("units", said.get("unit", ""))).strip().lower()
        if unit in ("", "1", "unknown", "none") or not re.search("wave|wl|lambda|band|cent|fwhm", name.lower()):
            return values
        scale = NM.get(unit, NM.get(unit.removesuffix("s"), np.nan))  # NaN: no wavelengths, a wavenumber perhaps
        return np.asarray(values * scale)

    return loaded


def missing_extra(what: str, extra: str) -> ImportError:
    """What to say where a library of an extra is not installed."""
    return ImportError(f"{what} takes a library that is not installed: pip install 'hsidenoise[{extra}]'")


def arrays_of(new: NewCube) -> dict[str, np.ndarray]:
    """A cube as (height, width, bands), and what is known of it, as arrays with names that :func:`beside` knows."""
    metadata = new.metadata
    found: dict[str, np.ndarray] = {new.name: new.values.transpose(1, 2, 0)}
    facts = {
        "wavelength": new.wavelengths,
        "fwhm": metadata.fwhm,
        "good_bands": metadata.good_bands,
        "band_names": None if metadata.band_names is None else np.array(metadata.band_names),
        "nodata": None if metadata.nodata is None else np.array([metadata.nodata]),
        "crs": None if metadata.crs is None else np.array([metadata.crs]),
        "transform": None if metadata.transform is None else np.array(metadata.transform),
        RECORD: None if metadata.record is None else np.array(metadata.record),
    }
    return found | {key: value for key, value in facts.items() if value is not None and key != new.name}


_FWHM = ("fwhm",)
_GOOD = ("goodbands", "goodwavelengths", "bbl")


def beside(variables: Sequence[Variable], load: Callable[[str], np.ndarray], bands: int) -> Metadata:
    """What vectors and numbers with a telling name say, beside a cube in its file.

    Args:
        variables: What the file holds.
        load: Gives a variable by name; called for small ones only.
        bands: Number of bands of the cube.
    """
    found: dict[str, np.ndarray] = {}
    for item in variables:
        name = item.leaf.lower().replace("_", "")
        length = int(np.prod(item.shape, dtype=np.int64))
        if item.dtype is not None and item.dtype.kind in "iufb" and name not in found:
            small = length == bands and name in (*_FWHM, *_GOOD)
            if small or (length == 1 and name == "nodata") or (length == 6 and name == "transform"):
                found[name] = np.ravel(load(item.name))
    width = found.get("fwhm")
    if width is not None:
        width = width.astype(np.float64)
        width = width * 1000 if 0 < width.max() < 0.2 else width  # micrometres: no band is that narrow in nm
    good = next((found[name] for name in _GOOD if name in found), None)
    return Metadata(
        fwhm=width,
        good_bands=None if good is None else good != 0,
        nodata=float(found["nodata"][0]) if "nodata" in found else None,
        transform=tuple(map(float, found["transform"])) if "transform" in found else None,
    )


def with_texts(metadata: Metadata, texts: Mapping[str, Any], bands: int) -> Metadata:
    """What is known of a cube, with the texts of :func:`arrays_of`.

    Args:
        metadata: What its numbers say.
        texts: Arrays of text by name.
        bands: Number of bands of the cube.
    """
    crs = [str(each).strip() for each in np.ravel(texts.get("crs", ()))]
    if len(crs) == 1 and re.match(r"[A-Z_]+C(R)?S\[|EPSG:\d+$", crs[0]):
        metadata = replace(metadata, crs=crs[0])
    names = tuple(str(each).rstrip() for each in np.ravel(texts.get("band_names", ())))
    return replace(metadata, band_names=names) if len(names) == bands else metadata


#: Names of the texts.
TEXTS = ("crs", "band_names")


def merged(first: Metadata, second: Metadata) -> Metadata:
    """What the first says, and where it says nothing what the second does."""
    return replace(first, **{name: getattr(second, name) for name in second.said if name not in first.said})


@dataclass(frozen=True)
class Described:
    """A cube with named dimensions, as NetCDF and zarr files have it.

    Attributes:
        dimensions: Names of its axes.
        coordinates: Values of a dimension, and their attributes.
        vectors: One value for each band.
        of_cube: Attributes of the cube.
        attributes: Attributes of the file.
        mapping: Attributes of the grid mapping, empty without one.
    """

    dimensions: tuple[str, str, str]
    coordinates: dict[str, tuple[np.ndarray, dict[str, str]]]
    vectors: dict[str, np.ndarray]
    of_cube: dict[str, Any]
    attributes: dict[str, Any]
    mapping: dict[str, str]


def described(new: NewCube) -> Described:
    """What is known of a cube, by the conventions that xarray and rioxarray read."""
    values, wavelengths, metadata = new.values, new.wavelengths, new.metadata
    spectral = "band" if wavelengths is None else "wavelength"
    coordinates: dict[str, tuple[np.ndarray, dict[str, str]]] = {}
    if wavelengths is not None:
        about = {"units": "nm", "standard_name": "radiation_wavelength"}
        coordinates[spectral] = (np.asarray(wavelengths, np.float64), about)
    vectors: dict[str, np.ndarray] = {}
    if metadata.fwhm is not None:
        vectors["fwhm"] = metadata.fwhm
    if metadata.good_bands is not None:
        vectors["good_bands"] = metadata.good_bands.astype(np.uint8)
    of_cube: dict[str, Any] = {}
    if metadata.band_names is not None:
        of_cube["band_names"] = list(metadata.band_names)
    if metadata.nodata is not None:
        fits = values.dtype.kind == "f" or float(metadata.nodata) == np.array(metadata.nodata).astype(values.dtype)
        of_cube["_FillValue" if fits else "nodata"] = values.dtype.type(metadata.nodata) if fits else metadata.nodata
    for key in ("scale_factor", "add_offset"):
        if isinstance(number := metadata.attributes.get(key), int | float | np.number):
            of_cube[key] = number
    if metadata.record is not None:
        of_cube[RECORD] = metadata.record
    mapping: dict[str, str] = {}
    if metadata.crs is not None or metadata.transform is not None:
        of_cube["grid_mapping"] = "spatial_ref"
        if metadata.crs is not None:
            mapping |= {"crs_wkt": metadata.crs, "spatial_ref": metadata.crs}
        if metadata.transform is not None:
            a, b, x, d, e, y = metadata.transform
            mapping["GeoTransform"] = " ".join(f"{each:.17g}" for each in (x, a, b, y, d, e))
            if b == d == 0:
                coordinates["x"] = (x + a * (np.arange(values.shape[2]) + 0.5), {"axis": "X"})
                coordinates["y"] = (y + e * (np.arange(values.shape[1]) + 0.5), {"axis": "Y"})
    taken = {*of_cube, "Conventions"}
    attributes = {
        re.sub(r"[^\w .-]", "_", key): value for key, value in metadata.attributes.items() if key not in taken
    }
    attributes["Conventions"] = "CF-1.8"
    return Described((spectral, "y", "x"), coordinates, vectors, of_cube, attributes, mapping)


def chunks_of(shape: Sequence[int]) -> tuple[int, ...]:
    """Chunks of a (bands, height, width) array: whole spectra of a tile, so that a tile is read without the rest."""
    return (shape[0], min(shape[1], _CHUNK), min(shape[2], _CHUNK))


_CHUNK = 64  # pixels; 224 bands of float32 make 3.7 MB
