"""What a benchmark leaves: files that are there whole or not at all, and the commit that they are of."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

UNKNOWN_COMMIT = "unknown"


def commit(package: Path = Path(__file__).parent) -> str:
    """Commit that the code of this package is at, with ``-dirty`` if a tracked file differs from it.

    Args:
        package: Folder of the package, directly inside its repository.

    Returns:
        The short hash; ``unknown`` without git, or where the package does not lie in a repository of its own.

    Example:
        >>> commit(Path("/nowhere"))
        'unknown'
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != package.resolve().parent:
            return UNKNOWN_COMMIT  # installed somewhere inside a repository of something else
        dirty = "-dirty" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "--short", "HEAD") + dirty
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN_COMMIT


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write text files, each whole or not at all.

    Args:
        folder: An existing folder.
        files: Contents by name.

    Raises:
        OSError: If one cannot be written.

    Example:
        >>> with tempfile.TemporaryDirectory() as name:
        ...     write_files(Path(name), {"a.txt": "text"})
        ...     (Path(name) / "a.txt").read_text()
        'text'
    """
    for name, content in files.items():
        with tempfile.NamedTemporaryFile("w", dir=folder, prefix=f".{name}.", delete=False, encoding="utf-8") as file:
            temporary = Path(file.name)
            try:
                file.write(content)
                file.close()
                temporary.chmod(0o644)  # temporary files are their owner's alone
                temporary.replace(folder / name)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
