"""Noisy sets of noisy and clean pairs on disk, as ICVL's are published: where they lie, and what a file of them holds.

A set is a folder of folders ``<prefix>_<suffix>``, such as ``icvl_512_30`` and ``icvl_512_noniid``; the suffix says
the noise, and each folder has one .mat file per scene with ``gt``, ``input`` (height, width, bands) and ``sigma``
(0-255 scale). What is read is taken as it is: no noise is added and nothing is scaled.
:mod:`hsidenoise.data.noisy_set_maker` writes such sets.

References:
    QRNN3D: Wei et al., "3-D Quasi-Recurrent Neural Network for Hyperspectral Image Denoising", IEEE TNNLS 2021.
    doi:10.1109/TNNLS.2020.2978756. Its generating scripts define this layout; SERT and HSIR publish the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, Real

from hsidenoise.data.formats.mat import load_variable
from hsidenoise.data.io import Cube, read_cube
from hsidenoise.data.layout import Variable, describe, times
from hsidenoise.data.sources import list_variables
from hsidenoise.noise.cases import noise_case
from hsidenoise.signal.scaling import value_range

#: The nine published folders: what their names end in -> our name of the noise case.
PUBLISHED_CASES: dict[str, str] = {
    "30": "gaussian-30",
    "50": "gaussian-50",
    "70": "gaussian-70",
    "blind": "blind",
    "noniid": "non-iid",
    "stripe": "stripe",
    "deadline": "deadline",
    "impulse": "impulse",
    "mixture": "mixture",
}
NOISY_KEY, CLEAN_KEY, SIGMA_KEY = "input", "gt", "sigma"

_SCALE = 255.0  # papers write sigma for 8-bit images


@dataclass(frozen=True, eq=False)
class Pair:
    """A noisy cube and its clean one, as a file of a noisy set holds them.

    Attributes:
        noisy: Noisy cube.
        clean: Clean cube, in the same unit; [0, 1] in published sets.
        sigma: Standard deviation of the Gaussian part of each band for values in [0, 1] (``50 / 255``); None if the
            file does not say.
        scene: Name of the file without its ending.
        wavelengths: Centre of each band in nm, None if unknown.
    """

    noisy: Float32[np.ndarray, "bands height width"]
    clean: Float32[np.ndarray, "bands height width"]
    sigma: Float32[np.ndarray, " bands"] | None
    scene: str
    wavelengths: Float64[np.ndarray, " bands"] | None = None


def published_arrays(
    noisy: Float32[np.ndarray, "bands height width"],
    clean: Float32[np.ndarray, "bands height width"],
    sigma: Float32[np.ndarray, " bands"],
    wavelengths: Float64[np.ndarray, " bands"] | None = None,
) -> dict[str, np.ndarray]:
    """The variables of a published test file, plus the wavelengths where they are known.

    QRNN3D's generator (matlab/generate_dataset*.m of its repository) saves sigma on the 0-255 scale: 1 x 1 where
    all bands share it, else 1 x bands. Its cubes are double; float32 holds all that a network reads of them.
    """
    shared = bool(np.all(sigma == sigma[0]))
    arrays: dict[str, np.ndarray] = {
        NOISY_KEY: np.ascontiguousarray(noisy.transpose(1, 2, 0)),
        CLEAN_KEY: np.ascontiguousarray(clean.transpose(1, 2, 0)),
        # the product in float32 would say 30.000001
        SIGMA_KEY: np.round((sigma[:1] if shared else sigma)[None].astype(np.float64) * _SCALE, 4),
    }
    if wavelengths is not None:
        arrays["wavelength"] = np.asarray(wavelengths, dtype=np.float64)[None]
    return arrays


def find_noisy_set(folder: str | Path) -> list[tuple[str, tuple[Path, ...]]]:
    """Find the files of a noisy set: a folder of folders of pairs, or one folder of pairs.

    Returns:
        Name of the noise case, and its files sorted by name; published cases first, in the order of the papers. A
        folder whose ending says no known case stands under its own name.

    Raises:
        ValueError: If there is no .mat file, pairs lie beside folders of pairs, or two folders are of the same case.
        OSError: If the folder is missing.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as name:
        ...     for path in ("icvl_512_noniid/a.mat", "icvl_512_50/b.mat", "icvl_512_50/a.mat", "mine/a.mat"):
        ...         Path(name, path).parent.mkdir(exist_ok=True)
        ...         Path(name, path).touch()
        ...     [(case, [path.stem for path in files]) for case, files in find_noisy_set(name)]
        [('gaussian-50', ['a', 'b']), ('non-iid', ['a']), ('mine', ['a'])]
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; name that of a noisy set")
    own = pair_files(folder)
    below = {path: pair_files(path) for path in sorted(folder.iterdir()) if path.is_dir() and path.name[0] != "."}
    below = {path: files for path, files in below.items() if files}
    if own and below:
        first = next(iter(below)).name
        raise ValueError(f"{folder}: holds .mat files and folders of them ({first}); name the folder of one noisy set")
    if not own and not below:
        raise ValueError(f"{folder}: no .mat file in it or in its folders; a noisy set has one per scene and noise")
    found: dict[str, Path] = {}
    for path in below or [folder]:
        case = _case_of(path.resolve().name)
        if case in found:
            raise ValueError(
                f"{folder}: {found[case].name} and {path.name} are both of the noise '{case}'; keep one set in a folder"
            )
        found[case] = path
    order = {case: index for index, case in enumerate(PUBLISHED_CASES.values())}
    cases = sorted(found, key=lambda case: (order.get(case, len(order)), case))
    return [(case, tuple(own or below[found[case]])) for case in cases]


def pair_files(folder: Path) -> list[Path]:
    """Files of one folder of pairs, sorted by name; hidden ones, as other systems leave behind, are none."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".mat" and path.name[0] != ".")


def read_pair(path: str | Path) -> Pair:
    """Read a noisy cube and its clean one from a file of a noisy set, as they are.

    Args:
        path: A .mat file (v5 or v7.3) with ``input`` and ``gt``, (height, width, bands) of any number type, and
            perhaps ``sigma`` on the 0-255 scale: one number or one per band.

    Raises:
        ValueError: If it is not such a file, a variable is missing, the sizes differ, or a value is not finite.
        OSError: If the file is missing or cannot be opened.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; a test pair is a .mat file with '{NOISY_KEY}' and '{CLEAN_KEY}'")
    variables = {item.name: item for item in list_variables(path)}
    for name in (NOISY_KEY, CLEAN_KEY):
        if name not in variables:
            raise ValueError(
                f"{path}: no variable '{name}'; a test pair holds '{NOISY_KEY}' (noisy) and '{CLEAN_KEY}' (clean), "
                f"this file holds {describe(list(variables.values()))}"
            )
    shapes = [variables[name].shape for name in (NOISY_KEY, CLEAN_KEY)]
    if shapes[0] != shapes[1] or len(shapes[0]) != 3:
        raise ValueError(
            f"{path}: '{NOISY_KEY}' is {times(shapes[0])} and '{CLEAN_KEY}' {times(shapes[1])}; both must be "
            "height x width x bands, and the same"
        )
    noisy, clean = (_read_published(path, variables[name]) for name in (NOISY_KEY, CLEAN_KEY))
    sigma = _read_sigma(path, variables.get(SIGMA_KEY), len(clean.values))
    return Pair(noisy.values, clean.values, sigma, path.stem, noisy.wavelengths)


def key_if_there(path: Path, key: str) -> str | None:
    """The name of a variable of a noisy set, if the file has a cube of that name."""
    if path.is_dir():
        return None
    there = any(item.name == key and item.is_number and len(item.shape) == 3 for item in list_variables(path))
    return key if there else None


def clean_beside(path: Path, noisy: Cube) -> Real[np.ndarray, "bands height width"] | None:
    """The clean cube that a file of `corrupt` or of a noisy set carries beside the noisy one."""
    key = noisy.layout.key if noisy.layout is not None else ""
    if key != NOISY_KEY or key_if_there(path, CLEAN_KEY) is None:
        return None
    listed = {item.name: item.shape for item in list_variables(path)}
    if noisy.layout is None or listed[CLEAN_KEY] != noisy.layout.shape:
        return None
    clean = read_cube(path, key=CLEAN_KEY, axes=noisy.layout.axes, exact=True).values
    return clean if clean.shape == noisy.values.shape else None


def _read_published(path: Path, variable: Variable) -> Cube:
    # Small test images would be taken for another order by their sizes. Only what no MATLAB wrote has to be guessed.
    cube = read_cube(path, key=variable.name, axes=None if variable.foreign else "hwb")
    value_range(cube.values, f"{path}: '{variable.label}'")  # for its error: scores of NaN say nothing
    return cube


def _read_sigma(path: Path, variable: Variable | None, bands: int) -> Float32[np.ndarray, " bands"] | None:
    if variable is None or not variable.is_number or 0 in variable.shape:
        return None
    sigma = np.ravel(load_variable(path, variable.name))
    if sigma.size not in (1, bands) or not np.isfinite(sigma).all() or sigma.min() < 0:
        raise ValueError(
            f"{path}: '{SIGMA_KEY}' is {times(variable.shape)}; one finite number on the 0-255 scale is needed, or one "
            f"for each of the {bands} bands"
        )
    return np.broadcast_to((sigma / _SCALE).astype(np.float32), bands).copy()


def _case_of(name: str) -> str:
    suffix = name.rsplit("_", 1)[-1].lower()
    try:
        return PUBLISHED_CASES.get(suffix) or noise_case(suffix).name
    except ValueError:
        return name
