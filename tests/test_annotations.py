"""Annotations, array shapes included, are held at run time under pytest, and nowhere else."""

import subprocess
import sys
from pathlib import Path

import jaxtyping
import pytest
import torch

from hsidenoise.metrics.functional import psnr


def test_a_wrong_shape_is_caught_under_pytest():
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'clean'"):
        psnr(torch.zeros(2, 3, 4), torch.zeros(2, 3, 5), data_range=1.0)


@pytest.mark.usefixtures("unchecked")
def test_the_function_itself_speaks_when_the_checks_are_off():
    with pytest.raises(ValueError, match="they must be the same scene"):
        psnr(torch.zeros(2, 3, 4), torch.zeros(2, 3, 5), data_range=1.0)


def test_nothing_is_checked_outside_pytest():
    script = "import hsidenoise.metrics.functional as m; print(hasattr(m.psnr, '__wrapped__'))"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert hasattr(psnr, "__wrapped__")
