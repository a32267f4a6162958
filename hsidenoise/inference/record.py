"""What is written beside a denoised cube: how it was made, and what was taken away from each band."""

from __future__ import annotations

import dataclasses
import json
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hsidenoise.data.measure import residual_of
from hsidenoise.inference.denoise import DenoisedFile
from hsidenoise.inference.options import DenoiseOptions
from hsidenoise.models.shipped import DEFAULT_WEIGHTS, WEIGHTS
from hsidenoise.system.files import sha256, write_text


def record_of(done: DenoisedFile, options: DenoiseOptions, method: str | None = None) -> dict[str, Any]:
    """How a file was denoised: versions, weights, options, warnings, and :func:`hsidenoise.data.measure.residual_of`.

    Args:
        done: What :func:`hsidenoise.denoise_file` gave.
        options: The options that it was given.
        method: Name of a classical method, None for a network.

    Warns:
        UserWarning: If the residual of some bands has a structure that noise has not.
    """
    weights: dict[str, Any] | None = None
    if method is None:
        name = options.weights or DEFAULT_WEIGHTS
        file = WEIGHTS[name].path if name in WEIGHTS else Path(name)
        weights = {"name": name, "sha256": sha256(file) if file.is_file() else None}
    return {
        "hsidenoise": version("hsidenoise"),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "input": str(done.source),
        "output": str(done.target),
        "variable": None if done.cube.layout is None else done.cube.layout.key,
        "axes": None if done.cube.layout is None else done.cube.layout.reason,
        "scaling": done.scaling.reason,
        "method": method or "network",
        "weights": weights,
        "options": {key: value for key, value in dataclasses.asdict(options).items() if key != "progress"},
        "device": done.device,
        "seconds": round(done.seconds, 2),
        "warnings": list(done.warnings),
        "residual": residual_of(done.cube, done.denoised, options.strength),
    }


def write_record(target: Path, record: dict[str, Any]) -> Path | None:
    """Put a record beside the output, as ``<output>.json``; another file of that name is left alone.

    Returns:
        The file; None if it could not be written.

    Warns:
        UserWarning: If it could not be written.
    """
    place = target.with_name(f"{target.name}.json")
    try:
        if place.exists() and '"hsidenoise":' not in place.read_text(encoding="utf-8", errors="replace")[:100]:
            raise FileExistsError(f"{place} is there and of something else")
        write_text(place, json.dumps(record, indent=2) + "\n")
    except OSError as error:
        warnings.warn(f"the record of what was done could not be written: {error}", stacklevel=2)
        return None
    return place
