"""Memory: how much a process may still take, and how much it took from a moment on."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import torch

_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_FORGET_PEAK = "5"
"""What resets the peak of the resident set when it is written to clear_refs (proc(5))."""


def free_memory(device: torch.device) -> int | None:
    """Memory in bytes that a process may still take on a device; None where the system does not tell.

    On a CPU the least of what the system has to spare, what the control group (a container) allows, and what
    ``ulimit -v`` allows. On a GPU what the driver has to spare and what PyTorch keeps for reuse.

    Args:
        device: Such as ``torch.device("cpu")``.

    Example:
        >>> free = free_memory(torch.device("cpu"))
        >>> free is None or free > 0
        True
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

    Args:
        device: Where the tensors are; on a GPU only tensors count.

    Example:
        >>> memory = PeakMemory(torch.device("cpu"))
        >>> block = torch.ones(1_000_000)  # counts if the system gave it; memory freed before may be used again
        >>> total, added = memory.read()
        >>> total > added >= 0
        True
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
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
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
