"""Folding into regions and back, traced sizes included (``test_bra`` has the rest)."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hsidenoise.models.attention.regions import from_regions, to_regions


@given(height=st.integers(1, 12), width=st.integers(1, 12), rows=st.integers(1, 5), cols=st.integers(1, 5))
def test_there_and_back(height, width, rows, cols):
    image = torch.rand(2, height, width, 3)
    regions, mask = to_regions(image, rows, cols)
    assert torch.equal(from_regions(regions, height, width, rows, cols), image)
    if mask is None:
        assert height % rows == 0
        assert width % cols == 0
    else:
        assert mask.any(1).all()
        assert mask.sum() == height * width
        assert (regions[:, ~mask] == 0).all()


@pytest.mark.parametrize("region", [0, 1, 4])
def test_row_major(region):
    image = torch.arange(6 * 9).reshape(1, 6, 9, 1).float()
    regions, _ = to_regions(image, 2, 3)
    top, left = 2 * (region // 3), 3 * (region % 3)
    assert torch.equal(regions[0, region, :, 0], image[0, top : top + 2, left : left + 3, 0].flatten())


COMPILED = """
import torch
from hsidenoise.models.attention.regions import from_regions, to_regions

def fold(x):
    regions, mask = to_regions(x, 4, 8)
    return regions, from_regions(2 * regions, x.shape[1], x.shape[2], 4, 8), mask

with {mode}():
    compiled = torch.compile(fold, dynamic=True, fullgraph=True, backend="aot_eager")
    with torch.fx.experimental._config.patch(use_duck_shape=False):
        for size in ((2, 24, 40), (3, 64, 56), (2, 13, 22), (2, 7, 100)):
            x = torch.rand(*size, 5)
            regions, image, mask = compiled(x)
            wanted, _ = to_regions(x, 4, 8)
            assert torch.equal(regions, wanted) and torch.equal(image, 2 * x) and int(mask.sum()) == size[1] * size[2]
print(torch._dynamo.utils.counters["stats"]["unique_graphs"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["torch.no_grad", "torch.enable_grad"])
def test_compiled_the_same_comes_out_and_without_gradients_of_one_graph(mode):
    root = Path(__file__).parents[3]
    script = COMPILED.format(mode=mode)
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if mode == "torch.no_grad":
        assert int(done.stdout) == 1
