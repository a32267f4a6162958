"""NumPy's files: one array (.npy), or several with names (.npz). Nothing pickled is read.

References:
    NumPy, "numpy.lib.format", NEP 1.
"""

import math
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as numpy_format

from hsidenoise.data.formats.base import (
    TEXTS,
    Format,
    NewCube,
    Part,
    Wavelengths,
    arrays_of,
    beside,
    check_room,
    reading,
    with_texts,
)
from hsidenoise.data.layout import Layout, Variable, find_wavelengths, leaf
from hsidenoise.data.metadata import RECORD, Metadata

_MAGIC = b"\x93NUMPY"
_RECORD = f"{RECORD}.npy"
_LONG = 1 << 20  # bytes; a longer text is not a record


def _variable(stream: Any, name: str, held: int | None) -> Variable:
    """What the header of an array says; ``held``: bytes that are there, None where they are compressed."""
    version = numpy_format.read_magic(stream)
    read = {1: numpy_format.read_array_header_1_0, 2: numpy_format.read_array_header_2_0}.get(version[0])
    if read is None:
        raise ValueError(f"version {version[0]} of the format")
    shape, _, dtype = read(stream)
    if dtype.hasobject:
        return Variable(name, shape, None, "Python objects, not read", foreign=True)
    if held is not None and math.prod(shape) * dtype.itemsize > held - stream.tell():
        raise ValueError(f"'{name}' promises {math.prod(shape) * dtype.itemsize:,} bytes, the file has fewer")
    note = "" if dtype.kind in "iuf" else "complex numbers" if dtype.kind == "c" else f"{dtype} array, not read"
    note = "logical values" if dtype.kind == "b" else note
    return Variable(name, shape, dtype if dtype.kind in "iufcb" else None, note, foreign=True)


class _Numpy(Format):
    def read_metadata(
        self, path: Path, layout: Layout, variables: Sequence[Variable], *, allow_external: bool = False
    ) -> tuple[Wavelengths, Metadata]:
        def load(name: str) -> np.ndarray:
            return self.load_variable(path, name)

        return find_wavelengths(variables, load, layout.bands), beside(variables, load, layout.bands)


class _Npy(_Numpy):
    name, kinds, suffixes = "NumPy", ("npy",), (".npy",)

    def recognises(self, path: Path) -> bool:
        return path.is_file() and _starts(path, _MAGIC)

    def list_variables(self, path: Path, *, allow_external: bool = False) -> list[Variable]:
        with reading(path), path.open("rb") as stream:
            return [_variable(stream, leaf(path.stem), path.stat().st_size)]

    def load_variable(
        self, path: Path, name: str, part: Part | None = None, *, allow_external: bool = False
    ) -> np.ndarray:
        with reading(path):
            (variable,) = self.list_variables(path)
            stored = np.load(path, mmap_mode="r", allow_pickle=False)
            taken = stored if part is None else stored[part]
            check_room(f"'{variable.label}'", taken.shape, taken.dtype)
            return np.array(taken)

    def write_like(
        self, source: Path, targets: Sequence[Path], layout: Layout, stored: np.ndarray, suffix: str, record: str | None
    ) -> None:
        fortran = np.load(source, mmap_mode="r", allow_pickle=False).flags.fnc
        _save(targets[0], np.asfortranarray(stored) if fortran else stored)

    def write_new(self, targets: Sequence[Path], new: NewCube) -> None:
        _save(targets[0], np.ascontiguousarray(new.values.transpose(1, 2, 0)))


class _Npz(_Numpy):
    name, kinds, suffixes = "NumPy archive", ("npz",), (".npz",)
    holds = frozenset({"wavelengths", "fwhm", "band_names", "good_bands", "nodata", "crs", "transform", "record"})

    def recognises(self, path: Path) -> bool:
        return path.is_file() and _starts(path, b"PK\x03\x04")  # any other zip was refused before

    def list_variables(self, path: Path, *, allow_external: bool = False) -> list[Variable]:
        found = []
        with reading(path), zipfile.ZipFile(path) as archive:
            for item in archive.infolist():
                if item.filename.endswith(".npy"):
                    with archive.open(item) as stream:
                        found.append(_variable(stream, item.filename[:-4], item.file_size))
        return found

    def holds_record(self, source: Path | None, large: bool = False) -> bool:
        """Not if an array of numbers is called so."""
        return source is None or all(item.name != RECORD or _is_text(item) for item in self.list_variables(source))

    def read_metadata(
        self, path: Path, layout: Layout, variables: Sequence[Variable], *, allow_external: bool = False
    ) -> tuple[Wavelengths, Metadata]:
        wavelengths, metadata = super().read_metadata(path, layout, variables, allow_external=allow_external)
        if any(item.name == RECORD and _is_text(item) for item in variables):
            with reading(path), zipfile.ZipFile(path) as archive:
                short = archive.getinfo(_RECORD).file_size < _LONG
            if short:
                metadata = replace(metadata, record=str(self.load_variable(path, RECORD)))
        with reading(path), zipfile.ZipFile(path) as archive:
            named = [item.name for item in variables if item.name in TEXTS and item.dtype is None]
            short_ones = [name for name in named if archive.getinfo(f"{name}.npy").file_size < _LONG]
        with suppress(ValueError):  # objects, not text
            texts = {name: self.load_variable(path, name) for name in short_ones}
            texts = {name: text for name, text in texts.items() if text.dtype.kind == "U"}
            metadata = with_texts(metadata, texts, layout.bands)
        return wavelengths, metadata

    def load_variable(
        self, path: Path, name: str, part: Part | None = None, *, allow_external: bool = False
    ) -> np.ndarray:
        with reading(path):
            variable = next(item for item in self.list_variables(path) if item.name == name)
            check_room(f"'{variable.label}'", variable.shape, variable.dtype or np.dtype(np.uint8))
            with np.load(path, allow_pickle=False) as archive:
                whole = np.asarray(archive[name])
        return whole if part is None else whole[part]

    def write_like(
        self, source: Path, targets: Sequence[Path], layout: Layout, stored: np.ndarray, suffix: str, record: str | None
    ) -> None:
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(targets[0], "w", allowZip64=True) as new:
            for item in old.infolist():  # member by member: what is no array, or not to be read, is carried over
                if record is not None and item.filename == _RECORD:
                    continue
                with new.open(_like(item), "w", force_zip64=True) as stream:
                    if item.filename == f"{layout.key}.npy":
                        numpy_format.write_array(stream, stored, allow_pickle=False)
                    else:
                        stream.write(old.read(item))
            if record is not None:
                with new.open(_RECORD, "w") as stream:
                    numpy_format.write_array(stream, np.array(record), allow_pickle=False)

    def write_new(self, targets: Sequence[Path], new: NewCube) -> None:
        with targets[0].open("wb") as stream:
            np.savez_compressed(stream, **arrays_of(new))  # type: ignore[arg-type]


def _is_text(variable: Variable) -> bool:
    return variable.dtype is None and variable.shape == ()


def _like(item: zipfile.ZipInfo) -> zipfile.ZipInfo:
    new = zipfile.ZipInfo(item.filename, item.date_time)
    new.compress_type, new.external_attr = item.compress_type, item.external_attr
    return new


def _save(path: Path, array: np.ndarray) -> None:
    try:
        with path.open("wb") as stream:
            np.save(stream, array, allow_pickle=False)
    except OSError as error:
        if error.errno is not None:
            raise
        raise OSError("the file could not be written whole; is the disk full?") from error  # NumPy names an element


def _starts(path: Path, magic: bytes) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(magic)) == magic


NPY, NPZ = _Npy(), _Npz()
