"""Values that options take by name, in a module that imports nothing: ``--help`` shows them at once."""

from typing import Literal

Precision = Literal["float32", "bfloat16", "auto"]
Normalize = Literal["auto", "none", "minmax"]
EnsembleSize = Literal[1, 2, 4, 8]
Missing = Literal["error", "skip"]
