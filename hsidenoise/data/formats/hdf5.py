"""HDF5 files (MATLAB v7.3 and others): what they hold, one data set of them, and putting one anew in its place.

A file from elsewhere is not to be trusted. So links are followed here, not by the library: nothing outside the file is
opened unless the caller allows it, and nothing outside the copy is ever written. Chunks are checked and unpacked here
too, because the library reads beyond a chunk that is shorter than its index says. What it has to read or write itself
happens in a process of its own, which may crash without taking the caller along; so does the first look at a file that
may hold virtual data sets, since the library (HDF5 2.0) runs over its stack, or for ever, where it opens one whose list
of parts is damaged.

References:
    HDF Group, "HDF5 File Format Specification 3.0", sections III.A (chunk indices) and IV.A.2 (object headers).
"""

import contextlib
import functools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from hsidenoise.data.formats.mat5 import MATLAB_NAMES, MOST_DEFLATED
from hsidenoise.data.layout import ELSEWHERE, RefusedError, Variable, axes_of, check_room, printable
from hsidenoise.data.metadata import RECORD

_CLASS_TYPES = {name: np.dtype(code) for code, name in MATLAB_NAMES.items()}
_DEFLATE, _SHUFFLE = 1, 2  # registered numbers of the filters that are undone here
_LONG = 1 << 16  # bytes of an attribute; longer ones are data
_DEEPEST = 32  # groups in groups, and links to links
_SECONDS, _BYTES_A_SECOND = 60, 1 << 22  # patience with the process that reads or writes: so long, and for the size
_LOOK = 1  # seconds of computing that a first look may take at one data set
_HEAPS, _SCANNED = (b"GCOL", b"#refs#"), 1 << 26  # where lists of parts and cells lie; a larger file is not searched
_MOST_CELLS = 1000
_CELL, _ELEMENT = re.compile(r"(.*)\{(\d{1,9})\}"), re.compile(r"\((\d{1,9})\)[./](\w+)")


def list_hdf5(path: Path, *, allow_external: bool = False) -> list[Variable]:
    """List the data sets of an HDF5 file without loading them; each group is entered once, however many paths it has.

    Raises:
        OSError, RuntimeError, KeyError, ValueError: If the file is damaged.
    """
    _look(path, allow_external)
    with _Links(path, allow_external) as links:
        return list(links.variables())


def load_hdf5(
    path: Path, name: str, part: tuple[slice, ...] | None = None, *, allow_external: bool = False
) -> np.ndarray:
    """Load one data set or a part of it, in MATLAB's axis order if that wrote it.

    Raises:
        OSError, RuntimeError, KeyError, ValueError: If the file is damaged, or what it promises is neither in the file
            nor fits into memory, or its data lie in another file.
    """
    _look(path, allow_external)
    with _Links(path, allow_external) as links:
        node = links.find(name)
        if not isinstance(node, h5py.Dataset):
            raise TypeError(f"'{printable(name)}' is not a data set")
        variable = links.variable(name, node)
        if variable.note.startswith(ELSEWHERE):
            raise RefusedError(f"'{printable(name)}' lies {variable.note}")
        region = None
        if part is not None and node.shape is not None:
            turned = part if variable.foreign else part[::-1]
            region = [slice(*each.indices(size)[:2]) for each, size in zip(turned, node.shape, strict=True)]
        stored = _load(node, links, region)
        if stored is None:
            shape = node.shape if region is None else tuple(each.stop - each.start for each in region)
            stored = np.empty(shape, node.dtype)
            bounds = None if region is None else [(each.start, each.stop) for each in region]
            request = {"do": "read", "path": str(path), "name": name, "allow": allow_external, "part": bounds}
            _in_child(request, read=stored)
    if variable.dtype is not None and variable.dtype.kind in "iuf" and variable.dtype != stored.dtype:
        stored = stored.astype(variable.dtype)
    return stored if variable.foreign else stored.T


def replace_hdf5(source: Path, target: Path, name: str, array: np.ndarray, record: str | None = None) -> None:
    """Copy an HDF5 file with the numbers of one data set replaced.

    A data set of the file is overwritten in the copy. In place of one whose data lie in another file (or whose type
    is not that of its MATLAB class) comes a plain one of the same name and attributes. Links to other files are
    carried over as they are. A record becomes its attribute.

    Warns:
        UserWarning: Of what lies in another file beside that data set.

    Raises:
        OSError: If the copy cannot be written.
    """
    others = [item for item in list_hdf5(source) if item.name != name and item.note.startswith(ELSEWHERE)]
    if others:
        places = "; ".join(f"{item.label} lies {item.note.partition(')')[0]})" for item in others)
        warnings.warn(f"{places}: the output points there too and has no copy of it", stacklevel=2)
    shutil.copyfile(source, target)
    foreign = any(item.foreign for item in list_hdf5(source, allow_external=True) if item.name == name)
    content = np.ascontiguousarray(array if foreign else array.T)
    request: dict[str, Any] = {"do": "write", "path": str(target), "name": name, "record": record}
    request |= {"shape": content.shape, "dtype": content.dtype.str}
    try:
        _in_child(request, write=content)
    except ValueError as error:
        raise OSError(str(error)) from error


def _look(path: Path, allow_external: bool) -> None:
    """Have another process open everything in a file first, where it could end or stop the one that does."""
    status = path.stat()
    if status.st_size > _SCANNED or any(mark in path.read_bytes() for mark in _HEAPS):
        _look_once(str(path.absolute()), (status.st_ino, status.st_mtime_ns, status.st_size), allow_external)


@functools.lru_cache(maxsize=4096)
def _look_once(path: str, stamp: tuple[int, int, int], allow_external: bool) -> None:
    _in_child({"do": "look", "path": path, "allow": allow_external})


def storage_options(shape: tuple[int, ...], size: int) -> dict[str, Any]:
    """How a new data set is stored: one band a chunk, as MATLAB and the readers of ICVL expect to step through them."""
    if len(shape) < 3 or not size:
        return {}
    return {"chunks": (1, *shape[1:]), "compression": "gzip", "compression_opts": 3, "shuffle": True}


class _Links:
    """An open file whose links are followed by hand."""

    def __init__(self, path: Path, allow_external: bool = False, *, mode: str = "r") -> None:
        self.path, self.allow_external = path, allow_external
        self.stack = contextlib.ExitStack()
        self.file = self.stack.enter_context(h5py.File(path, mode))
        with path.open("rb") as file:
            self.of_matlab = file.read(6) == b"MATLAB"

    def __enter__(self) -> "_Links":
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
        name = _ELEMENT.sub(r"/\2{\1}", name)  # MATLAB's s(2).x is x of s, number 2
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
        if (places := _places(node)) and not self.allow_external:
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

    def about(self, name: str) -> dict[str, Any]:
        """What the attributes of the file, of a data set and of its grid mapping say; those of the latter go before."""
        node = self.find(name)
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
        if not (text or kind.kind in "iufSU") or math.prod(identity.shape or ()) * kind.itemsize > _LONG:
            continue
        with contextlib.suppress(UnicodeDecodeError):
            value = np.asarray(node.attrs[name])
            items = [each.decode() if isinstance(each, bytes) else each for each in value.ravel().tolist()]
            found[name] = items[0] if value.ndim == 0 or len(items) == 1 else items
    return found


def about_hdf5(path: Path, name: str, *, allow_external: bool = False) -> dict[str, Any]:
    """The attributes of a file and of one of its data sets, as text, numbers and lists.

    Raises:
        OSError, RuntimeError, KeyError, ValueError: If the file is damaged.
    """
    _look(path, allow_external)
    with _Links(path, allow_external) as links:
        return links.about(name)


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


def _places(node: Any) -> list[str]:
    """Other files that a data set takes its numbers from."""
    plist = node.id.get_create_plist()
    if plist.get_layout() == h5py.h5d.VIRTUAL:
        count = plist.get_virtual_count()
        return [plist.get_virtual_filename(index) for index in range(min(count, 4))] or ["none"]
    return [os.fsdecode(plist.get_external(index)[0]) for index in range(min(plist.get_external_count(), 4))]


def _check_places(node: Any) -> None:
    """Refuse what the library would fill up with zeros in silence: parts of other files that are not there."""
    plist, missing = node.id.get_create_plist(), 0
    if plist.get_layout() == h5py.h5d.VIRTUAL:
        folder, covered = Path(node.file.filename).parent, 0
        for source in node.virtual_sources():
            place = Path(node.file.filename) if source.file_name == "." else folder / source.file_name
            if not place.is_file():
                raise ValueError(f"its part {printable(str(place))} is missing")
            with h5py.File(place, "r") as file:
                if not isinstance(file.get(source.dset_name), h5py.Dataset):
                    raise ValueError(f"its part '{printable(source.dset_name)}' of {printable(str(place))} is missing")
            covered += source.vspace.get_select_npoints()
        missing = math.prod(node.shape) - covered
    elif plist.get_external_count():
        missing = math.prod(node.shape) * node.dtype.itemsize
        for index in range(plist.get_external_count()):
            name, offset, size = plist.get_external(index)
            if not Path(os.fsdecode(name)).is_file():
                raise ValueError(f"its part {printable(os.fsdecode(name))} is missing")
            missing -= min(size, Path(os.fsdecode(name)).stat().st_size - offset)
    if missing > 0:
        raise ValueError("its parts in other files do not fill it")


def _load(node: Any, links: _Links, region: list[slice] | None) -> np.ndarray | None:
    """A data set or a region of it as it is stored; None where only the library can read it."""
    shape, plist = node.shape, node.id.get_create_plist()
    if shape is None:
        raise ValueError(f"'{printable(node.name or '')}' holds nothing")
    needed = math.prod(shape) * node.dtype.itemsize
    region = [slice(0, size) for size in shape] if region is None else region
    wanted = tuple(each.stop - each.start for each in region)
    if _places(node):
        _check_places(node)
        check_room(f"'{printable(node.name or '')}'", wanted, node.dtype)
        return None
    held = Path(node.file.filename).stat().st_size
    stored = node.id.get_storage_size()
    if needed and (stored > held or needed > MOST_DEFLATED * stored):
        raise ValueError(f"'{printable(node.name or '')}' promises {needed:,} bytes and holds {min(stored, held):,}")
    check_room(f"'{printable(node.name or '')}'", wanted, node.dtype)
    if plist.get_layout() == h5py.h5d.CONTIGUOUS:
        offset = node.id.get_offset()
        if needed and (stored != needed or offset is None or offset + needed > held):
            raise ValueError(f"'{printable(node.name or '')}' ends beyond the end of the file")
        return np.asarray(node[tuple(region)])
    if plist.get_layout() != h5py.h5d.CHUNKED:  # compact: up to 64 kB inside the header
        return np.asarray(node[tuple(region)])
    _have_filters(node)
    chunks = _chunks(node, held)
    filters = [plist.get_filter(index)[0] for index in range(plist.get_nfilters())]
    # the numbers lie in the file as numpy has them in memory, unless their type says otherwise
    plain = node.id.get_type() == h5py.h5t.py_create(node.dtype)
    if not plain or not set(filters) <= {_DEFLATE, _SHUFFLE}:
        return None
    whole = len(chunks) == math.prod(-(-size // step) for size, step in zip(shape, node.chunks, strict=True))
    array = np.empty(wanted, node.dtype) if whole else np.full(wanted, node.fillvalue, node.dtype)
    with Path(node.file.filename).open("rb") as file:
        for chunk in chunks:
            axes = list(zip(chunk.chunk_offset, node.chunks, region, strict=True))
            common = [(max(low, of.start), min(low + step, of.stop)) for low, step, of in axes]
            if any(start >= stop for start, stop in common):
                continue
            numbers = _unpack(file, chunk, filters, node)
            place = tuple(slice(a - of.start, b - of.start) for (a, b), of in zip(common, region, strict=True))
            inside = zip(common, chunk.chunk_offset, strict=True)
            array[place] = numbers[tuple(slice(a - low, b - low) for (a, b), low in inside)]
    return array


def _have_filters(node: Any) -> None:
    """See to it that what the data set is compressed with can be undone."""
    plist = node.id.get_create_plist()
    codes = [plist.get_filter(index)[0] for index in range(plist.get_nfilters())]
    if all(h5py.h5z.filter_avail(code) for code in codes):
        return
    with contextlib.suppress(ImportError):
        import hdf5plugin  # noqa: F401 - registers its filters
    for code in codes:
        if not h5py.h5z.filter_avail(code):
            raise RefusedError(
                f"'{printable(node.name or '')}' is compressed with the HDF5 filter {code}; that takes a library that "
                "is not installed: pip install 'hsidenoise[hdf5]'"
            )


def _chunks(node: Any, held: int) -> list[Any]:
    """Where the chunks of a data set lie, checked against its sizes and the file's."""
    most = math.prod(-(-size // step) for size, step in zip(node.shape, node.chunks, strict=True))
    found: dict[tuple[int, ...], Any] = {}

    def keep(chunk: Any) -> bool | None:
        found[chunk.chunk_offset] = chunk
        wrong = chunk.byte_offset + chunk.size > held or any(
            low % step or low >= size
            for low, step, size in zip(chunk.chunk_offset, node.chunks, node.shape, strict=True)
        )
        counted[0] += 1
        return True if wrong or counted[0] > most else None  # True ends the walk

    counted = [0]
    if node.id.chunk_iter(keep) or len(found) != counted[0]:
        raise ValueError(f"the index of the chunks of '{printable(node.name or '')}' makes no sense")
    return list(found.values())


def _unpack(file: BinaryIO, chunk: Any, filters: list[int], node: Any) -> np.ndarray:
    """The numbers of one chunk."""
    item = node.dtype.itemsize
    size = math.prod(node.chunks) * item
    if size > MOST_DEFLATED * max(chunk.size, 1):
        raise ValueError(f"a chunk of '{printable(node.name or '')}' promises {size:,} bytes and holds {chunk.size:,}")
    file.seek(chunk.byte_offset)
    data = file.read(chunk.size)
    for index, code in reversed(list(enumerate(filters))):
        if chunk.filter_mask >> index & 1:  # left out when this chunk was written
            continue
        if code == _DEFLATE:
            packed = zlib.decompressobj()
            try:
                data = packed.decompress(data, size + 1)
            except zlib.error:
                # a chunk across the edge may be stored as it is, with no mark of its own
                edge = any(
                    low + step > most
                    for low, step, most in zip(chunk.chunk_offset, node.chunks, node.shape, strict=True)
                )
                if edge and len(data) == size:
                    break
                raise
            if not packed.eof:
                raise ValueError(f"a chunk of '{printable(node.name or '')}' is not as long as it should be")
        elif item > 1 and len(data) == size:
            data = np.frombuffer(data, np.uint8).reshape(item, -1).T.tobytes()
    if len(data) != size:
        raise ValueError(f"a chunk of '{printable(node.name or '')}' is not as long as it should be")
    return np.frombuffer(data, node.dtype).reshape(node.chunks)


def _in_child(request: dict[str, Any], *, read: np.ndarray | None = None, write: np.ndarray | None = None) -> None:
    """Let another process read into one array, or write another, and say in one line what went wrong there."""
    size = sum(array.nbytes for array in (read, write) if array is not None)
    root = str(Path(__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-c", "from hsidenoise.data.formats.hdf5 import _child; _child()", json.dumps(request)]
    limit = _SECONDS + size / _BYTES_A_SECOND
    content = b"" if write is None else _bytes(write)
    try:
        done = subprocess.run(command, input=content, capture_output=True, timeout=limit, env=environment, check=False)
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"gave no answer in {limit:.0f} s") from error
    if done.returncode < 0:
        what = signal.Signals(-done.returncode).name
        raise ValueError(
            f"the HDF5 library {'comes to no end with' if what == 'SIGXCPU' else 'crashed on'} it ({what})"
        )
    if done.returncode or (read is not None and len(done.stdout) != read.nbytes):
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(lines[-1] if lines else "not as long as it should be")
    if read is not None:
        _bytes(read)[:] = done.stdout


def _bytes(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _child() -> None:
    """What the other process does: look at a file, read a data set onto stdout, or write one from stdin."""
    request = json.loads(sys.argv[1])
    try:
        if request["do"] == "look":
            _be_done_soon()
            # what is wrong there in other ways is said by who asked
            with contextlib.suppress(Exception), _Links(Path(request["path"]), request["allow"]) as links:
                for item in links.variables():
                    if len(item.shape) == 3 and item.foreign:
                        links.about(item.name)
                    _be_done_soon()
        elif request["do"] == "read":
            with _Links(Path(request["path"]), request["allow"]) as links:
                _have_filters(links.find(request["name"]))
                part = () if request["part"] is None else tuple(slice(*bounds) for bounds in request["part"])
                stored = np.ascontiguousarray(links.find(request["name"])[part])
            sys.stdout.buffer.write(_bytes(stored))
            sys.stdout.buffer.flush()
        else:
            array = np.frombuffer(sys.stdin.buffer.read(), request["dtype"]).reshape(request["shape"])
            with _Links(Path(request["path"]), allow_external=True, mode="r+") as links:
                _write(links, request["name"], array, request["record"])
    except Exception as error:  # one line for the process that asked
        raise SystemExit((str(error).splitlines() or [type(error).__name__])[0]) from error


def _be_done_soon() -> None:
    """End this process if it goes on computing; how busy the machine is does not count."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time()) + _LOOK, resource.RLIM_INFINITY))


def _write(links: _Links, name: str, array: np.ndarray, record: str | None) -> None:
    """Put numbers into a data set that the file owns, or a plain data set in the place of another."""
    folder, _, leaf = _ELEMENT.sub(r"/\2{\1}", name).rpartition("/")
    parent = links.find(folder or "/")
    attributes: list[tuple[str, Any, Any]] = []
    with contextlib.suppress(KeyError):
        node = links.find(name)
        if node.file == links.file and not _places(node) and node.dtype == array.dtype:
            _have_filters(node)
            node[...] = array
            _keep(node, record)
            return
        for key in node.attrs:
            kind = node.attrs.get_id(key).dtype
            if not kind.hasobject or h5py.check_string_dtype(kind):  # a reference would lead nowhere
                attributes.append((key, node.attrs[key], kind))
    if leaf.endswith("}") or "(" in name:
        raise OSError(f"'{printable(name)}' is of another type in the file, which cannot be changed inside of a cell")
    if parent.file != links.file:
        raise OSError(f"'{printable(name)}' lies in a group of another file")
    del parent[leaf]
    created = parent.create_dataset(leaf, data=array, **storage_options(array.shape, array.size))
    for key, value, kind in attributes:
        created.attrs.create(key, value, dtype=kind)
    _keep(created, record)


def _keep(node: Any, record: str | None) -> None:
    if record is not None:  # of a fixed length where that is possible: others lie in a heap, see `_look`
        node.attrs[RECORD] = np.bytes_(record.encode()) if record.isascii() and len(record) < _LONG - 1024 else record
