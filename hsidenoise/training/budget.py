"""How long a run may take, and how long the part of it that runs now."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Timer


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


def seconds_spent(checkpoint: Mapping[str, Any] | None) -> float:
    """Training seconds that a checkpoint's run has had so far, of those that count for ``max_time``.

    Args:
        checkpoint: Opened checkpoint, or None for a new run.

    Example:
        >>> seconds_spent({"callbacks": {"Timer": {"time_elapsed": {"train": 90.0}}}}), seconds_spent(None)
        (90.0, 0.0)
    """
    timer = (checkpoint or {}).get("callbacks", {}).get("Timer", {})
    return float(timer.get("time_elapsed", {}).get("train", 0.0))


def time_share(trainer: pl.Trainer) -> float:
    """Share of the trainer's ``max_time`` that is spent, earlier parts of a resumed run included; 0 without a limit.

    Args:
        trainer: Trainer of the run.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    timer = next((each for each in callbacks if isinstance(each, Timer)), None)
    left = timer.time_remaining() if timer is not None else None
    if timer is None or left is None:
        return 0.0
    spent = float(timer.time_elapsed())
    share = spent / max(spent + left, 1e-9)
    # clocks of processes differ; learning rates must not
    return float(trainer.strategy.broadcast(share)) if trainer.world_size > 1 else share
