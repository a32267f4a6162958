"""How good a denoised cube is: PSNR, SSIM, SAM and ERGAS, and the six ways in which the literature computes them.

The four functions take torch tensors of any batch shape, work in float32 or float64 (half precision is raised to
float32, also under autocast) and can be differentiated where they are finite. :func:`evaluate` scores one cube in
float64 under one row of :data:`PROTOCOLS`; the same estimate scores differently under each of them, so that a number
without its protocol says little.

Conventions where the definitions leave a hole:

* Identical bands have an infinite PSNR, and so has the mean over bands then: nothing is left out or capped.
* Two zero spectra have the angle 0; a zero spectrum and any other have a right angle.
* A band of ``clean`` with mean zero adds 0 to ERGAS where it is reproduced exactly and makes it infinite otherwise.

References:
    PSNR, SSIM: Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP 2004.
    doi:10.1109/TIP.2003.819861
    SAM: Kruse et al., "The spectral image processing system (SIPS)", Remote Sensing of Environment 1993.
    doi:10.1016/0034-4257(93)90013-N
    ERGAS: Wald, "Data Fusion: Definitions and Architectures", Presses de l'Ecole des Mines, Paris 2002.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hsidenoise.metrics.protocols import PROTOCOLS, Normalisation, Protocol, Scores, Window

__all__ = ["PROTOCOLS", "Normalisation", "Protocol", "Scores", "Window"]  # what users of the metrics need of protocols
__all__ += ["bandwise_psnr", "bandwise_ssim", "ergas", "evaluate", "evaluate_batch", "psnr", "sam", "ssim"]

_K1, _K2 = 0.01, 0.03  # Wang et al. 2004, section III-C
_UNIFORM_SIDE = 7  # the default of skimage.metrics.structural_similarity
_GAUSSIAN_SIGMA = 1.5  # Wang et al. 2004: an 11x11 Gaussian window of 1.5 pixels
_GAUSSIAN_SIDE = 11
_BEYOND = 2.0  # data ranges from 0, from which a cube is in another unit


def bandwise_psnr(
    denoised: Float[Tensor, "*batch bands height width"],
    clean: Float[Tensor, "*batch bands height width"],
    *,
    data_range: float,
) -> Float[Tensor, "*batch bands"]:
    """Peak signal-to-noise ratio of every band, in dB.

    Returns:
        ``10 log10(data_range^2 / mean squared error)``; infinite for identical bands.

    Raises:
        ValueError: If the shapes differ or the data range is not positive.
    """
    denoised, clean = _checked(denoised, clean)
    error = (denoised - clean).square().mean(dim=(-2, -1))
    return 20.0 * math.log10(_checked_range(data_range)) - 10.0 * torch.log10(error)


def psnr(
    denoised: Float[Tensor, "*batch bands height width"],
    clean: Float[Tensor, "*batch bands height width"],
    *,
    data_range: float,
) -> Float[Tensor, "*batch"]:
    """Peak signal-to-noise ratio in dB, mean over the bands.

    Args:
        denoised: Estimate, in the unit of ``clean``; nothing is clipped.
        clean: Truth.
        data_range: Largest minus smallest possible value, > 0.

    Returns:
        Mean of :func:`bandwise_psnr`; infinite as soon as one band is identical.

    Raises:
        ValueError: If the shapes differ or the data range is not positive.

    Example:
        >>> clean = torch.zeros(2, 3, 4)
        >>> round(psnr(clean + 0.1, clean, data_range=1.0).item(), 3)
        20.0
    """
    return bandwise_psnr(denoised, clean, data_range=data_range).mean(dim=-1)


def bandwise_ssim(
    denoised: Float[Tensor, "*batch bands height width"],
    clean: Float[Tensor, "*batch bands height width"],
    *,
    data_range: float,
    window: Window = "uniform",
    normalisation: Normalisation = "sample",
    mask: Bool[Tensor, "height width"] | Bool[Tensor, "bands height width"] | None = None,
) -> Float[Tensor, "*batch bands"]:
    """Structural similarity of every band; arguments and errors as in :func:`ssim`."""
    denoised, clean = _checked(denoised, clean)
    data_range = _checked_range(data_range)
    # Band by band: the local statistics of a large cube never lie in memory all at once.
    masks = [mask] * denoised.shape[-3] if mask is None or mask.ndim == 2 else mask.unbind(0)
    images = zip(denoised.unbind(-3), clean.unbind(-3), masks, strict=True)
    return torch.stack([_ssim_of_images(x, y, data_range, window, normalisation, m) for x, y, m in images], dim=-1)


def ssim(
    denoised: Float[Tensor, "*batch bands height width"],
    clean: Float[Tensor, "*batch bands height width"],
    *,
    data_range: float,
    window: Window = "uniform",
    normalisation: Normalisation = "sample",
    mask: Bool[Tensor, "height width"] | Bool[Tensor, "bands height width"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Structural similarity, mean over the bands.

    Local means, variances and the covariance of the two images are taken in a sliding window; windows that would
    leave the image are left out. The defaults are those of ``skimage.metrics.structural_similarity``.

    Args:
        denoised: Estimate, in the unit of ``clean``; nothing is clipped.
        clean: Truth.
        data_range: Largest minus smallest possible value, > 0.
        window: "uniform" (7x7), "gaussian" (11x11, sigma 1.5) or "band" (one window, the whole band).
        normalisation: "sample" (n - 1), "population" (n), or "mixed": variances by n and covariance by n - 1, as
            ``np.var`` next to ``np.cov`` gives them.
        mask: Pixels that count, of all bands or of each: a window that touches another one is left out. All if None.

    Raises:
        ValueError: If the shapes differ, the data range is not positive, the image is smaller than the window, or no
            window is left.

    Example:
        >>> clean = torch.arange(2 * 8 * 9.0).reshape(2, 8, 9)
        >>> ssim(clean, clean, data_range=144.0)
        tensor(1.)

    References:
        Wang et al., IEEE TIP 2004, equation 13. doi:10.1109/TIP.2003.819861
    """
    return bandwise_ssim(
        denoised, clean, data_range=data_range, window=window, normalisation=normalisation, mask=mask
    ).mean(dim=-1)


def sam(
    denoised: Float[Tensor, "*batch bands height width"],
    clean: Float[Tensor, "*batch bands height width"],
    *,
    eps: float = 0.0,
) -> Float[Tensor, "*batch"]:
    """Mean spectral angle between two cubes, in radians.

    The angle is taken as ``2 atan2(|u - v|, |u + v|)`` of the unit spectra, which equals the arc cosine of their
    inner product but stays exact, and its gradient finite, where the angle is small.

    Args:
        denoised: Estimate.
        clean: Truth. Two zero spectra have the angle 0; a zero spectrum and any other have pi / 2.
        eps: Greater than 0: the arc cosine of ``(<x, y> + eps) / ((|x| + eps) (|y| + eps))`` instead, as several
            released codes have it, clipped to [-1, 1] where those give NaN (dark pixels). For comparison only: it
            depends on the unit of the cubes, and its gradient is infinite at a cosine of one.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> clean = torch.ones(2, 3, 4)
        >>> denoised = torch.stack([torch.zeros(3, 4), torch.ones(3, 4)])
        >>> round(sam(denoised, clean).item(), 4)  # 45 degrees
        0.7854

    References:
        Kruse et al., Remote Sensing of Environment 1993. doi:10.1016/0034-4257(93)90013-N
    """
    denoised, clean = _checked(denoised, clean)
    norm_x = torch.linalg.vector_norm(denoised, dim=-3, keepdim=True)
    norm_y = torch.linalg.vector_norm(clean, dim=-3, keepdim=True)
    if eps > 0.0:
        inner = (denoised * clean).sum(dim=-3, keepdim=True)
        angle = torch.arccos(((inner + eps) / ((norm_x + eps) * (norm_y + eps))).clamp(-1.0, 1.0))
    else:
        x = denoised / torch.where(norm_x > 0.0, norm_x, 1.0)
        y = clean / torch.where(norm_y > 0.0, norm_y, 1.0)
        apart = torch.linalg.vector_norm(x - y, dim=-3)
        along = torch.linalg.vector_norm(x + y, dim=-3)
        angle = 2.0 * torch.atan2(apart, along)  # atan2(0, 0) = 0, with zero gradient: two zero spectra are equal
    return angle.reshape(*denoised.shape[:-3], -1).mean(dim=-1)


def ergas(
    denoised: Float[Tensor, "*batch bands height width"],
    clean: Float[Tensor, "*batch bands height width"],
) -> Float[Tensor, "*batch"]:
    """Relative dimensionless global error in synthesis: ``100 sqrt(mean over bands of (RMSE_b / mean_b)^2)``.

    Wald's factor, the ratio of two pixel sizes, is 1 here: nothing changes its resolution.

    Args:
        denoised: Estimate, in the unit of ``clean``; nothing is clipped.
        clean: Truth. A band with mean zero adds 0 where it is reproduced exactly, else the result is infinite.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> clean = torch.full((2, 3, 4), 0.5)
        >>> round(ergas(clean + 0.05, clean).item(), 3)  # ten per cent in every band
        10.0

    References:
        Wald, "Data Fusion: Definitions and Architectures", Presses de l'Ecole des Mines, Paris 2002.
    """
    denoised, clean = _checked(denoised, clean)
    error = (denoised - clean).square().mean(dim=(-2, -1))
    power = clean.mean(dim=(-2, -1)).square()
    relative = torch.where(error == 0.0, 0.0, error / torch.where(error == 0.0, 1.0, power))
    return 100.0 * relative.mean(dim=-1).sqrt()


def evaluate_batch(
    denoised: Float[Tensor, "*batch bands height width"],
    clean: Float[Tensor, "*batch bands height width"],
    *,
    data_range: float = 1.0,
    protocol: str = "standard",
    lowest: float | None = None,
    mask: Bool[Tensor, "height width"] | Bool[Tensor, "bands height width"] | None = None,
) -> dict[str, Float[Tensor, "*batch"]]:
    """Score every cube of a batch where the tensors lie, without gradient: what validation during training logs.

    Arguments and errors as of :func:`evaluate`; float32 suffices for logging, float64 for publishing.

    Returns:
        "psnr", "ssim", "sam" and "ergas", one value per cube.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}: choose one of {', '.join(PROTOCOLS)}")
    row = PROTOCOLS[protocol]
    denoised, clean = _checked(denoised.detach(), clean.detach())
    data_range = _checked_range(data_range)
    # All four scores are invariant to scaling both cubes, but the clip and sam_eps are meant on [0, 1].
    denoised, clean = denoised / data_range, clean / data_range
    stored = None if lowest is None else (denoised, clean)
    if lowest is not None:
        denoised, clean = denoised - lowest / data_range, clean - lowest / data_range
    if row.clipped:
        denoised = denoised.clamp(0.0, 1.0)
    x, y = denoised, clean
    u, v = stored or (x, y)
    if mask is not None and mask.ndim == 3 and bool((mask == mask[0]).all()):
        mask = mask[0]
    scores: dict[str, Tensor] = {}
    if mask is not None and not mask.all():
        if row.rows_as_bands:
            raise ValueError(
                f"protocol {protocol!r} reads image rows as bands and cannot leave out pixels; take another protocol, "
                "or crop both cubes to what is valid"
            )
        if mask.ndim == 2:
            x, y, u, v = (cube[..., mask][..., None] for cube in (x, y, u, v))
        else:
            each = [[cube[..., band, m][..., None, :, None] for cube in (x, y, u, v)] for band, m in enumerate(mask)]
            scores["psnr"] = torch.stack([psnr(x, y, data_range=1.0) for x, y, _, _ in each]).mean(dim=0)
            scores["ergas"] = torch.stack([ergas(u, v) for _, _, u, v in each]).square().mean(dim=0).sqrt()
            # the angle at a pixel is that of the bands that count there: the others add nothing to it
            u, v = (torch.where(mask, cube, 0.0)[..., mask.any(dim=0)][..., None] for cube in (u, v))
    else:
        mask = None
    if not scores:
        scores["ergas"] = ergas(u, v)
    if row.rows_as_bands:
        x, y, u, v, denoised, clean = (cube.movedim(-3, -1) for cube in (x, y, u, v, denoised, clean))
    if "psnr" not in scores:
        scores["psnr"] = psnr(x, y, data_range=1.0)
    scores["ssim"] = ssim(
        denoised,
        clean,
        data_range=row.ssim_range,
        window=row.window,
        normalisation=row.normalisation,
        mask=mask,
    )
    angle = sam(u, v, eps=row.sam_eps)
    scores["sam"] = torch.rad2deg(angle) if row.sam_unit == "degrees" else angle
    return scores


def evaluate(
    denoised: np.ndarray | Tensor,
    clean: np.ndarray | Tensor,
    *,
    data_range: float = 1.0,
    protocol: str = "standard",
    lowest: float | None = None,
    mask: np.ndarray | Tensor | None = None,
) -> Scores:
    """Score one denoised cube against the clean one, in float64.

    Args:
        denoised: Estimate (bands, height, width), of any real type, in the unit of ``clean``.
        clean: Truth, of the same shape.
        data_range: Largest minus smallest possible value, > 0. 1 for cubes scaled to [0, 1].
        protocol: Row of :data:`PROTOCOLS`; "standard" unless numbers of a certain paper are to be met.
        lowest: Smallest possible value, for cubes in a unit of their own: PSNR and SSIM are of what is above it, SAM
            and ERGAS of the values as they are, never clipped. If None it is 0, and the protocol's clip is for all.
        mask: True where a pixel (height, width), or a value (bands, height, width), counts, which must be finite; all
            if None. If it differs from band to band, PSNR, SSIM and ERGAS of a band are of its own pixels, and the
            angle at a pixel is that of the bands that count there.

    Raises:
        ValueError: If a cube is no bare array of three axes, not real, empty, not finite, the shapes differ,
            the data range is not positive, the protocol is unknown, the images are smaller than the SSIM window, or
            the valid pixels are none, hold no such window, or do not go with the protocol.

    Warns:
        UserWarning: If the clean cube lies far outside of [0, ``data_range``] and ``lowest`` is None.

    Example:
        >>> clean = np.linspace(0.0, 0.9, 2 * 8 * 9).reshape(2, 8, 9)
        >>> scores = evaluate(clean + 0.1, clean)
        >>> round(scores.psnr, 3), scores.protocol
        (20.0, 'standard')
    """
    if mask is not None:
        _check_bare(mask, "mask")
    pixels = None if mask is None else torch.as_tensor(mask, dtype=torch.bool, device="cpu")
    x, y = _checked(_cube(denoised, "denoised", pixels), _cube(clean, "clean", pixels))
    found = evaluate_batch(x, y, data_range=data_range, protocol=protocol, lowest=lowest, mask=pixels)
    known = y if pixels is None else y[pixels.expand_as(y)]
    if lowest is None and known.abs().max() > _BEYOND * data_range:
        warnings.warn(
            f"the clean cube lies in {known.min():.4g} .. {known.max():.4g}, the scores are of cubes in "
            f"[0, {data_range:g}]: scale both, or give data_range and lowest",
            stacklevel=2,
        )
    return Scores(**{name: float(value) for name, value in found.items()}, protocol=protocol)


def _checked(denoised: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """Two cubes of one shape in one float type of at least 32 bits."""
    if denoised.shape != clean.shape:
        raise ValueError(
            f"denoised has shape {tuple(denoised.shape)} and clean {tuple(clean.shape)}: they must be the same scene, "
            "as (bands, height, width)"
        )
    if denoised.ndim < 3 or denoised.numel() == 0:
        raise ValueError(f"cubes of shape {tuple(clean.shape)}: expected non-empty (..., bands, height, width)")
    dtype = torch.promote_types(torch.promote_types(denoised.dtype, clean.dtype), torch.float32)
    return denoised.to(dtype), clean.to(dtype)


def _checked_range(data_range: float) -> float:
    if not (math.isfinite(data_range) and data_range > 0):
        raise ValueError(f"data_range is {data_range}: pass the largest possible value, a finite number above 0")
    return float(data_range)


def _check_bare(values: Any, name: str) -> None:
    """Refuse what has axes or a mask of its own: a DataArray, a Cube, a masked array."""
    if not isinstance(values, Tensor) and (hasattr(values, "values") or np.ma.is_masked(values)):
        kind = type(values).__name__
        raise ValueError(f"{name} is a {kind}: pass its bare values, (bands, height, width); mask= says which count")


def _cube(values: np.ndarray | Tensor, name: str, mask: Tensor | None) -> Tensor:
    """A private float64 copy of one finite, real cube on the CPU; 0 where it is not mask."""
    if isinstance(values, Tensor):
        if values.is_complex():
            raise ValueError(f"{name} is complex: pass its real part or its magnitude")
        cube = values.detach().to(device="cpu").to(torch.float64)  # in this order: some devices have no float64
    else:
        _check_bare(values, name)
        array = np.asarray(values)
        if array.dtype.kind not in "buif":
            raise ValueError(f"{name} has type {array.dtype}: pass real numbers (a complex cube: its magnitude)")
        cube = torch.from_numpy(np.array(array, dtype=np.float64, order="C"))
    if cube.ndim != 3:
        raise ValueError(f"{name} has shape {tuple(cube.shape)}: evaluate takes one cube (bands, height, width)")
    if mask is not None:
        if mask.shape not in (cube.shape, cube.shape[1:]) or not mask.flatten(-2).any(dim=-1).all():
            raise ValueError(
                f"mask has shape {tuple(mask.shape)} and {int(mask.sum())} pixels that count: pass at least one, in "
                f"every band, as (height, width) of {name}, {tuple(cube.shape[1:])}, or for each band"
            )
        cube = torch.where(mask, cube, 0.0)
    unusable = ~torch.isfinite(cube)
    if unusable.any():
        first = tuple(int(i) for i in unusable.nonzero()[0])
        raise ValueError(
            f"{name} has {int(unusable.sum())} NaN or infinite values, the first at (band, row, column) {first}: "
            "replace them before scoring"
        )
    return cube


def _ssim_of_images(
    x: Float[Tensor, "*batch height width"],
    y: Float[Tensor, "*batch height width"],
    data_range: float,
    window: Window,
    norm: Normalisation,
    mask: Bool[Tensor, "height width"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Structural similarity of every pair of images, under :func:`ssim`'s windows and normalisations."""
    keep = None
    if window == "band" and mask is not None:
        x, y = (image[..., mask][..., None] for image in (x, y))
    if window == "band":
        count = x.shape[-2] * x.shape[-1]
        mean_x, mean_y = x.mean(dim=(-2, -1), keepdim=True), y.mean(dim=(-2, -1), keepdim=True)
        var_x = (x - mean_x).square().mean(dim=(-2, -1), keepdim=True)
        var_y = (y - mean_y).square().mean(dim=(-2, -1), keepdim=True)
        cov = ((x - mean_x) * (y - mean_y)).mean(dim=(-2, -1), keepdim=True)
    else:
        weights = _window_weights(window)
        count = len(weights) ** 2
        if min(x.shape[-2:]) < len(weights):
            raise ValueError(
                f"an image of {x.shape[-2]}x{x.shape[-1]} is smaller than the {len(weights)}x{len(weights)} window of "
                "SSIM: pass a larger crop, or take protocol 'sert', which has no window"
            )
        if mask is not None:
            x, y = (torch.where(mask, image, 0.0) for image in (x, y))
            keep = _smooth((~mask).to(x.dtype), weights) == 0  # no invalid pixel has a share in the window
            if not keep.any():
                raise ValueError(f"no SSIM window of {len(weights)}x{len(weights)} pixels lies in the valid pixels")
        mean_x, mean_y = _smooth(x, weights), _smooth(y, weights)
        var_x = _smooth(x * x, weights) - mean_x.square()
        var_y = _smooth(y * y, weights) - mean_y.square()
        cov = _smooth(x * y, weights) - mean_x * mean_y
    unbiased = count / max(count - 1, 1)
    if norm == "sample":
        var_x, var_y = var_x * unbiased, var_y * unbiased
    if norm in ("sample", "mixed"):
        cov = cov * unbiased
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    similarity = ((2.0 * mean_x * mean_y + c1) * (2.0 * cov + c2)) / (
        (mean_x.square() + mean_y.square() + c1) * (var_x + var_y + c2)
    )
    return similarity.mean(dim=(-2, -1)) if keep is None else similarity[..., keep].mean(dim=-1)


def _window_weights(window: Window) -> list[float]:
    """Weights of a separable window along one side; they sum to one."""
    if window == "uniform":
        return [1.0 / _UNIFORM_SIDE] * _UNIFORM_SIDE
    if window != "gaussian":
        raise ValueError(f"unknown SSIM window {window!r}: choose one of uniform, gaussian, band")
    centre = _GAUSSIAN_SIDE // 2
    bell = [math.exp(-0.5 * ((i - centre) / _GAUSSIAN_SIGMA) ** 2) for i in range(_GAUSSIAN_SIDE)]
    return [value / sum(bell) for value in bell]


def _smooth(image: Tensor, weights: list[float]) -> Tensor:
    """Weighted mean in a sliding window, along height, then width, without the border.

    Sums of slices, not a convolution: autocast and TF32 would round that one to 8-11 bits.
    """
    for dim in (-2, -1):
        length = image.shape[dim] - len(weights) + 1
        image = sum(
            (image.narrow(dim, start, length) * weight for start, weight in enumerate(weights)),
            start=image.new_zeros(()),
        )
    return image
