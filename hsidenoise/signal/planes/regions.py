"""Denoise a cube by small regions, each in planes of its own (:mod:`hsidenoise.signal.planes.estimate` says why)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hsidenoise.signal.planes.basis import BandKernels, band_kernels, find_basis
from hsidenoise.signal.planes.filter import threshold, wiener
from hsidenoise.signal.tiling import plan

# Chosen as those of hsidenoise.signal.planes.estimate.

REGION = 40
"""Side in pixels of a region with planes of its own, for up to 31 bands; it grows with the root of the bands, for which
more pixels must speak. Twelve cells (gaussian-30, non-iid, mixture of four scenes): 64 loses 0.19 dB, 48 loses 0.06, 32
gains 0.03 in one fifth more time."""

OVERLAP = 12
"""Pixels by which regions overlap at least. Twelve cells (gaussian-5, gaussian-30 and mixture of four scenes): 16 is as
good, 8 loses 0.02 dB."""

REGION_STRIDE = 2
"""Distance of the blocks of 8 pixels in a region. Six cells (gaussian-5, gaussian-30 and mixture of superballs and
pavia_crop): 1 gains 0.006 dB and makes the whole take a third more time, 4 loses 0.05."""

SAME = 0.05
"""Noise levels by which a value may change before its region is denoised again. Where one to three lines of four scenes
are shifted, to do all regions again gains 0.01 dB in up to a fifth more time."""

_REGION_BANDS = 31


class Regions:
    """Threshold and Wiener filter in the planes of each region; one in which nothing has changed is not done again.

    Example:
        >>> noise = torch.randn(5, 50, 60, generator=torch.Generator().manual_seed(0))
        >>> bool(Regions().denoise(noise, torch.ones(5))[0].std() < 0.5)
        True
    """

    def __init__(self) -> None:
        self.seen: Tensor | None = None
        self.found: dict[tuple[int, int], tuple[Tensor, ...]] = {}

    def denoise(
        self, cube: Float[Tensor, "bands height width"], sigma: Float[Tensor, " bands"]
    ) -> tuple[Float[Tensor, "bands height width"], Float[Tensor, " bands"]]:
        """Denoise a cube, or the same with some values changed.

        Args:
            cube: Noisy cube without lost values, in any unit.
            sigma: Noise level of each band.

        Returns:
            The scene as the regions find it; and the share of its noise that each band lacks.
        """
        bands, *size = cube.shape
        side = max(REGION, round(REGION * (bands / _REGION_BANDS) ** 0.5))
        height, width = (min(side, length) for length in size)
        taper = _ramp(height, cube)[:, None] * _ramp(width, cube)
        result, total, absorbed = torch.zeros_like(cube), torch.zeros_like(cube[0]), torch.zeros_like(sigma)
        overlap = min(OVERLAP, height - 1, width - 1)
        kernels = band_kernels(sigma)
        changed = None if self.seen is None else ((cube - self.seen).abs() > SAME * sigma[:, None, None]).any(0)
        for top in plan(size[0], height, overlap):
            for left in plan(size[1], width, overlap):
                here = np.s_[:, top : top + height, left : left + width]
                if changed is None or changed[here[1:]].any():
                    self.found[top, left] = _region(cube[here], sigma, kernels)
                planes, share, basis, mean, level = self.found[top, left]
                result[here] += taper * composed(planes, basis, mean, level)
                total[here[1:]] += taper
                absorbed += (basis.square() @ share) * taper.sum()
        self.seen = cube
        return result / total, absorbed / total.sum()


def _region(cube: Tensor, sigma: Tensor, kernels: BandKernels) -> tuple[Tensor, ...]:
    """Filtered planes of a region, the share of noise that each lacks, and what makes a cube of them."""
    spectrum, basis = find_basis(cube, sigma, kernels)
    mean = spectrum[:, None, None]
    whitened = (cube - mean) / sigma[:, None, None]
    planes = (basis.mT @ whitened.flatten(1)).reshape(-1, *cube.shape[1:])
    filtered, share = wiener(planes, threshold(planes, stride=REGION_STRIDE), stride=REGION_STRIDE)
    return filtered, share, basis, mean, sigma


def composed(
    planes: Float[Tensor, "planes height width"],
    basis: Float[Tensor, "bands planes"],
    mean: Float[Tensor, "bands 1 1"],
    sigma: Float[Tensor, " bands"],
) -> Float[Tensor, "bands height width"]:
    """The cube of some planes."""
    bands = (basis @ planes.flatten(1)).reshape(-1, *planes.shape[1:])
    return mean + sigma[:, None, None] * bands


def _ramp(length: int, like: Tensor) -> Tensor:
    rising = torch.arange(1, length + 1, device=like.device, dtype=like.dtype)
    return torch.minimum(rising, rising.flip(0)).clamp(max=OVERLAP)
