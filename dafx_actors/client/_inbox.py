"""What waits for a person, over all threads: found by what threads told of it, held against the threads themselves."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias, cast

import anyio
import attrs
from durabletask.client import EntityQuery
from durabletask.entities import EntityInstanceId

from dafx_actors._durable.backend import Backend, StoredEntity
from dafx_actors._json.asks import Asks
from dafx_actors._json.document import Outline
from dafx_actors.client._executor import ClientAgentExecutor
from dafx_actors.client._handles import TurnHandle
from dafx_actors.client._listing import Listing, Page
from dafx_actors.client._turns import TurnInfo, Turns
from dafx_actors.decisions import InboxAsked, InboxEvent, InboxGone, PendingApproval, PendingOutcome
from dafx_actors.errors import SchedulerUnreachable, TurnNotFound, UnsupportedTranscript
from dafx_actors.ids import AgentThread, agent_name, asks_prefix

Question: TypeAlias = PendingApproval | PendingOutcome
_Key: TypeAlias = tuple[AgentThread, str, str]
_Seen: TypeAlias = tuple[datetime, float, tuple[Question, ...]]
Agents: TypeAlias = str | type | object | Sequence[str | type | object] | None

_AT_ONCE = 16
"""Threads that are read at the same time."""
_STALE = timedelta(seconds=60)
"""What was told so long ago, and does not wait any more, is taken out of the index: some schedulers may show for a
while how a thread stood before."""
_MOST_SETTLED = 10_000
_LOOK_AGAIN = 30.0
"""Seconds after which a watch reads a thread again of which it was told nothing new."""


@attrs.frozen
class Index:
    """What threads told of what they ask."""

    _backend: Backend
    _executor: ClientAgentExecutor
    _settled: dict[str, datetime] = attrs.field(init=False, factory=dict[str, datetime])
    """The entities that were told to forget, and when they had changed: once each, as that waits for a worker."""

    async def page(self, names: Collection[str] | None, size: int, after: str) -> tuple[list[StoredEntity], str]:
        """Some of the turns that wait, and what names the next of them; empty where there are no more."""
        only = next(iter(names)) if names is not None and len(names) == 1 else None
        query = EntityQuery(instance_id_starts_with=asks_prefix(only), include_state=True, include_transient=True)
        return await self._backend.page_of_entities(dataclasses.replace(query, page_size=size), after)

    async def shown(self, entity: StoredEntity, *, verify: bool) -> tuple[Question, ...]:
        """The questions of a turn that wait, as far as anybody can tell."""
        asks = Asks.read(_loaded(entity.state))
        if asks is None and entity.state is None:  # too large for a list; or deleted
            asks = Asks.read(await self._backend.thread(EntityInstanceId.parse(entity.id)))
        if asks is None or not (verify or asks.is_cut):
            return () if asks is None else asks.pending
        try:
            outline = Outline.of(await self._executor.document(asks.thread))
            found = outline.asked_by(asks.turn, asks.thread)
        except (ValueError, TypeError, LookupError, RecursionError, UnsupportedTranscript):
            return asks.pending  # whoever decides hears what there is to say
        if not found and datetime.now(UTC) - entity.modified_at > _STALE:
            await self._settle(entity, asks)
        return found

    async def _settle(self, entity: StoredEntity, asks: Asks) -> None:
        """Take what waits no more out of the index: the word of it was lost, or came before that of the question."""
        if self._settled.get(entity.id) == entity.modified_at:
            return
        if len(self._settled) >= _MOST_SETTLED:
            self._settled.clear()
        self._settled[entity.id] = entity.modified_at
        gone = attrs.evolve(asks, questions=())
        try:
            await self._backend.signal(EntityInstanceId.parse(entity.id), gone.operation, gone.dump())
        except SchedulerUnreachable:
            self._settled.pop(entity.id, None)  # whoever looks next does it


class Inbox:
    """The part of a client that finds what waits for a person."""

    _backend: Backend
    _executor: ClientAgentExecutor
    _index: Index
    turns: Turns

    def inbox(
        self,
        agents: Agents = None,
        *,
        verify: bool = True,
        thorough: bool = False,
        timeout: float | None = None,
    ) -> Listing[PendingApproval | PendingOutcome]:
        """What waits for a person: for `approve` and `deny`, or for `resolve`, as of `pending_approvals`.

        ::

            async for question in client.inbox():
                print(question.top_thread, question.tool, question.arguments)

        On any backend, and no worker is needed. Threads tell what they ask, and a look is one query, of 100 turns that
        wait; threads of which nothing waits cost nothing. Each of the turns is then looked up in its thread, so that
        what was decided, or is gone, is not shown. What was asked within the last moment may not be in it yet. The
        questions of agents used as tools are in it, each once, with the thread that a person knows: `top_thread`.

        Args:
            agents: Of these alone, by name or class: those whose tool is to be called.
            verify: Whether to read the threads of what is found. Without, what was decided a moment ago may be shown,
                and whoever decides about it hears that it is (`DecisionRefused`).
            thorough: Ask all running turns instead of what threads told. It costs a call for each 100 orchestrations of
                the hub, and finds as well what a version before this one has asked.
            timeout: Seconds for each page, outages of the scheduler included; by default as long as it takes.

        Raises:
            ConfigurationError: One of `agents` is none.
        """
        names = _names(agents)
        if thorough:
            return Listing(self._asked_by_turns(names, timeout))

        async def read(size: int, after: str) -> Page[Question]:
            with self._backend.bounded(timeout):
                entities, token = await self._index.page(names, size, after)
                shown = await _all([functools.partial(self._index.shown, each, verify=verify) for each in entities])
            found = [each for questions in shown for each in questions if _is_of(each, names)]
            return Page(items=tuple(found), next=token)

        return Listing(read)

    def watch_inbox(self, agents: Agents = None, *, every: float = 2.0) -> AsyncIterator[InboxEvent]:
        """What comes into the inbox and what leaves it, from what is in it now on. It does not end by itself.

        ::

            async for event in client.watch_inbox():
                match event:
                    case InboxAsked(question=question): ...
                    case InboxGone(question=question): ...

        It looks again and again, as `inbox` does, on any backend. A thread is read when it has told something new, and
        at the latest after half a minute. What came and went between two looks is not told. While the scheduler does
        not answer, it waits.

        Args:
            agents: As of `inbox`.
            every: Seconds between two looks.

        Raises:
            ConfigurationError: One of `agents` is none.
            ValueError: `every` is not positive.
            SchedulerRefused: The scheduler answers that it cannot list entities.
        """
        if not every > 0:
            raise ValueError(f"`every` is the pause between two looks, in seconds: more than 0, and not {every}")
        return _events(_Watch(self._index, _names(agents), every))

    def _asked_by_turns(self, names: Collection[str] | None, timeout: float | None) -> Callable[[int, str], Any]:
        turns = self.turns.list(state="waiting", timeout=timeout)

        async def read(size: int, after: str) -> Page[Question]:
            page = await turns.page(size=size, after=after)
            asking = [turn for turn in page.items if names is None or turn.agent in names]
            with self._backend.bounded(timeout):
                asked = await _all([functools.partial(self._asked_by, turn) for turn in asking])
            return Page(items=tuple(each for questions in asked for each in questions), next=page.next)

        return read

    async def _asked_by(self, turn: TurnInfo) -> tuple[Question, ...]:
        try:
            handle: TurnHandle[None] = TurnHandle(self._executor, turn.agent, turn.correlation_id, turn.thread, None)
            thread = await handle.thread()
            return Outline.of(await self._executor.document(thread)).asked_by(turn.correlation_id, thread)
        except (TurnNotFound, ValueError, TypeError, LookupError, RecursionError):
            return ()  # it is gone meanwhile, or what its thread holds is none


@attrs.define(eq=False)
class _Watch:
    """Looks at the inbox again and again, and tells what has changed."""

    _index: Index
    _names: Collection[str] | None
    _every: float
    _told: dict[_Key, Question] = attrs.field(init=False, factory=dict[_Key, Question])
    _seen: dict[str, _Seen] = attrs.field(init=False, factory=dict[str, _Seen])
    """By entities: when it had changed, when its thread was read, and what waited then."""
    _looked: bool = attrs.field(init=False, default=False)

    async def look(self) -> list[InboxEvent]:
        """Pause, but for the first time, and look; what has changed since."""
        if self._looked:
            await anyio.sleep(self._every)
        now: dict[_Key, Question] = {}
        seen: dict[str, _Seen] = {}
        after = ""
        while True:
            entities, after = await self._index.page(self._names, 1_000, after)
            shown = await _all([functools.partial(self._shown, each) for each in entities])
            seen.update({each.id: what for each, what in zip(entities, shown, strict=True)})
            if not after:
                break
        for _, _, questions in seen.values():
            now.update({_key(each): each for each in questions if _is_of(each, self._names)})
        events: list[InboxEvent] = [InboxGone(question=each) for key, each in self._told.items() if key not in now]
        events += [InboxAsked(question=each) for key, each in now.items() if key not in self._told]
        self._seen, self._told, self._looked = seen, now, True
        return events

    async def _shown(self, entity: StoredEntity) -> _Seen:
        known = self._seen.get(entity.id)
        if known is not None and known[0] == entity.modified_at and anyio.current_time() - known[1] < _LOOK_AGAIN:
            return known
        return entity.modified_at, anyio.current_time(), await self._index.shown(entity, verify=True)


async def _events(watch: _Watch) -> AsyncIterator[InboxEvent]:
    while True:
        for event in await watch.look():
            yield event


def _key(question: Question) -> _Key:
    """Names a question; the same call may be asked about again, when its turn was deleted and sent again."""
    return question.thread, question.correlation_id, f"{question.key} {question.asked_at.isoformat()}"


def _names(agents: Agents) -> frozenset[str] | None:
    """The names of these agents; None where all are meant."""
    if agents is None:
        return None
    several = cast("Iterable[object]", agents) if isinstance(agents, list | tuple | set | frozenset) else (agents,)
    return frozenset(map(agent_name, several))


def _is_of(question: Question, names: Collection[str] | None) -> bool:
    return names is None or question.thread.agent in names


def _loaded(state: str | None) -> Any:
    try:
        return None if state is None else json.loads(state)
    except (ValueError, RecursionError):
        return None


async def _all(reads: Sequence[Callable[[], Any]]) -> list[Any]:
    """What these give, in their order; some run at the same time. The first error is raised as it is."""
    given: list[Any] = [None] * len(reads)
    failed: list[Exception] = []
    todo = iter(enumerate(reads))

    async def go_on() -> None:
        for index, read in todo:
            try:
                given[index] = await read()
            except Exception as error:  # noqa: BLE001 - it is raised below, and not in a group
                failed.append(error)
            if failed:
                return

    async with anyio.create_task_group() as group:
        for _ in range(min(_AT_ONCE, len(reads))):
            group.start_soon(go_on)
    if failed:
        raise failed[0]
    return given
