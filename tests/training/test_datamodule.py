import json
import signal
import time

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from hsidenoise.data.io import Cube, write_arrays, write_cube
from hsidenoise.training.datamodule import CubeDataModule, ResumableLoader


@pytest.fixture
def root(tmp_path, rng):
    for name, shape in {"a": (30, 34, 6), "b": (28, 40, 9), "c": (26, 24, 7)}.items():
        write_arrays(tmp_path / f"{name}.mat", {"cube": rng.random(shape, dtype=np.float32)})
    return tmp_path


def module(root, **options):
    defaults = {"bands": 6, "patch_size": 12, "batch_size": 4, "patches_per_epoch": 10, "workers": 0}
    return CubeDataModule(root=str(root), **(defaults | options))


def test_batches_of_training(root):
    data = module(root)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert len(batches) == 2  # ten patches are two whole batches of four
    assert batches[0]["noisy"].shape == batches[0]["clean"].shape == (4, 6, 12, 12)
    assert batches[0]["noisy"].dtype == torch.float32
    assert batches[0]["clean"].min() >= 0
    assert batches[0]["clean"].max() <= 1
    assert not torch.equal(batches[0]["noisy"], batches[1]["noisy"])


def test_scenes_of_other_formats_and_with_a_border(root, rng):
    """Each is taken once, and of one with pixels without data only the rest; a folder of extra cubes is one too."""
    values = rng.uniform(3, 5, (7, 40, 44)).astype(np.float32)
    (root / ".more").mkdir()
    for name in ("x.hdr", "y.tif"):
        write_cube(root / ".more" / name, Cube(values))
    values[:, :, :8] = -9999
    write_cube(root / "ab.hdr", Cube(values))
    data = module(root, extra=[str(root / ".more"), str(root / "c.mat")])
    with pytest.warns(UserWarning, match=r"ab.hdr: -9999 in 320 pixels.*of its 40x44 pixels only 40x36 are used"):
        data.setup("fit")
    assert [path.name for path in data.scenes.train] == ["a.mat", "ab.hdr", "b.mat"]
    assert [path.name for path in data.extra] == ["x.hdr", "y.tif", "c.mat"]
    assert all(0 <= batch["clean"].min() < 0.2 < 0.8 < batch["clean"].max() <= 1 for batch in data.train_dataloader())
    (root / "ab.hdr").write_text("ENVI\nsamples = 4\n")
    with pytest.raises(ValueError, match=r"ab.hdr: the ENVI header has no"):
        module(root).setup("fit")
    (root / "none").mkdir()
    with pytest.raises(ValueError, match=r"none: no cube in it for --data.extra; \.mat, \.hdr"):
        module(root, extra=[str(root / "none")]).locate()


def test_validation_takes_the_middle_of_cube_and_bands(root):
    data = module(root, validation_noise=["gaussian-30", "mixture"], validation_crop=20)
    data.setup("validate")
    batches = list(data.val_dataloader())
    assert [batch["case"] for batch in batches] == [["gaussian-30"], ["mixture"]]
    assert batches[0]["clean"].shape == (1, 6, 20, 20)  # c.mat has 7 bands and 26x24 pixels


def test_description_names_scenes_and_noise(root):
    data = module(root, noise={"gaussian-50": 3, "mixture": 1})
    data.setup("fit")
    described = data.description()
    assert described["data"] == "folder: a, b"
    assert described["validation"] == "c"
    assert described["noise"] == "gaussian-50 0.750, mixture 0.250"
    assert all(isinstance(value, str) for value in described.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "cvae"}, "unknown data set 'cvae'"),
        ({"noise": ["gausian"]}, "unknown noise case 'gausian'"),
        ({"validation_noise": ["gausian"]}, "unknown noise case 'gausian'"),
        ({"batch_size": 0}, "batch_size is 0: a whole number from 1"),
        ({"seed": -1}, "seed is -1: a whole number from 0"),
    ],
)
def test_wrong_options_fail_before_any_cube_is_read(options, message):
    with pytest.raises(ValueError, match=message):
        module("nowhere", **options)


def test_an_epoch_needs_a_whole_batch(root):
    with pytest.raises(ValueError, match="do not fill one batch of 4"):
        module(root, patches_per_epoch=3).setup("fit")


def test_validation_cube_with_too_few_bands(root, rng):
    write_arrays(root / "d.mat", {"cube": rng.random((26, 24, 5), dtype=np.float32)})
    with pytest.raises(ValueError, match=r"d\.mat: 5 bands, 6 are needed"):
        module(root).setup("validate")


@pytest.mark.parametrize(("cores", "workers"), [(1, 0), (4, 3), (64, 8)])
def test_auto_leaves_one_core_to_the_network(root, monkeypatch, cores, workers):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    data = module(root, workers="auto")
    data.setup("fit")
    assert data.train_dataloader().num_workers == workers


def test_workers_leave_ctrl_c_to_the_main_process(root):
    data = module(root, workers=1)
    data.setup("fit")
    before = signal.getsignal(signal.SIGINT)
    try:
        data.train_dataloader().worker_init_fn(0)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_extra_cubes_are_found_mixed_in_and_described(root, rng):
    write_arrays(root / "far.mat", {"cube": rng.random((10, 11, 20), dtype=np.float32)})  # smaller than a patch
    (root / "cubes").mkdir()
    for name in "abc":
        (root / f"{name}.mat").rename(root / "cubes" / f"{name}.mat")
    data = module(root / "cubes", extra=[str(root / "far.mat")], extra_share=0.5, band_strides=[1, 2], gain=(0.5, 1.2))
    data.setup("fit")
    described = data.description()
    assert described["data"] == "folder: a, b; 0.5 of the patches: far"
    assert json.loads(described["training_scenes"]) == ["a", "b", "far"]
    assert json.loads(described["validation_scenes"]) == ["c"]
    assert described["band_strides"] == "1, 2"
    assert described["gain"] == "0.5 to 1.2"
    shapes = {tuple(batch["noisy"].shape) for batch in data.train_dataloader()}
    assert shapes <= {(4, 6, 12, 12), (4, 3, 12, 12)}


def test_extra_cubes_that_are_not_there(root):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.mat: no such file or folder; --data\.extra"):
        module(root, extra=["nowhere.mat"]).setup("fit")


def test_a_resumed_run_hears_of_other_scenes(root):
    data = module(root)
    data.setup("fit")
    assert data.state_dict() == {"scenes": ["a", "b"]}
    data.load_state_dict({"scenes": ["a", "b"]})
    with pytest.warns(UserWarning, match=r"other scenes: 1 gone, 1 new \(b, d\)"):
        data.load_state_dict({"scenes": ["a", "d"]})


class SlowItems(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, number):
        time.sleep(0.01)
        return torch.tensor(number)


def test_the_loader_adds_up_the_time_that_batches_were_waited_for():
    loader = ResumableLoader(SlowItems(), batch_size=2)
    assert loader.seconds_waited == 0
    batches = iter(loader)
    assert next(batches).tolist() == [0, 1]
    first = loader.seconds_waited
    assert first >= 0.02
    time.sleep(0.05)  # of the step: nobody waits for data
    assert [batch.tolist() for batch in batches] == [[2, 3], [4, 5]]
    assert loader.seconds_waited >= 0.06
    whole = loader.seconds_waited
    assert len(list(loader)) == 3
    assert loader.seconds_waited >= whole + 0.06


def test_it_has_no_state_of_its_own():
    loader = ResumableLoader(SlowItems(), batch_size=2)
    next(iter(loader))
    assert loader.state_dict() == {}
    loader.load_state_dict({})
