"""What a file says of a cube beside its values and wavelengths, in the words of no format."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from hsidenoise.system.files import write_text


@dataclass(frozen=True, eq=False)
class Metadata:
    """What a file says of a cube beside its values and wavelengths; what it does not say is None or empty.

    Attributes:
        fwhm: Full width at half maximum of each band, nm.
        band_names: Name or description of each band.
        good_bands: False for the bands that the file calls bad (ENVI's bad-band list, EMIT's ``good_wavelengths``).
        nodata: The value that stands for no data.
        crs: Coordinate reference system, as well-known text.
        transform: ``(a, b, c, d, e, f)``: a pixel's corner (column, row) lies at x = a column + b row + c,
            y = d column + e row + f in that system.
        attributes: All else by name: text, numbers, or lists of them.
        record: How the cube was computed, JSON of ``hsidenoise.inference.record``.

    Example:
        >>> Metadata(nodata=-9999.0).said
        ('nodata',)
    """

    fwhm: Float64[np.ndarray, " bands"] | None = None
    band_names: tuple[str, ...] | None = None
    good_bands: Bool[np.ndarray, " bands"] | None = None
    nodata: float | None = None
    crs: str | None = None
    transform: tuple[float, ...] | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    record: str | None = None

    @property
    def said(self) -> tuple[str, ...]:
        """Names of the fields that say something."""
        return tuple(name for name, value in vars(self).items() if value is not None and name != "attributes") + (
            ("attributes",) if self.attributes else ()
        )


#: What :attr:`Metadata.record` is called in a file.
RECORD = "hsidenoise"
_LONGEST = 1 << 24  # bytes of a file with a record

#: What people call the fields that are left out where a format has no place for them, and ``wavelengths``.
WORDS = {
    "wavelengths": "wavelengths",
    "fwhm": "FWHM",
    "band_names": "band names",
    "good_bands": "bad-band list",
    "nodata": "nodata value",
    "crs": "coordinate system",
    "transform": "map position",
    "attributes": "other header fields",
}
#: Those that have one entry for each band.
OF_BANDS = ("fwhm", "band_names", "good_bands")


def record_beside(path: Path) -> str | None:
    """The record in ``<path>.json``, of a file whose format has no place for it; None if there is none."""
    place = _beside(path)
    return place.read_text(encoding="utf-8", errors="replace") if _is_record(place) else None


def keep_record(target: Path, record: str | None, *, inside: bool) -> Path | None:
    """Put a record beside a new file if it is not in it, and take away that of the file that was there before.

    Args:
        target: The new file.
        record: Its record, None without one.
        inside: Whether a record is in the file.

    Returns:
        The file that holds it; None without one, or if it could not be written.

    Warns:
        UserWarning: If it could not be written, such as where another file has that name.
    """
    place = _beside(target)
    try:
        if record is not None and not inside:
            if place.exists() and not _is_record(place):
                raise FileExistsError(f"{place} is there and of something else")
            write_text(place, record.rstrip("\n") + "\n")
            return place
        if _is_record(place):
            place.unlink()
    except OSError as error:
        warnings.warn(f"the record of what was done could not be written: {error}", stacklevel=4)
        return None
    return None if record is None else target


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _is_record(path: Path) -> bool:
    """Whether a file is a record, not somebody's own of the same name."""
    if not path.is_file() or path.stat().st_size > _LONGEST:
        return False
    with path.open("rb") as file:
        return re.match(rb'\s*\{\s*"hsidenoise":', file.read(100)) is not None
