"""Pieces cover every pixel once, and give what the whole image gives."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from hsidenoise.models import pieces as module
from hsidenoise.models.pieces import (
    SHORTEST_SIDE,
    Piece,
    in_compute_type,
    in_pieces,
    pad_pixels,
    pieces,
    pointwise,
    pointwise_padded,
    surroundings,
)

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
