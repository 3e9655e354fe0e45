"""A module imports only from rows above its own, and foreign packages have owners."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import dafx_actors

PACKAGE = Path(dafx_actors.__file__).parent
ROWS = [
    {"errors", "_schema_check"},
    {"_secrets"},
    {"ids", "_bundles", "_outages", "_raised", "_tokens"},
    {"_credentials"},
    {"_calls"},
    {"transcript"},
    {"decisions", "exchange", "models"},
    {"_json", "_text", "_checker", "_schema_limits", "tools._docstrings", "_open_calls"},
    {"_forms"},
    {"_stored"},
    {"_codec"},
    {"_schemas"},
    {"_peer_forms"},
    {"_annotations", "_answers", "_retold", "_thread_state"},
    {"_values"},
    {"tools._declared"},
    {"tools._functions", "tools._results", "tools._fitted"},
    {"tools._hosted"},
    {"tools._collected"},
    {"tools"},
    {"mcp._address"},
    {"mcp._connection"},
    {"mcp"},
    {"_given_up"},
    {"_thread", "_turn", "_coroutines", "_connect", "_recent", "agents"},
    {"_toolbox"},
    {"_last_line"},
    {"_lines"},
    {"_operations"},
    {"_tree"},
    {"models._said", "models._waits", "models._settings", "models._parts"},
    {"models._dialects", "models._names", "models._strict", "models._media", "models._kept"},
    {"models._failures", "models._structured"},
    {"models._wire"},
    {
        *("models._asking", "models._mistakes", "models._reading"),
        *("models._server", "models._weights", "models._llama"),
    },
    {"models.openai"},
    {"models.local"},
    {"models.environment"},
    {"_agent_tasks"},
    {"orchestration"},
    {"_backend", "_pending"},
    {"_peer", "_seam", "_sessions", "_turn_base", "_host"},
    {"_turn_hosting", "_hosted_names"},
    {"_above", "_turn_agents"},
    {"_intake", "_agent_steps", "_turn_calls"},
    {"_executor", "_turn_steps"},
    {"_whole_turn"},
    {"handles", "_runtime"},
    {"proxies"},
    {"client", "worker"},
    {"testing._model", "testing._clock", "testing._faults", "testing._replay"},
    {"testing._host"},
    {"testing"},
    {""},  # the front door
    {"cli"},
]
"""The layers, from the ground up. `models` alone is the protocol, in `models/__init__.py`."""
OWNERS = {
    "openai": {"models"},
    "azure": {"_tokens", "models", "_credentials"},
    "sqlite3": {"scheduler"},
    "durabletask.internal": {
        "scheduler",
        "_connect",
        "_backend",
        "_intake",
        "_last_line",
        "_lines",
        "_sessions",
        "testing",
    },
    "pydantic": {"_schemas", "mcp"},
    "cryptography": {"decisions"},
    "mcp": {"mcp"},
    "mcp_types": {"mcp"},
    "httpx2": {"mcp", "models"},
    "cattrs": {"_codec", "_stored", "_values", "_annotations"},
}
"""Who may import what, by the first part of the module's name."""
SEEN_BY_THE_SCHEDULER = {"errors", "_bundles", "_tokens", "_secrets"}
"""What it shares with the layers: what it raises, and the form in which it speaks with our workers."""
HOSTS_OF_THE_SCHEDULER = {"_backend", "_pending", "_hosted_names", "testing._host", "cli"}
"""Modules that know that there is an embedded scheduler; it stands beside the layers."""


def name_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


FILES = {name_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}


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
    for number, modules in enumerate(ROWS):
        if module in modules:
            return number
    raise AssertionError(f"{module or 'dafx_actors'} has no row in the table")


def mistakes(module: str, source: str, is_package: bool = False) -> list[str]:
    found: list[str] = []
    for imported in imports_of(source, module, is_package):
        for foreign, owners in OWNERS.items():
            if f"{imported}.".startswith(f"{foreign}.") and module.split(".")[0] not in owners:
                found.append(f"{module} must not import {imported}: only {', '.join(sorted(owners))} may")
        if f"{imported}.".startswith("dafx_actors."):
            ours = imported.removeprefix("dafx_actors").removeprefix(".")
            if module.startswith("scheduler"):
                if ours not in SEEN_BY_THE_SCHEDULER and not ours.startswith("scheduler"):
                    found.append(f"{module} must not import {imported}: the scheduler knows nothing of agents")
            elif ours.startswith("scheduler"):
                if module not in HOSTS_OF_THE_SCHEDULER:
                    found.append(f"{module} must not import {imported}: it stands beside the layers")
            elif row(ours) >= row(module):
                found.append(f"{module} must not import {imported}: it is not in a row above")
    return found


@pytest.mark.parametrize("module", FILES)
def test_imports_come_from_rows_above(module: str) -> None:
    assert mistakes(module, FILES[module].read_text(), FILES[module].name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("errors", "import dafx_actors.ids"),
        ("errors", "from dafx_actors import ids"),
        ("errors", "from dafx_actors.ids import new_id"),
        ("ids", "from .transcript import Json"),
        ("ids", "from . import transcript"),
        ("ids", "def late():\n    from dafx_actors import AgentThread"),
        ("ids", "if TYPE_CHECKING:\n    from dafx_actors.transcript import Json"),
        ("_turn", "from dafx_actors._rules.thread import load"),
        ("exchange", "from dafx_actors.models import Model"),
        ("agents", "from dafx_actors.models.openai import OpenAIModel"),
        ("models.openai", "from ..worker import DurableAIAgentWorker"),
        ("scheduler.server", "from dafx_actors.ids import new_id"),
        ("agents", "from dafx_actors.scheduler import EmbeddedScheduler"),
        ("agents", "import openai"),
        ("client", "from azure.identity import DefaultAzureCredential"),
        ("_thread", "import sqlite3"),
        ("worker", "import durabletask.internal.helpers as helpers"),
        ("worker", "from durabletask.internal import helpers"),
        ("agents", "from pydantic import BaseModel"),
        ("_thread", "from cattrs.gen import override"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str) -> None:
    assert len(mistakes(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("_codec", "from dafx_actors.errors import DafxError\nimport cattrs"),
        ("models.openai", "from openai import AsyncOpenAI\nfrom . import Model"),
        ("scheduler.server", "import sqlite3\nfrom . import store\nfrom dafx_actors.errors import SchedulerError"),
        ("worker", "from durabletask import task\nimport internal"),
    ],
)
def test_a_right_import_is_not(module: str, source: str) -> None:
    assert mistakes(module, source) == []


def test_a_module_without_a_row_is_found() -> None:
    with pytest.raises(AssertionError, match="no row"):
        row("novelty")
