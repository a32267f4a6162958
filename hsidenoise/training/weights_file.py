"""The weights file of a training run: the best average so far, and in its header all that it came from."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as short
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_only

from hsidenoise.models.weights import TRAINING_SCENES, VALIDATION_SCENES, read_header, save_weights, scenes_seen, sha256
from hsidenoise.system.files import commit
from hsidenoise.training.callbacks import AverageWeights
from hsidenoise.training.checkpoints import BEST

_NO_ORIGIN = {"initial_weights": "none", "steps_before": "0", "minutes_before": "0.0"}


def origin_of(source: str | Path | None) -> dict[str, str]:
    """What a run owes to the weights that it starts from.

    Args:
        source: Name or file of the weights. None: it starts at random.

    Returns:
        For the header: ``initial_weights``, their ``initial_weights_sha256``, ``steps_before`` and ``minutes_before``
        (those of their own ancestors included), and the scenes they have seen.

    Raises:
        ValueError: If the header says what cannot be; it names the file and the field.

    Example:
        >>> origin_of(None)["steps_before"]
        '0'
    """
    if source is None:
        return dict(_NO_ORIGIN)
    header = read_header(source)
    try:
        steps = sum(_spent(header, name, int) for name in ("steps", "steps_before"))
        minutes = sum(_spent(header, name, float) for name in ("minutes", "minutes_before"))
        seen = {key: json.dumps(scenes_seen(header, key)) for key in (TRAINING_SCENES, VALIDATION_SCENES)}
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    return {
        "initial_weights": str(source),
        "initial_weights_sha256": sha256(source),
        "steps_before": str(steps),
        "minutes_before": f"{minutes:.1f}",
        **seen,
    }


def _spent(header: Mapping[str, str], name: str, kind: type[int] | type[float]) -> float:
    """What a header says that weights took."""
    text = header.get(name, "0")
    try:
        value = kind(text)
    except ValueError:
        value = -1
    if not 0 <= value < 1e12:
        raise ValueError(f"{name} is {short(text)}: a number, 0 or more, is expected")
    return value


class WeightsFile(pl.Callback):
    """Writes ``weights.safetensors`` whenever validation is the best so far, and at the end if there was no validation.

    Args:
        path: File to write.
        seed: Seed of the run's random start, for the header. None: unknown.
    """

    def __init__(self, path: Path, seed: int | None = None) -> None:
        self.path, self.seed = path, seed
        self.best = -math.inf
        self._origin: dict[str, str] | None = None
        self._seconds_before = 0.0
        self._started = time.monotonic()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, and look at the initial weights while they are there (a resumed run has looked)."""
        self._started = time.monotonic()
        if self._origin is None:
            self._origin = origin_of(pl_module.hparams.get("initial_weights"))

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
        """Best score, time spent and origin, for a checkpoint."""
        return {"best": self.best, "seconds": self._seconds, "origin": self._origin}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best score, the time and the origin of the run that is resumed."""
        self.best, self._seconds_before = state_dict["best"], state_dict["seconds"]
        self._origin = state_dict.get("origin")

    @property
    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started

    @rank_zero_only
    def _save(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        average = next((each for each in callbacks if isinstance(each, AverageWeights)), None)
        network = average.network(task) if average is not None else task.get_submodule("network")
        save_weights(self.path, network, name=task.hparams["model"], metadata=self._header(trainer, task, average))

    def _header(self, trainer: pl.Trainer, task: pl.LightningModule, average: AverageWeights | None) -> dict[str, str]:
        data = getattr(trainer, "datamodule", None)
        described: dict[str, str] = getattr(data, "description", dict)()
        batch = getattr(data, "batch_size", 0) * trainer.world_size * trainer.accumulate_grad_batches
        origin = self._origin or dict(_NO_ORIGIN)
        options = task.hparams
        scenes = {
            key: json.dumps(sorted({*json.loads(described.get(key, "[]")), *json.loads(origin.get(key, "[]"))}))
            for key in (TRAINING_SCENES, VALIDATION_SCENES)
        }
        wishes = {"tile": options.get("tile")}
        return {
            **described,
            **origin,
            **{key: str(value) for key, value in wishes.items() if value},
            **scenes,
            "seed": "unknown" if self.seed is None else str(self.seed),
            "steps": str(trainer.global_step),
            "steps_total": str(trainer.global_step + int(origin["steps_before"])),
            "epochs": str(trainer.current_epoch),
            "minutes": f"{self._seconds / 60:.1f}",
            "batch_size": str(batch),
            "patches_seen": str(batch * trainer.global_step),
            "precision": str(trainer.precision),
            "device": _device(task.device),
            "learning_rate": str(options.get("learning_rate")),
            "schedule": f"{options.get('schedule')}, {options.get('warmup_steps')} steps of warm-up",
            "optimiser": f"AdamW, betas {tuple(options.get('betas', ()))}, weight decay {options.get('weight_decay')}",
            "gradient_clip": str(trainer.gradient_clip_val),
            "loss": f"{options.get('data_term')} + {options.get('gradient_weight')} x gradient",
            "loss_form": str(options.get("loss_form")),
            "ema_decay": "none" if average is None else str(average.decay),
            "commit": commit(),
            **{key: f"{float(value):.4f}" for key, value in trainer.callback_metrics.items() if key.startswith("val/")},
        }


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
