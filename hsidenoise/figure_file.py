"""Writing a picture so that the same picture has the same bytes, and a failure leaves nothing behind."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SILENT = {"png": ("Software",), "pdf": ("Creator", "Producer", "CreationDate")}


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure without date, version or program in it.

    Args:
        figure: What to write.
        path: Picture; its ending says the format, ``.png`` or ``.pdf``. An old one is replaced at the end, at once.

    Raises:
        ValueError: If the ending is another one.
        OSError: If the picture cannot be written.

    Example:
        >>> from matplotlib.figure import Figure
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "empty.png")
        ...     save_figure(Figure(figsize=(1, 1)), path)
        ...     b"Software" in path.read_bytes()
        False
    """
    path = Path(path)
    ending = path.suffix.lstrip(".").lower()
    if ending not in _SILENT:
        raise ValueError(f"{path}: a figure of a table is a .png or a .pdf")
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    try:
        figure.savefig(temporary, format=ending, metadata=dict.fromkeys(_SILENT[ending]))
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
