"""Checkpoints: the state of a training run, written so that a kill cannot spoil it, found and checked for resuming."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from hsidenoise.system.files import replacing
from hsidenoise.training.pairs import Batch

LAST = "last.ckpt"
BEST = "val/psnr"  # what the best checkpoint and the weights file are chosen by

#: Options without which a checkpoint's tensors do not fit the run; every other one may be changed, and is told.
NETWORK = ("model", "bands", "model_config")

#: Options that change nothing of a resumed run, or only how fast it is.
_PRACTICAL = ("root", "workers", "cache", "cache_dir", "missing", "estimate", "initial_weights")


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside the old one, to the disk, and only then in its place.

    Lightning's own way is to write into the system's temporary folder and to move: across file systems that is a copy,
    and a kill while it runs leaves half a file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint, whole or not at all.

        Args:
            checkpoint: What to write.
            path: Where to.
            storage_options: Lightning's; there are none for a file.

        Raises:
            OSError: If the folder cannot be written or the disk is full; the old checkpoint is as it was.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)


class BestCheckpoint(ModelCheckpoint):
    """Writes ``best.ckpt`` at the best validation; knows the best score of a run that was moved to another folder.

    Args:
        folder: Where to write.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(
            dirpath=folder,
            filename="best",
            monitor=BEST,
            mode="max",
            auto_insert_metric_name=False,
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        )

    @property
    def state_key(self) -> str:
        """Name in a checkpoint."""
        return type(self).__name__

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best score; paths of another machine become those of here.

        Args:
            state_dict: As a checkpoint holds it.
        """
        super().load_state_dict(_moved(state_dict, str(self.dirpath)))


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
        self.path = folder / LAST
        self._interrupt_before: Any = None
        self._saved_step = -1

    @property
    def state_key(self) -> str:
        """Name in a checkpoint, whatever the options are: they may change when a run is resumed."""
        return type(self).__name__

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state; paths of another machine become those of here.

        Args:
            state_dict: As a checkpoint holds it.
        """
        super().load_state_dict(_moved(state_dict, str(self.dirpath)))

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
                self._save(trainer)
        elif trainer.received_sigterm:
            self._save(trainer)
        else:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, whether the score is the best or not."""
        if not trainer.sanity_checking:
            self._save(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save if the run was told to end and has not: a step is whole then. After any other error it may not be."""
        self._listen_no_more()
        # saved behind the end of an epoch, Lightning would count that epoch twice when it resumes
        if isinstance(exception, SIGTERMException) and self._saved_step != trainer.global_step:
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give Ctrl-C back."""
        self._listen_no_more()

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.path, weights_only=False)
        self._saved_step = trainer.global_step

    def _interrupt(self, *_: object) -> None:
        self._listen_no_more()
        rank_zero_warn("interrupted: stopping after this step; interrupt again to stop at once")
        os.kill(os.getpid(), signal.SIGTERM)

    def _listen_no_more(self) -> None:
        if self._interrupt_before is not None:
            signal.signal(signal.SIGINT, self._interrupt_before)
            self._interrupt_before = None


def find_checkpoint(folder: Path, resume: str | None) -> Path | None:
    """The checkpoint to go on from; None to start anew.

    Args:
        folder: The run's folder of checkpoints.
        resume: ``last``: the run's last one, which must exist; ``auto``: the last one if there is one; a path; or
            None: there must be no run yet.

    Raises:
        ValueError: If the folder holds a run and nothing is said of resuming.
        FileNotFoundError: If the checkpoint does not exist.

    Example:
        >>> find_checkpoint(Path("runs/new/checkpoints"), "auto") is None
        True
    """
    last = folder / LAST
    if resume is None:
        if last.exists():
            raise ValueError(
                f"{folder.parent} already holds a run: go on with it (--resume last) or name another folder (--output)"
            )
        return None
    if resume == "auto":
        return last if last.exists() else None
    path = last if resume == "last" else Path(resume)
    if not path.is_file():
        remedy = "; --resume auto starts anew where there is none" if resume == "last" else ""
        raise FileNotFoundError(f"{path}: no such checkpoint to resume from{remedy}")
    return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Open a checkpoint; its tensors stay on the disk until they are used.

    Args:
        path: File.

    Raises:
        ValueError: If it is cut short, no checkpoint, or not one of this program's.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # zip, pickle and torch each raise their own
        others = [other for other in sorted(path.parent.glob("*.ckpt")) if other != path]
        remedy = f"go on from {others[0]} (--resume) or" if others else "remove it and"
        raise ValueError(
            f"{path}: cannot be read as a checkpoint ({_first_line(error)}); it was cut short or is none: "
            f"{remedy} start anew in another folder (--output)"
        ) from error
    if not isinstance(checkpoint, dict) or not {"loops", "state_dict", "hyper_parameters"} <= checkpoint.keys():
        raise ValueError(f"{path}: not a checkpoint of `hsidenoise train` (weights go to --model.initial_weights)")
    return checkpoint


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


def epochs_done(checkpoint: Mapping[str, Any]) -> int:
    """Epochs that a checkpoint's run has ended so far, as Lightning counts those of ``max_epochs``.

    Example:
        >>> epochs_done({"loops": {"fit_loop": {"epoch_progress": {"current": {"processed": 3}}}}})
        3
    """
    return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


def changed_options(
    checkpoint: Mapping[str, Any], model: Mapping[str, Any], data: Mapping[str, Any], *, path: str | Path
) -> list[str]:
    """Options that the checkpoint's run had with another value, in words. A resumed run is exact if there are none.

    Args:
        checkpoint: As :func:`read_checkpoint` gives it.
        model: Options of the task now.
        data: Options of the data now.
        path: Name for messages.

    Returns:
        Such as ``data.batch_size 4, now 8``; options that the checkpoint does not know are left out.

    Raises:
        ValueError: If the network is another one.

    Example:
        >>> saved = {"hyper_parameters": {"model": "hcanet", "learning_rate": 0.1}}
        >>> changed_options(saved, {"model": "hcanet", "learning_rate": 0.2}, {}, path="last.ckpt")
        ['model.learning_rate 0.1, now 0.2']
    """
    saved = {"model": checkpoint["hyper_parameters"], "data": checkpoint.get("datamodule_hyper_parameters", {})}
    changes: list[str] = []
    for part, now in (("model", model), ("data", data)):
        for name, value in saved[part].items():
            if name.startswith("_") or name in _PRACTICAL or name not in now or _same(value, now[name]):
                continue
            change = f"{part}.{name} {_shown(value)}, now {_shown(now[name])}"
            if part == "model" and name in NETWORK:
                raise ValueError(
                    f"{path}: of another network ({change}): give the run's own configuration, or start anew from its "
                    f"weights (--model.initial_weights, --output)"
                )
            changes.append(change)
    return changes


def _moved(state: dict[str, Any], folder: str) -> dict[str, Any]:
    def here(path: str) -> str:
        return os.path.join(folder, os.path.basename(path)) if path else path  # noqa: PTH118, PTH119

    moved = dict(state, dirpath=folder)
    for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
        moved[name] = here(state.get(name, ""))
    moved["best_k_models"] = {here(path): score for path, score in state.get("best_k_models", {}).items()}
    return moved


def _same(one: Any, other: Any) -> bool:
    return _shown(one) == _shown(other)


def _shown(value: Any) -> str:
    """JSON, so that a list equals the tuple that it was before it was saved."""
    return json.dumps(value, default=str, sort_keys=True)


def _first_line(error: Exception) -> str:
    return next((line.strip()[:120] for line in str(error).splitlines() if line.strip()), type(error).__name__)
