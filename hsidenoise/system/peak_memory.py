"""Peak memory of this process, or of its tensors on a GPU, from a moment on.

``resource.getrusage`` alone misleads: its peak never falls, and a child process starts with its parent's. Linux can
forget the peak; elsewhere what getrusage says is all there is.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import torch

_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_FORGET_PEAK = "5"
"""What resets the peak of the resident set when it is written to clear_refs (proc(5))."""


class PeakMemory:
    """Watch how much memory is needed from now on.

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
