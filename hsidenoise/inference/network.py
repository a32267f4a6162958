"""Which network a caller means, where it runs, what it asks of the runner; and an exported one, run by ONNX Runtime."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from hsidenoise.models.hcanet_bra import PLANE_INPUTS, corrected, plane_inputs
from hsidenoise.models.registry import check_config
from hsidenoise.models.shipped import DEFAULT_WEIGHTS
from hsidenoise.models.weights import asked_of, load_model, read_json
from hsidenoise.signal.planes.estimate import PlaneStages, denoise_by_planes
from hsidenoise.system.machine import find_device, home, is_out_of_memory
from hsidenoise.system.options import EnsembleSize, Precision

if TYPE_CHECKING:
    import onnxruntime

Model = nn.Module | str | Path | Callable[[np.ndarray], np.ndarray]
"""What denoises: a network, its weights by name or path, or any function of a cube."""

FORMAT = "hsidenoise-onnx-1"
"""What the metadata of a file says that ``export_onnx`` wrote."""


def choose_model(
    model: nn.Module | str | Path | None,
    device: str | torch.device | None = None,
    precision: Precision = "float32",
    compile: bool = False,
) -> tuple[nn.Module, torch.device]:
    """The network to run, and where to run it.

    Args:
        model: A network, the name of shipped weights, or the path of a weights or ``.onnx`` file; the default weights
            if None.
        device: Where to run; a network's own device if None, or the best one here for a name or a file.
        precision: As asked for; an exported network has its own.
        compile: As asked for; an exported network needs none.

    Raises:
        ValueError: If it is not a model, the device is missing, or an exported network cannot do what is asked.
        FileNotFoundError: If there is no such file.

    Example:
        >>> choose_model(nn.Conv2d(3, 3, 1))[1]
        device(type='cpu')
    """
    place = None if device is None else find_device(device)
    if model is not None and not isinstance(model, nn.Module | str | Path):
        raise ValueError(f"a model is a network, a name or a path of weights, not {type(model).__name__}")
    if isinstance(model, str | Path) and is_exported(model):
        model = OnnxNetwork(model, device=place)
    if isinstance(model, OnnxNetwork):
        if precision == "bfloat16" or compile:
            asked = "compile" if compile else "precision bfloat16"
            raise ValueError(f"{model.path} runs as it was exported, in float32; {asked} goes with weights only")
        return model, place or model.device
    if isinstance(model, nn.Module):
        return model, place or home(model) or torch.device("cpu")
    place = place or find_device()
    return load_model(DEFAULT_WEIGHTS if model is None else model, device=place), place


@dataclass(frozen=True)
class NetworkTraits:
    """All that the runner may ask of a network: attributes of the network by these names, or their defaults.

    Attributes:
        bands: Bands that it takes at once; None for any number. The one attribute that every network has to have.
        tile: Side of the tiles that it takes by default, pixels; None to leave it to the cube's size.
        pilot_rounds: Rounds of the pilot filter behind it by default.
    """

    bands: int | None
    tile: int | None = None
    pilot_rounds: int = 0


def traits_of(network: nn.Module) -> NetworkTraits:
    """What a network asks of the runner.

    Raises:
        ValueError: If it does not say how many bands it takes, or an attribute is of no use.

    Example:
        >>> traits_of(nn.Identity())
        Traceback (most recent call last):
        ...
        ValueError: Identity has no attribute `bands`, the number of bands that it takes (None for any); set it
    """
    given = {name: getattr(network, name) for name in NetworkTraits.__dataclass_fields__ if hasattr(network, name)}
    kind, bands = type(network).__name__, given.get("bands", 0)
    if bands is not None and (not isinstance(bands, int) or bands < 1):
        raise ValueError(f"{kind} has no attribute `bands`, the number of bands that it takes (None for any); set it")
    for name, least in (("tile", 1), ("pilot_rounds", 0)):
        value = given.get(name, least)
        if not (isinstance(value, int) and value >= least) and not (value is None and name == "tile"):
            raise ValueError(f"{kind} has `{name}` {value!r}; a whole number from {least} is expected")
    return NetworkTraits(**given)


def is_exported(model: nn.Module | str | Path | None) -> bool:
    """Whether a model is named by the path of an ``.onnx`` file."""
    return isinstance(model, str | Path) and Path(model).suffix.lower() == ".onnx"


def name_of(model: Model | None) -> str:
    """What to call a model in a report.

    Example:
        >>> name_of(None), name_of(nn.Identity()), name_of(np.negative)
        ('hcanet-bra', 'Identity', 'negative')
    """
    if isinstance(model, OnnxNetwork):
        return str(model.path)
    if isinstance(model, nn.Module):
        return type(model).__name__
    if model is None or isinstance(model, str | Path):
        return DEFAULT_WEIGHTS if model is None else str(model)
    return str(getattr(model, "name", None) or getattr(model, "__name__", type(model).__name__))


class OnnxNetwork(nn.Module):
    """An exported network that :func:`hsidenoise.denoise` takes like any other.

    What a network does not learn but starts from is computed by PyTorch: ONNX has no eigen-decomposition. The network
    runs in float32.

    Args:
        path: File that :func:`hsidenoise.inference.export.export_onnx` wrote.
        threads: Threads of ONNX Runtime; as many as PyTorch uses if None.
        device: Where to run. If None, a GPU if ONNX Runtime can use one, else the CPU.

    Attributes:
        bands: Bands that the network takes at once; None for any number.
        pilot_rounds: Rounds of the pilot filter that its weights ask for; 0 if the file does not say.
        tile: Side of the tiles that it takes by default, if its weights say so.
        device: Where it runs.
        metadata: What the file says of itself: ``model``, ``config`` (JSON), ``weights`` (JSON), ...

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a file of ``export_onnx``, or ONNX Runtime cannot use the device.
        ImportError: If ONNX Runtime is not installed.

    Example:
        >>> OnnxNetwork("no-such-file.onnx")
        Traceback (most recent call last):
        ...
        FileNotFoundError: no-such-file.onnx: no such file; `hsidenoise export` writes one
    """

    def __init__(
        self, path: str | Path, *, threads: int | None = None, device: str | torch.device | None = None
    ) -> None:
        super().__init__()
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; `hsidenoise export` writes one")
        self.path = path
        self.device, self._session = _session(path, threads, device)
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        if self.metadata.get("format") != FORMAT:
            raise ValueError(f"{path}: an ONNX file, but not of hsidenoise; write one with `hsidenoise export`")
        try:
            asked = asked_of(self.metadata)
            any_number = self.metadata.get("bands") == "null"
            self.bands = None if any_number else read_json(self.metadata, "bands", int)
            config = read_json({"config": "{}", **self.metadata}, "config", dict)
            check_config(config if self.bands is None else {**config, "bands": self.bands})
        except ValueError as error:
            raise ValueError(f"{path}: its metadata are not those of an export: {error}; export it again") from error
        self.pilot_rounds = asked.get("pilot_rounds", 0)
        self.tile = asked.get("tile")
        names = tuple(item.name for item in self._session.get_inputs())
        if names != (("noisy",) if self.bands is not None else PLANE_INPUTS):
            raise ValueError(f"{path}: its inputs are {', '.join(names)}, not those of an export; export it again")
        self._planes = config.get("planes", 0)

    def forward(
        self, noisy: Float[Tensor, "batch given height width"], sigma: Float[Tensor, " given"] | None = None
    ) -> Float[Tensor, "batch given height width"]:
        """Denoise.

        Args:
            noisy: Cubes.
            sigma: Noise level of each band; None: estimated, which a network of a number of bands does in any case.

        Returns:
            Denoised cubes in float32, on the device of ``noisy``.

        Raises:
            ValueError: If the network does not take this number of bands.
        """
        if self.bands is None:
            found = [denoise_by_planes(cube.float().cpu(), None, sigma, self._improve).denoised for cube in noisy]
            return torch.stack(found).to(noisy.device)
        given = noisy.shape[1]
        if given != self.bands:
            raise ValueError(f"cubes of {given} bands do not go through {self.path}, a network of {self.bands} bands")
        return self._run([noisy.float()]).to(noisy.device)

    def _improve(self, stages: PlaneStages) -> Tensor:
        inputs = plane_inputs(stages, self._planes)
        correction = self._run([getattr(inputs, name) for name in PLANE_INPUTS])
        return corrected(inputs.denoised, inputs.basis, correction)[0]

    def _run(self, inputs: list[Tensor]) -> Tensor:
        feed = {
            item.name: part.contiguous().cpu().numpy()
            for item, part in zip(self._session.get_inputs(), inputs, strict=True)
        }
        try:
            denoised = self._session.run(None, feed)[0]
        except Exception as error:  # ONNX Runtime's errors have no class in common
            kind = RuntimeError if is_out_of_memory(error) else ValueError  # the first is tried again in smaller tiles
            raise kind(f"{self.path}: {_first_line(error)}") from error
        return torch.from_numpy(denoised)


def _session(
    path: Path, threads: int | None, device: str | torch.device | None
) -> tuple[torch.device, onnxruntime.InferenceSession]:
    """Where to run, and the session that does."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(f"{path} needs ONNX Runtime: pip install 'hsidenoise[onnx]'") from error
    able = "CUDAExecutionProvider" in onnxruntime.get_available_providers() and torch.cuda.is_available()
    place = find_device("cuda" if able else "cpu") if device is None else find_device(device)
    providers: list[Any] = ["CPUExecutionProvider"]
    if place.type == "cuda":
        if not able:
            raise ValueError(
                "this ONNX Runtime cannot use CUDA (the package onnxruntime-gpu can); choose device cpu, "
                "or the weights in place of the .onnx file"
            )
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": place.index or 0}))
    elif place.type != "cpu":
        raise ValueError(f"an .onnx file runs on cpu or cuda, not on {place}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
    options.log_severity_level = 4  # what goes wrong is raised
    try:
        return place, onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # ONNX Runtime's errors have no class in common
        raise ValueError(f"{path}: ONNX Runtime cannot load it ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class Told(nn.Module):
    """A network that is given the noise level.

    Args:
        network: Network on planes (it takes any number of bands).
        sigma: Noise level of each band, in the unit of what it will get.

    Raises:
        ValueError: If the network cannot be given a noise level.
    """

    def __init__(self, network: nn.Module, sigma: Float[Tensor, " bands"]) -> None:
        super().__init__()
        if "sigma" not in inspect.signature(network.forward).parameters or getattr(network, "bands", 0) is not None:
            raise ValueError("a noise level can be given to networks on planes and to classical methods only")
        self.network = network
        self.register_buffer("sigma", sigma, persistent=False)

    def forward(self, noisy: Float[Tensor, "batch bands height width"]) -> Float[Tensor, "batch bands height width"]:
        """Denoise."""
        found: Tensor = self.network(noisy, self.sigma)
        return found


ENSEMBLES: tuple[int, ...] = get_args(EnsembleSize)
"""Sizes of an ensemble: groups of mirrorings."""

_MIRRORED = (3, 2, 1)  # axes of (batch, bands, height, width); an ensemble of 2 takes the first, one of 4 the first two


def mirrorings(count: int) -> tuple[tuple[int, ...], ...]:
    """The mirrorings of an ensemble, each as the axes of (batch, bands, height, width) that it flips.

    Raises:
        ValueError: If there is no ensemble of this size.

    Example:
        >>> mirrorings(4)
        ((), (3,), (2,), (3, 2))
    """
    if count not in ENSEMBLES:
        raise ValueError(
            f"there is no ensemble of {count}; choose 1 (none), 2 (columns mirrored), 4 (and rows) or 8 (and bands)"
        )
    axes = _MIRRORED[: ENSEMBLES.index(count)]
    return tuple(some for length in range(len(axes) + 1) for some in combinations(axes, length))


class Ensemble(nn.Module):
    """Mean of a network's answers to mirrored inputs, each mirrored back.

    One after the other: the price is time, not memory.

    Only the symmetries that the noise has too are of use. Stripes and dead columns lie along the columns, and a network
    that was trained on them knows it: the columns stay columns under a mirroring of columns, of rows and of bands, and
    not under a quarter turn (in training patches are turned too, but before noise is added). That makes 8 in all.

    References:
        Timofte, Rothe, Van Gool, "Seven Ways to Improve Example-Based Single Image Super Resolution", CVPR 2016,
        arXiv:1511.02228 (there with quarter turns)

    Args:
        network: Network to run; shares its weights and is not changed.
        count: Number of answers: 1, 2, 4 or 8, see :func:`mirrorings`.

    Raises:
        ValueError: If there is no ensemble of this size.

    Example:
        >>> class First(nn.Module):
        ...     def forward(self, noisy):
        ...         return noisy[..., :1].expand_as(noisy)
        >>> Ensemble(First(), 2)(torch.tensor([[[[1.0, 2.0, 5.0]]]]))
        tensor([[[[3., 3., 3.]]]])
    """

    extra_cubes = 6
    """Cubes that it holds beside what the network does: mirrored inputs and the sum of the answers."""

    def __init__(self, network: nn.Module, count: int) -> None:
        super().__init__()
        self.network = network
        self.mirrorings = mirrorings(count)

    def forward(self, noisy: Float[Tensor, "batch bands height width"]) -> Float[Tensor, "batch bands height width"]:
        """Run the network as often as there are mirrorings.

        Returns:
            Mean of the answers, float32.
        """
        total = torch.zeros((), device=noisy.device)
        for axes in self.mirrorings:
            total = total + self.network(noisy.flip(axes)).flip(axes).float()
        return total / len(self.mirrorings)
