"""MATLAB files as containers of named arrays: v4, v5 (up to v7) and v7.3 (HDF5), told apart by content.

Every array leaves and enters this file in the axis order that MATLAB shows. HDF5 reverses it; nobody
above needs to know. One variable of a file is replaced by splicing: all other bytes of the file are carried
over as they are, so structs, cells, objects, classes and compression of the other variables survive whether
or not anything in Python understands them.

References:
    MathWorks, "MAT-File Format", R2023b. HDF Group, "HDF5 File Format Specification 3.0", section II.A.
"""

import math
import struct
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import scipy.io

from hsidenoise.data.formats.base import (
    TEXTS,
    Format,
    NewCube,
    Part,
    Wavelengths,
    arrays_of,
    beside,
    reading,
    with_texts,
)
from hsidenoise.data.formats.hdf5 import (
    about_hdf5,
    list_hdf5,
    load_hdf5,
    new_hdf5,
    put_record,
    replace_hdf5,
    storage_options,
)
from hsidenoise.data.formats.mat5 import HEADER, MATLAB_NAMES, Element, elements, elements_v4, load, splice
from hsidenoise.data.layout import Layout, Variable, find_wavelengths, printable
from hsidenoise.data.metadata import RECORD, Metadata

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_LONG, _MOST_TEXTS = 1 << 20, 10_000  # letters and texts; more are not of a cube
#: Bytes of one variable that a v5 file can hold.
V5_LIMIT = 2**31 - 1


def mat_format(path: Path) -> str:
    """Tell the format of a MATLAB file by its content.

    Returns:
        ``"mat4"``, ``"mat5"`` or ``"mat73"`` (any HDF5 file).

    Raises:
        OSError: If the file is missing or cannot be opened.
        ValueError: If it is not a MATLAB file.
    """
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEADER)
        offset = 0  # the HDF5 superblock lies at 0, 512, 1024, 2048, ...
        while offset < size:
            file.seek(offset)
            if file.read(8) == _HDF5_SIGNATURE:
                return "mat73"
            offset = max(512, 2 * offset)
    if len(head) == HEADER and head[126:] in (b"IM", b"MI"):
        major = head[125] if head[126:] == b"IM" else head[124]
        if major == 1:
            return "mat5"
        if major == 2:
            raise ValueError(f"cannot read {path}: a v7.3 header without its HDF5 part: truncated; copy it again")
    if head[:6] == b"MATLAB":
        raise ValueError(f"cannot read {path}: a MATLAB header that ends too early: truncated; copy it again")
    if _looks_like_v4(head, size):
        return "mat4"
    raise ValueError(f"not a MATLAB file: {path} has neither a v4/v5 header nor an HDF5 signature (v7.3)")


def _looks_like_v4(head: bytes, size: int) -> bool:
    """A v4 file has no signature, only five plausible integers (type, rows, columns, imaginary, name length)."""
    if len(head) < 22:
        return False
    for order, machine in (("<", 0), (">", 1)):
        kind, rows, columns, imaginary, name = struct.unpack(f"{order}5i", head[:20])
        if kind // 1000 == machine and kind // 100 % 10 == 0 and kind // 10 % 10 <= 5 and kind % 10 <= 2:
            named = 2 <= name <= 64 and size >= 20 + name and head[20 : 19 + name].isascii()
            return min(rows, columns) >= 0 and imaginary in (0, 1) and named
    return False


def list_mat(path: Path, *, allow_external: bool = False) -> list[Variable]:
    """List the variables of a MATLAB file without loading them.

    Raises:
        OSError: If the file is missing or cannot be opened.
        ValueError: If it is not a MATLAB file, truncated or damaged.
    """
    kind = mat_format(path)
    with reading(path):
        if kind == "mat73":
            return list_hdf5(path, allow_external=allow_external)
        return [element.variable for element in _elements(path, kind)]


def _elements(path: Path, kind: str) -> list[Element]:
    return elements_v4(path) if kind == "mat4" else elements(path)


def load_variable(path: Path, name: str, part: Part | None = None, *, allow_external: bool = False) -> np.ndarray:
    """Load one variable, and nothing else, in the axis order that `list_mat` gives.

    Args:
        path: A file of format v4, v5 or v7.3.
        name: A name that `list_mat` gives.
        part: What of it; None for all. Of v4 and v5 the variable is read as a whole first.
        allow_external: Whether it may be read from another file, if a v7.3 file says it is there.

    Raises:
        OSError: If the file is missing or cannot be opened.
        ValueError: If it is truncated or damaged, has no such variable, or not in itself; or if the variable takes more
            than the memory at hand.
    """
    kind = mat_format(path)
    with reading(path):
        if kind == "mat73":
            return load_hdf5(path, name, part, allow_external=allow_external)
        whole = load(path, [item for item in _elements(path, kind) if item.variable.name == name][-1])
        return whole if part is None else whole[part]


def replace_variable(source: Path, target: Path, name: str, array: np.ndarray, record: str | None = None) -> None:
    """Copy a MATLAB file with the numbers of one variable replaced.

    Args:
        source: The file to copy; it is only read.
        target: Another path, overwritten.
        name: The variable to replace.
        array: Its new numbers, in MATLAB's axis order, of the shape and type that `list_mat` gives.
        record: Text for its attribute, in a v7.3 file.

    Raises:
        OSError: If the target cannot be written.
        ValueError: If the variable is missing or its shape or type is not that of ``array``.
    """
    kind = mat_format(source)
    listed = list_mat(source, allow_external=True)  # looked at again, and never written
    found = {variable.name: variable for variable in listed}.get(name)
    if found is None or found.shape != array.shape or found.dtype != array.dtype:
        raise ValueError(
            f"cannot write variable '{printable(name)}' like {source}: the file there no longer holds it in that form; "
            "read the cube again"
        )
    if kind == "mat73":
        replace_hdf5(source, target, name, array, record)
    else:
        element = [item for item in _elements(source, kind) if item.variable.name == name][-1]
        splice(source, target, element, array)


def write_mat(path: Path, arrays: Mapping[str, np.ndarray], *, hdf5: bool = False, record: str | None = None) -> None:
    """Write arrays of numbers into a new MATLAB file.

    Args:
        path: The file, overwritten.
        arrays: Name to array in MATLAB's axis order; vectors become columns.
        hdf5: v7.3 instead of v5; so it is for variables over 2 GB.
        record: Text for an attribute of the first array, in v7.3.

    Raises:
        OSError: If the file cannot be written.
        ValueError: If a value is not an array of numbers or v5 has no such number type.
    """
    content: dict[str, np.ndarray] = {}
    for name, value in arrays.items():
        array = np.asarray(value)
        hdf5 = hdf5 or array.nbytes > V5_LIMIT
        if array.dtype.kind == "U":
            content[name] = array
            continue
        if array.dtype != np.bool_ and array.dtype.str[1:] not in MATLAB_NAMES:
            raise ValueError(
                f"cannot write '{printable(name)}' of type {array.dtype} into a .mat file; give it as float32"
            )
        content[name] = array.reshape((-1, 1)) if array.ndim < 2 else array
    if not hdf5:
        scipy.io.savemat(path, content, do_compression=True, appendmat=False)
        return
    with new_hdf5(path, userblock_size=512) as file:
        for name, array in content.items():
            kind = "logical" if array.dtype == np.bool_ else "char" if array.dtype.kind == "U" else ""
            if kind == "char":
                rows = np.atleast_1d(array)
                array = np.array(
                    [[ord(letter) for letter in row.ljust(rows.dtype.itemsize // 4)] for row in rows], "u2"
                )
            stored = array.T.astype(np.uint8) if kind == "logical" else array.T
            dataset = file.create_dataset(name, data=stored, **storage_options(stored.shape, stored.size))
            dataset.attrs["MATLAB_class"] = np.bytes_(kind or MATLAB_NAMES[array.dtype.str[1:]])
            if kind in ("logical", "char"):
                dataset.attrs["MATLAB_int_decode"] = np.int32(array.dtype.itemsize)
            put_record(dataset, record)
            record = None
    with path.open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file, Platform: Python, HDF5 schema 1.00 .".ljust(116) + bytes(8) + b"\0\2IM")


def _texts(path: Path, name: str, variables: Sequence[Variable]) -> list[str]:
    """The rows of a char array, or the texts of a cell, of that name; none if there is none or it is too long."""
    cells = {f"{name}{{{number + 1}}}": number for number in range(_MOST_TEXTS)}
    parts = {item.name: item for item in variables if item.name == name or item.name in cells}
    if sum(math.prod(item.shape) for item in parts.values()) > _LONG:
        return []
    chars = [each for each, item in parts.items() if item.note.startswith("char")]
    with reading(path):
        if mat_format(path) == "mat73":
            rows = [load_hdf5(path, each) for each in chars]
            return [row.astype("<u2").tobytes().decode("utf-16-le", "replace") for each in rows for row in each]
        if not chars:
            return []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = scipy.io.loadmat(path, variable_names=[name], appendmat=False)[name]
        return [str(row) for each in found.ravel(order="F") for row in np.ravel(each)]


class _Mat(Format):
    name, kinds, suffixes = "MATLAB", ("mat4", "mat5", "mat73"), (".mat",)
    holds = frozenset({"wavelengths", "fwhm", "band_names", "good_bands", "nodata", "crs", "transform"})
    types = frozenset(MATLAB_NAMES)

    def recognises(self, path: Path) -> bool:
        try:
            mat_format(path)
        except ValueError as error:
            return "truncated" in str(error)  # said when it is read
        return True

    def kind(self, path: Path) -> str:
        return mat_format(path)

    def holds_record(self, source: Path | None, large: bool = False) -> bool:
        return large if source is None else mat_format(source) == "mat73"

    def list_variables(self, path: Path, *, allow_external: bool = False) -> list[Variable]:
        return list_mat(path, allow_external=allow_external)

    def load_variable(
        self, path: Path, name: str, part: Part | None = None, *, allow_external: bool = False
    ) -> np.ndarray:
        return load_variable(path, name, part, allow_external=allow_external)

    def read_metadata(
        self, path: Path, layout: Layout, variables: Sequence[Variable], *, allow_external: bool = False
    ) -> tuple[Wavelengths, Metadata]:
        def load(name: str) -> np.ndarray:
            return load_variable(path, name, allow_external=allow_external)

        metadata = beside(variables, load, layout.bands)
        with suppress(ValueError):  # damaged texts are none
            texts = {name: _texts(path, name, variables) for name in TEXTS}
            metadata = with_texts(metadata, {name: text for name, text in texts.items() if text}, layout.bands)
        if self.holds_record(path):
            with reading(path):
                record = about_hdf5(path, layout.key, allow_external=allow_external).get(RECORD)
            metadata = replace(metadata, record=None if record is None else str(record))
        return find_wavelengths(variables, load, layout.bands), metadata

    def write_like(
        self, source: Path, targets: Sequence[Path], layout: Layout, stored: np.ndarray, suffix: str, record: str | None
    ) -> None:
        replace_variable(source, targets[0], layout.key, stored, record)

    def write_new(self, targets: Sequence[Path], new: NewCube) -> None:
        bare = replace(new, metadata=replace(new.metadata, record=None))
        write_mat(targets[0], arrays_of(bare), hdf5=new.large, record=new.metadata.record)


FORMAT = _Mat()
