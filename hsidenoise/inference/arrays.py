"""Arrays as a caller has them, to cubes (bands, height, width) and back: NumPy, masked arrays, torch, xarray, cubes.

What is given back is of the kind that was given: the same axes, dimensions, coordinates, attributes, mask, device.
xarray is never imported here: whoever has a DataArray has imported it.
"""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Shaped

from hsidenoise.data.formats.base import axes_of
from hsidenoise.data.io import Cube
from hsidenoise.data.layout import times
from hsidenoise.signal.spectral_axis import CLEAR, axis_scores, lead

_CERTAIN = 4.0
"""Lead from which another axis than the first is the spectrum. Of 3,080 arrays with bands first (22 scenes of CAVE and
from the air, 8 to 128 pixels, 1 to all bands, five noise cases) none has it."""

_NODATA = ("_FillValue", "missing_value", "nodata")


@dataclass(frozen=True)
class Given:
    """An array as a cube.

    Attributes:
        values: (bands, height, width), a view where there can be one.
        mask: True where a value holds data, where the array says so.
        nodata: The value that stands for no data, where the array says so.
        letters: The axes that were given, longer than one or not.
        back: Makes of a (bands, height, width) array what the caller gets.
        dims: Names of the axes that were given, where they have names.
    """

    values: Shaped[np.ndarray, "bands height width"]
    mask: Bool[np.ndarray, "bands height width"] | None
    nodata: float | None
    letters: str
    back: Callable[[np.ndarray], Any]
    dims: tuple[str, ...] = ()

    def same_way(self, array: Any) -> Any:
        """A mask or noise level that may have the axes of the array: those of a cube, then.

        Dimensions with names are taken by their names, whatever their order.
        """
        dims = tuple(map(str, getattr(array, "dims", ())))
        if isinstance(array, torch.Tensor):
            array = array.detach().cpu()
        found = np.asarray(array.values if dims or isinstance(array, Cube) else array)
        if isinstance(array, Cube):
            return found
        if dims and self.dims:
            if unknown := sorted(set(dims) - set(self.dims)):
                raise ValueError(f"dimension {unknown[0]} of the mask or noise level is none of {', '.join(self.dims)}")
            letters = "".join(self.letters[self.dims.index(name)] for name in dims)
            return found.transpose([letters.index(letter) for letter in "bhw" if letter in letters])
        if found.ndim == 3:
            return found.transpose(_order(self.letters))
        sideways = self.letters.index("w") < self.letters.index("h")
        return found.T if found.ndim == 2 and sideways and found.T.shape == self.values.shape[1:] else found


def as_cube(given: Any, axes: str | None = None) -> Given:
    """Take an array for a cube.

    Args:
        given: A NumPy array, masked array, torch tensor, xarray DataArray or :class:`~hsidenoise.data.io.Cube`, of
            three axes (of a DataArray, others of length 1 are left out).
        axes: What they are, such as ``"hwb"`` for (height, width, bands). None: what the dimensions of a DataArray are
            called; of others (bands, height, width), unless the values say clearly that another axis is the spectrum.

    Returns:
        The cube and the way back.

    Warns:
        UserWarning: If ``axes`` is None and the spectrum is not the first axis.

    Raises:
        ValueError: If it is no array of three axes, ``axes`` does not name them, or the dimensions of a DataArray have
            names that say nothing.

    Example:
        >>> rows_first = np.zeros((40, 50, 7), np.float32)
        >>> given = as_cube(rows_first, "hwb")
        >>> given.values.shape, given.back(given.values).shape
        ((7, 40, 50), (40, 50, 7))
    """
    if isinstance(given, str | Path):
        raise ValueError(f"'{given}' is the name of a file: denoise_file(source, target) takes files, or read_cube it")
    if isinstance(given, Cube):
        if axes not in (None, "bhw"):
            raise ValueError(f"a Cube has the axes bhw already, not '{axes}'; leave out axes")
        return Given(
            given.values,
            given.mask,
            None,
            "bhw",
            lambda values: dataclasses.replace(given, values=values),
        )
    library = sys.modules.get("xarray")
    if library is not None and isinstance(given, library.DataArray):
        return _of_xarray(given, axes)
    if library is not None and isinstance(given, library.Dataset):
        raise ValueError(f"a Dataset holds several arrays; give one of {', '.join(map(str, given.data_vars))}")
    wrap: Callable[[np.ndarray], Any] = np.asarray
    mask: np.ndarray | None = None
    if isinstance(given, torch.Tensor):
        place = given.device
        plain = given.detach().cpu()
        array = (plain.float() if plain.dtype == torch.bfloat16 else plain).resolve_neg().resolve_conj().numpy()

        def wrap(values: np.ndarray) -> Any:
            return torch.from_numpy(np.ascontiguousarray(values)).to(place)

    elif isinstance(given, np.ma.MaskedArray):
        array, mask = given.data, ~np.ma.getmaskarray(given)

        def wrap(values: np.ndarray) -> Any:
            # a mask of its own: what is masked later in the result is not to be masked in what was given
            hidden = given.mask if given.mask is np.ma.nomask else given.mask.copy()
            return np.ma.MaskedArray(values, mask=hidden, fill_value=given.fill_value)

    else:
        array = np.asarray(given)
    return _with_axes(array, mask, axes, wrap)


def _with_axes(
    array: np.ndarray, mask: np.ndarray | None, axes: str | None, wrap: Callable[[np.ndarray], Any]
) -> Given:
    if array.ndim != 3:
        raise ValueError(
            f"a cube has three axes (bands, height, width), this array has shape {array.shape}; index, reshape it, or "
            "give a single band as array[None]"
        )
    letters = _by_values(array) if axes is None else _checked(axes)
    order = _order(letters)
    way_back = [order.index(axis) for axis in range(3)]
    return Given(
        array.transpose(order),
        None if mask is None else mask.transpose(order),
        None,
        letters,
        lambda values: wrap(values.transpose(way_back)),
    )


def _by_values(array: np.ndarray) -> str:
    """Bands first, unless the values say clearly otherwise."""
    if array.dtype.kind not in "iuf" or min(array.shape) < 2:
        return "bhw"
    scores = axis_scores(array)
    index = int(scores.argmax())
    ahead = lead(scores)
    if not index or ahead < CLEAR:
        return "bhw"
    letters = ("bhw", "hbw", "hwb")[index]
    taken = index if ahead >= _CERTAIN else 0
    others = times(array.shape[:taken] + array.shape[taken + 1 :])
    warnings.warn(
        f"the array of {times(array.shape)} is taken for {array.shape[taken]} bands of {others}, "
        f"{'because' if taken else 'but'} its values say axis {index + 1} is the spectrum: "
        f'give axes="{letters}" if it is, axes="bhw" if the bands come first',
        UserWarning,
        stacklevel=5,  # of whoever called the public function
    )
    return letters if taken else "bhw"


def _of_xarray(given: Any, axes: str | None) -> Given:
    longer = [at for at, size in enumerate(given.shape) if size > 1 or given.ndim == 3]  # without a time of one
    names = [str(given.dims[at]) for at in longer]
    if len(names) != 3:
        raise ValueError(f"a cube has three dimensions, this DataArray has {', '.join(map(str, given.dims))}")
    said = axes_of(names, (2, 2, 2))
    letters = said if axes is None else _checked(axes)
    if said and said.index("b") != letters.index("b"):
        warnings.warn(
            f"axes '{letters}' is not what the dimensions {', '.join(names)} say; leave out axes to go by their names",
            UserWarning,
            stacklevel=4,  # of whoever called the public function
        )
    if not letters:
        raise ValueError(
            f"which of the dimensions {', '.join(names)} is the spectrum? Rename them band, y, x, or give axes like bhw"
        )
    array = np.asarray(given.values)
    found = _with_axes(
        array.reshape([array.shape[at] for at in longer]),
        None,
        letters,
        lambda values: given.copy(data=values.reshape(array.shape)),
    )
    packed = {"scale_factor", "add_offset"} & set(given.encoding)  # what the encoding says is of the values before
    says = {**({} if packed else given.encoding), **given.attrs}
    return dataclasses.replace(found, nodata=_number(says), dims=tuple(names))


def _number(says: dict[Any, Any]) -> float | None:
    """The value for no data that attributes name; None if there is none, or it is no number."""
    for name in _NODATA:
        try:
            number = float(np.ravel(says[name])[0])
        except (KeyError, IndexError, TypeError, ValueError):
            continue
        return None if np.isnan(number) else number
    return None


def _checked(axes: str) -> str:
    letters = "".join(map(str, axes)).lower()
    if sorted(letters) != ["b", "h", "w"]:
        raise ValueError(f"axes '{axes}' does not name three axes; give h, w and b once each, such as hwb")
    return letters


def _order(letters: str) -> list[int]:
    return [letters.index(letter) for letter in "bhw"]
