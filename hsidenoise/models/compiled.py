"""A network compiled for any size of tile, with a way back where compiling fails."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hsidenoise.models.blocks import pad_to_multiple
from hsidenoise.models.hcanet_bra import HCANetBRA
from hsidenoise.system.device import is_out_of_memory

_MULTIPLE = 4  # to which the networks pad inside


class _PaddedFirst:
    """A compiled function behind padding: a size that is a plain multiple halves to one, for a compiler's algebra."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function

    def __call__(self, *inputs: Tensor) -> Tensor:
        height, width = inputs[0].shape[-2:]
        # Copies, whatever they were views of: a graph is for the strides and offsets that it was made from.
        padded = [
            pad_to_multiple(x, _MULTIPLE)[0].clone(memory_format=torch.contiguous_format) if x.ndim == 4 else x
            for x in inputs
        ]
        return self.function(*padded)[..., :height, :width]


class Compiled(nn.Module):
    """A network whose learnt part runs through ``torch.compile``.

    The first call compiles, which takes a minute or more, for tiles of any size; a batch of one compiles once more, as
    PyTorch takes a size of 1 for a constant. Of an HCANetBRA that starts from the spectral Wiener estimate
    that part is :meth:`~hsidenoise.models.HCANetBRA.refine`; the estimate is linear algebra, for which there is nothing
    to generate. If compiling fails, for want of a C++ compiler or on an operation that the compiler does not know, one
    warning says so and the network runs as it is.

    On a CPU it hardly pays. One thread, tiles of 96 pixels, float32: the default weights take about 150 s to compile,
    HCANet 77 s (and 30 s more for a batch of one). A tile of HCANet then took 0.431 s in place of 0.427 s in one
    measurement and 0.36 s in place of 0.42 s in another, on a busy machine: nothing is gained before 1,000 tiles.

    Args:
        network: Network to run; shares its weights and is not changed.

    Example:
        >>> Compiled(nn.Identity())(torch.ones(1, 3, 4, 5)).shape
        torch.Size([1, 3, 4, 5])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        # in a tuple: a second registered module would be moved and counted twice
        self._twin: tuple[nn.Module, ...] = ()
        twin = copy.copy(network)  # the same modules and weights under a dictionary of its own
        twin.training = False  # a flag of its own, unlike those of the modules inside
        part = "refine" if isinstance(network, HCANetBRA) and network.skip == "wiener" else "forward"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of one part of PyTorch about another
                setattr(twin, part, _PaddedFirst(torch.compile(getattr(network, part), dynamic=True)))
        except Exception as error:  # no compiler for this Python or system
            self._give_up(error)
        else:
            self._twin = (twin,)

    def forward(self, noisy: Float[Tensor, "batch bands height width"]) -> Float[Tensor, "batch bands height width"]:
        """Run the compiled network, or the network itself once compiling has failed.

        Args:
            noisy: Cubes as the network takes them.
        """
        if not self._twin:
            denoised: Tensor = self.network(noisy)
            return denoised
        try:
            # equal sides must not be taken for one size: the next tile may have others
            with torch.fx.experimental._config.patch(use_duck_shape=False):  # type: ignore[attr-defined]
                denoised = self._twin[0](noisy)
        except Exception as error:  # whatever a compiler may raise: the network's own errors come again below
            if is_out_of_memory(error):
                raise
            denoised = self.network(noisy)
            self._give_up(error)
        return denoised

    def _give_up(self, error: Exception) -> None:
        self._twin = ()
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        warnings.warn(
            f"compiling {type(self.network).__name__} failed, it runs as it is ({reason[:200]})",
            RuntimeWarning,
            stacklevel=3,
        )
