"""GeoTIFF, by rasterio (extra ``geo``): values with coordinate system, position, nodata value and descriptions.

References:
    OGC GeoTIFF 1.1, 19-008r4. GDAL, "GTiff" driver and "IMAGERY" metadata domain (wavelengths).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from hsidenoise.data.formats.base import (
    NM,
    Format,
    NewCube,
    Part,
    RefusedError,
    Wavelengths,
    check_room,
    missing_extra,
    reading,
)
from hsidenoise.data.layout import Layout, Variable, leaf
from hsidenoise.data.metadata import RECORD, Metadata

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_LOSSY = ("jpeg", "webp", "jxl", "lerc", "lerc_deflate", "lerc_zstd")  # which would not keep what is computed
_SCALING = {"scale_factor": "scales", "add_offset": "offsets"}  # name in NetCDF and in rasterio
_SMALL = 1 << 28  # bytes
_STALE = "STATISTICS_"  # of values that are others now


@contextmanager
def _rasterio() -> Iterator[Any]:
    try:
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning
    except ImportError as error:
        raise missing_extra("GeoTIFF", "geo") from error
    with (
        warnings.catch_warnings(),
        rasterio.Env(GDAL_PAM_ENABLED=False, GTIFF_IMPLICIT_JPEG_OVR=False, GDAL_TIFF_INTERNAL_MASK=True),
    ):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield rasterio


class _GeoTiff(Format):
    name, kinds, suffixes = "GeoTIFF", ("geotiff",), (".tif", ".tiff")
    holds = frozenset(
        {"wavelengths", "fwhm", "band_names", "good_bands", "nodata", "crs", "transform", "record", "attributes"}
    )
    types = frozenset({"u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"})

    def ready(self) -> None:
        with _rasterio():
            pass

    def recognises(self, path: Path) -> bool:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(4) in _MAGIC

    def list_variables(self, path: Path, *, allow_external: bool = False) -> list[Variable]:
        with _rasterio() as rasterio, reading(path), rasterio.open(path, driver="GTiff") as file:
            if len(set(file.dtypes)) > 1:
                raise RefusedError(
                    f"its bands are of several types: {', '.join(sorted(set(file.dtypes)))}; cut it before"
                )
            dtype = np.dtype(file.dtypes[0])
            if pages := _pages(rasterio, path):  # what a page is, a band or a line, nobody says
                shape = (len(pages), file.height, file.width)
                return [Variable(leaf(path.stem), shape, dtype, f"a page each of {_note(file)}", foreign=True)]
            shape = (file.count, file.height, file.width)
            return [Variable(leaf(path.stem), shape, dtype, _note(file), foreign=True, axes="bhw")]

    def load_variable(
        self, path: Path, name: str, part: Part | None = None, *, allow_external: bool = False
    ) -> np.ndarray:
        (variable,) = self.list_variables(path)
        whole = tuple(slice(0, size) for size in variable.shape)
        bounds = [each.indices(size)[:2] for each, size in zip(part or whole, variable.shape, strict=True)]
        check = [stop - start for start, stop in bounds]
        with _rasterio() as rasterio, reading(path), rasterio.open(path, driver="GTiff") as file:
            check_room(f"'{variable.label}'", check, np.dtype(file.dtypes[0]))
            if pages := _pages(rasterio, path):
                found = np.empty(check, file.dtypes[0])
                for image, name in zip(found, pages[slice(*bounds[0])], strict=True):
                    with rasterio.open(name) as page:
                        page.read(1, window=tuple(bounds[1:]), out=image)
                return found
            bands = [band + 1 for band in range(*bounds[0])]
            return np.asarray(file.read(bands, window=tuple(bounds[1:])))

    def read_metadata(
        self, path: Path, layout: Layout, variables: Sequence[Variable], *, allow_external: bool = False
    ) -> tuple[Wavelengths, Metadata]:
        with _rasterio() as rasterio, reading(path), rasterio.open(path, driver="GTiff") as file:
            tags = [file.tags(band) for band in file.indexes]
            imagery = [file.tags(band, ns="IMAGERY") for band in file.indexes]
            micro = _numbers(imagery, "CENTRAL_WAVELENGTH_UM", 1e3), _numbers(imagery, "FWHM_UM", 1e3)
            unit = NM.get(tags[0].get("wavelength_units", "nm").lower().removesuffix("s"), 1.0) if tags else 1.0
            plain = _numbers(tags, "wavelength", unit), _numbers(tags, "fwhm", unit)
            good = _numbers(tags, "good_band", 1.0)
            named = any(file.descriptions)
            if _pages(rasterio, path):
                about = {key: value for key, value in file.tags().items() if key != RECORD}
                return None, Metadata(nodata=file.nodata, record=file.tags().get(RECORD), attributes=about)
            if file.subdatasets:
                count = len(file.subdatasets)
                warnings.warn(
                    f"{path}: the first of {count} images is read, which differ in size or type", stacklevel=5
                )
            return micro[0] if plain[0] is None else plain[0], Metadata(
                fwhm=micro[1] if plain[1] is None else plain[1],
                band_names=tuple(each or "" for each in file.descriptions) if named else None,
                good_bands=None if good is None else good != 0,
                nodata=None if file.nodata is None else float(file.nodata),
                crs=file.crs.to_wkt() if file.crs else None,
                transform=None if file.transform.is_identity else tuple(file.transform)[:6],
                record=file.tags().get(RECORD),
                attributes={key: value for key, value in file.tags().items() if key not in ("AREA_OR_POINT", RECORD)}
                | _scaling(file),
            )

    def own_mask(self, path: Path) -> Bool[np.ndarray, "height width"] | None:
        with _rasterio() as rasterio, reading(path), rasterio.open(path, driver="GTiff") as file:
            flags = [] if file.subdatasets else file.mask_flag_enums[0]
            masked = rasterio.enums.MaskFlags.per_dataset in flags and rasterio.enums.MaskFlags.alpha not in flags
            return np.asarray(file.read_masks(1)) != 0 if masked else None

    def write_like(
        self, source: Path, targets: Sequence[Path], layout: Layout, stored: np.ndarray, suffix: str, record: str | None
    ) -> None:
        mask = self.own_mask(source)
        with _rasterio() as rasterio:
            if pages := _pages(rasterio, source):
                for number, (name, image) in enumerate(zip(pages, stored, strict=True)):
                    with rasterio.open(name) as old:
                        more = {"APPEND_SUBDATASET": True} if number else {}
                        _copy(rasterio, old, targets[0], image[None], None if number else record, None, more)
            else:
                with rasterio.open(source, driver="GTiff") as old:
                    _copy(rasterio, old, targets[0], stored, record, mask, {})
        _check(targets[0], stored)

    def write_new(self, targets: Sequence[Path], new: NewCube) -> None:
        wavelengths, metadata = new.wavelengths, new.metadata
        values = new.values.astype(new.values.dtype.newbyteorder("="), copy=False)
        bands, height, width = values.shape
        with _rasterio() as rasterio:
            transform = None if metadata.transform is None else rasterio.Affine(*metadata.transform)
            profile = {"driver": "GTiff", "dtype": values.dtype.name, "count": bands, "height": height, "width": width}
            profile |= {"crs": metadata.crs, "transform": transform, "nodata": _nodata(metadata, values.dtype)}
            profile |= {"compress": "deflate", "interleave": "band", "BIGTIFF": "IF_SAFER"}
            with _created(rasterio, targets[0], values.nbytes, profile) as file:
                _put(file, values)
                attributes = dict(metadata.attributes)
                for key, kind in _SCALING.items():
                    value = attributes.get(key, ())
                    try:
                        numbers = np.array(value.strip("{}").split(",") if isinstance(value, str) else value, float)
                        setattr(file, kind, tuple(np.broadcast_to(numbers.ravel(), bands)))
                        del attributes[key]
                    except (KeyError, TypeError, ValueError):  # there is none, or it stays a tag
                        continue
                file.update_tags(**{re.sub(r"[=\0]", "_", key): str(each) for key, each in attributes.items()})
                if metadata.record is not None:
                    file.update_tags(**{RECORD: metadata.record})
                for index in range(bands):
                    tags: dict[str, str] = {}
                    if wavelengths is not None:
                        tags |= {"wavelength": f"{wavelengths[index]:.12g}", "wavelength_units": "Nanometers"}
                        micro = {"CENTRAL_WAVELENGTH_UM": f"{wavelengths[index] / 1000:.12g}"}
                        if metadata.fwhm is not None:
                            micro["FWHM_UM"] = f"{metadata.fwhm[index] / 1000:.12g}"
                        file.update_tags(index + 1, ns="IMAGERY", **micro)
                    if metadata.fwhm is not None:
                        tags["fwhm"] = f"{metadata.fwhm[index]:.12g}"
                    if metadata.good_bands is not None:
                        tags["good_band"] = str(int(metadata.good_bands[index]))
                    file.update_tags(index + 1, **tags)
                    if metadata.band_names is not None:
                        file.set_band_description(index + 1, metadata.band_names[index])
                    elif wavelengths is not None:
                        file.set_band_description(index + 1, f"{wavelengths[index]:.6g} nm")
        _check(targets[0], values)


def _pages(rasterio: Any, path: Path) -> list[str]:
    """The images of a file that is a stack of several of one band, alike in size and type; none of another."""
    with rasterio.open(path, driver="GTiff") as file:
        names = sorted(file.subdatasets, key=lambda name: int(name.split(":")[1]))
    kinds = set()
    for name in names:
        with rasterio.open(name) as page:
            kinds.add((page.count, page.shape, page.dtypes[0]))
        if len(kinds) > 1 or page.count > 1:
            return []
    return names


def _copy(
    rasterio: Any,
    old: Any,
    target: Path,
    stored: np.ndarray,
    record: str | None,
    mask: np.ndarray | None,
    more: dict[str, Any],
) -> None:
    """Write an image like another one."""
    profile = dict(old.profile) | {"driver": "GTiff", "BIGTIFF": "IF_SAFER"} | more
    if str(profile.get("compress", "")).lower() in _LOSSY:
        profile |= {"compress": "deflate", "photometric": None}
    elif old.photometric is not None:
        profile["photometric"] = old.photometric.value
    profile = {key: value for key, value in profile.items() if value is not None}
    with _created(rasterio, target, stored.nbytes, profile) as new:
        _put(new, stored)
        for space in ("", *(each for each in old.tag_namespaces() if each in ("RPC", "IMD", "IMAGERY"))):
            new.update_tags(ns=space or None, **old.tags(ns=space or None))
        if record is not None:
            new.update_tags(**{RECORD: record})
        for band in old.indexes:
            for space in ("", *(each for each in old.tag_namespaces(band) if each == "IMAGERY")):
                tags = old.tags(band, ns=space or None)
                kept = {key: value for key, value in tags.items() if not key.startswith(_STALE)}
                new.update_tags(band, ns=space or None, **kept)
            if old.descriptions[band - 1]:
                new.set_band_description(band, old.descriptions[band - 1])
            if old.units[band - 1]:
                new.set_band_unit(band, old.units[band - 1])
        new.scales, new.offsets, new.colorinterp = old.scales, old.offsets, old.colorinterp
        if old.gcps[0]:
            new.gcps = old.gcps
        if mask is not None:
            new.write_mask(mask)


@contextmanager
def _created(rasterio: Any, target: Path, size: int, profile: dict[str, Any]) -> Iterator[Any]:
    """A new image, put together in memory if it is not large: on a full disk the library prints lines of its own."""
    if size >= _SMALL or "APPEND_SUBDATASET" in profile:
        with rasterio.open(target, "w", **profile) as file:
            yield file
        return
    with rasterio.MemoryFile(ext=".tif") as memory:
        with memory.open(**profile) as file:
            yield file
        target.write_bytes(memory.getbuffer())


def _note(file: Any) -> str:
    blocks = "x".join(map(str, file.block_shapes[0]))
    return f"blocks of {blocks}" + (f", {file.compression.value}" if file.compression else "")


def _scaling(file: Any) -> dict[str, Any]:
    """How values become quantities: one number, or one for each band."""
    found = {key: list(map(float, getattr(file, kind))) for key, kind in _SCALING.items()}
    if set(found["scale_factor"]) == {1.0} and set(found["add_offset"]) == {0.0}:
        return {}
    return {key: numbers[0] if len(set(numbers)) == 1 else numbers for key, numbers in found.items()}


def _numbers(tags: Sequence[dict[str, str]], name: str, scale: float) -> Any:
    """A number of each band; None if a band has none."""
    try:
        return np.array([float(each[name]) * scale for each in tags])
    except (KeyError, ValueError):
        return None


def _nodata(metadata: Metadata, dtype: np.dtype[Any]) -> float | None:
    if metadata.nodata is None or dtype.kind == "f":
        return metadata.nodata
    limits = np.iinfo(dtype)
    fits = limits.min <= metadata.nodata <= limits.max and float(metadata.nodata).is_integer()
    return metadata.nodata if fits else None


def _put(file: Any, stored: np.ndarray) -> None:
    for band, plane in enumerate(stored, start=1):
        file.write(np.ascontiguousarray(plane), band)


def _check(path: Path, stored: np.ndarray) -> None:
    """Read back what was written: on a full disk the library closes a file without a word."""
    with _rasterio() as rasterio:
        try:
            same = all(
                np.array_equal(found, plane, equal_nan=plane.dtype.kind == "f")
                for found, plane in zip(_planes(rasterio, path), stored, strict=True)
            )
        except (rasterio.errors.RasterioError, ValueError) as error:
            raise OSError("the file could not be written whole; is the disk full?") from error
    if not same:
        raise OSError("the file could not be written whole; is the disk full?")


def _planes(rasterio: Any, path: Path) -> Iterator[np.ndarray]:
    for name in (pages := _pages(rasterio, path)) or [str(path)]:
        with rasterio.open(name) as file:
            yield from (file.read(band) for band in ([1] if pages else file.indexes))


FORMAT = _GeoTiff()
