"""What is said of the machine, read from the kernel's own files where there are any."""

import dataclasses
import json
import os

import pytest
import torch

from hsidenoise import machine
from hsidenoise.machine import describe_machine, matrix_product_rate

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
    found = describe_machine()
    assert found.cpu == "Quick(R) Chip: 7"
    assert found.instruction_sets == ("AVX2", "AVX-512", "AMX BF16")
    assert found.memory == pytest.approx(2.048)


def test_without_the_kernels_files_it_still_answers(tmp_path, monkeypatch):
    for name in ("_CPUINFO", "_MEMINFO"):
        monkeypatch.setattr(machine, name, tmp_path / "missing")
    found = describe_machine()
    assert found.cpu
    assert (found.instruction_sets, found.memory) == ((), 0.0)
    assert "GB" not in found.sentence()


def test_cores_are_those_of_this_process_and_threads_those_of_torch():
    found = describe_machine()
    if hasattr(os, "sched_getaffinity"):
        assert found.cores == len(os.sched_getaffinity(0))
    assert found.threads == torch.get_num_threads()
    assert found.torch == torch.__version__
    assert json.loads(json.dumps(found.as_dict()))["cores"] == found.cores


def test_the_sentence_names_a_gpu():
    found = dataclasses.replace(describe_machine(), gpu="Big GPU", cores=1)
    assert "; Big GPU; " in found.sentence()
    assert ", 1 core," in found.sentence()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_rate_is_that_of_a_matrix_product(dtype):
    rate = matrix_product_rate(dtype, side=256, seconds=0.05)
    assert 1e7 < rate < 1e15


@pytest.mark.gpu
def test_the_rate_of_a_gpu(device):
    assert matrix_product_rate(torch.bfloat16, device) > 1e12
