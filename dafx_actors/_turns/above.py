"""Whether the turns above a turn still want it: each waits for it, as it uses its agent as a tool.

Read from their threads before each model call and tool call of the turn. So a cancel anywhere above is heard as soon as
it is on record, whoever is to pass it on and whenever that comes; and so is the end of a turn above, whatever it was.
"""

from __future__ import annotations

from collections.abc import Sequence

import anyio

from dafx_actors._json.books import CancelMark
from dafx_actors._json.steps import Caller
from dafx_actors._rules.state import load
from dafx_actors._rules.thread import is_granted
from dafx_actors._turns.host import Host
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import Json

_PAUSES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Seconds between looks at a thread that may be older than what is known: a scheduler may answer so for a while."""


async def check(host: Host, callers: Sequence[Caller], agent: str, turn: str) -> None:
    """See that all turns above a turn go on.

    Args:
        host: The worker.
        callers: Those turns, from the first. It is nearly always that which is cancelled, so it is looked at last.
        agent: Of the turn.
        turn: The turn.

    Raises:
        TurnCancelled: One does not, so that nothing of the turn may begin any more.
    """
    for caller in reversed(callers):
        mark = await _end_of(host, caller)
        if mark is not None:
            raise mark.error(agent, turn)


async def _end_of(host: Host, caller: Caller) -> CancelMark | None:
    """Why a turn does not go on, and by whom; None where it does."""
    reason = f"turn {caller.turn} of agent {caller.thread.agent!r} does not wait for it any more"
    ended = CancelMark.of(by="", reason=reason)
    for pause in _PAUSES:
        await anyio.sleep(pause)
        state = load(await document_of(host, caller.thread))
        if (mark := state.cancelled.get(caller.turn)) is not None:
            return mark
        if (granted := is_granted(state, caller.turn)) is not None:
            return None if granted else ended
    return ended  # its thread was reset


async def document_of(host: Host, thread: AgentThread) -> Json:
    """A thread as it is stored now."""

    def read() -> Json:
        entity = host.reader.get_entity(thread.entity_id)
        return entity.get_typed_state() if entity else None

    return await host.blocking(read)
