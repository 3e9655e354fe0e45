"""`dafx turns`: requests to agents until their answers."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from dafx_actors.cli._io import FAILED, OK, Output, actions, add_bulk, age, check_chosen, with_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from dafx_actors.client import DurableAIAgentClient, TurnInfo
    from dafx_actors.client._handles import TurnHandle

_STATES = (
    *("pending", "queued", "running", "waiting", "blocked", "retrying"),
    *("completed", "failed", "cancelled", "terminated", "suspended"),
)
_ENDED = ("completed", "failed", "cancelled", "terminated")
_LOOK_AGAIN = 0.25
"""Seconds between looks at a turn that is followed."""
_COLUMNS = ["turn", "agent", "thread", "state", "steps", "created", "waits_for", "error"]


def declare(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    add = actions(parser)
    listing = add("list", "list turns, the oldest first", run_list, example="dafx turns list --state blocked")
    listing.add_argument("--agent", help="only of this agent")
    listing.add_argument("--state", choices=_STATES, help="only in this state")
    listing.add_argument("--older", type=age, metavar="AGE", help="only those that were started 90s, 12h, 30d ago")
    show = add("show", "show where a turn stands, and what it waits for", run_show, example="dafx turns show 9a3e")
    show.add_argument("turn", metavar="ID", help="the correlation id")
    show.add_argument("--history", metavar="FILE", help="write what was recorded of it, for `dafx check`")
    tail = add("tail", "follow a turn until it has ended", run_tail, example="dafx turns tail 9a3e")
    tail.add_argument("turn", metavar="ID")
    cancel = add("cancel", "cancel turns", run_cancel, example='dafx turns cancel 9a3e --reason "asked twice"')
    cancel.add_argument("--reason", default="", help="for the transcript, and whoever waits")
    retry = add(
        "retry", "let turns that failed go on, once the cause is gone", run_retry,
        example="dafx turns retry --agent Joker --all --dry-run",
    )  # fmt: skip
    for each in (cancel, retry):
        each.add_argument("turns", metavar="ID", nargs="*")
        each.add_argument("--agent", help="only of this agent")
        add_bulk(each, "turns that have not ended" if each is cancel else "turns that failed", _STATES)


def run_list(arguments: argparse.Namespace) -> int:
    """List."""
    from dafx_actors.cli._bulk import turn_record

    async def run(client: DurableAIAgentClient, out: Output) -> None:
        header = True
        found = client.turns.list(arguments.agent, state=arguments.state, older=arguments.older)
        async for page in found.pages():
            if page.items:
                out.table(map(turn_record, page.items), _COLUMNS, header=header)
                header = False
        if header:
            out.text("no turns")

    return with_client(arguments, run)


def run_show(arguments: argparse.Namespace) -> int:
    """Show."""
    import attrs

    from dafx_actors.cli._bulk import turn_of

    async def run(client: DurableAIAgentClient, out: Output) -> None:
        turn = await turn_of(client, arguments.turn)
        status, thread = await turn.status(), await turn.thread()
        steps = await client.get_orchestration(arguments.turn).pending_steps()
        if arguments.history:
            (await client.turns.history(arguments.turn)).save(arguments.history)
        record = {"turn": str(turn), "agent": turn.agent, "thread": str(thread), **attrs.asdict(status)}
        record["pending"] = [attrs.asdict(step) for step in steps]
        if out.as_json:
            out.record(record, "")
            return
        out.text(
            f"turn    {turn}\nagent   {turn.agent}\nthread  {thread}\nstate   {status.state}, {status.steps} steps"
        )
        for name in status.waits_for:
            out.text(f"waits   for a worker that has {name!r}: start it, or see `dafx doctor`")
        if status.state == "waiting":
            out.text(f"waits   for a person: dafx inbox --agent {turn.agent}")
        if status.error:
            out.text(f"error   {status.error}")
        if status.state == "failed":
            out.text(f"mend    once the cause is gone: dafx turns retry {turn}")
        for step in steps:
            where = {True: "", False: "; no worker has it", None: ""}[step.is_hosted]
            out.text(f"step    {step.kind} {step.name}, since {step.since:%H:%M:%S} UTC{where}")

    return with_client(arguments, run)


def run_tail(arguments: argparse.Namespace) -> int:
    """Follow."""
    from dafx_actors.cli._bulk import turn_of

    async def run(client: DurableAIAgentClient, out: Output) -> int:
        return await follow(client, await turn_of(client, arguments.turn), out)

    return with_client(arguments, run, waits=True)


async def follow(client: DurableAIAgentClient, turn: TurnHandle[Any], out: Output) -> int:
    """Say what becomes of a turn, as it does, until it has ended."""
    import anyio

    from dafx_actors.cli._said import message_lines

    agent, thread = client.get_agent(turn.agent), await turn.thread()
    shown, before = 0, None
    while True:
        status = await turn.status()
        transcript = await agent.get_transcript(thread)
        response = transcript.response(str(turn))
        # While it runs, the draft of the thread is its own only where it is the active one.
        running = status.state in ("running", "retrying", "blocked", "waiting")
        messages = response.messages if response is not None else transcript.draft if running else ()
        for message in messages[shown:]:
            for line in message_lines(message):
                out.record({"turn": str(turn), "role": message.role, "line": line}, line)
        shown = max(shown, len(messages))
        now = (status.state, status.waits_for, status.error)
        if now != before:
            about = ", ".join(status.waits_for) or status.error or ""
            text = f"[{status.state}{f': {about}' if about else ''}]"
            out.record(
                {"turn": str(turn), "state": status.state, "waits_for": status.waits_for, "error": status.error}, text
            )
            before = now
        if status.state in _ENDED:
            return OK if status.state == "completed" else FAILED
        await anyio.sleep(_LOOK_AGAIN)


def run_cancel(arguments: argparse.Namespace) -> int:
    """Cancel."""

    async def do(turn: TurnHandle[Any]) -> Mapping[str, Any]:
        cancelled = await turn.cancel(arguments.reason, by=who())
        return {"cancelled": cancelled, "text": "cancelled" if cancelled else "had ended before"}

    return _change(arguments, do, "cancelled", lambda turn: turn.state not in _ENDED)


def run_retry(arguments: argparse.Namespace) -> int:
    """Retry."""

    async def do(turn: TurnHandle[Any]) -> Mapping[str, Any]:
        retried = await turn.retry()
        return {"retried": retried, "text": "goes on" if retried else "has not ended"}

    return _change(arguments, do, "retried", lambda turn: turn.state == "failed")


def _change(
    arguments: argparse.Namespace,
    do: Callable[[TurnHandle[Any]], Awaitable[Mapping[str, Any]]],
    done: str,
    is_meant: Callable[[TurnInfo], bool],
) -> int:
    from dafx_actors.cli._bulk import each, from_list, turn_of

    check_chosen(arguments, arguments.turns)

    async def run(client: DurableAIAgentClient, out: Output) -> int:
        async def ids() -> AsyncIterator[str]:
            found: TurnInfo
            async for found in client.turns.list(arguments.agent, state=arguments.state, older=arguments.older):
                if is_meant(found):
                    yield found.correlation_id

        async def change(turn: str) -> Mapping[str, Any]:
            return await do(await turn_of(client, turn))

        chosen = from_list(arguments.turns) if arguments.turns else ids()
        return await each(chosen, change, lambda turn: {"turn": turn}, arguments, out, done=done)

    return with_client(arguments, run)


def who() -> str:
    """The name of this user, for what is kept of who decided; empty where there is none."""
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""
