"""What goes with a denoised cube: how it was made, and what was taken away from each band."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hsidenoise.data.facts import residual_of, structured_note
from hsidenoise.data.io import Cube
from hsidenoise.data.layout import times
from hsidenoise.data.options import ReadOptions
from hsidenoise.inference.job import Run
from hsidenoise.inference.network import Model, OnnxNetwork, name_of
from hsidenoise.inference.options import DenoiseOptions
from hsidenoise.models.shipped import WEIGHTS
from hsidenoise.system.code_version import VERSION
from hsidenoise.system.files import sha256


def record_of(
    noisy: Cube,
    denoised: Cube,
    run: Run,
    model: Model | None,
    options: DenoiseOptions,
    reading: ReadOptions,
    target: Path,
    seconds: float,
) -> dict[str, Any]:
    """How a file was denoised: versions, weights, options, warnings, and :func:`hsidenoise.data.facts.residual_of`.

    How many values were replaced, such as impulses and dead lines, is in it where the model tells.

    Args:
        noisy: The cube as it was read.
        denoised: The cube as it will be written.
        run: What came out of the model.
        model: As for :func:`hsidenoise.denoise`; None: what ``options`` name.
        options: The options.
        reading: How the file was read.
        target: The file.
        seconds: Time that it took.

    Returns:
        What JSON can hold.

    Warns:
        UserWarning: If the residual of some bands has a structure that noise has not, or there is too little memory to
            look at it.
    """
    model = options.weights if model is None else model
    name = name_of(model)
    network = model is None or isinstance(model, str | Path | nn.Module)
    weights: dict[str, Any] | None = None
    if network:
        file = WEIGHTS[name].path if name in WEIGHTS else Path(name)
        held = not isinstance(model, nn.Module) or isinstance(model, OnnxNetwork)
        weights = {"name": name, "sha256": sha256(file) if held and file.is_file() else None}
    try:
        residual = residual_of(noisy, denoised, options.strength)
    except MemoryError:  # no reason to lose the cube
        warnings.warn("too little memory is left to look at what was taken away", stacklevel=3)
        residual = {}
    said = [structured_note(residual["structured"])] if residual.get("structured") else []
    replaced: dict[str, Any] | None = None
    if run.replaced is not None:
        count = int(run.replaced.sum())
        bands = np.flatnonzero(run.replaced.any(axis=(1, 2))).tolist()
        replaced = {"values": count, "share": float(f"{count / run.replaced.size:.6g}"), "bands": bands}
    asked = {key: value for key, value in vars(options).items() if key != "progress"}
    return {
        "hsidenoise": VERSION,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "input": str(noisy.path),
        "output": str(target),
        "variable": None if noisy.layout is None else noisy.layout.key,
        "axes": None if noisy.layout is None else noisy.layout.reason,
        "scaling": run.scaling.reason,
        "method": "network" if network else name,
        "weights": weights,
        "options": asked | {"noise": _noise(options.noise)},
        "reading": {key: str(value) if isinstance(value, Path) else value for key, value in vars(reading).items()},
        "device": str(run.device),
        "seconds": round(seconds, 2),
        "warnings": [*run.warnings, *said],
        "replaced": replaced,
        "residual": residual,
    }


def text_of(record: Mapping[str, Any], *, short: bool = False) -> str:
    """A record as JSON.

    Args:
        record: What :func:`record_of` gives.
        short: In one line and without the numbers of each band.

    Example:
        >>> text_of({"noise_after": {"median": 0.1, "per_band": [0.1, 0.1]}, "structured": []}, short=True)
        '{"noise_after": {"median": 0.1}, "structured": []}'
    """
    return json.dumps(_without_bands(record)) if short else json.dumps(record, indent=2)


def _without_bands(record: Any) -> Any:
    if not isinstance(record, Mapping):
        return record
    kept = {key: value for key, value in record.items() if not isinstance(value, list) or not _numbers(value)}
    return {key: _without_bands(value) for key, value in kept.items()}


def _numbers(values: list[Any]) -> bool:
    return any(value is None or isinstance(value, float) for value in values)


def _noise(noise: Any) -> str | float | None:
    """A noise level that was given; of an array its sizes."""
    if noise is None or isinstance(noise, str | Path):
        return None if noise is None else str(noise)
    array = np.asarray(noise, np.float64)
    return array.item() if array.size == 1 else f"array of {times(array.shape)}"
