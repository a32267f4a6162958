"""How fast a run is and what it waits for: patches per second, share of the time without data, use of the GPU."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch

from hsidenoise.training.pairs import Batch


@dataclass
class Tally:
    """What was done in a stretch of training.

    Attributes:
        steps: Optimiser steps.
        patches: Patches, over all processes.
        seconds: Wall time without validations.
        waited: Seconds of them in which the step could not begin for want of data.
        in_steps: Seconds of them inside steps.
        validating: Seconds of validations, which come on top.
        gpu_busy: Share of the time that the GPU computed, 0 to 1. None: no GPU, or nobody told.
        gpu_memory: Most memory that tensors took on the GPU, in bytes. None: no GPU.
    """

    steps: int = 0
    patches: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    in_steps: float = 0.0
    validating: float = 0.0
    gpu_busy: float | None = None
    gpu_memory: int | None = None

    @property
    def patches_per_second(self) -> float:
        """Patches per second of training."""
        return self.patches / max(self.seconds, 1e-9)

    @property
    def waited_share(self) -> float:
        """Share of the training time that was spent waiting for data, 0 to 1."""
        return min(1.0, self.waited / max(self.seconds, 1e-9))

    def sentence(self) -> str:
        """The tally in one line.

        Example:
            >>> Tally(steps=3000, patches=12000, seconds=600.0, waited=6.0, validating=30.4).sentence()
            '3,000 steps, 12,000 patches in 600 s: 20.0 patches/s, waited 1 % of the time for data; validation 30 s'
        """
        text = (
            f"{self.steps:,} steps, {self.patches:,} patches in {self.seconds:,.0f} s: "
            f"{self.patches_per_second:,.1f} patches/s, waited {100 * self.waited_share:.0f} % of the time for data; "
            f"validation {self.validating:,.0f} s"
        )
        if self.gpu_busy is not None:
            text += f"; GPU busy {100 * self.gpu_busy:.0f} %"
        if self.gpu_memory is not None:
            text += f"; GPU memory {self.gpu_memory / 1e9:.1f} GB"
        return text


class Throughput(pl.Callback):
    """Measures a run and logs, whenever Lightning logs, what it found since the last time.

    Logged: ``speed/patches_per_second``, ``speed/seconds_per_step`` (from the batch's arrival to the end of the step),
    ``speed/waited_share``, and on CUDA ``speed/gpu_busy`` and ``speed/gpu_memory_gb``.

    Time is taken from where a batch was asked for to where it came if the loader tells (``seconds_waited``, as the
    loader of ``CubeDataModule`` does), else from the end of a step to the start of the next. GPU use is what NVML
    tells; without its Python package, the time from the first to the last kernel of each step.
    """

    def __init__(self) -> None:
        self.total = Tally()
        self._recent = Tally()
        self._last_end = self._batch_began = self._validation_began = 0.0
        self._waited_before: float | None = None
        self._spans: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._busy: list[tuple[float, float]] = []  # (share, seconds that it stands for)
        self._nvml = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._last_end = time.perf_counter()
        self._waited_before = self._loader_waited(trainer)
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Note when the batch was there."""
        self._batch_began = time.perf_counter()
        if pl_module.device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            self._spans.append((begin, end))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the step; log if Lightning does."""
        now = time.perf_counter()
        if self._spans:
            self._spans[-1][1].record()
        waited_now = self._loader_waited(trainer)
        if waited_now is None or self._waited_before is None:
            waited = self._batch_began - self._last_end
        else:
            waited = waited_now - self._waited_before
        self._waited_before = waited_now
        part = Tally(
            steps=1 if (batch_idx + 1) % trainer.accumulate_grad_batches == 0 else 0,
            patches=len(batch["clean"]) * trainer.world_size,
            seconds=now - self._last_end,
            waited=waited,
            in_steps=now - self._batch_began,
        )
        _add(self._recent, part)
        self._last_end = now
        if (batch_idx + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._log(pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock of training."""
        self._validation_began = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start it again."""
        now = time.perf_counter()
        if not trainer.sanity_checking:
            self._recent.seconds += self._validation_began - self._last_end
            self._recent.validating += now - self._validation_began
        self._last_end = now

    def tally(self) -> Tally:
        """All that this part of the run has done so far."""
        self._gather()
        return self.total

    def _log(self, pl_module: pl.LightningModule) -> None:
        recent = self._recent
        values = {
            "patches_per_second": recent.patches_per_second,
            "seconds_per_step": recent.in_steps / max(1, recent.steps),
            "waited_share": recent.waited_share,
        }
        if pl_module.device.type == "cuda":
            self._look_at_gpu(pl_module.device)
            if self._busy:
                values["gpu_busy"] = self._busy[-1][0]
            values["gpu_memory_gb"] = (self.total.gpu_memory or 0) / 1e9
        self._gather()
        for name, value in values.items():
            pl_module.log(f"speed/{name}", value, rank_zero_only=True)

    def _gather(self) -> None:
        """Move what is recent to the total."""
        _add(self.total, self._recent)
        self._recent = Tally()
        if self._busy:
            weight = sum(seconds for _, seconds in self._busy)
            self.total.gpu_busy = sum(share * seconds for share, seconds in self._busy) / max(weight, 1e-9)

    def _look_at_gpu(self, device: torch.device) -> None:
        """Take down use and memory of the GPU. It is asked where Lightning reads its metrics, hence waits, anyway."""
        share = None
        if self._nvml:
            try:
                share = torch.cuda.utilization(device) / 100
            except Exception:  # no NVML, no package for it, no right to ask: whatever, a run does not end for that
                self._nvml = False
        if share is None:
            with contextlib.suppress(RuntimeError):
                torch.cuda.synchronize(device)
                busy = sum(begin.elapsed_time(end) for begin, end in self._spans) / 1e3
                share = min(1.0, busy / max(self._recent.seconds, 1e-9))
        self._spans.clear()
        if share is not None:
            self._busy.append((share, self._recent.seconds))
        self.total.gpu_memory = torch.cuda.max_memory_allocated(device)

    @staticmethod
    def _loader_waited(trainer: pl.Trainer) -> float | None:
        waited = getattr(trainer.train_dataloader, "seconds_waited", None)
        return None if waited is None else float(waited)


def _add(total: Tally, part: Tally) -> None:
    total.steps += part.steps
    total.patches += part.patches
    total.seconds += part.seconds
    total.waited += part.waited
    total.in_steps += part.in_steps
    total.validating += part.validating
