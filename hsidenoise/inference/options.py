"""The options of `denoise` and `export`, each written once: Python, the command line and ``--help`` show these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hsidenoise.system.options import MOST_ROUNDS, EnsembleSize, Normalize, Precision, option


@dataclass(frozen=True)
class DenoiseOptions:
    """How a cube is denoised: what :func:`hsidenoise.denoise` takes by name, and `hsidenoise denoise` as options.

    Example:
        >>> DenoiseOptions(tile=64).pilot_rounds is None  # what the network asks for
        True
    """

    weights: str | None = option(
        None,
        "shipped weights (see `hsidenoise weights`), a weights file, or an .onnx file of `hsidenoise export`; the "
        "default weights if absent",
        metavar="NAME|FILE",
    )
    tile: int | None = option(
        None,
        "side of a tile in pixels; near 96 or what the weights ask for if absent, by the cube's size and the memory",
        least=1,
        metavar="N",
    )
    overlap: int | None = option(
        None, "overlap of neighbouring tiles in pixels; 24 or a quarter of the tile if absent", least=0, metavar="N"
    )
    batch: int | None = option(
        None, "tiles computed at a time, with the same result; by the device if absent", least=1, metavar="N"
    )
    normalize: Normalize = option("auto", "scaling of the values")
    device: str | None = option(
        None, "where to compute; a network's own device, or a GPU if there is one, if absent", metavar="cpu|cuda"
    )
    precision: Precision = option(
        "float32",
        "bfloat16 is faster where the hardware has it, off by 0.0001 of the range in the mean (PSNR by 0.002 dB); "
        "auto takes it there",
    )
    compile: bool = option(False, "compile the network first: minutes, hardly ever worth it on a CPU")
    ensemble: EnsembleSize = option(
        1, "average that many mirrored passes of each tile: a little better, that many times slower"
    )
    pilot_rounds: int | None = option(
        None,
        "rounds of the pilot filter, each a Wiener filter of the noisy cube with the result so far as its pilot; 0: "
        "the network alone; what the network asks for if absent",
        least=0,
        most=MOST_ROUNDS,
        metavar="0|1|2",
        old={"passes": lambda passes: passes - 1},
    )
    strength: float = option(
        1.0,
        "share of what is taken away: 0 gives the input back, 0.5 leaves half of the noise, and of any harm",
        least=0,
        most=1,
        metavar="0..1",
    )
    noise: Any = option(
        None,
        "noise level, in the unit of the cube, where it is known: of each band, or of each pixel; a variable of the "
        "file, another file, or one of its variables, FILE:/VARIABLE (in Python also a number or an array); estimated "
        "if absent",
        metavar="FILE|VARIABLE",
    )
    progress: bool = option(False, "show a progress bar on standard error")


OPSET = 20
"""ONNX operator set that `hsidenoise export` writes by default."""


@dataclass(frozen=True)
class ExportOptions:
    """How a network is exported."""

    weights: str | None = option(
        None, "shipped weights or a weights file; the default weights if absent", metavar="NAME|FILE"
    )
    opset: int = option(OPSET, "ONNX operator set, 18 or later", least=18, metavar="N")
