"""A cube's values in their stored type: no data stays no data, bit for bit, and data do not become it."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped


def cast(
    values: Float[np.ndarray, "bands height width"],
    dtype: np.dtype[Any],
    valid: Bool[np.ndarray, "bands height width"] | None = None,
    nodata: float | None = None,
) -> Shaped[np.ndarray, "bands height width"]:
    """Bring values into a stored type; integers are rounded and clipped to their range.

    Args:
        values: The values.
        dtype: The type.
        valid: Those that hold data; None: all.
        nodata: The value that stands for no data: one that holds data and would become it goes one step aside.

    Example:
        >>> cast(np.array([[[0.2, 7.0, 300.0]]]), np.dtype(np.uint8), nodata=0).tolist()
        [[[1, 7, 255]]]
    """
    whole = dtype.kind in "iu"
    if whole:
        limits = np.iinfo(dtype)
        # float64 holds every limit up to 32 bits; of 64 bits the largest is rounded up, so one step less
        high = float(limits.max) if limits.bits < 64 else float(np.nextafter(float(limits.max), 0))
        exact = np.float32 if limits.bits <= 16 else np.float64  # half the memory where it suffices
        found: np.ndarray = np.clip(np.rint(values.astype(exact)), float(limits.min), high)
        apart = nodata is not None and float(nodata).is_integer() and limits.min <= nodata <= limits.max
    else:
        with np.errstate(over="ignore"):
            found = values.astype(dtype, copy=False)
        apart = nodata is not None and dtype.kind == "f"
    if apart and nodata is not None:
        kind = dtype.type if dtype.itemsize < 4 and not whole else np.float32  # apart also for who reads it as float32
        with np.errstate(over="ignore"):
            mark = kind(nodata)
            same = found == nodata if whole else found.astype(kind, copy=False) == mark
        same &= True if valid is None else valid
        if np.isfinite(mark) and same.any():
            aside = float(np.nextafter(mark, kind(-np.inf if mark > 0 else np.inf)))
            if whole and abs(aside - nodata) < 1:
                aside = nodata - 1 if mark > 0 else nodata + 1
            found = np.array(found)  # perhaps the caller's
            found[same] = aside
    stored: np.ndarray = found.astype(dtype, copy=False)
    return stored


def put_back(
    stored: Shaped[np.ndarray, "bands height width"],
    values: Float[np.ndarray, "bands height width"],
    source: Shaped[np.ndarray, "bands height width"],
    valid: Bool[np.ndarray, "bands height width"],
) -> None:
    """Give what holds no data the digits that it has in its source, where the values lost them and nobody changed it.

    Args:
        stored: What will be written; changed in place.
        values: The cube as it was read, its data changed.
        source: The cube as it is stored there.
        valid: True where a value holds data.

    Example:
        >>> source = np.full((1, 1, 2), 2**63 - 2)
        >>> stored, values = np.array([[[5, 2**62]]]), np.array([[[5.0, 2.0**63]]])
        >>> put_back(stored, values, source, values < 9)
        >>> int(stored[0, 0, 1]) == 2**63 - 2
        True
    """
    with np.errstate(over="ignore"):
        same = ~valid & (source.astype(values.dtype) == values)
    stored[same] = source[same]
