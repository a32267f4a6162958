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
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Window = Literal["uniform", "gaussian", "band"]
Normalisation = Literal["sample", "population", "mixed"]

_K1, _K2 = 0.01, 0.03  # Wang et al. 2004, section III-C
_UNIFORM_SIDE = 7  # the default of skimage.metrics.structural_similarity
_GAUSSIAN_SIGMA = 1.5  # Wang et al. 2004: an 11x11 Gaussian window of 1.5 pixels
_GAUSSIAN_SIDE = 11


@dataclass(frozen=True)
class Scores:
    """Scores of one denoised cube.

    Attributes:
        psnr: Peak signal-to-noise ratio in dB, mean over bands; infinite where a band is reproduced exactly.
        ssim: Structural similarity, mean over bands, at most 1.
        sam: Mean spectral angle, in radians (protocol ``sert``: degrees).
        ergas: Relative dimensionless global error, 0 is perfect.
        protocol: Row of :data:`PROTOCOLS` that they follow.
    """

    psnr: float
    ssim: float
    sam: float
    ergas: float
    protocol: str


@dataclass(frozen=True)
class Protocol:
    """One way of computing the metrics; ERGAS differs between them only through ``clipped``.

    Attributes:
        name: Key in :data:`PROTOCOLS`.
        source: Whose numbers it reproduces.
        clipped: Whether the estimate is clipped to [0, data_range] first.
        window: SSIM statistics: 7x7 window, Gaussian window of 1.5 pixels, or of the whole band.
        normalisation: Of the SSIM variances and covariance, see :func:`ssim`.
        ssim_range: Factor on the data range inside SSIM.
        sam_unit: Unit in which the angle is reported.
        sam_eps: Constant added to the inner product and to both norms, on the [0, 1] scale.
        rows_as_bands: Whether (height, width, bands) is read as (bands, height, width): PSNR and SSIM are then means
            over image rows, and "spectra" run down the columns.
    """

    name: str
    source: str
    clipped: bool
    window: Window = "uniform"
    normalisation: Normalisation = "sample"
    ssim_range: float = 1.0
    sam_unit: Literal["radians", "degrees"] = "radians"
    sam_eps: float = 0.0
    rows_as_bands: bool = False


# ssim_range 2 is what scikit-image once took for floats when no range was passed: the width of [-1, 1].
_ROWS = (
    Protocol("standard", "this project", clipped=True),
    Protocol(
        "qrnn3d",
        "QRNN3D (Wei et al., IEEE TNNLS 2021, doi:10.1109/TNNLS.2020.2978756) and HSDT (Lai et al., ICCV 2023)",
        clipped=False,
        ssim_range=2.0,
        sam_eps=1e-8,
    ),
    Protocol("hsir", "the HSIR toolbox (github.com/bit-isp-lab/HSIR)", clipped=True, ssim_range=2.0, sam_eps=1e-8),
    Protocol(
        "sert",
        "SERT (Li et al., CVPR 2023, arXiv:2304.00844)",
        clipped=False,
        window="band",
        normalisation="mixed",
        sam_unit="degrees",
    ),
    Protocol(
        "t3sc",
        "T3SC (Bodrito et al., NeurIPS 2021, arXiv:2111.09708)",
        clipped=True,
        window="gaussian",
        normalisation="population",
    ),
    # The golden values, like the released test code, score the unclipped estimate.
    Protocol(
        "mafnet",
        "MAFNet (Pan et al., IEEE JSTARS 2023), whose code HCANet's authors point to",
        clipped=False,
        sam_eps=1e-8,
        rows_as_bands=True,
    ),
)

PROTOCOLS: dict[str, Protocol] = {row.name: row for row in _ROWS}


def bandwise_psnr(
    denoised: Float[Tensor, "*batch bands height width"],
    clean: Float[Tensor, "*batch bands height width"],
    *,
    data_range: float,
) -> Float[Tensor, "*batch bands"]:
    """Peak signal-to-noise ratio of every band, in dB.

    Args:
        denoised: Estimate, in the unit of ``clean``; nothing is clipped.
        clean: Truth.
        data_range: Largest minus smallest possible value, > 0 (1 for a cube scaled to [0, 1]).

    Returns:
        ``10 log10(data_range^2 / mean squared error)``; infinite for identical bands.

    Raises:
        ValueError: If the shapes differ or the data range is not positive.

    Example:
        >>> clean = torch.zeros(2, 3, 4)
        >>> bandwise_psnr(clean + 0.5, clean, data_range=5.0)  # the error is a tenth of the range
        tensor([20., 20.])
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
) -> Float[Tensor, "*batch bands"]:
    """Structural similarity of every band; arguments and errors as in :func:`ssim`.

    Example:
        >>> clean = torch.arange(2 * 8 * 9.0).reshape(2, 8, 9)
        >>> bandwise_ssim(clean, clean, data_range=144.0)
        tensor([1., 1.])
    """
    denoised, clean = _checked(denoised, clean)
    data_range = _checked_range(data_range)
    # Band by band: the local statistics of a large cube never lie in memory all at once.
    pairs = zip(denoised.unbind(-3), clean.unbind(-3), strict=True)
    return torch.stack([_ssim_of_images(x, y, data_range, window, normalisation) for x, y in pairs], dim=-1)


def ssim(
    denoised: Float[Tensor, "*batch bands height width"],
    clean: Float[Tensor, "*batch bands height width"],
    *,
    data_range: float,
    window: Window = "uniform",
    normalisation: Normalisation = "sample",
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

    Raises:
        ValueError: If the shapes differ, the data range is not positive, or the image is smaller than the window.

    Example:
        >>> clean = torch.arange(2 * 8 * 9.0).reshape(2, 8, 9)
        >>> ssim(clean, clean, data_range=144.0)
        tensor(1.)

    References:
        Wang et al., IEEE TIP 2004, equation 13. doi:10.1109/TIP.2003.819861
    """
    return bandwise_ssim(denoised, clean, data_range=data_range, window=window, normalisation=normalisation).mean(
        dim=-1
    )


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
) -> dict[str, Float[Tensor, "*batch"]]:
    """Score every cube of a batch where the tensors lie, without gradient: what validation during training logs.

    Args:
        denoised: Estimates, in the unit of ``clean``; float32 suffices for logging, float64 for publishing.
        clean: Truths.
        data_range: Largest possible value, > 0; the smallest is 0.
        protocol: Row of :data:`PROTOCOLS`.

    Returns:
        "psnr", "ssim", "sam" and "ergas", one value per cube.

    Raises:
        ValueError: If the shapes differ, the data range is not positive, the protocol is unknown, or an image is
            smaller than the SSIM window.

    Example:
        >>> clean = torch.arange(3 * 2 * 8 * 9.0).reshape(3, 2, 8, 9) / 432
        >>> evaluate_batch(clean, clean)["ssim"]
        tensor([1., 1., 1.])
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}: choose one of {', '.join(PROTOCOLS)}")
    row = PROTOCOLS[protocol]
    denoised, clean = _checked(denoised.detach(), clean.detach())
    data_range = _checked_range(data_range)
    # All four scores are invariant to scaling both cubes, but the clip and sam_eps are meant on [0, 1].
    denoised, clean = denoised / data_range, clean / data_range
    if row.clipped:
        denoised = denoised.clamp(0.0, 1.0)
    scores = {"ergas": ergas(denoised, clean)}
    if row.rows_as_bands:
        denoised, clean = denoised.movedim(-3, -1), clean.movedim(-3, -1)
    scores["psnr"] = psnr(denoised, clean, data_range=1.0)
    scores["ssim"] = ssim(
        denoised, clean, data_range=row.ssim_range, window=row.window, normalisation=row.normalisation
    )
    angle = sam(denoised, clean, eps=row.sam_eps)
    scores["sam"] = torch.rad2deg(angle) if row.sam_unit == "degrees" else angle
    return scores


def evaluate(
    denoised: np.ndarray | Tensor,
    clean: np.ndarray | Tensor,
    *,
    data_range: float = 1.0,
    protocol: str = "standard",
) -> Scores:
    """Score one denoised cube against the clean one, in float64.

    Args:
        denoised: Estimate (bands, height, width), of any real type, in the unit of ``clean``.
        clean: Truth, of the same shape.
        data_range: Largest possible value, > 0; the smallest is 0. 1 for cubes scaled to [0, 1].
        protocol: Row of :data:`PROTOCOLS`; "standard" unless numbers of a certain paper are to be met.

    Raises:
        ValueError: If a cube is not three-dimensional, not real, empty or has non-finite values, the shapes differ,
            the data range is not positive, the protocol is unknown, or the images are smaller than the SSIM window.

    Example:
        >>> clean = np.linspace(0.0, 0.9, 2 * 8 * 9).reshape(2, 8, 9)
        >>> scores = evaluate(clean + 0.1, clean)
        >>> round(scores.psnr, 3), scores.protocol
        (20.0, 'standard')
    """
    x, y = _checked(_cube(denoised, "denoised"), _cube(clean, "clean"))
    scores = {
        name: float(value) for name, value in evaluate_batch(x, y, data_range=data_range, protocol=protocol).items()
    }
    return Scores(**scores, protocol=protocol)


def _ssim_of_images(x: Tensor, y: Tensor, data_range: float, window: Window, norm: Normalisation) -> Tensor:
    """SSIM of images (..., height, width) -> (...)."""
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
    return similarity.mean(dim=(-2, -1))


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


def _cube(values: np.ndarray | Tensor, name: str) -> Tensor:
    """A private float64 copy of one finite, real cube on the CPU."""
    if isinstance(values, Tensor):
        if values.is_complex():
            raise ValueError(f"{name} is complex: pass its real part or its magnitude")
        cube = values.detach().to(device="cpu").to(torch.float64)  # in this order: some devices have no float64
    else:
        array = np.asarray(values)
        if array.dtype.kind not in "buif":
            raise ValueError(f"{name} has type {array.dtype}: pass real numbers (a complex cube: its magnitude)")
        cube = torch.from_numpy(np.array(array, dtype=np.float64, order="C"))
    if cube.ndim != 3:
        raise ValueError(f"{name} has shape {tuple(cube.shape)}: evaluate takes one cube (bands, height, width)")
    unusable = ~torch.isfinite(cube)
    if unusable.any():
        first = tuple(int(i) for i in unusable.nonzero()[0])
        raise ValueError(
            f"{name} has {int(unusable.sum())} NaN or infinite values, the first at (band, row, column) {first}: "
            "replace them before scoring"
        )
    return cube
