"""What is said of the machine, read from the kernel's own files where there are any."""

import platform

import pytest
import torch

from hsidenoise.system import machine
from hsidenoise.system.machine import describe_machine, usable_cores

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
