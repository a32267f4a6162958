"""The machine that a measurement was made on: what it is, and how fast it multiplies matrices.

A time means little without either. The measured rate of one large matrix product, in the same data type and on the
same threads, is the ceiling that a network's own rate is held against.
"""

from __future__ import annotations

import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

PRODUCT_SIDE, PRODUCT_SIDE_ON_GPU = 2048, 8192
"""Side of the square matrices of the rate: far more arithmetic than memory traffic; on a GPU, than starting it."""

_CPUINFO, _MEMINFO = Path("/proc/cpuinfo"), Path("/proc/meminfo")
_INSTRUCTION_SETS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "avx512_fp16": "AVX-512 FP16",
    "amx_bf16": "AMX BF16",
    "amx_int8": "AMX INT8",
    "asimd": "NEON",
    "sve": "SVE",
    "bf16": "Arm BF16",
}
"""Flags of /proc/cpuinfo that decide how fast a matrix product is, and their names for readers."""


@dataclass(frozen=True)
class Machine:
    """What a measurement ran on.

    Attributes:
        cpu: Model of the processor.
        cores: Cores that this process may run on.
        threads: Threads that PyTorch computes with.
        instruction_sets: Those that matter to matrix products.
        memory: Main memory in GB (10^9 bytes), 0 if unknown.
        system: Operating system and architecture.
        python: Version.
        torch: Version.
        gpu: Name of the GPU, None without one.
    """

    cpu: str
    cores: int
    threads: int
    instruction_sets: tuple[str, ...]
    memory: float
    system: str
    python: str
    torch: str
    gpu: str | None

    def as_dict(self) -> dict[str, Any]:
        """The attributes, as JSON can hold them."""
        return asdict(self)

    def sentence(self) -> str:
        """The machine in one line for the head of a table.

        Example:
            >>> Machine("Fast 1", 2, 2, ("AVX2",), 8.0, "Linux x86_64", "3.11.9", "2.13.0", None).sentence()
            'Fast 1 (AVX2), 2 cores, 2 threads, 8 GB; Linux x86_64, Python 3.11.9, torch 2.13.0'
        """
        sets = f" ({', '.join(self.instruction_sets)})" if self.instruction_sets else ""
        memory = f", {self.memory:.0f} GB" if self.memory else ""
        gpu = f"; {self.gpu}" if self.gpu else ""
        return (
            f"{self.cpu}{sets}, {_count(self.cores, 'core')}, {_count(self.threads, 'thread')}{memory}{gpu}; "
            f"{self.system}, Python {self.python}, torch {self.torch}"
        )


def describe_machine() -> Machine:
    """Say what this process runs on.

    Example:
        >>> describe_machine().cores >= 1
        True
    """
    information = _read(_CPUINFO)
    flags = set(_field(information, "flags", "Features").split())
    kilobytes = _field(_read(_MEMINFO), "MemTotal").split()[:1]
    return Machine(
        cpu=_field(information, "model name", "Model") or platform.processor() or platform.machine(),
        cores=_usable_cores(),
        threads=torch.get_num_threads(),
        instruction_sets=tuple(name for flag, name in _INSTRUCTION_SETS.items() if flag in flags),
        memory=int(kilobytes[0]) * 1024 / 1e9 if kilobytes else 0.0,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    )


def matrix_product_rate(
    dtype: torch.dtype, device: str | torch.device = "cpu", *, side: int | None = None, seconds: float = 1.5
) -> float:
    """Measure how many floating-point operations a second a square matrix product reaches.

    Args:
        dtype: Of the matrices.
        device: Where to multiply.
        side: Of the matrices, at least 1; None for 2048 on a CPU and 8192 elsewhere.
        seconds: How long to go on; the fastest product counts. At least three are made.

    Returns:
        Operations per second; a multiplication and an addition are two.

    Example:
        >>> matrix_product_rate(torch.float32, side=64, seconds=0.01) > 1e6
        True
    """
    place = torch.device(device)
    side = side or (PRODUCT_SIDE if place.type == "cpu" else PRODUCT_SIDE_ON_GPU)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(side, side, generator=generator).to(place, dtype) for _ in range(2))
    best, end, products = float("inf"), time.perf_counter() + seconds, 0
    with torch.no_grad():
        while products < 3 or time.perf_counter() < end:
            start = time.perf_counter()
            a @ b
            if place.type == "cuda":
                torch.cuda.synchronize(place)
            best = min(best, time.perf_counter() - start)
            products += 1
    return 2 * side**3 / best


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"


def _usable_cores() -> int:
    """Cores that this process is allowed on, which a container or taskset may have made fewer."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read(path: Path) -> str:
    """A file of the kernel; empty where there is none (not Linux)."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _field(text: str, *names: str) -> str:
    """Value of the first line ``name : value`` with one of the names; empty without one."""
    for line in text.splitlines():
        name, separator, value = line.partition(":")
        if separator and name.strip() in names:
            return value.strip()
    return ""
