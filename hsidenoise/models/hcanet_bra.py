"""HCANet-BRA on the planes of the cube itself: one network for any number of bands and any unit.

A cube's noise-whitened spectra span a few dimensions; its planes (eigen-images) along them are what
:func:`hsidenoise.signal.planes.estimate.denoise_by_planes` filters without any weights. This network sees what those
filters saw and found, and adds what they missed:

* it works on the leading planes, whatever bands they come from: three bands or three hundred go through in one pass,
  with one set of weights;
* all that it sees and gives is in units of the noise: a cube in counts and the same in [0, 1] are one cube to it, and
  where there is little noise there is little to add.

Inside it is HCANet's U with bi-level routing attention (:class:`hsidenoise.models.unet.MixingUNet`), by default
on the lowest level.

References:
    Hu et al., "Hybrid Convolutional and Attention Network for Hyperspectral Image Denoising", IEEE GRSL 2024.
    arXiv:2403.10067
    Zhu et al., "BiFormer: Vision Transformer with Bi-Level Routing Attention", CVPR 2023. arXiv:2303.08810
    Zhuang and Bioucas-Dias, "Fast hyperspectral image denoising and inpainting based on low-rank and sparse
    representations", IEEE JSTARS 2018. doi:10.1109/JSTARS.2018.2796570
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from hsidenoise.models.blocks import pad_to_multiple
from hsidenoise.models.unet import MixingUNet
from hsidenoise.signal.planes.estimate import LEAST_ENERGY, PlaneStages, denoise_by_planes

_VIEWS = 5  # of each plane that go in
_GATES = 3  # of each plane that come out, beside what is added
_CLOSED = (-3.0, -3.0, -5.0)  # where the gates begin: nearly closed
_MOST_REJECTED = 100.0  # variances of the noise, of one value
# Noise levels that a value is off by, at most, in what the network sees. Further off are dots in a band that has hardly
# any noise, such as an empty one: then the network spoils all bands. With 19 such bands of 205 (abu-airport-2) the
# error of the others is 19 times that without them; with 300 noise levels 3.3, 100: 1.3, 50: 1.1, 30: 1.05. The noise
# cases of this package do not come so far; hot values at a noise of 0.002 to 0.01 (abu-urban-2) are best at 30 to 100.
_MOST_OFF = 50.0


class PlaneInputs(NamedTuple):
    """What the network sees of a batch of cubes, and the way back.

    Attributes:
        denoised: The scene by the filters, in the unit of the cube: what the network adds to.
        planes: Four images of each plane, in units of the noise: the scene by the filters; and relative to it, the
            scene as the small regions found it, the noisy cube with outliers drawn in, the noisy cube.
        doubts: How much was rejected as outlying at a pixel, mean over the bands, variances of the noise; share of the
            bands where the value is lost.
        spread: Root mean square of each noisy plane, 1 where there is nothing but noise.
        basis: Takes planes to bands in the unit of the cube.
    """

    denoised: Float[Tensor, "batch bands height width"]
    planes: Float[Tensor, "batch views_planes height width"]
    doubts: Float[Tensor, "batch 2 height width"]
    spread: Float[Tensor, "batch planes"]
    basis: Float[Tensor, "batch bands planes"]


PLANE_INPUTS = ("planes", "doubts", "spread")
"""Those of the parts that what is learnt takes."""


def plane_inputs(stages: PlaneStages, planes: int) -> PlaneInputs:
    """What the network sees of one cube, as a batch of one, in the unit of the stages and without constant bands.

    Args:
        stages: What the filters know.
        planes: Planes of the network; of a cube with less in it the rest are empty.
    """
    with torch.autocast(stages.known.device.type, enabled=False):
        return _plane_inputs(stages, planes)


def _plane_inputs(stages: PlaneStages, planes: int) -> PlaneInputs:
    sigma = stages.sigma[:, None, None]
    size = stages.known.shape[1:]
    mean = stages.denoised.mean((1, 2), keepdim=True)
    whitened = ((stages.denoised - mean) / sigma).flatten(1)
    energy, directions = torch.linalg.eigh((whitened @ whitened.mT / whitened.shape[1]).double())
    # below, there is nothing but rounding to say which direction is which
    kept = min(planes, max(1, int((energy > LEAST_ENERGY).sum())))
    basis = directions[:, -kept:].flip(1).to(whitened)
    basis = basis * torch.where(basis.sum(0) < 0, -1.0, 1.0)
    empty = planes - kept

    def along(cube: Tensor) -> Tensor:
        return F.pad((basis.mT @ (cube / sigma).flatten(1)).reshape(kept, *size), (0, 0, 0, 0, 0, empty))

    inside = stages.known - stages.denoised
    trusted, residual = (
        each.clamp(-_MOST_OFF * sigma, _MOST_OFF * sigma) for each in (stages.trusted, stages.residual)
    )
    views = (stages.denoised - mean, inside, inside + trusted, inside + residual)
    rejected = ((stages.residual - stages.trusted) / sigma).square().clamp_max(_MOST_REJECTED).mean(0)
    spread = (1.0 + energy[-kept:].flip(0).clamp_min(0).to(whitened)).sqrt()
    return PlaneInputs(
        stages.denoised[None],
        torch.cat([along(view) for view in views])[None],
        torch.stack([rejected, stages.lost.to(rejected).mean(0)])[None],
        F.pad(spread, (0, empty), value=1.0)[None],
        F.pad(stages.sigma[:, None] * basis, (0, empty))[None],
    )


class HCANetBRA(MixingUNet):
    """U-shaped denoiser of the planes of a cube, with bi-level routing attention.

    Args:
        planes: Leading planes that the network sees and corrects; the filters alone denoise the others.
        dim: Width of level 1; this and the following arguments as of :class:`~hsidenoise.models.unet.MixingUNet`.
        num_blocks: Blocks of each level.
        num_refinement_blocks: Blocks after the decoder.
        heads: Heads of the attention.
        region_size: Side of a routing region, pixels.
        topk: Regions that each attends to.
        expansion: Width of MSFN's groups.
        attention: Global branch of a block, on each level.
        local: Local branch.
        feed_forward: Feed-forward network.

    Attributes:
        bands: None: it takes any number.
        switches: Arguments that may differ from those of the weights that a training starts from.

    Raises:
        ValueError: As :class:`~hsidenoise.models.unet.MixingUNet`.

    Example:
        >>> network = HCANetBRA(planes=4, dim=8, num_blocks=(1, 1, 1), heads=(1, 2, 4))
        >>> network(torch.rand(1, 6, 21, 30)).shape
        torch.Size([1, 6, 21, 30])
    """

    bands = None
    learnt = "correct"
    switches = ("attention", "local", "feed_forward")

    def __init__(
        self,
        planes: int = 16,
        dim: int = 48,
        num_blocks: Sequence[int] = (1, 2, 2),
        num_refinement_blocks: int = 1,
        heads: Sequence[int] = (1, 2, 4),
        region_size: int = 8,
        topk: int = 4,
        expansion: float = 1.0,
        attention: str | Sequence[str] = ("none", "none", "bra"),
        local: str = "spectral",
        feed_forward: str = "multiscale",
    ) -> None:
        super().__init__(
            _VIEWS * planes + 2,
            (_GATES + 1) * planes,
            planes,
            dim,
            num_blocks,
            num_refinement_blocks,
            heads,
            region_size,
            topk,
            expansion,
            attention,
            local,
            feed_forward,
        )
        self.planes = planes
        self.estimator = partial(estimate_planes, planes=planes)
        self.config: dict[str, Any] = {
            "planes": planes,
            "dim": dim,
            "num_blocks": list(num_blocks),
            "num_refinement_blocks": num_refinement_blocks,
            "heads": list(heads),
            "region_size": region_size,
            "topk": topk,
            "expansion": expansion,
            "attention": attention if isinstance(attention, str) else list(attention),
            "local": local,
            "feed_forward": feed_forward,
        }

    def forward(
        self, noisy: Float[Tensor, "batch bands height width"], sigma: Float[Tensor, " bands"] | None = None
    ) -> Float[Tensor, "batch bands height width"]:
        """Denoise.

        Args:
            noisy: Cubes in any unit, of at least 2x2 pixels and one band.
            sigma: Noise level of each band, in the unit of the cubes; None: estimated.

        Returns:
            Denoised cubes in float32, in the unit of ``noisy``.

        Raises:
            ValueError: If a cube has fewer pixels or values that are not finite.
        """
        return torch.stack([denoise_by_planes(cube.float(), None, sigma, self.improve).denoised for cube in noisy])

    def improve(self, stages: PlaneStages) -> Float[Tensor, "bands height width"]:
        """What the network makes of a cube that the filters have seen.

        Args:
            stages: What the filters know.
        """
        return self.refine(*plane_inputs(stages, self.planes))[0]

    def estimate(self, noisy: Float[Tensor, "batch bands height width"]) -> PlaneInputs:
        """Make all that is not learnt: what :meth:`refine` takes."""
        return estimate_planes(noisy, self.planes)

    def refine(
        self,
        denoised: Float[Tensor, "batch bands height width"],
        planes: Float[Tensor, "batch views_planes height width"],
        doubts: Float[Tensor, "batch 2 height width"],
        spread: Float[Tensor, "batch planes"],
        basis: Float[Tensor, "batch bands planes"],
    ) -> Float[Tensor, "batch bands height width"]:
        """Denoise with the filters' work at hand: all that is learnt, and the guide of the non-local filter behind it.

        Args:
            denoised: The parts of ``estimate(noisy)``, in their order (:class:`PlaneInputs`).
            planes: Four images of each plane.
            doubts: What was rejected and lost.
            spread: Root mean square of each noisy plane.
            basis: From planes to bands.

        Returns:
            Denoised cubes in float32, in the unit of ``denoised``.
        """
        return corrected(denoised, basis, self.correct(planes, doubts, spread))

    def correct(
        self,
        planes: Float[Tensor, "batch views_planes height width"],
        doubts: Float[Tensor, "batch 2 height width"],
        spread: Float[Tensor, "batch planes"],
    ) -> Float[Tensor, "batch planes height width"]:
        """What is missing in the planes of the filters, in units of the noise.

        Args:
            planes: As :meth:`refine` takes them; so are the others.
            doubts: What was rejected and lost.
            spread: Root mean square of each noisy plane.
        """
        height, width = planes.shape[2:]
        # first of all, as in an exported graph: what is computed at an edge does not depend on where the padding is
        planes, doubts = (pad_to_multiple(images, 4)[0] for images in (planes, doubts))
        found, inside, trusted, noisy = planes.chunk(4, dim=1)
        whole = trusted + found
        blurred = F.avg_pool2d(F.pad(whole, (1, 1, 1, 1), mode="replicate"), 3, 1)
        # differences are of the size of the noise, but for outliers and edges: those are drawn in
        views = [torch.asinh(view) for view in (trusted, inside, noisy - trusted, whole - blurred)]
        images = torch.cat([found / spread[:, :, None, None], *views, torch.log1p(doubts)], dim=1)
        *gates, added = self.unet(images, torch.log10(spread)).chunk(_GATES + 1, dim=1)
        for gate, closed, view in zip(gates, _CLOSED, (trusted, inside, noisy), strict=True):
            added = added + torch.sigmoid(gate + closed) * view
        return added[..., :height, :width]


def corrected(
    denoised: Float[Tensor, "batch bands height width"],
    basis: Float[Tensor, "batch bands planes"],
    correction: Float[Tensor, "batch planes height width"],
) -> Float[Tensor, "batch bands height width"]:
    """Add to cubes what is missing in their planes.

    Args:
        denoised: Cubes.
        basis: From planes to bands.
        correction: What is missing.
    """
    with torch.autocast(denoised.device.type, enabled=False):
        return denoised + (basis @ correction.flatten(2)).reshape(denoised.shape)


def estimate_planes(noisy: Float[Tensor, "batch bands height width"], planes: int) -> PlaneInputs:
    """What the filters know of a batch of cubes, as a network of so many planes takes it.

    Args:
        noisy: Cubes in any unit.
        planes: Planes of the network.

    Raises:
        ValueError: If a cube has fewer than 2x2 pixels or values that are not finite.

    Example:
        >>> [tuple(part.shape) for part in estimate_planes(torch.rand(2, 6, 21, 30), 4)]
        [(2, 6, 21, 30), (2, 16, 21, 30), (2, 2, 21, 30), (2, 4), (2, 6, 4)]
    """
    found: list[PlaneInputs] = []

    def keep(stages: PlaneStages) -> None:
        inputs = plane_inputs(stages, planes)
        whole, basis = noisy[len(found)].float().clone(), inputs.basis.new_zeros(len(stages.alive), planes)
        whole[stages.alive] = inputs.denoised[0] * stages.span + stages.low
        basis[stages.alive] = inputs.basis[0] * stages.span
        found.append(inputs._replace(denoised=whole[None], basis=basis[None]))

    for cube in noisy:
        denoise_by_planes(cube.float(), improve=keep)
    return PlaneInputs(*(torch.cat(parts) for parts in zip(*found, strict=True)))
