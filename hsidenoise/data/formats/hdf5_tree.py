"""What an HDF5 file holds: its groups, data sets, MATLAB's structs and cells, and what their attributes say.

A file from elsewhere is not to be trusted. So links are followed here, not by the library: nothing outside the file is
opened unless the caller allows it.
"""

import contextlib
import math
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hsidenoise.data.formats.base import RefusedError, axes_of
from hsidenoise.data.formats.mat5 import MATLAB_NAMES
from hsidenoise.data.layout import ELSEWHERE, Variable, printable

#: Bytes of an attribute; longer ones are data.
LONG = 1 << 16
#: A field of an element of an array of structs.
ELEMENT = re.compile(r"\((\d{1,9})\)[./](\w+)")
_CLASS_TYPES = {name: np.dtype(code) for code, name in MATLAB_NAMES.items()}
_DEEPEST = 32  # groups in groups, and links to links
_MOST_CELLS = 1000
_CELL = re.compile(r"(.*)\{(\d{1,9})\}")


class Links:
    """An open file whose links are followed by hand."""

    def __init__(self, path: Path, allow_external: bool = False, *, mode: str = "r") -> None:
        self.path, self.allow_external = path, allow_external
        self.stack = contextlib.ExitStack()
        self.file = self.stack.enter_context(h5py.File(path, mode))
        with path.open("rb") as file:
            self.of_matlab = file.read(6) == b"MATLAB"

    def __enter__(self) -> "Links":
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def find(self, name: str, start: Any = None, depth: int = 0) -> Any:
        """The group or data set of a name.

        Raises:
            KeyError: If there is none.
            RefusedError: If it lies in another file and that is not allowed.
        """
        if depth > _DEEPEST:
            raise KeyError("a link that leads to itself")
        name = ELEMENT.sub(r"/\2{\1}", name)  # MATLAB's s(2).x is x of s, number 2
        node = self.file["/"] if start is None or name.startswith("/") else start
        if name.startswith("/") and start is not None:
            node = start.file["/"]
        for part in filter(lambda part: part not in ("", "."), name.split("/")):
            if not isinstance(node, h5py.Group):
                raise KeyError(f"no '{printable(name)}'")
            if part not in node and (cell := _CELL.fullmatch(part)):
                node = _of_cell(self.find(cell[1], node, depth + 1), int(cell[2]))
                continue
            link = node.get(part, getlink=True)
            if isinstance(link, h5py.SoftLink):
                node = self.find(link.path, node, depth + 1)
            elif isinstance(link, h5py.ExternalLink):
                if not self.allow_external:
                    raise RefusedError(_elsewhere([link.filename]))
                other = Path(node.file.filename).parent / link.filename
                if not other.is_file():  # a pipe or a device would be waited for
                    raise KeyError(f"no file {printable(str(other))}")
                file = self.stack.enter_context(h5py.File(other, "r"))
                node = self.find(link.path, file["/"], depth + 1)
            elif isinstance(link, h5py.HardLink):
                node = node[part]
            else:
                raise KeyError(f"no '{printable(name)}'")
        return node

    def variables(self) -> Iterator[Variable]:
        """Describe every data set, those that only a soft link leads to last."""
        seen: set[int] = set()
        later: list[tuple[str, Any]] = [("", self.file["/"])]
        while later:
            prefix, group = later.pop(0)
            yield from self._below(group, prefix, seen, later)

    def _below(self, group: Any, prefix: str, seen: set[int], later: list[tuple[str, Any]]) -> Iterator[Variable]:
        address = h5py.h5o.get_info(group.id).addr
        if address in seen:
            return
        seen.add(address)
        if prefix.count("/") > _DEEPEST:
            yield Variable(prefix.rstrip("/"), (), None, f"group in {_DEEPEST} groups, not searched")
            return
        for name in group:
            full = prefix + name
            if full in ("#refs#", "#subsystem#"):  # what cells and objects point to, nothing a person named
                continue
            try:
                link = group.get(name, getlink=True)
                node = self.find(name, group)
            except RefusedError as error:
                yield Variable(full, (), None, str(error))
                continue
            except (KeyError, TypeError):
                yield Variable(full, (), None, "broken link, not read")
                continue
            if isinstance(node, h5py.Dataset):
                yield from self._with_cells(full, node, "")
            elif isinstance(node, h5py.Group):
                kind = _attribute(node, "MATLAB_class")
                if kind == "struct" and node.file.filename == self.file.filename:
                    yield Variable(full, (), None, "struct array")
                    yield from self._fields(node, full, full, 0)
                elif "MATLAB_sparse" in node.attrs or kind:
                    kind = "sparse" if "MATLAB_sparse" in node.attrs else kind
                    yield Variable(full, (), None, f"{printable(kind)} array, not read")
                elif node.file.filename != self.file.filename:
                    yield Variable(full, (), None, f"group of {printable(node.file.filename)}, not read")
                elif isinstance(link, h5py.HardLink):
                    yield from self._below(node, f"{full}/", seen, later)
                else:
                    later.append((f"{full}/", node))

    def _fields(self, group: Any, name: str, inside: str, depth: int) -> Iterator[Variable]:
        """What the fields of a MATLAB struct hold."""
        for field in group if depth < _DEEPEST else ():
            full = f"{name}/{field}"
            with contextlib.suppress(KeyError, TypeError, RefusedError):
                node = self.find(field, group)
                if isinstance(node, h5py.Dataset):
                    yield from self._with_cells(full, node, inside, depth + 1)
                elif _attribute(node, "MATLAB_class") == "struct":
                    yield from self._fields(node, full, inside, depth + 1)

    def _with_cells(self, name: str, node: Any, inside: str, depth: int = 0) -> Iterator[Variable]:
        """A data set and, if it is a MATLAB cell or the field of an array of structs, what is in it."""
        if h5py.check_ref_dtype(node.dtype) is not h5py.Reference or not (node.shape and node.size <= _MOST_CELLS):
            yield replace(self.variable(name, node), inside=inside)
            return
        cell = _attribute(node, "MATLAB_class") == "cell"
        if cell:
            shape = tuple(int(size) for size in reversed(node.shape))
            yield Variable(name, shape, None, "cell array", inside=inside)
        of, _, field = name.rpartition("/")
        for number in range(1, node.size + 1 if depth < _DEEPEST else 0):
            full = f"{name}{{{number}}}" if cell else f"{of}({number}).{field}"
            with contextlib.suppress(KeyError, TypeError, ValueError, RuntimeError):
                one = _of_cell(node, number)
                if isinstance(one, h5py.Dataset):
                    yield from self._with_cells(full, one, inside or name, depth + 1)
                elif _attribute(one, "MATLAB_class") == "struct":
                    yield from self._fields(one, full, inside or name, depth + 1)

    def variable(self, name: str, node: Any) -> Variable:
        """Describe a data set; what is not allowed to be read has no type."""
        kind = _attribute(node, "MATLAB_class")
        foreign = not (kind or self.of_matlab)
        shape = tuple(int(size) for size in (node.shape or ()))[:: 1 if foreign else -1]
        try:
            dtype: np.dtype[Any] = node.dtype
        except TypeError:
            return Variable(name, shape, None, "numbers of an unknown type, not read")
        if _attribute(node, "MATLAB_empty") and node.size is not None and node.size <= 32 and dtype.kind in "iu":
            shape = tuple(int(size) for size in np.ravel(node[()]))  # it holds the sizes, not the numbers
        if _attribute(node, "NAME").startswith("This is a netCDF dimension"):
            return Variable(name, shape, None, "name of a dimension", foreign)
        if (places := places_of(node)) and not self.allow_external:
            return Variable(name, shape, None, _elsewhere(places), foreign=foreign)
        if dtype.names in (("real", "imag"), ("r", "i")):
            dtype = np.dtype(np.complex64 if dtype[0].itemsize == 4 else np.complex128)
        if kind == "logical" or dtype == np.bool_:
            return Variable(name, shape, np.dtype(np.bool_), "logical values", foreign)
        if dtype.kind not in "iufc" or (kind and kind not in _CLASS_TYPES):
            return Variable(name, shape, None, f"{printable(kind or str(dtype))} array, not read")
        note = "complex numbers" if dtype.kind == "c" else "" if kind else "no MATLAB class"
        if kind and dtype.kind != "c" and dtype.newbyteorder("=") != _CLASS_TYPES[kind]:
            note, dtype = f"{kind} in MATLAB, stored as {dtype}", _CLASS_TYPES[kind]
        return Variable(name, shape, dtype, note, foreign, _letters(node) if foreign and len(shape) >= 3 else "")

    def about(self, name: str, alone: bool = False) -> dict[str, Any]:
        """What the attributes of the file, of a data set and of its grid mapping say; those of the latter go before."""
        node = self.find(name)
        if alone:
            return _attributes(node)
        found = _attributes(self.file) | _attributes(node)
        if isinstance(mapping := found.get("grid_mapping"), str):
            with contextlib.suppress(KeyError, RefusedError):
                found |= _attributes(self.find(mapping, node.parent))
        return found


def _of_cell(node: Any, number: int) -> Any:
    """What a reference of a MATLAB cell leads to, counted from 1 down the columns.

    Raises:
        KeyError: If there is none.
    """
    references = isinstance(node, h5py.Dataset) and h5py.check_ref_dtype(node.dtype) is h5py.Reference
    if not references or not 0 < number <= (node.size or 0) <= _MOST_CELLS:
        raise KeyError(f"no cell {number}")
    reference = np.ravel(node[()])[number - 1]
    if not reference:
        raise KeyError(f"cell {number} is empty")
    return node.file[reference]


def _letters(node: Any) -> str:
    """What the names of the dimensions of a data set say of its axes; empty if they do not."""
    names = [each.label or (each[0].name.rpartition("/")[2] if len(each) else "") for each in node.dims]
    return axes_of(names, node.shape)


def _attributes(node: Any) -> dict[str, Any]:
    """The attributes of a group or data set that are text, numbers, or short lists of them."""
    found: dict[str, Any] = {}
    for name in node.attrs:
        identity = node.attrs.get_id(name)
        kind = identity.dtype
        text = h5py.check_string_dtype(kind) is not None
        if not (text or kind.kind in "iufSU") or math.prod(identity.shape or ()) * kind.itemsize > LONG:
            continue
        with contextlib.suppress(UnicodeDecodeError):
            value = np.asarray(node.attrs[name])
            items = [each.decode() if isinstance(each, bytes) else each for each in value.ravel().tolist()]
            found[name] = items[0] if value.ndim == 0 or len(items) == 1 else items
    return found


def _elsewhere(places: list[str]) -> str:
    names = ", ".join(printable(place) for place in places[:3]) + ", ..." * (len(places) > 3)
    return f"{ELSEWHERE} ({names}), not read without --allow-external"


def _attribute(node: Any, name: str) -> str:
    """A short attribute as text, empty if there is none."""
    if name not in node.attrs:
        return ""
    identity = node.attrs.get_id(name)
    if math.prod(identity.shape or ()) > 1 or identity.dtype.itemsize > 256:
        return ""
    value = np.asarray(node.attrs[name]).ravel()
    if not value.size or value[0] in (0, b"", ""):
        return ""
    return value[0].decode("utf-8", "replace") if isinstance(value[0], bytes) else str(value[0])


def places_of(node: Any) -> list[str]:
    """Other files that a data set takes its numbers from."""
    plist = node.id.get_create_plist()
    if plist.get_layout() == h5py.h5d.VIRTUAL:
        count = plist.get_virtual_count()
        return [plist.get_virtual_filename(index) for index in range(min(count, 4))] or ["none"]
    return [os.fsdecode(plist.get_external(index)[0]) for index in range(min(plist.get_external_count(), 4))]
