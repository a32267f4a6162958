"""Options of `denoise`: written once, taken together or by name."""

import inspect

import numpy as np
import pytest
import scipy.io
import torch
from torch import nn

from hsidenoise import DenoiseOptions, denoise, denoise_file


class Mean(nn.AvgPool2d):
    """A network whose answer depends on where a tile ends."""

    bands = 4

    def __init__(self):
        super().__init__(3, stride=1, padding=1)


@pytest.fixture
def noisy(rng):
    return rng.random((4, 40, 36), dtype=np.float32)


def test_signature_and_help_show_every_option():
    shown = inspect.signature(denoise).parameters
    assert list(shown) == [
        *["noisy", "model", "options", "axes", "mask", "nodata", "bad_bands"],
        *DenoiseOptions.__dataclass_fields__,
    ]
    for name, field in DenoiseOptions.__dataclass_fields__.items():
        assert shown[name].default == field.default
        assert f" {name} (" in denoise.__doc__
    assert "'auto' | 'none' | 'minmax'" in denoise.__doc__
    assert {"axes", "allow_external", "tile"} <= set(inspect.signature(denoise_file).parameters)


def test_together_by_name_or_both(noisy):
    wanted = denoise(noisy, Mean(), tile=16, overlap=4)
    assert np.array_equal(denoise(noisy, Mean(), DenoiseOptions(tile=16, overlap=4)), wanted)
    assert np.array_equal(denoise(noisy, Mean(), DenoiseOptions(tile=20, overlap=4), tile=16), wanted)
    assert not np.array_equal(denoise(noisy, Mean()), wanted)
    assert np.array_equal(denoise(noisy, Mean(), device=torch.device("cpu")), denoise(noisy, Mean()))


def test_weights_may_be_an_option(noisy):
    one = {"tile": 32, "pilot_rounds": 0}
    wanted = denoise(noisy, "hcanet-bra", **one)
    assert np.array_equal(denoise(noisy, weights="hcanet-bra", **one), wanted)


def test_what_is_not_an_option_is_refused(noisy, tmp_path):
    with pytest.raises(TypeError, match=r"denoise\(\) has no option 'tille'; did you mean 'tile'\?"):
        denoise(noisy, Mean(), tille=3)
    with pytest.raises(TypeError, match="pilot_rounds=1 is the same"):
        denoise(noisy, Mean(), passes=2)
    with pytest.raises(TypeError, match=r"denoise_file\(\) has no option 'axis'; did you mean 'axes'"):
        denoise_file(tmp_path / "a.mat", tmp_path / "b.mat", Mean(), axis="hwb")


def test_a_file_is_read_as_its_options_say(noisy, tmp_path):
    scipy.io.savemat(tmp_path / "a.mat", {"x": noisy, "y": noisy[:2]})
    done = denoise_file(tmp_path / "a.mat", tmp_path / "b.mat", Mean(), key="x", axes="BHW", tile=16, overlap=4)
    assert np.array_equal(done.denoised.values, denoise(noisy, Mean(), tile=16, overlap=4))
