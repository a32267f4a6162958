"""What is said of the machine; memory at hand and taken; operations as of the formulas; a module in its own process."""

import mmap
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from as_released import HCANetAsReleased

from hsidenoise.system import machine
from hsidenoise.system.machine import (
    PeakMemory,
    count_operations,
    describe_machine,
    free_memory,
    run_module,
    usable_cores,
)

CPUINFO = """processor\t: 0
model name\t: Quick(R) Chip: 7
flags\t\t: fpu avx2 avx512f amx_bf16 amx_tile
processor\t: 1
model name\t: another
flags\t\t: fpu
"""


def test_what_the_kernel_says_is_read(tmp_path, monkeypatch):
    (tmp_path / "cpu").write_text(CPUINFO)
    (tmp_path / "memory").write_text("MemTotal:        2000000 kB\nMemFree: 1 kB\n")
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpu")
    monkeypatch.setattr(machine, "_MEMINFO", tmp_path / "memory")
    cores = f"{usable_cores()} core{'s' if usable_cores() > 1 else ''}"
    found = describe_machine(1)
    assert found.startswith(f"Quick(R) Chip: 7 (AVX2, AVX-512, AMX BF16), {cores}, 1 thread, 2 GB")
    assert found.endswith(f"Python {platform.python_version()}, torch {torch.__version__}")


def test_without_the_kernels_files_it_still_answers(tmp_path, monkeypatch):
    for name in ("_CPUINFO", "_MEMINFO"):
        monkeypatch.setattr(machine, name, tmp_path / "missing")
    assert "core" in (found := describe_machine(2))
    assert ", 2 threads; " in found


@pytest.mark.gpu
def test_a_gpu_is_named(device):
    assert torch.cuda.get_device_name(device) in describe_machine(1)


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
from hsidenoise.system.machine import free_memory
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


def test_without_the_kernels_files_memory_is_still_measured(tmp_path, monkeypatch):
    for name in ("_STATUS", "_FORGET"):
        monkeypatch.setattr(machine, name, tmp_path / "no" / "such")
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


@pytest.mark.parametrize(("side", "gflop"), [(64, 11.07), (128, 44.3)])
def test_hcanet_as_released_costs_what_is_known_of_it(side, gflop):
    with torch.device("meta"):
        network = HCANetAsReleased()
    network = network.to_empty(device="cpu")
    noisy = torch.empty(1, 31, side, side)
    with torch.inference_mode():
        assert count_operations(lambda: network(noisy)) / 1e9 == pytest.approx(gflop, rel=2e-3)


def test_attention_on_a_cpu_is_counted():
    q, k, v = (torch.ones(2, 3, n, 8) for n in (5, 7, 7))
    two_products = 2 * 2 * (2 * 3 * 5 * 7 * 8)  # of two operations each
    assert count_operations(lambda: F.scaled_dot_product_attention(q, k, v)) == two_products


def test_what_looks_at_its_values_is_counted_too():
    matrix = torch.ones(3, 4)

    def call():
        return matrix @ matrix.mT if matrix.sum() > 0 else None

    assert count_operations(call) == 2 * 3 * 4 * 3


def test_errors_of_the_call_come_through():
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        count_operations(lambda: torch.ones(2, 3) @ torch.ones(2, 3))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_grouped_convolution(groups):
    convolution = torch.nn.Conv2d(4, 8, 3, padding=1, groups=groups)
    assert count_operations(lambda: convolution(torch.ones(2, 4, 5, 6))) == 2 * 2 * 8 * (4 // groups) * 9 * 5 * 6


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(text):
        (tmp_path / "program.py").write_text("import os, sys\n" + text)
        return "program"

    return write


def test_the_task_arrives_and_the_threads_are_set(module, tmp_path):
    name = module('open(sys.argv[2], "w").write(sys.argv[1] + os.environ["OMP_NUM_THREADS"]); print("noise")')
    run_module(name, "task ", tmp_path / "result", threads=3)
    assert (tmp_path / "result").read_text() == "task 3"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('raise ValueError("this is why")', "^ValueError: this is why$"),
        ("os.kill(os.getpid(), 9)", "killed by the system"),
        ("sys.exit(7)", "ended with status 7"),
    ],
)
def test_an_end_is_said_in_one_line(module, tmp_path, text, message):
    with pytest.raises(RuntimeError, match=message) as error:
        run_module(module(text), "", tmp_path / "result", threads=1)
    assert "\n" not in str(error.value)
