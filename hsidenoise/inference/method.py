"""Every way to denoise behind one type: networks, classical methods, anybody's own function, the input itself.

A :class:`Method` is made of a name, without loading or importing anything; what it needs is found when it is first run.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from reprlib import repr as short
from typing import Any, ClassVar, NamedTuple, get_type_hints

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import nn

from hsidenoise.classical.methods import BASELINES, find_method, run_baseline
from hsidenoise.inference.denoise import denoise
from hsidenoise.inference.network import OnnxNetwork, choose_model, is_exported, traits_of
from hsidenoise.inference.options import DenoiseOptions
from hsidenoise.models import weights
from hsidenoise.system.code_version import code_version
from hsidenoise.system.files import sha256
from hsidenoise.system.machine import count_operations
from hsidenoise.system.options import checked, did_you_mean

NOISY = "noisy"
"""Name of the method that shows the input."""

WEIGHTS = "weights:"
"""What the name of a method starts with that is a network: ``weights:NAME`` or ``weights:FILE``."""

COUNTED = 128
_COUNTED_BANDS = 31  # of a network of any number
"""Side in pixels of the image whose operations are counted; the networks' cost is linear in the pixels."""

#: Options of :func:`hsidenoise.denoise` that a table may set for a network: all that its answer depends on.
OPTIONS = {
    field.name: field
    for field in fields(DenoiseOptions)
    if field.name not in ("weights", "device", "batch", "compile", "noise", "progress")
}


class Cost(NamedTuple):
    """What a network is made of: its number of weights, and its operations for one pixel of one pass."""

    parameters: int
    per_pixel: int


class SeenScenes(NamedTuple):
    """Scenes that weights were trained on, and those that they were chosen by, as ``scene_name`` gives them."""

    trained_on: tuple[str, ...] = ()
    chosen_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Method:
    """One way to denoise; :func:`make_method` makes it of its name.

    Attributes:
        name: Its name, as :func:`make_method` takes it.
        label: What a table calls it.
        options: For a network, options of :func:`hsidenoise.denoise`.
        computes: False for the noisy input, which is shown and never ranked.
        is_code: Whether it is somebody's code, which runs when it is looked up.
        on_device: Whether it runs on a device that may be chosen.
    """

    name: str
    label: str
    options: Mapping[str, Any] = field(default_factory=dict)

    computes: ClassVar[bool] = True
    is_code: ClassVar[bool] = False
    on_device: ClassVar[bool] = False
    called: ClassVar[tuple[Callable[..., Any], ...]] = ()
    """What it calls: the sources of their modules, and of all that these import, decide its answer."""

    @property
    def blind(self) -> bool:
        """Whether it does without the noise level."""
        return True

    def prepare(self, device: str | None = None) -> None:
        """Load what it needs, which is not to be timed.

        Args:
            device: Where a network runs; the best one here if None.

        Raises:
            ValueError: If what it names is not there or cannot be used.
            ImportError: If it needs a package that is not installed.
        """

    def run(
        self,
        noisy: Float32[np.ndarray, "bands height width"],
        sigma: float | Float[np.ndarray, " bands"] | None = None,
        device: str | None = None,
    ) -> Float[np.ndarray, "bands height width"]:
        """Denoise a cube on about [0, 1].

        Args:
            noisy: Noisy cube, not clipped.
            sigma: Noise level in the unit of the cube, for a method that is not blind.
            device: Where a network runs; the best one here if None.

        Returns:
            Denoised cube, not clipped.

        Raises:
            ValueError: If it fails, or what it returns is not a finite cube of that shape.
        """
        raise NotImplementedError

    def identity(self) -> str:
        """What decides its answer beside the input: hashes of the code that it runs and of the file that it names."""
        return self._code()

    def seen_scenes(self) -> SeenScenes:
        """Scenes that it has seen before a test, as far as that is known."""
        return SeenScenes()

    def cost(self) -> Cost | None:
        """Weights and operations; None if they cannot be counted."""
        return None

    def description(self) -> str:
        """What the head of a table has to say of it; empty for a method that this package holds whole."""
        return ""

    def _code(self, *modules: str, extra: Iterable[str] = ()) -> str:
        """Hash of this module, of those of what it calls, of further ones, and of all that these import."""
        roots = dict.fromkeys([*(function.__module__ for function in self.called), *modules])
        return hashlib.sha256(f"{sha256(__file__)} {code_version(*roots, extra=extra)}".encode()).hexdigest()


class NoisyInput(Method):
    """The noisy cube as it is."""

    computes = False

    def run(
        self, noisy: np.ndarray, sigma: float | np.ndarray | None = None, device: str | None = None
    ) -> Float[np.ndarray, "bands height width"]:
        """Return the input."""
        return noisy


class Network(Method):
    """A network with weights, by the name of shipped ones or by a file; see :func:`hsidenoise.denoise`."""

    on_device = True
    called = (choose_model, denoise)

    @property
    def file(self) -> str:
        """Name of shipped weights, or a weights or ``.onnx`` file."""
        return self.name.removeprefix(WEIGHTS)

    def prepare(self, device: str | None = None) -> None:
        """Load the network."""
        _network(self.file, device)

    def run(
        self, noisy: np.ndarray, sigma: float | np.ndarray | None = None, device: str | None = None
    ) -> Float[np.ndarray, "bands height width"]:
        """Denoise a cube without scaling it, unless the options say so."""
        options = {"normalize": "none"} | dict(self.options)
        found: np.ndarray = denoise(noisy, _network(self.file, device), axes="bhw", **options)
        return found

    def identity(self) -> str:
        """Hashes of code and weights."""
        return f"{self._code(extra=('onnxruntime',) if is_exported(self.file) else ())} {self.digest()}"

    def digest(self) -> str:
        """SHA-256 of the weights file."""
        return sha256(self.file) if is_exported(self.file) else weights.sha256(self.file)

    def seen_scenes(self) -> SeenScenes:
        """Scenes that the header of the weights names.

        Raises:
            ValueError: If it is not a weights file.
            FileNotFoundError: If there is no such file.

        Example:
            >>> make_method("weights:hcanet").seen_scenes().trained_on[:2]
            ('balloons', 'cd')
        """
        exported = OnnxNetwork(self.file).metadata if is_exported(self.file) else None
        header: Mapping[str, str] = weights.read_header(self.file) if exported is None else {}
        try:
            if exported is not None:
                found = weights.read_json({"weights": "{}", **exported}, "weights", dict)
                header = {name: str(text) for name, text in found.items()}
            return SeenScenes(
                tuple(weights.scenes_seen(header, weights.TRAINING_SCENES)),
                tuple(weights.scenes_seen(header, weights.VALIDATION_SCENES)),
            )
        except ValueError as error:
            raise ValueError(f"{self.file}: {error}") from error

    def cost(self) -> Cost | None:
        """Counted on an image of :data:`COUNTED` pixels a side; None for an exported network."""
        if is_exported(self.file):
            return None
        network, _ = choose_model(self.file, "cpu")
        cube = torch.rand(
            1, traits_of(network).bands or _COUNTED_BANDS, COUNTED, COUNTED, generator=torch.Generator().manual_seed(0)
        )
        with torch.inference_mode():
            count = count_operations(lambda: network(cube))
        return Cost(sum(weight.numel() for weight in network.parameters()), round(count / COUNTED**2))

    def description(self) -> str:
        """Weights with their hash, and the options."""
        options = "".join(f", {key} {value}" for key, value in self.options.items())
        tile = "" if "tile" in self.options else ", tile by default"
        unknown = "" if self.seen_scenes().trained_on else "; what they were trained on is not known here"
        return f"{self.name}, sha256 {self.digest()[:16]}{tile}{options}{unknown}"


class Classical(Method):
    """A method of :data:`hsidenoise.classical.methods.BASELINES`."""

    called = (find_method, run_baseline)

    @property
    def blind(self) -> bool:
        """Whether it estimates the noise level itself."""
        return find_method(self.name).blind

    def prepare(self, device: str | None = None) -> None:
        """Find the method and the package that it needs."""
        extra = find_method(self.name).extra
        if extra is not None:
            try:
                __import__(extra)
            except ImportError as error:
                raise ImportError(f"{extra} is not installed: pip install 'hsidenoise[{extra}]'") from error

    def run(
        self, noisy: np.ndarray, sigma: float | np.ndarray | None = None, device: str | None = None
    ) -> Float[np.ndarray, "bands height width"]:
        """Denoise by :func:`hsidenoise.classical.methods.run_baseline`; a blind method is not given sigma."""
        method = find_method(self.name)
        return run_baseline(method, noisy, None if method.blind else sigma)

    def identity(self) -> str:
        """Hash of the code."""
        extra = find_method(self.name).extra
        return self._code(extra=() if extra is None else (extra,))


class OwnFunction(Classical):
    """Anybody's ``package.module:function`` of a cube that returns a cube."""

    is_code = True

    def identity(self) -> str:
        """Hash of the module that it names, and of all that this imports and that is not installed as a library."""
        module = find_method(self.name).name.partition(":")[0]
        file: str | None = vars(sys.modules[module]).get("__file__")
        return f"{self._code(module)} {sha256(file) if file else module}"

    def description(self) -> str:
        """A hash of the code."""
        return f"{self.name}, code sha256 {self.identity()[:16]}; what it was trained on is not known here"


@lru_cache(maxsize=2)
def _network(file: str, device: str | None) -> nn.Module:
    return choose_model(file, device)[0]


def make_method(
    name: str,
    label: str | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    others: Iterable[str] = (),
) -> Method:
    """Make a method of its name; nothing is loaded or imported, so that only what can be seen in a name is checked.

    Args:
        name: ``noisy``, the name of a baseline, ``weights:NAME|FILE``, or ``package.module:function``.
        label: Its name in a table; the name itself if None.
        options: Options of :func:`hsidenoise.denoise`, for a network: one of :data:`OPTIONS`.
        others: Further names that a reader may have meant, for the message.

    Raises:
        ValueError: If the name or an option is unknown, or a value or the label cannot be taken.

    Example:
        >>> type(make_method("weights:hcanet-bra")).__name__, make_method("svd-tv").blind
        ('Network', True)
        >>> make_method("svd-vt")
        Traceback (most recent call last):
        ...
        ValueError: unknown method 'svd-vt'; did you mean 'svd-tv'?
    """
    if name == NOISY:
        kind: type[Method] = NoisyInput
    elif name.startswith(WEIGHTS):
        kind = Network
    elif name in BASELINES:
        kind = Classical
    elif ":" in name:
        kind = OwnFunction
    else:
        known = (*others, NOISY, *BASELINES)
        listed = f"; known: {', '.join(dict.fromkeys(known))}, {WEIGHTS}NAME|FILE, package.module:function"
        raise ValueError(f"unknown method '{short(name)[1:-1]}'{did_you_mean(name, known) or listed}")
    label = name if label is None else label
    if not label.strip() or label == "clean" or (label == NOISY) != (kind is NoisyInput):
        # the input is shown beside the others and never ranked: by its label
        raise ValueError(f"method '{name}' cannot be labelled '{label}'; '{NOISY}' and 'clean' are taken")
    return kind(name, label, _options(name, options or {}, kind is Network))


def _options(name: str, options: Mapping[str, Any], takes: bool) -> dict[str, Any]:
    """Options of a network, refused unless each is known and its value is taken."""
    found = dict(options)
    if takes and type(found.get("passes")) is int:  # older name: the network and each round
        found["pilot_rounds"] = found.pop("passes") - 1
    types = get_type_hints(DenoiseOptions)
    for key, value in found.items():
        if key not in OPTIONS or not takes:
            raise ValueError(f"method '{name}' has no option '{key}'; weights have {', '.join(OPTIONS)}")
        checked(value, types[key], f"method '{name}': {key}", OPTIONS[key].metadata)
    return found
