"""What all steps of a turn share in its orchestration: its thread, as the turn knows it, and what may stop it."""

from __future__ import annotations

import functools
import json
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeVar

import attrs
from durabletask import task
from durabletask.task import RetryPolicy

from dafx_actors._json.books import CancelMark, ChildRecord, QuestionRecord
from dafx_actors._json.messages import dump_message
from dafx_actors._json.operations import Granted, Message, Record, Refused, Reply
from dafx_actors._json.steps import OF_THE_TREE, TOLD_TOGETHER, Caller, ShownStatus, Spent
from dafx_actors._rules.retries import pause_before
from dafx_actors._rules.turn import KeyOf, Progress
from dafx_actors._turns.context import TurnContext
from dafx_actors._turns.tell import GRANTED
from dafx_actors.errors import DafxError, MessageTooLarge, TurnCancelled, TurnDeadlineExceeded, TurnFailed
from dafx_actors.exchange import Limits
from dafx_actors.ids import AgentThread, call_key, earlier_call_key
from dafx_actors.orchestration._coroutines import DurableTask, when_any
from dafx_actors.transcript import ChatMessage, Json

T = TypeVar("T")

_MOST_TOLD = 64 * 1024
"""Characters of a message that is told a thread together with a step. Of more it is to say that it can hold it."""


class Logger(Protocol):
    """A logger, or one that is silent while an orchestration is replayed."""

    def info(self, msg: str, *args: object) -> None:
        """Log what goes as it should."""
        ...

    def warning(self, msg: str, *args: object) -> None:
        """Log what a person should look at."""
        ...


def keys_of(thread: AgentThread, turn: str, form: int, retry: int = 0) -> KeyOf:
    """Give the function that names the tool calls of a turn of this form, which was taken up again so often."""
    if form < OF_THE_TREE and not retry:
        return functools.partial(earlier_call_key, turn)
    return functools.partial(call_key, thread, turn, retry=retry)


class Stopped(Exception):
    """Ends a turn from outside: cancelled, or out of time."""

    def __init__(self, error: DafxError) -> None:
        super().__init__(error)
        self.error = error


@attrs.frozen
class Broken:
    """A step failed as a whole, and did not say what it did."""

    error: DafxError

    @property
    def is_too_large(self) -> bool:
        """True if the step failed only because its answer cannot be sent: what it did is done."""
        return isinstance(self.error, MessageTooLarge)


class TurnBase:
    """A turn that has been taken up."""

    def __init__(
        self,
        context: TurnContext,
        thread: AgentThread,
        turn: str,
        form: int = 0,
        callers: tuple[Caller, ...] = (),
        retry: int = 0,
    ) -> None:
        """Take it up.

        Args:
            context: Of its orchestration.
            thread: Its thread.
            turn: Its correlation id.
            form: In which it was begun; see `steps.FORM`.
            callers: The turns that wait for it, from the first.
            retry: How often it was taken up again after it had failed.
        """
        self.context = context
        self.thread = thread
        self.id = turn
        self.form = form
        self.callers = callers
        self.retry = retry
        self.key_of: KeyOf = keys_of(thread, turn, form, retry)
        self.started_at = context.current_utc_datetime
        self.progress: Progress = Progress()
        self.limits: Limits = Limits()
        self.length: int = 0
        """The length of the thread, as the turn knows it."""
        self.told: Record | None = None
        """What the thread was told together with a step, as long as none has said that it is there."""
        self.cache_token: str | None = None
        """The token under which a worker may still have what the thread's last operation stored."""
        self.blocked: list[str] = []
        """The names of tools and agents that the turn waits for and that no worker has."""
        self._shown = ShownStatus()
        self.stops: list[DurableTask[Any]] = []
        """The wait for `CANCEL`, then timers of deadlines."""

    @property
    def is_of_the_tree(self) -> bool:
        """True if the turn shares limits and cancels with the turns above and below it."""
        return self.form >= OF_THE_TREE

    def spent(self, response: Json) -> dict[str, Json]:
        """The steps and tokens of the turn and of all turns below it, by its response if there is one."""
        taken = Spent.in_response(response) if response else Spent(self.progress.steps, self.progress.usage)
        return taken.dump()

    def tell_end(self, logger: Logger, response: Json, error: DafxError | None = None) -> None:
        """Show how the turn has ended, and log a line for it; with the cause, where it failed."""
        state = "completed" if error is None else "cancelled" if isinstance(error, TurnCancelled) else "failed"
        spent = Spent.in_response(response) if response else Spent(self.progress.steps, self.progress.usage)
        self.progress = attrs.evolve(self.progress, steps=spent.steps)
        self.blocked = []
        self.show(state)
        seconds = (self.context.current_utc_datetime - self.started_at).total_seconds()
        tokens = spent.usage.total_tokens if spent.usage else 0
        where, took = f"{self.thread.agent}, thread {self.thread}", f"{seconds:.1f} s, {tokens} tokens"
        if error is None or state == "cancelled":
            logger.info("Turn %s of %s: %s after %s.", self.id, where, state, took)
        else:
            logger.warning("Turn %s of %s: %s after %s: %s", self.id, where, state, took, error)

    async def tell_thread(self, message: Message) -> Reply:
        """Tell the thread something; what it says may be a refusal."""
        said = await self.context.call_entity(self.thread.entity_id, message.operation, message.dump())
        return Reply.load(said, self.thread, self.id)

    def checked(self, reply: Reply) -> Reply:
        """Check a reply of the thread.

        Raises:
            DafxError: It refused.
        """
        if isinstance(reply.outcome, Refused):
            raise reply.outcome.error
        return reply

    def settle(self, granted: Granted, cache_token: str | None) -> None:
        """Take over what the thread says of its length."""
        self.length, self.cache_token = granted.length, cache_token

    def see(self, length: int | None) -> None:
        """Take over the length that a step has seen, which came together with a `record`: that is there."""
        if length is not None and self.told is not None:
            self.told, self.length = None, length

    def can_tell(self, messages: Sequence[ChatMessage]) -> bool:
        """Say whether this can be told together with the next step: one small message, in a form that knows how."""
        if self.form < TOLD_TOGETHER or self.told is not None or len(messages) != 1:
            return False
        return len(json.dumps(dump_message(messages[0]))) <= _MOST_TOLD

    def tell(self, messages: Sequence[ChatMessage]) -> None:
        """Have the thread keep a message, without waiting: the step that is asked for next looks whether it is there.

        What such a step says of the length is given to `see`. Where none says anything, `make_sure` is to be called
        before the turn records anything else.
        """
        record = Record(turn=self.id, length=self.length, messages=tuple(messages), retry=self.retry, told=True)
        self.context.signal_entity(self.thread.entity_id, record.operation, record.dump())
        self.told, self.cache_token = record, None
        self.length += len(record.messages)

    async def make_sure(self) -> None:
        """Ask the thread for what it was told together with a step that has not said that it is there.

        The same record changes nothing if it has arrived.

        Raises:
            DafxError: The thread works on another turn, or cannot hold it.
        """
        if (record := self.told) is None:
            return
        self.told = None
        await self._record(attrs.evolve(record, told=False))

    async def record(
        self,
        messages: Sequence[ChatMessage],
        *,
        questions: Sequence[QuestionRecord] = (),
        children: Sequence[ChildRecord] = (),
    ) -> None:
        """Have the thread keep messages of this turn, what a person is to decide, and turns of other agents.

        Raises:
            DafxError: The thread works on another turn.
        """
        record = Record(
            turn=self.id,
            length=self.length,
            messages=tuple(messages),
            questions=tuple(questions),
            children=tuple(children),
            retry=self.retry,
        )
        await self.make_sure()
        await self._record(attrs.evolve(record, length=self.length))

    async def _record(self, record: Record) -> None:
        reply = self.checked(await self.tell_thread(record))
        if isinstance(reply.outcome, Granted):
            self.settle(reply.outcome, reply.cache_token)
            if reply.outcome.next_id is not None:
                self.context.send_event(reply.outcome.next_id, GRANTED)

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
            raise Stopped(CancelMark.read(await cancelled).error(self.thread.agent, self.id))
        if any(timer.is_complete for timer in deadline):
            raise Stopped(TurnDeadlineExceeded(self.thread.agent, self.id, self.limits.seconds or 0.0))

    def pause(
        self, attempt: int, policy: RetryPolicy, started_at: datetime, seed: str, at_least: float | None = None
    ) -> timedelta | None:
        """The pause before another attempt; None if there is to be none."""
        waited = self.context.current_utc_datetime - started_at
        return pause_before(attempt, policy, waited, seed, at_least=at_least)

    async def as_value(self, step: Awaitable[Json], load: Callable[[Json], T]) -> T | Broken:
        """Await a step and read its result with `load`. A failure is a value, too, also if the step raised."""
        kind, text = "an error", "the step gave no result"
        try:
            if (result := await step) is not None:
                return load(result)
        except MessageTooLarge as error:
            return Broken(error)
        except task.TaskFailedError as error:
            kind, text = error.details.error_type, error.details.message
        return Broken(TurnFailed(self.thread.agent, self.id, kind, text))

    def show(self, state: str, *, attempt: int | None = None, error: str | None = None) -> None:
        """Show whoever asks for the turn how far it is."""
        self._shown = shown = ShownStatus(state=state, steps=self.progress.steps, attempt=attempt, error=error)
        if self.blocked:
            shown = attrs.evolve(shown, state="blocked", waits_for=tuple(self.blocked))
        self.context.set_custom_status(shown.dump())

    def show_blocked(self, names: Sequence[str]) -> None:
        """Show which names no worker has; with none, what was shown last is shown again."""
        if list(names) != self.blocked:
            self.blocked = list(names)
            shown = self._shown
            self.show(shown.state, attempt=shown.attempt, error=shown.error)
