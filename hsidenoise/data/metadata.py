"""What a file says of a cube beside its values and wavelengths, in the words of no format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64


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
