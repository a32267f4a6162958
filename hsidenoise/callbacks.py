"""What watches a training run: the average of its weights, how it ends, the file they are saved in, pictures."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, Timer, WeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn

from hsidenoise.data.synthetic import Batch
from hsidenoise.figures import false_colour, fit_stretch, rgb_bands
from hsidenoise.weights import save_weights

BEST = "val/psnr"  # what the best checkpoint and the weights file are chosen by


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

        @torch.no_grad()
        def average(averages: list[Tensor], current: list[Tensor], updates: int | Tensor) -> None:
            kept = min(decay, (1 + float(updates)) / (10 + float(updates)))
            torch._foreach_lerp_(averages, current, 1 - kept)

        # buffers are copied: some are indices, which have no mean
        super().__init__(use_buffers=False, multi_avg_fn=average)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Bring the average to the task's device: it was copied before Lightning moved the task to the GPU."""
        assert self._average_model is not None
        self._average_model.to(pl_module.device)

    def network(self, task: pl.LightningModule) -> nn.Module:
        """The averaged network, or the current one if there is no average.

        Args:
            task: Task in training.
        """
        averaged = self._average_model.module if self._average_model is not None else task
        return averaged.get_submodule("network")


class LastCheckpoint(ModelCheckpoint):
    """Writes ``last.ckpt`` every few minutes, after every validation and when a run is interrupted.

    However a run ends by itself, by steps, epochs or time, it validates once more first: nowhere is the learning rate
    as low as there. Ctrl-C ends it after the step in hand, as SIGTERM does; a second Ctrl-C ends it at once.

    Args:
        folder: Where to write.
        minutes: Between two files while training.
    """

    def __init__(self, folder: Path, minutes: float) -> None:
        super().__init__(
            dirpath=folder,
            filename=self.CHECKPOINT_NAME_LAST,
            train_time_interval=timedelta(minutes=minutes),
            enable_version_counter=False,
        )
        self.path = folder / f"{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}"
        self._interrupt_before: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen for Ctrl-C; several processes are left to Lightning, which cannot stop them in step."""
        super().on_train_start(trainer, pl_module)
        if trainer.world_size == 1 and threading.current_thread() is threading.main_thread():
            self._interrupt_before = signal.signal(signal.SIGINT, self._interrupt)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Save if it is time to; ask for a validation if this was the last step."""
        last_step = 0 <= trainer.max_steps <= trainer.global_step
        if last_step or (trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs):
            trainer.should_stop = True  # Lightning validates where it is told to stop, not where it stops by itself
        if trainer.should_stop:
            trainer.check_val_every_n_epoch = 1  # this epoch counts
            if not trainer.enable_validation:
                trainer.save_checkpoint(self.path)
        else:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, whether the score is the best or not."""
        if not trainer.sanity_checking:
            trainer.save_checkpoint(self.path)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save if the run was told to end: a step is whole then. After any other error it may not be."""
        self._listen_no_more()
        if isinstance(exception, SIGTERMException):
            trainer.save_checkpoint(self.path)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give Ctrl-C back."""
        self._listen_no_more()

    def _interrupt(self, *_: object) -> None:
        self._listen_no_more()
        rank_zero_warn("interrupted: stopping after this step; interrupt again to stop at once")
        os.kill(os.getpid(), signal.SIGTERM)

    def _listen_no_more(self) -> None:
        if self._interrupt_before is not None:
            signal.signal(signal.SIGINT, self._interrupt_before)
            self._interrupt_before = None


class WeightsFile(pl.Callback):
    """Writes ``weights.safetensors`` whenever validation is the best so far, and at the end if there was no validation.

    Args:
        path: File to write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.best = -math.inf
        self._seconds_before = 0.0
        self._started = time.monotonic()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save if better."""
        score = trainer.callback_metrics.get(BEST)
        if not trainer.sanity_checking and score is not None and float(score) > self.best:
            self.best = float(score)
            self._save(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save what there is if nothing was ever scored."""
        if self.best == -math.inf:
            self._save(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Best score and time spent, for a checkpoint."""
        return {"best": self.best, "seconds": self._seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best score and the time of the run that is resumed."""
        self.best, self._seconds_before = state_dict["best"], state_dict["seconds"]

    @property
    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started

    @rank_zero_only
    def _save(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        average = next((each for each in callbacks if isinstance(each, AverageWeights)), None)
        network = average.network(task) if average is not None else task.get_submodule("network")
        describe = getattr(getattr(trainer, "datamodule", None), "description", dict)
        scores = {
            key: f"{float(value):.4f}" for key, value in trainer.callback_metrics.items() if key.startswith("val/")
        }
        metadata = {
            **describe(),
            "steps": str(trainer.global_step),
            "epochs": str(trainer.current_epoch),
            "minutes": f"{self._seconds / 60:.1f}",
            "precision": str(trainer.precision),
            "initial_weights": str(task.hparams.get("initial_weights") or "none"),
            "learning_rate": str(task.hparams.get("learning_rate")),
            "commit": _commit(),
            **scores,
        }
        save_weights(self.path, network, name=task.hparams["model"], metadata=metadata)


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


def _commit() -> str:
    """Commit of the source tree, with ``-dirty`` if files differ from it; ``unknown`` in an installed package."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() or "unknown"
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
