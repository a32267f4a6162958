"""Scenes that weights have seen, against scenes that they are to be tested on."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from reprlib import repr as short

from hsidenoise.data.scenes import scene_name
from hsidenoise.inference.onnx_network import OnnxNetwork
from hsidenoise.models.weights import read_header, read_json

#: Header keys of the scenes that weights have seen: JSON lists of names as ``scene_name`` gives them.
TRAINING_SCENES, VALIDATION_SCENES = "training_scenes", "validation_scenes"


def scenes_seen(header: Mapping[str, str], key: str = TRAINING_SCENES) -> list[str]:
    """Scenes that weights were trained on (or chosen by), those of the weights they started from included.

    Args:
        header: Header of a weights file, as ``hsidenoise.models.weights.read_header`` gives it.
        key: :data:`TRAINING_SCENES` or :data:`VALIDATION_SCENES`.

    Returns:
        Sorted names; of an older file, which has no such list, those that it describes in words.

    Raises:
        ValueError: If the list is none; it names the key.

    Example:
        >>> scenes_seen({"data": "folder: balloons_ms, beads"})
        ['balloons', 'beads']
    """
    if key in header:
        names = read_json(header, key, list)
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f"{key} is {short(header[key])}: a JSON list of names is expected")
        return sorted(names)
    words = header.get("data", "").partition(": ")[2] if key == TRAINING_SCENES else header.get("validation", "")
    return sorted({scene_name(name.strip()) for name in words.split(",") if name.strip()})


def overlap(source: str | Path, scenes: Collection[str]) -> tuple[list[str], list[str]]:
    """Scenes of a test that weights were trained on, and those that they were chosen by.

    Args:
        source: Name of shipped weights, or a weights or ``.onnx`` file.
        scenes: Names under test, as ``scene_name`` gives them.

    Raises:
        ValueError: If it is no weights file.
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
