"""Where the cube is in a file: which variable, which of its axes is the spectrum, and why.

Files of this field do not say. Each decision here follows a stated rule, ends up as a sentence in
`Layout.reason`, and can be overruled by the caller with ``key``, ``axes`` and ``size``.
"""

import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Shaped

from hsidenoise.signal.spectral_axis import find_spectrum
from hsidenoise.system.options import plain

#: Names under which cubes are published, in lower case (ICVL, Pavia, Indian Pines and the other sets in common use).
KNOWN_KEYS = frozenset(
    {"rad", "cube", "data", "gt", "clean", "ref", "truth", "img", "image", "hsi", "input", "noisy", "output"}
    | {"hyperspectral", "reflectance", "radiance", "x", "y", "v", "pavia", "paviau", "paviac", "dc", "dcmall", "wdc"}
    | {"washington", "urban", "samson", "jasper", "cuprite", "salinas", "salinas_corrected", "salinasa_corrected"}
    | {"indian_pines", "indian_pines_corrected", "ksc", "botswana", "houston", "denoised"}
)
#: A file that holds one of the first beside one of the second is a published test pair: the first is meant.
NOISY_KEYS, CLEAN_KEYS = frozenset({"input", "noisy"}), frozenset({"gt", "clean", "ref", "truth"})
#: Names of unfolded (bands x pixels) matrices in the unmixing literature.
UNFOLDED_KEYS = frozenset({"y", "v", "x", "data", "cube", "hsi", "img"})
#: Pairs of scalars (height, width) that unmixing files put beside an unfolded matrix.
_SIZE_KEYS = (
    ("nrow", "ncol"), ("nrows", "ncols"), ("rows", "cols"), ("lines", "cols"), ("lines", "samples"),
    ("height", "width"), ("h", "w"), ("row", "col"),
)  # fmt: skip
#: How the note of a variable begins whose numbers lie in another file.
ELSEWHERE = "in another file"
_LETTERS = ("bhw", "hbw", "hwb")  # by the place of the bands
_LONGEST = 120  # letters of a name that are shown
_WAVELENGTH_KEYS = frozenset({"wl", "wls", "bands", "band", "centers", "centres", "bandcenters", "bandcentres"})


#: What to do about kinds of variables that are not read, by what their note begins with.
_REMEDIES = {
    "(struct|cell) array, not|object": "what is inside is not read; save the cube as a variable of its own",
    "sparse": "save it in full, as full(...) or .toarray() give it",
    "logical": "true and false are no measurements; save it as numbers if they are",
    r"Python objects|\[\(": "save its numbers as one plain array, bands along the third axis",
}


@dataclass(frozen=True)
class Variable:
    """One named array of a file, described without loading it.

    Attributes:
        name: Name in the file; ``group/name`` inside an HDF5 group, ``hsi.cube`` or ``c{2}`` inside a MATLAB struct or
            cell.
        shape: Sizes of the axes as the writer of the file sees them: in MATLAB's order if that wrote it, else in
            NumPy's.
        dtype: Type of its numbers as MATLAB sees them (complex and bool included), however few bytes they are stored
            in; None for text, cells, structs, objects and what is not to be read.
        note: What is special about it, empty if nothing is.
        foreign: True for an array that no MATLAB wrote.
        axes: A letter for each axis where the format says what they are, as ``"bhw"``; else empty.
        inside: The struct or cell that it is in, empty if it is a variable of its own.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None
    note: str = ""
    foreign: bool = False
    axes: str = ""
    inside: str = ""

    @property
    def leaf(self) -> str:
        """The last part of its name: ``cube`` of ``hsi.cube`` and ``group/cube``."""
        return leaf(self.name)

    @property
    def label(self) -> str:
        """Its name as it may be shown."""
        return printable(self.name)

    @property
    def is_number(self) -> bool:
        """Whether it holds numbers, complex ones included; logical values are none."""
        return self.dtype is not None and self.dtype.kind in "iufc"


@dataclass(frozen=True)
class Layout:
    """How a cube lies in its file, enough to write another one the same way.

    Attributes:
        format: ``"mat4"``, ``"mat5"``, ``"mat73"``, ``"hdf5"``, ``"envi"``, ``"npy"``, ``"npz"``, ``"geotiff"``,
            ``"zarr"`` or ``"png"``.
        key: Name of the variable (of a PNG folder: what its file names have in common).
        axes: One letter for each axis longer than one, in the order of ``shape``: of ``h`` (height), ``w`` (width),
            ``b`` (bands), or ``p`` (pixels) of an unfolded matrix.
        shape: Sizes of the axes as :attr:`Variable.shape` gives them.
        dtype: Type of the numbers: a file's class, even if they were stored in fewer bytes.
        size: (height, width) of an unfolded matrix, else None.
        reason: Why this variable and these axes, for people.
        row_major: Whether the pixels of an unfolded matrix come row after row, as NumPy has them; else column after
            column.
    """

    format: str
    key: str
    axes: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    size: tuple[int, int] | None
    reason: str
    row_major: bool = False

    @property
    def leaf(self) -> str:
        """The last part of the variable's name."""
        return leaf(self.key)

    @property
    def bands(self) -> int:
        """Number of bands."""
        if self.size is not None:
            return math.prod(self.shape) // math.prod(self.size)
        axes = [size for size in self.shape if size > 1] if len(self.shape) > 3 else self.shape
        return axes[self.axes.index("b")]

    def to_bands_first(self, stored: Shaped[np.ndarray, "*axes"]) -> Shaped[np.ndarray, "bands height width"]:
        """View an array of the file (any axes) as (bands, height, width)."""
        if self.size is not None:
            height, width = self.size
            matrix = stored if self.axes == "bp" else stored.T
            if self.row_major:
                return matrix.reshape(-1, height, width)
            return matrix.reshape(-1, width, height).transpose(0, 2, 1)
        cube = stored if stored.ndim == 3 else stored.reshape([size for size in stored.shape if size > 1])
        return cube.transpose([self.axes.index(axis) for axis in "bhw"])

    def from_bands_first(self, cube: Shaped[np.ndarray, "bands height width"]) -> Shaped[np.ndarray, "*axes"]:
        """Bring a (bands, height, width) array into the axes and shape of the file.

        Raises:
            ValueError: If the cube has other sizes than the one in the file.
        """
        bands = self.bands
        axes = [size for size in self.shape if size > 1] if len(self.shape) > 3 else self.shape
        expected = (bands, *self.size) if self.size else tuple(axes[self.axes.index(axis)] for axis in "bhw")
        if cube.shape != expected:
            raise ValueError(
                f"a cube of {times(cube.shape)} (bands x height x width) cannot take the place of "
                f"'{printable(self.key)}' of {times(expected)}; write it with layout=None, as a new file"
            )
        if self.size is not None:
            matrix = (cube if self.row_major else cube.transpose(0, 2, 1)).reshape(bands, -1)
            return (matrix if self.axes == "bp" else matrix.T).reshape(self.shape)
        return cube.transpose(["bhw".index(axis) for axis in self.axes]).reshape(self.shape)


def leaf(name: str) -> str:
    """The last part of a variable's name, without what is no letter, digit or _.

    Example:
        >>> leaf("hsi.cube"), leaf("group/cube"), leaf("c{2}")
        ('cube', 'cube', 'c2')
    """
    return re.sub(r"\W", "", re.split(r"[/.]", name)[-1]) or "cube"


def times(shape: Sequence[int]) -> str:
    """Sizes for people.

    Example:
        >>> times((145, 145, 200))
        '145x145x200'
    """
    return "x".join(map(str, shape)) or "none"


def printable(name: str) -> str:
    r"""A name out of a file as it may be shown: :func:`~hsidenoise.system.options.plain`, and not longer than a line.

    Example:
        >>> printable("cube\x1b[2J\n")
        'cube?[2J?'
    """
    text = plain(name[: _LONGEST + 1]).replace("\n", "?")
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


def describe(variables: Sequence[Variable]) -> str:
    """Names and sizes of variables in one line, the first dozen.

    Example:
        >>> describe([Variable("gt", (2, 3), np.dtype("f8"))])
        'gt 2x3'
    """
    names = [
        f"{item.label} {times(item.shape) if item.shape else item.note or 'none'}"
        + (f" ({item.note})" if item.shape and item.note and not item.is_number else "")
        for item in variables[:12]
    ]
    return ", ".join(names + ["..."] * (len(variables) > 12)) or "nothing"


def find_layout(
    variables: Sequence[Variable],
    load: Callable[[str], np.ndarray],
    *,
    format: str,
    key: str | None = None,
    axes: str | None = None,
    size: tuple[int, int] | None = None,
) -> Layout:
    """Decide which variable is the cube and what its axes are.

    The variable is ``key``; else the only array with three axes longer than one; else the only one of these
    with a known name, where the noisy one of a published pair (``input`` beside ``gt``) is meant. Without any,
    an unfolded (bands x pixels) matrix whose size is given, or is in the file, or is square.

    The spectrum is what ``axes`` says; else the axis as long as a vector of wavelengths in the file; else what the
    values say, if they are clear about it (:mod:`hsidenoise.signal.spectral_axis`); else what the sizes say: an axis
    beside two equal ones, or one less than a quarter as long as the other two. All else is a guess, with a warning.

    Args:
        variables: What the file holds.
        load: Gives a variable by name; called for small ones, and for the cube where its values decide.
        format: Format of the file, carried into the result.
        key: Name of the variable.
        axes: ``"hwb"``, ``"bhw"``, ... in the order of its sizes, or ``"bp"`` / ``"pb"`` for an unfolded matrix.
        size: (height, width) in pixels, for an unfolded matrix.

    Returns:
        The layout, with the reason in words.

    Warns:
        UserWarning: If which axis is the spectrum is a guess.

    Raises:
        ValueError: If nothing fits, several things do, or what the caller says does not fit.

    Example:
        >>> satellite = Variable("img", (229, 394, 17), np.dtype("u2"))
        >>> find_layout([satellite], lambda name: np.zeros((229, 394, 17)), format="mat5").axes
        'hwb'
    """
    variable, why = _find_variable(variables, key, unfolded=size is not None or (axes or "") in ("bp", "pb"))
    if variable.note.startswith(ELSEWHERE):
        raise ValueError(f"'{variable.label}' lies {variable.note}")
    if variable.dtype is None or not variable.is_number:
        raise ValueError(f"'{variable.label}' is not a cube of numbers ({variable.note}); choose another with --key")
    if 0 in variable.shape:
        raise ValueError(f"'{variable.label}' is empty: an axis of {times(variable.shape)} has no element")
    if variable.dtype.kind == "c":
        raise ValueError(f"'{variable.label}' holds complex numbers; save its magnitude or real part instead")
    if _is_cube(variable):
        letters, because = _find_spectrum(variable, variables, load, axes)
        if size is not None:
            raise ValueError(f"'{variable.label}' is {times(variable.shape)} already; --size is for bands x pixels")
        found: tuple[int, int] | None = None
    elif _is_matrix(variable):
        letters, found, because = _find_size(variable, variables, load, axes, size)
    else:
        raise ValueError(f"'{variable.label}' is {times(variable.shape)}; a cube has three axes longer than one")
    reason = f"'{variable.label}' is {why}; {because}"
    return Layout(format, variable.name, letters, variable.shape, variable.dtype, found, reason, variable.foreign)


def find_wavelengths(
    variables: Sequence[Variable], load: Callable[[str], np.ndarray], bands: int
) -> Float64[np.ndarray, " bands"] | None:
    """Find the centre wavelengths of a cube's bands beside it in the file.

    Args:
        variables: What the file holds.
        load: Gives a variable by name; called for vectors with a telling name only.
        bands: Number of bands of the cube.

    Returns:
        Wavelengths in nm, micrometres converted; None if there are none.
    """
    for variable in variables:
        if _is_wavelengths(variable) and math.prod(variable.shape) == bands:
            values = np.ravel(load(variable.name)).astype(np.float64)
            if not np.isfinite(values).all() or np.array_equal(np.diff(values), np.ones(bands - 1)):
                continue  # a count of the bands, which files name `bands` too, is not a wavelength
            values = values * 1000 if values.max() < 20 else values
            if values.min() >= 100:
                return values
    return None


def _is_cube(variable: Variable) -> bool:
    longer = sum(size != 1 for size in variable.shape)
    return len(variable.shape) == 3 or (len(variable.shape) > 3 and longer == 3)


def _is_matrix(variable: Variable) -> bool:
    return len(variable.shape) == 2 and min(variable.shape) > 1


def _is_wavelengths(variable: Variable) -> bool:
    name = variable.leaf.lower().replace("_", "")
    vector = variable.is_number and sum(size != 1 for size in variable.shape) == 1
    telling = name in _WAVELENGTH_KEYS or "wavelen" in name or name.startswith(("lambda", "wave"))
    return vector and telling and variable.dtype is not None and variable.dtype.kind != "c"


def _spelt(name: str) -> str:
    """A name without what people may write in more than one way: ``/hsi/cube`` for ``hsi.cube``, spaces."""
    return re.sub(r"\s", "", name).replace("/", ".").strip(".")


def _plain_key(name: str) -> str:
    return _spelt(name).replace("(1)", "")  # s.x is s(1).x


def _within(variables: Sequence[Variable], key: str) -> list[Variable]:
    """The cubes inside of a struct, cell or group."""
    cubes = [item for item in variables if item.is_number and _is_cube(item)]
    for spelling in (_spelt, _plain_key):  # s(1) is not all of s
        starts = tuple(spelling(key) + mark for mark in ".{(")
        if found := [item for item in cubes if spelling(item.name).startswith(starts)]:
            return found
    return []


def _find_variable(variables: Sequence[Variable], key: str | None, *, unfolded: bool) -> tuple[Variable, str]:
    if key is not None:
        wanted = _plain_key(key)
        named = [item for item in variables if item.name == key]
        named = named or [item for item in variables if _plain_key(item.name) == wanted]
        if not named or named[0].dtype is None:  # a struct, cell or group stands for the one cube in it
            within = _within(variables, key)
            if len(within) == 1:
                return within[0], f"the only 3-D array in '{printable(key)}'"
            if within:
                raise ValueError(f"'{printable(key)}' holds several cubes: {describe(within)}; choose one with --key")
        if named:
            return named[0], "what was asked for"
        raise ValueError(f"no variable '{printable(key)}'; the file holds {describe(variables)}")
    if unfolded:
        candidates, what = [item for item in variables if item.is_number and _is_matrix(item)], "2-D"
    else:
        candidates, what = [item for item in variables if item.is_number and _is_cube(item)], "3-D"
        candidates = [item for item in candidates if 0 not in item.shape] or candidates
    candidates = [item for item in candidates if not item.inside] or candidates
    if len(candidates) == 1:
        return candidates[0], f"the only {what} array"
    known = [item for item in candidates if item.leaf.lower() in KNOWN_KEYS]
    if len(known) == 1:
        return known[0], f"the only {what} array with a known name"
    noisy = [item for item in known if item.leaf.lower() in NOISY_KEYS]
    clean = [item for item in known if item.leaf.lower() in CLEAN_KEYS]
    if len(noisy) == 1 and clean and len(known) == len(noisy) + len(clean):
        return noisy[0], f"the noisy cube of a pair ('{clean[0].label}' beside it is the clean one)"
    if candidates:
        raise ValueError(f"several variables may be the cube: {describe(candidates)}; choose one with --key")
    matrices = [item for item in variables if item.is_number and _is_matrix(item)]
    known = [item for item in matrices if item.leaf.lower() in UNFOLDED_KEYS]
    if not unfolded and len(known) == 1:
        return known[0], "a matrix with a known name (there is no 3-D array)"
    raise ValueError(
        f"no {what} variable; the file holds {describe(variables)}"
        + ("; a bands x pixels matrix is read with --key and --size HxW" if matrices else _hidden(variables))
    )


def _hidden(variables: Sequence[Variable]) -> str:
    """Where the cube may be if no variable is one."""
    for item in variables:
        if item.note.startswith(ELSEWHERE):
            return f"; '{item.label}' lies {item.note}"
    for item in variables:
        remedy = next((remedy for kind, remedy in _REMEDIES.items() if re.match(kind, item.note)), "")
        if remedy and (item.dtype is None or _is_cube(item)):
            return f"; '{item.label}': {remedy}"
    return "; a cube has three axes longer than one: height, width and bands"


def _find_spectrum(
    variable: Variable, variables: Sequence[Variable], load: Callable[[str], np.ndarray], axes: str | None
) -> tuple[str, str]:
    """Letters of the axes of a 3-D array, and why."""
    sizes = [size for size in variable.shape if size != 1] if len(variable.shape) > 3 else list(variable.shape)
    shown = times(sizes)
    if axes is not None:
        if sorted(axes) != ["b", "h", "w"]:
            raise ValueError(f"--axes '{axes}' does not name the axes of {shown}; give h, w and b once each, like hwb")
        return axes, f"axes {shown} = {axes} as asked for"
    if variable.axes:
        return variable.axes, f"axes {shown} = {variable.axes} as the file says"
    for vector in variables:
        matching = [axis for axis, size in enumerate(sizes) if size == math.prod(vector.shape)]
        if _is_wavelengths(vector) and len(matching) == 1:
            index, because, guessed = matching[0], f"as long as '{vector.label}'", False
            break
    else:
        # of a pair, the clean cube may say more: one answer for both
        same = [item for item in variables if item != variable and item.shape == variable.shape and item.is_number]
        arrays = (load(item.name).reshape(sizes) for item in (variable, *same[:1]))
        index, because, guessed = find_spectrum(sizes, arrays, lines=not variable.foreign)
    letters = _LETTERS[index]
    if guessed:
        warnings.warn(
            f"'{variable.label}' is {shown}, and it is a guess that axis {index + 1} is the spectrum ({because}): "
            f"give --axes, such as {letters}, to be sure",
            stacklevel=2,
        )
    return letters, f"axes {shown} = {letters}: axis {index + 1} is the spectrum, {because}"


def _find_size(
    variable: Variable,
    variables: Sequence[Variable],
    load: Callable[[str], np.ndarray],
    axes: str | None,
    size: tuple[int, int] | None,
) -> tuple[str, tuple[int, int], str]:
    """Letters, (height, width) of an unfolded matrix, and why."""
    shown = times(variable.shape)
    if axes not in (None, "bp", "pb"):
        raise ValueError(f"--axes '{axes}' does not fit {shown}; an unfolded matrix is bp or pb (bands, pixels)")
    pixels = [variable.shape[axes.index("p")]] if axes else [variable.shape[1], variable.shape[0]]
    because = f"{times(size)} as asked for" if size else ""
    if size is None:
        scalars = {item.name.lower(): item.name for item in variables if item.is_number and math.prod(item.shape) == 1}
        for height, width in _SIZE_KEYS:
            if height in scalars and width in scalars:
                pair = tuple(int(np.ravel(load(scalars[name]))[0].real) for name in (height, width))
                if math.prod(pair) in pixels:
                    size, because = (
                        (pair[0], pair[1]),
                        f"{times(pair)} from '{printable(scalars[height])}' and '{printable(scalars[width])}'",
                    )
                    break
    if size is None:
        side = math.isqrt(max(pixels))
        if side * side != max(pixels) or min(variable.shape) == max(variable.shape):
            raise ValueError(f"'{variable.label}' is {shown}, bands x pixels without the image's size; give --size HxW")
        size, because = (side, side), f"{side}x{side} because {side * side} is a square number (--size overrules)"
    if min(size) < 1 or math.prod(size) not in pixels:
        raise ValueError(f"--size {times(size)} is {math.prod(size)} pixels; '{variable.label}' is {shown}")
    letters = axes or ("bp" if variable.shape[1] == math.prod(size) else "pb")
    order = "row by row" if variable.foreign else "column by column"
    return letters, size, f"unfolded, axes {shown} = {letters} with pixels {order}, size {because}"
