"""What the package needs of the machine: devices, memory, files, options; names imported when first used."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any


def offer(package: str, homes: Mapping[str, str]) -> None:
    """Make a package offer names that lie in its modules, imported when first used (PEP 562): nobody waits for torch.

    Args:
        package: Full name of the package, which calls this in its ``__init__``.
        homes: Name -> module that it is imported from, relative to the package. A function may be named as its module:
            then the package has the function, and ``from package.module import function`` works as ever.
    """

    class Package(ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name not in homes:
                raise AttributeError(f"module {package!r} has no attribute {name!r}")
            value = getattr(import_module(f"{package}.{homes[name]}"), name)
            setattr(self, name, value)
            return value

        def __setattr__(self, name: str, value: Any) -> None:
            # once a module is imported, Python sets it as an attribute of its package
            if isinstance(value, ModuleType) and name in homes:
                value = getattr(value, name)
            super().__setattr__(name, value)

        def __dir__(self) -> list[str]:
            return sorted({*super().__dir__(), *homes})

    sys.modules[package].__class__ = Package
