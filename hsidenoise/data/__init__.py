"""Files and data sets: cubes from and to files, training data from cubes."""

from typing import TYPE_CHECKING

from hsidenoise.system import offer

if TYPE_CHECKING:
    from hsidenoise.data.io import Cube, convert, read_cube, write_cube
    from hsidenoise.data.metadata import Metadata

__all__ = ["Cube", "Metadata", "convert", "read_cube", "write_cube"]

offer(
    __name__,
    {
        "Cube": "io",
        "Metadata": "metadata",
        "convert": "io",
        "read_cube": "io",
        "write_cube": "io",
    },
)
