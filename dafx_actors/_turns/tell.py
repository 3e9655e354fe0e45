"""What a thread is told for a client or a step, and the events by which turns hear of it.

Anybody who reaches the scheduler can raise an event for a turn, with any data. `GRANTED` and `decision_event` only make
a turn ask its thread; `CANCEL` cancels it, whatever comes with it.
"""

from __future__ import annotations

from dafx_actors._json.operations import (
    LOST,
    Cancel,
    Cancelled,
    Clear,
    Clearing,
    Decide,
    Decided,
    Ended,
    Telling,
    load_outcome,
)
from dafx_actors._turns.context import TurnContext
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import Json

CANCEL = "cancel"
"""The event that cancels a turn."""
GRANTED = "granted"
"""The event by which a turn that waits in line learns that it may have its thread."""


def decision_event(key: str) -> str:
    """The event that tells a turn that something was decided about one of its questions."""
    return f"decision.{key}"


async def tell(context: TurnContext, thread: AgentThread, telling: Telling) -> Json:
    """Tell a thread something on behalf of a client or a step, and wake the turns that are to know of it.

    Only orchestrations can call an entity and hear what it says; and what one has begun, it ends, whoever dies.
    """
    if telling.operation == LOST:
        cancel = Cancel.load(telling.input)
        context.send_event(cancel.turn, CANCEL, data=dict(cancel.mark.raw))
        return None
    said: Json = await context.call_entity(thread.entity_id, telling.operation, telling.input)
    match load_outcome(said, thread):
        case Cancelled(turn, mark):
            context.send_event(turn, CANCEL, data=dict(mark.raw))
        case Ended(next_id=next_id) if telling.operation == Cancel.operation:
            # It waited in line, and has left it; one that had ended before is not there to hear.
            cancel = Cancel.load(telling.input)
            context.send_event(cancel.turn, CANCEL, data=dict(cancel.mark.raw))
            if next_id:
                context.send_event(next_id, GRANTED)
        case Clearing(turns):
            for turn in turns:
                context.send_event(turn, CANCEL, data=dict(Clear.load(telling.input).mark.raw))
        case Decided(decision, about) if telling.operation == Decide.operation:
            decide = Decide.load(telling.input)
            turn = decide.turn or (about.turn if about else "")
            context.send_event(turn, decision_event(decide.key), data=dict(decision.raw))
        case _:
            pass
    return said
