"""Measure bi-level routing attention: time and peak memory against pixels, and against explicit gather + softmax.

python scripts/measure_bra.py --threads 2 --output runs/bra     # writes runs/bra.csv and runs/bra.png
python scripts/measure_bra.py --from-csv data/benchmarks/bra.csv    # draws data/benchmarks/bra.png again

Every measurement is a fresh process: the peak is that of the process, less what it was after a call on 32 x 32 pixels.
Time is the median of some runs after one to warm up; in the comparison the two take turns. "explicit" is the released
formulation: gather by an index expanded to every number, one matrix of all affinities, softmax.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from hsidenoise.models.bra import BiLevelRoutingAttention
from hsidenoise.models.regions import from_regions, to_regions

DIM, REGION, TOPK = 48, 8, 4
SIZES = (64, 128, 256, 512, 1024, 2048)


def explicit(attention: BiLevelRoutingAttention, x: Tensor) -> Tensor:
    """The same output, one head, as the released module computes it (FACTS: gather of top-k copies, softmax)."""
    batch, height, width, dim = x.shape
    side, pixels = attention.region_size or 1, (attention.region_size or 1) ** 2
    regions, _ = to_regions(x, side, side)
    count = regions.shape[1]
    q, kv = attention.qkv.qkv(regions).split([dim, 2 * dim], dim=-1)
    image = from_regions(kv[..., dim:], height, width, side, side).permute(0, 3, 1, 2).contiguous()
    local = F.conv2d(image, attention.lepe.weight, attention.lepe.bias, padding=1, groups=dim).permute(0, 2, 3, 1)
    affinity = (q.mean(2) * attention.scale) @ kv[..., :dim].mean(2).mT
    index = affinity.topk(attention.topk, dim=-1).indices.reshape(batch, count, attention.topk, 1, 1)
    gathered = torch.gather(
        kv.unsqueeze(1).expand(-1, count, -1, -1, -1), 2, index.expand(-1, -1, -1, pixels, 2 * dim)
    )  # (batch, regions, topk, pixels, 2 * dim)
    k, v = gathered.split(dim, dim=-1)
    k = k.permute(0, 1, 4, 2, 3).reshape(batch * count, dim, -1)
    v = v.reshape(batch * count, -1, dim)
    attended = ((q.reshape(-1, pixels, dim) * attention.scale) @ k).softmax(dim=-1) @ v
    attended = from_regions(attended.reshape(batch, count, pixels, dim), height, width, side, side)
    return attention.wo(attended + local)


def peak() -> float:
    """Peak of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(case: dict[str, object]) -> dict[str, object]:
    """Run one case in this process."""
    torch.set_num_threads(int(str(case["threads"])))
    torch.manual_seed(0)
    size, train = int(str(case["size"])), case["pass"] == "training"
    attention = BiLevelRoutingAttention(DIM, num_heads=1, n_win=None, region_size=REGION, topk=TOPK)
    x = torch.randn(1, size, size, DIM, requires_grad=train)
    ways: dict[str, Callable[[], Tensor]] = {"ours": lambda: attention(x), "explicit": lambda: explicit(attention, x)}

    def call(way: str) -> None:
        with torch.set_grad_enabled(train):
            out = ways[way]()
        if train:
            attention.zero_grad()
            x.grad = None
            out.square().mean().backward()

    wanted = str(case["way"]).split("+")
    with torch.no_grad():  # what libraries take on their first call is not counted
        small = x[:, :32, :32]
        for warm_up in (attention, lambda small: explicit(attention, small)):
            warm_up(small)
    before = peak()
    for way in wanted:
        call(way)
    runs = 3 if size > 512 else 9
    seconds: dict[str, list[float]] = {way: [] for way in wanted}
    route = []
    for _ in range(runs):
        for way in wanted:
            seconds[way].append(timed(lambda way=way: call(way)))  # type: ignore[misc]
        with torch.no_grad():
            route.append(timed(lambda: attention.routing(x)))
    result: dict[str, object] = {f"seconds_{way}": statistics.median(times) for way, times in seconds.items()}
    if len(wanted) == 1:
        result["peak_mib"] = peak() - before
        result["seconds_routing"] = statistics.median(route)
    if len(wanted) == 2:
        with torch.no_grad():
            result["largest_difference"] = float((ways["ours"]() - ways["explicit"]()).abs().max())
    return result


def fresh(**case: object) -> dict[str, object]:
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"measure_bra: {case} failed:\n{done.stderr}")
    return case | json.loads(done.stdout.splitlines()[-1])


def plot(rows: Sequence[Mapping[str, object]], target: Path) -> None:
    """Time and memory against pixels; both lines beside them are those of inference, which has the larger sizes."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    def points(kind: str, column: str) -> tuple[list[int], list[float]]:
        of_kind = [row for row in rows if row["pass"] == kind]
        return [int(str(row["size"])) ** 2 for row in of_kind], [float(str(row[column])) for row in of_kind]

    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for axis, column, label in ((axes[0], "seconds_ours", "seconds"), (axes[1], "peak_mib", "peak memory, MiB")):
        for kind in ("inference", "training"):
            axis.loglog(*points(kind, column), marker="o", label=kind)
        if column == "seconds_ours":
            axis.loglog(*points("inference", "seconds_routing"), marker=".", ls=":", label="of inference, routing")
        pixels, values = points("inference", column)
        ends = [pixels[0], pixels[-1]]
        axis.loglog(ends, [values[0] * end / pixels[0] for end in ends], "k--", lw=0.8, label="linear")
        axis.set(xlabel="pixels", ylabel=label)
        axis.legend()
    figure.suptitle(f"Bi-level routing attention, width {DIM}, regions of {REGION}, top-k {TOPK}")
    figure.tight_layout()
    figure.savefig(target, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="leave out larger sizes")
    parser.add_argument("--largest-training", type=int, default=1024, help="2048 takes 9 GB")
    parser.add_argument("--output", type=Path, default=Path("runs/bra"), help="without suffix")
    parser.add_argument("--from-csv", type=Path, metavar="FILE", help="draw this table beside itself, measure nothing")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(json.loads(options.case))))
        return
    if options.from_csv:
        with options.from_csv.open(newline="") as file:
            plot(list(csv.DictReader(file)), options.from_csv.with_suffix(".png"))
        return
    rows = []
    for kind in ("inference", "training"):
        largest = options.largest if kind == "inference" else min(options.largest, options.largest_training)
        for size in (size for size in SIZES if size <= largest):
            row = fresh(size=size, way="ours", threads=options.threads, **{"pass": kind})
            rows.append(row)
            print(
                f"{kind} {size} x {size}: {row['seconds_ours']:.4f} s (routing {row['seconds_routing']:.4f} s), "
                f"peak {row['peak_mib']:.0f} MiB",
                flush=True,
            )
    # Inference alone: backwards, the index expanded to every number asks for a gradient of 26 GB (BiFormer#21).
    both = fresh(size=256, way="ours+explicit", threads=options.threads, **{"pass": "inference"})
    memory = [
        float(str(fresh(size=256, way=way, threads=options.threads, **{"pass": "inference"})["peak_mib"]))
        for way in ("ours", "explicit")
    ]
    ours, other = float(str(both["seconds_ours"])), float(str(both["seconds_explicit"]))
    print(
        f"256 x 256 against explicit gather + softmax: {other:.4f} s / {ours:.4f} s = {other / ours:.2f} "
        f"times faster; {memory[1]:.0f} MiB / {memory[0]:.0f} MiB = {memory[1] / memory[0]:.1f} times less memory; "
        f"largest difference {both['largest_difference']:.1e}",
        flush=True,
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    plot(rows, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
