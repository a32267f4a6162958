"""The machine: its devices and their memory, what a call takes of it, a process of one's own.

A network is lent to a device for a while and given back as it was.
"""

from __future__ import annotations

import gc
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from hsidenoise.system.options import Precision

#: oneDNN says no more when it finds no memory. What it cannot do at all ends in "a primitive descriptor ...".
_ONEDNN = re.compile(r"could not (create|execute) a (primitive|memory)(?! descriptor)")


def find_device(device: str | torch.device | None = None) -> torch.device:
    """The device that a caller names, or else the best one here.

    Args:
        device: Such as ``cpu``, ``cuda`` or ``cuda:1``. None: the GPU if CUDA has one, else the CPU.

    Raises:
        ValueError: If there is no such kind of device, or this machine has none.
    """
    if device is None:
        # Apple's GPU is not chosen by itself: it lacks the eigen-decomposition that the networks here use
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {str(device)!r}; choose cpu, cuda, cuda:1, mps, ...") from error
    available = {
        "cuda": torch.cuda.is_available() and (place.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
        "xpu": torch.xpu.is_available(),
        "cpu": True,
    }
    if not available.get(place.type, False):
        raise ValueError(f"there is no device {str(place)!r} on this machine; choose cpu, or leave it out")
    return place


def home(network: nn.Module) -> torch.device | None:
    """Where a network is; None if it has no tensors."""
    tensors = (*network.parameters(), *network.buffers())
    return tensors[0].device if tensors else None


@contextmanager
def in_use(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Network on a device and in evaluation mode; both as they were afterwards, module by module."""
    modes = {module: module.training for module in network.modules()}
    before = home(network) or device
    try:
        network.eval()
        if before != device:
            network.to(device)
        yield
    finally:
        if before != device:
            network.to(before)
        for module, training in modes.items():
            module.training = training


def find_precision(precision: Precision, device: torch.device) -> Literal["float32", "bfloat16"]:
    """The precision to run in where a caller leaves the choice to the device.

    Args:
        precision: ``float32`` and ``bfloat16`` stay what they are. ``auto``: bfloat16 where the hardware multiplies
            matrices in it (NVIDIA GPUs since Ampere, CPUs with AMX), float32 elsewhere.
        device: Where to run.

    Raises:
        ValueError: If it is none of the three.
    """
    if precision not in ("float32", "bfloat16", "auto"):
        raise ValueError(f"unknown precision {precision!r}; choose float32, bfloat16 or auto")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        able = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        able = device.type == "cpu" and _has_amx()
    return "bfloat16" if able else "float32"


def _has_amx() -> bool:
    # capabilities have been public since PyTorch 2.10 only
    ask = getattr(torch.cpu, "get_capabilities", None)
    return ask is not None and bool(ask().get("amx_bf16", False))


def autocast(device: torch.device, precision: Literal["float32", "bfloat16"]) -> torch.autocast:
    """Context in which a network runs in a precision; its weights stay as they are."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; the CPU's allocator and some CUDA libraries have no type for it.

    Example:
        >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
        True
    """
    text = str(error).lower()
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or any(
            phrase in text
            for phrase in (
                "can't allocate memory",
                "failed to allocate memory",
                "not enough memory",
                "out of memory",
                "alloc_failed",
                "bad_alloc",
            )
        )
        or (isinstance(error, RuntimeError) and _ONEDNN.search(text) is not None)
    )


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
    """Processor, cores, memory, GPU and versions in one line, for the head of a table."""
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


def _field(text: str, *names: str) -> str:
    """Value of the first line ``name : value`` with one of the names; empty without one."""
    for line in text.splitlines():
        name, separator, value = line.partition(":")
        if separator and name.strip() in names:
            return value.strip()
    return ""


_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_FORGET_PEAK = "5"
"""What resets the peak of the resident set when it is written to clear_refs (proc(5))."""


def free_memory(device: torch.device) -> int | None:
    """Memory in bytes that a process may still take on a device; None where the system does not tell.

    On a CPU the least of what the system has to spare, what the control group (a container) allows, and what
    ``ulimit -v`` allows. On a GPU what the driver has to spare and what PyTorch keeps for reuse.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu" or sys.platform != "linux":
        return None
    limits = [_spare(), _group_v2(), _group_v1(), _address_space()]
    known = [limit for limit in limits if limit is not None]
    return max(0, min(known)) if known else None


class PeakMemory:
    """Peak memory of this process, or of its tensors on a GPU, from now on.

    ``resource.getrusage`` alone misleads: its peak never falls, and a child process starts with its parent's. Linux can
    forget the peak; elsewhere what getrusage says is all there is.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
        else:
            try:
                _FORGET.write_text(_FORGET_PEAK)
            except OSError:  # not Linux, or not allowed
                self.before = _peak()
            else:
                self.before = _status("VmRSS") or _peak()

    def read(self) -> tuple[int, int]:
        """Peak since the start, in bytes: in total, and beyond what was in use then."""
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else _peak()
        return peak, max(0, peak - self.before)


def _spare() -> int | None:
    """What the system could give without swapping."""
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _group_v2() -> int | None:
    """What the control group of this process still allows (cgroup 2, as in today's containers)."""
    path = next((line[3:] for line in _read("/proc/self/cgroup").splitlines() if line.startswith("0::")), "/")
    return _group("/sys/fs/cgroup", path, "memory.max", "memory.current", "inactive_file")


def _group_v1() -> int | None:
    """The same for cgroup 1."""
    lines = (line.split(":", 2) for line in _read("/proc/self/cgroup").splitlines())
    path = next((parts[2] for parts in lines if "memory" in parts[1].split(",")), "/")
    names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
    return _group("/sys/fs/cgroup/memory", path, *names)


def _group(root: str, path: str, limit: str, usage: str, cache: str) -> int | None:
    """The least that a control group and those above it allow."""
    # inside a container the path is that of the host: only its root may be there to be read
    folder = Path(root) / path.lstrip("/")
    rooms = []
    for place in (folder, *folder.parents)[: len(folder.parts) - len(Path(root).parts) + 1]:
        most, used = _read(place / limit).strip(), _read(place / usage).strip()
        if most.isdigit() and used.isdigit():
            stat = dict(line.split() for line in _read(place / "memory.stat").splitlines())
            rooms.append(int(most) - int(used) + int(stat.get(cache, 0)))  # cached files give way
    return min(rooms, default=None)


def _address_space() -> int | None:
    """What ``ulimit -v`` still allows."""
    import resource

    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = _read("/proc/self/statm").split()
    if most == resource.RLIM_INFINITY or not pages:
        return None
    return most - int(pages[0]) * resource.getpagesize()


def _read(path: str | Path) -> str:
    """A file of the kernel; empty where there is none (not Linux)."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _peak() -> int:
    """Peak resident set in bytes, 0 where the system does not say."""
    peak = _status("VmHWM")
    if peak:
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _status(name: str) -> int:
    """A line of the process's status in bytes, 0 without one."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def count_operations(run: Callable[[], object]) -> int:
    """Count the multiplications and additions of the matrix products and convolutions in a forward call.

    Nothing is computed where the call does not look at its own values; else it is computed once more.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]

    # PyTorch 2.13 has no formula for the kernel that CPUs use
    formulas: dict[Any, Any] = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), counter:
            run()
    except Exception:  # looks at its values, or does what fake tensors cannot; what is wrong for good is raised below
        with counter:  # starts again from zero
            run()
    return int(counter.get_total_flops())


def run_module(module: str, task: str, result: Path, *, threads: int) -> None:
    """Run a module as a program with two arguments and wait for it.

    Args:
        module: Name of the module.
        task: First argument.
        result: Second argument, a file that it writes. What it prints is dropped.
        threads: Threads of its numerical libraries, at least 1.

    Raises:
        RuntimeError: If it failed or was killed; the message says which in one line.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", module, task, str(result)]
    done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    if done.returncode == -signal.SIGKILL:
        raise RuntimeError("killed by the system, as happens when memory runs out")
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise RuntimeError(lines[-1][:200] if lines else f"ended with status {done.returncode}")
