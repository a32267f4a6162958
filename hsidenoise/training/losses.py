"""The training loss of HCANet: a data term plus a global gradient regulariser, as released and written properly.

The regulariser compares Sobel derivatives of two projections of a cube: its mean over the bands, an image (height,
width), and its mean over the height, a map (bands, width). What the released code does there (read in the MAFNet
training code that HCANet's authors point to; the code is not copied):

* it takes one norm over the whole batch, so that the loss of a cube depends on its neighbours in the batch and the
  regulariser grows with the square root of the number of pixels and of cubes;
* the third projection sums over the height but divides by the number of bands, and is derived along the width again,
  never along the spectrum.

``form="released"`` keeps all of this. ``form="cube"`` takes a root mean square for each cube, a true mean over the
height, and derives the (bands, width) map along the bands, so that the three terms are the three axes of the cube. Its
unit is chosen so that the published weight of 0.001 keeps its meaning: on the published patch of 128x128 pixels, one
cube, the two spatial terms equal the released ones.

References:
    Hu et al., "Hybrid Convolutional and Attention Network for Hyperspectral Image Denoising", IEEE GRSL 2024.
    arXiv:2403.10067 (the loss).
    Pan et al., "Multi-scale Adaptive Fusion Network for Hyperspectral Image Denoising", IEEE JSTARS 2023 (the code).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

Form = Literal["cube", "released"]
DataTerm = Literal["l1", "charbonnier", "mse", "psnr"]

RELEASED_GRADIENT_WEIGHT = 1e-3  # of the released training code: mean|x - y| + 0.001 g
_PATCH_SIDE = 128  # published training patch; a 3x3 derivative without border leaves 126
_CHARBONNIER_EPS = 1e-3  # on the [0, 1] scale, below the noise that is trained on
_PSNR_EPS = 1e-8  # a band better than 80 dB is good enough
_ANGLE_EPS = 1e-3  # root mean square of a spectrum below which it is too dark for its angle to count in full
_NORM_EPS = 1e-6  # keeps the gradient of a root finite at zero difference


def global_gradient(
    denoised: Float[Tensor, "batch bands height width"], clean: Float[Tensor, "batch bands height width"]
) -> Float[Tensor, " batch"]:
    """Global gradient regulariser of each cube on its own: what ``form="cube"`` uses.

    For each cube, ``126 (rms_width + rms_height + rms_bands)``: root mean squares of the Sobel derivatives (kernel sum
    of magnitudes 8, no border) of the difference, the first two of its mean over the bands, the last along the bands of
    its mean over the height. 126 = 128 - 2 turns the root mean square into the norm over a published 128x128 patch, in
    whose unit 0.001 is the published weight; the value does not grow with the patch.

    Args:
        denoised: Estimate, in the unit of ``clean``.
        clean: Truth. At least 3 bands, rows and columns.

    Returns:
        One value >= 0 per cube, in the unit of the cubes; exactly zero, with zero gradient, for equal cubes.

    Raises:
        ValueError: If the shapes differ or an axis is shorter than 3.

    Example:
        >>> clean = torch.zeros(2, 3, 4, 5)
        >>> ramp = 0.1 * torch.arange(5.0).expand(2, 3, 4, 5)  # 0.1 per column: Sobel gives 0.8
        >>> [round(value, 3) for value in (global_gradient(ramp, clean) / 126).tolist()]
        [0.8, 0.8]
    """
    difference = _difference(denoised, clean)
    image = difference.mean(dim=1)  # (batch, height, width)
    spectral_map = difference.mean(dim=2)  # (batch, bands, width)
    terms = (_sobel(image), _sobel(image.mT), _sobel(spectral_map.mT))
    total = torch.stack([_root_mean_square(term) for term in terms]).sum(dim=0)
    return (_PATCH_SIDE - 2) * total


def released_global_gradient(
    denoised: Float[Tensor, "batch bands height width"], clean: Float[Tensor, "batch bands height width"]
) -> Float[Tensor, ""]:
    """Global gradient regulariser of a whole batch, as the released code computes it.

    The sum of three Euclidean norms over all cubes and pixels: Sobel along the width and along the height of the mean
    over the bands, and along the width of the sum over the height divided by the number of bands (sic).

    Args:
        denoised: Estimate, in the unit of ``clean``.
        clean: Truth. At least 3 bands, rows and columns.

    Raises:
        ValueError: If the shapes differ or an axis is shorter than 3.

    Example:
        >>> clean = torch.zeros(2, 3, 4, 5)
        >>> ramp = 0.1 * torch.arange(5.0).expand(2, 3, 4, 5)
        >>> round(released_global_gradient(ramp, clean).item(), 4)  # 0.8 (sqrt(2 * 2 * 3) + 4 / 3 sqrt(2 * 1 * 3))
        5.3841
    """
    difference = _difference(denoised, clean)
    image = difference.mean(dim=1)
    spectral_map = difference.sum(dim=2) / difference.shape[1]
    terms = (_sobel(image), _sobel(image.mT), _sobel(spectral_map))
    return torch.stack([torch.linalg.vector_norm(term) for term in terms]).sum()


def spectral_angle(
    denoised: Float[Tensor, "batch bands height width"], clean: Float[Tensor, "batch bands height width"]
) -> Float[Tensor, " batch"]:
    """Mean angle between the spectra of each cube, as a loss: radians for small angles.

    The chord between the two spectra scaled to length one, ``2 sin(angle / 2)``, which unlike the angle has a finite
    gradient everywhere. A spectrum's length has a floor of 0.001 for each band: black has no direction.

    Args:
        denoised: Estimate, on the [0, 1] scale.
        clean: Truth.

    Returns:
        One value >= 0 per cube.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> clean = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1)
        >>> turned = torch.tensor([0.995, 0.0998]).reshape(1, 2, 1, 1)  # by 0.1
        >>> round(spectral_angle(turned, clean).item(), 3)
        0.1
    """
    _difference(denoised, clean, shortest=1)
    floor = _ANGLE_EPS * denoised.shape[1] ** 0.5
    chord = _direction(denoised, floor) - _direction(clean, floor)
    return ((chord.square().sum(dim=1) + _NORM_EPS**2).sqrt() - _NORM_EPS).mean(dim=(1, 2))


def _direction(spectra: Tensor, floor: float) -> Tensor:
    return spectra / (spectra.square().sum(dim=1, keepdim=True) + floor**2).sqrt()


class DenoisingLoss(nn.Module):
    """Data term plus global gradient regulariser; computed in float32 (float64 for float64) also under autocast.

    Args:
        gradient_weight: Weight of the regulariser, >= 0. 0.001 is published; 0 leaves it out.
        form: "cube": per cube and independent of batch and patch size (:func:`global_gradient`); "released": over the
            whole batch, as released (:func:`released_global_gradient`).
        data_term: Mean over all values of the batch: "l1" ``|d|`` (published), "charbonnier" ``sqrt(d^2 + 1e-6)``,
            "mse" ``d^2``. "psnr": the mean over the bands of ``ln(mse + 1e-8) / 20``, which is what a table counts; a
            band of little noise weighs as much as one of much.
        angle_weight: Weight of :func:`spectral_angle`, >= 0; not published. 0 leaves it out.

    Raises:
        ValueError: If an option is unknown or the weight is negative.

    Example:
        >>> loss = DenoisingLoss(gradient_weight=0.0)
        >>> loss(torch.full((1, 3, 4, 5), 0.5), torch.zeros(1, 3, 4, 5))
        tensor(0.5000)

    References:
        Hu et al., IEEE GRSL 2024, arXiv:2403.10067.
        Charbonnier et al., "Two deterministic half-quadratic regularization algorithms for computed imaging", ICIP
        1994. doi:10.1109/ICIP.1994.413553
    """

    def __init__(
        self,
        gradient_weight: float = RELEASED_GRADIENT_WEIGHT,
        form: Form = "cube",
        data_term: DataTerm = "l1",
        angle_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if form not in get_args(Form):
            raise ValueError(f"unknown form {form!r} of the loss: choose one of {', '.join(get_args(Form))}")
        if data_term not in get_args(DataTerm):
            raise ValueError(f"unknown data term {data_term!r}: choose one of {', '.join(get_args(DataTerm))}")
        if not gradient_weight >= 0.0:
            raise ValueError(f"gradient_weight is {gradient_weight}: pass 0 (no regulariser) or more")
        if not angle_weight >= 0.0:
            raise ValueError(f"angle_weight is {angle_weight}: pass 0 (no spectral angle) or more")
        self.gradient_weight = gradient_weight
        self.angle_weight = angle_weight
        self.form = form
        self.data_term = data_term

    def extra_repr(self) -> str:
        """Say the options when the module is printed."""
        weights = f"gradient_weight={self.gradient_weight}, angle_weight={self.angle_weight}"
        return f"{weights}, form={self.form!r}, data_term={self.data_term!r}"

    def forward(
        self,
        denoised: Float[Tensor, "batch bands height width"],
        clean: Float[Tensor, "batch bands height width"],
    ) -> Float[Tensor, ""]:
        """Loss of a batch.

        Args:
            denoised: Estimates, in the unit of ``clean``.
            clean: Truths, on the [0, 1] scale. At least 3 bands, rows and columns where the regulariser is used.

        Raises:
            ValueError: If the shapes differ, or an axis is too short for the regulariser.
        """
        # The root and the mean over many values lose too much in half precision.
        with torch.autocast(device_type=denoised.device.type, enabled=False):
            denoised, clean = _raised(denoised), _raised(clean)
            loss = self._data(_difference(denoised, clean, shortest=1))
            if self.gradient_weight > 0.0:
                if self.form == "cube":
                    regulariser = global_gradient(denoised, clean).mean()
                else:
                    regulariser = released_global_gradient(denoised, clean)
                loss = loss + self.gradient_weight * regulariser
            if self.angle_weight > 0.0:
                loss = loss + self.angle_weight * spectral_angle(denoised, clean).mean()
        return loss

    def _data(self, difference: Tensor) -> Tensor:
        if self.data_term == "l1":
            return difference.abs().mean()
        if self.data_term == "charbonnier":
            return (difference.square() + _CHARBONNIER_EPS**2).sqrt().mean()
        if self.data_term == "psnr":
            return (difference.square().mean(dim=(2, 3)) + _PSNR_EPS).log().mean() / 20
        return difference.square().mean()


def _raised(cubes: Tensor) -> Tensor:
    """At least float32."""
    return cubes.to(torch.promote_types(cubes.dtype, torch.float32))


def _difference(denoised: Tensor, clean: Tensor, shortest: int = 3) -> Tensor:
    """Difference of two batches; derivatives are linear, so that of the difference is the difference of those."""
    if denoised.shape != clean.shape:
        raise ValueError(f"denoised has shape {tuple(denoised.shape)} and clean {tuple(clean.shape)}: must be equal")
    if denoised.ndim != 4 or min(denoised.shape[1:]) < shortest:
        raise ValueError(
            f"the loss needs (batch, bands, height, width) with at least {shortest} bands, rows and columns, got "
            f"{tuple(denoised.shape)}" + (": set gradient_weight=0 for fewer" if shortest > 1 else "")
        )
    return denoised - clean


def _sobel(image: Tensor) -> Tensor:
    """Sobel derivative along the last axis, smoothed along the one before, where the 3x3 window fits."""
    slope = image[..., :, 2:] - image[..., :, :-2]
    return slope[..., :-2, :] + 2.0 * slope[..., 1:-1, :] + slope[..., 2:, :]


def _root_mean_square(image: Tensor) -> Tensor:
    """Root mean square over the last two axes, exactly 0 at 0, with a finite gradient there."""
    # A plain sqrt has an infinite slope at 0, and 0 * inf is NaN in the backward pass.
    return (image.square().mean(dim=(-2, -1)) + _NORM_EPS**2).sqrt() - _NORM_EPS
