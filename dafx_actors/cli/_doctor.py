"""`dafx doctor`: what is wrong, and what to do."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Literal

from dafx_actors.cli._io import FOUND, OK, Output, add_common, clean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dafx_actors.client import DurableAIAgentClient

_CLOCK = 30.0
"""Seconds that the scheduler's clock may differ from this machine's."""
_FREE = 2**30
"""Bytes that should be free on the disk of a database."""
_MANY = 20
"""Turns that are named; of more, the number is said."""


def declare(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.description = (
        "Look at the versions, the endpoint, who hosts what, what is blocked, the disk and the model; for each problem "
        "it says what to do. Nothing is changed. It ends with 5 where there is a problem."
    )
    parser.epilog = (
        "examples:\n  dafx doctor\n  dafx doctor --model-call     asks the model of this environment one word"
    )
    parser.set_defaults(run=run)
    parser.add_argument("--model-call", action="store_true", help="make one call to the model of this environment")
    add_common(parser)


class _Report:
    def __init__(self, out: Output) -> None:
        self._out = out
        self.problems = 0

    def say(
        self, about: str, found: str, remedy: str = "", *, state: Literal["ok", "problem", "unknown"] = "ok"
    ) -> None:
        self.problems += state == "problem"
        mark = {"ok": "ok     ", "problem": "PROBLEM", "unknown": "-      "}[state]
        text = f"{mark}  {about:<10}  {found}" + (f"\n{'':<9}{'':<12}-> {remedy}" if remedy else "")
        self._out.record({"about": about, "state": state, "found": clean(found), "remedy": remedy or None}, text)


def run(arguments: argparse.Namespace) -> int:
    """Look."""
    import asyncio
    import logging

    logging.getLogger("dafx_actors").addHandler(logging.NullHandler())
    return asyncio.run(_run(arguments))


async def _run(arguments: argparse.Namespace) -> int:
    import os

    from dafx_actors._durable.connect import address
    from dafx_actors.client import DurableAIAgentClient
    from dafx_actors.errors import ConfigurationError, SchedulerError

    report = _Report(Output(as_json=arguments.json))
    _versions(report)
    try:
        where = address(arguments.endpoint, arguments.taskhub)
        report.say("address", f"{where.endpoint}, task hub {where.task_hub}")
        async with DurableAIAgentClient.connect(arguments.endpoint, arguments.taskhub) as client:
            await client.ping(timeout=10)
            report.say("scheduler", "answers")
            await _hosts(client, report)
            await _stats(client, report, is_here=where.endpoint.startswith(("http://localhost", "http://127.0.0.1")))
            await _turns(client, report)
            await _waiting(client, report)
    except ConfigurationError as error:
        report.say("address", str(error), "set ENDPOINT and TASKHUB, or --endpoint and --taskhub", state="problem")
    except SchedulerError as error:
        remedy = "start one (`dafx scheduler`), or set ENDPOINT to where yours is; the same in every terminal"
        report.say("scheduler", str(error), remedy, state="problem")
    await _model(report, os.environ, call=arguments.model_call)
    return FOUND if report.problems else OK


def _versions(report: _Report) -> None:
    import platform
    from importlib.metadata import version

    from dafx_actors._durable.private import TESTED, installed, is_tested

    found = installed()
    words = f"dafx_actors {version('dafx-actors')}, durabletask {found}, Python {platform.python_version()}"
    if is_tested(found):
        report.say("versions", words)
    else:
        report.say(
            "versions", words, f"install durabletask {TESTED}.x: no worker starts with this one", state="problem"
        )


async def _hosts(client: DurableAIAgentClient, report: _Report) -> None:
    agents = await client.agents()
    if agents is None:
        report.say("agents", "this scheduler cannot tell who hosts what", state="unknown")
        return
    if not agents:
        report.say("agents", "no worker hosts any", "start a worker: dafx worker app.py", state="problem")
    for agent in agents:
        tools = f", tools {', '.join(agent.tools)}" if agent.tools else ""
        match agent.hosted_by:
            case "worker":
                report.say("agents", f"{agent.name}{tools}")
            case "peer":
                report.say("agents", f"{agent.name}, by a worker of agent-framework-durabletask")
            case "nobody":
                report.say(
                    "agents", f"{agent.name}: its worker has gone, within the last ten minutes",
                    "start it again; its turns wait", state="problem",
                )  # fmt: skip


async def _stats(client: DurableAIAgentClient, report: _Report, *, is_here: bool) -> None:
    import shutil
    from pathlib import Path

    from dafx_actors.errors import UnsupportedByScheduler

    try:
        stats = await client.scheduler.stats()
    except UnsupportedByScheduler:
        report.say("disk", "this scheduler does not tell of its disk", state="unknown")
        return
    database = Path(stats.database)
    if not stats.is_writable:
        report.say("disk", f"{database} cannot be written", "make room on its disk; nothing is lost", state="problem")
    elif is_here and database.parent.is_dir() and stats.database != ":memory:":
        free = shutil.disk_usage(database.parent).free
        words = f"{stats.size / 2**20:,.1f} MB in {database}, {free / 2**30:,.1f} GB free"
        remedy = "make room, or have it keep less (dafx scheduler --keep-days)"
        report.say("disk", words, remedy if free < _FREE else "", state="problem" if free < _FREE else "ok")
    else:
        report.say("disk", f"{stats.size / 2**20:,.1f} MB in {stats.database}")


async def _turns(client: DurableAIAgentClient, report: _Report) -> None:
    """What does not go on; of the ended ones, those that failed."""
    from datetime import UTC, datetime

    stuck, failed, newest = 0, 0, None
    async for turn in client.turns.list():
        newest = max(newest, turn.updated_at) if newest else turn.updated_at
        failed += turn.state == "failed"
        if turn.state not in ("blocked", "retrying", "suspended"):
            continue
        stuck += 1
        if stuck > _MANY:
            continue
        about = f"turn {turn.correlation_id} of {turn.agent} is {turn.state}"
        match turn.state:
            case "blocked":
                names = ", ".join(turn.waits_for)
                report.say(
                    "turns", f"{about}: no worker has {names}",
                    f"start one that does, or give it up: dafx turns cancel {turn.correlation_id}", state="problem",
                )  # fmt: skip
            case "retrying":
                report.say("turns", f"{about}: {turn.error}", "mend the cause; it goes on by itself", state="problem")
            case _:
                report.say(
                    "turns", about, f"dafx orchestrations resume {turn.correlation_id}", state="problem"
                )  # fmt: skip
    if stuck > _MANY:
        report.say(
            "turns", f"{stuck - _MANY} more that do not go on", "dafx turns list --state blocked", state="problem"
        )
    if failed:
        report.say(
            "turns", f"{failed} have failed", "see why: dafx turns list --state failed; mend: dafx turns retry ID"
        )
    if not stuck:
        report.say("turns", "none is stuck")
    ahead = 0.0 if newest is None else (newest - datetime.now(UTC)).total_seconds()
    if ahead > _CLOCK:
        report.say(
            "clock", f"the scheduler's is {ahead:.0f} s ahead of this machine's",
            "set both by NTP: deadlines are the scheduler's", state="problem",
        )  # fmt: skip


async def _waiting(client: DurableAIAgentClient, report: _Report) -> None:
    waiting = [turn async for turn in client.turns.list(state="waiting")]
    if waiting:
        report.say("inbox", f"{len(waiting)} turns wait for a person", "dafx inbox")


async def _model(report: _Report, environ: Mapping[str, str], *, call: bool) -> None:
    from dafx_actors.errors import ConfigurationError, ModelError
    from dafx_actors.models import ModelRequest
    from dafx_actors.models.environment import model_from_environment
    from dafx_actors.transcript import ChatMessage

    try:
        model: Any = model_from_environment(environ)
    except ConfigurationError as error:
        report.say(
            "model", str(error).splitlines()[0], "see the README; agents with a model of their own need none",
            state="unknown",
        )  # fmt: skip
        return
    try:
        if not call:
            report.say("model", f"{type(model).__name__} is set up in this environment; --model-call asks it")
            return
        reply = await model.complete(ModelRequest(messages=(ChatMessage("user", "Say one word."),)))
        report.say("model", f"{type(model).__name__} says {reply.message.text[:40]!r}")
    except (ModelError, ConfigurationError) as error:
        report.say("model", str(error), "mend it for the worker, which is who calls it", state="problem")
    finally:
        await model.aclose()
