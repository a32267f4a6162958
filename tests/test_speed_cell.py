"""What one cell measures, in this process; a whole process is measured in test_benchmark_speed."""

import json
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from hsidenoise import speed_cell
from hsidenoise.as_released import HCANetAsReleased
from hsidenoise.models.released import load_released
from hsidenoise.speed_cell import MOST_RUNS, Cell, Settings, main, measure, rates
from hsidenoise.speed_networks import NETWORKS, Subject, noisy_scene


@pytest.fixture
def settings(tmp_path):
    return Settings(str(tmp_path), seconds=0.2)


CONFIG = {"dim": 8, "num_blocks": (1, 1, 1), "heads": (1, 2, 4)}


@pytest.fixture
def tiny(monkeypatch):
    """A small HCANet in the table."""

    def released(_):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return HCANetAsReleased(**CONFIG).eval()

    def ours(side):
        return load_released(released(side).state_dict(), CONFIG)

    monkeypatch.setitem(NETWORKS, "tiny", Subject("tiny", ours, noisy_scene, released))


@pytest.fixture
def convolution(monkeypatch):
    """One convolution in the table."""
    monkeypatch.setitem(
        NETWORKS,
        "convolution",
        Subject("convolution", lambda _: nn.Sequential(nn.Conv2d(31, 31, 3, padding=1), nn.GELU()), noisy_scene),
    )


@pytest.mark.usefixtures("tiny")
def test_ours_is_compared_with_the_released_formulation(settings):
    released = measure(Cell("forward", "tiny", "released", 16, 1), settings)
    assert released.reason is None
    assert released.error is None
    assert 1 <= len(released.seconds) <= MOST_RUNS
    assert min(released.seconds) > 0
    assert released.total > released.added >= 0
    ours = measure(Cell("forward", "tiny", "float32", 16, 1), settings)
    assert 0 < ours.error < 1e-5
    assert 0 < ours.rms_error < 1e-5
    half = measure(Cell("forward", "tiny", "bfloat16", 16, 1), settings)
    assert 1e-5 < half.error < 0.1


def test_what_was_never_released_is_compared_with_its_own_float32(settings):
    assert measure(Cell("forward", "hcanet-bra", "released", 16, 1), settings).reason == "was never released"
    assert measure(Cell("forward", "hcanet-bra", "float32", 16, 1), settings).error is None
    assert 0 < measure(Cell("forward", "hcanet-bra", "bfloat16", 16, 1), settings).error < 0.5


def test_errors_are_relative(rng):
    source, expected = rng.random((2, 3, 4, 5), dtype=np.float32)
    largest, rms = speed_cell._errors(expected * 1.5, expected, None)
    assert (largest, rms) == pytest.approx((0.5, 0.5))
    _, rms = speed_cell._errors(expected + (expected - source), expected, source)
    assert rms == pytest.approx(1)


@pytest.mark.usefixtures("convolution")
def test_operations_are_counted_on_demand(tmp_path):
    cell = Cell("forward", "convolution", "float32", 12, 2)
    assert measure(cell, Settings(str(tmp_path), seconds=0.01)).operations == 2 * 2 * 12 * 12 * 31 * 31 * 9
    assert measure(cell, Settings(str(tmp_path), seconds=0.01, count=False)).operations is None


@pytest.mark.parametrize(("seconds", "runs"), [(60.0, MOST_RUNS), (1e-9, 1)])
@pytest.mark.usefixtures("convolution")
def test_runs_end_by_number_or_time(tmp_path, seconds, runs):
    one = measure(
        Cell("forward", "convolution", "float32", 12, 1), Settings(str(tmp_path), seconds=seconds, count=False)
    )
    assert len(one.seconds) == runs


@pytest.mark.parametrize("variant", ["released", "float32", "bfloat16"])
@pytest.mark.usefixtures("tiny")
def test_a_training_step(settings, variant):
    one = measure(Cell("train", "tiny", variant, 16, 2), settings)
    assert one.reason is None
    assert one.seconds
    forward = measure(Cell("forward", "tiny", variant, 16, 2), settings)
    assert one.operations > 2 * forward.operations


def test_a_training_step_trains(settings, monkeypatch):
    networks = []

    def kept(side):
        networks.append(nn.Conv2d(31, 31, 3, padding=1))
        networks[0].before = networks[0].weight.detach().clone()
        return networks[0]

    monkeypatch.setitem(NETWORKS, "kept", Subject("kept", kept, noisy_scene))
    measure(Cell("train", "kept", "float32", 16, 2), settings)
    assert networks[0].training
    assert (networks[0].weight - networks[0].before).abs().min() > 0
    assert networks[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (Cell("train", "bra", "float32", 64, 2), "has no training step of its own"),
        (Cell("train", "hcanet-bra", "released", 64, 2), "was never released"),
        (Cell("forward", "bra", "released", 20, 1), "multiples of 8, not 20"),
        (Cell("forward", "bra", "released", 800_000, 1), "out of memory"),
    ],
)
def test_what_cannot_be_measured_has_a_reason(settings, cell, reason):
    one = measure(cell, settings)
    assert reason in one.reason
    assert "\n" not in one.reason
    assert one.seconds == []


def test_a_wrong_name_is_an_error(settings):
    with pytest.raises(ValueError, match="unknown network 'hcanot'; known: hcanet, bra"):
        measure(Cell("forward", "hcanot", "float32", 64, 1), settings)
    with pytest.raises(ValueError, match="unknown device 'gpu0'"):
        measure(Cell("forward", "hcanet", "float32", 64, 1), Settings(settings.folder, device="gpu0"))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["compile", "compile-bfloat16"])
@pytest.mark.filterwarnings("ignore")  # of the compiler, which is not ours
@pytest.mark.usefixtures("convolution")
def test_compiling_is_timed_apart(settings, variant):
    one = measure(Cell("forward", "convolution", variant, 12, 1), settings)
    assert one.reason is None
    assert one.setup > max(one.seconds)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("convolution")
def test_a_compiler_that_fails_is_the_reason(settings, monkeypatch):
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", settings.folder)  # an empty one
    # in this process: the others that compile where there are several cores do not know of the patch
    patch = {"cpp.cxx": ("/no/such/compiler",), "force_disable_caches": True, "compile_threads": 1}
    torch._dynamo.reset()
    with config.patch(patch):
        one = measure(Cell("forward", "convolution", "compile", 12, 1), settings)
    assert one.reason.startswith("compiling Sequential failed")


def test_without_onnxruntime_the_reason_says_so_once(settings, monkeypatch, tmp_path):
    (tmp_path / "hcanet.onnx").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    one = measure(Cell("forward", "hcanet", "onnxruntime", 16, 1), settings)
    assert "pip install 'hsidenoise[onnx]'" in one.reason
    assert (tmp_path / "hcanet.failed").read_text() == one.reason
    monkeypatch.undo()
    assert measure(Cell("forward", "hcanet", "onnxruntime", 16, 1), settings).reason == one.reason


@pytest.mark.usefixtures("convolution")
def test_the_program_writes_the_result(tmp_path):
    task = {
        "settings": {"folder": str(tmp_path), "seconds": 0.01},
        "cell": {"job": "forward", "network": "convolution", "variant": "float32", "size": 8, "batch": 1},
    }
    assert main([json.dumps(task), str(tmp_path / "result")]) == 0
    assert json.loads((tmp_path / "result").read_text())["operations"] > 0


def test_rates_describe_the_machine(tmp_path):
    threads = torch.get_num_threads()
    about = rates(Settings(str(tmp_path), threads=threads, device="cpu"))
    assert about["device"] == "cpu"
    assert about["machine"]["threads"] == threads
    assert set(about["rates"]) == {"float32", "bfloat16"}


@pytest.mark.gpu
@pytest.mark.parametrize("job", ["forward", "train"])
def test_on_a_gpu(tmp_path, job):
    settings = Settings(str(tmp_path), device="cuda", seconds=0.5)
    for variant in ("released", "float32", "bfloat16"):
        one = measure(Cell(job, "hcanet", variant, 64, 2), settings)
        assert one.reason is None
        assert one.total > one.added > 0
        assert min(one.seconds) > 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = measure(Cell("forward", "hcanet", "onnxruntime", 64, 2), settings)
    assert one.reason == "onnxruntime is measured on CPUs only"
