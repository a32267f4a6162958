"""Bi-level routing attention inside another network: two stages of a backbone in the style of YOLOv8.

python scripts/examples/attention_elsewhere.py

`BiFormerBlock` takes and gives (batch, channels, height, width), so it stands in `nn.Sequential` like a convolution.
`BiLevelRoutingAttention` has the channels last, as the released module. With `region_size` both take images of any
size. A few optimiser steps on random images show that gradients reach every weight.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hsidenoise import BiFormerBlock, BiLevelRoutingAttention


class Conv(nn.Sequential):
    """Convolution without bias, batch norm, SiLU: the brick of YOLOv8."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__(nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.SiLU())


class ResidualAttention(nn.Module):
    """Attention alone, with a residual path, for features with the channels first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = BiLevelRoutingAttention(channels, num_heads=4, n_win=None, region_size=4, topk=4)

    def forward(self, x: Tensor) -> Tensor:
        """Add what each region finds in the four regions most like it."""
        attended: Tensor = self.attention(x.permute(0, 2, 3, 1))
        return x + attended.permute(0, 3, 1, 2)


def make_backbone() -> nn.Sequential:
    """Features at strides 8 and 16, the attention behind the convolutions of each stage."""
    return nn.Sequential(
        nn.Sequential(Conv(3, 16, 2), Conv(16, 32, 2), Conv(32, 64, 2)),
        BiFormerBlock(64, num_heads=4, n_win=None, region_size=8, topk=4),
        Conv(64, 128, 2),
        ResidualAttention(128),
    )


def main() -> None:
    torch.manual_seed(0)
    backbone = make_backbone()
    images = torch.rand(2, 3, 200, 136)  # no multiple of the regions
    features = images
    for layer in backbone:
        features = layer(features)
        weights = sum(weight.numel() for weight in layer.parameters())
        print(f"{type(layer).__name__:<18} {tuple(features.shape)!s:<20} {weights:>8,} parameters")
    print(f"{'together':<39} {sum(weight.numel() for weight in backbone.parameters()):>8,} parameters")

    head = nn.Linear(128, 1)
    network = nn.Sequential(backbone, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    brightness = images.mean((1, 2, 3))[:, None]
    for step in range(3):
        optimiser.zero_grad()
        loss = (network(images) - brightness).square().mean()
        loss.backward()
        optimiser.step()
        reached = sum(weight.grad is not None for weight in network.parameters())
        print(f"step {step + 1}: loss {loss.item():.4f}, gradients in {reached} of {len(list(network.parameters()))}")


if __name__ == "__main__":
    main()
