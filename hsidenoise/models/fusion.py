"""CAFM, HCANet's fusion of convolution and attention between channels.

Paper: Hu et al., "Hybrid Convolutional and Attention Network for Hyperspectral Image Denoising", IEEE GRSL 2024,
arXiv 2403.10067, section II-B.

What differs from the released code, and why:

- The local branch splits pixels from channels properly. The released code reads channels-first memory as if it were
  channels-last, which scatters every pixel over the whole image and makes the output depend on the size of the
  tile. ``released_local_branch=True`` brings that back, for released weights.
- The 1x1 fusion of the local branch and the grouped 3x3 convolution after it are applied as the one convolution
  that they compose to (and a map of the fusion's bias, which differs at the border). Weights and output are the
  same; the nine intermediate maps per channel are never made, which is several times faster.
- Two-dimensional convolutions, as everywhere in this HCANet.

The local branch of the paper, 1x1 convolution, channel shuffle and a 3x3x3 convolution along the spectrum, is
:class:`LocalBranch` of HCANet-BRA; in the released code the volume of that convolution has a depth of one.
"""

from __future__ import annotations

from functools import reduce
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hsidenoise.models.blocks import (
    in_compute_type,
    in_pieces,
    pad_pixels,
    pieces,
    pointwise,
    pointwise_padded,
    surroundings,
)

LOCAL_MAPS = 9
"""Maps per channel of a head that the local branch fuses q, k and v into (released code; one per tap of 3x3)."""
NORM_FLOOR = 1e-12
"""Smallest norm that q and k are divided by (that of torch.nn.functional.normalize)."""
_POSITIONS, _FEWEST_PARTS = 4, 6  # of the spectral axis, convolved together on a CPU; fewer parts gain nothing


class ConvAttentionFusion(nn.Module):
    """HCANet's CAFM: attention between channels plus a local convolution, from the same q, k and v.

    Global: q and k of every head are normalised over the pixels, their products (channels x channels of a head)
    times a learnt temperature go through a softmax and weigh the channels of v. Local: the 3 * heads planes that
    belong to one channel of a head are fused to nine maps, and those go through a 3x3 convolution of their own.

    Args:
        channels: Channels in and out, a multiple of ``heads``.
        heads: Number of heads.
        bias: Whether the 1x1 and depth-wise convolutions have one (the local branch always does).
        released_local_branch: Reshape channels-first memory as the released code does, for weights trained so.

    Raises:
        ValueError: If ``channels`` is not a multiple of ``heads``.
    """

    def __init__(self, channels: int, heads: int, bias: bool = False, released_local_branch: bool = False) -> None:
        super().__init__()
        _check_heads(channels, heads)
        self.heads = heads
        self.released_local_branch = released_local_branch
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=bias)
        self.qkv_dwconv = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=bias)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=bias)
        self.fc = nn.Conv2d(3 * heads, LOCAL_MAPS, 1)
        width = channels // heads
        self.dep_conv = nn.Conv2d(LOCAL_MAPS * width, channels, 3, padding=1, groups=width)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Add the global and the local branch."""
        if in_pieces(x):
            return self._by_pieces(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        qkv = self.qkv_dwconv(self.qkv(x))
        return cast(Tensor, self.project_out(_attend(qkv, self.temperature)) + self._convolve(qkv))

    def _convolve(self, qkv: Tensor) -> Tensor:
        """Local branch: ``dep_conv(fc(.))`` as the one convolution that both compose to."""
        batch, triple, height, width = qkv.shape
        if self.released_local_branch:
            # channels-first memory read as (batch, height, width, 3 * channels)
            qkv = qkv.contiguous().view(batch, height, width, triple).permute(0, 3, 1, 2)
        planes = 3 * self.heads  # that belong to one channel of a head
        local = []
        for kernel in self._kernels():
            # Depth-wise and a sum, not a grouped convolution of all planes of a channel: on a CPU in bfloat16 the
            # backward pass of the latter takes six times as long (96 channels, 64x64 pixels).
            terms = F.conv2d(qkv, kernel, padding=1, groups=triple).permute(0, 2, 3, 1)
            # term by term: sum() takes three times as long in bfloat16
            local.append(reduce(torch.add, terms.reshape(batch, height, width, planes, -1).unbind(-2)))
        # (batch, height, width, channels); one head needs no copy
        summed = local[0] if self.heads == 1 else torch.stack(local, dim=-1).flatten(-2)
        border, rows, columns = self._border(height, width)
        border = border[rows][:, columns].to(summed.dtype)  # (height, width, channels)
        return (summed + border).permute(0, 3, 1, 2)  # (batch, channels, height, width)

    def _kernels(self) -> list[Tensor]:
        """For each head, the depth-wise kernels that ``dep_conv(fc(.))`` composes to, each (3 * channels, 1, 3, 3)."""
        fusion = self.fc.weight[:, :, 0, 0]  # (maps, planes)
        kernels = torch.einsum("omyx,mp->opyx", self.dep_conv.weight, fusion)  # (channels, planes, 3, 3)
        # output channel = channel of a head * heads + head
        kernels = kernels.reshape(-1, self.heads, fusion.shape[1], 3, 3)
        return [kernels[:, head].transpose(0, 1).reshape(-1, 1, 3, 3) for head in range(self.heads)]

    def _border(self, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """What the bias of the fusion and that of ``dep_conv`` add.

        The fusion's bias ends where the padding of ``dep_conv`` begins, so what it adds differs at the border.

        Returns:
            What is added in at most 3 x 3 places, (rows, columns, channels): the corners, the sides and all inside; and
            which of those rows and columns stands for each row and column of the image.
        """
        rows, columns = min(height, 3), min(width, 3)
        with torch.autocast(self.fc.weight.device.type, enabled=False):
            taps = torch.einsum("omyx,m->oyx", self.dep_conv.weight, self.fc.bias).unsqueeze(1)
            places = F.conv2d(taps.new_ones(1, 1, rows, columns), taps, self.dep_conv.bias, padding=1)[0]
        return places.permute(1, 2, 0), _nearest(height, rows, places), _nearest(width, columns, places)

    def _by_pieces(self, pixels: Tensor) -> Tensor:
        """The same for (batch, height, width, channels); q, k and v are the only wide features that are kept whole."""
        batch, height, width, channels = pixels.shape
        weight, shift = in_compute_type(pixels, self.qkv.weight[:, :, 0, 0], self.qkv.bias)
        depthwise, depthwise_shift = in_compute_type(pixels, self.qkv_dwconv.weight, self.qkv_dwconv.bias)
        single = torch.promote_types(weight.dtype, torch.float32)
        products = pixels.new_zeros(batch, channels, channels, dtype=single)  # of q and k, summed over pixels
        squares = pixels.new_zeros(batch, 2 * channels, dtype=single)  # of q and k
        qkv = pixels.new_empty(batch, height, width, 3 * channels, dtype=weight.dtype)
        for piece in pieces(batch, height, width, 3 * channels):
            around, missing = surroundings(pixels, piece, 1)
            wide = pointwise_padded(around, missing, weight, shift).permute(0, 3, 1, 2)
            part = F.conv2d(wide, depthwise, depthwise_shift, groups=3 * channels).permute(0, 2, 3, 1)
            qkv[piece] = part
            part = part.flatten(0, 2).to(single)
            products[piece.image] += part[:, :channels].mT @ part[:, channels : 2 * channels]
            squares[piece.image] += part[:, : 2 * channels].square().sum(dim=0)
        matrix = self._attention_and_output_map(products, squares)
        matrix, shift = in_compute_type(pixels, matrix, self.project_out.bias)
        values = qkv[..., 2 * channels :]
        out = torch.stack([pointwise(image, mix, shift) for image, mix in zip(values, matrix, strict=True)])
        kernels = in_compute_type(pixels, *self._kernels())
        border, rows, columns = self._border(height, width)
        border = border.to(out.dtype)
        strip = qkv
        for piece in pieces(batch, height, width, 3 * channels):
            around, missing = surroundings(qkv, piece, 1)
            if self.released_local_branch:
                if piece.columns.start == 0:  # the first of its rows
                    strip = _scattered_rows(qkv[piece.image], piece.rows.start - 1, piece.rows.stop + 1)
                around = strip[:, :, max(0, piece.columns.start - 1) : piece.columns.stop + 1]
            wide = pad_pixels(around, missing).permute(0, 3, 1, 2)
            shift = border[rows[piece.rows]][:, columns[piece.columns]]
            here = out[piece].add_(shift)
            here = here.view(*here.shape[:3], -1, self.heads)
            for head, kernel in enumerate(kernels):
                terms = F.conv2d(wide, kernel, groups=3 * channels).permute(0, 2, 3, 1)
                here[..., head] += reduce(torch.add, terms.chunk(3 * self.heads, dim=-1))
        return out

    def _attention_and_output_map(self, products: Tensor, squares: Tensor) -> Tensor:
        """The matrices that take the values of each image to the global branch's output, one each."""
        lengths = squares.sqrt().clamp_min(NORM_FLOOR)
        cosines = products / lengths[:, : products.shape[1], None] / lengths[:, None, products.shape[1] :]
        projects = self.project_out.weight[:, :, 0, 0].to(cosines.dtype).chunk(self.heads, dim=1)
        matrices = []
        for head, (rows, project) in enumerate(zip(cosines.chunk(self.heads, dim=1), projects, strict=True)):
            own = rows.chunk(self.heads, dim=2)[head]  # (batch, channels of the head, channels of the head)
            matrices.append(project @ (own * self.temperature[head]).softmax(dim=-1))
        return torch.cat(matrices, dim=-1)


def _scattered_rows(image: Tensor, start: int, stop: int) -> Tensor:
    """Some rows of one channels-last image whose channels-first memory is read as (1, height, width, channels).

    A row of the result is a piece of memory, so it takes the pixels of few channels; all of them are never copied.
    """
    height, width, channels = image.shape[1:]
    start, stop = max(0, start), min(height, stop)
    pixels = height * width
    first, last = start * width * channels // pixels, -(-stop * width * channels // pixels)  # channels that it takes
    memory = image.flatten(0, 2)[:, first:last].mT.contiguous().flatten()
    skipped = start * width * channels - first * pixels
    return memory[skipped : skipped + (stop - start) * width * channels].view(1, stop - start, width, channels)


def _nearest(length: int, short: int, like: Tensor) -> Tensor:
    """Which pixel of a short axis stands for each of a long one: the ends for the ends, the middle for all between."""
    index = torch.arange(length, device=like.device).clamp_max(1)
    return torch.where(torch.arange(length, device=like.device) == length - 1, short - 1, index)


def _inverse_norm(x: Tensor) -> Tensor:
    """One over the norm over the pixels, in single precision at least, (batch, heads, 1, width)."""
    squares = x.to(torch.promote_types(x.dtype, torch.float32)).square().sum(dim=-2, keepdim=True)
    # The inverse of the floor must itself fit the type, or zero times infinity becomes NaN in half precision; and the
    # floor comes before the root, whose gradient at zero is infinite.
    return squares.clamp_min(max(NORM_FLOOR, torch.finfo(x.dtype).tiny) ** 2).rsqrt()


class ChannelAttention(nn.Module):
    """The global branch of CAFM on its own: attention between the channels of each head, over all pixels.

    References:
        Zamir et al., "Restormer", CVPR 2022, arXiv 2111.09881; arXiv 2403.10067, section II-B.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        _check_heads(channels, heads)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.qkv_dwconv = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=False)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Attend."""
        return cast(Tensor, self.project_out(_attend(self.qkv_dwconv(self.qkv(x)), self.temperature)))


class SpectralConv(nn.Module):
    """3x3x3 convolution over height, width and the channel axis, as one two-dimensional convolution.

    The channels are read as a line of ``channels / features`` positions with ``features`` numbers each. The small
    kernel is laid out along the diagonal of a banded channels x channels kernel, or of those of parts of the line: the
    same numbers as a 3-D convolution, by the routines that a processor is best at.

    Args:
        channels: Channels in and out, a multiple of ``features``.
        features: Numbers at each position of the line.
    """

    def __init__(self, channels: int, features: int = 4) -> None:
        super().__init__()
        if channels % features:
            raise ValueError(f"features={features} must divide channels={channels}")
        # (out, tap * in, height, width): four axes, because a channels-last module takes no five
        self.weight = nn.Parameter(torch.empty(features, 3 * features, 3, 3))
        self.bias = nn.Parameter(torch.zeros(features))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        line = channels // features
        self.register_buffer("neighbours", _bands(line, line, -1), persistent=False)
        self.line, self.features = line, features

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Convolve."""
        channels = self.line * self.features
        neighbours = cast(Tensor, self.neighbours).to(self.weight.dtype)
        taps = self.weight.reshape(len(self.bias), 3, self.features, 3, 3)  # (out, tap, in, height, width)
        bias = self.bias.repeat(self.line)
        parts = self.line // _POSITIONS
        if parts >= _FEWEST_PARTS and self.line % _POSITIONS == 0 and in_pieces(x):  # most of the banded kernel is zero
            part = torch.einsum("tpq,otiyx->poqiyx", _bands(_POSITIONS, _POSITIONS + 2, 0).to(taps), taps)
            kernel = part.reshape(channels // parts, -1, 3, 3).repeat(parts, 1, 1, 1)
            pixels = F.pad(x.permute(0, 2, 3, 1), (self.features, self.features))
            seen = pixels.unfold(3, kernel.shape[1], channels // parts).flatten(3).permute(0, 3, 1, 2)
            return F.conv2d(seen, kernel, bias, padding=1, groups=parts)
        banded = torch.einsum("tpq,otiyx->poqiyx", neighbours, taps)
        kernel = banded.reshape(channels, channels, 3, 3)  # (out, in, height, width)
        return F.conv2d(x, kernel, bias, padding=1)


def _bands(rows: int, columns: int, first: int) -> Float[Tensor, "3 rows columns"]:
    """Which tap places what: row p looks at column p + first + tap.

    Filled, as torch.diag without memory (`load_model`) is written in Python and loads a compiler first, a second of
    every command.
    """
    taps = torch.zeros(3, rows, columns)
    for tap in range(3):
        taps[tap].diagonal(tap + first).fill_(1)
    return taps


class LocalBranch(nn.Module):
    """Local branch of CAFM: 1x1 convolution, channel shuffle, 3x3x3 convolution."""

    def __init__(self, channels: int, features: int = 4) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 1)
        self.shuffle = nn.ChannelShuffle(features)
        self.spectral = SpectralConv(channels, features)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Mix the channels of a pixel, then look at its neighbours in space and along the channels."""
        return cast(Tensor, self.spectral(self.shuffle(self.mix(x))))


def _check_heads(channels: int, heads: int) -> None:
    if channels % heads:
        raise ValueError(f"{channels} channels cannot be split into {heads} heads: give a multiple")


def _attend(qkv: Tensor, temperature: Tensor) -> Tensor:
    """Attention between the channels of each head, (batch, channels, height, width), from q, k and v stacked."""
    heads, height, width = len(temperature), *qkv.shape[-2:]
    pixels = qkv.permute(0, 2, 3, 1).reshape(len(qkv), height * width, 3, heads, -1)
    q, k, v = pixels.permute(2, 0, 3, 1, 4).unbind(0)
    # each (batch, heads, pixels, width); k is divided by its norm after the product, where it is small, and q
    # before, so that the product stays in the range of half precision
    affinity = (q * _inverse_norm(q).to(q.dtype)).transpose(-1, -2) @ k  # (batch, heads, width, width)
    attention = (affinity * _inverse_norm(k) * temperature).softmax(dim=-1).to(v.dtype)
    mixed = (v @ attention.transpose(-1, -2)).transpose(1, 2)  # (batch, pixels, heads, width)
    return mixed.reshape(len(qkv), height, width, -1).permute(0, 3, 1, 2)  # (batch, channels, height, width)
