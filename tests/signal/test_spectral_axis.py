import numpy as np
import pytest

from hsidenoise.signal.spectral_axis import axis_scores


def test_of_noise_alone_nothing_is_said():
    rng = np.random.default_rng(0)
    for shape in ((45, 12, 9), (7, 30, 20), (40, 41, 5), (3, 50, 30)):
        assert np.ptp(axis_scores(rng.normal(size=shape))) == 0
        assert np.ptp(axis_scores(rng.random(shape))) == 0


@pytest.mark.parametrize("value", [np.nan, -9999.0, 0.0])
def test_edges_without_data_are_no_bands(value):
    rng = np.random.default_rng(0)
    cube = np.linspace(1, 2, 30)[:, None] * np.linspace(1, 3, 24) + rng.normal(0, 0.01, (6, 30, 24))
    cube = cube * np.linspace(1, 2, 6)[:, None, None]
    before = axis_scores(cube)
    cube[:, :, :5] = value
    cube[:, 27:] = value
    assert before.argmax() == axis_scores(cube).argmax() == 0
    cube[:, 1:] = value  # one line
    assert np.ptp(axis_scores(cube)) == 0
