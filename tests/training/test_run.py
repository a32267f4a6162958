import csv
import math
import re
import subprocess
import sys
from pathlib import Path

import h5py
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from command_line import ENVIRONMENT, ROOT, child
from lightning.pytorch.callbacks import Timer
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from hsidenoise.cli.main import main as cli_main
from hsidenoise.data.datasets import DATASETS, read_split
from hsidenoise.data.io import write_arrays
from hsidenoise.metrics.functional import evaluate
from hsidenoise.models.weights import load_model, read_header, sha256
from hsidenoise.noise.cases import noise_case
from hsidenoise.training import run as training
from hsidenoise.training.callbacks import AverageWeights
from hsidenoise.training.datamodule import CubeDataModule
from hsidenoise.training.run import DenoisingTask, main

CONFIGS = sorted([*(ROOT / "configs").glob("*.yaml"), *(ROOT / "scripts" / "recipes").glob("*.yaml")])
TINY = ["--model.model_config", "{dim: 16, num_blocks: [1, 1, 1]}"]


def smooth_cube(rng, height, width, bands):
    """A cube with something to learn: few smooth spectra, smooth shading. MATLAB's order."""
    spectra = np.cumsum(rng.random((3, bands)), axis=1)
    rows, columns = np.mgrid[:height, :width]
    shading = [np.sin(rows / a) * np.cos(columns / b) + 1 for a, b in rng.uniform(3, 9, (3, 2))]
    return np.einsum("khw,kb->hwb", shading, spectra).astype(np.float32)


@pytest.fixture
def root(tmp_path, rng):
    """Two training cubes and one validation cube of six bands."""
    for part, name, size in (("train", "a", (24, 30)), ("train", "b", (27, 22)), ("validation", "c", (18, 20))):
        path = tmp_path / "cubes" / part / f"{name}.mat"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(path, {"cube": smooth_cube(rng, *size, 6)})
    return tmp_path / "cubes"


def arguments(root, output, *more):
    """A tiny run: batches of 4, two to an epoch, validation on two cases."""
    return [
        *("--data.root", str(root), "--output", str(output), "--model.model", "hcanet", *TINY),
        *("--data.bands", "6", "--data.patch_size", "16", "--data.batch_size", "4", "--data.patches_per_epoch", "8"),
        *("--data.workers", "0", "--data.scales", "[1]", "--data.noise", "[gaussian-50, mixture]"),
        *("--data.validation_noise", "[gaussian-50, mixture]", "--data.validation_crop", "16"),
        *("--model.warmup_steps", "1", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
        *("--trainer.enable_model_summary", "false", "--trainer.log_every_n_steps", "1", *more),
    ]


def rows(output):
    """What the CSV logger wrote, all versions."""
    found = []
    for file in sorted(output.glob("csv/version_*/metrics.csv")):
        with file.open() as stream:
            found += list(csv.DictReader(stream))
    return found


def test_a_run_leaves_weights_checkpoints_and_logs(root, tmp_path, capsys):
    output = tmp_path / "run"
    main(arguments(root, output, "--trainer.max_epochs", "2", "--trainer.precision", "bf16-mixed"))
    assert re.search(r"run: 4 steps, 16 patches in \d+ s: [\d.]+ patches/s, waited \d+ % of", capsys.readouterr().out)

    header = read_header(output / "weights.safetensors")
    assert header["model"] == "hcanet"
    assert header["data"] == "folder: a, b"
    assert header["validation"] == "c"
    assert header["noise"] == "gaussian-50 0.500, mixture 0.500"
    assert header["initial_weights"] == "none"
    assert header["steps_total"] == header["steps"]
    assert header["steps_before"] == "0"
    assert header["training_scenes"] == '["a", "b"]'
    assert header["validation_scenes"] == '["c"]'
    assert header["seed"] == "0"
    assert header["batch_size"] == "4"
    assert int(header["patches_seen"]) == 4 * int(header["steps"])
    assert header["ema_decay"] == "0.999"
    assert header["loss"] == "l1 + 0.001 x gradient"
    assert header["loss_form"] == "cube"
    assert header["optimiser"] == "AdamW, betas (0.9, 0.999), weight decay 0.0001"
    assert header["schedule"] == "cosine, 1 steps of warm-up"
    assert header["gradient_clip"] == "1.0"
    assert header["device"] == "cpu"
    assert float(header["learning_rate"]) > 0
    assert int(header["steps"]) in (2, 4)
    assert float(header["val/psnr"]) == pytest.approx(
        (float(header["val/psnr/gaussian-50"]) + float(header["val/psnr/mixture"])) / 2, abs=1e-3
    )
    assert load_model(output / "weights.safetensors").bands == 6
    assert yaml.safe_load((output / "config.yaml").read_text())["data"]["patch_size"] == 16
    assert {path.name for path in (output / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    best = torch.load(output / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(load_file(output / "weights.safetensors")["output.weight"], best["network.output.weight"])

    logged = rows(output)
    scores = [float(row["val/psnr"]) for row in logged if row.get("val/psnr")]
    assert len(scores) == 2
    assert float(header["val/psnr"]) == pytest.approx(max(scores), abs=1e-3)
    losses = [float(row["train/loss"]) for row in logged if row.get("train/loss")]
    assert len(losses) == 4
    assert all(math.isfinite(loss) for loss in losses)

    events = EventAccumulator(str(output))
    events.Reload()
    wanted = {f"val/{metric}/{case}" for metric in ("psnr", "ssim", "sam") for case in ("gaussian-50", "mixture")}
    wanted |= {"speed/patches_per_second", "speed/waited_share"}
    assert wanted | {"train/loss", "lr-AdamW/weights", "val/psnr"} <= set(events.Tags()["scalars"])
    assert "noisy, denoised, clean" in " ".join(events.Tags()["images"])


def test_logged_scores_are_those_of_the_saved_weights(root, tmp_path):
    output = tmp_path / "run"
    main(arguments(root, output, "--trainer.max_epochs", "1", "--trainer.precision", "32-true"))
    network = load_model(output / "weights.safetensors")
    data = CubeDataModule(
        root=str(root), bands=6, validation_noise=["gaussian-50", "mixture"], validation_crop=16, workers=0
    )
    data.setup("validate")
    header = read_header(output / "weights.safetensors")
    for batch in data.val_dataloader():
        with torch.no_grad():
            denoised = network(batch["noisy"])[0].numpy()
        scores = evaluate(denoised, batch["clean"][0].numpy())
        for name in ("psnr", "ssim", "sam"):
            assert getattr(scores, name) == pytest.approx(float(header[f"val/{name}/{batch['case'][0]}"]), abs=2e-3)


def test_max_time_ends_with_a_validation_and_weights(root, tmp_path):
    output = tmp_path / "run"
    options = ("--data.patches_per_epoch", "40000", "--trainer.max_time", "00:00:00:02", "--model.warmup_steps", "0")
    main(arguments(root, output, *options))
    rates = [float(row["lr-AdamW/weights"]) for row in rows(output) if row.get("lr-AdamW/weights")]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.1 * rates[0] or len(rates) < 10  # annealed over the time, not over the 10,000 steps
    assert "val/psnr" in read_header(output / "weights.safetensors")


@pytest.mark.parametrize(
    ("options", "validated"),
    [
        (("--trainer.max_steps", "3"), [1, 2]),  # inside the second epoch of two steps
        (("--trainer.max_steps", "2"), [1]),  # at the end of an epoch: once, not twice
        (("--trainer.max_epochs", "3", "--trainer.check_val_every_n_epoch", "2"), [3, 5]),
    ],
)
def test_every_end_is_validated_once_and_saved(root, tmp_path, options, validated):
    output = tmp_path / "run"
    main(arguments(root, output, *options))
    assert [int(row["step"]) for row in rows(output) if row.get("val/psnr")] == validated
    last = torch.load(output / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == validated[-1] + 1


def test_without_validation_the_end_is_saved_all_the_same(root, tmp_path):
    output = tmp_path / "run"
    main(arguments(root, output, "--trainer.max_steps", "3", "--trainer.limit_val_batches", "0"))
    last = torch.load(output / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 3
    name = "network.output.weight"
    assert not torch.equal(last["state_dict"][name], last["current_model_state"][name])  # as it was in training
    assert int(read_header(output / "weights.safetensors")["steps"]) == 3


def test_the_average_follows_the_task_to_its_device():
    task, average = MixingTask(bands=6), AverageWeights()
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    average.setup(trainer, task, "fit")  # Lightning's order: copied here,
    task.to("meta")  # then the task is moved,
    average.on_fit_start(trainer, task)  # then training starts
    assert next(average.network(task).parameters()).device == torch.device("meta")


@pytest.mark.gpu
def test_a_gpu_is_found_and_its_run_goes_on_from_a_checkpoint(root, tmp_path):
    output = tmp_path / "run"
    options = ("--trainer.accelerator", "auto", "--trainer.devices", "1", "--data.workers", "1")
    main(arguments(root, output, *options, "--trainer.max_steps", "3"))
    main(arguments(root, output, *options, "--trainer.max_steps", "5", "--resume", "last"))
    assert read_header(output / "weights.safetensors")["precision"] == "bf16-mixed"
    last = torch.load(output / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 5
    assert all(value.device.type == "cuda" for value in last["state_dict"].values())  # the average: no copies each step


def test_a_folder_with_a_run_is_not_overwritten(root, tmp_path):
    output = tmp_path / "run"
    (output / "checkpoints").mkdir(parents=True)
    (output / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(ValueError, match=r"already holds a run.*--resume last.*--output"):
        main(arguments(root, output))
    with pytest.raises(FileNotFoundError, match=r"other\.ckpt: no such checkpoint"):
        main(arguments(root, output, "--resume", str(tmp_path / "other.ckpt")))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--data.noise", "[gausian-50]", "unknown noise case 'gausian-50'"),
        ("--model.model", "hcanett", "unknown model 'hcanett'"),
        ("--model.learning_rate", "0", "learning_rate must be above 0"),
        ("--ema.decay", "1", "below 1"),
        ("--trainer.max_time", "banana", "not a valid duration"),
    ],
)
def test_wrong_options_fail_with_one_line(root, tmp_path, option, value, message):
    with pytest.raises(ValueError, match=message) as error:
        main(arguments(root, tmp_path / "run", option, value))
    assert "\n" not in str(error.value)


def test_a_missing_folder_leaves_nothing_behind(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such folder.*--data\.root"):
        main(arguments(root, tmp_path / "run", "--data.root", str(tmp_path / "nowhere")))
    assert not (tmp_path / "run").exists()


def test_options_of_older_files_and_command_lines_are_taken_with_a_hint(root, tmp_path, capsys):
    old = "{model: {second_step_weight: 0.25, pilot_rounds: 3}, data: {noise_on: workers}}"
    (tmp_path / "old.yaml").write_text(old)
    end = ("--trainer.max_steps", "1", "--trainer.limit_val_batches", "0")
    main(["--config", str(tmp_path / "old.yaml"), *arguments(root, tmp_path / "run", *end)])
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert not {"second_step_weight", "pilot_rounds"} & set(written["model"])
    said = capsys.readouterr().err
    assert "hint: --model.second_step_weight is gone" in said
    assert "hint: --model.pilot_rounds is gone" in said
    assert "hint: --data.noise_on is gone" in said
    given = ["--model.passes=2", "--model.second_step_weight", "0.5", "--data.noise_on", "device", "--data.bands", "6"]
    assert training._present(given) == ["--data.bands", "6"]


def test_a_configuration_of_the_package_is_found_by_name():
    option, path = training._present(["--config=hcanet-bra"])
    assert option == "--config"
    assert Path(path).samefile(ROOT / "configs" / "hcanet-bra.yaml")


def test_output_is_named_after_the_config():
    config = {"output": None, "config": ["configs/some_run.yaml"], "model": {"model": "hcanet"}}
    assert training.run_folder(config) == Path("runs/some_run")
    assert training.run_folder(config | {"config": None}) == Path("runs/hcanet")
    assert training.run_folder(config | {"output": "x"}) == Path("x")


def test_initial_weights_are_where_the_run_starts(root, tmp_path):
    main(arguments(root, tmp_path / "first", "--trainer.max_epochs", "1"))
    weights = tmp_path / "first" / "weights.safetensors"
    config = {"dim": 16, "num_blocks": [1, 1, 1]}
    task = DenoisingTask("hcanet", bands=6, model_config=config, initial_weights=str(weights))
    assert all(torch.equal(task.network.state_dict()[name], value) for name, value in load_file(weights).items())
    initial = ("--model.initial_weights", str(weights), "--seed_everything", "7")
    assert "tile" not in read_header(weights)
    wishes = ("--model.tile", "160")
    main(arguments(root, tmp_path / "second", "--trainer.max_steps", "1", *initial, *wishes))
    header = read_header(tmp_path / "second" / "weights.safetensors")
    assert header["tile"] == "160"
    assert header["initial_weights"] == str(weights)
    assert header["initial_weights_sha256"] == sha256(weights)
    assert header["steps_before"] == read_header(weights)["steps"]
    assert int(header["steps_total"]) == 1 + int(header["steps_before"])
    assert header["seed"] == "7"
    with pytest.raises(ValueError, match="make model and model_config the same"):
        DenoisingTask("hcanet", bands=6, model_config={"dim": 8, "num_blocks": [1, 1, 1]}, initial_weights=str(weights))


def test_fewer_bands_gains_extra_cubes_and_their_like_train_and_go_on(root, tmp_path, rng):
    write_arrays(tmp_path / "far.mat", {"cube": rng.random((14, 15, 9), dtype=np.float32)})
    options = ("--data.band_strides", "[1, 2]", "--data.fewest_bands", "3", "--data.gain", "[0.5, 1.2]")
    options += ("--data.extra", f"[{tmp_path / 'far.mat'}]", "--data.extra_share", "0.5")
    options += ("--data.estimate", "true", "--data.train_crop", "20")
    options += ("--trainer.max_steps", "6", "--model.compile", "off", "--model.model", "hcanet-bra")
    main(arguments(root, tmp_path / "straight", *options))
    main(arguments(root, tmp_path / "broken", *options, "--steps", "3"))
    main(arguments(root, tmp_path / "broken", *options, "--resume", "last"))
    straight, broken = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("straight", "broken")
    )
    for name, value in straight["current_model_state"].items():
        assert torch.equal(broken["current_model_state"][name], value), name
    header = read_header(tmp_path / "straight" / "weights.safetensors")
    assert header["data"] == "folder: a, b; 0.5 of the patches: far"
    assert header["training_scenes"] == '["a", "b", "far"]'


class Mixing(nn.Module):
    """A network that trains in milliseconds."""

    def __init__(self, bands):
        super().__init__()
        self.bands, self.config = bands, {"bands": bands}
        self.layers = nn.Sequential(nn.Conv2d(bands, 16, 3, padding=1), nn.GELU(), nn.Conv2d(16, bands, 3, padding=1))
        self.temperature = nn.Parameter(torch.ones(bands, 1, 1))

    def forward(self, noisy):
        return noisy + self.temperature * self.layers(noisy)


class MixingTask(DenoisingTask):
    """The task with that network."""

    def create_network(self):
        return Mixing(self.hparams["bands"])


def quiet_trainer(tmp_path, **options):
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **options,
    )


def small_data(root, **options):
    defaults = {"bands": 6, "patch_size": 16, "patches_per_epoch": 480, "workers": 0, "validation_crop": 16}
    defaults |= {"noise": ["gaussian-50"], "validation_noise": ["gaussian-50"]}
    return CubeDataModule(root=str(root), **(defaults | options))


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")
def test_training_learns_to_denoise(root, tmp_path):
    task = MixingTask(bands=6, learning_rate=3e-3, warmup_steps=5)
    data = small_data(root)
    trainer = quiet_trainer(tmp_path, max_epochs=4, gradient_clip_val=1.0, num_sanity_val_steps=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trainer.fit(task, datamodule=data)
    noisy = noise_case("gaussian-50").sigma.draw(1, np.random.default_rng(0))[0] / 255
    assert float(trainer.callback_metrics["val/psnr"]) > -20 * math.log10(noisy) + 3  # 3 dB over the input


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")
def test_the_estimate_of_the_workers_is_that_of_the_network_in_training(root, tmp_path, monkeypatch):
    class Looking(DenoisingTask):
        def training_step(self, batch, batch_idx):
            for made, own in zip(batch["estimate"], self.network.estimate(batch["noisy"]), strict=True):
                torch.testing.assert_close(made, own, rtol=1e-3, atol=1e-4)
            return super().training_step(batch, batch_idx)

    config = {"dim": 8, "num_blocks": [1, 0, 0], "planes": 2}
    options = {"max_steps": 2, "limit_val_batches": 0}
    trainer = quiet_trainer(tmp_path, **options)
    trainer.fit(Looking(bands=6, model_config=config), small_data(root, estimate=True))
    assert trainer.global_step == 2
    with pytest.raises(ValueError, match=r"does not start from .*: leave out --data.estimate"):
        quiet_trainer(tmp_path, **options).fit(MixingTask(bands=6), small_data(root, estimate=True))


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")
def test_a_step_without_finite_gradient_is_skipped_and_many_end_the_run(root, tmp_path):
    class Spoilt(MixingTask):
        spoil = (1,)

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * float("nan") if batch_idx in self.spoil else loss

    task = Spoilt(bands=6)
    with pytest.warns(UserWarning, match="gradient is not finite, step skipped"):
        quiet_trainer(tmp_path, max_steps=3, limit_val_batches=0, gradient_clip_val=1.0).fit(task, small_data(root))
    assert all(value.isfinite().all() for value in task.state_dict().values())

    task.spoil = range(1000)
    with (
        pytest.warns(UserWarning, match="not finite"),
        pytest.raises(ValueError, match=r"training diverged.*learning_rate"),
    ):
        quiet_trainer(tmp_path, max_steps=100, limit_val_batches=0).fit(task, small_data(root))


def test_learning_rate_rises_then_falls_to_its_final_share():
    task = MixingTask(bands=6, warmup_steps=9, final_share=0.1)
    task.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    factors = [task.learning_rate_factor(step, 100) for step in range(101)]
    np.testing.assert_allclose(factors[:3], [0.1, 0.2, 0.3], rtol=0.01)
    assert max(factors) == max(factors[5:15])
    assert factors[-1] == pytest.approx(0.1)
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert task.learning_rate_factor(10**6, math.inf) == 1


def test_learning_rate_follows_the_clock_of_max_time_over_a_resume():
    task = MixingTask(bands=6, warmup_steps=0, final_share=0.0)
    task.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_time={"seconds": 100})
    timer = next(each for each in task.trainer.callbacks if isinstance(each, Timer))
    for seconds, factor in ((0, 1.0), (25, 0.5 + 0.5**1.5), (50, 0.5), (100, 0.0), (130, 0.0)):
        timer.load_state_dict({"time_elapsed": {"train": seconds}})  # what a checkpoint of that moment holds
        assert task.learning_rate_factor(1, math.inf) == pytest.approx(factor)
    timer.load_state_dict({"time_elapsed": {"train": 25}})
    assert task.learning_rate_factor(50, 100) == pytest.approx(0.5)  # steps are ahead of time
    assert task.learning_rate_factor(50, 10**6) == pytest.approx(0.5 + 0.5**1.5)  # time is ahead of steps


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")
def test_weight_decay_spares_vectors(root, tmp_path):
    trainer = quiet_trainer(tmp_path, max_steps=1, limit_val_batches=0)
    trainer.fit(MixingTask(bands=6, weight_decay=0.1), small_data(root))
    found = {(g["weight_decay"], p.ndim) for g in trainer.optimizers[0].param_groups for p in g["params"]}
    assert found == {(0.1, 4), (0.0, 1), (0.0, 3)}  # 3: a temperature as attention has it, (heads, 1, 1)


def write_dataset(root, dataset, rng):
    """Cubes in the data set's own format, under the names of its split."""
    if dataset == "icvl":
        split = DATASETS["icvl"].splits["sert"]
        for i, name in enumerate([*read_split(split.train)[:2], *read_split(split.validation)[:1]]):
            cube = smooth_cube(rng, 22 + i, 26, 31)
            with h5py.File(root / name, "w") as file:
                file["rad"] = cube.transpose(2, 1, 0)  # HDF5 shows MATLAB's axes reversed
    else:
        for i in range(3):
            write_arrays(root / f"{i}.mat", {"cube": smooth_cube(rng, 22 + i, 26, 31)})


@pytest.mark.filterwarnings("ignore:.*left out.*")
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_trains_one_batch(config, tmp_path, rng):
    root = tmp_path / "cubes"
    root.mkdir()
    write_dataset(root, yaml.safe_load(config.read_text())["data"]["dataset"], rng)
    small = {
        "data": {
            "patch_size": 16,
            "batch_size": 2,
            "patches_per_epoch": 2,
            "validation_crop": 16,
            "workers": 0,
            "cut": None,
        },
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
    main(
        [
            *("--config", str(config), "--config", str(tmp_path / "small.yaml"), "--data.root", str(root)),
            *("--data.missing", "skip", "--output", str(tmp_path / "run"), *TINY),
        ]
    )
    assert math.isfinite(float(read_header(tmp_path / "run" / "weights.safetensors")["val/psnr"]))


@pytest.mark.slow
def test_two_processes_train_as_one(root, tmp_path):
    options = ("--trainer.max_epochs", "2", "--data.patches_per_epoch", "16", "--data.batch_size")
    main(arguments(root, tmp_path / "one", *options, "8"))
    ddp = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
    done = child("-m", "hsidenoise", "train", *arguments(root, tmp_path / "two", *options, "4", *ddp), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("one", "two"))
    assert one["global_step"] == two["global_step"] == 4
    for name, value in one["current_model_state"].items():
        torch.testing.assert_close(two["current_model_state"][name], value, rtol=1e-4, atol=1e-5)
    scores = [read_header(tmp_path / name / "weights.safetensors") for name in ("one", "two")]
    for key in ("val/psnr", "val/ssim/mixture", "val/sam/gaussian-50"):
        assert float(scores[0][key]) == pytest.approx(float(scores[1][key]), rel=1e-3)


class DroppingTask(DenoisingTask):
    """A task with random numbers in its network."""

    def create_network(self):
        network = Mixing(self.hparams["bands"])
        network.layers.append(nn.Dropout(0.5))
        return network


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")
def test_the_random_numbers_of_a_step_are_those_of_its_number(root, tmp_path):
    with torch.random.fork_rng():
        runs = []
        for noise in (0, 1):
            torch.manual_seed(0)
            task = DroppingTask(bands=6)
            torch.rand(noise)  # whatever was drawn before
            quiet_trainer(tmp_path, max_steps=3, limit_val_batches=0).fit(task, small_data(root))
            runs.append(task.state_dict())
    assert all(torch.equal(runs[1][name], value) for name, value in runs[0].items())


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")
def test_the_fused_optimiser_skips_a_step_without_finite_gradient_by_itself(root, tmp_path):
    class Fused(MixingTask):
        spoil = (1,)

        def configure_optimizers(self):
            configured = super().configure_optimizers()
            for group in configured["optimizer"].param_groups:
                group["fused"] = True
            return configured

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.before = {name: value.clone() for name, value in self.network.state_dict().items()}
            return loss * float("nan") if batch_idx in self.spoil else loss

        def on_train_batch_end(self, outputs, batch, batch_idx):
            now = self.network.state_dict()
            same = all(torch.equal(now[name], value) for name, value in self.before.items())
            assert same == (batch_idx in self.spoil)

    task = Fused(bands=6)
    quiet_trainer(tmp_path, max_steps=3, limit_val_batches=0, gradient_clip_val=1.0).fit(task, small_data(root))
    assert all(value.isfinite().all() for value in task.state_dict().values())
    task.spoil = range(1000)
    with (
        pytest.warns(UserWarning, match="not finite"),
        pytest.raises(ValueError, match=r"training diverged.*learning_rate"),
    ):
        quiet_trainer(tmp_path, max_steps=100, limit_val_batches=0).fit(task, small_data(root))


def test_the_gpu_script_trains_anywhere_and_goes_on(root, tmp_path):
    output = tmp_path / "run"
    drop = ("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false")
    options = arguments(root, output, "--minutes", "5")
    for name in drop[::2]:
        position = options.index(name)
        del options[position : position + 2]
    main([*options, *drop, "--trainer.max_epochs", "-1", "--steps", "3"])
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "train_gpu.sh"), *options, "--steps", "2"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**ENVIRONMENT, "HSIDENOISE_PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    assert "no CUDA device found: training on the CPU" in done.stderr
    assert re.search(r"run: 2 steps, \d+ patches in .* patches/s", done.stdout)
    assert torch.load(output / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 5
    assert load_model(output / "weights.safetensors").bands == 6
    written = yaml.safe_load((output / "config.yaml").read_text())
    assert written["trainer"]["max_epochs"] == -1
    assert written["data"]["workers"] == 0


def test_the_gpu_script_wants_minutes_and_output():
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "train_gpu.sh"), "--minutes", "1"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "--minutes (of this call) and --output" in done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [x, x]\nb: [" + ", ".join(["*a"] * 99) + "]", "more than 10 references"),
        ("model: &a [*a]", "*a lies in what it refers to"),
        ("model: " + "[" * 3000, "nesting depth"),
        ("- " * 3000, "more than 20 levels"),
        ("model: " + "x" * 200_000, "more than 40000 characters"),
        ("model: !!bool x", "does not fit its tag"),
        ("model: !!int ''", "does not fit its tag"),
        ("model: !!python/object/apply:os.system ['true']", "could not determine a constructor for the tag"),
        ("model: {model_config: {dim: 20000}}", "dim is 20000"),
        ("model: {model_config: {planes: 1000000000}}", "planes is 1000000000"),
        ("{model: {model: hcanet}, data: {bands: [1, 9]}}", "'hcanet' is for one number of bands"),
        ("model: {model_config: {heads: x}}", "heads is 'x'"),
        ("model: {tile: 1}", "tile=1 must be from 16"),
        ("model: {learning_rate: .nan}", "learning_rate must be above 0"),
        ("data: {bands: 100000000}", "bands is 100000000"),
        ("data: {patch_size: 100000000}", "data.patch_size is 100000000"),
        ("data: {batch_size: 100000000}", "data.batch_size is 100000000"),
        ("data: {workers: 100000000}", "data.workers is 100000000"),
        ("data: {patches_per_epoch: -3}", "data.patches_per_epoch is -3"),
    ],
)
def test_a_wild_configuration_is_one_line(tmp_path, capsys, text, message):
    (tmp_path / "wild.yaml").write_text(text)
    command = [
        "train",
        "--config",
        str(tmp_path / "wild.yaml"),
        "--data.root",
        str(tmp_path),
        "--output",
        str(tmp_path / "o"),
    ]
    assert cli_main(command) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hsidenoise: error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert len(lines[0]) < 400
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"model: {learning_rate: 1" + b"0" * 400 + b"}", "int too large"),
        (b"seed_everything: \xff\xfe", r"own\.yaml: not a text in UTF-8"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_refused_in_words(tmp_path, content, message):
    (tmp_path / "own.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        main(["--config", str(tmp_path / "own.yaml"), "--data.root", str(tmp_path)])
