"""The house: a wing imports only from rows above its own, each keeps its law, and foreign packages have owners."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

import dafx_actors

PACKAGE = Path(dafx_actors.__file__).parent
ROWS = [
    {"errors", "transcript", "ids", "decisions", "exchange", "_secrets", "_raised", "_lazy", "_shown"},
    {"_json", "_durable"},
    {"models"},
    {"_rules", "tools", "updates"},
    {"agents", "mcp", "orchestration"},
    {"_turns", "client"},
    {"worker", "sync", "handles", "proxies"},
    {"testing", "cli", ""},
]
"""Wings, from the ground up; "" is the front door. Those of the first row see each other."""
OWNERS = {
    "openai": {"models"},
    "azure": {"_durable", "models"},
    "sqlite3": {"scheduler"},
    "durabletask.internal": {"scheduler", "_durable", "worker", "testing"},
    "pydantic": {"_json", "mcp"},
    "cryptography": {"decisions"},
    "mcp": {"mcp"},
    "mcp_types": {"mcp"},
    "httpx2": {"mcp", "models"},
    "cattrs": {"_json"},
}
"""Which wings may import what of others."""
SEEN_BY_THE_SCHEDULER = {"errors", "_lazy", "_secrets", "_durable.admin", "_durable.bundles", "_durable.tokens"}
"""What it shares with the wings: what it raises, and the form in which it speaks with our workers."""
HOSTS_OF_THE_SCHEDULER = {"testing", "cli"}
"""Wings that know that there is an embedded scheduler; it stands beside the rows."""
FLOORS = [{"_ground"}, {"_rules", "storage"}, {"_hub"}, {"_serve"}, {"embedded"}, {"if_needed"}, {"hosted", ""}]
"""Inside the scheduler, from the ground up; "" is its front door, `hosted` a face that is kept."""
IMPURE = {
    *("asyncio", "anyio", "threading", "concurrent", "random", "secrets", "uuid", "socket", "grpc", "sqlite3", "time")
}
_CLOCKS = {"datetime.now", "datetime.utcnow", "datetime.today", "date.today"}
PURE = ("_rules", "scheduler._rules", "updates")
"""Wings that decide and do nothing."""


def name_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


FILES = {name_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def wing_of(module: str) -> str:
    return module.split(".")[0]


def imports_of(source: str, module: str, is_package: bool = False) -> Iterator[str]:
    """All that is imported, also for type checkers only and inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            here = ["dafx_actors", *module.split(".")] if module else ["dafx_actors"]
            above = here[: len(here) - node.level + is_package] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield whole if whole.removeprefix("dafx_actors.") in FILES else base


def row(module: str) -> int:
    for number, wings in enumerate(ROWS):
        if wing_of(module) in wings:
            return number
    raise AssertionError(f"{module} has no row in the table")


def floor(module: str) -> int:
    """Of a module of the scheduler."""
    room = module.removeprefix("scheduler").removeprefix(".").split(".")[0]
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def _inner_mistake(module: str, ours: str) -> str | None:
    """What is wrong with an import of ours."""
    wing, other = wing_of(module), wing_of(ours)
    if wing == other:
        is_below = wing != "scheduler" or floor(ours) <= floor(module)
        return None if is_below else "it is not on a floor below"
    if wing == "scheduler":
        return None if ours in SEEN_BY_THE_SCHEDULER else "the scheduler knows nothing of agents"
    if other == "scheduler":
        return None if wing in HOSTS_OF_THE_SCHEDULER else "it stands beside the rows"
    if row(ours) > row(module) or (row(ours) == row(module) > 0):
        return "it is not in a row above"
    if other == "models" and ours != "models" and not (wing in {"worker", "cli"} and ours == "models.environment"):
        return "`models` alone is the protocol"
    return None


def mistakes(module: str, source: str, is_package: bool = False) -> list[str]:
    found: list[str] = []
    for imported in imports_of(source, module, is_package):
        for foreign, owners in OWNERS.items():
            if f"{imported}.".startswith(f"{foreign}.") and wing_of(module) not in owners:
                found.append(f"{module} must not import {imported}: only {', '.join(sorted(owners))} may")
        if f"{imported}.".startswith("dafx_actors."):
            ours = imported.removeprefix("dafx_actors").removeprefix(".")
            if (why := _inner_mistake(module, ours)) is not None:
                found.append(f"{module} must not import {imported}: {why}")
    return found


def impurities(source: str) -> list[str]:
    """What a wing that only decides must not have: waiting, a clock, chance, a network."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Await | ast.AsyncFunctionDef | ast.AsyncFor | ast.AsyncWith):
            found.append(f"line {node.lineno} waits")
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in _CLOCKS:
            found.append(f"line {node.lineno} looks at a clock")
    found += [f"imports {name}" for name in imports_of(source, "x") if name.split(".")[0] in IMPURE]
    return found


def circles(graph: Mapping[str, Iterable[str]]) -> list[set[str]]:
    """Modules that import each other, directly or not."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for each in graph.get(todo.pop(), ()):
                if each not in seen:
                    seen.add(each)
                    todo.append(each)
        return seen

    reach = {module: reached(module) for module in graph}
    found: list[set[str]] = []
    for module in graph:
        circle = {other for other in reach[module] if module in reach.get(other, ())}
        if circle and circle not in found:
            found.append(circle)
    return found


def graph_of() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for module, file in FILES.items():
        names = imports_of(file.read_text(), module, file.name == "__init__.py")
        found[module] = {name.removeprefix("dafx_actors.") for name in names if name.startswith("dafx_actors.")}
    return found


def test_the_house_has_at_most_eight_rows_and_no_empty_room() -> None:
    assert len(ROWS) <= 8
    assert {wing for wings in ROWS for wing in wings} | {"scheduler"} == {wing_of(module) for module in FILES}


@pytest.mark.parametrize("module", FILES)
def test_imports_come_from_rows_above(module: str) -> None:
    assert mistakes(module, FILES[module].read_text(), FILES[module].name == "__init__.py") == []


RULES = [module for module in FILES if module.startswith(tuple(f"{wing}." for wing in PURE))]


@pytest.mark.parametrize("module", RULES)
def test_rules_decide_and_do_nothing(module: str) -> None:
    assert impurities(FILES[module].read_text()) == []


def test_nobody_imports_itself_by_way_of_others() -> None:
    assert circles(graph_of()) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("errors", "import dafx_actors.models"),
        ("errors", "from dafx_actors import models"),
        ("ids", "from ._json.messages import load"),
        ("ids", "def late():\n    from dafx_actors import AgentThread"),
        ("ids", "if TYPE_CHECKING:\n    from dafx_actors.agents import Agent"),
        ("_json.messages", "from dafx_actors._durable.connect import address"),
        ("_rules.turn", "from dafx_actors.tools import Tool"),
        ("_rules.turn", "from dafx_actors._turns.steps import TurnSteps"),
        ("exchange", "from dafx_actors.models import Model"),
        ("agents", "from dafx_actors.models.openai import OpenAIModel"),
        ("models.openai", "from ..worker import DurableAIAgentWorker"),
        ("client._client", "from dafx_actors._turns.host import Host"),
        ("client._client", "from dafx_actors.sync import DurableAIAgentClient"),
        ("sync._client", "from dafx_actors.worker import DurableAIAgentWorker"),
        ("scheduler._serve.service", "from dafx_actors.ids import new_id"),
        ("scheduler._serve.service", "from dafx_actors._durable.connect import address"),
        ("agents", "from dafx_actors.scheduler import EmbeddedScheduler"),
        ("scheduler._rules.episodes", "from dafx_actors.scheduler._hub.entities import Entities"),
        ("scheduler.storage.store", "if TYPE_CHECKING:\n    from dafx_actors.scheduler._hub.hub import TaskHub"),
        ("agents", "import openai"),
        ("client._client", "from azure.identity import DefaultAzureCredential"),
        ("_rules.thread", "import sqlite3"),
        ("orchestration._context", "import durabletask.internal.helpers as helpers"),
        ("agents", "from pydantic import BaseModel"),
        ("_rules.thread", "from cattrs.gen import override"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str) -> None:
    assert len(mistakes(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("_json.messages", "from dafx_actors.errors import DafxError\nimport cattrs"),
        ("models.openai", "from openai import AsyncOpenAI\nfrom . import Model"),
        (
            "scheduler.storage.store",
            "import sqlite3\nfrom . import schema\nimport dafx_actors.errors",
        ),
        ("orchestration._context", "from durabletask import task\nimport internal"),
        ("errors", "from dafx_actors.ids import new_id"),
    ],
)
def test_a_right_import_is_not(module: str, source: str) -> None:
    assert mistakes(module, source) == []


@pytest.mark.parametrize(
    "source",
    [
        "async def decide(): ...",
        "import time",
        "from random import uniform",
        "import asyncio.events",
        "def decide():\n    return datetime.now(timezone.utc)",
    ],
)
def test_what_a_rule_must_not_do_is_found(source: str) -> None:
    assert len(impurities(source)) == 1


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [{"a", "b", "c"}]


def test_a_module_without_a_row_is_found() -> None:
    with pytest.raises(AssertionError, match="no row"):
        row("novelty")
