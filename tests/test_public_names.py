"""The public names stay where they are, and packages wait for nothing heavy."""

import subprocess
import sys
from importlib import import_module
from types import ModuleType

import pytest

NAMES = {
    "hsidenoise": "Cube convert read_cube write_cube denoise denoise_file create_model load_model NOISE_CASES corrupt "
    "evaluate DenoisingTask CubeDataModule BiLevelRoutingAttention BiFormerBlock",
    "hsidenoise.models": "WEIGHTS create_model save_weights load_model load_released_hcanet",
    "hsidenoise.classical": "BASELINES run_baseline",
    "hsidenoise.signal": "denoise_by_planes noise_level spectral_wiener pilot_filter fit_scaling",
    "hsidenoise.metrics": "psnr ssim sam ergas PROTOCOLS",
    "hsidenoise.noise": "NOISE_CASES corrupt",
    "hsidenoise.benchmark": "Method make_method make_tables",
    "hsidenoise.data": "Cube Metadata convert read_cube write_cube",
}


@pytest.mark.parametrize("package", NAMES)
def test_public_names_are_there(package):
    module = import_module(package)
    assert set(NAMES[package].split()) <= set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        assert not isinstance(getattr(module, name), ModuleType)
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        _ = module.no_such_name


def test_a_function_named_as_its_module_is_the_function_whatever_is_imported_first():
    code = "import hsidenoise.signal.noise_level, hsidenoise.signal as s; assert callable(s.noise_level)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_packages_wait_for_nothing_heavy():
    heavy = "{'torch', 'numpy', 'scipy', 'h5py', 'lightning', 'matplotlib'}"
    code = f"import sys, {', '.join(NAMES)}; print(*{heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "\n"
