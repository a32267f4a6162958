"""What accompanies a training run: the average of its weights, and pictures of what it does."""

from __future__ import annotations

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
