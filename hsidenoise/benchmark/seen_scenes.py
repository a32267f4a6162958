"""Scenes that weights have seen, against scenes that they are to be tested on."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from hsidenoise.inference.onnx_network import OnnxNetwork
from hsidenoise.models.weights import TRAINING_SCENES, VALIDATION_SCENES, read_header, read_json, scenes_seen


def overlap(source: str | Path, scenes: Collection[str]) -> tuple[list[str], list[str]]:
    """Scenes of a test that weights were trained on, and those that they were chosen by.

    Args:
        source: Name of shipped weights, or a weights or ``.onnx`` file.
        scenes: Names under test, as ``scene_name`` gives them.

    Raises:
        ValueError: If it is not a weights file.
        FileNotFoundError: If there is no such file.

    Example:
        >>> overlap("hcanet-bra", ["balloons", "beads", "superballs"])
        (['balloons'], ['superballs'])
    """
    exported = OnnxNetwork(source).metadata if str(source).lower().endswith(".onnx") else None
    header: Mapping[str, str] = read_header(source) if exported is None else {}
    try:
        if exported is not None:
            header = {
                name: str(text) for name, text in read_json({"weights": "{}", **exported}, "weights", dict).items()
            }
        trained, chosen = (
            [name for name in scenes_seen(header, key) if name in scenes]
            for key in (TRAINING_SCENES, VALIDATION_SCENES)
        )
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    return trained, chosen
