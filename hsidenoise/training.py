"""Training: a network, its loss, its metrics, its optimiser; and the command line around them.

``hsidenoise train`` is Lightning's command line over a flat YAML file: ``model.*`` are the arguments of
:class:`DenoisingTask`, ``data.*`` those of :class:`~hsidenoise.data.datamodule.CubeDataModule`, ``trainer.*`` those of
Lightning's Trainer, ``ema.*`` those of :class:`~hsidenoise.callbacks.AverageWeights`.
"""

from __future__ import annotations

import math
import os
import warnings
from argparse import ArgumentError
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from jaxtyping import Float
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from hsidenoise.callbacks import BEST, AverageWeights, LastCheckpoint, Pictures, WeightsFile, time_share
from hsidenoise.data.datamodule import CubeDataModule
from hsidenoise.data.synthetic import Batch
from hsidenoise.losses import DataTerm, DenoisingLoss, Form
from hsidenoise.metrics import evaluate_batch
from hsidenoise.models import create_model
from hsidenoise.weights import start_from

METRICS = ("psnr", "ssim", "sam")
MOST_SKIPPED = 20  # steps in a row without a finite gradient after which a run is given up


class DenoisingTask(pl.LightningModule):
    """Trains a network to give the clean patch for the noisy one.

    The learning rate rises linearly over the warm-up, then falls along a cosine to ``final_share`` of
    itself. The end of the cosine is the last step or, if the trainer has a ``max_time``, that time, whichever comes
    first.

    Args:
        model: Name of a network in ``hsidenoise.models.MODELS``.
        bands: Bands of the network.
        model_config: Further arguments of the network; its own defaults for what is left out.
        learning_rate: Peak of the schedule, > 0.
        weight_decay: Of AdamW; not applied to biases, norms and other vectors.
        betas: Of AdamW.
        warmup_steps: Steps of linear rise.
        schedule: ``cosine`` or ``constant`` (after the warm-up).
        final_share: Share of the learning rate that is left at the end of the cosine, 0 to 1.
        gradient_weight: Weight of the gradient regulariser in the loss.
        loss_form: ``cube`` (per cube) or ``released`` (over the batch), see ``hsidenoise.losses``.
        data_term: ``l1``, ``charbonnier`` or ``mse``.
        channels_last: Whether the network runs on channels-last memory (several times faster on CPUs).
        initial_weights: Weights to start from, as ``hsidenoise.load_model`` takes them. None: random.

    Raises:
        ValueError: If an option is out of range or the network is unknown.
    """

    def __init__(
        self,
        model: str = "hcanet-bra",
        bands: int = 31,
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
        channels_last: bool = True,
        initial_weights: str | None = None,
    ) -> None:
        super().__init__()
        if learning_rate <= 0 or weight_decay < 0 or warmup_steps < 0 or not 0 <= final_share <= 1:
            raise ValueError(
                "learning_rate must be above 0, weight_decay and warmup_steps at least 0, final_share in [0, 1]"
            )
        self.save_hyperparameters()
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        network = self.create_network()
        if initial_weights is not None:
            start_from(network, initial_weights)
        self.network = network.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        self.loss = DenoisingLoss(gradient_weight=gradient_weight, form=loss_form, data_term=data_term)
        self._sums: dict[str, list[float]] = {}
        self._skipped = 0

    def create_network(self) -> nn.Module:
        """Build the network that ``model``, ``bands`` and ``model_config`` name; a subclass may bring its own."""
        return create_model(self.hparams["model"], bands=self.hparams["bands"], **(self.hparams["model_config"] or {}))

    def forward(self, noisy: Float[Tensor, "batch bands height width"]) -> Float[Tensor, "batch bands height width"]:
        """Denoise a batch.

        Args:
            noisy: Noisy cubes on the [0, 1] scale.

        Returns:
            Estimates in float32, whatever the precision inside the network was.
        """
        denoised: Tensor = self.network(noisy.to(memory_format=self.memory_format))
        return denoised.float()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        denoised = self(batch["noisy"])
        with torch.autocast(denoised.device.type, enabled=False):
            loss: Tensor = self.loss(denoised, batch["clean"])
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Skip a step whose gradient is not finite: one such step would spoil weights, moments and average for good.

        Args:
            optimizer: The optimiser about to step.

        Raises:
            ValueError: If too many steps in a row had to be skipped.
        """
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if torch.isfinite(norm):
            self._skipped = 0
            self.log("train/gradient_norm", norm)
            return
        self._skipped += 1
        optimizer.zero_grad(set_to_none=True)  # a parameter without gradient is left alone, its moments too
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
        )
        total = self.trainer.estimated_stepping_batches
        # asked once per group: by the clock the answers would differ a little
        factor = lru_cache(maxsize=1)(lambda step: self.learning_rate_factor(step, total))
        scheduler = LambdaLR(optimiser, lambda step: factor(step))
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
        done = min(1.0, max(step / max(1, total_steps), time_share(self.trainer)))
        rest: float = self.hparams["final_share"]
        return float(rise) * (rest + (1 - rest) * 0.5 * (1 + math.cos(math.pi * done)))


class TrainCLI(LightningCLI):
    """Lightning's command line with this project's callbacks, loggers and defaults."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run's folder, resuming, and the weight average."""
        parser.add_argument("--output", default=None, help="folder of the run (default: runs/<name of the config>)")
        parser.add_argument("--resume", default=None, help="'last', or the path of a checkpoint to go on from")
        parser.add_argument("--checkpoint_minutes", type=float, default=5.0, help="minutes between checkpoints")
        parser.add_lightning_class_args(AverageWeights, "ema")
        parser.link_arguments("data.bands", "model.bands")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse what was handed over; Lightning would warn that sys.argv has arguments too."""
        try:
            self.config = parser.parse_args(args)
        except ArgumentError as error:
            raise ValueError(f"{' '.join(str(error).split())} (see `{parser.prog} --help`)") from error

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Fill in what the configuration leaves open."""
        config = self.config_init["trainer"]
        self.output = run_folder(self.config)
        gpu = torch.cuda.is_available() and config["accelerator"] != "cpu"
        if config["precision"] is None:
            config["precision"] = "bf16-mixed" if gpu else "32-true"
        if config["logger"] in (None, True):
            config["logger"] = [
                TensorBoardLogger(self.output, name="", version="", default_hp_metric=False),
                CSVLogger(self.output, name="csv"),
            ]
        folder = self.output / "checkpoints"
        self.trainer_defaults["callbacks"] = [
            LearningRateMonitor(logging_interval="step"),
            Pictures(),
            WeightsFile(self.output / "weights.safetensors"),
            ModelCheckpoint(
                dirpath=folder,
                filename="best",
                monitor=BEST,
                mode="max",
                auto_insert_metric_name=False,
                enable_version_counter=False,
                save_on_train_epoch_end=False,
            ),
            LastCheckpoint(folder, self.config["checkpoint_minutes"]),
        ]
        try:
            return super().instantiate_trainer(**kwargs)
        except MisconfigurationException as error:  # such as an accelerator that this machine has not
            raise ValueError(f"--trainer: {' '.join(str(error).split())}") from error


def run_folder(config: Mapping[str, Any] | Namespace) -> Path:
    """Folder of a run: ``output``, or ``runs/`` and the name of the configuration file or else of the network.

    Args:
        config: Parsed command line.
    """
    if config["output"] is not None:
        return Path(config["output"])
    files = config.get("config") or []
    return Path("runs") / (Path(os.fspath(files[-1])).stem if files else config["model"]["model"])


def main(args: list[str]) -> None:
    """Train a network: ``hsidenoise train --config configs/... --data.root folder``.

    Leaves in the run's folder: ``weights.safetensors`` (the best, averaged), ``checkpoints``, ``config.yaml``,
    TensorBoard events and ``csv``.

    Args:
        args: Command line behind ``train``.

    Raises:
        ValueError: If an option is wrong, or the folder already holds a run and ``--resume`` is not given.
        FileNotFoundError: If the checkpoint to resume from does not exist.
        KeyboardInterrupt: If the run was interrupted or told to end; ``last.ckpt`` holds where it stopped.
    """
    with _quiet():
        cli = TrainCLI(
            DenoisingTask,
            CubeDataModule,
            run=False,
            args=args,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # weights files are for that; its hooks are deprecated
            # exit_on_error would put a hundred lines of usage before the error
            parser_kwargs={"prog": "hsidenoise train", "description": "Train on clean cubes.", "exit_on_error": False},
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"gradient_clip_val": 1.0, "num_sanity_val_steps": 1, "log_every_n_steps": 20},
        )
        cli.datamodule.locate()  # before anything is written
        last = cli.output / "checkpoints" / "last.ckpt"
        resume = cli.config["resume"]
        if resume is None and last.exists():
            raise ValueError(
                f"{cli.output} already holds a run: go on with it (--resume last) or name another folder (--output)"
            )
        checkpoint = last if resume == "last" else Path(resume) if resume else None
        if checkpoint is not None and not checkpoint.is_file():
            raise FileNotFoundError(f"{checkpoint}: no such checkpoint to resume from")
        try:
            cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint, weights_only=True)
        except SIGTERMException as stop:  # would end the program as if all were well
            raise KeyboardInterrupt from stop


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the warnings of Lightning that are no news here."""
    with warnings.catch_warnings():
        # one core: a worker process would only take time from the network
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # resuming writes where the first part wrote
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        # TensorBoard and checkpoints share the run's folder on purpose
        warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
        # Lightning's own: it calls renamed functions of jsonargparse and torch, its table of parameters knows no bf16
        warnings.filterwarnings("ignore", message=r"\s*By default only one JsonargparseDeprecationWarning")
        warnings.filterwarnings("ignore", message=r"\s*\S+ (parameter )?was deprecated in v4\.")
        warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.* is deprecated")
        warnings.filterwarnings("ignore", message="Precision .* is not supported by the model summary")
        warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging")
        yield
