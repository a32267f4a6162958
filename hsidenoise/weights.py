"""Weights for use: the table of what ships, and the one file format they are saved in.

A weights file is a safetensors file whose header says which network it belongs to and with which constructor
arguments, so that a file alone is enough to build the network again and nothing in it can run code. A
checkpoint (the state of a training run) is another thing and belongs to Lightning.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from hsidenoise.models import create_model
from hsidenoise.models.hcanet import HCANet
from hsidenoise.models.released import load_released

FORMAT = "hsidenoise-weights-1"
SHIPPED = Path(__file__).parent / "shipped"
DEFAULT_WEIGHTS = "hcanet-bra"

_RESERVED = ("format", "model", "config")


@dataclass(frozen=True)
class ShippedWeights:
    """One row of the table of shipped weights.

    Attributes:
        name: What ``--weights`` and :func:`load_model` call it.
        file: File name in the package's ``shipped`` folder.
        sha256: Hash of that file, so that a table of results can say which weights it used.
        model: Network, a name of ``hsidenoise.models.MODELS``.
        bands: Number of bands that the network takes at once.
        data: What it was trained on.
        noise: Noise cases it was trained for.
        licence: Terms under which the weights may be used.
        summary: One line for a person who chooses.
        scores: Noise case -> PSNR in dB, mean over the test scenes named in ``summary`` or in the card.
    """

    name: str
    file: str
    sha256: str
    model: str
    bands: int
    data: str
    noise: str
    licence: str
    summary: str
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Where the file lies in this installation."""
        return SHIPPED / self.file


_ROWS = (
    ShippedWeights(
        name="hcanet-bra",
        file="hcanet-bra.safetensors",
        sha256="a3881e96a3b8ce302fa338adb7421d202599832d4ec0c6bde84ce40fddc11537",
        model="hcanet-bra",
        bands=31,
        data="15 training scenes of CAVE (512x512, 31 bands, 400-700 nm), each min-max scaled",
        noise="blind: Gaussian of sigma 0-75, non-iid, stripe, deadline, impulse, mixture, T3SC's and MAFNet's cases",
        licence="the package's; trained on CAVE (Columbia University), to be cited as Yasuma et al. 2010",
        summary="blind, any of the literature's noise; small enough for a laptop",
        scores={
            "gaussian-5": 46.72,
            "gaussian-30": 38.90,
            "gaussian-50": 36.76,
            "gaussian-70": 35.29,
            "blind": 36.93,
            "non-iid": 39.25,
            "stripe": 39.15,
            "deadline": 38.98,
            "impulse": 37.93,
            "mixture": 36.12,
        },
    ),
    ShippedWeights(
        name="hcanet-bra-small",
        file="hcanet-bra-small.safetensors",
        sha256="f67e12c9244e01c1ad7e88dd7d7b1dbe550fec983118393de9528fbd9a8ecb64",
        model="hcanet-bra",
        bands=31,
        data="15 training scenes of CAVE (512x512, 31 bands, 400-700 nm), each min-max scaled",
        noise="blind: Gaussian of sigma 0-75, non-iid, stripe, deadline, impulse, mixture, T3SC's and MAFNet's cases",
        licence="the package's; trained on CAVE (Columbia University), to be cited as Yasuma et al. 2010",
        summary="blind, a third of the cost; for a first look",
        scores={
            "gaussian-5": 45.66,
            "gaussian-30": 37.82,
            "gaussian-50": 35.61,
            "gaussian-70": 34.14,
            "blind": 35.78,
            "non-iid": 38.43,
            "stripe": 38.22,
            "deadline": 38.15,
            "impulse": 37.01,
            "mixture": 34.91,
        },
    ),
    ShippedWeights(
        name="hcanet-bra-gaussian",
        file="hcanet-bra-gaussian.safetensors",
        sha256="e3077e6e9dc31552ba440836e5e0502cd07be0be0d3250a3a316be5d6a27ae6e",
        model="hcanet-bra",
        bands=31,
        data="15 training scenes of CAVE (512x512, 31 bands, 400-700 nm), each min-max scaled",
        noise="Gaussian of one unknown sigma, 10-75, fine-tuned from the blind default",
        licence="the package's; trained on CAVE (Columbia University), to be cited as Yasuma et al. 2010",
        summary="for noise that is known to be Gaussian and alike in all bands",
        scores={
            "gaussian-30": 38.94,
            "gaussian-50": 36.80,
            "gaussian-70": 35.34,
            "blind": 36.96,
        },
    ),
    ShippedWeights(
        name="hcanet",
        file="hcanet.safetensors",
        sha256="cf5541b1f3cf3e70f9ab3e1d6e334e9148cd660c7677593c851836b2489446b7",
        model="hcanet",
        bands=31,
        data="15 training scenes of CAVE (512x512, 31 bands, 400-700 nm), each min-max scaled",
        noise="blind: Gaussian of sigma 0-75, non-iid, stripe, deadline, impulse, mixture, T3SC's and MAFNet's cases",
        licence="the package's; trained on CAVE (Columbia University), to be cited as Yasuma et al. 2010",
        summary="HCANet as in its paper, 75 minutes on a CPU core: for comparison, not for use",
        scores={
            "gaussian-5": 37.41,
            "gaussian-30": 33.23,
            "gaussian-50": 31.12,
            "gaussian-70": 28.52,
            "blind": 31.28,
            "non-iid": 31.11,
            "stripe": 31.00,
            "deadline": 30.67,
            "impulse": 28.36,
            "mixture": 26.56,
        },
    ),
)

#: Every shipped weights file by its name.
WEIGHTS: dict[str, ShippedWeights] = {row.name: row for row in _ROWS}


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
            value that is no string.
        OSError: If the file cannot be written.

    Example:
        >>> from hsidenoise.models import create_model
        >>> import tempfile
        >>> network = create_model("hcanet-bra", bands=5, dim=16, num_blocks=(1, 1, 1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = f"{folder}/small.safetensors"
        ...     save_weights(file, network, name="hcanet-bra", metadata={"seed": "0"})
        ...     load_model(file).bands
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
    _replace(path, to_bytes(state, header))


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
        config: dict[str, Any] = json.loads(header["config"])
        # Building a network draws its random start, which is overwritten at once: the caller's stream of
        # random numbers shall not depend on whether a network was loaded in between.
        with torch.random.fork_rng(devices=[]):
            model: nn.Module = create_model(header["model"], **config)
    except (ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: cannot build the network it names: {reason}") from error
    with safe_open(path, framework="pt", device="cpu") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    _check_state(model, state, path)
    model.load_state_dict(state)
    if "tile" in header:  # the size at which these weights are fast and good: denoise() takes it by default
        model.tile = int(header["tile"])  # type: ignore[assignment]
    return model.to(device or "cpu").eval()


def start_from(network: nn.Module, source: str | Path) -> None:
    """Give a network the values of saved weights.

    Args:
        network: Network to fill, in place.
        source: Name or file of weights of the same network.

    Raises:
        ValueError: If the weights belong to another network or another configuration of it.
    """
    saved = load_model(source)
    if type(saved) is not type(network) or saved.config != network.config:
        raise ValueError(
            f"{source}: weights of {type(saved).__name__} {saved.config}, the run has {type(network).__name__} "
            f"{network.config}: make model and model_config the same"
        )
    network.load_state_dict(saved.state_dict())


def read_header(source: str | Path) -> dict[str, str]:
    """What a weights file says of itself, without reading its tensors.

    Args:
        source: Name in :data:`WEIGHTS`, or path of a weights file.

    Returns:
        ``format``, ``model``, ``config`` (JSON), whatever :func:`save_weights` was given, and ``parameters``:
        the number of values stored, as a string.

    Raises:
        ValueError: If it is no file of :func:`save_weights`.
        FileNotFoundError: If the file does not exist.
    """
    path = _find(source)
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


def sha256(source: str | Path) -> str:
    """SHA-256 of a weights file, in hexadecimal: a result's table states it.

    Args:
        source: Name in :data:`WEIGHTS`, or path of a weights file.

    Raises:
        FileNotFoundError: If the file does not exist.
    """
    with _find(source).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_released_hcanet(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> HCANet:
    """Build this project's HCANet from a state dict of the released HCANet file.

    Args:
        state: The released network's ``state_dict``.
        config: The arguments it was built with, under their released names.

    Returns:
        A network of 2-D convolutions that computes what the released one computes, in evaluation mode.

    Raises:
        ValueError: If the state does not fit the configuration.

    References:
        Hu et al., "Hybrid convolutional and attention network for hyperspectral image denoising", IEEE GRSL
        2024. arXiv:2403.10067
    """
    return load_released(state, config)


def _find(source: str | Path) -> Path:
    if isinstance(source, str) and source in WEIGHTS:
        return WEIGHTS[source].path
    path = Path(source)
    if path.is_dir():
        raise ValueError(f"{path}: a folder, not a weights file: name the .safetensors file in it")
    if not path.is_file():
        names = ", ".join(WEIGHTS) or "none in this version"
        raise FileNotFoundError(f"{path}: neither shipped weights ({names}) nor a file; see `hsidenoise weights`")
    return path


def _to_store(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.float()
    # safetensors refuses tensors that share memory, and layouts such as channels-last.
    return tensor.clone(memory_format=torch.contiguous_format)


def _check_state(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """One line instead of load_state_dict's many."""
    wanted = model.state_dict()
    problems = []
    if missing := sorted(wanted.keys() - state.keys()):
        problems.append(f"{len(missing)} missing (first: {missing[0]})")
    if unknown := sorted(state.keys() - wanted.keys()):
        problems.append(f"{len(unknown)} unknown (first: {unknown[0]})")
    other = [key for key in wanted.keys() & state.keys() if wanted[key].shape != state[key].shape]
    if other:
        key = min(other)
        problems.append(f"{len(other)} of another shape (first: {key} {tuple(state[key].shape)})")
    if problems:
        raise ValueError(
            f"{path}: its tensors do not fit {type(model).__name__} as its header describes it: "
            f"{', '.join(problems)}; it was changed or written by another version: export it again"
        )


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private to their owner; weights are as readable as any other new file.
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
