"""The elements of a v5 .mat file (MATLAB 5 to 7): where each variable lies, and putting one anew in its place.

scipy reads and writes the numbers of such files; it cannot leave the rest of a file alone. An element here is the
bytes of one variable, compressed or not, so a file can be copied with one of them exchanged.

References:
    MathWorks, "MAT-File Format", R2023b, chapter 1 (level 5 MAT-file format).
"""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hsidenoise.data.layout import Variable

_NUMBERS = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_STORAGE = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
#: Number types as MATLAB calls them.
MATLAB_NAMES = {"f8": "double", "f4": "single"} | {
    f"{kind}{size}": f"{name}{8 * size}" for kind, name in (("i", "int"), ("u", "uint")) for size in (1, 2, 4, 8)
}
HEADER = 128  # bytes before the first element
_CLASSES = {1: "cell", 2: "struct", 3: "object", 4: "char", 5: "sparse", 16: "function", 17: "object"}
_OPAQUE = 17
_MATRIX, _COMPRESSED = 14, 15  # types of the elements at the top level
_COMPLEX, _LOGICAL = 0x0800, 0x0200  # array flags


@dataclass(frozen=True)
class Element:
    """Where a variable of a v5 file lies, and what its matrix header says."""

    variable: Variable
    start: int
    stop: int
    compressed: bool
    flags: int
    order: str  # "<" or ">" of struct


def elements(path: Path) -> list[Element]:
    """Walk the top level of a v5 file: one element is one variable."""
    size = path.stat().st_size
    found: list[Element] = []
    with path.open("rb") as file:
        order = "<" if file.read(HEADER)[126:] == b"IM" else ">"
        start = HEADER
        while start < size:
            file.seek(start)
            tag = file.read(8)
            kind, count = struct.unpack(f"{order}II", tag)
            stop = start + 8 + count
            if stop > size or kind not in (_MATRIX, _COMPRESSED):
                raise EOFError(
                    f"variable {len(found) + 1} ends beyond the end of the file" if stop > size else "no tag"
                )
            found.append(_element(file, tag, (start, stop), order, compressed=kind == _COMPRESSED))
            start = stop
    return [element for element in found if element.variable.name]


def _element(file: BinaryIO, tag: bytes, span: tuple[int, int], order: str, *, compressed: bool) -> Element:
    """Read the header of one matrix; a kilobyte holds it, however large the matrix is."""
    head = file.read(min(span[1] - span[0] - 8, 4096))
    head = zlib.decompressobj().decompress(head, 1024) if compressed else tag + head[:1024]
    if len(head) < 24:  # an empty element: an unnamed []
        return Element(Variable("", (), None), *span, compressed, 0, order)
    (flags,) = struct.unpack_from(f"{order}I", head, 16)
    kind, position, shape = flags & 0xFF, 24, b""
    if kind != _OPAQUE:
        _, shape, position = _part(head, position, order)
    _, name, position = _part(head, position, order)
    sizes = tuple(int(size) for size in np.frombuffer(shape, f"{order}i4"))
    text = name.decode("utf-8", "replace")
    if len(text) > 128 or not (text.isprintable() and len(sizes) <= 32 and min(sizes, default=0) >= 0):
        raise ValueError("a variable's name or sizes make no sense")
    if kind not in _NUMBERS:
        variable = Variable(text, sizes, None, f"{_CLASSES.get(kind, 'unknown')} array, not read")
        return Element(variable, *span, compressed, flags, order)
    stored = np.dtype(_STORAGE[_part(head, position, order)[0]])
    note = f"{MATLAB_NAMES[_NUMBERS[kind]]} in MATLAB, stored as {stored}" if stored != _NUMBERS[kind] else ""
    if flags & _COMPLEX:
        stored, note = np.dtype(np.complex64 if stored == np.float32 else np.complex128), "complex numbers"
    elif flags & _LOGICAL:
        stored, note = np.dtype(np.bool_), "logical values"
    return Element(Variable(text, sizes, stored, note), *span, compressed, flags, order)


def _part(head: bytes, position: int, order: str) -> tuple[int, bytes, int]:
    """Type, bytes and end of one sub-element; one of up to four bytes lies inside its own tag."""
    kind, count = struct.unpack_from(f"{order}II", head, position)
    if kind >> 16:
        return kind & 0xFFFF, head[position + 4 : position + 4 + (kind >> 16)], position + 8
    return kind, head[position + 8 : position + 8 + count], position + 8 + count + -count % 8


def splice(source: Path, target: Path, element: Element, array: np.ndarray) -> None:
    """Copy a v5 file with one element written anew, its class and compression kept."""
    order = element.order
    code = {name: number for number, name in _STORAGE.items()}[array.dtype.str[1:]]

    def part(kind: int, data: bytes) -> bytes:
        return struct.pack(f"{order}II", kind, len(data)) + data + bytes(-len(data) % 8)

    data = array.astype(array.dtype.newbyteorder("<" if order == "<" else ">")).tobytes(order="F")
    matrix = part(
        _MATRIX,
        part(6, struct.pack(f"{order}II", element.flags, 0))
        + part(5, np.array(array.shape, f"{order}i4").tobytes())
        + part(1, element.variable.name.encode())
        + part(code, data),
    )
    if element.compressed:
        packed = zlib.compress(matrix)
        matrix = struct.pack(f"{order}II", _COMPRESSED, len(packed)) + packed
    with source.open("rb") as old, target.open("wb") as new:
        header = old.read(HEADER)
        # MATLAB objects: the header points to where their common data lie, which may have moved
        (pointer,) = struct.unpack(f"{order}Q", header[116:124])
        if element.stop <= pointer < 2**48:
            pointer += len(matrix) - (element.stop - element.start)
            header = header[:116] + struct.pack(f"{order}Q", pointer) + header[124:]
        new.write(header)
        for start, stop in ((HEADER, element.start), (element.stop, source.stat().st_size)):
            if start == element.stop:
                new.write(matrix)
            old.seek(start)
            remaining = stop - start
            while remaining and (block := old.read(min(remaining, 1 << 24))):
                new.write(block)
                remaining -= len(block)
