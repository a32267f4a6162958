import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from hsidenoise.inference.memory import SMALLEST_TILE, USABLE_SHARE, fitting_batch, fitting_tile, tile_memory
from hsidenoise.models import create_model

GIB = 2**30


def test_a_tile_that_fits_stays_and_one_that_does_not_is_halved():
    network = nn.Conv2d(31, 48, 3)
    assert fitting_tile(network, 31, (130, 96), 100 * GIB) == (130, 96)
    for free in (1, 2**20, 2**24, 2**26, 2**28, 2**30):
        tile = fitting_tile(network, 31, (512, 500), free)
        assert tile[0] == tile[1]
        assert tile[0] in (256, 128, 64, SMALLEST_TILE)
        if tile[0] > SMALLEST_TILE:
            assert tile_memory(network, 31, *tile) <= USABLE_SHARE * free
            assert tile_memory(network, 31, 2 * tile[0], 2 * tile[1]) > USABLE_SHARE * free
    assert fitting_tile(network, 31, (20, 10), 1) == (20, 10)


def test_wider_networks_take_more():
    narrow, wide = (create_model("hcanet-bra", planes=3, dim=dim, num_blocks=(0, 0, 1)) for dim in (16, 48))
    assert 2 * tile_memory(narrow, 6, 96, 96) < tile_memory(wide, 6, 96, 96) < 4 * tile_memory(narrow, 6, 96, 96)
    assert tile_memory(nn.Identity(), 31, 10, 20) > 0


def test_a_batch_fits_the_memory_and_the_cache():
    network = nn.Conv2d(31, 48, 3)
    one = tile_memory(network, 31, 64, 64)
    assert [fitting_batch(network, (31, 64, 64), int(one * n / USABLE_SHARE) + 1) for n in (0, 1, 2, 3, 9)] == [
        *(1, 1, 2, 3, 4),
    ]


GROW = """
import sys, torch
from hsidenoise.inference.memory import tile_memory
from hsidenoise.models import create_model
from hsidenoise.system.machine import PeakMemory
torch.set_num_threads(1)
network = create_model(sys.argv[1]).eval()
noisy = torch.rand(1, 31, 160, 160)
with torch.inference_mode():
    network(noisy[..., :32, :32])
    memory = PeakMemory(noisy.device)
    network(noisy)
print(memory.read()[1] / tile_memory(network, 31, 160, 160))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is forgotten before the run")
@pytest.mark.parametrize("name", ["hcanet", "hcanet-bra"])
def test_the_rule_of_thumb_is_an_upper_bound_and_no_wild_one(name):
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", GROW, name], cwd=root, capture_output=True, text=True, check=True)
    assert 0.1 < float(done.stdout) < 1.0
