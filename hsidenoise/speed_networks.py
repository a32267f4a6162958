"""What the speed benchmark measures: networks, each with weights and an input, as released and as ours.

Both sides of a network get the same weights and the same input, which repeat from run to run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hsidenoise.as_released import HCANetAsReleased, RoutingAttentionAsReleased
from hsidenoise.models import create_model
from hsidenoise.models.bra import BiLevelRoutingAttention
from hsidenoise.models.released import load_released
from hsidenoise.weights import load_model

BANDS = 31
SIGMA = 50 / 255
"""Noise of the input, on the [0, 1] scale."""
EQUAL_SIZE = {"dim": 48, "num_blocks": (2, 3, 3), "num_refinement_blocks": 1, "heads": (1, 2, 4)}
"""HCANet's released width and depth (arXiv 2403.10067, released defaults)."""
REGION_SIZE, TOPK, ATTENTION_WIDTH = 8, 4, 48


@dataclass(frozen=True)
class Subject:
    """One network of the benchmark.

    Attributes:
        title: What readers are told that it is.
        ours: Makes this project's network, in evaluation mode, for images of a side in pixels.
        example: Makes an input from a batch size and a side in pixels, channels first or, for the bare attention, last.
        as_released: Makes the released formulation with the same weights; None if it was never released.
        denoises: Whether the output is an estimate of the clean input, so that a training step has a meaning.
        variants: How ours is measured in the forward pass, names of ``hsidenoise.speed_cell.FORWARD_VARIANTS``.
    """

    title: str
    ours: Callable[[int], nn.Module]
    example: Callable[[int, int], Tensor]
    as_released: Callable[[int], nn.Module] | None = None
    denoises: bool = True
    variants: tuple[str, ...] = ("float32", "bfloat16", "compile", "compile-bfloat16", "onnxruntime")


def noisy_scene(batch: int, side: int, bands: int = BANDS) -> Float[Tensor, "batch bands side side"]:
    """Smooth scenes on the [0, 1] scale with Gaussian noise, the same ones each time.

    Args:
        batch: Number of scenes.
        side: Height and width in pixels.
        bands: Number of bands.

    Example:
        >>> noisy_scene(2, 8).shape
        torch.Size([2, 31, 8, 8])
    """
    rows, columns, spectrum = torch.linspace(0, 1, side), torch.linspace(0, 1, side), torch.linspace(0.2, 1, bands)
    scene = spectrum[:, None, None] * (0.5 + 0.25 * torch.sin(9 * rows)[:, None] + 0.25 * torch.cos(7 * columns))
    noise = torch.randn(batch, bands, side, side, generator=torch.Generator().manual_seed(1))
    return scene + SIGMA * noise


def features(batch: int, side: int, width: int = ATTENTION_WIDTH) -> Float[Tensor, "batch side side width"]:
    """Features as a network has them: smooth, so that regions differ, with some noise. The same ones each time.

    Args:
        batch: Number of images.
        side: Height and width in pixels.
        width: Numbers at each pixel.

    Example:
        >>> features(1, 16, width=4).shape
        torch.Size([1, 16, 16, 4])
    """
    generator = torch.Generator().manual_seed(2)
    coarse = torch.randn(batch, width, max(2, side // 16), max(2, side // 16), generator=generator)
    smooth = F.interpolate(coarse, (side, side), mode="bilinear", align_corners=False)
    return (smooth + 0.3 * torch.randn(batch, width, side, side, generator=generator)).permute(0, 2, 3, 1).contiguous()


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """A module with random weights that repeat; PyTorch's own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


def _hcanet_as_released(_: int) -> nn.Module:
    return _seeded(HCANetAsReleased)


def _hcanet(side: int) -> nn.Module:
    return _seeded(lambda: load_released(_hcanet_as_released(side).state_dict()))


def _attention(heads: int) -> Callable[[int], nn.Module]:
    def make(side: int) -> nn.Module:
        ours = _seeded(
            lambda: BiLevelRoutingAttention(ATTENTION_WIDTH, heads, n_win=None, region_size=REGION_SIZE, topk=TOPK)
        )
        ours.load_state_dict(_attention_as_released(heads)(side).state_dict())
        return ours

    return make


def _attention_as_released(heads: int) -> Callable[[int], nn.Module]:
    def make(side: int) -> nn.Module:
        if side % REGION_SIZE or (side // REGION_SIZE) ** 2 < TOPK:
            raise ValueError(f"routing attention as released takes sides in multiples of {REGION_SIZE}, not {side}")
        n_win = side // REGION_SIZE
        return _seeded(lambda: RoutingAttentionAsReleased(ATTENTION_WIDTH, heads, n_win=n_win, topk=TOPK))

    return make


def _bra(heads: int) -> Subject:
    return Subject(
        title=f"bi-level routing attention, C={ATTENTION_WIDTH}, regions of {REGION_SIZE}x{REGION_SIZE} pixels, "
        f"top-k {TOPK}, {heads} head{'s' if heads > 1 else ''}",
        ours=_attention(heads),
        example=features,
        as_released=_attention_as_released(heads),
        denoises=False,
        variants=("float32", "bfloat16"),
    )


NETWORKS: Mapping[str, Subject] = {
    "hcanet": Subject(
        title="HCANet of the paper's size (31 bands, width 48, blocks 2, 3, 3), random weights",
        ours=_hcanet,
        example=noisy_scene,
        as_released=_hcanet_as_released,
    ),
    "bra": _bra(8),
    "bra-1-head": _bra(1),
    "hcanet-bra": Subject(
        title="HCANetBRA, the shipped default with its weights",
        ours=lambda _: load_model().eval(),
        example=noisy_scene,
    ),
    "hcanet-bra-48": Subject(
        title="HCANetBRA of the released HCANet's width and depth (48; 2, 3, 3), random weights",
        ours=lambda _: _seeded(lambda: create_model("hcanet-bra", bands=BANDS, **EQUAL_SIZE)),
        example=noisy_scene,
        variants=(),  # its training step is what it is there for
    ),
}
"""Every network of the benchmark by its name."""
