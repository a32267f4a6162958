"""Padding around an ONNX graph, in ONNX's own operators.

A network that halves its image twice is followed through the exporter for heights and widths that are multiples of 4:
there every size is a plain multiple of a symbol, and tracing takes a third of the time. What makes any image such a one
is put in front as nodes, and the crop behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

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


def padded(name: str) -> str:
    """What an input or the output is called inside, where height and width are multiples of 4.

    Args:
        name: Its name outside.

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
