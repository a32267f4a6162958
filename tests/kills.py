"""Kills runs at random moments and looks at what they leave: `python tests/kills.py [--kills 50] [--verbs ...]`.

Each verb runs as a forked process, so that the moments are spread over its work and not over the import of PyTorch;
`train` and `benchmark` go on in the folder of the killed run. After each kill no input and no earlier output may have
changed or be torn; the rerun must succeed, give what a run gives that was never stopped, and leave no temporary file.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import scipy.io
import torch
import yaml

from hsidenoise.cli import main as cli
from hsidenoise.data.io import write_arrays
from hsidenoise.models import create_model
from hsidenoise.models.weights import load_model, save_weights
from hsidenoise.system.files import sha256

NETWORK = {"dim": 8, "num_blocks": (1, 0, 0), "num_refinement_blocks": 0}


@dataclass(frozen=True)
class Verb:
    """What is killed: its command line, and what each file that it leaves says, apart from dates and seconds."""

    arguments: list[str]
    outputs: Callable[[Path], dict[str, Any]]  # raises if one is torn
    fresh: bool  # whether each kill starts from the earlier output


def fork(arguments: list[str], folder: Path) -> int:
    """Run a command in a process of its own and group."""
    child = os.fork()
    if child:
        with contextlib.suppress(OSError):  # here too: it may not have come to it when it is killed
            os.setpgid(child, child)
        return child
    status = 70
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        with (folder.parent / "log").open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        status = cli.main(arguments)
    finally:
        os._exit(status)


def run(arguments: list[str], folder: Path) -> float:
    """Run a command to its end; give the seconds.

    Raises:
        RuntimeError: If it fails.
    """
    start = time.monotonic()
    _, status = os.waitpid(fork(arguments, folder), 0)
    if status:
        raise RuntimeError(
            f"{' '.join(arguments[:1])} ended with {status}: {(folder.parent / 'log').read_text()[-2000:]}"
        )
    return time.monotonic() - start


def killed(arguments: list[str], folder: Path, seconds: float, *, group: bool) -> bool:
    """Run a command and kill it after that time, alone or with its own processes; whether it was not done before."""
    child = fork(arguments, folder)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(min(0.002, max(0.0, until - time.monotonic())))
    (os.killpg if group else os.kill)(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def mat(path: Path) -> Any:
    content = scipy.io.loadmat(path)
    return {name: value.tobytes() for name, value in content.items() if not name.startswith("__")}


def cubes(folder: Path) -> dict[str, Any]:
    return {path.name: mat(path) for path in folder.glob("out*.mat")}


def training(folder: Path) -> dict[str, Any]:
    """Every file can be used; what a run ends with is its last checkpoint, to the last bit."""
    found: dict[str, Any] = {}
    for path in folder.glob("run/checkpoints/*.ckpt"):
        state = torch.load(path, weights_only=True)
        if path.name == "last.ckpt":
            found["steps"] = state["global_step"]
            found["weights"] = [value.numpy().tobytes() for value in state["current_model_state"].values()]
    for path in folder.glob("run/*.safetensors"):
        load_model(path)
    return found


def table(folder: Path) -> dict[str, Any]:
    """Every file of a benchmark, seconds left out."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("results/**/*")):
        if path.is_dir() or path.name.startswith(".hsidenoise-"):
            continue
        content: Any
        if path.suffix == ".json":
            content = json.loads(path.read_text())
            content.pop("seconds", None)
        elif path.suffix == ".npy":
            content = np.load(path).tobytes()
        elif path.suffix == ".png":
            content = matplotlib.image.imread(path).tobytes()
        elif path.suffix == ".csv":
            rows = csv.DictReader(path.read_text().splitlines())
            content = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
        else:
            text = re.sub(r"[|&] [\d.e-]+ (\||\\\\)$", "", path.read_text(), flags=re.MULTILINE)
            content = re.sub(r".*(command|commit|machine).*\n", "", text)
        found[str(path.relative_to(folder))] = content
    return found


def make_place(place: Path) -> dict[str, Verb]:
    """Inputs of every verb, tiny, in ``place/work``."""
    work, rng = place / "work", np.random.default_rng(0)
    rows, columns = np.mgrid[:24, :26]
    smooth = 500 + 400 * np.sin(rows[..., None] / 6 + np.arange(5) / 3) * np.cos(columns[..., None] / 8)
    for name in ("cubes/oak", "cubes/ash", "data/train/a", "data/train/b", "data/validation/c"):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        write_arrays(work / f"{name}.mat", {"cube": smooth + rng.normal(0, 5, smooth.shape)})
    noisy = np.kron(smooth, np.ones((4, 4, 1)))
    write_arrays(work / "noisy.mat", {"cube": (noisy + rng.normal(0, 40, noisy.shape)).astype(np.float32)})
    torch.manual_seed(0)
    save_weights(work / "w.safetensors", create_model("hcanet-bra", planes=3, **NETWORK), name="hcanet-bra")
    config = {
        "title": "Trees",
        "data": {"root": "cubes"},
        "cases": ["gaussian-50", "mixture"],
        "methods": ["noisy", "svd-tv"],
        "figure": {"case": "mixture", "scene": "oak"},
    }
    (work / "trees.yaml").write_text(yaml.safe_dump(config))
    train = [
        *("train", "--data.root", "data", "--output", "run", "--data.bands", "5", "--trainer.accelerator", "cpu"),
        *("--model.model_config", "{dim: 8, num_blocks: [1, 0, 0], num_refinement_blocks: 0}"),
        *("--data.patch_size", "12", "--data.batch_size", "2", "--data.patches_per_epoch", "20", "--data.workers", "0"),
        *("--data.scales", "[1]", "--data.noise", "[gaussian-50]", "--data.validation_noise", "[mixture]"),
        *("--data.validation_crop", "12", "--model.warmup_steps", "3", "--trainer.precision", "32-true"),
        *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
        *("--checkpoint_minutes", "0.0005", "--trainer.max_steps", "12", "--resume", "auto"),
    ]
    benchmark = ["benchmark", "--config", "trees.yaml", "--workers", "1", "--device", "cpu", "--allow-leaks"]
    return {
        "denoise": Verb(["denoise", "noisy.mat", "-o", "out.mat", "--weights", "w.safetensors"], cubes, True),
        "corrupt": Verb(["corrupt", "noisy.mat", "out.mat", "--noise", "mixture"], cubes, True),
        "train": Verb(train, training, False),
        "benchmark": Verb(benchmark, table, False),
    }


def leftovers(folder: Path) -> list[str]:
    """Hidden files, but for the lock of a training's folder, which is made to stay."""
    return [str(path.relative_to(folder)) for path in folder.rglob(".*") if path.name != ".lock"]


def inputs(folder: Path) -> dict[str, str]:
    """Hash of each file that no verb may write."""
    mine = {"out.mat", "out.mat.json", "run", "results"}
    return {path.name: sha256(path) for path in folder.iterdir() if path.name not in mine and path.name[0] != "."}


def check(name: str, verb: Verb, kills: int, place: Path, dice: random.Random) -> dict[str, Any]:
    """Kill a verb that often; give what was counted.

    Raises:
        AssertionError: If something was lost, torn or left behind; the folder is kept.
    """
    work = place / "work"
    before = inputs(work)
    run(verb.arguments, work)  # what is read the first time is read, and kept by the system
    straight = verb.outputs(work)
    earlier = straight
    for output in ("run", "results"):
        shutil.rmtree(work / output, ignore_errors=True)
    seconds = run(verb.arguments, work)
    assert verb.outputs(work) == straight, f"{name}: two straight runs differ"
    if verb.fresh:  # an output of another run stands in the way
        write_arrays(work / "out.mat", {"cube": np.arange(60.0).reshape(3, 4, 5)})
        earlier = verb.outputs(work)
        shutil.copyfile(work / "out.mat", place / "earlier.mat")
    counts = dict.fromkeys(("kills", "old", "new", "partial", "left", "reruns"), 0)
    while counts["kills"] < kills:
        if verb.fresh:
            shutil.copyfile(place / "earlier.mat", work / "out.mat")
        else:
            for output in ("run", "results"):
                shutil.rmtree(work / output, ignore_errors=True)
        known: dict[str, Any] = dict(earlier) if verb.fresh else {}
        for _ in range(1 if verb.fresh else 3):  # a run that goes on is killed again and again
            if not killed(verb.arguments, work, dice.uniform(0.02, 1.02) * seconds, group=dice.random() < 0.5):
                continue
            counts["kills"] += 1
            assert inputs(work) == before, f"{name}: an input changed"
            counts["left"] += bool(leftovers(work))
            found = verb.outputs(work)
            if name == "train":
                assert found.get("steps", 0) >= known.get("steps", 0), "train: steps were lost"
            else:
                for file, content in found.items():
                    assert content in (known.get(file, content), straight[file]), f"{name}: {file} is torn"
                    assert file in known or content == straight[file], f"{name}: {file} is torn"
                assert known.keys() <= found.keys(), f"{name}: {known.keys() - found.keys()} lost"
            counts["new" if found == straight else "old" if found == known else "partial"] += 1
            known = found
        run(verb.arguments, work)
        counts["reruns"] += 1
        assert verb.outputs(work) == straight, f"{name}: the rerun gives something else"
        assert not leftovers(work), f"{name}: left {leftovers(work)}"
        assert inputs(work) == before, f"{name}: an input changed in the rerun"
        print(f"{name}: {counts}", file=sys.stderr, flush=True)
    for output in ("out.mat", "run", "results"):
        path = work / output
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return {"verb": name, "seconds": f"{seconds:.2f}", **counts}


def main() -> int:
    """Run the kills and print a table of what was found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="of each verb, at least (default: 50)")
    parser.add_argument("--verbs", nargs="+", default=["denoise", "corrupt", "train", "benchmark"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if "train" in options.verbs:
        import_module("hsidenoise.training.run")  # what a run would import first is there
    place = Path(tempfile.mkdtemp(prefix="hsidenoise-kills-"))
    verbs, dice, total = make_place(place), random.Random(options.seed), 0
    print("| verb | seconds of a run | kills | output as before | output new | in between | with a leftover | reruns |")
    print("|---|" + "---:|" * 7, flush=True)
    for name in options.verbs:
        row = check(name, verbs[name], options.kills, place, dice)
        print("| " + " | ".join(str(value) for value in row.values()) + " |", flush=True)
        total += row["kills"]
    shutil.rmtree(place)
    print(f"\n{total} kills: nothing lost, nothing torn, every rerun as a run never stopped, no leftover after it")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
