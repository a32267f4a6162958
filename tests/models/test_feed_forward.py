"""Feed-forward blocks against obvious second implementations, whole and in pieces."""

import pytest
import torch
import torch.nn.functional as F

from hsidenoise.models import blocks
from hsidenoise.models.feed_forward import DilatedDepthwiseConv2d, Mlp, MultiScaleFeedForward


@pytest.fixture
def images():
    return torch.randn(2, 8, 6, 10, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(6, 10), (7, 11), (1, 2)])
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_dilated_convolution_is_the_plain_one_with_and_without_gradients(size, dilation, bias):
    x = torch.randn(2, 5, *size, dtype=torch.float64, requires_grad=True)
    convolution = DilatedDepthwiseConv2d(5, dilation, bias).double()
    expected = F.conv2d(x, convolution.weight, convolution.bias, padding=dilation, dilation=dilation, groups=5)
    torch.testing.assert_close(convolution(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(convolution(x), expected)
    seen = torch.randn_like(expected)
    inputs = [x, *convolution.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(convolution(x), inputs, seen), torch.autograd.grad(expected, inputs, seen)
    )


@pytest.mark.parametrize("dilation", [2, 3])
def test_dilated_convolution_trains_in_bfloat16_channels_last(dilation):
    # F.conv2d with PyTorch 2.13 on a CPU is off by more than 100 % here, or gives 1e27.
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, 32, 40, generator=generator).bfloat16().contiguous(memory_format=torch.channels_last)
    convolution = DilatedDepthwiseConv2d(16, dilation).bfloat16()
    out = convolution(x)
    seen = torch.randn(out.shape, generator=generator).bfloat16()
    out.backward(seen)
    exact = convolution.weight.detach().double().requires_grad_()
    F.conv2d(x.double(), exact, padding=dilation, dilation=dilation, groups=16).backward(seen.double())
    assert (convolution.weight.grad - exact.grad).norm() < 0.01 * exact.grad.norm()


@pytest.mark.parametrize("bias", [True, False])
def test_feed_forward_multiplies_three_views(images, bias):
    block = MultiScaleFeedForward(8, expansion=2.66, bias=bias)
    assert block.dwconv1.out_channels == 21  # 8 * 2.66 rounded down
    a, b, c = block.project_in(images).chunk(3, dim=1)
    expected = block.project_out(F.gelu(block.dwconv1(a)) * block.dwconv2(b) * block.dwconv3(c))
    torch.testing.assert_close(block(images), expected)


def test_feed_forward_sees_seven_pixels():
    block = MultiScaleFeedForward(4).double()
    x = torch.randn(1, 4, 15, 17, dtype=torch.float64)
    changed = x.clone()
    changed[..., 7, 8] += 1
    rows, columns = torch.nonzero((block(changed) - block(x)).abs().sum(1)[0] > 1e-12, as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 10, 5, 11)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(37, 50), (16, 3), (1, 2)])
def test_feed_forward_in_pieces_is_the_whole_one(bias, size, monkeypatch):
    monkeypatch.setattr(blocks, "PIECE_NUMBERS", 1)  # pieces of at most 16 x 16 pixels
    block = MultiScaleFeedForward(4, bias=bias).double()
    x = torch.randn(2, 4, *size, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    whole = block(x)
    with torch.no_grad():
        in_pieces = block(x)
    torch.testing.assert_close(in_pieces, whole.detach(), rtol=0, atol=1e-14)
    assert in_pieces.is_contiguous(memory_format=torch.channels_last)


def test_mlp_is_two_matrices_around_a_gelu(images):
    block = Mlp(8, expansion=2.5)
    pixels = images.permute(0, 2, 3, 1)
    hidden = F.gelu(pixels @ block.project_in.weight[:, :, 0, 0].mT + block.project_in.bias)
    assert hidden.shape[-1] == 20
    expected = hidden @ block.project_out.weight[:, :, 0, 0].mT + block.project_out.bias
    torch.testing.assert_close(block(images), expected.permute(0, 3, 1, 2))
