import time
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, Dataset

from hsidenoise.training import callbacks
from hsidenoise.training.callbacks import Part, Speed
from hsidenoise.training.datamodule import ResumableLoader


@pytest.mark.parametrize("limits", [{"steps": 0}, {"minutes": 0.0}, {"minutes": -1.0}])
def test_a_part_takes_something(limits):
    with pytest.raises(ValueError, match="must be above 0"):
        Part(**limits)


def trainer(step=0):
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(_batches_that_stepped=0))
    return SimpleNamespace(global_step=step, should_stop=False, world_size=1, sanity_checking=False, fit_loop=loop)


@pytest.mark.usefixtures("unchecked")  # of Lightning's trainer a part needs four attributes
def test_steps_are_counted_from_where_the_part_began():
    part, run = Part(steps=3), trainer(step=40)
    part.on_train_start(run, None)
    for step, stop in ((41, False), (42, False), (43, True)):
        run.global_step = step
        part.on_train_batch_end(run, None, None, None, 0)
        assert run.should_stop == stop


@pytest.mark.usefixtures("unchecked")
def test_minutes_leave_time_for_the_validation_that_ends_them(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    part, run = Part(minutes=10), trainer()
    part.on_train_start(run, None)
    now[0] = 100.0
    part.on_validation_start(run, None)
    now[0] = 160.0
    part.on_validation_end(run, None)
    now[0] = 539.0
    part.on_train_batch_end(run, None, None, None, 0)
    assert not run.should_stop
    now[0] = 540.0
    part.on_train_batch_end(run, None, None, None, 0)
    assert run.should_stop


class SlowItems(Dataset):
    """Items that take a while to make."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __len__(self):
        return 24

    def __getitem__(self, number):
        time.sleep(self.seconds)
        return {"clean": torch.full((3, 4, 5), float(number))}


class SlowTask(pl.LightningModule):
    """Steps that take a while."""

    def __init__(self, seconds):
        super().__init__()
        self.layer, self.seconds = nn.Conv2d(3, 3, 1), seconds

    def training_step(self, batch, batch_idx):
        time.sleep(self.seconds)
        return self.layer(batch["clean"]).mean()

    def validation_step(self, batch, batch_idx):
        time.sleep(0.05)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")
@pytest.mark.parametrize(("per_item", "per_step", "waits"), [(0.02, 0.001, True), (0.0001, 0.05, False)])
def test_the_speed_of_slow_data_and_of_slow_steps_is_logged_without_validations(tmp_path, per_item, per_step, waits):
    speed = Speed()
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=CSVLogger(tmp_path),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=4,
        callbacks=[speed],
        max_steps=12,  # validated behind the first epoch of 8
        limit_val_batches=4,
        accumulate_grad_batches=1,
    )
    loader = ResumableLoader(SlowItems(per_item), batch_size=3)
    began = time.perf_counter()
    trainer.fit(SlowTask(per_step), loader, DataLoader(SlowItems(0)))
    assert speed.seconds < time.perf_counter() - began - 4 * 0.05
    assert (speed.steps, speed.patches) == (12, 36)
    assert speed.seconds > 12 * 0.05
    assert (speed.waited / speed.seconds > 0.5) == waits
    assert speed.sentence().startswith("12 steps, 36 patches in ")
    rows = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    found = [dict(zip(rows[0].split(","), row.split(","), strict=True)) for row in rows[1:]]
    shares = [float(row["speed/waited_share"]) for row in found if row["speed/waited_share"]]
    assert len(shares) == 3
    assert all((share > 0.5) == waits for share in shares)
    assert all(float(row["speed/patches_per_second"]) < 3 / 0.05 for row in found if row["speed/patches_per_second"])
