"""HDF5 and NetCDF-4 files that MATLAB did not write: EMIT, PRISMA, NEON, xarray's, anybody's.

A value is read and written as it is stored: ``scale_factor`` and ``add_offset`` stay what they are, attributes. New
files are NetCDF-4 by the conventions that xarray and rioxarray read: named dimensions, ``_FillValue``, a grid mapping.

References:
    Unidata, "NetCDF-4 file format". CF conventions 1.11, sections 4, 5.6. PRISMA Products Specification, ASI 2020.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hsidenoise.data.formats.base import (
    Format,
    NewCube,
    Part,
    Wavelengths,
    beside,
    chunks_of,
    described,
    in_nm,
    merged,
    reading,
)
from hsidenoise.data.formats.hdf5 import about_hdf5, list_hdf5, load_hdf5, new_hdf5, replace_hdf5
from hsidenoise.data.layout import Layout, Variable, find_wavelengths
from hsidenoise.data.metadata import RECORD, Metadata

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_NODATA = ("fillvalue", "missingvalue", "nodata", "nodatavalue", "dataignorevalue")
_NO_VARIABLE = "This is a netCDF dimension but not a netCDF variable.{:10d}"
_OWN = {"grid_mapping", "crs_wkt", "spatial_ref", "GeoTransform", "CLASS", "NAME", "REFERENCE_LIST", "DIMENSION_LIST"}
_OWN |= {
    "DIMENSION_LABELS",
    "_Netcdf4Dimid",
    "_Netcdf4Coordinates",
    "_NCProperties",
    "_nc3_strict",
    "band_names",
    "Conventions",
    RECORD,
}


def facts_of(about: Mapping[str, Any], bands: int, key: str) -> tuple[Wavelengths, Metadata]:
    """What attributes say of a cube, by the names of CF, GDAL, NEON and PRISMA."""
    plain = {re.sub(r"[^a-z]", "", name.lower()): value for name, value in about.items()}
    nodata = next((plain[name] for name in _NODATA if isinstance(plain.get(name), int | float)), None)
    wavelengths, fwhm, good = None, None, None
    part = re.search(r"vnir|swir", key, re.IGNORECASE)
    if part is not None:
        lists = [about.get(f"List_{what}_{part[0].capitalize()}") for what in ("Cw", "Fwhm")]
        if all(isinstance(each, list) and len(each) == bands for each in lists):
            wavelengths, fwhm = np.array(lists[0], np.float64), np.array(lists[1], np.float64)
            good = wavelengths > 0  # PRISMA gives 0 to bands that it does not have
    names = about.get("band_names")
    move = str(about.get("GeoTransform", "")).split()
    transform = None
    if len(move) == 6:
        x, a, b, y, d, e = map(float, move)
        transform = (a, b, x, d, e, y)
    crs = about.get("crs_wkt") or (about.get("spatial_ref") if "grid_mapping" in about else None)
    return wavelengths, Metadata(
        fwhm=fwhm,
        band_names=tuple(names) if isinstance(names, list) and len(names) == bands else None,
        good_bands=good,
        nodata=None if nodata is None else float(nodata),
        crs=str(crs) if crs else None,
        transform=transform,
        record=str(about[RECORD]) if RECORD in about else None,
        attributes={
            name: value for name, value in about.items() if name not in _OWN and _squeezed(name) not in _NODATA
        },
    )


def _squeezed(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


class _Hdf5(Format):
    name, kinds = "HDF5/NetCDF", ("hdf5",)
    suffixes = (".h5", ".hdf5", ".hdf", ".he5", ".nc", ".nc4")
    holds = frozenset(
        {"wavelengths", "fwhm", "band_names", "good_bands", "nodata", "crs", "transform", "record", "attributes"}
    )

    def recognises(self, path: Path) -> bool:
        if not path.is_file() or path.suffix.lower() == ".mat":
            return False
        with path.open("rb") as file:
            return file.read(8) == _SIGNATURE

    def list_variables(self, path: Path, *, allow_external: bool = False) -> list[Variable]:
        with reading(path):
            return list_hdf5(path, allow_external=allow_external)

    def load_variable(
        self, path: Path, name: str, part: Part | None = None, *, allow_external: bool = False
    ) -> np.ndarray:
        with reading(path):
            return load_hdf5(path, name, part, allow_external=allow_external)

    def read_metadata(
        self, path: Path, layout: Layout, variables: Sequence[Variable], *, allow_external: bool = False
    ) -> tuple[Wavelengths, Metadata]:
        def load(name: str) -> np.ndarray:
            return self.load_variable(path, name, allow_external=allow_external)

        with reading(path):
            about = about_hdf5(path, layout.key, allow_external=allow_external)
        listed, said = facts_of(about, layout.bands, layout.key)
        known = in_nm(load, lambda name: about_hdf5(path, name, allow_external=allow_external, alone=True))
        wavelengths = find_wavelengths(variables, known, layout.bands)
        return listed if wavelengths is None else wavelengths, merged(said, beside(variables, known, layout.bands))

    def write_like(
        self, source: Path, targets: Sequence[Path], layout: Layout, stored: np.ndarray, suffix: str, record: str | None
    ) -> None:
        replace_hdf5(source, targets[0], layout.key, stored, record)

    def write_new(self, targets: Sequence[Path], new: NewCube) -> None:
        with new_hdf5(targets[0]) as file:
            facts = described(new)
            chunks = chunks_of(new.values.shape)
            cube = file.create_dataset(
                new.name, data=new.values, chunks=chunks, compression="gzip", compression_opts=3, shuffle=True
            )
            for axis, (dimension, size) in enumerate(zip(facts.dimensions, new.values.shape, strict=True)):
                if dimension in facts.coordinates:
                    scale = file.create_dataset(dimension, data=facts.coordinates[dimension][0])
                    scale.attrs.update(facts.coordinates[dimension][1])
                    scale.make_scale(dimension)
                else:
                    scale = file.create_dataset(dimension, shape=(size,), dtype="f4")
                    scale.make_scale(_NO_VARIABLE.format(size))
                cube.dims[axis].attach_scale(scale)
            for key, array in facts.vectors.items():
                file.create_dataset(key, data=array).dims[0].attach_scale(file[facts.dimensions[0]])
            for key, value in facts.attributes.items():
                file.attrs[key] = value
            cube.attrs.update(facts.of_cube)
            if facts.mapping:
                file.create_dataset("spatial_ref", data=np.int32(0)).attrs.update(facts.mapping)


FORMAT = _Hdf5()
