"""The entity that holds the threads of an agent: it lets the rules decide, and stores what they say."""

from __future__ import annotations

import functools
from datetime import UTC, datetime

import attrs
from durabletask.entities import EntityContext

from dafx_actors._json import peer as _peer_forms
from dafx_actors._json.asks import Asks
from dafx_actors._json.operations import (
    Begin,
    Cancelled,
    Ended,
    Granted,
    Queued,
    Record,
    Refused,
    Reply,
    Telling,
    with_error_only,
)
from dafx_actors._json.requests import load_request
from dafx_actors._json.steps import Settings, TurnInput, WholeTurnInput
from dafx_actors._rules import asks as _asks
from dafx_actors._rules import operations as _operations
from dafx_actors._rules import state as _state
from dafx_actors._rules import thread as _thread
from dafx_actors._turns.host import Host
from dafx_actors._turns.recent import RecentDocuments, begin_token, record_token
from dafx_actors._turns.whole import WholeTurn
from dafx_actors.agents import AgentDefinition
from dafx_actors.errors import DafxError, ThreadBusy, UnsupportedTranscript
from dafx_actors.ids import AgentThread, asks_id, tell_name, telling_id, turn_name
from dafx_actors.transcript import Json


def settings_of(definition: AgentDefinition) -> Settings:
    """The settings that a turn keeps of an agent's declaration."""
    return Settings(limits=definition.limits, retry=definition.retry)


def _told_token(context: EntityContext, incoming: _operations.Incoming) -> str | None:
    """The token of a `record` that a step came with."""
    if context.operation != Record.operation or not (record := Record.load(incoming.raw)).told:
        return None
    return record_token(incoming.thread, record.turn, record.length)


def hear(context: EntityContext, raw: Json) -> None:
    """One operation of the entity that holds what a turn asks a person: see `_rules/asks.py`.

    Raises:
        ValueError: It is told something else than a thread tells.
    """
    if context.operation != Asks.operation:
        raise ValueError(f"the inbox has no operation {context.operation!r}; it has {Asks.operation}")
    context.set_state(_asks.kept(context.get_state(), Asks.load(raw)))


@attrs.frozen
class ThreadEntity:
    """The threads of one agent on a worker."""

    definition: AgentDefinition
    host: Host
    recent: RecentDocuments
    whole: WholeTurn

    def operate(self, context: EntityContext, raw: Json) -> Json:
        """One operation of a thread. Refusals are values: durabletask keeps only a text of what is raised."""
        thread = AgentThread(self.definition.name, context.entity_id.key)
        try:
            if (rule := _operations.OPERATIONS.get(context.operation)) is not None:
                return self._change(context, thread, raw, rule).dump()
            if context.operation == "run":
                return self._run(context, thread, raw)
        except DafxError as error:
            if context.operation == "run" and _peer_forms.sent_by_peer(raw):
                raise  # the peer's caller knows no errors as values: its task is to fail
            return Reply(outcome=Refused(error)).dump()
        if context.operation == "delete":
            self._delete(context, thread)
            return None
        known = ", ".join([*_operations.OPERATIONS, "run", "delete"])
        raise ValueError(f"threads have no operation {context.operation!r}; they have {known}")

    def _change(self, context: EntityContext, thread: AgentThread, raw: Json, rule: _operations.Rule) -> Reply:
        state = _state.load(context.get_state())
        incoming = _operations.Incoming(
            thread=thread,
            raw=raw,
            now=datetime.now(UTC),
            definition=self.definition,
            against=self.whole.steps.toolbox.against,
        )
        changed, outcome = rule(state, incoming)
        begins, token = context.operation == Begin.operation, None
        if changed is not state:
            document = None if changed == _state.ThreadState() else _state.dump(changed)
            context.set_state(document)
            self._tell_inbox(context, thread, state, changed)
            if isinstance(outcome, Granted):
                known = begin_token(thread, incoming.turn) if begins else _told_token(context, incoming)
                token = self.recent.keep(document, changed.length, known)
        if begins and not isinstance(outcome, Granted):
            self.recent.keep(None, 0, begin_token(thread, incoming.turn))
        if context.operation == "reset" and isinstance(outcome, Cancelled):
            for lost in _thread.lost_by(state, outcome.mark.reason):
                self._tell_lost(context, thread, lost)
        if context.operation == "abort" and isinstance(outcome, Ended):
            outcome = with_error_only(outcome)
        settings = settings_of(self.definition) if begins else None
        return Reply(outcome=outcome, cache_token=token, settings=settings)

    def _delete(self, context: EntityContext, thread: AgentThread) -> None:
        """Leave nothing of a thread, also where what it has kept cannot be read."""
        try:
            state = _state.load(context.get_state())
            lost = _thread.lost_by(state, "the thread was deleted")
            self._tell_inbox(context, thread, state, _state.ThreadState())
        except UnsupportedTranscript:
            lost = ()
        context.set_state(None)
        for each in lost:
            self._tell_lost(context, thread, each)

    @staticmethod
    def _tell_inbox(
        context: EntityContext, thread: AgentThread, before: _state.ThreadState, after: _state.ThreadState
    ) -> None:
        """Tell the inbox, in one batch with the state, where what a person is to decide has changed.

        Nothing waits for it. Where only workers of an older version are left, it waits for one that has the entity.
        """
        for asks in _asks.told(before, after, thread):
            context.signal_entity(asks_id(thread.agent, asks.turn), asks.operation, asks.dump())

    def _tell_lost(self, context: EntityContext, thread: AgentThread, lost: Cancelled) -> None:
        """Have a turn told that its thread has forgotten it: it may wait for a person whom nobody asks any more."""
        context.schedule_new_orchestration(
            tell_name(thread.agent), Telling.lost(thread, lost).dump(), telling_id(thread)
        )

    def _run(self, context: EntityContext, thread: AgentThread, raw: Json) -> Json:
        """A whole turn in one operation, for `durability="turn"` and for the peer's callers, which send this.

        A request that nobody waits for, a signal, starts the turn's orchestration instead. While another turn is active
        this one fails at once: the operation cannot wait for it without stopping the thread. The peer's callers get
        the form that they read, in which a turn's error is one of its contents.
        """
        request, by_peer = load_request(raw), _peer_forms.sent_by_peer(raw)
        if not _peer_forms.waits_for_answer(raw):
            sent = TurnInput(thread_id=thread.thread_id, request=request).dump()
            context.schedule_new_orchestration(turn_name(thread.agent), sent, request.correlation_id)
            return None
        before = _state.load(context.get_state())
        retry = WholeTurnInput.load(raw).retry
        state, outcome = _thread.begin(before, thread, request, datetime.now(UTC), retry=retry)
        if isinstance(outcome, Queued):
            busy = ThreadBusy(thread.agent, thread.thread_id, outcome.active)
            if not (by_peer and request.orchestration_id == request.correlation_id):
                raise busy
            # Handed over by a client of ours, which reads the thread.
            now = datetime.now(UTC)
            state, _ = _thread.abort(state, thread, request.correlation_id, busy, now, request=request)
            context.set_state(_state.dump(state))
            self._tell_inbox(context, thread, before, state)
            return None
        if isinstance(outcome, Granted):
            taken = functools.partial(self.whole.take, thread, request, state, raw)
            state, outcome = self.host.run_operation(str(context.entity_id), taken)
        if state is not before:
            context.set_state(_state.dump(state))
            self._tell_inbox(context, thread, before, state)
        if isinstance(outcome, Refused):
            raise outcome.error
        assert isinstance(outcome, Ended), "a whole turn ends, or is refused"
        return _peer_forms.dump_agent_response(outcome.response) if by_peer else outcome.response
