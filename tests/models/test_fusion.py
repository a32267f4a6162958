"""CAFM against the obvious way of writing it, and how far its local branch reaches."""

import pytest
import torch
import torch.nn.functional as F

from hsidenoise.models import blocks
from hsidenoise.models.fusion import LOCAL_MAPS, ChannelAttention, ConvAttentionFusion


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


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("released", [True, False])
@pytest.mark.parametrize("size", [(37, 50), (20, 18), (3, 2), (1, 5)])
def test_in_pieces_it_is_the_whole_one(heads, bias, released, size, monkeypatch):
    monkeypatch.setattr(blocks, "PIECE_NUMBERS", 1)  # pieces of at most 16 x 16 pixels
    torch.manual_seed(0)
    block = ConvAttentionFusion(8, heads, bias, released_local_branch=released).double()
    torch.nn.init.uniform_(block.temperature, 0.5, 2)
    x = torch.randn(2, 8, *size, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    whole = block(x)
    with torch.no_grad():
        in_pieces = block(x)
    torch.testing.assert_close(in_pieces, whole.detach(), rtol=0, atol=1e-13)
    assert in_pieces.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_pieces_half_precision_is_close_where_its_range_is_small(dtype):
    torch.manual_seed(0)
    block = ConvAttentionFusion(8, 2)
    x = 50 * torch.randn(1, 8, 40, 50)  # sums of squares beyond 65504
    with torch.no_grad():
        exact = block(x)
        half = block.to(dtype)(x.to(dtype))
    assert half.dtype is dtype
    assert (half - exact).abs().max() < 0.03 * exact.abs().max()


def test_channel_attention_is_the_global_branch():
    torch.manual_seed(0)
    block, alone = ConvAttentionFusion(8, 2), ChannelAttention(8, 2)
    alone.load_state_dict({name: block.state_dict()[name] for name in alone.state_dict()})
    with torch.no_grad():
        block.dep_conv.weight.zero_()
        block.dep_conv.bias.zero_()
        x = torch.randn(2, 8, 5, 7)
        torch.testing.assert_close(alone(x), block(x))
    with pytest.raises(ValueError, match="10 channels cannot be split into 4 heads"):
        ChannelAttention(10, 4)


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
