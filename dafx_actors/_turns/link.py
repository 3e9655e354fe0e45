"""What all steps of a turn share in its orchestration: its thread, as the turn knows it, and what may stop it."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar, cast

from durabletask import task
from durabletask.task import RetryPolicy

from dafx_actors._json import messages as _codec
from dafx_actors._rules import turn as _turn
from dafx_actors._rules.operations import error_in
from dafx_actors._rules.tree import Caller, Spent, dump_callers, spent_in
from dafx_actors.errors import DafxError, MessageTooLarge, TurnCancelled, TurnDeadlineExceeded, TurnFailed
from dafx_actors.exchange import Limits
from dafx_actors.ids import AgentThread
from dafx_actors.orchestration._agents import OF_THE_TREE, keys_of
from dafx_actors.orchestration._context import OrchestrationContext
from dafx_actors.orchestration._coroutines import DurableTask, when_any
from dafx_actors.transcript import ChatMessage, Json

T = TypeVar("T")

CANCEL = "cancel"
"""The event that cancels a turn."""


def is_too_large(error: Json) -> bool:
    """Whether a step failed since its answer cannot be sent, though what it did is done."""
    return isinstance(_codec.load_error(error), MessageTooLarge)


class Stopped(Exception):
    """Ends a turn from outside: cancelled, or out of time."""

    def __init__(self, error: DafxError) -> None:
        super().__init__(error)
        self.error = error


class TurnBase:
    """A turn that has been taken up."""

    def __init__(
        self,
        context: OrchestrationContext,
        thread: AgentThread,
        turn: str,
        form: int = 0,
        callers: tuple[Caller, ...] = (),
    ) -> None:
        """Take it up.

        Args:
            context: Of its orchestration.
            thread: Its thread.
            turn: Its correlation id.
            form: In which it was begun; see `_agent_tasks.FORM`.
            callers: The turns that wait for it, from the first.
        """
        self.context = context
        self.thread = thread
        self.id = turn
        self.form = form
        self.callers = callers
        self.key_of: _turn.KeyOf = keys_of(thread, turn, form)
        self.begun = context.current_utc_datetime
        self.progress: _turn.Progress = _turn.Progress()
        self.limits: Limits = Limits()
        self.length: int = 0
        """Of the thread, as the turn knows it."""
        self.state: str | None = None
        """Names what the thread's last operation stored, for a worker that still has it."""
        self.blocked: list[str] = []
        """Names of tools and agents that it waits for and that no worker has."""
        self._shown: tuple[str, dict[str, Json]] = ("running", {})
        self.stops: list[DurableTask[Any]] = []
        """The wait for `CANCEL`, then timers of deadlines."""

    @property
    def is_of_the_tree(self) -> bool:
        """Whether it shares limits and cancels with the turns above and below it."""
        return self.form >= OF_THE_TREE

    @property
    def above(self) -> dict[str, Json]:
        """What its steps are told of the turns that wait for it: they look whether those still want them."""
        return {"callers": dump_callers(self.callers)} if self.callers else {}

    def spent(self, response: Json) -> dict[str, Json]:
        """What it took with all below it, as far as is known: by its response, if there is one."""
        taken = spent_in(response) if response else Spent(self.progress.steps, self.progress.usage)
        return taken.dump()

    def call_thread(self, operation: str, input: Json) -> DurableTask[Json]:
        """Tell the thread something; what it says may be a refusal."""
        return self.context.call_entity(self.thread.entity_id, operation, input)

    def checked(self, outcome: Json) -> Json:
        """What the thread said.

        Raises:
            DafxError: It refused.
        """
        if "error" in outcome:
            raise error_in(outcome, self.thread)
        return outcome

    async def record(
        self, messages: Sequence[ChatMessage], *, asks: Sequence[Json] = (), children: Sequence[Json] = ()
    ) -> None:
        """Have the thread keep messages of this turn, what a person is to decide, and turns of other agents.

        Raises:
            DafxError: The thread works on another turn.
        """
        told = {
            "correlationId": self.id,
            "length": self.length,
            "messages": [_codec.dump_message(message) for message in messages],
            **({"asks": list(asks)} if asks else {}),
            **({"children": list(children)} if children else {}),
        }
        recorded = self.checked(await self.call_thread("record", told))
        self.length, self.state = recorded["granted"], recorded.get("state")

    async def unless_stopped(self, waited: DurableTask[T]) -> T:
        """Wait, unless the turn is cancelled or its time is over.

        Raises:
            Stopped: It is.
        """
        if not waited.is_complete and not any(stop.is_complete for stop in self.stops):
            await when_any([*self.stops, waited])
        await self.check_stops()
        return await waited

    async def check_stops(self) -> None:
        """See that nothing has stopped the turn.

        Raises:
            Stopped: Something has.
        """
        cancelled, *deadline = self.stops
        if cancelled.is_complete:
            mark: Json = await cancelled
            if not isinstance(mark, Mapping):
                mark = {"reason": mark if isinstance(mark, str) else ""}
            reason, by = (str(cast("Mapping[str, Json]", mark).get(said) or "") for said in ("reason", "by"))
            raise Stopped(TurnCancelled(self.thread.agent, self.id, reason, by))
        if any(timer.is_complete for timer in deadline):
            raise Stopped(TurnDeadlineExceeded(self.thread.agent, self.id, self.limits.seconds or 0.0))

    def pause(
        self, attempt: int, policy: RetryPolicy, begun: datetime, seed: str, at_least: float | None = None
    ) -> timedelta | None:
        """How long to wait before another attempt; None where there is to be none."""
        waited = self.context.current_utc_datetime - begun
        return _turn.pause_before(attempt, policy, waited, seed, at_least=at_least)

    async def as_value(self, step: Awaitable[Json]) -> Json:
        """What a step gave: its failures are values, too, also what it raised in spite of that."""
        kind, text = "an error", "the step gave no result"
        try:
            if (result := await step) is not None:
                return result
        except MessageTooLarge as error:
            return {"broken": True, "error": _codec.dump_error(error)}
        except task.TaskFailedError as error:
            kind, text = error.details.error_type, error.details.message
        return {"broken": True, "error": _codec.dump_error(TurnFailed(self.thread.agent, self.id, kind, text))}

    def show(self, state: str, **more: Json) -> None:
        """What whoever asks for the turn is told."""
        self._shown = (state, more)
        if self.blocked:
            state, more = "blocked", {**more, "waitsFor": list(self.blocked)}
        self.context.set_custom_status({"state": state, "steps": self.progress.steps, **more})

    def show_blocked(self, names: Sequence[str]) -> None:
        """What no worker has of what it waits for; with none, what was shown last is shown again."""
        if list(names) != self.blocked:
            self.blocked = list(names)
            state, more = self._shown
            self.show(state, **more)
