"""CAFM against the obvious way of writing it, and how far its local branch reaches."""

import pytest
import torch
import torch.nn.functional as F

from hsidenoise.models.cafm import LOCAL_MAPS, ConvAttentionFusion


def obvious(block, x):
    """CAFM step by step: explicit fusion maps, normalised q and k."""
    batch, channels, height, width = x.shape
    qkv = block.qkv_dwconv(block.qkv(x))
    per_head = channels // block.heads
    if block.released_local_branch:
        planes = qkv.contiguous().reshape(batch, height * width, 3 * block.heads, per_head)
    else:
        planes = qkv.permute(0, 2, 3, 1).reshape(batch, height * width, 3 * block.heads, per_head)
    fused = block.fc(planes.permute(0, 2, 1, 3))  # (batch, maps, pixels, channel of a head)
    fused = fused.permute(0, 3, 1, 2).reshape(batch, LOCAL_MAPS * per_head, height, width)
    local = block.dep_conv(fused)
    q, k, v = (part.reshape(batch, block.heads, per_head, -1) for part in qkv.chunk(3, dim=1))
    affinity = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-1, -2) * block.temperature
    mixed = (affinity.softmax(dim=-1) @ v).reshape(x.shape)
    return block.project_out(mixed) + local


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("released", [True, False])
def test_equals_the_obvious_way(heads, bias, released):
    torch.manual_seed(0)
    block = ConvAttentionFusion(8, heads, bias, released_local_branch=released).double()
    torch.nn.init.uniform_(block.temperature, 0.5, 2)
    x = torch.randn(2, 8, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(block(x), obvious(block, x))


def changed_pixels(block, height=24, width=20):
    """Output pixels of the local branch that one changed input pixel in the middle alters."""
    x = torch.randn(1, 8, height, width, dtype=torch.float64)
    other = x.clone()
    other[..., height // 2, width // 2] += 1
    outputs = [block._convolve(block.qkv_dwconv(block.qkv(image))) for image in (x, other)]
    return torch.nonzero((outputs[0] - outputs[1]).abs().sum(1)[0] > 1e-12)


def test_local_branch_is_local():
    torch.manual_seed(0)
    pixels = changed_pixels(ConvAttentionFusion(8, 2).double())
    assert len(pixels) == 25
    assert pixels.min(0).values.tolist() == [10, 8]
    assert pixels.max(0).values.tolist() == [14, 12]


def test_released_local_branch_scatters():
    torch.manual_seed(0)
    pixels = changed_pixels(ConvAttentionFusion(8, 2, released_local_branch=True).double())
    assert len(pixels) > 50
    assert (pixels.max(0).values - pixels.min(0).values).max() > 15


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_of_zero_give_finite_gradients(dtype):
    block = ConvAttentionFusion(8, 2).to(dtype)
    x = torch.zeros(1, 8, 4, 6, dtype=dtype, requires_grad=True)
    block(x).sum().backward()
    assert x.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in block.parameters())


def test_channels_that_heads_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="10 channels cannot be split into 4 heads"):
        ConvAttentionFusion(10, 4)
