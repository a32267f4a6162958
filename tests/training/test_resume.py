"""A run in parts is the run in one: to the last bit, whatever ends a part."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from command_line import ROOT, child
from lightning.pytorch.callbacks import timer

from hsidenoise.data.io import write_arrays
from hsidenoise.models.weights import load_model, read_header
from hsidenoise.training.run import TrainCLI, main
from hsidenoise.training.task import DenoisingTask

NETWORK = "{dim: 8, num_blocks: [1, 0, 0], num_refinement_blocks: 0}"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two training cubes and one validation cube of five bands."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for part, name, size in (("train", "a", (19, 24)), ("train", "b", (22, 17)), ("validation", "c", (14, 16))):
        path = folder / part / f"{name}.mat"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(path, {"cube": rng.random((*size, 5), dtype=np.float32)})
    return folder


@pytest.fixture(scope="module")
def straight(root, tmp_path_factory):
    """Folder of a run of 13 steps that was never stopped."""
    folder = tmp_path_factory.mktemp("straight")
    main(arguments(root, folder, "--trainer.max_steps", "13"))
    return folder


def arguments(root, output, *more):
    """A run of milliseconds a step: batches of 2, five to an epoch."""
    return [
        *("--data.root", str(root), "--output", str(output), "--data.bands", "5"),
        *("--model.model", "hcanet", "--model.model_config", NETWORK),
        *("--data.patch_size", "12", "--data.batch_size", "2", "--data.patches_per_epoch", "10", "--data.workers", "0"),
        *("--data.scales", "[1]", "--data.noise", "[gaussian-50, mixture]", "--data.validation_noise", "[mixture]"),
        *("--data.validation_crop", "12", "--model.warmup_steps", "3", "--trainer.accelerator", "cpu"),
        *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
        *("--trainer.precision", "32-true", "--trainer.log_every_n_steps", "1", "--seed_everything", "3", *more),
    ]


def state(output):
    return torch.load(output / "checkpoints" / "last.ckpt", weights_only=True)


def logged(output, key):
    """Rows of the log that have a value under ``key``, but for what tells of time."""
    files = sorted(output.glob("csv/version_*/metrics.csv"), key=lambda file: int(file.parent.name.split("_")[1]))
    rows = []
    for file in files:
        with file.open() as stream:
            rows += list(csv.DictReader(stream))
    found = [{k: v for k, v in row.items() if v and not k.startswith("speed/")} for row in rows if row.get(key)]
    # what came behind the last checkpoint before a kill is repeated, and is the same
    return [row for number, row in enumerate(found) if row not in found[:number]]


def assert_same(one, other, where=""):
    """Equal to the last bit, all the way down."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}/{i}")
    else:
        assert one == other, where


def assert_same_run(straight, broken):
    """Weights in training and their average, optimiser, schedule, and every row of the log."""
    one, other = state(straight), state(broken)
    for part in ("current_model_state", "state_dict", "averaging_state", "optimizer_states", "global_step", "epoch"):
        assert_same(one[part], other[part], part)
    for schedule, again in zip(one["lr_schedulers"], other["lr_schedulers"], strict=True):
        for key in ("last_epoch", "_last_lr", "base_lrs"):
            assert schedule[key] == again[key], key
    assert logged(straight, "train/loss") == logged(broken, "train/loss")
    assert logged(straight, "lr-AdamW/weights") == logged(broken, "lr-AdamW/weights")
    validations = logged(broken, "val/psnr")  # the end of each part adds one
    assert all(row in validations for row in logged(straight, "val/psnr"))


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")  # on a single core
def test_two_parts_with_workers_are_the_whole_without(root, straight, tmp_path):
    options = ("--trainer.max_steps", "13", "--data.workers", "2")
    main(arguments(root, tmp_path / "broken", *options, "--steps", "7"))  # the second of five in the second epoch
    half = state(tmp_path / "broken")
    assert half["global_step"] == 7
    assert half["lr_schedulers"][0]["_last_lr"][0] == pytest.approx(cosine(7, 13))  # not annealed yet
    main(arguments(root, tmp_path / "broken", *options, "--resume", "last"))
    assert_same_run(straight, tmp_path / "broken")
    assert len(logged(tmp_path / "broken", "train/loss")) == 13


def end_after(monkeypatch, step, how):
    """The run is ended in the middle of a step: by a signal, or at once as a kill does."""
    training_step = DenoisingTask.training_step

    def ended(self, batch, batch_idx):
        loss = training_step(self, batch, batch_idx)
        if self.global_step == step:
            how()
        return loss

    monkeypatch.setattr(DenoisingTask, "training_step", ended)


class Killed(BaseException):
    """Ends a run without a last word, as SIGKILL would."""


def kill():
    raise Killed


@pytest.mark.filterwarnings("ignore:interrupted. stopping after this step")
@pytest.mark.parametrize(("step", "number"), [(0, signal.SIGTERM), (4, signal.SIGINT), (11, signal.SIGTERM)])
def test_a_stop_anywhere_changes_nothing(root, straight, tmp_path, monkeypatch, step, number):
    """First and last steps of epochs of five, by a signal; the step in hand is done first."""
    options = ("--trainer.max_steps", "13")
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        end_after(patch, step, lambda: signal.raise_signal(number))
        with pytest.raises(KeyboardInterrupt):
            main(arguments(root, tmp_path / "broken", *options))
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert state(tmp_path / "broken")["global_step"] == step + 1
    main(arguments(root, tmp_path / "broken", *options, "--resume", "last"))
    assert_same_run(straight, tmp_path / "broken")


def test_a_kill_goes_back_to_the_last_checkpoint_and_ends_the_same(root, straight, tmp_path, monkeypatch):
    options = ("--trainer.max_steps", "13")
    with monkeypatch.context() as patch:
        end_after(patch, 8, kill)
        with pytest.raises(Killed):
            main(arguments(root, tmp_path / "broken", *options, "--checkpoint_minutes", "0.0001"))
    assert state(tmp_path / "broken")["global_step"] == 8  # 6 milliseconds are over after every step
    main(arguments(root, tmp_path / "broken", *options, "--resume", "auto"))
    assert_same_run(straight, tmp_path / "broken")


class Clock:
    """Stands still but for a second with each training step."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(timer.time, "monotonic", lambda: self.now)
        training_step = DenoisingTask.training_step

        def ticking(task, batch, batch_idx):
            self.now += 1
            return training_step(task, batch, batch_idx)

        monkeypatch.setattr(DenoisingTask, "training_step", ticking)


def rates(output):
    return [float(row["lr-AdamW/weights"]) for row in logged(output, "lr-AdamW/weights")]


def test_parts_of_a_time_budget_are_the_whole(root, tmp_path, monkeypatch):
    Clock(monkeypatch)
    options = ("--trainer.max_time", "00:00:00:12")
    main(arguments(root, tmp_path / "straight", *options))
    main(arguments(root, tmp_path / "broken", *options, "--minutes", "0.1"))
    assert state(tmp_path / "broken")["global_step"] == 6
    main(arguments(root, tmp_path / "broken", *options, "--minutes", "0.1", "--resume", "last"))
    assert_same_run(tmp_path / "straight", tmp_path / "broken")
    assert len(rates(tmp_path / "straight")) == 12


def cosine(step, seconds):
    return 5e-4 * min(1, (step + 1) / 4) * (0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * min(1, step / seconds))))


def test_a_finished_run_is_given_more_time(root, tmp_path, monkeypatch, capsys):
    Clock(monkeypatch)
    main(arguments(root, tmp_path / "run", "--trainer.max_time", "00:00:00:06"))
    main(arguments(root, tmp_path / "run", "--trainer.max_time", "00:00:00:06", "--resume", "last"))
    assert "nothing left to do" in capsys.readouterr().out
    main(arguments(root, tmp_path / "run", "--trainer.max_time", "00:00:00:15", "--resume", "last"))
    # a step later by the clock than by number: the rate of step n is settled at the end of step n - 1
    np.testing.assert_allclose(rates(tmp_path / "run")[:6], [cosine(n, 6) for n in range(6)], rtol=1e-6)
    np.testing.assert_allclose(rates(tmp_path / "run")[6:], [cosine(n, 15) for n in range(6, 15)], rtol=1e-6)


def test_minutes_alone_are_a_schedule_that_more_minutes_prolong(root, tmp_path, monkeypatch):
    Clock(monkeypatch)
    main(arguments(root, tmp_path / "run", "--minutes", "0.1", "--resume", "auto"))
    main(arguments(root, tmp_path / "run", "--minutes", "0.1", "--resume", "auto"))
    expected = [cosine(n, 6) for n in range(6)] + [cosine(n, 12) for n in range(6, 12)]
    np.testing.assert_allclose(rates(tmp_path / "run"), expected, rtol=1e-6)


def test_another_learning_rate_holds_from_the_resume_on_and_is_told(root, tmp_path):
    options = ("--trainer.max_steps", "8", "--model.schedule", "constant", "--steps", "4")
    main(arguments(root, tmp_path / "run", *options))
    with pytest.warns(UserWarning, match=r"other options than the run had: model\.learning_rate 0\.0005, now 0\.001"):
        main(arguments(root, tmp_path / "run", *options, "--model.learning_rate", "0.001", "--resume", "last"))
    np.testing.assert_allclose(rates(tmp_path / "run"), [1.25e-4, 2.5e-4, 3.75e-4, 5e-4, *[1e-3] * 4], rtol=1e-6)


def test_a_network_that_is_another_is_refused(root, tmp_path):
    main(arguments(root, tmp_path / "run", "--trainer.max_steps", "1"))
    other = ("--model.model_config", "{dim: 12, num_blocks: [1, 0, 0]}", "--resume", "last")
    with pytest.raises(ValueError, match=r"last\.ckpt: of another network \(model\.model_config .*12.*initial_weights"):
        main(arguments(root, tmp_path / "run", *other))


def test_other_scenes_are_told(root, tmp_path):
    main(arguments(root, tmp_path / "run", "--trainer.max_steps", "1"))
    for part, name in (("train", "a"), ("validation", "c")):
        (tmp_path / "more" / part).mkdir(parents=True)
        (tmp_path / "more" / part / f"{name}.mat").symlink_to(root / part / f"{name}.mat")
    write_arrays(tmp_path / "more" / "train" / "d.mat", {"cube": np.random.default_rng(1).random((19, 24, 5))})
    with pytest.warns(UserWarning, match=r"other scenes: 1 gone, 1 new \(b, d\)"):
        main(arguments(tmp_path / "more", tmp_path / "run", "--trainer.max_steps", "2", "--resume", "last"))


def test_a_checkpoint_cut_short_is_told_and_so_is_the_way_on(root, tmp_path):
    main(arguments(root, tmp_path / "run", "--trainer.max_steps", "1"))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-4000])
    with pytest.raises(ValueError, match=r"last\.ckpt: cannot be read.*go on from .*best\.ckpt") as error:
        main(arguments(root, tmp_path / "run", "--resume", "auto"))
    assert "\n" not in str(error.value)
    main(arguments(root, tmp_path / "run", "--trainer.max_steps", "2", "--resume", str(last.with_name("best.ckpt"))))
    assert state(tmp_path / "run")["global_step"] == 2


def test_last_without_a_run_is_an_error_and_auto_starts(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"last\.ckpt: no such checkpoint.*--resume auto"):
        main(arguments(root, tmp_path / "run", "--resume", "last"))
    assert not (tmp_path / "run").exists()
    main(arguments(root, tmp_path / "run", "--trainer.max_steps", "1", "--resume", "auto"))
    assert state(tmp_path / "run")["global_step"] == 1


def test_fewer_epochs_than_are_trained_are_refused_before_anything_is_written(root, straight, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(straight, output)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"last\.ckpt: 2 epochs are trained, more than --trainer\.max_epochs 1: raise"):
        main(arguments(root, output, "--resume", "last", "--trainer.max_epochs", "1"))
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    main(arguments(root, output, "--resume", "last", "--trainer.max_epochs", "3"))
    assert state(output)["global_step"] == 15


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "other"])
def test_a_lock_that_is_not_the_runs_own_is_left_as_it_is(root, straight, tmp_path, kind):
    output, precious, lock = tmp_path / "run", tmp_path / "precious.txt", tmp_path / "run" / ".lock"
    shutil.copytree(straight, output)
    lock.unlink()
    precious.write_text("mine")
    make = {"link": lambda: lock.symlink_to(precious), "pipe": lambda: os.mkfifo(lock), "folder": lock.mkdir}
    make.get(kind, lambda: os.link(precious, lock))()
    run = arguments(root, output, "--trainer.max_steps", "14", "--resume", "last")
    if kind == "other":
        main(run)
    else:
        with pytest.raises(ValueError, match=r"\.lock: is no regular file.*remove it"):
            main(run)
    assert precious.read_text() == "mine"


def test_a_run_moved_to_another_folder_goes_on_and_knows_its_best(root, straight, tmp_path):
    options = ("--trainer.max_steps", "13")
    main(arguments(root, tmp_path / "here", *options, "--steps", "7"))
    (tmp_path / "here").rename(tmp_path / "there")
    main(arguments(root, tmp_path / "there", *options, "--resume", "last"))
    assert not (tmp_path / "here").exists()
    assert_same_run(straight, tmp_path / "there")
    best = torch.load(tmp_path / "there" / "checkpoints" / "best.ckpt", weights_only=True)
    scores = [float(row["val/psnr"]) for row in logged(tmp_path / "there", "val/psnr")]
    assert float(best["callbacks"]["BestCheckpoint"]["best_model_score"]) == pytest.approx(max(scores), rel=1e-6)


def test_initial_weights_may_be_gone_when_the_run_is_resumed(root, tmp_path):
    main(arguments(root, tmp_path / "first", "--trainer.max_steps", "3"))
    weights = tmp_path / "first" / "weights.safetensors"
    options = ("--model.initial_weights", str(weights), "--trainer.max_steps", "4")
    main(arguments(root, tmp_path / "second", *options, "--steps", "2"))
    weights.unlink()
    main(arguments(root, tmp_path / "second", *options, "--resume", "last", "--model.learning_rate", "0.0005"))
    header = read_header(tmp_path / "second" / "weights.safetensors")
    assert header["initial_weights"] == str(weights)
    assert header["steps_before"] == "3"
    assert int(header["steps_total"]) == int(header["steps"]) + 3


def test_a_killed_run_leaves_weights_and_a_checkpoint_to_go_on_from(root, tmp_path):
    output = tmp_path / "run"
    # checkpoints every 30 milliseconds, validation every 20 steps
    options = ("--checkpoint_minutes", "0.0005", "--data.patches_per_epoch", "40", "--trainer.max_epochs", "100000")
    command = [sys.executable, "-m", "hsidenoise", "train", *arguments(root, output, *options)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        try:
            until = time.monotonic() + 120
            while not (output / "weights.safetensors").exists() and run.poll() is None and time.monotonic() < until:
                time.sleep(0.05)
            time.sleep(0.3)
            with pytest.raises(ValueError, match=rf"run: process {run.pid} on .* trains here: .*\(--output\)"):
                main(arguments(root, output, *options, "--resume", "last"))
        finally:
            run.send_signal(signal.SIGKILL)
    assert run.returncode == -signal.SIGKILL
    header = read_header(output / "weights.safetensors")
    assert load_model(output / "weights.safetensors").bands == 5
    assert float(header["val/psnr"]) > 0
    steps = state(output)["global_step"]
    written = len(logged(output, "train/loss"))
    assert written >= int(header["steps"]) >= 20
    # rows are on the disk at once, right behind a checkpoint of the same step; that one is at most a few steps behind
    assert -1 <= written - steps <= 20
    (output / ".lock").write_text(f"process {os.getpid()}")  # the killed one's number is that of another process by now
    main(arguments(root, output, *options, "--steps", "3", "--resume", "auto"))
    assert state(output)["global_step"] == steps + 3


# A limit on the size of files: as on a full disk, it is the write that fails, in whatever library it is.
LIMITED = """
import json, resource, sys
from hsidenoise.cli.main import main
for limit, arguments in json.loads(sys.argv[1]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    print(f"status {main(['train', *arguments])}", file=sys.stderr)
"""


def test_a_full_disk_ends_a_run_in_one_line_and_harms_nothing(root, straight, tmp_path):
    names = ("config.yaml", "weights.safetensors", "checkpoints/last.ckpt")
    before = {name: (straight / name).read_bytes() for name in names}
    options = ("--trainer.max_steps", "40", "--checkpoint_minutes", "0.0001", "--resume", "last")
    runs = {}  # first to fail: config.yaml, weights or a log, a checkpoint
    for limit in (100, 3_000, 300_000):
        runs[limit] = tmp_path / str(limit) / "run"
        shutil.copytree(straight, runs[limit])
    command = json.dumps([(limit, arguments(root, output, *options)) for limit, output in runs.items()])
    done = child("-c", LIMITED, command, cwd=ROOT)
    assert "Traceback" not in done.stderr
    assert "nothing left to do" not in done.stdout
    said = done.stderr.split("status 2\n")
    assert (len(said), said[-1]) == (1 + len(runs), ""), done.stderr
    for (limit, output), message in zip(runs.items(), said[:-1], strict=True):
        assert re.search(r"error: \S+run: .* disk is full \(File too large\); \S+last.ckpt is whole: .*last$", message)
        assert (output / "checkpoints/last.ckpt").read_bytes() == before["checkpoints/last.ckpt"]
        assert {path.name for path in (output / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
        assert load_model(output / "weights.safetensors").bands == 5
        if limit < len(before["config.yaml"]):
            assert {name: (output / name).read_bytes() for name in names} == before
        assert yaml.safe_load((output / "config.yaml").read_text())["data"]["patch_size"] == 12


def test_a_training_that_ended_while_this_one_came_up_is_not_overwritten(root, straight, tmp_path, monkeypatch):
    output = tmp_path / "run"
    monkeypatch.setattr(TrainCLI, "say_what_changed", lambda cli: shutil.copytree(straight, output))
    with pytest.raises(ValueError, match="already holds a run"):
        main(arguments(root, output))
    shutil.rmtree(output)
    with pytest.raises(ValueError, match="another training has just ended here"):
        main(arguments(root, output, "--resume", "auto"))
