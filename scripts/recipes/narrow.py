"""Make narrower HCANet-BRA weights of trained ones: the start of a training that soon makes up for what was left out.

    python scripts/recipes/narrow.py hcanet-bra narrow.safetensors --expansion 1 --attention none none bra \
        --clean data/cave/train/clay.mat data/cave/train/feathers.mat

Of each feed-forward network the products ``gelu(a) * b * c`` that its output needs least are left out, a few at a time,
and the map that reads them is fitted anew by least squares: to what the products of noisy cubes are, made of clean
scenes. Attention that the narrower network does not have is left out before.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hsidenoise import corrupt, load_model
from hsidenoise.data.scenes import read_clean
from hsidenoise.models import create_model
from hsidenoise.models.hcanet_bra import HCANetBRA
from hsidenoise.models.unet import CAMixingBlock
from hsidenoise.models.weights import read_header, save_weights
from hsidenoise.signal.planes.estimate import denoise_by_planes

CASES = ("gaussian-10", "gaussian-50", "mixture")
SIDE = 128
OWN = ("format", "model", "config")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read weights, write narrower ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("output", type=Path)
    parser.add_argument("--expansion", type=float, required=True, help="width of the groups of MSFN")
    parser.add_argument("--attention", nargs=3, required=True, help="of each level: bra, channel or none")
    parser.add_argument("--clean", nargs="+", type=Path, required=True, help="clean scenes, of those trained on")
    given = parser.parse_args(arguments)
    try:
        wide = load_model(given.weights)
        if not isinstance(wide, HCANetBRA) or not 0 < given.expansion <= wide.config["expansion"]:
            raise ValueError(f"expects HCANet-BRA, and an expansion up to its own; {given.weights} is {wide.config}")
        narrow = create_model(
            "hcanet-bra", **{**wide.config, "expansion": given.expansion, "attention": given.attention}
        )
        if any(name not in wide.state_dict() for name in narrow.state_dict()):
            raise ValueError(f"{given.attention}: attention that {given.weights} does not have")
        scenes = [read_clean(path)[:, -SIDE:, -SIDE:] for path in given.clean]
    except (ValueError, OSError) as error:
        parser.error(str(error))
    blocks, thin = ([block for block in each.modules() if isinstance(block, CAMixingBlock)] for each in (wide, narrow))
    for block, other in zip(blocks, thin, strict=True):
        block.attention = block.attention if other.attention is not None else None
    statistics = products(wide, [block.feed_forward for block in blocks], scenes)
    there, here = wide.state_dict(), narrow.state_dict()
    narrow.load_state_dict({**here, **{name: there[name] for name in here if here[name].shape == there[name].shape}})
    for block, other, energy in zip(blocks, thin, statistics, strict=True):
        take(block.feed_forward, other.feed_forward, energy)
    kept = {name: text for name, text in read_header(given.weights).items() if name not in OWN and "val/" not in name}
    save_weights(given.output, narrow, name="hcanet-bra", metadata=kept)


def products(network: nn.Module, parts: list[nn.Module], scenes: Sequence[np.ndarray]) -> list[Tensor]:
    """Second moments of what each feed-forward network makes before its last map, (width, width)."""
    found = [torch.zeros(()).double() for _ in parts]

    def keep(number: int, inputs: tuple[Tensor]) -> None:
        flat = inputs[0].detach().permute(0, 2, 3, 1).flatten(0, 2).double()
        found[number] = found[number] + flat.mT @ flat / len(flat)

    for number, part in enumerate(parts):
        part.project_out.register_forward_pre_hook(lambda _, inputs, number=number: keep(number, inputs))
    for clean in scenes:
        for case in CASES:
            noisy = torch.from_numpy(corrupt(clean, case, seed=1).noisy)
            denoise_by_planes(noisy, improve=torch.enable_grad()(network.improve))  # with gradients, not in pieces
    return found


@torch.no_grad()
def take(wide: nn.Module, narrow: nn.Module, energy: Tensor) -> None:
    """Give a narrower feed-forward network what a wider one needs most."""
    out = wide.project_out.weight[:, :, 0, 0].double()
    size = narrow.project_out.in_channels
    energy = energy + 1e-9 * energy.diagonal().mean() * torch.eye(len(energy)).double()
    kept = torch.arange(len(energy))
    while True:
        inverse = torch.linalg.inv(energy[kept][:, kept])
        fitted = out @ energy[:, kept] @ inverse
        more = len(kept) - size
        if not more:
            break
        lost = fitted.square().sum(0) / inverse.diagonal()  # by leaving one out, the others fitted anew
        kept = kept[lost.argsort()[max(1, more // 8) :].sort().values]
    narrow.project_out.weight.copy_(fitted[:, :, None, None])
    narrow.project_in.weight.copy_(torch.cat([third[kept] for third in wide.project_in.weight.chunk(3)]))
    for name in ("dwconv1", "dwconv2", "dwconv3"):
        getattr(narrow, name).weight.copy_(getattr(wide, name).weight[kept])


if __name__ == "__main__":
    main()
