"""The same for many: by ids or by filters, said before or done, each failure told and none hiding the others."""

from __future__ import annotations

import argparse
import sys
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar

from dafx_actors.cli._io import FAILED, NOT_THERE, OK, Mistake, NotThere, Output, one_line, told
from dafx_actors.client import DurableAIAgentClient, TurnInfo
from dafx_actors.client._handles import TurnHandle
from dafx_actors.errors import DafxError, SchedulerError
from dafx_actors.ids import agent_of_turn

T = TypeVar("T")


async def each(
    items: AsyncIterable[T],
    do: Callable[[T], Awaitable[Mapping[str, Any]]],
    about: Callable[[T], Mapping[str, Any]],
    arguments: argparse.Namespace,
    out: Output,
    *,
    done: str,
) -> int:
    """Do something for each, and say so; what cannot be done for one is told, and the next comes.

    Args:
        items: For which.
        do: Does it, and gives what is to be said besides.
        about: What says which it is.
        arguments: With `dry_run`.
        out: Where it is said.
        done: The word for what was done.

    Returns:
        The exit code.

    Raises:
        SchedulerError: The scheduler does not answer: there is no use in going on.
    """
    code, count = OK, 0
    # What is done changes the list that is gone through: so it is read to its end before.
    for item in [item async for item in items]:
        named = about(item)
        words = " ".join(str(value) for value in named.values() if value)
        if arguments.dry_run:
            out.record({**named, "would_be": done}, f"{words}: would be {done}")
            count += 1
            continue
        try:
            said = await do(item)
        except SchedulerError:
            raise
        except (DafxError, Mistake) as error:
            why, code = told(error) or (str(error), FAILED)
            sys.stderr.write(f"dafx: {one_line(f'{words}: {why}')}\n")
            continue
        count += 1
        out.record({**named, "done": done, **said}, f"{words}: {said.get('text', done)}")
    if not count and code == OK:
        out.text("nothing is to be done")
    return code if code in (OK, NOT_THERE) else FAILED


async def from_list(items: Iterable[T]) -> AsyncIterator[T]:
    """Ids that the command line names."""
    for item in items:
        yield item


async def turn_of(client: DurableAIAgentClient, correlation_id: str) -> TurnHandle[Any]:
    """The handle of a turn, whose agent its record names.

    Raises:
        NotThere: There is no such turn.
    """
    state = await client.get_orchestration(correlation_id).state()
    agent = None if state is None else agent_of_turn(state.name)
    if agent is None:
        raise NotThere(f"there is no turn {correlation_id!r} on this task hub; `dafx turns list` shows what there is")
    return client.get_agent(agent).get_turn(correlation_id)


def turn_record(turn: TurnInfo) -> dict[str, Any]:
    """A turn of a list, for programs and for a table."""
    return {
        "turn": turn.correlation_id,
        "agent": turn.agent,
        "thread": None if turn.thread is None else str(turn.thread),
        "state": turn.state,
        "steps": turn.steps,
        "created": turn.created_at,
        "updated": turn.updated_at,
        "waits_for": list(turn.waits_for),
        "error": turn.error,
    }
