"""Packages whose names are imported when they are first used (PEP 562).

Such a package lists its names for type checkers as imports, and for programs as `homes`; a test holds both against each
other. It hides `__getattr__` from type checkers, to which a misspelt name would be one more attribute.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module


def importing(package: str, homes: Mapping[str, str]) -> Callable[[str], object]:
    """The `__getattr__` of a package.

    Args:
        package: Its name.
        homes: The module that has each of its names; the package itself, where the name is one of its modules.
    """

    def get(name: str) -> object:
        home = homes.get(name)
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if home == package:
            return import_module(f"{package}.{name}")
        value: object = getattr(import_module(home), name)
        setattr(sys.modules[package], name, value)
        return value

    return get
