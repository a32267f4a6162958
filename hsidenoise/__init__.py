"""Hyperspectral image denoising: read a cube, denoise it, measure it, train a network for it.

The names below are the public interface. They are imported when first used, so that ``import hsidenoise`` and the
command line's ``--help`` do not wait for torch.

Example:
    >>> import hsidenoise
    >>> sorted(hsidenoise.NOISE_CASES)[:2]
    ['blind', 'deadline']
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hsidenoise.system import offer

if TYPE_CHECKING:
    from hsidenoise.data.io import Cube, convert, read_cube, write_cube
    from hsidenoise.inference.denoise import denoise, denoise_file
    from hsidenoise.inference.options import DenoiseOptions
    from hsidenoise.metrics.functional import evaluate
    from hsidenoise.models.attention.biformer import BiFormerBlock
    from hsidenoise.models.attention.bra import BiLevelRoutingAttention
    from hsidenoise.models.registry import create_model
    from hsidenoise.models.weights import load_model
    from hsidenoise.noise.cases import NOISE_CASES, corrupt
    from hsidenoise.training.datamodule import CubeDataModule
    from hsidenoise.training.task import DenoisingTask

__version__ = "0.1.0"

__all__ = [
    "NOISE_CASES",
    "BiFormerBlock",
    "BiLevelRoutingAttention",
    "Cube",
    "CubeDataModule",
    "DenoiseOptions",
    "DenoisingTask",
    "__version__",
    "convert",
    "corrupt",
    "create_model",
    "denoise",
    "denoise_file",
    "evaluate",
    "load_model",
    "read_cube",
    "write_cube",
]

offer(
    __name__,
    {
        "BiFormerBlock": "models.attention.biformer",
        "BiLevelRoutingAttention": "models.attention.bra",
        "Cube": "data.io",
        "CubeDataModule": "training.datamodule",
        "DenoiseOptions": "inference.options",
        "DenoisingTask": "training.task",
        "NOISE_CASES": "noise.cases",
        "convert": "data.io",
        "corrupt": "noise.cases",
        "create_model": "models.registry",
        "denoise": "inference.denoise",
        "denoise_file": "inference.denoise",
        "evaluate": "metrics.functional",
        "load_model": "models.weights",
        "read_cube": "data.io",
        "write_cube": "data.io",
    },
)
