from collections import Counter

import numpy as np
import pytest

from hsidenoise.training.augment import BandAugment, BandChoice, scaled


def test_every_stride_leaves_what_fits():
    augment = BandAugment(31, strides=[1, 2, 3])
    choices = {augment.choice(0, batch, available=31) for batch in range(60)}
    assert choices == {BandChoice(31, 1), BandChoice(16, 2), BandChoice(11, 3)}
    assert all(choice.span <= 31 for choice in choices)
    # of cubes with many bands the network takes as many as it can
    assert {augment.choice(0, batch, available=198).count for batch in range(60)} == {31}


def test_fewer_bands_are_drawn_down_to_the_fewest():
    augment = BandAugment(6, strides=[1, 2], fewest=3)
    counts = Counter(augment.choice(0, batch, available=9) for batch in range(400))
    assert {(choice.stride, choice.count) for choice in counts} == {(1, n) for n in (3, 4, 5, 6)} | {
        (2, n) for n in (3, 4, 5)
    }
    assert min(counts.values()) > 20
    assert BandAugment(6, strides=[4], fewest=3).choice(0, 0, available=6) == BandChoice(2, 4)  # no more fit


def test_a_choice_repeats_with_seed_and_batch():
    augment = BandAugment(31, strides=[1, 2, 3], fewest=8)
    one = [augment.choice(5, batch, 31) for batch in range(20)]
    assert one == [augment.choice(5, batch, 31) for batch in range(20)]
    assert one != [augment.choice(6, batch, 31) for batch in range(20)]


def test_off_is_all_bands():
    augment = BandAugment(31)
    assert not augment.active
    assert augment.choice(0, 3, available=31) == BandChoice(31, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strides": []}, "band_strides"),
        ({"strides": [1, 0]}, "band_strides"),
        ({"fewest": 0}, "fewest_bands 0"),
        ({"fewest": 7}, "from 1 to 6"),
    ],
)
def test_wrong_numbers(options, message):
    with pytest.raises(ValueError, match=message):
        BandAugment(6, **options)


def test_gain_is_one_number_for_a_patch_and_leaves_it_alone(rng):
    clean = rng.random((3, 4, 5), dtype=np.float32)
    before = clean.copy()
    gains = [(scaled(clean, (0.5, 1.2), rng) / clean) for _ in range(50)]
    assert all(np.ptp(gain) < 1e-5 for gain in gains)
    means = [gain.mean() for gain in gains]
    assert 0.5 <= min(means) < 0.6
    assert 1.1 < max(means) <= 1.2
    np.testing.assert_array_equal(clean, before)
    state = rng.bit_generator.state
    assert scaled(clean, (1.0, 1.0), rng) is clean
    assert rng.bit_generator.state == state  # runs without it draw what they always drew
