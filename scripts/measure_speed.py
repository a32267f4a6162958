"""Time the released formulations against ours, with the same weights and input; print Markdown.

    python scripts/measure_speed.py --threads 1 --sizes 64 128 > data/benchmarks/speed.md
    python scripts/measure_speed.py --device cuda --sizes 128 256 512 --rounds 20 --json speed.json

Networks: `hcanet` (the paper's size), `bra` (bi-level routing attention alone, 48 channels, 8 heads, regions of 8x8
pixels, top-k 4) and `bra-1-head` against their released formulations (tests/as_released.py, held to stored outputs of
the released files); `hcanet-bra` (the shipped default, one pass) and `denoise` (all that `hsidenoise denoise` does with
a cube), which were never released, in float32 and bfloat16. Each is called once to warm up, which is not timed. Then
the formulations of a network take turns, round by round, so that whatever else the machine does meets them all alike.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from as_released import HCANetAsReleased, RoutingAttentionAsReleased

from hsidenoise import BiLevelRoutingAttention, denoise, load_model
from hsidenoise.models.hcanet import load_released_hcanet
from hsidenoise.system.files import commit, write_text
from hsidenoise.system.machine import autocast, describe_machine, find_device
from hsidenoise.training.losses import DenoisingLoss

NETWORKS = ("hcanet", "hcanet-bra", "denoise", "bra", "bra-1-head")
JOBS = ("forward", "train")
BANDS, WIDTH, REGION, TOPK = 31, 48, 8, 4
TRAIN_SIZE = 64
NOTES = """
A formulation is compared with the first of its network: `seconds` is the median of the rounds (the shortest in
brackets), `times` the first's shortest over this one's, as other work on a machine only ever delays, `difference` the
largest difference from the first's output relative to its largest value (of a training step: of the loss). `memory`,
on a GPU alone, is the peak that the first call adds, in MB. A training step is forward, loss, backward and AdamW on
patches of 64x64 pixels, ours with channels-last memory as `hsidenoise train` keeps it."""

Call = Callable[[], Tensor]


def noisy_scene(batch: int, side: int) -> Tensor:
    """Smooth scenes (batch, bands, side, side) on the [0, 1] scale with noise of sigma 50/255, the same each time."""
    axis, spectrum = torch.linspace(0, 1, side), torch.linspace(0.2, 1, BANDS)[:, None, None]
    scene = spectrum * (0.5 + 0.25 * torch.sin(9 * axis)[:, None] + 0.25 * torch.cos(7 * axis))
    return scene + 50 / 255 * torch.randn(batch, BANDS, side, side, generator=torch.Generator().manual_seed(1))


def features(batch: int, side: int) -> Tensor:
    """Features (batch, side, side, channels) as a network has them: smooth, so that regions differ, with some noise."""
    generator = torch.Generator().manual_seed(2)
    coarse = torch.randn(batch, WIDTH, max(2, side // 16), max(2, side // 16), generator=generator)
    smooth = F.interpolate(coarse, (side, side), mode="bilinear", align_corners=False)
    return (smooth + 0.3 * torch.randn(batch, WIDTH, side, side, generator=generator)).permute(0, 2, 3, 1).contiguous()


def modules(network: str, side: int) -> dict[str, nn.Module]:
    """The formulations of a network, with the same weights."""
    torch.manual_seed(0)
    if network == "hcanet":
        released: nn.Module = HCANetAsReleased()
        return {"released": released, "ours": load_released_hcanet(released.state_dict())}
    if network in ("hcanet-bra", "denoise"):
        return {"ours": load_model()}
    if side % REGION or (side // REGION) ** 2 < TOPK:
        raise SystemExit(f"measure_speed: routing attention as released takes sides in multiples of 8, not {side}")
    heads = 1 if network == "bra-1-head" else 8
    released = RoutingAttentionAsReleased(WIDTH, heads, n_win=side // REGION, topk=TOPK)
    ours = BiLevelRoutingAttention(WIDTH, heads, n_win=None, region_size=REGION, topk=TOPK)
    ours.load_state_dict(released.state_dict())
    return {"released": released, "ours": ours}


def forward(module: nn.Module, x: Tensor, precision: Any) -> Call:
    """A forward pass in evaluation mode."""
    module.eval()

    def call() -> Tensor:
        with torch.inference_mode(), autocast(x.device, precision):
            output: Tensor = module(x)
            return output.float()

    return call


def training_step(module: nn.Module, x: Tensor, precision: Any) -> Call:
    """Forward, loss against any target, backward, optimiser."""
    module.train()
    target, loss = x.roll(1, dims=0), DenoisingLoss() if x.shape[1] == BANDS else nn.MSELoss()
    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-5)

    def call() -> Tensor:
        optimiser.zero_grad(set_to_none=True)
        with autocast(x.device, precision):
            output: Tensor = module(x).float()
        value: Tensor = loss(output, target)
        value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        return value.detach()

    return call


def whole(module: nn.Module, x: Tensor, precision: Any) -> Call:
    """`denoise` of a cube, from array to array."""
    cube = x[0].cpu().contiguous().numpy()
    return lambda: torch.from_numpy(denoise(cube, module, precision=precision))


def calls(network: str, job: str, side: int, batch: int, device: torch.device) -> Iterator[tuple[str, Call]]:
    """Each formulation of a network by its name, ready to be called again and again."""
    make = training_step if job == "train" else whole if network == "denoise" else forward
    x = (features if network.startswith("bra") else noisy_scene)(batch, side).to(device)
    for name, module in modules(network, side).items():
        module = module.to(device)
        if name == "released":
            yield name, make(module, x, "float32")
            continue
        if not network.startswith("bra"):
            x = x.contiguous(memory_format=torch.channels_last)
        if job == "train":
            module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        start = {key: value.clone() for key, value in module.state_dict().items()}
        for precision in ("float32", "bfloat16"):
            module.load_state_dict(start)  # a training step has changed them
            yield precision, make(module, x, precision)


def timed(call: Call, device: torch.device) -> tuple[float, Tensor]:
    """Seconds of a call, to the end of what it starts on a GPU, and its output."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    output = call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, output


def measure(
    network: str, job: str, side: int, *, batch: int, device: torch.device, rounds: int
) -> list[dict[str, Any]]:
    """A row for each formulation of a network."""
    ready: list[Call] = []
    rows: list[dict[str, Any]] = []
    for name, call in calls(network, job, side, batch, device):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
        output = call()  # warms up
        if not rows:
            first = output
        difference = float((output - first).abs().max() / first.abs().max()) if rows else None
        added = (torch.cuda.max_memory_allocated(device) - before) / 1e6 if device.type == "cuda" else None
        row = {"network": network, "job": job, "size": side, "formulation": name}
        rows.append(row | {"difference": difference, "memory_mb": added})
        ready.append(call)
    seconds: list[list[float]] = [[] for _ in ready]
    for _ in range(rounds):
        for times, call in zip(seconds, ready, strict=True):
            times.append(timed(call, device)[0])
    for row, times in zip(rows, seconds, strict=True):
        row |= {"seconds": statistics.median(times), "shortest": min(times)}
        row["times"] = rows[0]["shortest"] / row["shortest"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=JOBS)
    parser.add_argument("--sizes", nargs="+", type=int, default=(64, 128), help="sides in pixels, for the forward pass")
    parser.add_argument("--batch", type=int, default=8, help="patches in a training step")
    parser.add_argument("--rounds", type=int, default=5, help="times that each formulation is timed")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", help="cpu or cuda (default: the best there is)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows with all digits too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = find_device(options.device)

    print(f"# Speed\n\n- **command**: python scripts/measure_speed.py {shlex.join(sys.argv[1:])}")
    print(f"- **commit**: {commit()}")
    print(f"- **machine**: {describe_machine(options.threads)}; computed on {device}, {options.rounds} rounds\n")
    print(f"| network | job | size | formulation | seconds | times | difference | memory |\n|{'---|' * 8}")
    rows = []
    for network in options.networks:
        for job in (job for job in JOBS if job in options.jobs and (network, job) != ("denoise", "train")):
            sides, batch = (options.sizes, 1) if job == "forward" else ((TRAIN_SIZE,), options.batch)
            for side in sides:
                for row in measure(network, job, side, batch=batch, device=device, rounds=options.rounds):
                    seconds = f"{row['seconds']:.3g} ({row['shortest']:.3g})"
                    apart = "" if row["difference"] is None else f"{row['difference']:.1e}"
                    memory = "" if row["memory_mb"] is None else f"{row['memory_mb']:.0f}"
                    cells = (network, job, str(side), row["formulation"], seconds, f"{row['times']:.2f}", apart, memory)
                    print(f"| {' | '.join(cells)} |", flush=True)
                    rows.append(row)
    print(NOTES)
    if options.json is not None:
        write_text(options.json, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
