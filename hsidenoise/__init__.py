"""Hyperspectral image denoising: read a cube, denoise it, measure it, train a network for it.

The names below are the public interface. They are imported when first used, so that ``import hsidenoise`` and the
command line's ``--help`` do not wait for torch.

Example:
    >>> import hsidenoise
    >>> sorted(hsidenoise.NOISE_CASES)[:2]
    ['blind', 'deadline']
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hsidenoise.data.datamodule import CubeDataModule
    from hsidenoise.data.io import Cube, read_cube, write_cube
    from hsidenoise.inference import denoise, denoise_file
    from hsidenoise.metrics import evaluate
    from hsidenoise.models import create_model
    from hsidenoise.models.biformer import BiFormerBlock
    from hsidenoise.models.bra import BiLevelRoutingAttention
    from hsidenoise.noise import NOISE_CASES, corrupt
    from hsidenoise.training import DenoisingTask
    from hsidenoise.weights import load_model

__version__ = "0.1.0"

__all__ = [
    "NOISE_CASES",
    "BiFormerBlock",
    "BiLevelRoutingAttention",
    "Cube",
    "CubeDataModule",
    "DenoisingTask",
    "__version__",
    "corrupt",
    "create_model",
    "denoise",
    "denoise_file",
    "evaluate",
    "load_model",
    "read_cube",
    "write_cube",
]

_HOME = {
    "BiFormerBlock": "models.biformer",
    "BiLevelRoutingAttention": "models.bra",
    "Cube": "data.io",
    "CubeDataModule": "data.datamodule",
    "DenoisingTask": "training",
    "NOISE_CASES": "noise",
    "corrupt": "noise",
    "create_model": "models",
    "denoise": "inference",
    "denoise_file": "inference",
    "evaluate": "metrics",
    "load_model": "weights",
    "read_cube": "data.io",
    "write_cube": "data.io",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
