from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from hsidenoise.inference.denoise import denoise
from hsidenoise.inference.memory import tile_memory
from hsidenoise.inference.network import ENSEMBLES, Ensemble, mirrorings
from hsidenoise.models import create_model

CUBE = np.random.default_rng(0).random((7, 20, 30)).astype(np.float32)


class Sharpen(nn.Module):
    """Treats all directions alike."""

    bands = 7

    def forward(self, noisy: torch.Tensor) -> torch.Tensor:
        return noisy + (noisy - noisy.mean(dim=(1, 2, 3), keepdim=True)).sin()


class Lopsided(nn.Module):
    """Each axis matters in a way of its own."""

    bands = 7

    def forward(self, noisy: torch.Tensor) -> torch.Tensor:
        band, row, column = torch.meshgrid(*(torch.arange(size) for size in noisy.shape[1:]), indexing="ij")
        return noisy.square() + 0.1 * noisy.cumsum(3) + 0.03 * band + 0.02 * row.square() * noisy + 0.01 * column


def mean_over(network: nn.Module, cube: np.ndarray, *axes: int) -> np.ndarray:
    """The definition: axes of (bands, height, width)."""
    answers = []
    for some in product(*[(None, axis) for axis in axes]):
        flipped = [axis for axis in some if axis is not None]
        with torch.no_grad():
            answer = network(torch.from_numpy(np.flip(cube, flipped).copy())[None])[0].numpy()
        answers.append(np.flip(answer, flipped))
    return np.mean(answers, axis=0)


@pytest.mark.parametrize("count", ENSEMBLES)
def test_a_network_that_treats_all_directions_alike_gives_the_same(count):
    wanted = denoise(CUBE, Sharpen(), tile=16, overlap=4)
    assert denoise(CUBE, Sharpen(), tile=16, overlap=4, ensemble=count) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(("count", "axes"), [(1, ()), (2, (2,)), (4, (2, 1)), (8, (2, 1, 0))])
def test_any_other_gives_the_mean_over_the_group(count, axes):
    denoised = denoise(CUBE, Lopsided(), normalize="none", ensemble=count)
    wanted = mean_over(Lopsided(), CUBE, *axes)
    assert denoised == pytest.approx(wanted, abs=1e-4)
    if count > 1:
        assert np.abs(denoised - mean_over(Lopsided(), CUBE)).max() > 0.1


@pytest.mark.parametrize("count", ENSEMBLES)
def test_the_group_is_one(count):
    flips = [frozenset(axes) for axes in mirrorings(count)]
    assert len(set(flips)) == count
    assert {one ^ other for one in flips for other in flips} == set(flips)
    assert 0 not in set().union(*flips)  # the batch


@pytest.mark.parametrize("count", [0, 3, 16, -1])
def test_other_sizes_are_refused(count, unchecked):
    with pytest.raises(ValueError, match=f"no ensemble of {count}; choose 1 .none., 2 .* 4 .* or 8"):
        denoise(CUBE, Sharpen(), ensemble=count)


def test_a_network_without_an_estimate_and_fewer_bands_than_it_has():
    torch.manual_seed(0)
    network = create_model("hcanet", bands=9, dim=8, num_blocks=(1, 0, 0), num_refinement_blocks=0, heads=(1, 2, 2))
    denoised = denoise(CUBE, network, ensemble=8)
    assert denoised.shape == CUBE.shape
    assert np.abs(denoised - denoise(CUBE, network)).max() > 1e-6


def test_bfloat16_is_averaged_in_float32():
    seen = []

    class Probe(nn.Module):
        bands = 7

        def forward(self, noisy: torch.Tensor) -> torch.Tensor:
            seen.append(noisy.shape)
            return noisy.bfloat16()

    answer = Ensemble(Probe(), 4)(torch.from_numpy(CUBE)[None])
    assert answer.dtype == torch.float32
    assert len(seen) == 4


def test_input_and_network_are_left_alone():
    network = nn.Conv2d(7, 7, 3, padding=1)
    network.bands = 7
    network.train()
    before = CUBE.copy()
    denoise(CUBE, network, ensemble=2)
    assert network.training
    assert np.array_equal(CUBE, before)


def test_memory_grows_by_some_cubes_and_not_with_the_size():
    network = nn.Conv2d(31, 48, 3)
    plain = tile_memory(network, 31, 96, 96)
    assert plain < tile_memory(Ensemble(network, 2), 31, 96, 96) < 1.2 * plain
    assert tile_memory(Ensemble(network, 2), 31, 96, 96) == tile_memory(Ensemble(network, 8), 31, 96, 96)
