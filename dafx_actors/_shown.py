"""How values are shown: one way for all, since attrs would compile a `__repr__` for each class at every start."""

from __future__ import annotations

from typing import Any

import attrs


class Shown:
    """Shows a value as attrs does: the name of its class, and its fields."""

    __slots__ = ()

    def __repr__(self) -> str:
        cls: Any = type(self)
        if not attrs.has(cls):
            return super().__repr__()
        fields = (f"{each.name}={getattr(self, each.name)!r}" for each in attrs.fields(cls) if each.repr)
        return f"{cls.__qualname__.rpartition('>.')[2]}({', '.join(fields)})"
