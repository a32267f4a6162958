"""ENVI files: a header of text beside the bare numbers, band by band (bsq), line by line (bil) or pixel by pixel (bip).

The header of a copy is that of its source, letter by letter, but for what had to change. So it is read and written
here: a library that gives a dictionary back has lost order, case and the commas of a coordinate system by then.

References:
    L3Harris, "ENVI Header Files" (the fields), "Map Information" in the same manual.
"""

import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from hsidenoise.data.formats.base import NM, Format, NewCube, Part, RefusedError, Wavelengths, check_room
from hsidenoise.data.layout import Layout, Variable, leaf, printable
from hsidenoise.data.metadata import RECORD, Metadata
from hsidenoise.system.files import check_source

_TYPES = {
    1: "u1", 2: "i2", 3: "i4", 4: "f4", 5: "f8", 6: "c8", 9: "c16", 12: "u2", 13: "u4", 14: "i8", 15: "u8",
}  # fmt: skip
_AXES = {"bsq": "bhw", "bil": "hbw", "bip": "hwb"}
#: Endings of the file of numbers, in the order in which it is looked for; the usual one is the first of the second row.
_DATA = ("", ".img", ".dat", ".bsq", ".bil", ".bip", ".raw", ".bin")
_LARGEST = 1 << 24  # bytes of a header; one of thousands of bands has a hundred kilobytes
_FIELD = re.compile(r"^[ \t]*(?P<key>[^=;{}\n]+?)[ \t]*=[ \t]*(?P<value>\{[^}]*\}|[^\n]*)", re.MULTILINE)
#: Fields that say how the numbers lie, or that `Metadata` has a place of its own for.
_OWN = frozenset(
    {"samples", "lines", "bands", "header offset", "file type", "data type", "interleave", "byte order", "wavelength"}
    | {"wavelength units", "fwhm", "band names", "bbl", "data ignore value", "map info", "coordinate system string"}
    | {RECORD}
)


class _Header:
    """The fields of a header, and its text."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as stream:
            content = stream.read(_LARGEST)
        if not content.lstrip(b"\xef\xbb\xbf")[:4] == b"ENVI":
            raise ValueError(f"cannot read {path}: an ENVI header begins with the line ENVI; copy it again")
        self.text = content.decode("utf-8", "surrogateescape").replace("\r\n", "\n").replace("\r", "\n")
        self.fields = {
            " ".join(match["key"].lower().split()): match["value"].strip() for match in _FIELD.finditer(self.text)
        }

    def number(self, name: str, default: int | None = None) -> int:
        """A whole number that must be there, unless there is a default."""
        text = self.fields.get(name)
        if text is None and default is not None:
            return default
        if text is None:
            raise ValueError(f"cannot read {self.path}: the ENVI header has no '{name}'; add it")
        if (whole := re.fullmatch(r"(\d{1,18})(\.0*)?\s*(;.*)?", text)) is None:  # perhaps with a comment behind
            raise ValueError(f"cannot read {self.path}: '{name} = {printable(text)}' is not a whole number; correct it")
        return int(whole[1])

    @property
    def interleave(self) -> str:
        """Order of the axes."""
        text = self.fields.get("interleave", "").partition(";")[0].strip().lower()
        if text not in _AXES:
            found = f"'interleave = {printable(text)}'" if text else "no 'interleave'"
            raise ValueError(f"cannot read {self.path}: {found} in the ENVI header; it is bsq, bil or bip: correct it")
        return text

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the numbers, with their byte order."""
        code = self.number("data type")
        if code not in _TYPES:
            known = ", ".join(f"{number} {np.dtype(name)}" for number, name in _TYPES.items())
            raise ValueError(f"cannot read {self.path}: data type {code} is not one of ENVI's ({known}); correct it")
        order = self.number("byte order", 0)
        if order > 1:
            raise ValueError(
                f"cannot read {self.path}: byte order {order} is neither 0 (little) nor 1 (big); correct it"
            )
        return np.dtype("<>"[order] + _TYPES[code])

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes as they lie in the file."""
        sizes = {"b": self.number("bands"), "h": self.number("lines"), "w": self.number("samples")}
        return tuple(sizes[letter] for letter in _AXES[self.interleave])

    def values(self, name: str) -> list[str]:
        """A list in braces; empty if there is none."""
        text = self.fields.get(name, "")
        return [part.strip() for part in text.strip("{}").split(",")] if text.strip("{} \n") else []

    def numbers(self, name: str) -> np.ndarray | None:
        """A list of as many numbers as there are bands; None, with a warning if it is another list, if not."""
        found = self.values(name)
        if found and not found[-1]:  # a comma behind the last
            found.pop()
        if not found:
            return None
        try:
            array = np.array(found, np.float64)
        except ValueError:
            array = np.empty(0)
        if len(array) != self.number("bands"):
            number = f"{len(found)} entries, not all numbers," if not len(array) else f"{len(array)} numbers"
            warnings.warn(
                f"{self.path}: '{name}' has {number} for {self.number('bands')} bands; left aside", stacklevel=6
            )
            return None
        return array


def _replaced(text: str, name: str, value: str) -> str:
    """The text of a header with another value of a field, at its end if it is not there."""
    for match in _FIELD.finditer(text):
        if " ".join(match["key"].lower().split()) == name:
            return text[: match.start("value")] + value + text[match.end("value") :]
    return f"{text.rstrip()}\n{name} = {value}\n"


def _pair(path: Path) -> tuple[Path, Path] | None:
    """The file of numbers and the header of what may be either; None if it is neither."""
    if path.suffix.lower() == ".hdr":
        stem = path.with_suffix("")
        places = [
            stem.with_name(stem.name + ending) for each in _DATA for ending in dict.fromkeys((each, each.upper()))
        ]
        return next(((place, path) for place in places if place.is_file() and place != path), None)
    for header in (path.with_suffix(".hdr"), path.with_name(f"{path.name}.hdr"), path.with_suffix(".HDR")):
        if header.is_file() and (header.stem == path.name or path.suffix.lower() in _DATA):
            return path, header
    return None


def _open(path: Path) -> tuple[Path, _Header]:
    """The file of numbers, and its header, which were checked against each other."""
    pair = _pair(path)
    if pair is None:
        if path.suffix.lower() == ".hdr":
            _Header(path)
            names = ", ".join(f"{path.stem}{ending}" for ending in _DATA)
            raise ValueError(
                f"cannot read {path}: its file of numbers is missing; put it beside this, as one of {names}"
            )
        raise ValueError(
            f"cannot read {path}: its ENVI header is missing; put it beside, as {path.with_suffix('.hdr').name}"
        )
    for each in pair:  # the one that was not named, too
        check_source(each)
    data, header = pair[0], _Header(pair[1])
    kind = header.fields.get("file type", "").lower()
    if "spectral library" in kind:
        raise ValueError(f"cannot read {path}: it is a library of spectra, not an image")
    if header.number("file compression", 0):
        raise ValueError(f"cannot read {path}: the numbers are compressed; save it uncompressed in ENVI")
    offsets = [*header.values("major frame offsets"), *header.values("minor frame offsets")]
    if any(each.strip("0") for each in offsets):
        raise ValueError(f"cannot read {path}: frame offsets are not read; save it without them")
    shape, dtype, offset = header.shape, header.dtype, header.number("header offset", 0)
    if 0 in shape:
        raise ValueError(f"cannot read {header.path}: samples, lines or bands is 0; correct it")
    needed, held = offset + math.prod(shape) * dtype.itemsize, data.stat().st_size
    if needed != held:
        sizes = f"{header.number('samples')} x {header.number('lines')} x {header.number('bands')}"
        raise ValueError(
            f"cannot read {data}: it has {held:,} bytes, its header says {needed:,} (samples x lines x bands {sizes}, "
            f"{dtype.itemsize} bytes each, offset {offset}): "
            + ("the file is truncated, or " if held < needed else "")
            + "the header lies; correct it or copy both again"
        )
    return data, header


class _Envi(Format):
    name, kinds = "ENVI", ("envi",)
    suffixes = (".hdr", ".img", ".dat", ".bsq", ".bil", ".bip")
    holds = frozenset(
        {"wavelengths", "fwhm", "band_names", "good_bands", "nodata", "crs", "transform", "record", "attributes"}
    )
    types = frozenset(_TYPES.values())

    def recognises(self, path: Path) -> bool:
        return path.is_file() and (
            path.suffix.lower() in (".hdr", ".img", ".bsq", ".bil", ".bip") or _pair(path) is not None
        )

    def is_named(self, path: Path) -> bool:
        if path.suffix.lower() != ".hdr" or path.is_dir():  # of the others only their header tells
            return False
        pair = _pair(path)
        return pair is None or _pair(pair[0]) == pair  # a file of numbers with two headers is one cube

    def files(self, path: Path) -> tuple[Path, ...]:
        return _pair(path) or (path,)

    def targets(self, path: Path, source: Path | None) -> tuple[Path, ...]:
        if path.suffix.lower() != ".hdr":
            return path, path.with_suffix(".hdr")
        ending = ".img" if source is None or (pair := _pair(source)) is None else pair[0].suffix
        return path.with_suffix("" if ending.lower() == ".hdr" else ending), path

    def list_variables(self, path: Path, *, allow_external: bool = False) -> list[Variable]:
        data, header = _open(path)
        note = f"{header.interleave}, {'big' if header.dtype.str[0] == '>' else 'little'}-endian"
        axes = _AXES[header.interleave]
        return [Variable(leaf(data.stem), header.shape, header.dtype, note, foreign=True, axes=axes)]

    def load_variable(
        self, path: Path, name: str, part: Part | None = None, *, allow_external: bool = False
    ) -> np.ndarray:
        data, header = _open(path)
        stored = np.memmap(data, header.dtype, "r", header.number("header offset", 0), header.shape)
        taken = stored if part is None else stored[part]
        try:
            check_room(f"'{printable(name)}'", taken.shape, taken.dtype)
        except RefusedError as error:
            raise ValueError(f"{path}: {error}") from error
        return np.array(taken)

    def read_metadata(
        self, path: Path, layout: Layout, variables: Sequence[Variable], *, allow_external: bool = False
    ) -> tuple[Wavelengths, Metadata]:
        _, header = _open(path)
        wavelengths, fwhm, good = (header.numbers(name) for name in ("wavelength", "fwhm", "bbl"))
        unit = header.fields.get("wavelength units", "").lower()
        if wavelengths is not None:
            scale = NM.get(unit, NM.get(unit.removesuffix("s")))
            if scale is None and unit in ("", "unknown"):
                scale = 1e3 if wavelengths.max() < 20 else 1.0
            wavelengths = None if scale is None else wavelengths * scale
            fwhm = None if scale is None or fwhm is None else fwhm * scale
        names = header.values("band names")
        nodata = header.fields.get("data ignore value", "")
        try:
            ignored = float(nodata) if nodata else None
        except ValueError:
            warnings.warn(f"{header.path}: 'data ignore value = {printable(nodata)}' is no number", stacklevel=4)
            ignored = None
        crs = header.fields.get("coordinate system string", "").strip("{} \n") or _utm(header.values("map info"))
        return wavelengths, Metadata(
            fwhm=fwhm,
            band_names=tuple(names) if len(names) == layout.bands else None,
            good_bands=None if good is None else good != 0,
            nodata=ignored,
            crs=crs or None,
            transform=_transform(header.values("map info")),
            record=unquote(header.fields.get(RECORD, "")) or None,
            attributes={name: value for name, value in header.fields.items() if name not in _OWN},
        )

    def write_like(
        self, source: Path, targets: Sequence[Path], layout: Layout, stored: np.ndarray, suffix: str, record: str | None
    ) -> None:
        data, header = _open(source)
        wanted = suffix.lstrip(".")
        text, offset = header.text, header.number("header offset", 0)
        if wanted in _AXES and wanted != header.interleave:
            stored = stored.transpose([_AXES[header.interleave].index(letter) for letter in _AXES[wanted]])
            text = _replaced(text, "interleave", wanted)
        if record is not None:
            text = _replaced(text, RECORD, _plain(record))
        with data.open("rb") as old, targets[0].open("wb") as new:
            new.write(old.read(offset))
            _put(new, stored.astype(header.dtype, copy=False))
        targets[1].write_text(text, encoding="utf-8", errors="surrogateescape", newline="\n")

    def write_new(self, targets: Sequence[Path], new: NewCube) -> None:
        wanted = new.suffix.lstrip(".")
        interleave = wanted if wanted in _AXES else "bsq"
        stored = new.values.transpose(["bhw".index(letter) for letter in _AXES[interleave]])
        dtype = stored.dtype.newbyteorder("<")
        with targets[0].open("wb") as stream:
            _put(stream, stored.astype(dtype, copy=False))
        text = _text(new, dtype, interleave)
        targets[1].write_text(text, encoding="utf-8", errors="surrogateescape", newline="\n")


def _put(stream: Any, stored: np.ndarray) -> None:
    for row in stored:  # `tofile` does not say when the disk is full
        stream.write(np.ascontiguousarray(row).data)


def _text(new: NewCube, dtype: np.dtype[Any], interleave: str) -> str:
    wavelengths, metadata = new.wavelengths, new.metadata
    bands, height, width = new.values.shape
    code = next(number for number, name in _TYPES.items() if name == dtype.str[1:])
    fields: dict[str, str] = {
        "samples": str(width),
        "lines": str(height),
        "bands": str(bands),
        "header offset": "0",
        "file type": "ENVI Standard",
        "data type": str(code),
        "interleave": interleave,
        "byte order": "0",
    }
    if wavelengths is not None:
        fields |= {"wavelength units": "Nanometers", "wavelength": _braces(wavelengths)}
    if metadata.fwhm is not None:
        fields["fwhm"] = _braces(metadata.fwhm)
    if metadata.band_names is not None:
        fields["band names"] = _braces([re.sub(r"[,{}\n]", " ", each) for each in metadata.band_names])
    if metadata.good_bands is not None:
        fields["bbl"] = _braces(metadata.good_bands.astype(int))
    if metadata.nodata is not None:
        fields["data ignore value"] = f"{metadata.nodata:.17g}"
    if metadata.transform is not None:
        fields["map info"] = _map_info(metadata.transform, metadata.crs)
    if metadata.crs is not None:
        fields["coordinate system string"] = "{" + metadata.crs.replace("\n", " ") + "}"
    if metadata.record is not None:
        fields[RECORD] = _plain(metadata.record)
    for key, value in metadata.attributes.items():
        name = re.sub(r"[={};\n]", " ", key).strip()
        if name and name.lower() not in fields and name.lower() not in _OWN:
            fields[name] = _attribute(value)
    return "ENVI\n" + "".join(f"{key} = {value}\n" for key, value in fields.items())


def _attribute(value: Any) -> str:
    if isinstance(value, str):
        if value.startswith("{") and value.endswith("}") and not re.search(r"[{}]", value[1:-1]):
            return value  # out of another ENVI header
        plain = re.sub(r"[{}]", " ", value)
        return f"{{{plain}}}" if re.search(r"[\n,]", plain) else plain
    return _braces(np.ravel(value)) if isinstance(value, list | tuple | np.ndarray) else str(value)


def _plain(text: str) -> str:
    """A text as one line of a header: braces, which only lists have, line ends, ;, = and % as they stand in a URL."""
    return re.sub(r"[{}%;=\r\n]", lambda match: quote(match[0]), text)


def _braces(values: Any) -> str:
    return "{" + ", ".join(f"{each:.12g}" if isinstance(each, float) else str(each) for each in values) + "}"


def _transform(info: Sequence[str]) -> tuple[float, ...] | None:
    """The map position out of ``map info``: name, pixel (from 1), place on the map, sizes, ..., ``rotation=``."""
    try:
        column, row, x, y, dx, dy = map(float, info[1:7])
    except ValueError:
        return None
    turn = next((each.partition("=")[2] for each in info[7:] if each.lower().startswith("rotation")), "0")
    try:
        angle = math.radians(float(turn))
    except ValueError:
        return None
    a, b = dx * math.cos(angle), dx * math.sin(angle)
    d, e = dy * math.sin(angle), -dy * math.cos(angle)
    if angle == 0:
        a, b, d, e = dx, 0.0, 0.0, -dy
    return a, b, x - a * (column - 1) - b * (row - 1), d, e, y - d * (column - 1) - e * (row - 1)


def _utm(info: Sequence[str]) -> str | None:
    """The well-known text of ``map info = {UTM, ..., zone, North or South, WGS-84, ...}``; None of another one."""
    if len(info) < 10 or info[0].upper() != "UTM" or re.fullmatch(r"WGS.?(19)?84", info[9], re.IGNORECASE) is None:
        return None
    zone, side = info[7], info[8][:1].upper()
    if not (zone.isdecimal() and 1 <= int(zone) <= 60 and side in ("N", "S")):
        return None
    number, north = int(zone), side == "N"
    return (
        f'PROJCS["WGS 84 / UTM zone {number}{side}",GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,'
        '298.257223563]],PRIMEM["Greenwich",0],UNIT["degree",0.0174532925199433],AUTHORITY["EPSG","4326"]],'
        f'PROJECTION["Transverse_Mercator"],PARAMETER["latitude_of_origin",0],PARAMETER["central_meridian",'
        f'{6 * number - 183}],PARAMETER["scale_factor",0.9996],PARAMETER["false_easting",500000],'
        f'PARAMETER["false_northing",{0 if north else 10000000}],UNIT["metre",1],AXIS["Easting",EAST],'
        f'AXIS["Northing",NORTH],AUTHORITY["EPSG","{32600 + 100 * (not north) + number}"]]'
    )


def _map_info(transform: Sequence[float], crs: str | None) -> str:
    a, b, x, d, e, y = transform
    name, more = "Arbitrary", ""
    if crs is not None:
        zone = re.search(r"UTM zone (\d+)([NS])", crs.replace("_", " "))
        if zone is not None and re.search(r"WGS.?(19)?84", crs):
            name, more = "UTM", f", {zone[1]}, {'North' if zone[2] == 'N' else 'South'}, WGS-84, units=Meters"
        elif crs.startswith(("GEOGCS", "GEOGCRS")):
            name, more = "Geographic Lat/Lon", ", WGS-84, units=Degrees" if re.search(r"WGS.?(19)?84", crs) else ""
        else:
            more = ", units=Meters"
    turn = math.degrees(math.atan2(b, a))
    more += f", rotation={turn:.12g}" if turn else ""
    return "{" + f"{name}, 1, 1, {x:.12g}, {y:.12g}, {math.hypot(a, b):.12g}, {math.hypot(d, e):.12g}{more}" + "}"


FORMAT = _Envi()
