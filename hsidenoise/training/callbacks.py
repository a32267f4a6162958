"""What accompanies a training run: the average of its weights, pictures of what it does, its speed and its end."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from hsidenoise.figures.cubes import false_colour, fit_stretch, rgb_bands
from hsidenoise.training.pairs import Batch


class AverageWeights(WeightAveraging):
    """Exponential moving average of the weights: used in validation, kept in checkpoints, saved as the weights.

    Early in training the average must forget its random start quickly, so the decay rises to its value:
    ``min(decay, (1 + n) / (10 + n))`` after n updates.

    Args:
        decay: Share of the old average kept at each step, 0 (no averaging) to below 1.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay of the weight average is {decay:g}: must be at least 0 and below 1")
        self.decay = decay

        @torch.no_grad()
        def average(averages: list[Tensor], current: list[Tensor], updates: int | Tensor) -> None:
            # The count beside the averages, not its copy on the device: reading that would wait for the GPU.
            done = float(updates if self._average_model is None else self._average_model.n_averaged)
            kept = min(decay, (1 + done) / (10 + done))
            torch._foreach_lerp_(averages, current, 1 - kept)

        # buffers are copied: some are indices, which have no mean
        super().__init__(use_buffers=False, multi_avg_fn=average)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Bring the average to the task's device: it was copied before Lightning moved the task to the GPU."""
        assert self._average_model is not None
        count = self._average_model.n_averaged
        self._average_model.to(pl_module.device)
        self._average_model.n_averaged = count  # asked in every step: on the CPU it costs nothing

    def network(self, task: pl.LightningModule) -> nn.Module:
        """The averaged network, or the current one if there is no average.

        Args:
            task: Task in training.
        """
        averaged = self._average_model.module if self._average_model is not None else task
        return averaged.get_submodule("network")


class Pictures(pl.Callback):
    """Shows noisy, denoised and clean of the first validation item side by side in false colour, in TensorBoard."""

    @rank_zero_only
    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the first item, which is the same in every validation."""
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if batch_idx or trainer.sanity_checking or not loggers:
            return
        cubes = [cube[0].float().cpu().numpy() for cube in (batch["noisy"], outputs, batch["clean"])]
        stretch = fit_stretch(cubes[-1], rgb_bands(len(cubes[-1])))
        pictures = torch.stack([torch.from_numpy(false_colour(cube, stretch=stretch)) for cube in cubes])
        for logger in loggers:
            logger.experiment.add_images("noisy, denoised, clean", pictures, trainer.global_step, dataformats="NHWC")


class Part(pl.Callback):
    """Ends one part of a run after some steps or minutes; the schedule goes on in the next part.

    The minutes count from the making of this object, so reading the data and compiling are in them, and the part ends
    early enough for the validation that ends it, if it has seen how long one takes. It is to be the first of the
    callbacks, before any that logs.

    Args:
        steps: Steps of the part. None: no limit.
        minutes: Minutes of the part. None: no limit.

    Raises:
        ValueError: If a limit is not above 0.
    """

    def __init__(self, steps: int | None = None, minutes: float | None = None) -> None:
        if (steps is not None and steps < 1) or (minutes is not None and minutes <= 0):
            raise ValueError(f"--steps {steps}, --minutes {minutes}: what a part of a run may take must be above 0")
        self.steps, self.minutes = steps, minutes
        self._began = time.monotonic()
        self._first_step = 0
        self._validation_began = 0.0
        self._validation_seconds = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note where the part starts."""
        self._first_step = trainer.global_step

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loggers' count of steps true: resumed from an end inside an epoch, Lightning's lags by one."""
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask for the end if it is time."""
        over = self.steps is not None and trainer.global_step - self._first_step >= self.steps
        if self.minutes is not None:
            over = over or self.seconds + self._validation_seconds >= 60 * self.minutes
            if trainer.world_size > 1:  # clocks differ, all must stop after the same step
                over = bool(trainer.strategy.broadcast(over))
        trainer.should_stop = trainer.should_stop or over

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start to time a validation."""
        self._validation_began = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note how long a validation takes; the check before training is too short to tell."""
        if not trainer.sanity_checking:
            self._validation_seconds = time.monotonic() - self._validation_began

    @property
    def seconds(self) -> float:
        """Seconds since the part began."""
        return time.monotonic() - self._began


class Speed(pl.Callback):
    """Measures how fast a run is and logs it, whenever Lightning logs, since the last time.

    Logged: ``speed/patches_per_second``, and ``speed/waited_share``, the share of the time in which a step could not
    begin for want of data, as ``seconds_waited`` of the loader says. Validations do not count.
    """

    def __init__(self) -> None:
        self.steps = self.patches = 0
        self.seconds = self.waited = 0.0
        self._logged = (0, 0.0, 0.0)
        self._first_step = 0
        self._last = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._first_step, self._last = trainer.global_step, time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the batch; log if Lightning does."""
        self._read_clock()
        self.steps = trainer.global_step - self._first_step
        self.patches += len(batch["clean"]) * trainer.world_size
        self.waited = float(getattr(trainer.train_dataloader, "seconds_waited", 0.0))
        if (batch_idx + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            patches, seconds, waited = self._logged
            self._logged = (self.patches, self.seconds, self.waited)
            passed = max(self.seconds - seconds, 1e-9)
            pl_module.log("speed/patches_per_second", (self.patches - patches) / passed, rank_zero_only=True)
            pl_module.log("speed/waited_share", min(1.0, (self.waited - waited) / passed), rank_zero_only=True)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self._read_clock()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start it again."""
        self._last = time.perf_counter()

    def sentence(self) -> str:
        """What was done in how much time, in one line."""
        seconds = max(self.seconds, 1e-9)
        return (
            f"{self.steps:,} steps, {self.patches:,} patches in {self.seconds:,.0f} s: {self.patches / seconds:,.1f} "
            f"patches/s, waited {100 * min(1.0, self.waited / seconds):.0f} % of the time for data"
        )

    def _read_clock(self) -> None:
        if self._last:  # 0 in the check before training
            now = time.perf_counter()
            self.seconds += now - self._last
            self._last = now
