"""Put bi-level routing attention into a detector that a YAML file describes as YOLOv8 model files do: a worked example.

python scripts/yolo_style_model.py configs/examples/yolo_style_bra.yaml --size 640

The file is a list of ``[from, repeats, module, args]``. The parser takes the channels that come in from the layers that
``from`` names; ``args`` are the rest of the module's arguments, and the last of them may be a mapping of arguments by
name. ``BiLevelRoutingAttention`` and ``BiFormerBlock`` stand in such a list like any convolution. To use them in a
detector library, register ``yolo_style_layers.ChannelsFirstAttention`` or ``hsidenoise.BiFormerBlock`` with its parser
as a module that takes the channels in and gives as many.

Printed are the layers, what they give and weigh, and the loss of a few optimiser steps on made-up images (one coloured
square each, none seen twice), so that gradients are known to arrive.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
import yaml
from jaxtyping import Float, Int
from torch import Tensor, nn
from yolo_style_layers import SPPF, C2f, ChannelsFirstAttention, Concat, Conv, Detect, decode

from hsidenoise import BiFormerBlock


class DetectionModel(nn.Module):
    """The layers of a description, each fed by those that it names.

    Args:
        description: Content of the YAML file.
        scale: A key of its ``scales``; None for the first.

    Raises:
        ValueError: If the description is not one of a network; the message says where.
    """

    def __init__(self, description: Any, scale: str | None = None) -> None:
        super().__init__()
        nc, depth, width, most = _header(description, scale)
        self.layers = nn.ModuleList()
        self.rows: list[tuple[Any, int, str]] = []  # from, repeats, module: as written
        self.sources: list[list[int]] = []
        channels = [3]  # of the image, then of each layer
        for index, row in enumerate([*description["backbone"], *description["head"]]):
            if not isinstance(row, list) or len(row) != 4:
                raise ValueError(f"layer {index}: expected [from, repeats, module, args], found {row!r}")
            name = row[2]
            try:
                if name not in MODULES:
                    raise ValueError(f"unknown module; known: {', '.join(MODULES)}")
                sources = _sources(row[0], index)
                args, options = _arguments(row[3], nc)
                repeats = _count("repeats", row[1])
                repeats = max(round(repeats * depth), 1) if repeats > 1 else repeats
                incoming = [channels[source + 1] for source in sources]
                if name in SCALED:
                    if not args:
                        raise ValueError("args must start with the number of channels out")
                    args[0] = _multiple_of_8(min(_count("channels out", args[0]), most) * width)
                layer, out = _make(name, incoming, repeats, args, options)
            except (
                ValueError,
                TypeError,
                RuntimeError,
                ArithmeticError,
            ) as error:  # what a wrong argument of any kind ends in
                raise ValueError(f"layer {index} ({name}): {_first_line(error)}") from error
            self.layers.append(layer)
            self.rows.append((row[0], repeats, name))
            self.sources.append(sources)
            channels.append(out)
        if not isinstance(self.layers[-1], Detect):
            raise ValueError(f"layer {len(self.layers) - 1} is the last one and must be Detect, not {self.rows[-1][2]}")

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> list[Tensor]:
        """Maps of the head, (batch, 4 * REG_MAX + classes, height / stride, width / stride) each."""
        needed = {source for sources in self.sources for source in sources}
        outputs: dict[int, Any] = {-1: images}
        result: Any = images
        for index, (layer, sources) in enumerate(zip(self.layers, self.sources, strict=True)):
            taken = [outputs[source] for source in sources]
            try:
                result = layer(taken if isinstance(layer, (Concat, Detect)) else taken[0])
            except (ValueError, TypeError, RuntimeError) as error:
                height, width = images.shape[2:]
                message = f"layer {index} ({self.rows[index][2]}) cannot take an image of {height} x {width}"
                raise ValueError(f"{message}: {_first_line(error)}") from error
            if index in needed:
                outputs[index] = result
        return cast(list[Tensor], result)


MODULES: dict[str, type[nn.Module]] = {
    "Conv": Conv,
    "C2f": C2f,
    "SPPF": SPPF,
    "nn.Upsample": nn.Upsample,
    "Concat": Concat,
    "BiLevelRoutingAttention": ChannelsFirstAttention,
    "BiFormerBlock": BiFormerBlock,
    "Detect": Detect,
}

#: Modules whose first argument is a number of channels out, to which the width of the scale applies.
SCALED = ("Conv", "C2f", "SPPF")


def _header(description: Any, scale: str | None) -> tuple[int, float, float, float]:
    """Number of classes, factor of repeats, factor of channels, most channels."""
    if not isinstance(description, Mapping):
        raise ValueError("expected a mapping with nc, backbone and head")
    for key in ("nc", "backbone", "head"):
        if key not in description:
            raise ValueError(f"the key '{key}' is missing")
    for key in ("backbone", "head"):
        if not isinstance(description[key], list) or not description[key]:
            raise ValueError(f"'{key}' must be a list of layers [from, repeats, module, args]")
    nc = _count("nc", description["nc"])
    scales = description.get("scales")
    if scales is None:
        if scale is not None:
            raise ValueError(f"there are no scales to choose '{scale}' from")
        factors = [description.get("depth_multiple", 1.0), description.get("width_multiple", 1.0), math.inf]
    else:
        if not isinstance(scales, Mapping) or not scales:
            raise ValueError("'scales' must map names to [depth, width, most channels]")
        chosen = next(iter(scales)) if scale is None else scale
        if chosen not in scales:
            raise ValueError(f"unknown scale '{chosen}'; known: {', '.join(map(str, scales))}")
        factors = scales[chosen]
    numbers = isinstance(factors, list) and all(type(factor) in (int, float) and factor > 0 for factor in factors)
    if not numbers or len(factors) != 3:
        raise ValueError(f"a scale is three positive numbers [depth, width, most channels], not {factors!r}")
    depth, width, most = map(float, factors)
    return nc, depth, width, most


def _sources(written: Any, index: int) -> list[int]:
    """Absolute indices of the layers that feed layer ``index``; -1 is the image."""
    sources = written if isinstance(written, list) else [written]
    if not sources or any(type(source) is not int for source in sources):
        raise ValueError(f"from must be a layer or a list of layers, not {written!r}")
    absolute = [source + index if source < 0 else source for source in sources]
    for source, found in zip(sources, absolute, strict=True):
        if found >= index:
            raise ValueError(f"from {source} points forward: only layers before {index} are there")
        if found < -1 or (found == -1 and index > 0):
            raise ValueError(f"from {source} points before the first layer")
    return absolute


def _arguments(written: Any, nc: int) -> tuple[list[Any], dict[str, Any]]:
    """Arguments by place and by name, with ``nc`` and ``None`` (a word in YAML) put in."""
    if not isinstance(written, list):
        raise ValueError(f"args must be a list, not {written!r}")
    args = list(written)
    options = args.pop() if args and isinstance(args[-1], Mapping) else {}
    if not all(isinstance(key, str) for key in options):
        raise ValueError(f"arguments by name need names, not {dict(options)!r}")
    meaning = {"nc": nc, "None": None}
    known = [meaning.get(value, value) if isinstance(value, str) else value for value in args]
    return known, {
        key: meaning.get(value, value) if isinstance(value, str) else value for key, value in options.items()
    }


def _make(
    name: str, incoming: list[int], repeats: int, args: list[Any], options: dict[str, Any]
) -> tuple[nn.Module, int]:
    """A layer and the number of its channels out."""
    kind = MODULES[name]
    if name in ("Concat", "Detect"):
        if repeats != 1:
            raise ValueError("cannot be repeated")
        layer = kind(incoming, *args, **options) if name == "Detect" else kind(*args, **options)
        return layer, sum(incoming)
    if len(incoming) != 1:
        raise ValueError(f"takes one layer, not {len(incoming)}")
    if name == "C2f":  # its repeats are bottlenecks inside
        return kind(incoming[0], *args, repeats=repeats, **options), args[0]
    width, layers = incoming[0], []
    for _ in range(repeats):
        layers.append(kind(*args, **options) if name == "nn.Upsample" else kind(width, *args, **options))
        width = args[0] if name in SCALED else width
    return layers[0] if repeats == 1 else nn.Sequential(*layers), width


def _count(name: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
    return value


def _multiple_of_8(channels: float) -> int:
    return max(8, math.ceil(channels / 8) * 8)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def load_model(path: Path, scale: str | None = None) -> DetectionModel:
    """Build the network that a file describes.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is not YAML, or not a description of a network.
    """
    try:
        description = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OSError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not YAML: it is not text ({error.reason})") from error
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{path} is not YAML: {error.problem}{line}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {_first_line(error)}") from error
    try:
        return DetectionModel(description, scale)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def draw_squares(
    batch: int, size: int, nc: int, generator: torch.Generator
) -> tuple[Float[Tensor, "batch 3 size size"], Float[Tensor, "batch 4"], Int[Tensor, " batch"]]:
    """Grey noise with one square each, its colour that of its class; images, boxes and classes."""
    colours = torch.rand(nc, 3, generator=torch.Generator().manual_seed(0))
    images = 0.3 * torch.rand(batch, 3, size, size, generator=generator)
    kinds = torch.randint(nc, (batch,), generator=generator)
    boxes = torch.empty(batch, 4)
    for image, box, kind in zip(images, boxes, kinds, strict=True):
        side = int(torch.randint(size // 4, size // 2 + 1, (), generator=generator))
        left, top = (int(torch.randint(size - side + 1, (), generator=generator)) for _ in range(2))
        image[:, top : top + side, left : left + side] += 0.7 * colours[kind][:, None, None]
        box.copy_(torch.tensor([left, top, left + side, top + side]))
    return images, boxes, kinds


def toy_loss(maps: Sequence[Tensor], boxes: Tensor, kinds: Tensor, height: int) -> Float[Tensor, ""]:
    """Cells whose centre is in the square must name its class and its sides, all others no class."""
    found, logits, cells = decode(maps, height)
    x, y, stride = cells.T
    inside = (x > boxes[:, :1]) & (y > boxes[:, 1:2]) & (x < boxes[:, 2:3]) & (y < boxes[:, 3:])  # (batch, cells)
    count = inside.sum().clamp_min(1)
    wanted = inside[..., None] * F.one_hot(kinds, logits.shape[2])[:, None].to(logits)
    off = ((found - boxes[:, None]).abs().mean(dim=2) / stride)[inside].sum()
    wrong = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
    return cast(Tensor, (wrong + off) / count)


def train(model: DetectionModel, steps: int, batch: int, size: int, generator: torch.Generator) -> list[float]:
    """Loss of each of some optimiser steps, every one on squares not seen before."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    nc = cast(Detect, model.layers[-1]).nc
    losses = []
    model.train()
    for _ in range(steps):
        images, boxes, kinds = draw_squares(batch, size, nc, generator)
        loss = toy_loss(model(images), boxes, kinds, size)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def layer_table(model: DetectionModel, images: Tensor) -> tuple[list[str], list[Tensor]]:
    """Lines that describe every layer, and the maps that the images give."""
    shapes: list[str] = []

    def note(_layer: nn.Module, _taken: Any, given: Any) -> None:
        given = given if isinstance(given, list) else [given]
        shapes.append(" ".join("x".join(map(str, part.shape[1:])) for part in given))

    hooks = [layer.register_forward_hook(note) for layer in model.layers]
    with torch.no_grad():
        maps = model.eval()(images)
    for hook in hooks:
        hook.remove()
    lines = [f"{'':>3}  {'from':<14}{'repeats':>7}  {'module':<25}{'parameters':>11}  output"]
    for index, (layer, (source, repeats, name), shape) in enumerate(zip(model.layers, model.rows, shapes, strict=True)):
        weight = sum(parameter.numel() for parameter in layer.parameters())
        lines.append(f"{index:>3}  {source!s:<14}{repeats:>7}  {name:<25}{weight:>11,}  {shape}")
    return lines, maps


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="yolo_style_model", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", type=Path, help="YAML description of the network")
    parser.add_argument("--scale", help="key of its scales (default: the first)")
    parser.add_argument("--size", default="640", help="of the image: a side, or HEIGHTxWIDTH (default: 640)")
    parser.add_argument("--steps", type=int, default=20, help="optimiser steps; 0 for none (default: 20)")
    parser.add_argument("--batch", type=int, default=8, help="images a step (default: 8)")
    parser.add_argument("--train-size", type=int, default=128, help="side of the images to train on (default: 128)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and images (default: 0)")
    options = parser.parse_args(arguments)
    try:
        height, width = _size(options.size)
        if options.steps < 0 or options.batch < 1 or options.train_size < 32:
            raise ValueError("--steps must be at least 0, --batch at least 1, --train-size at least 32")
        torch.manual_seed(options.seed)  # of the weights; the images have a generator of their own
        generator = torch.Generator().manual_seed(options.seed)
        model = load_model(options.file, options.scale)
        lines, maps = layer_table(model, torch.rand(1, 3, height, width, generator=generator))
        print(*lines, sep="\n")
        print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters; {height} x {width} gives:")
        for grid in maps:
            print(f"  stride {height // grid.shape[2]:>2}: {tuple(grid.shape)}")
        boxes, logits, _ = decode(maps, height)
        print(f"  decoded: boxes {tuple(boxes.shape)}, class logits {tuple(logits.shape)}")
        if options.steps == 0:
            return 0
        losses = train(model, options.steps, options.batch, options.train_size, generator)
    except (OSError, ValueError) as error:
        print(f"yolo_style_model: error: {error}", file=sys.stderr)
        return 2
    shown = ", ".join(f"{loss:.2f}" for loss in losses[:: max(1, options.steps // 10)])
    few = max(1, options.steps // 5)
    first, last = sum(losses[:few]) / few, sum(losses[-few:]) / few
    print(f"loss on coloured squares, {options.train_size} x {options.train_size}: {shown}")
    print(f"mean of the first {few} steps {first:.2f}, of the last {few} {last:.2f}")
    return 0 if last < first else 1


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"--size {text}: expected a side such as 640, or HEIGHTxWIDTH such as 480x640")
    return int(parts[0]), int(parts[-1])


if __name__ == "__main__":
    raise SystemExit(main())
