"""The verbs of the command line that are about weights: list them, export their network. `cli` parses their options."""

import argparse
import dataclasses
import json


def weights(options: argparse.Namespace) -> None:
    """List the weights that ship."""
    from hsidenoise.models.shipped import DEFAULT_WEIGHTS, WEIGHTS
    from hsidenoise.models.weights import read_header

    rows = []
    for item in WEIGHTS.values():
        row = dataclasses.asdict(item)
        here = item.path.exists()
        row["parameters"] = int(read_header(item.name)["parameters"]) if here else None
        row["bytes"] = item.path.stat().st_size if here else None
        row["default"] = item.name == DEFAULT_WEIGHTS
        rows.append(row)
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    if not rows:
        print("no weights ship with this version; train some with `hsidenoise train`")
    for row in rows:
        print(f"{row['name']}{' (default)' * row['default']}: {row['summary']}")
        size = "not in this installation: a file of the repository"
        if row["bytes"]:
            size = f"{row['parameters']:,} parameters, {row['bytes'] / 2**20:.1f} MiB"
        size += f", {row['bands']} bands at once"
        print(f"  network  {row['model']}, {size}")
        print(f"  data     {row['data']}")
        print(f"  noise    {row['noise']}")
        if row["scores"]:
            print("  PSNR     " + ", ".join(f"{case} {score:.2f}" for case, score in row["scores"].items()))
        print(f"  licence  {row['licence']}")
        print(f"  sha256   {row['sha256']}")


def export(options: argparse.Namespace) -> None:
    """Write a network as an ONNX file."""
    from hsidenoise.inference.export import export_onnx
    from hsidenoise.inference.onnx_network import ESTIMATE_INPUTS

    done = export_onnx(options.weights, options.output, opset=options.opset or 20)
    for name, axes in done.inputs.items():
        print(f"input    {name} ({', '.join(axes)})")
    print(f"output   denoised ({', '.join(done.output)})")
    if tuple(done.inputs) == ESTIMATE_INPUTS:
        names = ", ".join(ESTIMATE_INPUTS)
        print(f"         {names}: the parts of load_model(...).estimate(noisy), in their order")
    sizes = ", ".join(" x ".join(str(size) for size in shape) for shape in done.checked)
    print(f"checked  against PyTorch at {sizes}: off by {done.error:.1e} of the largest value at most")
    size = done.path.stat().st_size / 2**20
    print(f"wrote    {done.path}: {done.model}, {size:.1f} MiB, ONNX operator set {done.opset}")
