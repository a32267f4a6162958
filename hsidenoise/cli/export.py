"""Write a network as an ONNX file for other programs.

The file takes cubes of any height, width and number at once, and is checked against PyTorch. It goes with `hsidenoise
denoise --weights` too. Takes a minute or several.
"""

from __future__ import annotations

import argparse

from hsidenoise.cli.shared import add_options, options_of, path
from hsidenoise.inference.options import ExportOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the verb takes."""
    parser.add_argument("-o", "--output", type=path, required=True, metavar="FILE.onnx", help="file to write")
    add_options(parser, ExportOptions)


def run(arguments: argparse.Namespace) -> None:
    """Write a network as an ONNX file."""
    from hsidenoise.inference.export import export_onnx
    from hsidenoise.models.shipped import DEFAULT_WEIGHTS

    options = options_of(ExportOptions, arguments)
    done = export_onnx(options.weights or DEFAULT_WEIGHTS, arguments.output, opset=options.opset)
    for name, axes in done.inputs.items():
        print(f"input    {name} ({', '.join(axes)})")
    print(f"output   denoised ({', '.join(done.output)})")
    sizes = ", ".join(" x ".join(str(size) for size in shape) for shape in done.checked)
    print(f"checked  against PyTorch at {sizes}: off by {done.error:.1e} of the largest value at most")
    size = done.path.stat().st_size / 2**20
    print(f"wrote    {done.path}: {done.model}, {size:.1f} MiB, ONNX operator set {done.opset}")
