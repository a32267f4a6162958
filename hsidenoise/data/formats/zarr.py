"""zarr stores of version 3 or 2 in a folder, by zarr 3 (extra ``zarr``); a new one is of version 3.

A new store keeps whole spectra in a chunk, so that a tile of the image is read and written without the rest.

References:
    Zarr core specification 3.0. xarray's encoding of dimensions and CF attributes.
"""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hsidenoise.data.formats.base import (
    Format,
    NewCube,
    Part,
    Wavelengths,
    axes_of,
    beside,
    check_room,
    chunks_of,
    described,
    in_nm,
    merged,
    missing_extra,
    reading,
)
from hsidenoise.data.formats.netcdf import facts_of
from hsidenoise.data.layout import Layout, Variable, find_wavelengths
from hsidenoise.data.metadata import RECORD, Metadata

_MARKS = ("zarr.json", ".zgroup", ".zarray")
_DEEPEST = 32


@contextmanager
def _zarr() -> Iterator[Any]:
    try:
        import zarr
    except ImportError as error:
        raise missing_extra("zarr", "zarr") from error
    yield zarr


class _Zarr(Format):
    name, kinds, suffixes, folder = "zarr", ("zarr",), (".zarr",), True
    holds = frozenset(
        {"wavelengths", "fwhm", "band_names", "good_bands", "nodata", "crs", "transform", "record", "attributes"}
    )

    def ready(self) -> None:
        with _zarr():
            pass

    def recognises(self, path: Path) -> bool:
        return path.is_dir() and (path.suffix.lower() == ".zarr" or any((path / mark).is_file() for mark in _MARKS))

    def list_variables(self, path: Path, *, allow_external: bool = False) -> list[Variable]:
        with _zarr() as zarr, reading(path):
            return [_variable(name, array) for name, array in _arrays(zarr, path)]

    def load_variable(
        self, path: Path, name: str, part: Part | None = None, *, allow_external: bool = False
    ) -> np.ndarray:
        with _zarr() as zarr, reading(path):
            array = dict(_arrays(zarr, path))[name]
            whole = tuple(slice(0, size) for size in array.shape)
            bounds = [each.indices(size)[:2] for each, size in zip(part or whole, array.shape, strict=True)]
            check_room(f"'{name}'", [stop - start for start, stop in bounds], array.dtype)
            return np.asarray(array[tuple(slice(*each) for each in bounds)])

    def read_metadata(
        self, path: Path, layout: Layout, variables: Sequence[Variable], *, allow_external: bool = False
    ) -> tuple[Wavelengths, Metadata]:
        def load(name: str) -> np.ndarray:
            return self.load_variable(path, name)

        with _zarr() as zarr, reading(path):
            arrays = dict(_arrays(zarr, path))
            root = zarr.open(store=str(path), mode="r")
            about = dict(root.attrs) | dict(arrays[layout.key].attrs)
            mapping = about.get("grid_mapping")
            group = layout.key.rpartition("/")[0]
            for name in (f"{group}/{mapping}".strip("/"), str(mapping)):
                if name in arrays:
                    about |= dict(arrays[name].attrs)
                    break
        listed, said = facts_of(_simple(about), layout.bands, layout.key)
        known = in_nm(load, lambda name: dict(arrays[name].attrs))
        wavelengths = find_wavelengths(variables, known, layout.bands)
        return listed if wavelengths is None else wavelengths, merged(said, beside(variables, known, layout.bands))

    def write_like(
        self, source: Path, targets: Sequence[Path], layout: Layout, stored: np.ndarray, suffix: str, record: str | None
    ) -> None:
        shutil.copytree(source, targets[0], dirs_exist_ok=True)
        with _zarr() as zarr:
            array = dict(_arrays(zarr, targets[0], mode="r+"))[layout.key]
            array[...] = stored
            if record is not None:
                array.attrs[RECORD] = record
                _consolidate(zarr, targets[0])

    def write_new(self, targets: Sequence[Path], new: NewCube) -> None:
        facts = described(new)
        with _zarr() as zarr:
            root = zarr.create_group(store=str(targets[0]), zarr_format=3, attributes=_json(facts.attributes))

            def put(key: str, array: np.ndarray, dimensions: Sequence[str], about: dict[str, Any], **how: Any) -> None:
                made = root.create_array(
                    key,
                    shape=array.shape,
                    dtype=array.dtype.newbyteorder("="),
                    dimension_names=list(dimensions),
                    attributes=_json(about),
                    chunks=how.get("chunks", array.shape or "auto"),
                )
                made[...] = array

            put(new.name, new.values, facts.dimensions, facts.of_cube, chunks=chunks_of(new.values.shape))
            for key, (array, about) in facts.coordinates.items():
                put(key, array, [key], about)
            for key, array in facts.vectors.items():
                put(key, array, facts.dimensions[:1], {})
            if facts.mapping:
                put("spatial_ref", np.array(0, np.int32), [], facts.mapping)


def _consolidate(zarr: Any, path: Path) -> None:
    """Bring the copy of all attributes up to date that some stores keep at their root."""
    root = zarr.open(store=str(path), mode="r")
    if getattr(root.metadata, "consolidated_metadata", None) is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that version 3 says nothing of such a copy
            zarr.consolidate_metadata(str(path))


def _arrays(zarr: Any, path: Path, mode: str = "r") -> Iterator[tuple[str, Any]]:
    """Every array of a store with its path in it; a store that is one array has no path for it."""
    root = zarr.open(store=str(path), mode=mode)
    if isinstance(root, zarr.Array):
        yield "cube", root
        return
    yield from _below(zarr, root, "", 0)


def _below(zarr: Any, group: Any, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    for name, node in sorted(group.members()):
        if isinstance(node, zarr.Array):
            yield prefix + name, node
        elif depth < _DEEPEST:
            yield from _below(zarr, node, f"{prefix}{name}/", depth + 1)


def _variable(name: str, array: Any) -> Variable:
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS") or ()
    axes = axes_of([str(each) for each in names], array.shape)
    kind = array.dtype.kind
    note = f"chunks of {'x'.join(map(str, array.chunks))}" if kind in "iuf" else f"{array.dtype} array"
    return Variable(name, tuple(array.shape), array.dtype if kind in "iufcb" else None, note, foreign=True, axes=axes)


def _simple(about: dict[str, Any]) -> dict[str, Any]:
    """Attributes that are text, numbers, or lists of them; others as JSON."""
    return {
        key: value if isinstance(value, str | int | float | list) else json.dumps(value) for key, value in about.items()
    }


def _json(about: dict[str, Any]) -> dict[str, Any]:
    """Attributes as JSON has them."""
    plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in about.items()}
    return {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in plain.items()
    }


FORMAT = _Zarr()
