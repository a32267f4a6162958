"""The elements of a .mat file of MATLAB 4 or 5 to 7: where each variable lies, reading one, putting one anew.

An element here is the bytes of one variable, compressed or not, so a file can be copied with one of them exchanged and
the rest left alone. What an element promises is checked against the bytes that are there before it is read. The type of
a variable is its class in MATLAB, which stores numbers in fewer bytes where they fit; version 4 knows only doubles.

References:
    MathWorks, "MAT-File Format", R2023b, chapter 1 (level 5 MAT-file format), appendix A (level 4).
"""

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hsidenoise.data.formats.base import check_room
from hsidenoise.data.layout import Variable, times

_NUMBERS = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_STORAGE = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
#: Number types as MATLAB calls them.
MATLAB_NAMES = {"f8": "double", "f4": "single"} | {
    f"{kind}{size}": f"{name}{8 * size}" for kind, name in (("i", "int"), ("u", "uint")) for size in (1, 2, 4, 8)
}
HEADER = 128  # bytes before the first element
#: A byte of deflate holds no more than so many bytes (zlib's technical details give 1032:1).
MOST_DEFLATED = 1032
_V4_STORAGE = ("f8", "f4", "i4", "i2", "u2", "u1")
_MOST_BYTES = 2**32 - 1024  # of one variable, whose length is a 32-bit number
_CLASSES = {1: "cell", 2: "struct", 3: "object", 4: "char", 5: "sparse", 16: "function", 17: "object"}
_OPAQUE = 17
_CELL, _STRUCT, _DEEPEST = 1, 2, 16
_MATRIX, _COMPRESSED = 14, 15  # types of the elements at the top level
_COMPLEX, _LOGICAL = 0x0800, 0x0200  # array flags


@dataclass(frozen=True)
class Element:
    """Where a variable of a v4 or v5 file lies, and what its matrix header says."""

    variable: Variable
    start: int
    stop: int
    compressed: bool
    flags: int  # of v4 its type
    order: str  # "<" or ">" of struct
    data: int = 0  # where its numbers (of v5 with their tag) begin, from the start of the element, unpacked
    length: int = 0  # of the element, unpacked
    stored: str = ""  # type of the stored numbers of v4
    at: int = 0  # where it begins in the unpacked variable that it is inside of
    around: tuple[int, ...] = ()  # where those begin that it is inside of, the variable first


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
    return [each for element in found if element.variable.name for each in _with_inside(path, element)]


def elements_v4(path: Path) -> list[Element]:
    """Walk a v4 file: one element is one variable, a header of five integers, its name and its numbers."""
    size = path.stat().st_size
    found: list[Element] = []
    with path.open("rb") as file:
        start = 0
        while start < size:
            file.seek(start)
            head = file.read(20)
            order = "<" if struct.unpack("<i", head[:4])[0] in range(1000) else ">"
            code, rows, columns, imaginary, length = struct.unpack(f"{order}5i", head)
            if min(rows, columns) < 0 or not 0 < length < 1024 or code % 10 > 2 or code // 100 not in (0, 10):
                raise ValueError(f"the header of variable {len(found) + 1} makes no sense")
            name = file.read(length).rstrip(b"\0").decode("latin-1")
            stored = np.dtype(_V4_STORAGE[code // 10 % 10]).newbyteorder("<" if order == "<" else ">")
            stop = start + 20 + length + rows * columns * stored.itemsize * (2 if imaginary else 1)
            if stop > size:
                raise EOFError(f"variable {len(found) + 1} ends beyond the end of the file")
            note = ""
            dtype: np.dtype[Any] = np.dtype(np.float64)
            if code % 10:
                variable = Variable(name, (rows, columns), None, f"{('char', 'sparse')[code % 10 - 1]} array, not read")
            else:
                if stored.kind != "f" or stored.itemsize != 8:
                    note = f"double in MATLAB, stored as {stored.newbyteorder('=')}"
                if imaginary:
                    dtype, note = np.dtype(np.complex128), "complex numbers"
                variable = Variable(name, (rows, columns), dtype, note)
            span = {"start": start, "stop": stop, "data": 20 + length, "length": stop - start}
            found.append(Element(variable, compressed=False, flags=code, order=order, stored=stored.str, **span))
            start = stop
    return found


def load(path: Path, element: Element) -> np.ndarray:
    """Read the numbers of an element.

    Raises:
        RefusedError: If it does not fit into memory.
        ValueError: If its numbers are not all there.
    """
    variable = element.variable
    if variable.dtype is None:
        raise TypeError(f"'{variable.label}' holds no numbers")
    check_room(f"'{variable.label}'", variable.shape, variable.dtype)
    view = memoryview(_unpacked(path, element))[element.at + element.data :]
    parts = []
    for _ in range(2 if variable.dtype.kind == "c" else 1):
        if element.stored:  # v4: numbers without a tag
            stored, size = np.dtype(element.stored), math.prod(variable.shape) * np.dtype(element.stored).itemsize
            part, view = view[:size], view[size:]
        else:
            kind, part, position = _part(view, 0, element.order)
            stored, view = np.dtype(element.order + _STORAGE[kind]), view[position:]
        parts.append(np.frombuffer(part, stored).reshape(variable.shape, order="F").astype(variable.dtype, copy=False))
    return parts[0] if len(parts) == 1 else parts[0] + 1j * parts[1]


def _unpacked(path: Path, element: Element) -> bytes:
    """The bytes of a variable as a whole, unpacked."""
    with path.open("rb") as file:
        file.seek(element.start)
        content = file.read(element.stop - element.start)
    if not element.compressed:
        return content
    packed = zlib.decompressobj()
    _, promised = struct.unpack(f"{element.order}II", packed.decompress(content[8:], 8))
    if promised + 8 > MOST_DEFLATED * len(content):
        raise ValueError(f"'{element.variable.label}' promises more than the file holds")
    check_room(f"'{element.variable.label}'", (promised + 8,), np.dtype(np.uint8))
    packed = zlib.decompressobj()
    content = packed.decompress(content[8:], promised + 9)
    if len(content) != promised + 8 or not packed.eof:
        raise ValueError(f"'{element.variable.label}' is not as long as it should be")
    return content


def _with_inside(path: Path, element: Element) -> Iterator[Element]:
    """A variable and, if it is a struct or a cell, all that is inside of it; not if it is damaged there."""
    if element.flags & 0xFF not in (_CELL, _STRUCT) or element.stored:
        yield element
        return
    try:
        inside = list(_inside(_unpacked(path, element), element, 0, ()))
        note = element.variable.note.removesuffix(", not read")
    except (ValueError, struct.error, zlib.error, LookupError, MemoryError):
        inside, note = [], element.variable.note
    yield replace(element, variable=replace(element.variable, note=note))
    yield from inside


def _inside(content: bytes, element: Element, at: int, around: tuple[int, ...]) -> Iterator[Element]:
    """What is inside of the struct or cell that begins at a place of an unpacked variable."""
    order, parent = element.order, element.variable
    if len(around) > _DEEPEST:
        return
    end = at + 8 + struct.unpack_from(f"{order}I", content, at + 4)[0]
    _, flags, position = _part(content, at + 8, order)
    _, shape, position = _part(content, position, order)
    _, _, position = _part(content, position, order)
    count = math.prod(int(size) for size in np.frombuffer(shape, f"{order}i4"))
    fields = [""]
    if flags[0 if order == "<" else 3] == _STRUCT:
        _, size, position = _part(content, position, order)
        length = int.from_bytes(size, "little" if order == "<" else "big")
        _, names, position = _part(content, position, order)
        fields = [bytes(names[i : i + length]).split(b"\0")[0].decode() for i in range(0, len(names), length)]
    if end > len(content) or count * len(fields) * 8 > end - position:
        raise ValueError("a struct or cell promises more than it holds")
    for number in range(1, count + 1):
        for field in fields:
            of = f"({number})" if field and count > 1 else f"{{{number}}}" if not field else ""
            kind, size = struct.unpack_from(f"{order}II", content, position)
            if kind != _MATRIX or position + 8 + size > end:
                raise ValueError("a struct or cell is damaged")
            head = content[position : min(position + 1024, position + 8 + size)]
            name = f"{parent.name}{of}.{field}" if field else f"{parent.name}{of}"
            if len(head) >= 24:
                found = _described(head, (element.start, element.stop), order, element.compressed, size + 8, name)
                variable = replace(found.variable, inside=parent.inside or parent.name)
                found = replace(found, variable=variable, at=position, around=(*around, at))
                if found.flags & 0xFF in (_CELL, _STRUCT):
                    shown = replace(variable, note=variable.note.removesuffix(", not read"))
                    yield replace(found, variable=shown)
                    yield from _inside(content, found, position, (*around, at))
                else:
                    yield found
            position += 8 + size


def _element(file: BinaryIO, tag: bytes, span: tuple[int, int], order: str, *, compressed: bool) -> Element:
    """Read the header of one matrix; a kilobyte holds it, however large the matrix is."""
    head = file.read(min(span[1] - span[0] - 8, 4096))
    head = zlib.decompressobj().decompress(head, 1024) if compressed else tag + head[:1024]
    if len(head) < 24:  # an empty element: an unnamed []
        return Element(Variable("", (), None), *span, compressed, 0, order)
    there = MOST_DEFLATED * (span[1] - span[0]) if compressed else span[1] - span[0]
    return _described(head, span, order, compressed, there)


def _described(
    head: bytes, span: tuple[int, int], order: str, compressed: bool, there: int, known: str = ""
) -> Element:
    """What the header of a matrix says; ``there``: bytes that it can have; ``known``: its name, if it has none."""
    (flags,) = struct.unpack_from(f"{order}I", head, 16)
    kind, position, shape = flags & 0xFF, 24, b""
    if kind != _OPAQUE:
        _, shape, position = _part(head, position, order)
    _, name, position = _part(head, position, order)
    sizes = tuple(int(size) for size in np.frombuffer(shape, f"{order}i4"))
    text = known or bytes(name).decode("utf-8", "replace")
    if (len(text) > 128 and not known) or not (text.isprintable() and len(sizes) <= 32 and min(sizes, default=0) >= 0):
        raise ValueError("a variable's name or sizes make no sense")
    if kind not in _NUMBERS:
        variable = Variable(text, sizes, None, f"{_CLASSES.get(kind, 'unknown')} array, not read")
        return Element(variable, *span, compressed, flags, order)
    storage, count = struct.unpack_from(f"{order}II", head, position)
    if storage >> 16:  # up to four bytes lie inside the tag
        storage, count = storage & 0xFFFF, storage >> 16
    dtype, stored = np.dtype(_NUMBERS[kind]), np.dtype(_STORAGE[storage])
    length = 8 + struct.unpack_from(f"{order}I", head, 4)[0]
    if count != math.prod(sizes) * stored.itemsize or position + count > length or length > there:
        raise ValueError(f"'{text}' of {times(sizes)} promises more or less than the file holds")
    note = f"{MATLAB_NAMES[_NUMBERS[kind]]} in MATLAB, stored as {stored}" if stored != dtype else ""
    if flags & _COMPLEX:
        dtype, note = np.dtype(np.complex64 if dtype == np.float32 else np.complex128), "complex numbers"
    elif flags & _LOGICAL:
        dtype, note = np.dtype(np.bool_), "logical values"
    variable = Variable(text, sizes, dtype, note)
    return Element(variable, *span, compressed, flags, order, data=position, length=length)


def _part(head: Any, position: int, order: str) -> tuple[int, Any, int]:
    """Type, bytes and end of one sub-element; one of up to four bytes lies inside its own tag."""
    kind, count = struct.unpack_from(f"{order}II", head, position)
    if kind >> 16:
        return kind & 0xFFFF, head[position + 4 : position + 4 + (kind >> 16)], position + 8
    return kind, head[position + 8 : position + 8 + count], position + 8 + count + -count % 8


def splice(source: Path, target: Path, element: Element, array: np.ndarray) -> None:
    """Copy a file with one element written anew, its class and compression kept.

    Raises:
        OSError: If a file cannot be read or written, or the numbers take more bytes than a variable may have.
    """
    order, name = element.order, element.variable.name
    if array.nbytes > _MOST_BYTES:
        raise OSError(f"'{element.variable.label}' takes {array.nbytes:,} bytes, more than this version of .mat holds")

    def part(kind: int, data: bytes) -> bytes:
        return struct.pack(f"{order}II", kind, len(data)) + data + bytes(-len(data) % 8)

    data = array.astype(array.dtype.newbyteorder("<" if order == "<" else ">")).tobytes(order="F")
    first = 0 if element.stored else HEADER
    if element.stored:
        code = 0 if order == "<" else 1000
        matrix = struct.pack(f"{order}5i", code, *array.shape, 0, len(name) + 1) + name.encode("latin-1") + b"\0" + data
    else:
        code = {kind: number for number, kind in _STORAGE.items()}[array.dtype.str[1:]]
        matrix = part(
            _MATRIX,
            part(6, struct.pack(f"{order}II", element.flags, 0))
            + part(5, np.array(array.shape, f"{order}i4").tobytes())
            + part(1, b"" if element.around else name.encode())
            + part(code, data),
        )
    if element.around:
        content = bytearray(_unpacked(source, element))
        longer = len(matrix) - element.length
        for place in element.around:
            (length,) = struct.unpack_from(f"{order}I", content, place + 4)
            if length + longer >= 2**32:
                raise OSError(f"'{name}' makes the variable that it is in larger than this version of .mat holds")
            struct.pack_into(f"{order}I", content, place + 4, length + longer)
        content[element.at : element.at + element.length] = matrix
        matrix = bytes(content)
    if element.compressed:
        packed = zlib.compress(matrix)
        matrix = struct.pack(f"{order}II", _COMPRESSED, len(packed)) + packed
    with source.open("rb") as old, target.open("wb") as new:
        header = old.read(first)
        if header:
            # MATLAB objects: the header points to where their common data lie, which may have moved
            (pointer,) = struct.unpack(f"{order}Q", header[116:124])
            if element.stop <= pointer < 2**48:
                pointer += len(matrix) - (element.stop - element.start)
                header = header[:116] + struct.pack(f"{order}Q", pointer) + header[124:]
        new.write(header)
        for start, stop in ((first, element.start), (element.stop, source.stat().st_size)):
            if start == element.stop:
                new.write(matrix)
            old.seek(start)
            remaining = stop - start
            while remaining and (block := old.read(min(remaining, 1 << 24))):
                new.write(block)
                remaining -= len(block)
