"""Regions of an image: how they are pooled, and which regions each region attends to, and how much.

Equations (2) and (3) of the BiFormer paper (Zhu et al., CVPR 2023, arXiv:2303.08810). The affinities of some regions at
a time are computed and forgotten; where gradients are wanted, those of the chosen pairs alone are computed again.

Keys and values of a region are reduced before others attend to them. The released code offers six ways by name and
leaves two of them, "fracpool" and "conv", unwritten. All of them are here, on regions of any size, and with a mask: an
average is of real pixels, a maximum is one of real pixels, a convolution sees zeros, and a pooled key that saw nothing
but padding is itself masked.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

#: Affinities computed at a time, in numbers (1 MiB). An image of 2048 x 2048 pixels in regions of 8 has 2**32.
_AFFINITY_BUDGET = 2**18

#: Regions with fewer than these at a time make a slow matrix product.
_LEAST_ROWS = 64

#: Affinities of which the largest is taken first; see ``best_regions``.
_BLOCK = 64


class TopkRouting(nn.Module):
    """Choose, for each region, the regions with which its mean query has the largest dot products.

    Args:
        qk_dim: Width of queries and keys.
        topk: Regions to choose, at least 1.
        qk_scale: Factor of the dot products.
        param_routing: Pass both means through one learnt linear map first.
        diff_routing: Let gradients through the weights into the means. Otherwise the weights are constants.
    """

    def __init__(self, qk_dim: int, topk: int, qk_scale: float, param_routing: bool, diff_routing: bool) -> None:
        super().__init__()
        self.topk = topk
        self.scale = qk_scale
        self.diff_routing = diff_routing
        self.emb = nn.Linear(qk_dim, qk_dim) if param_routing else nn.Identity()

    def forward(
        self,
        query: Float[Tensor, "batch regions qk"],
        key: Float[Tensor, "batch regions qk"],
    ) -> tuple[Float[Tensor, "batch regions topk"], Int[Tensor, "batch regions topk"]]:
        """Choose.

        Returns:
            Softmaxed weights and indices of the chosen regions, best first; of all regions where there are fewer than
            ``topk``.
        """
        if not self.diff_routing:
            query, key = query.detach(), key.detach()
        with torch.autocast(query.device.type, enabled=False):  # two close affinities are one in half precision
            if isinstance(self.emb, nn.Linear):
                query, key = (self.emb(mean.to(self.emb.weight.dtype)) for mean in (query, key))
            wide = torch.promote_types(query.dtype, torch.float32)
            query, key = query.to(wide) * self.scale, key.to(wide)
            best, index = best_regions(query.detach(), key.detach(), self.topk)
            if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad):
                batch = torch.arange(index.shape[0], device=index.device)[:, None, None]
                best = (query[:, :, None] * key[batch, index]).sum(-1)
            return best.softmax(dim=-1), index


@torch.no_grad()
def best_regions(
    query: Float[Tensor, "batch regions qk"],
    key: Float[Tensor, "batch regions qk"],
    topk: int,
) -> tuple[Float[Tensor, "batch regions topk"], Int[Tensor, "batch regions topk"]]:
    """Largest dot products of each query with all keys, and where, largest first.

    On a CPU a partial sort of all affinities takes longer than the affinities. The topk largest lie in the topk blocks
    of the largest maxima, and a maximum is quick: so those blocks are found first, and only they are sorted.
    """
    batch, regions, _ = query.shape
    if torch.compiler.is_compiling():
        few = torch.sym_min(topk, regions)  # type: ignore[no-untyped-call]
        affinity = query @ key.mT
        found = torch.topk(affinity, k=few, dim=-1)
        return found.values, found.indices
    topk = min(topk, regions)
    at_once = max(_LEAST_ROWS, _AFFINITY_BUDGET // regions)
    in_blocks = query.device.type == "cpu" and regions >= 2 * topk * _BLOCK
    value, index = (
        query.new_empty(batch, regions, topk),
        torch.empty(batch, regions, topk, dtype=torch.long, device=query.device),
    )
    padded = -(-regions // _BLOCK) * _BLOCK if in_blocks else regions
    affinity = query.new_full((min(at_once, regions), padded), float("-inf"))
    for image in range(batch):
        for start in range(0, regions, at_once):
            some = query[image, start : start + at_once]
            rows = affinity[: len(some)]
            torch.mm(some, key[image].mT, out=rows[:, :regions])
            largest = _topk_in_blocks if in_blocks else torch.topk
            value[image, start : start + at_once], index[image, start : start + at_once] = largest(rows, topk)
    return value, index


def _topk_in_blocks(affinity: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    blocks = affinity.reshape(len(affinity), -1, _BLOCK)  # (rows, blocks, block)
    block = blocks.amax(-1).topk(topk, dim=-1).indices.sort(dim=-1).values  # (rows, topk)
    few = blocks.gather(1, block[..., None].expand(-1, -1, _BLOCK)).flatten(1)  # (rows, topk * block)
    value, place = few.topk(topk, dim=-1)
    return value, block.gather(1, place // _BLOCK) * _BLOCK + place % _BLOCK


def to_regions(
    x: Float[Tensor, "batch height width dim"], rows: int, cols: int
) -> tuple[Float[Tensor, "batch regions pixels dim"], Bool[Tensor, "regions pixels"] | None]:
    """Fold an image into regions in row-major order; zeros are added below and to the right to complete the last ones.

    Returns:
        Pixels by region, and False where a pixel was added, or None where none was. Every region has a real pixel.

    Example:
        >>> regions, mask = to_regions(torch.zeros(1, 5, 8, 3), 4, 4)
        >>> regions.shape, mask.sum(1).tolist()
        (torch.Size([1, 4, 16, 3]), [16, 16, 4, 4])
    """
    batch, height, width, dim = x.shape
    if _compiled_for_any_size():
        row, col = _positions(height, rows, x.device)[:, None, :, None], _positions(width, cols, x.device)[:, None]
        pixel = row.clamp_max(height - 1) * width + col.clamp_max(width - 1)  # (down, across, rows, cols)
        real = ((row < height) & (col < width)).flatten(2).flatten(0, 1)
        gathered = x.flatten(1, 2).index_select(1, pixel.flatten()).reshape(batch, *real.shape, dim)
        return gathered * real[..., None], real
    down, across = (height + rows - 1) // rows, (width + cols - 1) // cols
    below, right = down * rows - height, across * cols - width
    mask = None
    # A tracer is not asked whether the sizes divide: its graph is for all of them.
    if torch.compiler.is_compiling() or below or right:
        x = F.pad(x, (0, 0, 0, right, 0, below))
        real_rows = torch.arange(down * rows, device=x.device).reshape(down, 1, rows, 1) < height
        real_cols = torch.arange(across * cols, device=x.device).reshape(1, across, 1, cols) < width
        mask = (real_rows & real_cols).reshape(down * across, rows * cols)
    x = x.reshape(batch, down, rows, across, cols, dim).transpose(2, 3)
    return x.reshape(batch, down * across, rows * cols, dim), mask


def from_regions(
    x: Float[Tensor, "batch regions pixels dim"], height: int, width: int, rows: int, cols: int
) -> Float[Tensor, "batch height width dim"]:
    """Unfold regions into the image; what was added to complete them is cut off.

    Example:
        >>> image = torch.rand(1, 5, 8, 3)
        >>> torch.equal(from_regions(to_regions(image, 4, 4)[0], 5, 8, 4, 4), image)
        True
    """
    if _compiled_for_any_size():
        row, col = torch.arange(height, device=x.device)[:, None], torch.arange(width, device=x.device)
        region = row // rows * ((width + cols - 1) // cols) + col // cols
        place = (region * rows + row % rows) * cols + col % cols  # (height, width)
        return x.flatten(1, 2).index_select(1, place.flatten()).reshape(x.shape[0], height, width, x.shape[3])
    batch, _, _, dim = x.shape
    down, across = (height + rows - 1) // rows, (width + cols - 1) // cols
    x = x.reshape(batch, down, across, rows, cols, dim).transpose(2, 3)
    x = x.reshape(batch, down * rows, across * cols, dim)[:, :height, :width]
    # Whether the cut leaves the pixels contiguous depends on the size; a tracer is told, in place of asking.
    return x.clone(memory_format=torch.contiguous_format) if torch.compiler.is_compiling() else x


def _compiled_for_any_size() -> bool:
    """Whether to gather pixels by index: a compiler cannot tell into what a reshape divides sizes, and starts over.

    Not where gradients are wanted, which a gather would add up one by one, nor in an exported graph, which is checked
    at several sizes as it is.
    """
    exporting = getattr(torch.compiler, "is_exporting", None)  # since PyTorch 2.7
    return torch.compiler.is_compiling() and not torch.is_grad_enabled() and not (exporting and exporting())


def _positions(length: int, size: int, device: torch.device) -> Tensor:
    """Where the pixels of each region lie along an axis, (regions, size); those of the last may lie beyond its end."""
    first = torch.arange((length + size - 1) // size, device=device) * size
    return first[:, None] + torch.arange(size, device=device)


POOLINGS = ("identity", "ada_avgpool", "ada_maxpool", "avgpool", "maxpool", "fracpool", "conv")


class KeyValuePooling(nn.Module):
    """Fewer keys and values for each region; the numbers are those of ``BiLevelRoutingAttention``.

    "identity" keeps all; "ada_avgpool" and "ada_maxpool" leave ``per_side`` squared keys; "avgpool" and "maxpool" pool
    by ``ratio`` a side; "fracpool" is fractional max-pooling by ``ratio``, sampled anew for every region in training,
    from torch's generator; "conv" is a depth-wise convolution of stride ``ratio`` for keys and one for values, which
    start as the average.

    References:
        Zhu et al., CVPR 2023, arXiv:2303.08810. Graham, "Fractional max-pooling", 2014, arXiv:1412.6071.
    """

    def __init__(
        self,
        mode: str,
        qk_dim: int,
        dim: int,
        per_side: int = 4,
        ratio: int = 4,
        kernel: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if mode not in POOLINGS:
            raise ValueError(f"kv_downsample_mode '{mode}' is not one of {', '.join(POOLINGS)}")
        named = {"kv_per_win": per_side, "kv_downsample_ratio": ratio, "kv_downsample_kernel": kernel}
        for name, value in named.items():
            whole = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (whole and value >= 1):
                raise ValueError(f"{name}={value} must be a whole number, at least 1")
        self.mode, self.per_side, self.ratio, self.kernel = mode, per_side, ratio, kernel or ratio
        if mode == "fracpool":
            sample = torch.rand(2, generator=torch.Generator().manual_seed(seed), device="cpu")
            self.register_buffer("sample", sample, persistent=False)
        if mode == "conv":
            self.k, self.v = (
                nn.Conv2d(width, width, self.kernel, stride=ratio, groups=width, bias=False) for width in (qk_dim, dim)
            )
            for convolution in (self.k, self.v):
                nn.init.constant_(convolution.weight, self.kernel**-2)

    def forward(
        self,
        k: Float[Tensor, "batch regions pixels qk"],
        v: Float[Tensor, "batch regions pixels dim"],
        rows: int,
        cols: int,
        mask: Bool[Tensor, "regions pixels"] | None = None,
    ) -> tuple[
        Float[Tensor, "batch regions keys qk"],
        Float[Tensor, "batch regions keys dim"],
        Bool[Tensor, "regions keys"] | None,
    ]:
        """Reduce.

        Raises:
            ValueError: If a region is smaller than what is pooled to one key.
        """
        if self.mode == "identity":
            return k, v, mask
        if not all(self._fits(side) for side in (rows, cols)):
            raise ValueError(
                f"kv_downsample_mode '{self.mode}' with kv_downsample_ratio={self.ratio} and "
                f"kv_downsample_kernel={self.kernel} does not fit into regions of {rows} x {cols} pixels; "
                "take a smaller ratio or kernel, or larger regions"
            )
        samples = self._samples(k.shape[1], k.device) if self.mode == "fracpool" else None
        return (
            self._pool(k, rows, cols, mask, samples, values=False),
            self._pool(v, rows, cols, mask, samples, values=True),
            None if mask is None else self._any(mask, rows, cols, samples),
        )

    def _fits(self, side: int) -> bool:
        if self.mode == "conv":
            return side >= self.kernel
        if self.mode == "fracpool":  # windows that overlap begin at different pixels
            return side >= self.ratio and side // self.ratio + self.kernel - 1 <= side
        return self.mode.startswith("ada") or side >= self.ratio

    def _pool(
        self, x: Tensor, rows: int, cols: int, mask: Tensor | None, samples: Tensor | None, *, values: bool
    ) -> Tensor:
        batch, regions, _, width = x.shape
        if mask is not None:
            x = x.masked_fill(~mask[..., None], float("-inf") if "max" in self.mode or samples is not None else 0.0)
        image = x.reshape(batch * regions, rows, cols, width).permute(0, 3, 1, 2)
        image = (self.v if values else self.k)(image) if self.mode == "conv" else self._reduce(image, samples)
        pooled = image.flatten(2).mT.reshape(batch, regions, -1, width)
        if mask is None or self.mode == "conv":
            return pooled
        if "avg" in self.mode:
            share = self._reduce(mask.to(x.dtype).reshape(regions, 1, rows, cols), None).reshape(regions, -1, 1)
            return pooled / share.clamp(min=1e-6)
        return pooled.masked_fill(pooled == float("-inf"), 0.0)

    def _reduce(self, image: Tensor, samples: Tensor | None) -> Tensor:
        if self.mode == "ada_avgpool":
            return F.adaptive_avg_pool2d(image, self.per_side)
        if self.mode == "ada_maxpool":
            return F.adaptive_max_pool2d(image, self.per_side)
        if self.mode == "avgpool":
            return F.avg_pool2d(image, self.ratio)
        if self.mode == "maxpool":
            return F.max_pool2d(image, self.ratio)
        size = [side // self.ratio for side in image.shape[2:]]
        samples = torch.as_tensor(samples, dtype=image.dtype)
        samples = samples.repeat(image.shape[0] // samples.shape[0], 1)[:, None].expand(-1, image.shape[1], -1)
        return F.fractional_max_pool2d(image, self.kernel, output_size=size, _random_samples=samples)

    def _any(self, mask: Tensor, rows: int, cols: int, samples: Tensor | None) -> Tensor:
        """Whether a pooled key saw a real pixel."""
        real = mask.to(torch.float32).reshape(-1, 1, rows, cols)
        convolved = self.mode == "conv"
        seen = F.max_pool2d(real, self.kernel, stride=self.ratio) if convolved else self._reduce(real, samples)
        return seen.reshape(mask.shape[0], -1) > 0

    def _samples(self, regions: int, device: torch.device) -> Tensor:
        """Where the windows lie: a pair of numbers in [0, 1) for each region, shared by keys, values and the batch."""
        if self.training:
            return torch.rand(regions, 2, device=device)
        return cast(Tensor, self.sample).expand(regions, 2)
