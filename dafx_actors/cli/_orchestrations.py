"""`dafx orchestrations`: what coordinates agents."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from dafx_actors.cli._io import NotThere, Output, actions, add_bulk, age, check_chosen, json_value, with_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from dafx_actors.client import DurableAIAgentClient

_STATES = ("pending", "running", "completed", "failed", "terminated", "suspended")
_ENDED = ("completed", "failed", "terminated")
_MEANT: Mapping[str, tuple[str, ...]] = {
    "suspend": ("pending", "running"),
    "resume": ("suspended",),
    "terminate": ("pending", "running", "suspended"),
    "purge": _ENDED,
}
"""Of the many that a filter leaves, each action is about those in these states."""
_DONE = {"suspend": "suspended", "resume": "resumed", "terminate": "terminated", "purge": "purged"}


def declare(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    add = actions(parser)
    listing = add(
        "list", "list orchestrations, the oldest first", run_list, example="dafx orchestrations list --state failed"
    )
    listing.add_argument("--name", help="only of this name")
    listing.add_argument("--prefix", default="", help="only those whose ids begin so")
    listing.add_argument("--state", choices=_STATES, help="only in this state")
    listing.add_argument("--older", type=age, metavar="AGE", help="only those that were started 90s, 12h, 30d ago")
    listing.add_argument("--of-agents", action="store_true", help="also those that are turns of agents")
    show = add(
        "show", "show where one stands, and what it waits for", run_show, example="dafx orchestrations show 7c1b"
    )
    show.add_argument("id", metavar="ID")
    show.add_argument("--history", metavar="FILE", help="write what was recorded of it, for `dafx check`")
    start = add(
        "start", "start one", run_start, example="""dafx orchestrations start ask_both --input '"What is heat?"'"""
    )
    start.add_argument("name", help="of the orchestrator")
    start.add_argument("--input", type=json_value, metavar="JSON", help="what it is given")
    start.add_argument("--id", help="its id (default: a new one); where it exists, it is taken up")
    start.add_argument("--wait", action="store_true", help="wait for its end, and say its result")
    tell = add(
        "raise", "raise an event for one", run_raise, example="dafx orchestrations raise 7c1b approved --data true"
    )
    tell.add_argument("id", metavar="ID")
    tell.add_argument("event", help="what it waits for")
    tell.add_argument("--data", type=json_value, metavar="JSON", help="what comes with it")
    for name, what in (
        ("suspend", "have them rest where they stand"),
        ("resume", "have them go on that were suspended"),
        ("terminate", "end them, and the turns that they wait for"),
        ("purge", "remove what was kept of those that have ended"),
    ):
        change = add(name, what, run_change, example=f"dafx orchestrations {name} --older 30d --dry-run")
        change.add_argument("ids", metavar="ID", nargs="*")
        change.add_argument("--name", help="only of this name")
        change.add_argument("--of-agents", action="store_true", help="also those that are turns of agents")
        if name != "purge":
            change.add_argument("--reason", default="", help="for its history")
        add_bulk(change, f"orchestrations that are {' or '.join(_MEANT[name])}", _STATES)


def run_list(arguments: argparse.Namespace) -> int:
    """List."""
    import attrs

    async def run(client: DurableAIAgentClient, out: Output) -> None:
        found = client.orchestrations.list(
            arguments.name,
            prefix=arguments.prefix,
            state=arguments.state,
            older=arguments.older,
            of_agents=arguments.of_agents,
        )
        header, columns = True, ["instance_id", "name", "state", "created_at", "custom_status", "error"]
        async for page in found.pages():
            if page.items:
                out.table(map(attrs.asdict, page.items), columns, header=header)
                header = False
        if header:
            out.text("no orchestrations")

    return with_client(arguments, run)


def run_show(arguments: argparse.Namespace) -> int:
    """Show."""
    import attrs

    async def run(client: DurableAIAgentClient, out: Output) -> None:
        handle = client.get_orchestration(arguments.id)
        state = await handle.state()
        if state is None:
            raise NotThere(f"there is no orchestration {arguments.id!r} on this task hub")
        steps = await handle.pending_steps()
        if arguments.history:
            (await handle.history()).save(arguments.history)
        failure = state.failure_details
        record = {
            "id": state.instance_id,
            "name": state.name,
            "state": state.runtime_status.name.lower(),
            "created": state.created_at,
            "updated": state.last_updated_at,
            "input": state.serialized_input,
            "output": state.serialized_output,
            "custom_status": state.serialized_custom_status,
            "error": failure.message if failure else None,
        }
        if out.as_json:
            out.record({**record, "pending": [attrs.asdict(step) for step in steps]}, "")
            return
        for name, value in record.items():
            if value is not None:
                out.text(f"{name:<14} {value}")
        for step in steps:
            where = {True: "", False: "; no worker has it", None: ""}[step.is_hosted]
            out.text(f"waits for      {step.kind} {step.name}, since {step.since:%H:%M:%S} UTC{where}")

    return with_client(arguments, run)


def run_start(arguments: argparse.Namespace) -> int:
    """Start."""

    async def run(client: DurableAIAgentClient, out: Output) -> None:
        handle = await client.schedule_new_orchestration(
            arguments.name, input=arguments.input, instance_id=arguments.id
        )
        if not arguments.wait:
            out.record({"id": str(handle), "name": arguments.name}, str(handle))
            return
        result = await handle.result()
        out.record({"id": str(handle), "name": arguments.name, "result": result}, str(result))

    return with_client(arguments, run)


def run_raise(arguments: argparse.Namespace) -> int:
    """Raise an event."""

    async def run(client: DurableAIAgentClient, out: Output) -> None:
        handle = client.get_orchestration(arguments.id)
        state = await handle.state()
        if state is None:
            raise NotThere(f"there is no orchestration {arguments.id!r} on this task hub")
        await handle.raise_event(arguments.event, arguments.data)
        out.record({"id": arguments.id, "event": arguments.event, "done": "raised"}, f"{arguments.id}: told")

    return with_client(arguments, run)


def run_change(arguments: argparse.Namespace) -> int:
    """Suspend, resume, terminate or purge."""
    from dafx_actors.cli._bulk import each, from_list

    check_chosen(arguments, arguments.ids)
    action = arguments.action

    async def run(client: DurableAIAgentClient, out: Output) -> int:
        async def found() -> AsyncIterator[str]:
            listed = client.orchestrations.list(
                arguments.name, state=arguments.state, older=arguments.older, of_agents=arguments.of_agents
            )
            async for info in listed:
                if info.state in _MEANT[action]:
                    yield info.instance_id

        async def do(instance_id: str) -> Mapping[str, Any]:
            handle = client.get_orchestration(instance_id)
            if await handle.state() is None:
                raise NotThere(f"there is no orchestration {instance_id!r} on this task hub")
            if action == "purge":
                return (
                    {"text": "purged"} if await handle.purge() else {"done": None, "text": "has not ended, and stays"}
                )
            await getattr(handle, action)(arguments.reason)
            return {}

        chosen = from_list(arguments.ids) if arguments.ids else found()
        return await each(chosen, do, lambda found: {"id": found}, arguments, out, done=_DONE[action])

    return with_client(arguments, run)
