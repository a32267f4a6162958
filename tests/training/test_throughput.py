import time

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, Dataset

from hsidenoise.training.throughput import Tally, Throughput


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


class TellingLoader(DataLoader):
    """A loader that says how long it was waited for, whatever the clock says."""

    seconds_waited = 0.0

    def __iter__(self):
        for batch in super().__iter__():
            self.seconds_waited += 0.01
            yield batch


@pytest.fixture
def fit(tmp_path):
    def run(per_item, per_step, loader=DataLoader, **options):
        throughput = Throughput()
        trainer = pl.Trainer(
            accelerator="cpu",
            logger=CSVLogger(tmp_path),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=4,
            callbacks=[throughput],
            **({"max_steps": 8, "limit_val_batches": 0} | options),
        )
        trainer.fit(SlowTask(per_step), loader(SlowItems(per_item), batch_size=3), DataLoader(SlowItems(0)))
        return throughput.tally(), trainer

    return run


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")
def test_slow_data_and_slow_steps_are_told_apart(fit):
    waiting, _ = fit(0.01, 0.001)  # 30 ms of data for 1 ms of step
    working, _ = fit(0.0001, 0.03)
    assert waiting.steps == working.steps == 8
    assert waiting.patches == working.patches == 24
    assert waiting.waited_share > 0.5 > working.waited_share
    for tally in (waiting, working):
        assert tally.seconds > 8 * 0.03
        assert tally.patches_per_second < 3 / 0.03
        assert 8 * 0.001 <= tally.in_steps <= tally.seconds
        assert tally.gpu_busy is tally.gpu_memory is None


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")
def test_validation_is_counted_apart(fit):
    tally, _ = fit(0.0, 0.001, limit_val_batches=4, max_steps=16)  # at the end of each epoch of 8 steps
    assert tally.steps == 16
    assert tally.validating >= 2 * 4 * 0.05
    assert tally.seconds >= 16 * 0.001


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")
def test_what_the_loader_tells_counts_more_than_the_time_between_steps(fit):
    tally, _ = fit(0.0, 0.0, loader=TellingLoader)
    assert tally.waited == pytest.approx(0.08)  # of eight batches


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")
def test_speed_is_logged_when_lightning_logs(fit, tmp_path):
    fit(0.0, 0.005)
    rows = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    names = rows[0].split(",")
    assert {"speed/patches_per_second", "speed/seconds_per_step", "speed/waited_share"} <= set(names)
    assert not {"speed/gpu_busy", "speed/gpu_memory_gb"} & set(names)
    found = [dict(zip(names, row.split(","), strict=True)) for row in rows[1:]]
    assert [int(row["step"]) for row in found] == [3, 7]
    assert all(float(row["speed/seconds_per_step"]) >= 0.005 for row in found)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")
def test_patches_of_accumulated_batches_are_all_counted(fit):
    tally, _ = fit(0.0, 0.0, accumulate_grad_batches=2, max_steps=4)
    assert tally.steps == 4
    assert tally.patches == 24


def test_the_sentence_tells_of_the_gpu_where_there_is_one():
    tally = Tally(steps=10, patches=320, seconds=2.0, gpu_busy=0.934, gpu_memory=12_340_000_000)
    assert tally.sentence() == (
        "10 steps, 320 patches in 2 s: 160.0 patches/s, waited 0 % of the time for data; validation 0 s; "
        "GPU busy 93 %; GPU memory 12.3 GB"
    )
    assert Tally().patches_per_second == Tally().waited_share == 0


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")
@pytest.mark.parametrize("nvml", [True, False])
def test_the_gpu_is_looked_at_with_and_without_nvml(tmp_path, nvml):
    throughput = Throughput()
    throughput._nvml = nvml
    trainer = pl.Trainer(
        accelerator="gpu",
        devices=1,
        logger=CSVLogger(tmp_path),
        enable_checkpointing=False,
        enable_progress_bar=False,
        log_every_n_steps=2,
        max_steps=8,
        limit_val_batches=0,
        callbacks=[throughput],
    )
    trainer.fit(SlowTask(0.01), DataLoader(SlowItems(0), batch_size=3))
    tally = throughput.tally()
    assert 0 <= tally.gpu_busy <= 1
    assert tally.gpu_memory > 0
