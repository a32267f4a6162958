"""List the weights that ship, what they were trained on and how good they are."""

from __future__ import annotations

import argparse
import dataclasses
import json

from hsidenoise.cli.shared import add_json as add_arguments

__all__ = ["add_arguments", "run"]


def run(arguments: argparse.Namespace) -> None:
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
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    if not rows:
        print("no weights ship with this version; train some with `hsidenoise train`")
    for row in rows:
        print(f"{row['name']}{' (default)' * row['default']}: {row['summary']}")
        size = "not in this installation: a file of the repository"
        if row["bytes"]:
            size = f"{row['parameters']:,} parameters, {row['bytes'] / 2**20:.1f} MiB"
        size += f", {row['bands'] or 'any number of'} bands at once"
        print(f"  network  {row['model']}, {size}")
        print(f"  data     {row['data']}")
        print(f"  noise    {row['noise']}")
        if row["scores"]:
            print("  PSNR     " + ", ".join(f"{case} {score:.2f}" for case, score in row["scores"].items()))
        print(f"  licence  {row['licence']}")
        print(f"  sha256   {row['sha256']}")
