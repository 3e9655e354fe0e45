"""The front door: what it lists is there, is said what for, and costs little to open."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import dafx_actors
from dafx_actors import errors, scheduler
from dafx_actors.errors import DafxError

HEAVY = ["openai", "azure.identity", "pydantic", "xllamacpp", "sqlite3"]


LAZY: list[Any] = [dafx_actors, scheduler]


def named_to_checkers(package: Any) -> dict[str, str]:
    """What a type checker takes from where, as the package has it."""
    tree = ast.parse(Path(package.__file__).read_text())
    guarded = next(each for each in tree.body if isinstance(each, ast.If) and ast.unparse(each.test) == "TYPE_CHECKING")
    froms = [each for each in guarded.body if isinstance(each, ast.ImportFrom)]
    return {alias.name: str(each.module) for each in froms for alias in each.names}


@pytest.mark.parametrize("package", LAZY)
def test_exports_are_listed(package: Any) -> None:
    assert {*package.__all__} - {"__version__"} == {*named_to_checkers(package)}
    assert {*package.__all__} <= {*dir(package)}


@pytest.mark.parametrize("package", LAZY)
def test_a_program_gets_what_a_type_checker_sees(package: Any) -> None:
    assert named_to_checkers(package) == package._HOMES
    for name, home in named_to_checkers(package).items():
        assert getattr(package, name) is getattr(importlib.import_module(home), name)


def test_what_is_not_there_is_said_as_ever() -> None:
    missing: Any = dafx_actors
    with pytest.raises(AttributeError, match="no attribute 'DurableAgent'"):
        _ = missing.DurableAgent
    assert missing.testing.AgentHost
    assert version("dafx-actors") == dafx_actors.__version__


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


CLIENT = """
import anyio
from dafx_actors import DurableAIAgentClient
from dafx_actors.scheduler.hosted import hosted
async def main():
    async with DurableAIAgentClient.connect("http://127.0.0.1:1") as client:
        try:
            await client.get_agent("Joker").run("Hi", timeout=0.1)
        except Exception as error:
            assert type(error).__name__ == "SchedulerUnreachable", error
anyio.run(main)
"""
"""A whole program, whose turn finds no scheduler."""
AGENT = """
from dafx_actors import durable_agent, tool
@durable_agent
class Joker:
    instructions = "You tell jokes."
    @tool
    def add(self, a: int, b: int) -> int:
        "Adds."
        return a + b
"""
SYNC = """
from dafx_actors.sync import DurableAIAgentClient
with DurableAIAgentClient.connect("http://127.0.0.1:1") as client:
    try:
        client.get_agent("Joker").run("Hi", timeout=0.1)
    except Exception as error:
        assert type(error).__name__ == "SchedulerUnreachable", error
"""
SERVER = ["sqlite3", "dafx_actors.scheduler.embedded", "dafx_actors.scheduler.storage"]
WORKER = ["dafx_actors.worker", "dafx_actors._turns", "dafx_actors.agents"]
LOADS = [
    ("import dafx_actors", [*HEAVY, *SERVER, *WORKER, "durabletask", "grpc"]),
    (CLIENT, [*HEAVY, *SERVER, *WORKER]),
    (SYNC, [*HEAVY, *SERVER, *WORKER]),
    (AGENT, ["openai", "azure.identity", "pydantic", *SERVER, "dafx_actors.worker", "dafx_actors.client"]),
    ("from dafx_actors import DurableAIAgentWorker", [*HEAVY, *SERVER, "dafx_actors.client"]),
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("program", "heavy"), LOADS, ids=["nothing", "client", "sync client", "agent", "worker"])
def test_a_program_loads_what_it_uses(program: str, heavy: list[str]) -> None:
    looks = f"{program}\nimport sys\nprint([name for name in {heavy!r} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", looks], capture_output=True, text=True, check=True)
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
