"""Reduction of the keys and values of a region before others attend to them; padding takes no part.

The released bi-level routing attention (Zhu et al., CVPR 2023, arXiv:2303.08810) offers six ways by name and leaves
two of them, "fracpool" and "conv", unwritten. All of them are here, on regions of any size, and with a mask: an average
is of real pixels, a maximum is one of real pixels, a convolution sees zeros, and a pooled key that saw nothing but
padding is itself masked.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

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
