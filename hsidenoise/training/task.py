"""The task that a run trains: a network, its loss, its metrics, its optimiser, and nothing else."""

from __future__ import annotations

import math
import os
from functools import lru_cache
from inspect import signature
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from hsidenoise.metrics.functional import evaluate_batch
from hsidenoise.models.compiled import CompiledStep, CompileWhen
from hsidenoise.models.registry import MODELS, create_model
from hsidenoise.models.weights import ASKED, start_from
from hsidenoise.training.losses import DataTerm, DenoisingLoss, Form
from hsidenoise.training.pairs import Batch

METRICS = ("psnr", "ssim", "sam")
MOST_SKIPPED = 20  # steps in a row without a finite gradient after which a run is given up


class DenoisingTask(pl.LightningModule):
    """Trains a network to give the clean patch for the noisy one.

    The learning rate rises linearly over the warm-up, then falls along a cosine to ``final_share`` of
    itself. The end of the cosine is the last step or, if the trainer has a ``max_time``, that time, whichever comes
    first. A resumed run takes the rate of the schedule that it is resumed with.

    The random numbers of a step (a dropout's, say) follow from the run's seed and the number of the step alone.

    Args:
        model: Name of a network in ``hsidenoise.models.MODELS``.
        bands: Bands of the data; a pair where patches have different numbers, for a network that takes any.
        model_config: Further arguments of the network; its own defaults for what is left out.
        learning_rate: Peak of the schedule, > 0.
        weight_decay: Of AdamW; not applied to biases, norms and other vectors.
        betas: Of AdamW.
        warmup_steps: Steps of linear rise.
        schedule: ``cosine`` or ``constant`` (after the warm-up).
        final_share: Share of the learning rate that is left at the end of the cosine, 0 to 1.
        gradient_weight: Weight of the gradient regulariser in the loss.
        loss_form: ``cube`` (per cube) or ``released`` (over the batch), see ``hsidenoise.training.losses``.
        angle_weight: Weight of the spectral angle in the loss.
        tile: Side in pixels of the tiles that :func:`hsidenoise.denoise` takes with these weights where none is asked
            for. None: its own default.
        data_term: ``l1``, ``charbonnier`` or ``mse``.
        channels_last: Whether the network runs on channels-last memory (several times faster on CPUs).
        initial_weights: Weights to start from, as ``hsidenoise.load_model`` takes them. None: random.
        compile: Whether training steps run through ``torch.compile``: ``off``, ``on``, or ``auto``: what is faster by a
            short measurement before the first step (in one process; several train uncompiled).

    Raises:
        ValueError: If an option is out of range or the network is unknown.
    """

    def __init__(
        self,
        model: str = "hcanet-bra",
        bands: int | tuple[int, int] = 31,
        model_config: dict[str, Any] | None = None,
        learning_rate: float = 5e-4,
        weight_decay: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        warmup_steps: int = 200,
        schedule: Literal["cosine", "constant"] = "cosine",
        final_share: float = 0.01,
        gradient_weight: float = 1e-3,
        loss_form: Form = "cube",
        data_term: DataTerm = "l1",
        angle_weight: float = 0.0,
        tile: int | None = None,
        channels_last: bool = True,
        initial_weights: str | None = None,
        compile: CompileWhen = "off",
    ) -> None:
        super().__init__()
        if not (0 < learning_rate < math.inf and weight_decay >= 0 and warmup_steps >= 0 and 0 <= final_share <= 1):
            raise ValueError(
                "learning_rate must be above 0, weight_decay and warmup_steps at least 0, final_share in [0, 1]"
            )
        tiles = ASKED["tile"]
        if tile is not None and tile not in tiles:
            raise ValueError(f"tile={tile} must be from {tiles.start} to {tiles.stop - 1}")
        self.save_hyperparameters()
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        network = self.create_network()
        if initial_weights is not None:
            start_from(network, initial_weights)
        self.network = network.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        self.loss = DenoisingLoss(
            gradient_weight=gradient_weight, form=loss_form, data_term=data_term, angle_weight=angle_weight
        )
        self.step = CompiledStep(self.network, compile)
        self._compiled_on: str | None = None
        self._sums: dict[str, list[float]] = {}
        self._skipped: int | Tensor = 0

    def create_network(self) -> nn.Module:
        """Build the network that ``model``, ``bands`` and ``model_config`` name; a subclass may bring its own."""
        name, bands = self.hparams["model"], self.hparams["bands"]
        own = {}
        if name in MODELS and "bands" in signature(MODELS[name]).parameters:
            if not isinstance(bands, int):
                raise ValueError(f"'{name}' is for one number of bands, the data for {bands[0]} to {bands[1]}")
            own = {"bands": bands}
        return create_model(name, **own, **(self.hparams["model_config"] or {}))

    def forward(self, noisy: Float[Tensor, "batch bands height width"]) -> Float[Tensor, "batch bands height width"]:
        """Denoise a batch.

        Args:
            noisy: Noisy cubes on the [0, 1] scale.

        Returns:
            Estimates in float32, whatever the precision inside the network was.
        """
        denoised: Tensor = self.network(noisy.to(memory_format=self.memory_format))
        return denoised.float()

    def on_train_start(self) -> None:
        """Let the run's own options hold: a checkpoint restores those that it was made with."""
        for config in self.trainer.lr_scheduler_configs:
            scheduler: Any = config.scheduler
            scheduler.base_lrs = [self.hparams["learning_rate"]] * len(scheduler.base_lrs)
            rates = [
                base * factor(scheduler.last_epoch)
                for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
            ]
            for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
                group["lr"], group["initial_lr"] = rate, self.hparams["learning_rate"]
                group["betas"] = tuple(self.hparams["betas"])
                group["weight_decay"] = self.hparams["weight_decay"] if group["name"] == "weights" else 0.0
            scheduler._last_lr = rates
        if self.step.pending and self._compiled_on in ("none", self.device.type):
            self.step.use(self._compiled_on != "none")
        if self.step.pending and self.trainer.world_size > 1:
            self.step.use(False)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed what is random in this step."""
        seed = [int(os.environ.get("PL_GLOBAL_SEED", 0)), self.global_step, self.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        noisy, clean, estimate = (
            batch["noisy"].to(memory_format=self.memory_format),
            batch["clean"],
            batch.get("estimate"),
        )

        def loss_of(denoised: Tensor) -> Tensor:
            with torch.autocast(denoised.device.type, enabled=False):
                loss: Tensor = self.loss(denoised.float(), clean)
            return loss

        if self.step.pending:
            self.step.measure(loss_of, noisy, estimate)
        loss = loss_of(self.step(noisy, estimate))
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what was found faster: compiled code rounds in its own way, so a resumed run does not choose anew."""
        if not self.step.pending:
            checkpoint["compiled_on"] = self.device.type if self.step.compiled else "none"

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up that choice, for a run on the same kind of device."""
        self._compiled_on = checkpoint.get("compiled_on")

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Skip a step whose gradient is not finite: one such step would spoil weights, moments and average for good.

        Args:
            optimizer: The optimiser about to step.

        Raises:
            ValueError: If too many steps in a row had to be skipped.
        """
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if optimizer.param_groups[0].get("fused"):
            # To ask whether the norm is finite would stop the host until the GPU has caught up, in every step. The
            # fused optimiser asks by itself, on the device, and leaves weights, moments and counts alone if told so.
            finite = torch.isfinite(norm)
            optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            self.log("train/gradient_norm", norm)
            self._skipped = torch.where(finite, 0, torch.as_tensor(self._skipped, device=norm.device) + 1)
            if (self.global_step + 1) % MOST_SKIPPED:
                return
        elif torch.isfinite(norm):
            self._skipped = 0
            self.log("train/gradient_norm", norm)
            return
        else:
            self._skipped = int(self._skipped) + 1
            optimizer.zero_grad(set_to_none=True)  # a parameter without gradient is left alone, its moments too
        if self._skipped:
            rank_zero_warn(f"step {self.global_step}: gradient is not finite, step skipped")
        if self._skipped >= MOST_SKIPPED:
            raise ValueError(
                f"training diverged: no finite gradient in {MOST_SKIPPED} steps; lower --model.learning_rate, or "
                f"resume an earlier checkpoint with --trainer.precision 32-true"
            )

    def on_validation_epoch_start(self) -> None:
        """Forget the scores of the last validation."""
        self._sums = {}

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Score each cube of a batch under its noise case; give the estimates to callbacks."""
        denoised: Tensor = self(batch["noisy"])
        with torch.autocast(denoised.device.type, enabled=False):
            scores = evaluate_batch(denoised, batch["clean"])
        for i, case in enumerate(batch["case"]):
            weight = float(batch["weight"][i])
            values = [weight, *(weight * float(scores[name][i]) for name in METRICS)]
            before = self._sums.get(case, [0.0] * len(values))
            self._sums[case] = [a + b for a, b in zip(before, values, strict=True)]
        return denoised

    def on_validation_epoch_end(self) -> None:
        """Log the means: per noise case, and over the cases (each case counts alike)."""
        if self.trainer.sanity_checking:
            return
        parts: list[dict[str, list[float]]] = [self._sums]
        if self.trainer.world_size > 1:
            parts = [{} for _ in range(self.trainer.world_size)]
            torch.distributed.all_gather_object(parts, self._sums)
        cases = sorted({case for part in parts for case in part})
        means: dict[str, list[float]] = {}
        for case in cases:
            weight, *sums = (sum(column) for column in zip(*(p[case] for p in parts if case in p), strict=True))
            if weight:
                means[case] = [value / weight for value in sums]
        for column, name in enumerate(METRICS):
            for case, values in means.items():
                self.log(f"val/{name}/{case}", values[column], rank_zero_only=True)
            mean = sum(values[column] for values in means.values()) / len(means)
            # every process needs the score that checkpoints are chosen by; all have computed the same
            self.log(f"val/{name}", mean, prog_bar=name == "psnr")

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine."""
        trained = [p for p in self.network.parameters() if p.requires_grad]
        # a temperature of each head is a vector, however many axes of length 1 it has
        is_vector = [sum(side > 1 for side in p.shape) <= 1 for p in trained]
        groups = [
            {
                "params": [p for p, vector in zip(trained, is_vector, strict=True) if not vector],
                "weight_decay": self.hparams["weight_decay"],
                "name": "weights",
            },
            {
                "params": [p for p, vector in zip(trained, is_vector, strict=True) if vector],
                "weight_decay": 0.0,
                "name": "vectors",
            },
        ]
        optimiser = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=self.hparams["learning_rate"],
            betas=tuple(self.hparams["betas"]),
            fused=all(p.is_cuda for p in trained) or None,
        )
        total = self.trainer.estimated_stepping_batches
        # asked once per group: by the clock the answers would differ a little
        factor = lru_cache(maxsize=1)(lambda step: self.learning_rate_factor(step, total))
        scheduler = LambdaLR(optimiser, lambda step: factor(step))
        factor.cache_clear()  # a resumed run's clock stands elsewhere
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def learning_rate_factor(self, step: int, total_steps: float) -> float:
        """Share of the peak learning rate at a step.

        Args:
            step: Steps done.
            total_steps: Steps of the whole run, infinite if only time ends it.
        """
        rise = min(1.0, (step + 1) / (self.hparams["warmup_steps"] + 1))
        if self.hparams["schedule"] == "constant":
            return float(rise)
        done = min(1.0, max(step / max(1, total_steps), _time_share(self.trainer)))
        rest: float = self.hparams["final_share"]
        return float(rise) * (rest + (1 - rest) * 0.5 * (1 + math.cos(math.pi * done)))


def _time_share(trainer: pl.Trainer) -> float:
    """Share of the trainer's ``max_time`` that is spent, earlier parts of a resumed run included; 0 without a limit."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    timer = next((each for each in callbacks if isinstance(each, Timer)), None)
    left = timer.time_remaining() if timer is not None else None
    if timer is None or left is None:
        return 0.0
    spent = float(timer.time_elapsed())
    share = spent / max(spent + left, 1e-9)
    # clocks of processes differ; learning rates must not
    return float(trainer.strategy.broadcast(share)) if trainer.world_size > 1 else share
