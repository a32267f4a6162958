"""HDF5 files (MATLAB v7.3 and others): what they hold, one data set of them, and putting one anew in its place.

A file from elsewhere is not to be trusted. So nothing outside of it is opened unless the caller allows it
(:mod:`hsidenoise.data.formats.hdf5_tree`), and nothing outside the copy is ever written. Chunks are checked and
unpacked here, because the library reads beyond a chunk that is shorter than its index says. What it has to read or
write itself happens in a process of its own, which may crash without taking the caller along; so does the first look
at a file that may hold virtual data sets, since the library (HDF5 2.0) runs over its stack, or for ever, where it opens
one whose list of parts is damaged.

References:
    HDF Group, "HDF5 File Format Specification 3.0", sections III.A (chunk indices) and IV.A.2 (object headers).
"""

import contextlib
import functools
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from hsidenoise.data.formats.base import RefusedError, check_room
from hsidenoise.data.formats.hdf5_tree import ELEMENT, LONG, Links, places_of
from hsidenoise.data.formats.mat5 import MOST_DEFLATED
from hsidenoise.data.layout import ELSEWHERE, Variable, printable
from hsidenoise.data.metadata import RECORD

_DEFLATE, _SHUFFLE = 1, 2  # registered numbers of the filters that are undone here
_SECONDS, _BYTES_A_SECOND = 60, 1 << 22  # patience with the process that reads or writes: so long, and for the size
_LOOK = 1  # seconds of computing that a first look may take at one data set
_HEAPS, _SCANNED = (b"GCOL", b"#refs#"), 1 << 26  # where lists of parts and cells lie; a larger file is not searched


def list_hdf5(path: Path, *, allow_external: bool = False) -> list[Variable]:
    """List the data sets of an HDF5 file without loading them; each group is entered once, however many paths it has.

    Raises:
        OSError, RuntimeError, KeyError, ValueError: If the file is damaged.
    """
    _look(path, allow_external)
    with Links(path, allow_external) as links:
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
    with Links(path, allow_external) as links:
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


class _Patient(io.FileIO):
    """A file that takes everything, and keeps what went wrong for later.

    HDF5 takes the process down with it (bus error) where it cannot close a file for want of room.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        try:
            while self.error is None and len(left):
                left = left[super().write(left) :]
        except OSError as error:
            self.error = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size) if self.error is None else size or 0
        except OSError as error:
            self.error = error
            return size or 0


@contextlib.contextmanager
def new_hdf5(path: Path, **options: Any) -> Iterator[h5py.File]:
    """A new file to write to.

    Args:
        path: The file, overwritten.
        **options: Of ``h5py.File``.

    Raises:
        OSError: If it could not be written whole.
    """
    with _Patient(path, "w+b") as stream:
        try:
            with h5py.File(stream, "w", **options) as file:
                yield file
        finally:
            if stream.error is not None:
                raise stream.error


def storage_options(shape: tuple[int, ...], size: int) -> dict[str, Any]:
    """How a new data set is stored: one band a chunk, as MATLAB and the readers of ICVL expect to step through them."""
    if len(shape) < 3 or not size:
        return {}
    return {"chunks": (1, *shape[1:]), "compression": "gzip", "compression_opts": 3, "shuffle": True}


def about_hdf5(path: Path, name: str, *, allow_external: bool = False, alone: bool = False) -> dict[str, Any]:
    """The attributes of a file and of one of its data sets, or of that alone, as text, numbers and lists.

    Raises:
        OSError, RuntimeError, KeyError, ValueError: If the file is damaged.
    """
    _look(path, allow_external)
    with Links(path, allow_external) as links:
        return links.about(name, alone)


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


def _load(node: Any, links: Links, region: list[slice] | None) -> np.ndarray | None:
    """A data set or a region of it as it is stored; None where only the library can read it."""
    shape, plist = node.shape, node.id.get_create_plist()
    if shape is None:
        raise ValueError(f"'{printable(node.name or '')}' holds nothing")
    needed = math.prod(shape) * node.dtype.itemsize
    region = [slice(0, size) for size in shape] if region is None else region
    wanted = tuple(each.stop - each.start for each in region)
    if places_of(node):
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
            with contextlib.suppress(Exception), Links(Path(request["path"]), request["allow"]) as links:
                for item in links.variables():
                    if len(item.shape) == 3 and item.foreign:
                        links.about(item.name)
                    _be_done_soon()
        elif request["do"] == "read":
            with Links(Path(request["path"]), request["allow"]) as links:
                _have_filters(links.find(request["name"]))
                part = () if request["part"] is None else tuple(slice(*bounds) for bounds in request["part"])
                stored = np.ascontiguousarray(links.find(request["name"])[part])
            sys.stdout.buffer.write(_bytes(stored))
            sys.stdout.buffer.flush()
        else:
            array = np.frombuffer(sys.stdin.buffer.read(), request["dtype"]).reshape(request["shape"])
            with Links(Path(request["path"]), allow_external=True, mode="r+") as links:
                _write(links, request["name"], array, request["record"])
    except Exception as error:  # one line for the process that asked
        raise SystemExit((str(error).splitlines() or [type(error).__name__])[0]) from error


def _be_done_soon() -> None:
    """End this process if it goes on computing; how busy the machine is does not count."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time()) + _LOOK, resource.RLIM_INFINITY))


def _write(links: Links, name: str, array: np.ndarray, record: str | None) -> None:
    """Put numbers into a data set that the file owns, or a plain data set in the place of another."""
    folder, _, leaf = ELEMENT.sub(r"/\2{\1}", name).rpartition("/")
    parent = links.find(folder or "/")
    attributes: list[tuple[str, Any, Any]] = []
    with contextlib.suppress(KeyError):
        node = links.find(name)
        if node.file == links.file and not places_of(node) and node.dtype == array.dtype:
            _have_filters(node)
            node[...] = array
            put_record(node, record)
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
    put_record(created, record)


def put_record(node: Any, record: str | None) -> None:
    """Make a record an attribute of a data set; None leaves what is there."""
    if record is not None:  # of a fixed length where that is possible: others lie in a heap, see `_look`
        node.attrs[RECORD] = np.bytes_(record.encode()) if record.isascii() and len(record) < LONG - 1024 else record
