from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hsidenoise.data.io import write_arrays
from hsidenoise.signal.spectral_wiener import SpectralEstimate, spectral_wiener
from hsidenoise.training.pairs import SyntheticNoise, TrainingPairs, TurnSampler, ValidationPairs
from hsidenoise.training.patches import BandAugment, CubeStore, another_sensor


@pytest.fixture
def store(tmp_path, rng):
    write_arrays(tmp_path / "a.mat", {"cube": rng.random((30, 34, 6), dtype=np.float32)})
    return CubeStore([tmp_path / "a.mat"], patch_size=12)


def pairs(store, **options):
    return TrainingPairs(store, SyntheticNoise(["gaussian-50", "mixture"]), **({"patches_per_epoch": 10} | options))


def test_cases_are_drawn_by_weight(rng):
    noise = SyntheticNoise({"gaussian-50": 3, "gaussian-10": 1})
    clean = np.full((6, 8, 10), 0.5, dtype=np.float32)
    drawn = [noise(clean, rng) for _ in range(400)]
    count = Counter(case for _, case in drawn)
    assert 260 < count["gaussian-50"] < 340  # 300 +- 4.6 standard deviations
    for noisy, case in drawn[:50]:
        sigma = float(case.split("-")[1]) / 255
        assert abs((noisy - clean).std() / sigma - 1) < 0.2
    assert (clean == 0.5).all()


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        ([], "at least one"),
        (["gausian-50"], "unknown noise case 'gausian-50'"),
        ({"gaussian-50": 0}, "positive"),
        ({"gaussian-50": -1.0, "mixture": 1}, "positive"),
        ({"gaussian-50": float("nan")}, "positive"),
    ],
)
def test_wrong_cases(cases, message):
    with pytest.raises(ValueError, match=message):
        SyntheticNoise(cases)


def test_an_item_depends_on_seed_and_number_alone(store):
    first, again, other = pairs(store), pairs(store), pairs(store, seed=1)
    for number in (0, 7, 10, 123):
        assert torch.equal(first[number]["noisy"], again[number]["noisy"])
        assert torch.equal(first[number]["clean"], again[number]["clean"])
        assert not torch.equal(first[number]["noisy"], other[number]["noisy"])
    assert not torch.equal(first[3]["noisy"], first[13]["noisy"])  # same index, next epoch


def test_number_is_epoch_and_index(store):
    item = pairs(store)[27]
    rng = np.random.default_rng([0, 2, 7])
    clean = store.patch(rng)
    np.testing.assert_array_equal(item["clean"], clean)
    np.testing.assert_array_equal(item["noisy"], SyntheticNoise(["gaussian-50", "mixture"])(clean, rng)[0])


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")  # on a single core
def test_workers_make_the_same_batches_as_none(store):
    def batches(workers):
        data = pairs(store, patches_per_epoch=8)
        loader = DataLoader(data, batch_size=4, sampler=TurnSampler(data), num_workers=workers)
        return torch.cat([batch["noisy"] for batch in loader])

    alone = batches(0)
    assert torch.equal(alone, batches(2))
    assert len({item.numpy().tobytes() for item in alone}) == 8


def test_two_processes_share_the_batches_of_one(store):
    data = pairs(store, patches_per_epoch=16)
    one = list(TurnSampler(data, start=lambda: 32))
    halves = [list(TurnSampler(data, process=i, processes=2, start=lambda: 32)) for i in (0, 1)]
    assert one == list(range(32, 48))
    for batch in range(2):
        together = halves[0][batch * 4 : batch * 4 + 4] + halves[1][batch * 4 : batch * 4 + 4]
        assert sorted(together) == one[batch * 8 : batch * 8 + 8]


def test_sampler_asks_anew_where_training_stands(store):
    position = [0]
    sampler = TurnSampler(pairs(store), start=lambda: position[0])
    assert list(sampler) == list(range(10))
    position[0] = 10
    assert list(sampler) == list(range(10, 20))
    sampler.set_epoch(5)  # Lightning calls it; the count of batches already tells
    assert list(sampler) == list(range(10, 20))


def test_validation_is_every_cube_with_every_case_and_always_the_same(rng):
    cubes = [rng.random((6, 8, 10), dtype=np.float32), rng.random((6, 7, 9), dtype=np.float32)]
    data = ValidationPairs(cubes, ["gaussian-30", "stripe", "mixture"])
    assert [data[i]["case"] for i in range(6)] == ["gaussian-30"] * 2 + ["stripe"] * 2 + ["mixture"] * 2
    assert torch.equal(data[3]["noisy"], data[3]["noisy"])
    np.testing.assert_array_equal(data[3]["clean"], cubes[1])
    assert not torch.equal(data[0]["noisy"], ValidationPairs(cubes, ["gaussian-30"], seed=1)[0]["noisy"])


def test_items_that_fill_up_a_process_have_no_weight(rng):
    data = ValidationPairs([rng.random((6, 8, 10), dtype=np.float32)], ["gaussian-30", "stripe", "mixture"])
    halves = [list(TurnSampler(data, process=i, processes=2)) for i in (0, 1)]
    assert sorted(halves[0] + halves[1]) == [0, 1, 2, 3]
    assert [data[i]["weight"] for i in range(4)] == [1, 1, 1, 0]
    assert torch.equal(data[3]["noisy"], data[0]["noisy"])


def test_empty_things_are_refused(store):
    with pytest.raises(ValueError, match="at least 1"):
        pairs(store, patches_per_epoch=0)
    with pytest.raises(ValueError, match="at least one cube"):
        ValidationPairs([], ["gaussian-30"])


def batch_of(data, number, size):
    return [data[number * size + i] for i in range(size)]


def test_the_bands_of_a_batch_are_alike_and_differ_between_batches(store):
    bands = BandAugment(6, strides=[1, 2], fewest=2)
    data = pairs(store, bands=bands, batch_size=4, patches_per_epoch=8)
    shapes = [{tuple(item["noisy"].shape) for item in batch_of(data, number, 4)} for number in range(30)]
    assert all(len(shape) == 1 for shape in shapes)
    assert len(set.union(*shapes)) > 3
    again = pairs(store, bands=bands, batch_size=4, patches_per_epoch=8)
    assert all(torch.equal(data[n]["noisy"], again[n]["noisy"]) for n in (0, 5, 77))


def test_gain_scales_before_noise(store):
    plain, dark = pairs(store), pairs(store, gain=(0.25, 0.5))
    ratios = []
    for number in range(20):
        one, other = plain[number], dark[number]
        ratio = other["clean"] / one["clean"].clamp_min(1e-3)
        ratios.append(float(ratio.median()))
        assert other["noisy"].shape == one["noisy"].shape
    assert 0.25 <= min(ratios) < 0.3
    assert 0.45 < max(ratios) <= 0.5
    fixed = TrainingPairs(store, SyntheticNoise(["gaussian-50"]), patches_per_epoch=10, gain=(0.5, 0.5))
    bright = TrainingPairs(store, SyntheticNoise(["gaussian-50"]), patches_per_epoch=10)
    for number in range(3):
        one, other = bright[number], fixed[number]  # nothing drawn for a fixed gain: the same noise
        torch.testing.assert_close(other["noisy"] - other["clean"], one["noisy"] - one["clean"], rtol=0, atol=1e-6)
        torch.testing.assert_close(other["clean"], one["clean"] / 2)


def test_extra_cubes_take_their_share(store, tmp_path):
    write_arrays(tmp_path / "bright.mat", {"cube": np.stack([np.linspace(0, 1, 600).reshape(20, 30)] * 8, axis=-1)})
    extra = CubeStore([tmp_path / "bright.mat"], patch_size=12, bands=6)
    data = pairs(store, extra=extra, extra_share=0.3)
    # all bands of the extra cube are alike, those of the random one are not
    taken = [bool((item["clean"].std(dim=0) < 1e-6).all()) for item in (data[n] for n in range(300))]
    assert 65 < sum(taken) < 115  # 90 +- 3 standard deviations
    assert all(torch.equal(pairs(store)[n]["noisy"], pairs(store, extra_share=0.3)[n]["noisy"]) for n in range(3))


def test_an_estimate_comes_with_its_noisy_patch(store):
    settings = {"rounds": 1, "overlap": 0.0}
    data = pairs(store, estimate=partial(spectral_wiener, **settings))
    batch = next(iter(DataLoader(data, batch_size=2, sampler=TurnSampler(data))))
    assert isinstance(batch["estimate"], SpectralEstimate)
    for found, wanted in zip(batch["estimate"], spectral_wiener(batch["noisy"], **settings), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    assert "estimate" not in pairs(store)[0]


@pytest.mark.parametrize("options", [{"gain": (0.0, 1.0)}, {"gain": (1.2, 0.5)}, {"extra_share": 1.5}])
def test_wrong_shares_and_gains(store, options):
    with pytest.raises(ValueError, match="must be two rising numbers"):
        pairs(store, **options)


def test_a_pair_is_drawn_again_mirrored_and_cut_another_way(store):
    """What is made stays; which square of it, and how it is mirrored, follows from the number of the item."""
    made = []

    def estimate(noisy):
        made.append(noisy)
        return SpectralEstimate(noisy.clone(), noisy, noisy, noisy, noisy[:, :, 0, 0].clone())

    items = pairs(store, draws=3, cut=5, batch_size=1, estimate=estimate, patches_per_epoch=100)
    drawn = [items[number] for number in (0, 60, 120)]
    assert len(made) == 1
    for item in drawn:
        assert item["noisy"].shape == item["clean"].shape == (6, 5, 5)
        assert torch.equal(item["estimate"].repaired, item["noisy"])  # image parts go along
        assert torch.equal(item["estimate"].sigma, made[0][0, :, 0, 0])
        values = set(item["noisy"].flatten().tolist())
        assert values <= set(made[0].flatten().tolist())
    assert not torch.equal(drawn[0]["noisy"], drawn[1]["noisy"])
    items[180]  # the next group begins
    assert len(made) == 2
    assert torch.equal(pairs(store, draws=3, cut=5, patches_per_epoch=100)[120]["noisy"], drawn[2]["noisy"])


def test_patches_of_a_network_for_any_number_of_bands(tmp_path, rng):
    """A batch has one number of bands, from fewest to most, whatever the cubes have."""
    for name, bands in (("a", 6), ("b", 11)):
        write_arrays(tmp_path / f"{name}.mat", {"cube": rng.random((30, 34, bands), dtype=np.float32)})
    store = CubeStore([tmp_path / "a.mat", tmp_path / "b.mat"], patch_size=12, ragged=True)
    items = pairs(store, bands=(1, 16), batch_size=4)
    counts = [{len(items[4 * batch + each]["noisy"]) for each in range(4)} for batch in range(12)]
    assert all(len(count) == 1 for count in counts)
    found = set.union(*counts)
    assert found <= set(range(1, 17))
    assert len(found) > 5


@pytest.mark.parametrize("count", [1, 2, 5, 6, 9])
def test_another_sensor_sees_the_same_spectra(rng, count):
    spectrum = np.arange(6, dtype=np.float32)[:, None, None] * np.ones((1, 2, 3), dtype=np.float32)
    for _ in range(20):
        seen = another_sensor(spectrum, count, rng)
        assert seen.shape == (count, 2, 3)
        assert (np.diff(seen[:, 0, 0]) >= 0).all()
        assert np.ptp(seen) <= 5
        if count <= 6:
            assert set(seen.flatten()) <= set(range(6))


@pytest.mark.parametrize("options", [{"draws": 0}, {"cut": 0}, {"cut": 13}])
def test_draws_out_of_range(store, options):
    with pytest.raises(ValueError, match="draws="):
        pairs(store, **options)
