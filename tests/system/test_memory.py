"""Memory at hand is measured; memory taken is seen, memory taken before is not."""

import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hsidenoise.system import memory as rules
from hsidenoise.system.memory import PeakMemory, free_memory

CPU = torch.device("cpu")
BLOCK = 40_000_000  # bytes


def test_memory_is_measured_in_this_process():
    free = free_memory(CPU)
    assert free is None or 0 < free < 2**46
    assert free_memory(torch.device("meta")) is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_limit_of_the_shell_counts():
    script = """
import resource, torch
from hsidenoise.system.memory import free_memory
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 64 * 2**20,) * 2)
print(free_memory(torch.device("cpu")))
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert 32 * 2**20 < int(done.stdout) <= 64 * 2**20


def block():
    """Memory that the system has to give: PyTorch may get its own from what the tests before have freed."""
    memory = np.frombuffer(mmap.mmap(-1, BLOCK), dtype=np.uint8)
    memory[:: mmap.PAGESIZE] = 1
    return memory


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak of the process never falls")
def test_what_was_needed_before_does_not_count():
    before = block()
    del before
    kept = block()
    memory = PeakMemory(CPU)
    total, added = memory.read()
    assert added < BLOCK / 4
    assert total > kept.nbytes


def test_what_is_needed_and_given_back_counts():
    memory = PeakMemory(CPU)
    passing = block()
    del passing
    total, added = memory.read()
    assert total > BLOCK
    if sys.platform == "linux":
        assert 0.9 * BLOCK < added < 1.5 * BLOCK


def test_without_the_kernels_files_it_still_answers(tmp_path, monkeypatch):
    for name in ("_STATUS", "_FORGET"):
        monkeypatch.setattr(rules, name, tmp_path / "no" / "such")
    memory = PeakMemory(CPU)
    total, added = memory.read()
    assert 0 <= added < total


@pytest.mark.gpu
def test_on_a_gpu_tensors_count(device):
    kept = torch.ones(BLOCK // 4, device=device)
    memory = PeakMemory(device)
    passing = torch.ones(BLOCK // 4, device=device)
    del passing
    total, added = memory.read()
    assert BLOCK <= added < 1.1 * BLOCK
    assert total >= added + kept.nbytes
