"""`dafx threads`: conversations."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from dafx_actors.cli._io import NotThere, Output, actions, add_bulk, age, check_chosen, with_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from dafx_actors.client import DurableAIAgentClient, ThreadInfo
    from dafx_actors.ids import AgentThread

_STATES = ("idle", "running", "waiting", "unreadable")
_PAGE = 100


def declare(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    add = actions(parser)
    listing = add("list", "list threads, by their ids", run_list, example="dafx threads list --agent Joker --older 30d")
    listing.add_argument("--agent", help="only of this agent")
    listing.add_argument("--prefix", default="", help="only those whose ids begin so")
    listing.add_argument("--state", choices=_STATES, help="only in this state; each thread is read for it")
    listing.add_argument("--older", type=age, metavar="AGE", help="only those that have not changed for 90s, 12h, 30d")
    listing.add_argument("--details", action="store_true", help="say in which state each is; each is read for it")
    show = add("show", "show what was said in a thread", run_show, example="dafx threads show Joker 4f2c")
    export = add(
        "export", "write a thread as JSON Lines", run_export, example="dafx threads export Joker 4f2c > t.jsonl"
    )
    take = add(
        "import", "put an export into a thread in which nothing was said", run_import,
        example="dafx threads import Joker new-id t.jsonl",
    )  # fmt: skip
    for each in (show, export, take):
        each.add_argument("agent")
        each.add_argument("thread", metavar="ID")
    take.add_argument("file", help="what `export` wrote; - reads standard input")
    for name, what in (("delete", "delete threads, with all that belongs to them"), ("reset", "forget what was said")):
        change = add(name, what, run_change, example=f"dafx threads {name} Joker --older 30d --dry-run")
        change.add_argument("agent")
        change.add_argument("threads", metavar="ID", nargs="*")
        add_bulk(change, "threads of the agent", _STATES)


def run_list(arguments: argparse.Namespace) -> int:
    """List."""

    async def run(client: DurableAIAgentClient, out: Output) -> None:
        found = client.threads.list(
            arguments.agent,
            prefix=arguments.prefix,
            state=arguments.state,
            older=arguments.older,
            details=arguments.details,
        )
        detailed = arguments.details or arguments.state
        columns = ["agent", "thread", "changed", *(["state", "turn", "entries", "in_line"] if detailed else [])]
        header = True
        async for page in found.pages(size=_PAGE):
            if page.items:
                out.table(map(_record, page.items), columns, header=header)
                header = False
        if header:
            out.text("no threads")

    return with_client(arguments, run)


def _record(info: ThreadInfo) -> dict[str, Any]:
    return {
        "agent": info.thread.agent,
        "thread": str(info.thread),
        "changed": info.changed_at,
        "state": info.state,
        "turn": info.turn,
        "entries": info.entries,
        "in_line": info.in_line,
    }


def run_show(arguments: argparse.Namespace) -> int:
    """Show."""
    from dafx_actors.cli._said import entry_record, entry_text

    async def run(client: DurableAIAgentClient, out: Output) -> None:
        thread = client.get_agent(arguments.agent).get_thread(arguments.thread)
        number = 0
        async for entry in client.threads.history(thread):
            out.record(entry_record(entry), entry_text(entry))
            number += 1
        if not number:
            raise _nothing(thread)

    return with_client(arguments, run)


def _nothing(thread: AgentThread) -> NotThere:
    return NotThere(f"nothing was said in thread {thread} of agent {thread.agent!r}, or there is no such thread")


def run_export(arguments: argparse.Namespace) -> int:
    """Export."""

    async def run(client: DurableAIAgentClient, _: Output) -> None:
        thread = client.get_agent(arguments.agent).get_thread(arguments.thread)
        lines = [line async for line in client.threads.export(thread)]
        if len(lines) == 1:  # its header
            raise _nothing(thread)
        sys.stdout.writelines(lines)

    return with_client(arguments, run)


def run_import(arguments: argparse.Namespace) -> int:
    """Import."""
    from pathlib import Path

    data = sys.stdin.buffer.read() if arguments.file == "-" else Path(arguments.file).read_bytes()

    async def run(client: DurableAIAgentClient, out: Output) -> None:
        thread = client.get_agent(arguments.agent).get_thread(arguments.thread)
        await client.threads.import_(thread, data)
        out.record({"agent": thread.agent, "thread": str(thread), "done": "imported"}, f"{thread}: imported")

    return with_client(arguments, run)


def run_change(arguments: argparse.Namespace) -> int:
    """Delete or reset."""
    from dafx_actors.cli._bulk import each, from_list

    check_chosen(arguments, arguments.threads)
    done = "deleted" if arguments.action == "delete" else "reset"

    async def run(client: DurableAIAgentClient, out: Output) -> int:
        agent = client.get_agent(arguments.agent)

        async def do(thread: AgentThread) -> Mapping[str, Any]:
            await (client.threads.delete if done == "deleted" else client.threads.reset)(thread)
            return {}

        async def found() -> AsyncIterator[AgentThread]:
            async for info in client.threads.list(agent.name, state=arguments.state, older=arguments.older):
                yield info.thread

        chosen = from_list(map(agent.get_thread, arguments.threads)) if arguments.threads else found()
        return await each(
            chosen, do, lambda thread: {"agent": thread.agent, "thread": str(thread)}, arguments, out, done=done
        )

    return with_client(arguments, run)
