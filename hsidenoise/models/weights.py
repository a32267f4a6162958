"""Weights for use: the one file format they are saved in, and how a network comes out of it.

A weights file is a safetensors file whose header says which network it belongs to and with which constructor
arguments, so that a file alone is enough to build the network again and nothing in it can run code. A
checkpoint (the state of a training run) is another thing and belongs to Lightning.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as short
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from hsidenoise.data.datasets import scene_name
from hsidenoise.models.registry import create_model
from hsidenoise.models.shipped import DEFAULT_WEIGHTS, WEIGHTS
from hsidenoise.system import files
from hsidenoise.system.options import MOST_ROUNDS, did_you_mean, said

FORMAT = "hsidenoise-weights-1"

#: What weights may ask :func:`hsidenoise.denoise` to take by default, and the values that are taken.
ASKED: dict[str, range] = {"tile": range(16, 4097), "pilot_rounds": range(MOST_ROUNDS + 1)}

LARGEST_HEADER, LARGEST_FIELD = 10_000_000, 1_000_000
"""Bytes of a file's header, and characters of JSON in a field of it, at most; those that ship have 20,000 and 400."""

_Kind = TypeVar("_Kind")

_RESERVED = ("format", "model", "config")

#: Header keys of the scenes that weights have seen: JSON lists of names as ``scene_name`` gives them.
TRAINING_SCENES, VALIDATION_SCENES = "training_scenes", "validation_scenes"


def save_weights(path: str | Path, model: nn.Module, *, name: str, metadata: Mapping[str, str] | None = None) -> None:
    """Write a network's weights and what is needed to build it again.

    Floating-point tensors are stored as float32. The file appears whole or not at all.

    Args:
        path: File to write, usually ``*.safetensors``; an existing one is replaced.
        model: Network with a JSON-able attribute ``config``: its constructor's arguments.
        name: Its name in ``hsidenoise.models.MODELS``, such as ``"hcanet-bra"``.
        metadata: More to keep in the header: data, noise, seed, steps, commit. Strings only.

    Raises:
        ValueError: If the network has no ``config``, or ``metadata`` has one of the header's own keys or a
            value that is not a string.
        OSError: If the file cannot be written.

    Example:
        >>> from hsidenoise.models import create_model
        >>> import tempfile
        >>> network = create_model("hcanet-bra", planes=5, dim=16, num_blocks=(1, 1, 1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = f"{folder}/small.safetensors"
        ...     save_weights(file, network, name="hcanet-bra", metadata={"seed": "0"})
        ...     load_model(file).planes
        5
    """
    path = Path(path)
    config = getattr(model, "config", None)
    if not isinstance(config, Mapping):
        raise ValueError(f"{type(model).__name__} has no `config` with its constructor arguments: cannot save it")
    metadata = dict(metadata or {})
    for key, value in metadata.items():
        if key in _RESERVED:
            raise ValueError(f"metadata key {key!r} is one of the header's own: {', '.join(_RESERVED)}")
        if not isinstance(value, str):
            raise ValueError(f"metadata {key!r} must be a string, not {type(value).__name__}: convert it first")
    header = {"format": FORMAT, "model": name, "config": json.dumps(dict(config)), **metadata}
    state = {key: _to_store(tensor) for key, tensor in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as temporary:
        temporary.write_bytes(to_bytes(state, header))


def load_model(source: str | Path = DEFAULT_WEIGHTS, *, device: torch.device | str | None = None) -> nn.Module:
    """Build a network from shipped weights or from a weights file.

    The global random state is left as it was.

    Args:
        source: Name in :data:`WEIGHTS`, or path of a file that :func:`save_weights` wrote.
        device: Where to put the network; the CPU by default.

    Returns:
        The network in evaluation mode.

    Raises:
        ValueError: If ``source`` is neither a name nor a weights file, or its tensors do not fit its network.
        FileNotFoundError: If the file does not exist.

    Example:
        >>> load_model("no-such-weights")
        Traceback (most recent call last):
        ...
        FileNotFoundError: no-such-weights: neither shipped weights (...) nor a file; see `hsidenoise weights`
    """
    path = _find(source)
    header = read_header(path)
    try:
        config = read_json(header, "config", dict)
        asked = asked_of(header)
        with torch.device("meta"):  # nothing is allocated: a header may say what its file does not hold
            wanted = create_model(header["model"], **config).state_dict()
    except (ValueError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: cannot build the network it names: {reason}") from error
    _check_shapes(header["model"], wanted, path)
    try:
        # Building a network draws its random start, which is overwritten at once: the caller's stream of
        # random numbers shall not depend on whether a network was loaded in between.
        with torch.random.fork_rng(devices=[]):
            model: nn.Module = create_model(header["model"], **config)
    except (ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: cannot build the network it names: {reason}") from error
    with safe_open(path, framework="pt", device="cpu") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    model.load_state_dict(state)
    for name, value in asked.items():  # with which these weights are fast and good: denoise() takes them by default
        setattr(model, name, value)
    return model.to(device or "cpu").eval()


def start_from(network: nn.Module, source: str | Path) -> None:
    """Give a network the values of saved weights.

    Its attribute ``switches`` names what it may have otherwise than they do, such as the attention of its blocks: what
    only the network has stays as it is.

    Warns:
        UserWarning: If it has something otherwise, with how much of it starts from the weights.

    Raises:
        ValueError: If the weights belong to another network or another configuration of it.
    """
    saved = load_model(source)
    switches = getattr(network, "switches", ())
    of_weights, wanted = (dict(getattr(each, "config", {})) for each in (saved, network))
    differing = {key for key in wanted if of_weights.get(key) != wanted[key]}
    if type(saved) is not type(network) or not differing <= set(switches):
        raise ValueError(
            f"{source}: weights of {type(saved).__name__} {of_weights}, the run has {type(network).__name__} "
            f"{wanted}: make model and model_config the same"
        )
    state, there = network.state_dict(), saved.state_dict()
    known = {key: there[key] for key in state if key in there and there[key].shape == state[key].shape}
    if differing:
        warnings.warn(
            f"{source}: weights of {of_weights}, the run has {wanted}: {len(known)} of {len(state)} arrays "
            f"start from these weights, {len(state) - len(known)} anew, and {len(there) - len(known)} are left out",
            stacklevel=2,
        )
    network.load_state_dict(known, strict=False)


def read_header(source: str | Path) -> dict[str, str]:
    """What a weights file says of itself, without reading its tensors.

    Returns:
        ``format``, ``model``, ``config`` (JSON), whatever :func:`save_weights` was given, and ``parameters``:
        the number of values stored, as a string.

    Raises:
        ValueError: If it is not a file of :func:`save_weights`.
        FileNotFoundError: If the file does not exist.
    """
    path = _find(source)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if LARGEST_HEADER < length <= path.stat().st_size:
        raise ValueError(
            f"{path}: its header has {length} bytes, more than {LARGEST_HEADER}: not a weights file of ours"
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = dict(file.metadata() or {})
            shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise ValueError(
            f"{path}: not a weights file (no safetensors header, or cut short): give a name of "
            f"`hsidenoise weights` or a .safetensors file that `hsidenoise train` wrote"
        ) from error
    if header.get("format") != FORMAT or "model" not in header or "config" not in header:
        found = header.get("format", "nothing")
        raise ValueError(
            f"{path}: a safetensors file, but not of hsidenoise (format {FORMAT!r} expected in its header, "
            f"found {found!r}): give a file that `hsidenoise train` or save_weights wrote"
        )
    header["parameters"] = str(sum(math.prod(shape) for shape in shapes))
    return header


def asked_of(facts: Mapping[str, str]) -> dict[str, int]:
    """What weights ask :func:`hsidenoise.denoise` to take by default.

    Raises:
        ValueError: If a value is none of :data:`ASKED`; it names the field.

    Example:
        >>> asked_of({"pilot_rounds": "2", "seed": "0"}), asked_of({"passes": "3"})
        ({'pilot_rounds': 2}, {'pilot_rounds': 2})
    """
    found: dict[str, int] = {}
    for name, taken in (*ASKED.items(), ("passes", range(1, MOST_ROUNDS + 2))):
        text = facts.get(name, "null")
        if text == "null":
            continue
        if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) in taken):
            raise ValueError(
                f"{name} is {short(text)}: {said(int, {'least': taken[0], 'most': taken[-1]})} is expected"
            )
        if name == "passes":  # in older files: the network and each round of the pilot filter
            found.setdefault("pilot_rounds", int(text) - 1)
        else:
            found[name] = int(text)
    return found


def scenes_seen(header: Mapping[str, str], key: str = TRAINING_SCENES) -> list[str]:
    """Scenes that weights were trained on (or chosen by), those of the weights they started from included.

    Args:
        header: Header of a weights file, as :func:`read_header` gives it.
        key: :data:`TRAINING_SCENES` or :data:`VALIDATION_SCENES`.

    Returns:
        Sorted names; of an older file, which has no such list, those that it describes in words.

    Raises:
        ValueError: If the list is none; it names the key.
    """
    if key in header:
        names = read_json(header, key, list)
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f"{key} is {short(header[key])}: a JSON list of names is expected")
        return sorted(names)
    words = header.get("data", "").partition(": ")[2] if key == TRAINING_SCENES else header.get("validation", "")
    return sorted({scene_name(name.strip()) for name in words.split(",") if name.strip()})


def read_json(facts: Mapping[str, str], name: str, kind: type[_Kind]) -> _Kind:
    """A field of a header that holds JSON, refused unless it is short, plain and of the kind that is expected.

    Raises:
        ValueError: If it is not; it names the field.
    """
    text = facts.get(name, "")
    if len(text) > LARGEST_FIELD:
        raise ValueError(f"{name} has {len(text)} characters, more than {LARGEST_FIELD}")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is {short(text)}: a JSON {kind.__name__} is expected") from error
    if not isinstance(found, kind):
        raise ValueError(f"{name} is {short(text)}: a JSON {kind.__name__} is expected")
    return found


def sha256(source: str | Path) -> str:
    """SHA-256 of a weights file, in hexadecimal: a result's table states it.

    Raises:
        FileNotFoundError: If the file does not exist.
    """
    return files.sha256(_find(source))


def _find(source: str | Path) -> Path:
    if isinstance(source, str) and source in WEIGHTS:
        path = WEIGHTS[source].path
        if not path.exists():
            raise FileNotFoundError(
                f"the weights {source} do not come with an installed package: take data/weights/{path.name} of the "
                f"repository and name that file"
            )
        return path
    path = Path(source)
    if path.is_dir():
        raise ValueError(f"{path}: a folder, not a weights file: name the .safetensors file in it")
    if not path.is_file():
        names = ", ".join(WEIGHTS) or "none in this version"
        more = did_you_mean(str(source), WEIGHTS) or "; see `hsidenoise weights`"
        raise FileNotFoundError(f"{path}: neither shipped weights ({names}) nor a file{more}")
    return path


def _to_store(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.float()
    # safetensors refuses tensors that share memory, and layouts such as channels-last.
    return tensor.clone(memory_format=torch.contiguous_format)


def _check_shapes(name: str, wanted: Mapping[str, Tensor], path: Path) -> None:
    """Compare what a header implies with what its file holds: one line instead of load_state_dict's many."""
    with safe_open(path, framework="pt", device="cpu") as file:
        state = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - no mapping
    problems = []
    if missing := sorted(wanted.keys() - state.keys()):
        problems.append(f"{len(missing)} missing (first: {missing[0]})")
    if unknown := sorted(state.keys() - wanted.keys()):
        problems.append(f"{len(unknown)} unknown (first: {unknown[0]})")
    other = [key for key in wanted.keys() & state.keys() if tuple(wanted[key].shape) != state[key]]
    if other:
        key = min(other)
        problems.append(f"{len(other)} of another shape (first: {key} {state[key]})")
    if problems:
        raise ValueError(
            f"{path}: its tensors do not fit {name} as its header describes it: "
            f"{', '.join(problems)}; it was changed or written by another version: export it again"
        )
