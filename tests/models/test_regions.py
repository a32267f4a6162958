"""Folding into regions and back, traced sizes included (``test_bra`` has the rest)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hsidenoise.models.regions import from_regions, to_regions


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
