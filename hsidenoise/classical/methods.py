"""Classical methods under one signature: one table, name -> method; and anybody's own method by its import path.

A method takes a noisy cube (bands, height, width) on about [0, 1], noise not clipped, and optionally the noise level;
it returns the denoised cube, not clipped either. Run them by :func:`run_baseline`, which checks both ends.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32

from hsidenoise.classical.filters import (
    ImageFilter,
    denoise_dct,
    denoise_planes,
    denoise_tv,
    denoise_tv_3d,
    sigma_per_band,
    truncated_mnf,
    truncated_pca,
)
from hsidenoise.classical.outliers import denoise_robust_pca, replace_outliers
from hsidenoise.signal.noise_level import check_cube
from hsidenoise.signal.planes.estimate import denoise_by_planes

# For noise of standard deviation 1; chosen on cave/validation.
_TV_WEIGHT = 0.95
_NLM_STRENGTH = 0.8
_NLM_PATCH, _NLM_DISTANCE = 5, 6

Method = Callable[..., np.ndarray]


@dataclass(frozen=True)
class Baseline:
    """One method.

    Attributes:
        name: Name on the command line and in tables.
        function: ``function(noisy, sigma=None) -> denoised``; the bare one, nothing checked.
        summary: What it does, in one line.
        reference: Where it is from.
        blind: Whether it estimates the noise level itself; else it has to be told.
        extra: Optional dependency that it needs, as in ``pip install 'hsidenoise[extra]'``; None: none.
    """

    name: str
    function: Method
    summary: str
    reference: str
    blind: bool = True
    extra: str | None = None

    def __call__(
        self, noisy: Float32[np.ndarray, "bands height width"], sigma: float | Float[np.ndarray, " bands"] | None = None
    ) -> Float32[np.ndarray, "bands height width"]:
        """Denoise a cube; arguments and errors as in :func:`run_baseline`."""
        return run_baseline(self, noisy, sigma)


def run_baseline(
    method: str | Baseline,
    noisy: Float32[np.ndarray, "bands height width"],
    sigma: float | Float[np.ndarray, " bands"] | None = None,
) -> Float32[np.ndarray, "bands height width"]:
    """Denoise a cube by a classical method, or by anybody's.

    Args:
        method: As :func:`find_method` takes it, or what it returned.
        noisy: Noisy cube on about [0, 1], at least 2x2 pixels; it is left untouched.
        sigma: Noise level in the unit of the cube (``50 / 255``), 0 or more, one or one per band. None: blind methods
            estimate it.

    Returns:
        Denoised cube, of the same shape, not clipped.

    Raises:
        ValueError: If there is no such method, the cube or sigma cannot be used, sigma is missing for a method that is
            not blind, or what the method returns is no finite cube of that shape.
        ImportError: If the method needs a package that is not installed.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> clean = np.full((3, 16, 20), 0.5)
        >>> noisy = (clean + rng.normal(0.0, 0.1, clean.shape)).astype(np.float32)
        >>> bool(np.abs(run_baseline("svd-tv", noisy) - clean).max() < 0.1)
        True
    """
    baseline = find_method(method) if isinstance(method, str) else method
    check_cube(noisy)
    if noisy.dtype != np.float32:
        raise ValueError(f"cube of type {noisy.dtype}: convert it to float32, on about [0, 1]")
    if sigma is None and not baseline.blind:
        raise ValueError(f"{baseline.name} is not blind: pass sigma, in the unit of the cube (50 / 255)")
    if sigma is not None:
        sigma_per_band(noisy, sigma)  # for its errors
    given = np.ascontiguousarray(noisy)
    if np.may_share_memory(given, noisy):
        given = given.copy()  # a stranger's method may write to what it gets
    return _checked_result(baseline.function(given, sigma), noisy, baseline.name)


def find_method(name: str) -> Baseline:
    """Find a method by its name in the table, or any Python callable by its path.

    Args:
        name: A key of :data:`BASELINES`, or ``package.module:function`` of a callable that takes a (bands, height,
            width) float32 array and returns one. It is not told sigma and counts as blind.

    Raises:
        ValueError: If there is no such name, module or attribute, or it cannot be called.

    Example:
        >>> find_method("svd-tv").blind
        True
        >>> find_method("numpy:positive").name
        'numpy:positive'
    """
    if name in BASELINES:
        return BASELINES[name]
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(f"unknown method '{name}'; known: {', '.join(BASELINES)}, or package.module:function")
    if not module_name or not attribute:
        raise ValueError(f"'{name}' is not a method: write package.module:function")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # a stranger's module may raise anything while it is imported
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module_name}.".startswith(f"{error.name}."):
            reason = f"there is no module '{error.name}' on the path (run where it can be imported, or set PYTHONPATH)"
        else:
            reason = f"importing it fails: {_one_line(error)}"
        raise ValueError(f"method '{name}': {reason}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ValueError(f"method '{name}': module '{module_name}' has no '{attribute}'")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"method '{name}': it is of type {type(found).__name__} and cannot be called")
    function = found

    def call(noisy: np.ndarray, sigma: float | np.ndarray | None = None) -> Any:  # checked by run_baseline
        try:
            return function(noisy)
        except TypeError as error:
            raise ValueError(f"method '{name}' did not take the cube: {_one_line(error)}") from error

    return Baseline(name, call, summary="a callable of your own", reference=name)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _checked_result(result: object, noisy: np.ndarray, name: str) -> np.ndarray:
    """The result as float32, if it is a finite cube of the right shape."""
    if not isinstance(result, np.ndarray):
        raise ValueError(f"method '{name}' returned {type(result).__name__}: it must return a NumPy array")
    if result.shape != noisy.shape:
        raise ValueError(f"method '{name}' returned shape {result.shape} for a cube of {noisy.shape}: they must agree")
    if result.dtype.kind not in "iuf":
        raise ValueError(f"method '{name}' returned type {result.dtype}: it must return real numbers")
    if not np.isfinite(result).all():
        raise ValueError(f"method '{name}' returned NaN or infinite values")
    return result.astype(np.float32, copy=False)


def _nlm_images(images: np.ndarray) -> np.ndarray:
    """Non-local means of images with noise of standard deviation 1."""
    from skimage.restoration import denoise_nl_means

    options = {"patch_size": _NLM_PATCH, "patch_distance": _NLM_DISTANCE, "h": _NLM_STRENGTH, "sigma": 1.0}
    return np.stack([denoise_nl_means(image, fast_mode=True, **options) for image in images])


def _tv_images(images: np.ndarray) -> np.ndarray:
    return denoise_tv(images, _TV_WEIGHT)


def _band_wise(image_filter: ImageFilter) -> Method:
    """Each band alone, divided by its noise level."""

    def denoise(noisy: np.ndarray, sigma: float | np.ndarray | None = None) -> np.ndarray:
        levels = sigma_per_band(noisy, sigma).astype(np.float32)[:, None, None]
        return np.asarray(image_filter(noisy / levels) * levels)

    return denoise


def _in_subspace(image_filter: ImageFilter) -> Method:
    def denoise(noisy: np.ndarray, sigma: float | np.ndarray | None = None) -> np.ndarray:
        return denoise_planes(noisy, image_filter, sigma)

    return denoise


def _in_subspace_repaired(image_filter: ImageFilter) -> Method:
    def denoise(noisy: np.ndarray, sigma: float | np.ndarray | None = None) -> np.ndarray:
        repair = replace_outliers(noisy, sigma)
        return denoise_planes(repair.cube, image_filter, repair.sigma)

    return denoise


def _planes(noisy: np.ndarray, sigma: float | np.ndarray | None = None) -> np.ndarray:
    levels = None if sigma is None else torch.from_numpy(sigma_per_band(noisy, sigma).astype(np.float32))
    return denoise_by_planes(torch.from_numpy(noisy), sigma=levels).denoised.numpy()


def _tv_3d(noisy: np.ndarray, sigma: float | np.ndarray | None = None) -> np.ndarray:
    return denoise_tv_3d(noisy, sigma_per_band(noisy, sigma))


def _bm4d(noisy: np.ndarray, sigma: float | np.ndarray | None = None) -> np.ndarray:
    try:
        import bm4d
    except ImportError as error:
        raise ImportError(
            "bm4d is not installed: pip install 'hsidenoise[bm4d]' (its licence allows non-commercial use only)"
        ) from error
    # it takes one level: bands of unequal noise are brought to one first
    levels = np.maximum(np.broadcast_to(np.asarray(sigma, dtype=np.float64), len(noisy)), 1e-6)
    common = float(np.sqrt(np.mean(np.square(levels))))
    scale = (levels / common)[:, None, None]
    result = bm4d.bm4d(np.ascontiguousarray((noisy / scale).transpose(1, 2, 0)), common)
    return np.asarray(result, dtype=np.float32).reshape(noisy.shape[1], noisy.shape[2], -1).transpose(2, 0, 1) * scale


_FASTHYDE = "FastHyDe, Zhuang and Bioucas-Dias 2018, doi:10.1109/JSTARS.2018.2796570"

_ROWS = (
    Baseline(
        "nlm",
        _band_wise(_nlm_images),
        "non-local means of each band alone (scikit-image)",
        "Buades et al. 2005, doi:10.1109/CVPR.2005.38",
    ),
    Baseline(
        "tv",
        _band_wise(_tv_images),
        "total variation of each band alone",
        "Rudin et al. 1992, doi:10.1016/0167-2789(92)90242-F",
    ),
    Baseline(
        "pca",
        truncated_pca,
        "principal components with more signal than noise",
        "Pearson 1901, doi:10.1080/14786440109462720",
    ),
    Baseline(
        "mnf",
        truncated_mnf,
        "minimum-noise-fraction components with more signal than noise",
        "Green et al. 1988, doi:10.1109/36.3001",
    ),
    Baseline("svd-tv", _in_subspace(_tv_images), "noise-whitened SVD, total variation of each plane", _FASTHYDE),
    Baseline("svd-nlm", _in_subspace(_nlm_images), "noise-whitened SVD, non-local means of each plane", _FASTHYDE),
    Baseline("svd-dct", _in_subspace(denoise_dct), "noise-whitened SVD, sliding DCT of each plane", _FASTHYDE),
    Baseline("svd-tv-robust", _in_subspace_repaired(_tv_images), "outliers replaced, then svd-tv", _FASTHYDE),
    Baseline("svd-dct-robust", _in_subspace_repaired(denoise_dct), "outliers replaced, then svd-dct", _FASTHYDE),
    Baseline(
        "planes",
        _planes,
        "defects repaired, then planes of regions and of the scene in the cosine transform",
        _FASTHYDE,
    ),
    Baseline(
        "rpca",
        denoise_robust_pca,
        "low rank plus sparse plus noise, in windows",
        "Candes et al. 2011, doi:10.1145/1970392.1970395; LRMR, Zhang et al. 2014, doi:10.1109/TGRS.2013.2284280",
    ),
    Baseline(
        "3dtv",
        _tv_3d,
        "total variation in space and spectrum plus sparse",
        "LRTDTV, Wang et al. 2018, doi:10.1109/JSTARS.2017.2779539 (without its low rank)",
    ),
    Baseline(
        "bm4d",
        _bm4d,
        "block matching in four dimensions, told sigma",
        "Maggioni et al. 2013, doi:10.1109/TIP.2012.2210725",
        blind=False,
        extra="bm4d",
    ),
)

#: Every method by its name.
BASELINES: dict[str, Baseline] = {row.name: row for row in _ROWS}
