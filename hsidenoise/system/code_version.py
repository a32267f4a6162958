"""What code a number came from: a hash of the modules that computed it, found by following their imports.

Nothing is kept by hand and nothing is run: the sources are parsed. A module counts if it lies in a file that a person
may change: those of this package, and those that are not installed as a library. A library counts by its version.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterable
from functools import cache, lru_cache
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

PACKAGE = __name__.partition(".")[0]

# by name: to import-linter, importing from the package itself is importing all that it offers
VERSION: str = import_module(PACKAGE).__version__
"""Version of this package."""

LIBRARIES = ("numpy", "scipy", "scikit-image", "torch")
"""Libraries whose version may change the digits of a score, whatever the method."""


def code_version(*modules: str, extra: Iterable[str] = ()) -> str:
    """Hash of modules and of all that they import, directly or not, at the top or inside a function.

    An import that is only for annotations (``if TYPE_CHECKING``) does not count, one whose name is put together while
    the program runs is not found.

    Args:
        modules: Full names, such as ``hsidenoise.noise.cases``; they need not have been imported.
        extra: Distributions that count beside :data:`LIBRARIES`. Of a module that is not of this package, all that it
            and its like import count.

    Returns:
        SHA-256 of their sources and of :func:`libraries`, in hexadecimal.

    Example:
        >>> code_version("hsidenoise.noise.cases") == code_version("hsidenoise.metrics.functional")
        False
    """
    total = hashlib.sha256()
    sources, others = imported_files(*modules)
    for name, path in sources.items():
        total.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    used = set(extra)
    if any(name.partition(".")[0] != PACKAGE for name in modules):
        used |= {each for name in others for each in _distributions().get(name, ())}
    for name, number in libraries(*sorted(used)).items():
        total.update(f"\0{name} {number}".encode())
    return total.hexdigest()


def imported_files(*modules: str) -> tuple[dict[str, Path], list[str]]:
    """Files of modules and of all that they import.

    Returns:
        Module -> file of those that a person may change, and the top-level names of all others; both sorted.

    Example:
        >>> sorted(imported_files("hsidenoise.noise.cases")[0])  # doctest: +ELLIPSIS
        ['hsidenoise', ..., 'hsidenoise.noise.cases', 'hsidenoise.system', ...]
    """
    waiting, seen, files = list(modules), set(), {}
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        parent = name.rpartition(".")[0]
        if parent:
            waiting.append(parent)
        path = _file(name)
        if path is not None:
            files[name] = path
            package = name if path.name == "__init__.py" else parent
            waiting += _imports(package, path.read_bytes() if path.suffix == ".py" else b"")
    tops = {name.partition(".")[0] for name in seen} - {name.partition(".")[0] for name in files}
    return dict(sorted(files.items())), sorted(tops - sys.stdlib_module_names)


def libraries(*more: str) -> dict[str, str]:
    """Versions of :data:`LIBRARIES` and of further distributions; those that are not installed are left out.

    Example:
        >>> "torch" in libraries("no-such-library"), "no-such-library" in libraries("no-such-library")
        (True, False)
    """
    found = {}
    for name in dict.fromkeys((*LIBRARIES, *more)):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def _distributions() -> dict[str, list[str]]:
    return dict(packages_distributions())


def _file(name: str) -> Path | None:
    """File of a module that a person may change, found without running anything; None for all else."""
    top, *rest = name.split(".")
    loaded = sys.modules.get(top)  # first: an editable installation has finders of its own
    spec: ModuleSpec | None = getattr(loaded, "__spec__", None) or PathFinder.find_spec(top)
    for position, _ in enumerate(rest, start=2):
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(".".join(name.split(".")[:position]), list(spec.submodule_search_locations))
    if spec is None or not spec.has_location or spec.origin is None:
        return None
    path = Path(spec.origin)
    installed = top in sys.stdlib_module_names or not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
    return None if (installed and top != PACKAGE) or not path.is_file() else path


@lru_cache(maxsize=1024)
def _imports(package: str, source: bytes) -> tuple[str, ...]:
    """Names that a module of a package imports, as they are written; some are no modules but what is in one."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # it could not be imported either
        return ()
    found: list[str] = []
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = parts[: len(parts) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
        waiting += ast.iter_child_nodes(node)
    return tuple(found)
