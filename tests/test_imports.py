"""What a job does not need is not loaded for it."""

import subprocess
import sys

SCRIPT = """
import sys
import numpy as np
from hsidenoise import denoise_file
from hsidenoise.data.io import write_arrays

write_arrays("noisy.mat", {"cube": np.random.default_rng(0).random((20, 24, 31), dtype=np.float32)})
denoise_file("noisy.mat", "denoised.mat", "hcanet-bra")
not_needed = {"lightning", "matplotlib", "tensorboard", "torchmetrics", "rich", "onnx", "torch._dynamo"}
print(*sorted(not_needed & set(sys.modules)))
"""


def test_denoising_loads_no_lightning_no_matplotlib_and_no_compiler(tmp_path):
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
    assert (tmp_path / "denoised.mat").is_file()


def test_reading_does_not_wait_for_torch():
    code = "import hsidenoise.data.formats.hdf5, hsidenoise.data.io, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"
