"""What a turn does while it waits for a name that no worker may have: a tool or an agent that is gone, or mistyped.

::

    5 s ──> look ──> somebody has it      it is busy, or slow: look again, ever more seldom
              └────> nobody has it        `blocked`, with the name; look again each 15 s
                        └── for 60 s ──>  on record that it is given up ──> look once more ──> the model is told

A look is a step that any worker of the agent takes. It asks the scheduler what is hosted, where that can tell, and says
else what its own worker has. Where no worker is there to look, nothing is given up: they may all be on their way.

One coroutine looks after all that a turn waits for. It sleeps when a batch of calls begins, and most are over before it
wakes: a turn pays with one timer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

import attrs

from dafx_actors._json.steps import Failed, HostedKind, HostedName, Probe, Probed, ToolOutcome, Unknown
from dafx_actors._turns.link import Broken, TurnBase
from dafx_actors.ids import probe_name
from dafx_actors.orchestration._coroutines import DurableTask, when_any
from dafx_actors.transcript import Json

R = TypeVar("R")

FIRST_LOOK = timedelta(seconds=5)
NEXT_LOOK = timedelta(seconds=15)
LONGEST_PAUSE = timedelta(minutes=5)
"""Between looks at what somebody has."""
PATIENCE = timedelta(seconds=60)
"""How long nobody may have a name until it is given up, while workers are there to say so."""
_AWAY = 2 * NEXT_LOOK
"""After so long without an answer the workers were away, and the patience begins anew."""


# --- The rule -----------------------------------------------------------------------------------------------------


@attrs.frozen
class Missing:
    """The result of the looks at one name."""

    since: datetime | None = None
    """When it was first seen that nobody has it; None where somebody has it, as far as is known."""
    seen: datetime | None = None
    """When that was last seen."""

    def looked(self, has: bool | None, now: datetime) -> Missing:
        """With another look, which was answered now. `has` is None where whoever looked could not tell."""
        if has is None:
            return self
        if has:
            return Missing()
        were_away = self.seen is None or now - self.seen > _AWAY
        return Missing(now if were_away else self.since, now)

    @property
    def is_over(self) -> bool:
        """True once nobody had the name for so long that it is given up."""
        return self.since is not None and self.seen is not None and self.seen - self.since >= PATIENCE


def pause(missing: bool, waited: timedelta) -> timedelta:
    """The pause until the next look. It grows for a name that somebody has, since a tool may take hours."""
    return NEXT_LOOK if missing else min(max(NEXT_LOOK, waited / 8), LONGEST_PAUSE)


def given_up(tool: str, *, once: bool, begun: bool) -> ToolOutcome:
    """The outcome of a call that was given up because no worker has its tool any more.

    Args:
        tool: Its name.
        once: Whether the call may act only once.
        begun: Whether a step had put on record that it makes it, which only those of `once` do.
    """
    gone = f"no worker has the tool {tool!r} any more"
    if not once:
        return Failed(f"{gone}; the call was given up. Unless a worker had begun it before, it has not acted.")
    return Unknown() if begun else Failed(f"{gone}; the call was not made")


def not_hosted(agent: str) -> Failed:
    """The outcome of a call of an agent that no worker hosts."""
    withdrawn = "its turn was withdrawn. Unless it had begun before, nothing was done."
    return Failed(f"no worker hosts the agent {agent!r}; {withdrawn}")


# --- In the orchestration -----------------------------------------------------------------------------------------


@attrs.define(kw_only=True, eq=False)
class _Wait(Generic[R]):
    """A step, or a turn of another agent, that has not ended."""

    kind: HostedKind
    name: str
    """As workers know it."""
    shown: str
    """As people know it."""
    began_at: datetime
    next_look: datetime
    give_up: Callable[[], Awaitable[R | None]]
    over: DurableTask[None] = attrs.field(factory=DurableTask[None])
    """Completes when there is no sense any more in waiting."""
    missing: Missing = Missing()
    record: R | None = None
    """The record that the step is given up, once there is one."""


class Hosting:
    """Looks after all that one turn waits for."""

    def __init__(self, turn: TurnBase) -> None:
        """Begin with nothing."""
        self._turn = turn
        self._waits: list[_Wait[Any]] = []
        self._watch: DurableTask[None] | None = None

    async def unless_gone(
        self,
        step: DurableTask[Json],
        kind: HostedKind,
        name: str,
        *,
        shown: str,
        give_up: Callable[[], Awaitable[R | None]],
    ) -> R | None:
        """Wait until a step has completed: None; or, where nobody has its name, the record that it is given up.

        Turns before form 1 do not look: whoever called awaits the step.

        Args:
            step: What is waited for.
            kind: What workers take it as.
            name: By which they know it.
            shown: By which people know it.
            give_up: Puts on record that it is not to be done any more; None where that could not be done.
        """
        if self._turn.form < 1:
            return None
        now = self._turn.context.current_utc_datetime
        wait = _Wait[R](kind=kind, name=name, shown=shown, began_at=now, next_look=now + FIRST_LOOK, give_up=give_up)
        self._waits.append(wait)
        if self._watch is None or self._watch.is_complete:
            self._watch = self._turn.context.create_task(self._look_after())
        try:
            await when_any([step, wait.over])
        finally:
            self._waits.remove(wait)
            self._show()
        return None if step.is_complete else wait.record

    async def _look_after(self) -> None:
        while self._waits:
            await self._turn.context.create_timer(min(wait.next_look for wait in self._waits))
            now = self._turn.context.current_utc_datetime
            if any(wait.next_look <= now for wait in self._waits):
                await self._look()

    async def _look(self) -> None:
        """Look at all of them: one step tells of any number of names."""
        looked_at = list(self._waits)
        has = await self._ask(looked_at)
        now = self._turn.context.current_utc_datetime
        for wait in looked_at:
            wait.missing = wait.missing.looked(has.get(wait.name), now)
            wait.next_look = now + pause(wait.missing.since is not None, now - wait.began_at)
        self._show()
        over = [wait for wait in looked_at if wait.missing.is_over and wait in self._waits]
        for wait in over:
            wait.record = wait.record or await wait.give_up()
        if any(wait.record for wait in over):
            # A worker that came back in this very moment may have read the thread just before: then its step says what
            # became of the call.
            has = await self._ask(over)
            for wait in over:
                if wait.record and has.get(wait.name) is False and not wait.over.is_complete:
                    wait.over.complete(None)

    async def _ask(self, waits: list[_Wait[Any]]) -> Mapping[str, bool]:
        """Ask which of the names some worker has; empty if a worker of an older version cannot tell."""
        names = tuple(dict.fromkeys(HostedName(wait.kind, wait.name) for wait in waits))
        asked = Probe(turn=self._turn.id, names=names)
        probe = self._turn.context.call_activity(probe_name(self._turn.thread.agent), input=asked.dump())
        probed = await self._turn.as_value(probe, Probed.load)
        return {} if isinstance(probed, Broken) else probed.hosts or {}

    def _show(self) -> None:
        blocked = dict.fromkeys(wait.shown for wait in self._waits if wait.missing.since is not None)
        self._turn.show_blocked(list(blocked))
