"""The blocks against obvious second implementations, and what PyTorch gets wrong on a CPU in bfloat16."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from hsidenoise.models import blocks as module
from hsidenoise.models.blocks import (
    SHORTEST_SIDE,
    Downsample,
    LayerNorm2d,
    Piece,
    Upsample,
    in_compute_type,
    in_pieces,
    pad_pixels,
    pad_to_multiple,
    pieces,
    pointwise,
    pointwise_padded,
    surroundings,
)
from hsidenoise.models.feed_forward import MultiScaleFeedForward


@pytest.fixture
def images():
    return torch.randn(2, 8, 6, 10, generator=torch.Generator().manual_seed(0))


def is_channels_last(x):
    return x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm_is_restormers(images, bias):
    norm = LayerNorm2d(8, bias=bias)
    torch.nn.init.normal_(norm.weight)
    weight, shift = norm.weight[:, None, None], 0
    centred = images - images.mean(1, keepdim=True)
    if bias:
        torch.nn.init.normal_(norm.bias)
        shift = norm.bias[:, None, None]
    variance = centred.square().mean(1, keepdim=True)
    expected = (centred if bias else images) / torch.sqrt(variance + 1e-5) * weight + shift
    torch.testing.assert_close(norm(images), expected)


def test_layer_norm_copies_nothing_of_channels_last(images):
    norm = LayerNorm2d(8)
    with torch.no_grad():
        assert is_channels_last(norm(images.contiguous(memory_format=torch.channels_last)))


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm_sums_its_gradients_over_many_pixels_in_bfloat16(bias):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 8, 160, 200, generator=generator).bfloat16().contiguous(memory_format=torch.channels_last)
    seen = torch.rand(x.shape, generator=generator)

    def gradients(dtype):
        norm = LayerNorm2d(8, bias=bias)
        (norm(x.to(dtype)).to(torch.float32) * seen).sum().backward()
        return [parameter.grad for parameter in norm.parameters()]

    for half, single in zip(gradients(torch.bfloat16), gradients(torch.float32), strict=True):
        assert (half - single).norm() < 0.02 * single.norm()


@pytest.mark.parametrize(
    "block",
    [LayerNorm2d(8), MultiScaleFeedForward(8), Downsample(8, 16), Upsample(8, 4)],
    ids=lambda b: type(b).__name__,
)
@pytest.mark.parametrize("grad", [True, False])
def test_memory_format_is_kept_and_changes_nothing(images, block, grad):
    with torch.set_grad_enabled(grad):
        out = block(images.contiguous(memory_format=torch.channels_last))
        assert is_channels_last(out)
        torch.testing.assert_close(out, block(images))
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(grad):
        half = block(images.bfloat16().contiguous(memory_format=torch.channels_last))
    assert half.dtype == torch.bfloat16
    assert is_channels_last(half)
    assert (half - out).abs().max() < 0.03 * out.abs().max()


def test_down_and_up_change_the_size_and_refuse_what_cannot_be(images):
    down, up = Downsample(8, 16)(images), Upsample(8, 12)(images)
    assert (down.shape, up.shape) == ((2, 16, 3, 5), (2, 12, 12, 20))
    with pytest.raises(ValueError, match="out=10 is not a multiple of 4"):
        Downsample(8, 10)


@pytest.mark.parametrize("size", [(5, 9), (8, 9), (37, 50), (5, 3)])
def test_padding_reflects_and_crops_back(size):
    x = torch.randn(2, 3, *size)
    padded, (height, width) = pad_to_multiple(x, 4)
    assert (height, width) == size
    assert padded.shape[2] % 4 == padded.shape[3] % 4 == 0
    expected = F.pad(x, (0, -size[1] % 4, 0, -size[0] % 4), mode="reflect")
    torch.testing.assert_close(padded, expected, rtol=0, atol=0)


@pytest.mark.parametrize("size", [(1, 2), (1, 1), (2, 1)])
def test_padding_repeats_what_is_too_small_to_reflect(size):
    x = torch.randn(1, 3, *size)
    expected = F.pad(x, (0, 8 - size[1], 0, 8 - size[0]), mode="replicate")
    torch.testing.assert_close(pad_to_multiple(x, 8)[0], expected, rtol=0, atol=0)


def test_padding_keeps_type_format_and_what_fits(images):
    with torch.autocast("cpu", torch.bfloat16):
        padded, _ = pad_to_multiple(images.bfloat16().contiguous(memory_format=torch.channels_last), 4)
    assert padded.dtype == torch.bfloat16
    assert is_channels_last(padded)
    assert pad_to_multiple(images, 2)[0] is images
    with pytest.raises(ValueError, match="multiples of 0"):
        pad_to_multiple(images, 0)


sizes = st.integers(1, 90)


@given(batch=st.integers(1, 3), height=sizes, width=sizes, channels=st.sampled_from([1, 100, 3000, 10**6]))
def test_every_pixel_is_in_one_piece_that_is_not_too_large(batch, height, width, channels):
    seen = torch.zeros(batch, height, width, 1)
    for piece in pieces(batch, height, width, channels):
        seen[piece] += 1
        rows, columns = piece.size
        side = max(SHORTEST_SIDE, int((module.PIECE_NUMBERS / channels) ** 0.5))
        assert 0 < rows <= side
        assert 0 < columns <= side
    assert (seen == 1).all()


@given(height=sizes, width=sizes, margin=st.integers(0, 3))
def test_surroundings_are_those_of_the_padded_image(height, width, margin):
    pixels = torch.arange(2.0 * height * width).reshape(1, height, width, 2) + 1
    padded = F.pad(pixels, (0, 0, *[margin] * 4))
    for piece in pieces(1, height, width, 10**6):
        view, missing = surroundings(pixels, piece, margin)
        rows = slice(piece.rows.start, piece.rows.stop + 2 * margin)
        columns = slice(piece.columns.start, piece.columns.stop + 2 * margin)
        assert torch.equal(pad_pixels(view, missing), padded[:, rows, columns])
        assert view.untyped_storage().data_ptr() == pixels.untyped_storage().data_ptr()  # no copy


@pytest.mark.parametrize("bias", [None, torch.tensor([1.0, -2.0, 3.0])])
def test_pointwise_is_a_convolution_and_what_is_padded_stays_zero(bias):
    pixels = torch.randn(2, 6, 7, 4)[:, 1:5, 2:6]  # with gaps
    weight = torch.randn(3, 4)
    expected = F.conv2d(pixels.permute(0, 3, 1, 2), weight[:, :, None, None], bias).permute(0, 2, 3, 1)
    torch.testing.assert_close(pointwise(pixels, weight, bias), expected)
    padded = pointwise_padded(pixels, (1, 0, 0, 2), weight, bias)
    torch.testing.assert_close(padded, F.pad(expected, (0, 0, 1, 0, 0, 2)))


def test_weights_are_cast_to_what_autocast_computes_in():
    x = torch.zeros(1)
    assert in_compute_type(x, None, torch.zeros(1, dtype=torch.float64))[1].dtype is torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        cast = in_compute_type(x, torch.zeros(2), None)
    assert cast[0].dtype is torch.bfloat16
    assert cast[1] is None


def test_pieces_are_for_inference():
    x = torch.zeros(1)
    assert not in_pieces(x)
    with torch.no_grad():
        assert in_pieces(x)
        assert not in_pieces(x.to("meta"))
        assert not torch.compile(in_pieces, backend="eager")(x)


def test_a_piece_knows_its_size():
    assert Piece(slice(0, 1), slice(3, 8), slice(2, 4)).size == (5, 2)
