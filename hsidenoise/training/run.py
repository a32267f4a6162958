"""Training: the command line around the task, and what a run leaves in its folder.

``hsidenoise train`` is Lightning's command line over a flat YAML file: ``model.*`` are the arguments of
:class:`~hsidenoise.training.task.DenoisingTask`, ``data.*`` those of
:class:`~hsidenoise.training.datamodule.CubeDataModule`, ``trainer.*`` those of Lightning's Trainer, ``ema.*`` those of
:class:`~hsidenoise.training.callbacks.AverageWeights`.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import sys
import threading
import warnings
from argparse import ArgumentError
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from jsonargparse import Namespace, get_loader, set_loader
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from hsidenoise.system.files import check_no_pipe, packaged, write_text
from hsidenoise.system.options import plain
from hsidenoise.system.yaml_text import MISFITS, check_yaml
from hsidenoise.training.callbacks import AverageWeights, Part, Pictures, Speed
from hsidenoise.training.checkpoints import (
    LAST,
    AtomicCheckpoints,
    BestCheckpoint,
    LastCheckpoint,
    changed_options,
    epochs_done,
    find_checkpoint,
    read_checkpoint,
    seconds_spent,
)
from hsidenoise.training.datamodule import CubeDataModule
from hsidenoise.training.task import DenoisingTask
from hsidenoise.training.weights_file import WeightsFile

__all__ = ["DenoisingTask", "TrainCLI", "main", "run_folder"]

#: Options of older configurations: what they are called, and what is added to their value. None: they are gone.
_OLD = {
    **dict.fromkeys(("model.second_step_weight", "model.pilot_filter_weight", "model.passes", "model.pilot_rounds")),
    "data.noise_on": None,
}

_OWNER = re.compile(r"process \d+( on |$)")  # what a lock holds; a file that holds something else is somebody's
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class WholeConfig(SaveConfigCallback):
    """Writes ``config.yaml`` whole or not at all: that of a run that is resumed is not spoilt by a full disk."""

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write it into the run's folder; called in the main process only, where ``trainer.log_dir`` waits for all."""
        folder = run_folder(self.config)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / self.config_filename, self.parser.dump(self.config, skip_none=False))


class TrainCLI(LightningCLI):
    """Lightning's command line with this project's callbacks, loggers and defaults."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run's folder, resuming, and the weight average."""
        parser.add_argument("--output", default=None, help="folder of the run (default: runs/<name of the config>)")
        parser.add_argument(
            "--resume",
            default=None,
            help="checkpoint to go on from: 'last', 'auto' (the last if there is one, else start), or a path",
        )
        parser.add_argument("--checkpoint_minutes", type=float, default=5.0, help="minutes between checkpoints")
        parser.add_argument(
            "--steps", type=int, default=None, help="steps of this part of the run; --trainer.max_steps is of all parts"
        )
        parser.add_argument(
            "--minutes",
            type=float,
            default=None,
            help="minutes of this part of the run; without --trainer.max_time (of all parts) the schedule ends with it",
        )
        parser.add_lightning_class_args(AverageWeights, "ema")
        parser.link_arguments("data.bands", "model.bands")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse what was handed over; Lightning would warn that sys.argv has arguments too."""
        for option, value in zip(args, [*args[1:], ""], strict=False):
            name, _, attached = option.partition("=")
            if name == "--config":
                check_no_pipe(attached or value)
                _check_text(attached or value)
        try:
            self.config = parser.parse_args(args)
        except (ArgumentError, yaml.YAMLError, OverflowError) as error:  # the last: an integer that no float holds
            raise ValueError(f"{' '.join(str(error).split())} (see `{parser.prog} --help`)") from error

    def before_instantiate_classes(self) -> None:
        """Find what is resumed."""
        self.part = Part(self.config["steps"], self.config["minutes"])
        self.output = run_folder(self.config)
        self.resumed = find_checkpoint(self.output / "checkpoints", self.config["resume"])
        self.checkpoint = read_checkpoint(self.resumed) if self.resumed is not None else None
        self._initial_weights = self.config["model"]["initial_weights"]
        if self.checkpoint is not None:  # what the run once started from need not be there any more
            self.config["model"]["initial_weights"] = None

    def after_instantiate_classes(self) -> None:
        """Keep what the run started from in its records."""
        self.config["model"]["initial_weights"] = self.model.hparams["initial_weights"] = self._initial_weights

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Fill in what the configuration leaves open."""
        config = self.config_init["trainer"]
        gpu = torch.cuda.is_available() and config["accelerator"] != "cpu"
        if gpu:
            torch.set_float32_matmul_precision("high")  # TF32 where bfloat16 is not asked for
        if config["precision"] is None:
            config["precision"] = "bf16-mixed" if gpu else "32-true"
        if self.config["minutes"] is not None and config["max_time"] is None:
            seconds = seconds_spent(self.checkpoint) + 60 * self.config["minutes"]
            config["max_time"] = timedelta(seconds=seconds)
        if config["logger"] in (None, True):
            config["logger"] = [
                TensorBoardLogger(self.output, name="", version="", default_hp_metric=False),
                CSVLogger(self.output, name="csv", flush_logs_every_n_steps=1),  # a kill loses no row
            ]
        config["plugins"] = [*_as_list(config["plugins"]), AtomicCheckpoints()]
        folder = self.output / "checkpoints"
        self.speed = Speed()
        self.trainer_defaults["callbacks"] = [
            self.part,
            LearningRateMonitor(logging_interval="step"),
            Pictures(),
            WeightsFile(self.output / "weights.safetensors", seed=self.config["seed_everything"]),
            self.speed,
            BestCheckpoint(folder),
            LastCheckpoint(folder, self.config["checkpoint_minutes"]),
        ]
        try:
            return super().instantiate_trainer(**kwargs)
        except MisconfigurationException as error:  # such as an accelerator that this machine has not
            raise ValueError(f"--trainer: {' '.join(str(error).split())}") from error

    def say_what_changed(self) -> None:
        """Warn if the run is resumed with other options than it had.

        Raises:
            ValueError: If the network is another one, or the run has already had more epochs than it may.
        """
        if self.checkpoint is None or self.resumed is None:
            return
        epochs, most = epochs_done(self.checkpoint), self.trainer.max_epochs
        if most is not None and 0 <= most < epochs:
            raise ValueError(
                f"{self.resumed}: {epochs} epochs are trained, more than --trainer.max_epochs {most}: raise it to go "
                "on, or train anew in another folder (--output)"
            )
        changes = changed_options(self.checkpoint, self.model.hparams, self.datamodule.hparams, path=self.resumed)
        if changes:
            rank_zero_warn(f"resumed with other options than the run had: {'; '.join(changes)}")


def _check_text(path: str) -> None:
    try:
        Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text in UTF-8, as a YAML file is ({error.reason})") from error
    except OSError:
        pass  # said by who reads it


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


@rank_zero_only
def _report(cli: TrainCLI, *, failed: bool) -> None:
    if cli.speed.steps:
        print(f"{plain(str(cli.output))}: {cli.speed.sentence()}")
    elif cli.resumed is not None and not failed:
        print(
            f"{plain(str(cli.output))}: nothing left to do; raise --trainer.max_steps, max_epochs or max_time to go on"
        )


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
    TensorBoard events and ``csv``; prints what it did in how much time.

    A run may be made in parts (``--minutes``, ``--steps``, Ctrl-C, a kill) and resumed (``--resume last``): it ends as
    if it had never stopped, but for the validations that end the parts. After a kill, rows of the log that came
    behind the last checkpoint are repeated by the next part, in a file of their own.

    Args:
        args: Command line behind ``train``.

    Raises:
        ValueError: If an option is wrong, the folder already holds a run and ``--resume`` is not given, or another
            process trains in it.
        FileNotFoundError: If the checkpoint to resume from does not exist.
        OSError: If the disk is full; the last checkpoint that was written is whole.
        KeyboardInterrupt: If the run was interrupted or told to end; ``last.ckpt`` holds where it stopped.
    """
    with _quiet(), _bounded_yaml():
        cli = TrainCLI(
            DenoisingTask,
            CubeDataModule,
            run=False,
            args=_present(args),
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # weights files are for that; its hooks are deprecated
            # exit_on_error would put a hundred lines of usage before the error
            parser_kwargs={"prog": "hsidenoise train", "description": "Train on clean cubes.", "exit_on_error": False},
            save_config_callback=WholeConfig,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults={"gradient_clip_val": 1.0, "num_sanity_val_steps": 1, "log_every_n_steps": 20},
        )
        cli.datamodule.locate()  # before anything is written
        cli.say_what_changed()
        with _alone(cli.output):
            # another training may have had the folder while this one came up
            if find_checkpoint(cli.output / "checkpoints", cli.config["resume"]) != cli.resumed:
                raise ValueError(f"{cli.output}: another training has just ended here: give the command once more")
            failed = True
            try:
                cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=cli.resumed, weights_only=True)
                failed = False
            except SIGTERMException as stop:  # would end the program as if all were well
                raise KeyboardInterrupt from stop
            except (OSError, RuntimeError) as error:
                if (reason := _no_room(error)) is None:
                    raise
                last = cli.output / "checkpoints" / LAST
                kept = f"{last} is whole: make room and go on with --resume last" if last.exists() else "make room"
                raise OSError(f"{cli.output}: training has stopped, the disk is full ({reason}); {kept}") from error
            except MisconfigurationException as error:
                raise ValueError(f"{cli.output}: --trainer: {' '.join(str(error).split())}") from error
            finally:
                _report(cli, failed=failed)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other trainings out of a folder. The system gives the lock free when this process ends, however it does."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise ValueError(f"{path}: is no regular file, as the lock of a run is: remove it, or name another folder")
    # a link that comes in between is not followed, a pipe not waited for
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    with open(path, "a+b", buffering=0, opener=lambda name, _: os.open(name, flags, 0o666)) as file:
        file.seek(0)
        said = file.read(200).decode(errors="replace")
        ours = not said or _OWNER.match(said)
        try:
            # the other processes of a run come with the first
            if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, not inherited by worker processes
                with suppress(OSError):  # only said to others; a full disk is told when the run writes
                    if ours:
                        file.truncate(0)
                        file.write(f"process {os.getpid()} on {platform.node()}".encode())
        except (BlockingIOError, PermissionError) as error:
            owner = plain(said) if said and ours else "another process"
            raise ValueError(f"{folder}: {owner} trains here: let it end, or name another folder (--output)") from error
        except OSError as error:
            rank_zero_warn(f"{folder}: cannot be locked ({error.strerror}): let no other training run in it")
        yield


def _no_room(error: BaseException | None) -> str | None:
    """Why a file could not be written, if it is for want of room; torch and Lightning raise errors of their own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            return error.strerror
        error = error.__cause__ or error.__context__
    return None


def _present(args: list[str]) -> list[str]:
    """The command line with the files of configurations that are given by name, and with options as they are called."""
    found: list[str] = []
    rest = iter(args)
    for word in rest:
        option, equals, value = word.partition("=")
        wanted = option in ("-c", "--config") or option.removeprefix("--") in _OLD
        text = value if equals or not wanted else next(rest, None)
        if not wanted or text is None:
            found.append(word)
        elif option in ("-c", "--config"):
            found += ["--config", str(packaged(text, "configs", ".yaml"))]
        elif (renamed := _renamed(option.removeprefix("--"), text)) is not None:
            found += [f"--{renamed[0]}", str(renamed[1])]
    return found


def _renamed(option: str, value: Any) -> tuple[str, Any] | None:
    """Present name and value of an option that had another name, None if it is gone; a hint says so."""
    new = _OLD[option]
    if new is None:
        print(f"hsidenoise: hint: --{option} is gone; leave it out", file=sys.stderr)
        return None
    name, added = f"{option.partition('.')[0]}.{new[0]}", new[1]
    if added and str(value).isdecimal():
        value = int(value) + added
    print(f"hsidenoise: hint: {option} is {name} {plain(str(value))}", file=sys.stderr)
    return name, value


@contextmanager
def _bounded_yaml() -> Iterator[None]:
    """Have jsonargparse refuse what :func:`hsidenoise.system.yaml_text.check_yaml` refuses, and take old names."""
    load = get_loader("yaml")

    def load_bounded(text: str) -> Any:
        check_yaml(text)
        try:
            config = load(text)
        except MISFITS as error:
            raise yaml.YAMLError(f"a value does not fit its tag (!!bool, !!int, ...): {error}") from error
        for old in _OLD:
            section, _, name = old.partition(".")
            part = config.get(section) if isinstance(config, dict) else None
            if isinstance(part, dict) and name in part and (new := _renamed(old, part.pop(name))) is not None:
                part[new[0].partition(".")[2]] = new[1]
        return config

    set_loader("yaml", load_bounded, exceptions=(yaml.YAMLError,))
    try:
        yield
    finally:
        set_loader("yaml", load, exceptions=(yaml.YAMLError,))


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
        # what TensorBoard's thread cannot write is raised again by the next thing that its logger is given
        before = threading.excepthook
        threading.excepthook = lambda args: None if issubclass(args.exc_type, OSError) else before(args)
        try:
            yield
        finally:
            threading.excepthook = before
