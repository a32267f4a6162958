"""Export of a network to ONNX: one file that other programs run, for cubes of any height, width and number.

What is learnt is exported. What HCANetBRA starts from beside rests on eigen-decompositions, which ONNX does not have;
its parts are inputs of the file (``OnnxNetwork`` computes them). A file is only written if ONNX Runtime gives what
PyTorch gives, at sizes that the export has not seen.

A network that halves its image twice is followed through the exporter for heights and widths that are multiples of 4:
there every size is a plain multiple of a symbol, and tracing takes a third of the time. What makes any image such a one
is put in front as nodes of the graph, and the crop behind.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hsidenoise.inference.network import FORMAT, OnnxNetwork, traits_of
from hsidenoise.inference.options import OPSET
from hsidenoise.models.hcanet_bra import PLANE_INPUTS, HCANetBRA
from hsidenoise.models.registry import MODELS
from hsidenoise.models.shipped import DEFAULT_WEIGHTS
from hsidenoise.models.unet import MixingUNet
from hsidenoise.models.weights import load_model, read_header
from hsidenoise.system.code_version import VERSION
from hsidenoise.system.files import check_target, replacing
from hsidenoise.system.machine import in_use

if TYPE_CHECKING:
    import onnx

TOLERANCE = 1e-4
"""Largest difference to PyTorch that is let through, relative to the largest value of the answer."""
CHECKED_SIZES = ((1, 37, 50), (2, 64, 41), (3, 5, 9))
"""Batch, height and width at which a file is checked: others than the traced one."""

_LARGEST = 2**14
_SOME_BANDS = 7  # at which a network of any number is checked

MULTIPLE = 4
"""Heights and widths of the graph proper are multiples of this."""

# What `pad_to_multiple` does to one axis, and the crop that undoes it, in ONNX's own words.
_EXTEND = """<domain: "hsidenoise", opset_import: ["" : {opset}]>
Extend{axis} (image) => (extended) {{
    zero = Constant <value_int: int = 0> ()
    one = Constant <value_int: int = 1> ()
    two = Constant <value_int: int = 2> ()
    multiple = Constant <value_int: int = {multiple}> ()
    sizes = Shape <start: int = {axis}, end: int = {end}> (image)
    length = Squeeze (sizes)
    last = Sub (length, one)
    steps = Div (last, multiple)
    steps_up = Add (steps, one)
    whole = Mul (steps_up, multiple)
    position = Range (zero, whole, one)
    twice = Mul (last, two)
    mirrored = Sub (twice, position)
    smallest = ReduceMin <keepdims: int = 0> (mirrored)
    short = Less (smallest, zero)
    beyond = Where (short, last, mirrored)
    inside = Less (position, length)
    index = Where (inside, position, beyond)
    extended = Gather <axis: int = {axis}> (image, index)
}}"""
_CROP = """<domain: "hsidenoise", opset_import: ["" : {opset}]>
Crop (extended, image) => (cropped) {{
    start = Constant <value_ints: ints = [0, 0]> ()
    axes = Constant <value_ints: ints = [2, 3]> ()
    sizes = Shape <start: int = 2, end: int = 4> (image)
    cropped = Slice (extended, start, sizes, axes)
}}"""


@dataclass(frozen=True)
class ExportedNetwork:
    """What :func:`export_onnx` wrote.

    Attributes:
        path: The file.
        model: Name of the network, a key of ``hsidenoise.models.MODELS``.
        inputs: Name of each input and its axes.
        output: Axes of the output, which is called ``denoised``.
        opset: Operator set.
        error: Largest difference to PyTorch at the sizes that were checked, relative to the largest value.
        checked: Those sizes: (batch, bands, height, width).
    """

    path: Path
    model: str
    inputs: dict[str, tuple[str, ...]]
    output: tuple[str, ...]
    opset: int
    error: float
    checked: tuple[tuple[int, int, int, int], ...]


def export_onnx(
    model: nn.Module | str | Path = DEFAULT_WEIGHTS, target: str | Path = "network.onnx", *, opset: int = OPSET
) -> ExportedNetwork:
    """Write a network as an ONNX file with free batch, height and width.

    HCANet has one input, ``noisy``, of as many bands as the network, and the output ``denoised``. HCANetBRA, for any
    number of bands, has three of the parts of :func:`hsidenoise.models.hcanet_bra.estimate_planes` as its inputs,
    ``planes``, ``doubts`` and ``spread``; its ``denoised`` is what is missing in its planes.

    Exporting takes a minute or several: all sizes are followed as symbols through the network.

    Args:
        model: A network, the name of shipped weights, or the path of a weights file. Left as it is.
        target: File to write, ``*.onnx``. It appears whole or not at all.
        opset: ONNX operator set, 18 or later.

    Returns:
        What was written, and how far it is from PyTorch.

    Raises:
        ValueError: If the network is none of this package, the file's name does not end in ``.onnx``, the operator
            set is too old, or ONNX Runtime's answer is off by more than 1e-4 relative.
        OSError: If the file cannot be written.
        ImportError: If onnx, onnxscript or onnxruntime is not installed.

    Example:
        >>> export_onnx("hcanet-bra", "network.pt")
        Traceback (most recent call last):
        ...
        ValueError: network.pt: an ONNX file is called .onnx; name it so
    """
    target = Path(target)
    if target.suffix.lower() != ".onnx":
        raise ValueError(f"{target}: an ONNX file is called .onnx; name it so")
    if opset < 18:
        raise ValueError(f"operator set {opset} has no layer norm for images; choose 18 or later ({OPSET} is usual)")
    network, name, header = _network(model)
    check_target(target)
    _check_installed()
    with in_use(network, torch.device("cpu")), torch.no_grad():
        proto = with_padding(_trace(network, opset), opset)
        _describe(proto, network, name, header)
        with replacing(target) as temporary:
            temporary.write_bytes(proto.SerializeToString())
            error, checked = _compare(network, temporary)
            if not error <= TOLERANCE:
                raise ValueError(
                    f"ONNX Runtime's answer is off by {error:.1e} of the largest value (at most {TOLERANCE:.0e} is let "
                    f"through), so {target} was not written; try another opset than {opset}"
                )
    inputs = {item.name: _axes(item) for item in proto.graph.input}
    return ExportedNetwork(target, name, inputs, _axes(proto.graph.output[0]), opset, error, checked)


def _check_installed() -> None:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 - the exporter needs it
    except ImportError as error:
        raise ImportError(
            f"export needs {error.name or 'onnx'}, which is not installed: pip install 'hsidenoise[onnx]'"
        ) from error
    del onnx, onnxruntime


def _network(model: nn.Module | str | Path) -> tuple[nn.Module, str, dict[str, str]]:
    """A network, its name, and what its weights file says of it."""
    if not isinstance(model, nn.Module):
        header = read_header(model)
        return load_model(model), header["model"], header
    for name, kind in MODELS.items():
        if type(model) is kind:
            return model, name, {}
    raise ValueError(f"{type(model).__name__} is not a network of this package ({', '.join(MODELS)}): cannot export it")


def _trace(network: nn.Module, opset: int) -> onnx.ModelProto:
    """The graph for heights and widths that are multiples of 4."""
    from torch.export import Dim

    bands = traits_of(network).bands or 1
    # More than one region on every level: of a size that may be one, tracing does not know whether to broadcast it. The
    # graph does, and small images are among those that are compared.
    config: Any = network.config
    least = int(config.get("region_size", 1)) + 1
    free: dict[int, Any] = {0: Dim("batch", min=1, max=_LARGEST)}
    size = {axis: MULTIPLE * Dim(name, min=least, max=_LARGEST) for axis, name in ((2, "rows"), (3, "columns"))}
    # no two sizes alike, nor alike to a number of channels by accident
    noisy = torch.rand(3, bands, MULTIPLE * (least + 2), MULTIPLE * (least + 5))
    call, inputs = _learnt(network, noisy)
    names = [padded(name) if tensor.ndim == 4 else name for name, tensor in inputs.items()]
    shapes = tuple({**free, **size} if tensor.ndim == 4 else free for tensor in inputs.values())
    with _quiet():
        followed = torch.export.export(call, tuple(inputs.values()), dynamic_shapes=(shapes,), strict=True)
        program = torch.onnx.export(
            followed,
            dynamo=True,
            input_names=names,
            output_names=[padded("denoised")],
            opset_version=opset,
            verbose=False,
        )
        assert program is not None
        proto: onnx.ModelProto = program.model_proto
    return proto


class _Learnt(nn.Module):
    """What is learnt of a network, as a module of its own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.learnt = network.learnt if isinstance(network, MixingUNet) else "forward"

    def forward(self, *inputs: Tensor) -> Tensor:
        denoised: Tensor = getattr(self.network, self.learnt)(*inputs)
        return denoised


def _learnt(network: nn.Module, noisy: Tensor) -> tuple[nn.Module, dict[str, Tensor]]:
    """What is learnt of a network, and inputs for it by name."""
    if isinstance(network, HCANetBRA):
        (batch, _, *size), planes = noisy.shape, network.planes
        images = torch.rand(batch, 4 * planes, *size), torch.rand(batch, 2, *size)
        return _Learnt(network), dict(zip(PLANE_INPUTS, (*images, 1 + torch.rand(batch, planes)), strict=True))
    return _Learnt(network), {"noisy": noisy}


def _axes(item: onnx.ValueInfoProto) -> tuple[str, ...]:
    return tuple(
        str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param for dim in item.type.tensor_type.shape.dim
    )


def _describe(proto: onnx.ModelProto, network: nn.Module, name: str, header: dict[str, str]) -> None:
    """Say in the file what it is, so that it is of use without this package's documentation."""
    from onnx import helper

    cubes = "cubes (batch, bands, height, width) scaled to about [0, 1]"
    inputs, output = f"noisy: {cubes}", "denoised: cubes of the size and in the unit of the first input"
    config: Any = network.config
    if isinstance(network, HCANetBRA):
        inputs = f"{', '.join(PLANE_INPUTS)}: parts of hsidenoise's estimate_planes of cubes, planes={network.planes}"
        output = "denoised: what is missing in the planes, in units of the noise"
    traits = traits_of(network)
    facts = {
        "format": FORMAT,
        "version": VERSION,
        "model": name,
        "config": json.dumps(config),
        "bands": json.dumps(traits.bands),
        "pilot_rounds": json.dumps(traits.pilot_rounds),
        "tile": json.dumps(traits.tile),
        "inputs": inputs,
        "output": output,
        "weights": json.dumps(header),
    }
    helper.set_model_props(proto, facts)
    proto.producer_name, proto.producer_version = "hsidenoise", VERSION
    proto.doc_string = f"{name}, a network that denoises hyperspectral images"


def _compare(network: nn.Module, path: Path) -> tuple[float, tuple[tuple[int, int, int, int], ...]]:
    """Largest relative difference between ONNX Runtime and PyTorch, and the sizes looked at."""
    exported = OnnxNetwork(path, device="cpu")
    generator = torch.Generator().manual_seed(0)
    error, checked = 0.0, []
    for batch, height, width in CHECKED_SIZES:
        bands = exported.bands or _SOME_BANDS
        # smooth along the bands, as spectra are: of mere noise the filters leave next to nothing
        smooth = (
            torch.rand(batch, 1, height, width, generator=generator) * torch.linspace(0.2, 1.0, bands)[:, None, None]
        )
        noisy = smooth + 0.1 * torch.randn(batch, bands, height, width, generator=generator)
        wanted, found = network(noisy), exported(noisy)
        error = max(error, float((found - wanted).abs().max() / wanted.abs().max()))
        checked.append((batch, bands, height, width))
    return error, tuple(checked)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says to those who develop it."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def padded(name: str) -> str:
    """What an input or the output is called inside, where height and width are multiples of 4.

    Example:
        >>> padded("noisy")
        'noisy_padded'
    """
    return f"{name}_padded"


def with_padding(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Put padding in front of a graph and a crop behind it.

    Args:
        proto: Graph whose images have heights and widths in multiples of 4 and are called by :func:`padded` names. It
            is changed.
        opset: Operator set of the graph.

    Returns:
        A graph for any height and width, its inputs and output under their own names.
    """
    import onnx
    from onnx import helper, inliner, parser

    graph = proto.graph
    before = []
    for item in graph.input:
        dims = ["batch", "bands", "height", "width"][: len(item.type.tensor_type.shape.dim)]
        if len(dims) == 4:
            name = item.name.removesuffix(padded(""))
            before.append(helper.make_node("Extend2", [name], [f"{name}_rows"], domain="hsidenoise"))
            before.append(helper.make_node("Extend3", [f"{name}_rows"], [item.name], domain="hsidenoise"))
            item.name = name
        _name_axes(item, dims)
    last = graph.output[0]
    crop = helper.make_node("Crop", [last.name, graph.input[0].name], ["denoised"], domain="hsidenoise")
    last.name = "denoised"
    _name_axes(last, ["batch", "bands", "height", "width"])
    nodes = [*before, *graph.node, crop]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]  # names the sizes of features by expressions in the old sizes
    proto.opset_import.append(helper.make_opsetid("hsidenoise", 1))
    for axis in (2, 3):
        text = _EXTEND.format(opset=opset, axis=axis, end=axis + 1, multiple=MULTIPLE)
        proto.functions.append(parser.parse_function(text))
    proto.functions.append(parser.parse_function(_CROP.format(opset=opset)))
    # as plain nodes: not every program that reads ONNX knows a file's own functions
    whole = inliner.inline_local_functions(proto)
    onnx.checker.check_model(whole)
    return whole


def _name_axes(item: onnx.ValueInfoProto, names: list[str]) -> None:
    for dim, name in zip(item.type.tensor_type.shape.dim, names, strict=True):
        if not dim.HasField("dim_value"):
            dim.dim_param = name
