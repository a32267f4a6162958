"""Writing a picture so that the same picture has the same bytes, and a failure leaves nothing behind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hsidenoise.system.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SILENT = {"png": ("Software",), "pdf": ("Creator", "Producer", "CreationDate"), "svg": ("Creator", "Date")}


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure without date, version or program in it.

    Args:
        figure: What to write.
        path: Picture; its ending says the format, ``.png``, ``.pdf`` or ``.svg``. It appears whole or not at all.

    Raises:
        ValueError: If the ending is another one.
        OSError: If the picture cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from matplotlib.figure import Figure
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "empty.png")
        ...     save_figure(Figure(figsize=(1, 1)), path)
        ...     b"Software" in path.read_bytes()
        False
    """
    path = Path(path)
    ending = path.suffix.lstrip(".").lower()
    if ending not in _SILENT:
        raise ValueError(f"{path}: not a picture format; name it .png, .pdf or .svg")
    with replacing(path) as temporary:
        figure.savefig(temporary, format=ending, metadata=dict.fromkeys(_SILENT[ending]))
