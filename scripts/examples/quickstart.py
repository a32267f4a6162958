"""A cube from its file to a clean one: read, add noise, denoise, measure, draw.

python scripts/examples/quickstart.py [FOLDER]    # writes quickstart.mat and quickstart.png there
"""

import dataclasses
import sys
from pathlib import Path

from hsidenoise import corrupt, denoise, evaluate, read_cube, write_cube
from hsidenoise.figures.cubes import before_after

SAMPLE = Path(__file__).parents[2] / "data" / "samples" / "superballs.mat"


def main(folder: Path) -> None:
    cube = read_cube(SAMPLE)  # cube.values: (bands, height, width), float32
    print(f"{SAMPLE.name}: {cube.values.shape}, {cube.wavelengths[0]:g} to {cube.wavelengths[-1]:g} nm")

    # noise is defined for a clean cube in [0, 1], scaled as a whole, so that its spectra stay spectra
    low, high = cube.values.min(), cube.values.max()
    clean = (cube.values - low) / (high - low)
    noisy = corrupt(clean, "mixture", seed=0).noisy

    denoised = denoise(noisy)  # the default weights; run_baseline("planes", noisy): the filters alone
    print("noisy   ", evaluate(noisy, clean))
    print("denoised", evaluate(denoised, clean))

    # back in the unit of the file, with its variable name, axes, number type and wavelengths
    write_cube(folder / "quickstart.mat", dataclasses.replace(cube, values=denoised * (high - low) + low))
    before_after(noisy, denoised, clean, wavelengths=cube.wavelengths, path=folder / "quickstart.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
