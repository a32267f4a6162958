"""One cell of the speed table, measured in a process of its own: ``python -m hsidenoise.speed_cell JSON``.

A process of its own, because memory that one formulation has taken from the system stays with the process, and because
one that runs out of memory must not end the others.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from hsidenoise.compiled import Compiled
from hsidenoise.device import autocast, find_device, is_out_of_memory
from hsidenoise.fresh_process import run_module
from hsidenoise.losses import DenoisingLoss
from hsidenoise.machine import describe_machine, matrix_product_rate
from hsidenoise.onnx_network import OnnxNetwork
from hsidenoise.operations import count_operations
from hsidenoise.peak_memory import PeakMemory
from hsidenoise.speed_networks import NETWORKS

Job = Literal["forward", "train"]

FORWARD_VARIANTS = ("released", "float32", "bfloat16", "compile", "compile-bfloat16", "onnxruntime")
TRAIN_VARIANTS = ("released", "float32", "bfloat16")
MODULE = "hsidenoise.speed_cell"
"""Name under which this file runs as a program."""
MOST_RUNS = 20
"""Runs after which a cell stops, however quick."""


class NotMeasuredError(Exception):
    """Why a cell cannot be measured here, in one line."""


@dataclass(frozen=True)
class Cell:
    """What one process measures.

    Attributes:
        job: ``forward``, or ``train`` for a training step: forward, loss, backward, optimiser.
        network: A name of ``hsidenoise.speed_networks.NETWORKS``.
        variant: ``released`` for the released formulation, else how ours runs.
        size: Height and width in pixels.
        batch: Number of cubes at once.
    """

    job: Job
    network: str
    variant: str
    size: int
    batch: int


@dataclass(frozen=True)
class Settings:
    """How cells are measured.

    Attributes:
        folder: Where the output of the reference is left for the others to be compared with.
        threads: Threads of PyTorch; None for its own choice.
        device: ``cpu``, ``cuda``, ...; None for the best one here.
        seconds: How long a cell goes on timing; a run that takes longer is the only one.
        count: Whether to count floating-point operations too.
    """

    folder: str
    threads: int | None = None
    device: str | None = None
    seconds: float = 4.0
    count: bool = True


@dataclass(frozen=True)
class Measurement:
    """What came out of one cell.

    Attributes:
        seconds: Time of each run.
        total: Peak memory of the process (on a GPU: of its tensors), in bytes.
        added: That beyond what was in use before the first run, in bytes.
        setup: Seconds of the first call, where that compiles; 0 elsewhere.
        operations: Floating-point operations of a run, a multiplication and an addition being two; None: not counted.
        error: Largest difference from the reference, relative to the reference's largest value; None without one.
        rms_error: Root mean square of the difference, relative to that of what the network adds to its input (of the
            whole output, where it is no denoiser).
        reason: Why there is no measurement, if there is none.
    """

    seconds: list[float] = field(default_factory=list)
    total: int = 0
    added: int = 0
    setup: float = 0.0
    operations: int | None = None
    error: float | None = None
    rms_error: float | None = None
    reason: str | None = None


def measure(cell: Cell, settings: Settings) -> Measurement:
    """Measure one cell in this process.

    Args:
        cell: What to measure.
        settings: How.

    Returns:
        The measurement, or the reason that there is none.

    Raises:
        ValueError: If the device or the network is unknown.
    """
    if cell.network not in NETWORKS:
        raise ValueError(f"unknown network '{cell.network}'; known: {', '.join(NETWORKS)}")
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    device = find_device(settings.device)
    try:
        if cell.job == "train":
            return _measure_training(cell, settings, device)
        return _measure_forward(cell, settings, device)
    except NotMeasuredError as error:
        return Measurement(reason=_one_line(error))
    except (ValueError, RuntimeError, MemoryError) as error:
        return Measurement(reason="out of memory" if is_out_of_memory(error) else _one_line(error))


def rates(settings: Settings) -> dict[str, Any]:
    """Describe the machine and measure its matrix products.

    Returns:
        ``machine`` (see ``hsidenoise.machine.Machine``), ``device``, and ``rates``: operations a second by data type.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    device = find_device(settings.device)
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    return {
        "machine": describe_machine().as_dict(),
        "device": str(device),
        "rates": {name: matrix_product_rate(dtype, device) for name, dtype in kinds.items()},
    }


def _measure_forward(cell: Cell, settings: Settings, device: torch.device) -> Measurement:
    subject = NETWORKS[cell.network]
    released = cell.variant == "released"
    make = subject.as_released if released else subject.ours
    if make is None:
        raise NotMeasuredError("was never released")
    network = make(cell.size).to(device)
    x = subject.example(cell.batch, cell.size).to(device)
    if not released and subject.denoises:
        x = x.contiguous(memory_format=torch.channels_last)
    run = _runner(network, cell, settings, device)
    setup = 0.0
    with torch.inference_mode():
        if cell.variant.startswith("compile"):
            start = time.perf_counter()
            run(x)
            setup = time.perf_counter() - start
        seconds, memory, output = _time(lambda: run(x), settings, device)
        operations = None
        if settings.count:
            with autocast(device, "bfloat16" if "bfloat16" in cell.variant else "float32"):
                operations = count_operations(lambda: network(x))
    reference = Path(settings.folder) / f"{cell.network}-{cell.size}-{cell.batch}.npy"
    values = output.float().cpu().numpy()
    error = rms_error = None
    if released or (subject.as_released is None and cell.variant == "float32"):
        np.save(reference, values)
    elif reference.exists():
        error, rms_error = _errors(values, np.load(reference), x.float().cpu().numpy() if subject.denoises else None)
    return Measurement(seconds, *memory, setup, operations, error, rms_error)


def _runner(network: nn.Module, cell: Cell, settings: Settings, device: torch.device) -> Callable[[Tensor], Tensor]:
    """What a variant calls."""
    if cell.variant == "onnxruntime":
        return _onnx_runner(cell, settings, device)
    precision: Literal["float32", "bfloat16"] = "bfloat16" if "bfloat16" in cell.variant else "float32"
    compiles = cell.variant.startswith("compile")
    call = Compiled(network) if compiles else network

    def run(x: Tensor) -> Tensor:
        with autocast(device, precision), warnings.catch_warnings():
            if compiles:  # which it would answer by running the network as it is
                warnings.filterwarnings("error", message="compiling .* failed", category=RuntimeWarning)
            try:
                output: Tensor = call(x)
            except RuntimeWarning as error:
                raise NotMeasuredError(_one_line(error)) from error
            return output

    return run


def _onnx_runner(cell: Cell, settings: Settings, device: torch.device) -> Callable[[Tensor], Tensor]:
    if device.type != "cpu":
        raise NotMeasuredError("onnxruntime is measured on CPUs only")
    path = Path(settings.folder) / f"{cell.network}.onnx"
    failed = path.with_suffix(".failed")
    if failed.exists():
        raise NotMeasuredError(failed.read_text(encoding="utf-8"))
    try:
        if not path.exists():
            # elsewhere, or the exporter's memory would count as the network's
            task = json.dumps({"settings": asdict(settings), "cell": asdict(cell), "export": True})
            run_module(MODULE, task, path)
        return OnnxNetwork(path, device=device)
    except (ImportError, ValueError, RuntimeError) as error:
        failed.write_text(_one_line(error), encoding="utf-8")  # another size would fail as slowly
        raise NotMeasuredError(_one_line(error)) from error


def _export(cell: Cell, path: Path) -> None:
    from hsidenoise.export import export_onnx

    export_onnx(NETWORKS[cell.network].ours(cell.size), path)


def _measure_training(cell: Cell, settings: Settings, device: torch.device) -> Measurement:
    subject = NETWORKS[cell.network]
    if not subject.denoises:
        raise NotMeasuredError("has no training step of its own")
    released = cell.variant == "released"
    make = subject.as_released if released else subject.ours
    if make is None:
        raise NotMeasuredError("was never released")
    network = make(cell.size).to(device).train()
    noisy = subject.example(cell.batch, cell.size).to(device)
    clean = noisy.roll(1, dims=0)  # any target costs the same
    if not released:  # as `hsidenoise train` keeps them
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        noisy = noisy.contiguous(memory_format=torch.channels_last)
    loss = DenoisingLoss()
    weights = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=1e-5)

    def loss_of_batch() -> Tensor:
        with autocast(device, "bfloat16" if cell.variant == "bfloat16" else "float32"):
            denoised: Tensor = network(noisy).float()
        value: Tensor = loss(denoised, clean)
        return value

    def step() -> Tensor:
        optimiser.zero_grad(set_to_none=True)
        value = loss_of_batch()
        value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        return value.detach()

    seconds, memory, _ = _time(step, settings, device)
    optimiser.zero_grad(set_to_none=True)
    operations = None
    if settings.count:
        # not backward(), which would leave gradients that hold no numbers
        operations = count_operations(lambda: torch.autograd.grad(loss_of_batch(), weights, allow_unused=True))
    return Measurement(seconds, *memory, operations=operations)


def _time(
    run: Callable[[], Tensor], settings: Settings, device: torch.device
) -> tuple[list[float], tuple[int, int], Tensor]:
    """Seconds of each run, peak memory (total, added) in bytes, and the last output.

    The first run warms up, unless it alone takes longer than there is time.
    """
    memory = PeakMemory(device)
    first, output = _seconds(run, device)
    if first > settings.seconds:
        return [first], memory.read(), output
    seconds: list[float] = []
    while len(seconds) < MOST_RUNS and (not seconds or sum(seconds) + statistics.median(seconds) < settings.seconds):
        taken, output = _seconds(run, device)
        seconds.append(taken)
    return seconds, memory.read(), output


def _seconds(run: Callable[[], Tensor], device: torch.device) -> tuple[float, Tensor]:
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(device)
        begin.record()
        output = run()
        end.record()
        torch.cuda.synchronize(device)
        return begin.elapsed_time(end) / 1000, output
    start = time.perf_counter()
    output = run()
    return time.perf_counter() - start, output


def _errors(
    values: Float[np.ndarray, "*shape"],
    reference: Float[np.ndarray, "*shape"],
    source: Float[np.ndarray, "*shape"] | None,
) -> tuple[float, float]:
    difference = values.astype(np.float64) - reference
    added = reference if source is None else reference - source
    largest = float(np.abs(difference).max() / np.abs(reference).max())
    return largest, float(np.sqrt(np.square(difference).mean() / np.square(added, dtype=np.float64).mean()))


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


def main(arguments: list[str]) -> int:
    """Measure what the first argument says and write the result where the second says.

    Args:
        arguments: JSON of ``settings``, for a cell ``cell``, and ``export`` to write its network as ONNX instead; and
            the file for the result. A file, because compilers and libraries print to stdout as they like.
    """
    task: Mapping[str, Any] = json.loads(arguments[0])
    settings, target = Settings(**task["settings"]), Path(arguments[1])
    if task.get("export"):
        _export(Cell(**task["cell"]), target)
        return 0
    result = asdict(measure(Cell(**task["cell"]), settings)) if "cell" in task else rates(settings)
    target.write_text(json.dumps(result), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
