"""A network through ``torch.compile``: for any size of tile, or in training; with a way back where compiling fails."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hsidenoise.models.blocks import pad_to_multiple
from hsidenoise.models.unet import MixingUNet
from hsidenoise.system.machine import is_out_of_memory

CompileWhen = Literal["off", "on", "auto"]

_WARM_UP = 2  # passes of a training step that are not timed: the first compiles, forward and backward
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

    The first call compiles for tiles of any size; a batch of one compiles once more, as PyTorch takes a size of 1 for a
    constant. What a network computes before its learnt part is linear algebra, for
    which there is nothing to generate. If compiling fails, one warning says so and the network
    runs as it is. On a CPU (one thread, float32) compiling takes 80 to 150 s and gains nothing before 1,000 tiles of 96
    pixels.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        # in a tuple: a second registered module would be moved and counted twice
        self._twin: tuple[nn.Module, ...] = ()
        twin = copy.copy(network)  # the same modules and weights under a dictionary of its own
        twin.training = False  # a flag of its own, unlike those of the modules inside
        part = network.learnt if isinstance(network, MixingUNet) else "forward"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of one part of PyTorch about another
                setattr(twin, part, _PaddedFirst(torch.compile(getattr(network, part), dynamic=True)))
        except Exception as error:  # no compiler for this Python or system
            self._give_up(error)
        else:
            self._twin = (twin,)

    def forward(self, noisy: Float[Tensor, "batch bands height width"]) -> Float[Tensor, "batch bands height width"]:
        """Run the compiled network, or the network itself once compiling has failed."""
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


class CompiledStep:
    """Runs a network in training: as it is, compiled, or whichever a short measurement finds faster.

    What is compiled, and what happens if that fails, is as of :class:`Compiled`; what is not learnt may come with the
    batch. Validation has cubes of other sizes and is not for this class.
    """

    def __init__(
        self,
        network: nn.Module,
        when: CompileWhen = "off",
        *,
        backend: str | Callable[..., Any] = "inductor",
        passes: int = 5,
    ) -> None:
        self.network, self.backend, self.passes = network, backend, passes
        self.pending = when == "auto"
        self.seconds: dict[str, float] = {}
        self._starts_from_estimate = isinstance(network, MixingUNet) and network.estimator is not None
        self._compiled: Callable[..., Tensor] | None = None
        if when == "on":
            self.use(True)

    @property
    def compiled(self) -> bool:
        """Whether the compiled network is in use."""
        return self._compiled is not None

    def use(self, compiled: bool) -> None:
        """Settle what runs, without measuring."""
        self.pending = False
        if not compiled:
            self._compiled = None
            return
        part: Any = self.network.refine if self._starts_from_estimate else self.network
        try:
            self._compiled = torch.compile(part, backend=self.backend)
        except Exception as error:  # no compiler for this Python or system
            self._give_up(error)

    def __call__(
        self, noisy: Float[Tensor, "batch bands height width"], estimate: tuple[Tensor, ...] | None = None
    ) -> Float[Tensor, "batch bands height width"]:
        """Denoise a batch."""
        if self._compiled is not None:
            try:
                return self._run(self._compiled, noisy, estimate)
            except Exception as error:  # whatever a compiler may raise: the network's own errors come again below
                if is_out_of_memory(error):
                    raise
                self._give_up(error)
        if self._starts_from_estimate:
            return self._run(self.network.refine, noisy, estimate)  # type: ignore[arg-type]
        return self._run(self.network, noisy, None)

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledStep:
        """Copy for a copy of the network, as the average of the weights is one: it does not train."""
        return CompiledStep(copy.deepcopy(self.network, memo))

    def measure(
        self,
        loss: Callable[[Tensor], Tensor],
        noisy: Float[Tensor, "batch bands height width"],
        estimate: tuple[Tensor, ...] | None = None,
    ) -> None:
        """Time both on a batch and keep the faster; gradients are cleared, weights and random state left alone."""
        devices = [noisy.device] if noisy.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            self.use(False)
            self.seconds = {"plain": self._time(loss, noisy, estimate)}
            self.use(True)
            try:
                seconds = self._time(loss, noisy, estimate)
            except Exception as error:  # backward passes are compiled when they first run
                if is_out_of_memory(error):
                    raise
                self._give_up(error)
            if self.compiled:
                self.seconds["compiled"] = seconds
        if self.seconds.get("compiled", float("inf")) >= self.seconds["plain"]:
            self.use(False)
        self.network.zero_grad(set_to_none=True)

    def _run(self, run: Callable[..., Tensor], noisy: Tensor, estimate: tuple[Tensor, ...] | None) -> Tensor:
        if not self._starts_from_estimate or run is self.network:
            return run(noisy)
        return run(*(estimate if estimate is not None else self.network.estimator(noisy)))  # type: ignore[operator]

    def _time(self, loss: Callable[[Tensor], Tensor], noisy: Tensor, estimate: tuple[Tensor, ...] | None) -> float:
        """Seconds of a pass: the shortest of some, since what disturbs only ever delays."""
        best = float("inf")
        for number in range(_WARM_UP + self.passes):
            began = time.perf_counter()
            loss(self(noisy, estimate)).backward()  # type: ignore[no-untyped-call]
            if noisy.device.type == "cuda":
                torch.cuda.synchronize(noisy.device)
            if number >= _WARM_UP:
                best = min(best, time.perf_counter() - began)
        return best

    def _give_up(self, error: Exception) -> None:
        self._compiled = None
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        warnings.warn(
            f"compiling {type(self.network).__name__} failed, it trains as it is ({reason[:200]})",
            RuntimeWarning,
            stacklevel=3,
        )
