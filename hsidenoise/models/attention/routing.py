"""Region-to-region routing: which regions each region attends to, and how much.

Equations (2) and (3) of the BiFormer paper (Zhu et al., CVPR 2023, arXiv:2303.08810). The affinities of some regions at
a time are computed and forgotten; where gradients are wanted, those of the chosen pairs alone are computed again.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
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

    Example:
        >>> router = TopkRouting(8, topk=2, qk_scale=1.0, param_routing=False, diff_routing=False)
        >>> weight, index = router(torch.randn(1, 6, 8), torch.randn(1, 6, 8))
        >>> weight.shape, index.shape
        (torch.Size([1, 6, 2]), torch.Size([1, 6, 2]))

    References:
        Zhu et al., CVPR 2023, arXiv:2303.08810, equations (2) and (3).
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

        Args:
            query: Mean query of each region.
            key: Mean key of each region.

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

    Args:
        query: Scaled mean queries.
        key: Mean keys.
        topk: How many, clamped to the number of regions.

    Example:
        >>> value, index = best_regions(torch.eye(3)[None], torch.eye(3)[None], topk=1)
        >>> index.flatten().tolist()
        [0, 1, 2]
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
