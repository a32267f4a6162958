"""Self-ensemble: a tile through the network several times, each time mirrored another way, and the mean of the answers.

Only the symmetries that the noise has too are of use. Stripes and dead columns lie along the columns, and a network
that was trained on them knows it: the columns stay columns under a mirroring of columns, of rows and of bands, and not
under a quarter turn (in training patches are turned too, but before noise is added). That makes 8 in all.

References:
    Timofte, Rothe, Van Gool, "Seven Ways to Improve Example-Based Single Image Super Resolution", CVPR 2016,
    arXiv:1511.02228 (there with quarter turns)
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hsidenoise.models.hcanet_bra import HCANetBRA
from hsidenoise.system.options import EnsembleSize

ENSEMBLES: tuple[int, ...] = get_args(EnsembleSize)
"""Sizes of an ensemble: groups of mirrorings."""

_MIRRORED = (3, 2, 1)  # axes of (batch, bands, height, width); an ensemble of 2 takes the first, one of 4 the first two


def mirrorings(count: int) -> tuple[tuple[int, ...], ...]:
    """The mirrorings of an ensemble, each as the axes of (batch, bands, height, width) that it flips.

    Args:
        count: Size of the ensemble: 1, 2, 4 or 8.

    Raises:
        ValueError: If there is no ensemble of this size.

    Example:
        >>> mirrorings(4)
        ((), (3,), (2,), (3, 2))
    """
    if count not in ENSEMBLES:
        raise ValueError(
            f"there is no ensemble of {count}; choose 1 (none), 2 (columns mirrored), 4 (and rows) or 8 (and bands)"
        )
    axes = _MIRRORED[: ENSEMBLES.index(count)]
    return tuple(some for length in range(len(axes) + 1) for some in combinations(axes, length))


class Ensemble(nn.Module):
    """Mean of a network's answers to mirrored inputs, each mirrored back.

    One after the other: the price is time, not memory. The spectral Wiener estimate of an HCANetBRA, which hardly
    depends on such things, is computed once and mirrored too.

    Args:
        network: Network to run; shares its weights and is not changed.
        count: Number of answers: 1, 2, 4 or 8, see :func:`mirrorings`.

    Raises:
        ValueError: If there is no ensemble of this size.

    Example:
        >>> class First(nn.Module):
        ...     def forward(self, noisy):
        ...         return noisy[..., :1].expand_as(noisy)
        >>> Ensemble(First(), 2)(torch.tensor([[[[1.0, 2.0, 5.0]]]]))
        tensor([[[[3., 3., 3.]]]])
    """

    extra_cubes = 6
    """Cubes that it holds beside what the network does: mirrored inputs and the sum of the answers."""

    def __init__(self, network: nn.Module, count: int) -> None:
        super().__init__()
        self.network = network
        self.mirrorings = mirrorings(count)

    def forward(self, noisy: Float[Tensor, "batch bands height width"]) -> Float[Tensor, "batch bands height width"]:
        """Run the network as often as there are mirrorings.

        Args:
            noisy: Cubes as the network takes them.

        Returns:
            Mean of the answers, float32.
        """
        run: Callable[..., Tensor] = self.network
        inputs = [noisy]
        if isinstance(self.network, HCANetBRA) and self.network.skip == "wiener":
            run, inputs = self.network.refine, list(self.network.estimate(noisy.float()))
        total = torch.zeros((), device=noisy.device)
        for axes in self.mirrorings:
            answer = run(*(_mirror(part, axes) for part in inputs))
            total = total + _mirror(answer, axes).float()
        return total / len(self.mirrorings)


def _mirror(part: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Flipped along those of the axes that it has (the noise level of the bands has neither rows nor columns)."""
    return part.flip([axis for axis in axes if axis < part.ndim])
