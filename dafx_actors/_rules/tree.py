"""A turn and the turns of agents that it uses as tools, and theirs: what they share. Pure.

Limits are of the whole tree. A turn leaves to those below it what it has left itself; calls that are made at the same
time share that, in equal parts, so that they cannot take it more than once. What they took is counted when they have
ended. A turn knows the turns above it, which wait for it: a call that would wait for one of them is refused, and no
step begins when one of them does not want it any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta

import attrs

from dafx_actors._json.steps import Caller
from dafx_actors.exchange import Limits, Unwritten
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import Json, UsageStats

# --- Those above --------------------------------------------------------------------------------------------------


def waits_for(callers: Iterable[Caller], thread: AgentThread) -> bool:
    """Say whether one of these turns has the thread: a turn in that thread would wait for what waits for it."""
    return any(str(each.thread.entity_id) == str(thread.entity_id) for each in callers)


def circle(agent: str) -> str:
    """Why a call is not made that would close a circle, in words for the model."""
    return f"the call was not made: agent {agent!r} waits, in this conversation, for the very answer that would ask it"


# --- Limits -------------------------------------------------------------------------------------------------------


def within(written: Limits, asked: Limits | None) -> Limits:
    """The limits of a turn.

    Args:
        written: The agent's limits. What their author wrote can be lowered, and not lifted.
        asked: Those of the request, if it has some; they replace what nobody wrote.
    """
    if asked is None:
        return written
    return Limits(**{field.name: _lower(getattr(written, field.name), getattr(asked, field.name)) for field in _FIELDS})


_FIELDS = attrs.fields(Limits)


def _lower(written: float | None, asked: float | None) -> Json:
    if isinstance(asked, Unwritten):
        return written
    if isinstance(written, Unwritten):
        return asked
    return min((most for most in (written, asked) if most is not None), default=None)


def shares(limits: Limits, steps: int, usage: UsageStats | None, waited: timedelta, count: int) -> list[Limits | str]:
    """The limits that a turn leaves to each turn of other agents that run at the same time.

    Args:
        limits: The limits of the turn.
        steps: The steps that the turn has taken. One more is kept for it: the answers of the others are of no use
            without a model call after them.
        usage: The tokens that the turn has taken.
        waited: The time since the turn began.
        count: The number of the other turns.

    Returns:
        For each its limits, or why it is not to run at all, in words for the model. What has no limit here has that of
        the other agent.
    """
    if limits.depth is not None and limits.depth < 1:
        refusal = "the call was not made: agents may not use each other as tools any deeper (see `Limits.depth`)"
        return [refusal] * count
    left: dict[str, float] = {}
    if limits.steps is not None:
        left["steps"] = max(limits.steps - steps - 1, 0)
    if limits.tokens is not None:
        left["tokens"] = max(limits.tokens - (usage.total_tokens if usage else 0), 0)
    if limits.seconds is not None:
        left["seconds"] = limits.seconds - waited.total_seconds()
    return [_share(left, limits.depth, number, count) for number in range(count)]


def _share(left: Mapping[str, float], depth: int | None, number: int, count: int) -> Limits | str:
    share: dict[str, Json] = {} if depth is None else {"depth": depth - 1}
    for name, amount in left.items():
        share[name] = amount if name == "seconds" else int(amount) // count + (number < int(amount) % count)
        if share[name] <= 0:
            return f"the call was not made: nothing is left for it of the {name} that this turn may take"
    return Limits(**share)
