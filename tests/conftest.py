"""What tests share: the `--device` option, small synthetic cubes, and one small real crop."""

import importlib
import signal
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import scipy.io
import torch

SAMPLE = Path(__file__).parents[1] / "data" / "samples" / "superballs.mat"


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="device for tests that can use another one, such as cuda")


def pytest_configure(config):
    # What a module of this package is the first to import is compiled anew under pytest: the hook that checks
    # annotations looks for it under a name of its own in __pycache__. Loaded before, it is found as usual.
    libraries = ["beartype", "h5py", "jsonargparse", "skimage.metrics", "skimage.restoration"]
    if Path(__file__).parent in [Path(argument).resolve() for argument in config.args]:  # all tests
        libraries.append("lightning.pytorch")
    for library in libraries:
        importlib.import_module(library)
    # Two threads on tiny tensors cost more than they save, and one thread repeats to the last bit.
    torch.set_num_threads(1)
    # What a shell starts in the background ignores interrupts, and so would the programs that tests interrupt.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config, items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


def pytest_runtest_setup(item):
    torch.manual_seed(0)  # whatever ran before, in whichever process: no test depends on the order


@pytest.fixture(scope="session")
def device(request):
    """Device named by --device."""
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def unchecked():
    """No annotation checks, as outside pytest: for tests of what a function itself says to a wrong type or shape."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def structured_cube():
    """Clean cube (bands 31, height 40, width 52) in [0, 1]: five materials in regions with smooth shading."""
    bands, height, width = 31, 40, 52
    rng = np.random.default_rng(7)
    positions = np.linspace(0, 1, bands)
    centres, widths = rng.uniform(0, 1, (5, 1)), rng.uniform(0.1, 0.4, (5, 1))
    spectra = 0.1 + 0.8 * np.exp(-0.5 * ((positions - centres) / widths) ** 2)
    rows, columns = np.mgrid[:height, :width]
    seeds = rng.uniform(0, [height, width], (5, 2))
    nearest = np.argmin([(rows - y) ** 2 + (columns - x) ** 2 for y, x in seeds], axis=0)
    shading = 0.6 + 0.4 * np.sin(rows / 9) * np.cos(columns / 13)
    cube = (spectra[nearest] * shading[..., None]).transpose(2, 0, 1).astype(np.float32)
    cube -= cube.min()
    cube /= cube.max()
    cube.setflags(write=False)
    return cube


@pytest.fixture(scope="session")
def real_crop():
    """The middle of the real sample, min-max scaled: (bands 31, height 48, width 64)."""
    stored = scipy.io.loadmat(SAMPLE)["cube"][40:88, 48:112]
    cube = np.ascontiguousarray(stored.transpose(2, 0, 1)).astype(np.float32)
    cube = (cube - cube.min()) / (cube.max() - cube.min())
    cube.setflags(write=False)
    return cube
