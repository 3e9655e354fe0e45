"""The front door: what it lists is there, is said what for, and costs little to open."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pytest

import dafx_actors
from dafx_actors import errors
from dafx_actors.errors import DafxError

HEAVY = ["openai", "azure.identity", "pydantic", "xllamacpp", "sqlite3"]


def test_exports_are_listed_and_sorted() -> None:
    public = sorted(name for name, value in vars(dafx_actors).items() if name[0] != "_" and not inspect.ismodule(value))
    assert dafx_actors.__all__ == public


@pytest.mark.parametrize("name", dafx_actors.__all__)
def test_every_export_says_what_it_is_for(name: str) -> None:
    exported = getattr(dafx_actors, name)
    assert inspect.getdoc(exported)
    if inspect.isclass(exported):
        undocumented = [
            member
            for member, value in vars(exported).items()
            if member[0] != "_" and (inspect.isfunction(value) or isinstance(value, property | classmethod))
            if not inspect.getdoc(getattr(exported, member) if not isinstance(value, property) else value)
        ]
        assert undocumented == []


@pytest.mark.timeout(60)
def test_importing_loads_nothing_heavy() -> None:
    program = f"import dafx_actors, sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def drawn() -> list[tuple[int, str]]:
    tree = (errors.__doc__ or "").split("::")[1].split("Each is")[0]
    found = (re.match(r"^(?P<indent>[ │├└─]*)(?P<name>[A-Z]\w+)", line) for line in tree.splitlines())
    return [((len(match["indent"]) - 4) // 4, match["name"]) for match in found if match]


def declared(cls: type[BaseException] = DafxError, depth: int = 0) -> list[tuple[int, str]]:
    ours = [child for child in cls.__subclasses__() if child.__module__ == errors.__name__]
    return [(depth, cls.__name__), *(line for child in ours for line in declared(child, depth + 1))]


def test_the_tree_at_the_top_of_the_file_is_the_tree_of_the_classes() -> None:
    assert drawn() == declared()
