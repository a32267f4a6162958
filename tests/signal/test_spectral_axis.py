import numpy as np

from hsidenoise.signal.spectral_axis import axis_scores


def test_of_noise_alone_nothing_is_said():
    rng = np.random.default_rng(0)
    for shape in ((45, 12, 9), (7, 30, 20), (40, 41, 5), (3, 50, 30)):
        assert np.ptp(axis_scores(rng.normal(size=shape))) == 0
        assert np.ptp(axis_scores(rng.random(shape))) == 0
