"""The block of BiFormer: local positional encoding, bi-level routing attention, and a perceptron for every pixel.

Paper: Zhu et al., "BiFormer: Vision Transformer with Bi-Level Routing Attention", CVPR 2023, arXiv:2303.08810,
section 3.3 and figure 3. The names in the state dict, the order of the operations and the constants (layer norm with
eps 1e-6, exact GELU) are those of the released code (github.com/rayleizhu/BiFormer, ``models/biformer.py``: ``Block``),
so the blocks of its first three stages load strictly:

====================================  =========================================================================
``pos_embed``                         depth-wise convolution, unless ``before_attn_dwconv=0``
``norm1``, ``norm2``                  layer norms
``attn.qkv.qkv``, ``.wo``, ``.lepe``  attention; with ``param_routing`` also ``attn.router.emb``
``mlp.0``, ``mlp.3``                  linear maps of the perceptron; with ``mlp_dwconv`` also ``mlp.1.dwconv``
``gamma1``, ``gamma2``                layer scale, where ``layer_scale_init_value`` is positive
====================================  =========================================================================

The published tiny, small and base networks use ``n_win=7``, heads of 32 channels, ``mlp_ratio=3``, ``side_dwconv=5``
and ``topk`` 1, 4 and 16. Their fourth stage (``topk=-2`` there) is dense attention without routing: not this block.

What differs: keys and values are not pooled unless asked for (the released block pools by default, the published
networks do not), the positional encoding keeps the size of the image for every odd kernel (there for 3 alone), and a
wrong argument is a ValueError that names it.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hsidenoise.models.attention.bra import BiLevelRoutingAttention
from hsidenoise.models.blocks import LayerNorm2d

#: Added to the variance in the layer norms, as released; PyTorch's default is ten times that.
NORM_EPS = 1e-6


class BiFormerBlock(nn.Module):
    """``x += dwconv(x); x += attention(norm(x)); x += perceptron(norm(x))``, images in and out.

    Args:
        dim: Channels in and out.
        num_heads: Heads of the attention; divides ``dim``.
        n_win: Regions per side, as released, which must then divide height and width (or give ``auto_pad=True``).
            None with ``region_size``.
        topk: Regions that each region attends to, at least 1.
        mlp_ratio: Width of the perceptron's hidden layer relative to ``dim``, rounded down.
        side_dwconv: Size of the depth-wise convolution of the values inside the attention; 0 for none.
        region_size: Side of a region in pixels, in place of ``n_win``: any height and width, linear cost.
        before_attn_dwconv: Size of the depth-wise convolution that encodes position, odd; 0 for none.
        mlp_dwconv: Whether the perceptron has a 3x3 depth-wise convolution in its hidden layer.
        pre_norm: Normalise what goes into attention and perceptron; else the sums that come out.
        layer_scale_init_value: If positive, both branches are multiplied by learnt factors that start at this value.
        drop_path: Probability, in [0, 1), with which a branch is left out for an image in training.
        attention: Further arguments of ``BiLevelRoutingAttention``, such as ``qk_dim`` or ``auto_pad``.

    Raises:
        ValueError: If an argument is out of its range, or if the attention refuses one.

    Example:
        >>> block = BiFormerBlock(32, num_heads=4, n_win=None, region_size=8, topk=2)
        >>> block(torch.randn(1, 32, 20, 30)).shape
        torch.Size([1, 32, 20, 30])

    References:
        Zhu et al., CVPR 2023, arXiv:2303.08810, section 3.3.
        Touvron et al., "Going deeper with image transformers", ICCV 2021, arXiv:2103.17239 (layer scale).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        n_win: int | None = 7,
        topk: int = 4,
        mlp_ratio: float = 3.0,
        side_dwconv: int = 5,
        *,
        region_size: int | None = None,
        before_attn_dwconv: int = 3,
        mlp_dwconv: bool = False,
        pre_norm: bool = True,
        layer_scale_init_value: float = -1.0,
        drop_path: float = 0.0,
        **attention: Any,
    ) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim={dim} must be at least 1")
        hidden = int(mlp_ratio * dim)
        if hidden < 1:
            raise ValueError(f"mlp_ratio={mlp_ratio} leaves the perceptron of dim={dim} without a hidden channel")
        if before_attn_dwconv < 0 or (before_attn_dwconv and before_attn_dwconv % 2 == 0):
            raise ValueError(f"before_attn_dwconv={before_attn_dwconv} must be odd, or 0 for none")
        kernel = before_attn_dwconv
        self.pos_embed = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim) if kernel else None
        self.norm1 = LayerNorm2d(dim, eps=NORM_EPS)
        self.attn = BiLevelRoutingAttention(
            dim,
            num_heads=num_heads,
            n_win=n_win,
            topk=topk,
            side_dwconv=side_dwconv,
            region_size=region_size,
            **attention,
        )
        self.norm2 = LayerNorm2d(dim, eps=NORM_EPS)
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden),
            _DepthwiseConv(hidden) if mlp_dwconv else nn.Identity(),
            nn.GELU(),
            nn.Linear(hidden, dim),
        )
        self.drop_path = StochasticDepth(drop_path)
        scaled = layer_scale_init_value > 0
        self.gamma1 = nn.Parameter(torch.full((dim,), float(layer_scale_init_value))) if scaled else None
        self.gamma2 = nn.Parameter(torch.full((dim,), float(layer_scale_init_value))) if scaled else None
        self.pre_norm = pre_norm

    def forward(self, x: Float[Tensor, "batch dim height width"]) -> Float[Tensor, "batch dim height width"]:
        """Mix every pixel with its neighbours, with the regions that matter to it, and with itself.

        Args:
            x: Features. In channels-last memory format nothing is copied on the way; any other is brought there once.

        Returns:
            Features in channels-last memory format.

        Raises:
            ValueError: With ``n_win`` and without ``auto_pad``: if it does not divide height and width.
        """
        x = x.contiguous(memory_format=torch.channels_last)
        if self.pos_embed is not None:
            x = x + self.pos_embed(x)
        x = self._add(x, self.norm1, self.attn, self.gamma1)
        return self._add(x, self.norm2, self.mlp, self.gamma2)

    def _add(self, x: Tensor, norm: nn.Module, branch: nn.Module, gamma: Tensor | None) -> Tensor:
        taken = norm(x) if self.pre_norm else x
        added = branch(taken.permute(0, 2, 3, 1))  # (batch, height, width, dim): a view of channels-last memory
        if gamma is not None:
            added = gamma * added
        x = x + self.drop_path(added.permute(0, 3, 1, 2))
        return x if self.pre_norm else cast(Tensor, norm(x))


class StochasticDepth(nn.Module):
    """In training, leave out whole images of a residual branch at random, and scale up those that are kept.

    Random numbers come from PyTorch's generator, as those of its dropout do.

    References:
        Huang et al., "Deep networks with stochastic depth", ECCV 2016, arXiv:1603.09382.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise ValueError(f"drop_path={probability} must be a probability in [0, 1)")
        self.probability = probability

    def forward(self, branch: Float[Tensor, "batch dim height width"]) -> Float[Tensor, "batch dim height width"]:
        """Keep or leave out."""
        if not self.training or self.probability == 0:
            return branch
        kept = 1 - self.probability
        factor = branch.new_empty(branch.shape[0], 1, 1, 1).bernoulli_(kept) / kept
        return branch * factor


class _DepthwiseConv(nn.Module):
    """3x3 depth-wise convolution of pixels laid out (batch, height, width, channels); named as released."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, pixels: Tensor) -> Tensor:
        return cast(Tensor, self.dwconv(pixels.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
