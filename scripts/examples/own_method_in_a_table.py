"""Your own method beside others in a table, on the sample cube.

python scripts/examples/own_method_in_a_table.py [FOLDER]    # writes the table to FOLDER/own_method

A method is any function from a noisy cube to a denoised one, (bands, height, width) to the same. A table names it as
``module:function``; a peer's network goes in the same way.
"""

import sys
from pathlib import Path

import numpy as np
from scipy.ndimage import median_filter

from hsidenoise.cli.main import main as hsidenoise

SAMPLES = Path(__file__).parents[2] / "data" / "samples"

TABLE = """
title: My method on the sample cube
data: {dataset: folder, crop: 64}
cases: [gaussian-30, mixture]
methods:
  - noisy
  - svd-tv-robust
  - {method: "own_method_in_a_table:median", label: my median}
  - {method: "weights:hcanet-bra", label: HCANet-BRA}
"""


def median(noisy: np.ndarray) -> np.ndarray:
    """Median of 3 bands x 3 x 3 pixels."""
    return median_filter(noisy, size=3)


def main(folder: Path) -> int:
    table = folder / "own_method.yaml"
    table.write_text(TABLE, encoding="utf-8")
    sys.path.insert(0, str(Path(__file__).parent))  # where `own_method_in_a_table` is found
    options = [
        "--config",
        str(table),
        "--data.root",
        str(SAMPLES),
        "--out",
        str(folder),
        "--workers",
        "1",
        "--allow-leaks",
    ]
    return hsidenoise(["benchmark", *options])


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))
