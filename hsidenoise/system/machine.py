"""The machine that a measurement was made on: a time means little without it."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

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


def describe_machine(threads: int) -> str:
    """Processor, cores, memory, GPU and versions in one line, for the head of a table.

    Args:
        threads: Threads that the measurement computed with.

    Example:
        >>> "2 threads" in describe_machine(2)
        True
    """
    information = _read(_CPUINFO)
    cpu = _field(information, "model name", "Model") or platform.processor() or platform.machine()
    flags = set(_field(information, "flags", "Features").split())
    sets = ", ".join(name for flag, name in _INSTRUCTION_SETS.items() if flag in flags)
    parts = [f"{cpu} ({sets})" if sets else cpu, _count(usable_cores(), "core"), _count(threads, "thread")]
    kilobytes = _field(_read(_MEMINFO), "MemTotal").split()[:1]
    if kilobytes:
        parts.append(f"{int(kilobytes[0]) * 1024 / 1e9:.0f} GB")
    gpu = f"; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{', '.join(parts)}{gpu}; {platform.system()} {platform.machine()}, {versions}"


def usable_cores() -> int:
    """Cores that this process is allowed on, which a container or taskset may have made fewer."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"


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
