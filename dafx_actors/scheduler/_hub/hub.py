"""A task hub: its orchestrations, entities, workers and waiting clients.

All of it lives on the event loop's thread. A request is decided and carried out in memory without an `await` in
between, and adds what has to be stored to one `Changes`; whoever asked is answered when those are on disk.
Activities and entity batches that they make ready are handed out then, episodes at once (`Orchestrations.touch` says
why). If the changes cannot be written, memory is thrown away and read again from the store, which then is the truth.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, assert_never, cast

import attrs

from dafx_actors.errors import SchedulerDatabaseError, SchedulerError, SchedulerReadFailed, SchedulerWriteFailed
from dafx_actors.scheduler._ground import events as _events
from dafx_actors.scheduler._ground.clock import SECOND
from dafx_actors.scheduler._ground.proto import LARGE, Status, activity_item, pb
from dafx_actors.scheduler._ground.records import Activity, Entity, Operation, Orchestration
from dafx_actors.scheduler._hub.delivery import Delivery
from dafx_actors.scheduler._hub.effects import Answer, EndBelow, ForEntities, ReleaseLocksOf, Rewind
from dafx_actors.scheduler._hub.endings import ON_PAGE, PIECE, Endings
from dafx_actors.scheduler._hub.entities import Entities
from dafx_actors.scheduler._hub.ground import Ground
from dafx_actors.scheduler._hub.lately import Lately
from dafx_actors.scheduler._hub.orchestrations import Orchestrations
from dafx_actors.scheduler._hub.rewind import Rewinding
from dafx_actors.scheduler._hub.unhosted import Unhosted
from dafx_actors.scheduler._hub.views import Views
from dafx_actors.scheduler._hub.waiters import Waiters, reached
from dafx_actors.scheduler._rules.batches import StartOrchestration, problem_with
from dafx_actors.scheduler._rules.episodes import InvalidAnswer, ReleaseLock, RequestLock, TellEntity
from dafx_actors.scheduler.storage import tables

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from dafx_actors.scheduler._ground.clock import Clock
    from dafx_actors.scheduler._ground.ids import Ids
    from dafx_actors.scheduler._ground.records import WorkKind
    from dafx_actors.scheduler._hub.delivery import Rendered
    from dafx_actors.scheduler._hub.effects import Effect
    from dafx_actors.scheduler._hub.timers import Timer, Timers
    from dafx_actors.scheduler._rules.dispatch import Work, Worker
    from dafx_actors.scheduler.storage.committer import Changes
    from dafx_actors.scheduler.storage.store import Store

logger = logging.getLogger("dafx_actors.scheduler._hub")

_UNREADABLE = (SchedulerDatabaseError, SchedulerReadFailed)

_AGAIN = SECOND
"""Until what could not be read for the moment is read again."""


class Superseded(Exception):
    """A completion token is not out: the work was handed out again, or is done."""


class Refused(Exception):
    """A request that cannot be carried out as things stand. Nothing was changed."""

    def __init__(self, code: str, message: str) -> None:
        """Refuse.

        Args:
            code: the name of a gRPC status code.
            message: for a person.
        """
        super().__init__(message)
        self.code = code
        self.message = message


class TaskHub:
    """Everything under one name in the `taskhub` metadata; hubs know nothing of one another."""

    def __init__(
        self,
        name: str,
        row: int,
        *,
        store: Store,
        clock: Clock,
        timers: Timers,
        stored: bool,
        keep: Callable[[TaskHub], None],
    ) -> None:
        """Know nothing yet.

        Args:
            name: of the task hub.
            row: its id.
            store: where it is, or will be, stored.
            clock: tells the time.
            timers: of all task hubs.
            stored: whether it is.
            keep: called before something is written to it for the first time; it may refuse.
        """
        self._keep = keep
        self.name = name
        self.id = row
        self.store = store
        self.clock = clock
        self.timers = timers
        self._stored = stored
        self.delivery = Delivery(clock, store.ids, self._render)
        self.waiters = Waiters()
        self.views = Views(self.delivery)
        ground = Ground(row, store, clock, timers, self.delivery)
        self.entities = Entities(ground, self._emit)
        self.orchestrations = Orchestrations(ground, self._emit, self._notify)
        self.rewinding = Rewinding(ground, self.orchestrations)
        self.endings = Endings(ground, self.orchestrations, self.changing)
        self.lately = Lately(ground, self.changing)
        self.unhosted = Unhosted(ground, name)
        self.loaded = 0
        """How often it was read from the store: what was in memory before that stands for nothing."""
        self._signals: set[str] = set()
        """Request ids of signals that are not on disk yet."""

    @property
    def ids(self) -> Ids:
        return self.store.ids

    def _notify(self, it: Orchestration) -> None:
        """What is in memory of an orchestration is on disk."""
        if it.ended or it.gone:
            self.views.drop(it.instance_id)
        self.waiters.notify(it)

    # --- changes -------------------------------------------------------------------------------------------------

    @contextmanager
    def changing(self) -> Generator[Changes]:
        """Decide within this; what was added to the changes is written when it ends.

        A `Refused` or `InvalidAnswer` must come before anything is changed; then nothing is written. Any other
        error leaves memory in doubt, so that it is read again from the store.

        Raises:
            SchedulerWriteFailed: the last write failed, and none has succeeded since.
            SchedulerDatabaseError: the file is damaged.
        """
        if self.store.failure is not None:
            raise self.store.failure
        if not self._stored:
            self._keep(self)
        changes = self.store.committer.begin()
        if not self._stored:
            self._stored = True
            tables.insert_hub(changes, self.id, self.name)
        untouched = len(changes.writes)
        try:
            yield changes
        except (Refused, InvalidAnswer):
            if len(changes.writes) > 0:
                self.store.committer.submit(changes)
            raise
        except Exception as error:
            # What could not be read, as long as nothing was changed, leaves no doubt.
            if len(changes.writes) > untouched or not isinstance(error, _UNREADABLE):
                self._doubt(error)
            raise
        self.store.committer.submit(changes, more=self.delivery.crowded())

    def _doubt(self, error: Exception) -> None:
        """What is in memory cannot be trusted: read all from the store, once what others decided is there."""
        logger.error("A request failed half-way; the task hub %s is read again", self.name, exc_info=error)
        self.waiters.silence(True)
        self.store.committer.finish_now()
        self.waiters.silence(False)
        self.reload()

    def existing(self, instance_id: str) -> Orchestration:
        """The orchestration with this instance id.

        Raises:
            Refused: there is none.
        """
        it = self.orchestrations.find(instance_id)
        if it is None:
            raise Refused("NOT_FOUND", f"There is no orchestration with the instance id {instance_id!r}.")
        return it

    async def on_disk(self, record: Orchestration | Entity) -> None:
        """Wait until what is now in memory of this record may be shown; copy it before, since it may change again."""
        await self.store.committer.reached(record.dirty)

    def reload(self) -> None:
        """Throw memory away and read what is ready from the store, to which nothing may be left to write.

        If that cannot be read, requests that change something are refused and nothing is handed out until it can; if
        the file is damaged, for good.
        """
        self.loaded += 1
        self._signals.clear()
        self.delivery.forget()
        self.orchestrations.forget()
        self.entities.forget()
        try:
            self._stored = self.store.hub_is_stored(self.id)
            self.load()
            for it in [self.orchestrations.find(instance_id) for instance_id in self.waiters.instance_ids]:
                if it is not None:
                    self.waiters.notify(it)
        except _UNREADABLE as error:
            self.store.give_up(error)

    def load(self) -> None:
        """Read what is ready from the store: after a start, whatever was out is out again."""
        with _uncollected():
            self._load()

    def _load(self) -> None:
        now = self.clock.now()
        self.lately.load()
        self.timers.replace(self.id, [(row[0], row[1], self.id, *row[2:]) for row in self.store.timers(self.id)])
        self.entities.load(list(self.store.lock_requests(self.id)))
        self.orchestrations.load(self.store.ready_orchestrations(self.id, now, Status.PENDING))
        for activity in self.store.activities(self.id):
            self.orchestrations.offer_stored(activity)
        for entity_id in self.store.busy_entities(self.id):
            entity = self.entities.find(entity_id)
            if entity is not None:
                self.entities.offer(entity)
        self.endings.resume()

    async def wait(self, instance_id: str, *, ended: bool) -> Orchestration:
        """Wait until an orchestration has started, or ended; it need not exist yet."""
        it = self.orchestrations.find(instance_id)
        if it is not None and it.dirty <= self.store.committer.committed and reached(it, ended=ended):
            return it
        return await self.waiters.wait(instance_id, ended=ended)

    # --- effects -------------------------------------------------------------------------------------------------

    def _emit(self, changes: Changes, effect: Effect) -> None:
        """Carry out what one part of the hub asks of another."""
        match effect:
            case Answer(row, execution_id, event):
                self.orchestrations.answer(changes, row, execution_id, event)
            case StartOrchestration():
                if self.orchestrations.find(effect.instance_id) is None:
                    self.orchestrations.create(changes, effect.instance_id, effect.start)
            case ForEntities(it, asked):
                self._tell_entities(changes, it, asked)
            case ReleaseLocksOf(row):
                self.entities.release_locks_of(changes, row)
            case Rewind(it, how):
                self.rewinding.rewound(changes, it, how)
            case EndBelow(row, output):
                changes.then(lambda: self.endings.begin(row, output))
            case _:  # mypy and pyright know that there is no other
                assert_never(effect)

    def _tell_entities(
        self, changes: Changes, it: Orchestration, asked: TellEntity | RequestLock | ReleaseLock
    ) -> None:
        match asked:
            case TellEntity():
                self.entities.told_by(changes, it, asked)
            case RequestLock():
                self.entities.request_lock(changes, it, asked)
            case ReleaseLock():
                self.entities.release_lock(changes, asked)

    def release_orphaned_locks(self, changes: Changes) -> int:
        """Let go of entities whose holder is not there or has ended. Returns how many."""

        def is_live(row: int) -> bool:
            holder = self.orchestrations.find_by_id(row)
            return holder is not None and not holder.ended

        return self.entities.release_orphaned_locks(changes, is_live)

    # --- timers --------------------------------------------------------------------------------------------------

    def fire(self, changes: Changes, timer: Timer) -> None:
        """A timer is due. One whose purpose cannot be read stays on disk, for when somebody has repaired that."""
        try:
            self._fire(changes, timer)
        except SchedulerReadFailed:
            self.timers.add((self.clock.now() + _AGAIN, *timer[1:]))
        except SchedulerDatabaseError as error:
            logger.error("A timer could not fire: %s", error, extra={"task_hub": self.name})  # noqa: TRY400

    def _fire(self, changes: Changes, timer: Timer) -> None:
        # Whatever has to be read is read before anything is changed.
        _, row, _, kind, orchestration, event = timer
        if kind == tables.TIMER_TELLS:
            delayed = self.store.delayed_operation(row)
            if delayed is not None:
                entity_id, operation = delayed
                # Its place in line is that of its arrival, which is now.
                self.entities.tell(changes, entity_id, attrs.evolve(operation, id=self.ids.row()))
            tables.delete_timer(changes, row)
            return
        it = self.orchestrations.find_by_id(cast("int", orchestration))
        tables.delete_timer(changes, row)
        if it is None or row not in it.timers:
            return
        it.timers.discard(row)
        if kind == tables.TIMER_FIRES:
            assert event is not None, "kept with the timer"
            self.orchestrations.fire(changes, it, event)
        else:
            self.orchestrations.may_start(changes, it)

    # --- entities for clients ------------------------------------------------------------------------------------

    def signal(self, changes: Changes, request: pb.SignalEntityRequest, event: bytes, due: int | None) -> None:
        """A client's signal; the same one again changes nothing.

        Raises:
            Refused: that cannot be an entity's id.
        """
        problem = problem_with(request.instanceId)
        if problem is not None:
            raise Refused("INVALID_ARGUMENT", problem)
        if request.requestId:
            if request.requestId in self._signals or self.store.seen_signal(self.id, request.requestId):
                return
            self._signals.add(request.requestId)
            changes.then(lambda: self._signals.discard(request.requestId))
            tables.insert_signal(changes, self.id, request.requestId, self.clock.now())
        operation = Operation(id=self.ids.row(), event=event, request_id=request.requestId)
        self.entities.tell_at(changes, request.instanceId, operation, due)

    # --- purging -------------------------------------------------------------------------------------------------

    async def purge(self, rows: list[int], *, recursive: bool = False) -> int:
        """Remove ended orchestrations, and with `recursive` their ended children, in pieces. Returns how many."""
        removed, todo = 0, list(rows)
        if todo and recursive:
            await self.store.committer.drained()  # so that all children are on disk
        while todo:
            with self.changing() as changes:
                changes.heavy = True
                for _ in range(min(PIECE, len(todo))):
                    it = self.orchestrations.find_by_id(todo.pop())
                    if it is None or not it.ended or it.gone:
                        continue
                    if recursive:
                        todo += self.store.children(it.id)
                    self.orchestrations.delete(changes, it)
                    removed += 1
            # Unless the next piece follows at once: to wait for the disk each time would take longest.
            if not todo or removed % ON_PAGE < PIECE:
                await changes.committed()
            else:
                await asyncio.sleep(0)
        return removed

    # --- work ----------------------------------------------------------------------------------------------------

    async def next_item(self, worker: Worker) -> bytes | None:
        """The next work item for this worker; None if there is none now. What is large is made on a thread.

        Until that is made, the work is out: whatever ends this coroutine, `disconnect` hands it out again.
        """
        while worker.outbox:
            it = worker.outbox[0].subject
            if isinstance(it, Orchestration) and it.history is None:
                with suppress(SchedulerError):  # which is met again, and told of, below
                    await self.store.warm(it, history=True, payload=True)
            item = self.delivery.take(worker)
            if item is None or isinstance(item, bytes):
                return item
            work = self.delivery.last_given(worker)
            try:
                return await asyncio.to_thread(item)
            except Exception as error:  # noqa: BLE001 - told of in the log
                self._cannot_be_made(work, error)
        return None

    def _cannot_be_made(self, work: Work, error: Exception) -> None:
        # Damage, most likely. It waits until something happens to it, or until somebody has repaired the file; the
        # worker keeps its stream, and other work goes on.
        about = {"task_hub": self.name, "kind": work.kind, "work": work.lane.name}
        logger.error("%s cannot be handed out", work.lane, extra=about, exc_info=error)
        if work.token is not None and self.delivery.held_under(work.token, work.kind) is work:
            self.delivery.answered(work.token, work.kind)
            if isinstance(work.subject, Orchestration):
                self.orchestrations.not_given(work.subject)

    def _render(self, work: Work, token: str) -> Rendered | None:
        try:
            return _RENDER[work.kind](self, work, token)
        except SchedulerReadFailed as error:
            logger.warning("%s waits to be handed out: %s", work.lane, error)
            it = work.subject
            assert isinstance(it, Orchestration), "of others nothing is read"
            self.clock.alarm(self.clock.now() + _AGAIN, lambda: self.orchestrations.offer(it))
            return None
        except Exception as error:  # noqa: BLE001 - likewise
            self._cannot_be_made(work, error)
            return None

    def answered(self, token: str, kind: WorkKind) -> Work | None:
        """The work of this kind that was out under this token; None if nobody needs it any more.

        Raises:
            Superseded: the token is not out, or is that of another kind of work.
        """
        work = self.delivery.answered(token, kind)
        if work is None:
            raise Superseded
        return None if work.dropped else work

    def again(self, work: Work) -> None:
        """Hand out again what a worker has not done."""
        subject = work.subject
        if isinstance(subject, Orchestration):
            self.orchestrations.taken_back(subject)
        elif isinstance(subject, Entity):
            self.entities.taken_back(subject)
        self.delivery.again(work)

    def disconnect(self, worker: Worker) -> None:
        """A worker's stream has ended; what it held is handed out again at once."""
        self.lately.note(worker.filters)
        for work in self.delivery.disconnect(worker):
            self.again(work)


@contextmanager
def _uncollected() -> Generator[None]:
    """Without garbage collection: none of a hundred thousand new records is garbage, and looking takes longest."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _render_episode(hub: TaskHub, work: Work, token: str) -> Rendered | None:
    it = work.subject
    assert isinstance(it, Orchestration), "by its lane"
    item = hub.orchestrations.render(it, token, at_once=work.attempts >= _TRIES)
    if not isinstance(item, bytes) or not _indigestible(item, work):
        return item
    with suppress(SchedulerWriteFailed), hub.changing() as changes:
        hub.orchestrations.fail(changes, it, _too_large(item, "history", "Keep it short with continue_as_new."))
    return None


def _render_activity(hub: TaskHub, work: Work, token: str) -> Rendered | None:
    activity = work.subject
    assert isinstance(activity, Activity), "by its lane"
    make = functools.partial(activity_item, token=token, request=activity.request)
    if len(activity.request) >= LARGE and work.attempts < _TRIES:
        return make
    item = make()
    if not _indigestible(item, work):
        return item
    failure = _too_large(item, "input", "Pass a reference to what is large.")
    event = _events.task_failed(hub.clock.now(), activity.task_id, failure)
    with suppress(SchedulerWriteFailed), hub.changing() as changes:
        hub.orchestrations.activity_answered(changes, activity, event)
    return None


def _render_batch(hub: TaskHub, work: Work, token: str) -> Rendered | None:
    entity = work.subject
    assert isinstance(entity, Entity), "by its lane"
    item = hub.entities.render(entity, token, at_once=work.attempts >= _TRIES)
    if not isinstance(item, bytes) or not _indigestible(item, work):
        return item
    failure = _too_large(item, "state and operations", "Keep less in it.")
    with suppress(SchedulerWriteFailed), hub.changing() as changes:
        hub.entities.fail(changes, entity, failure)
    return None


_USUAL_LIMIT = 4 * 2**20
"""Bytes that a gRPC client receives in one message, unless it is told otherwise."""

_TRIES = 3
"""How many workers may lose their connection over a message that is larger."""


def _indigestible(item: bytes, work: Work) -> bool:
    """Whether this is what ends the streams of workers: each would lose its connection over it, for ever."""
    return len(item) > _USUAL_LIMIT and work.attempts >= _TRIES


def _too_large(item: bytes, what: str, instead: str) -> pb.TaskFailureDetails:
    message = (
        f"With its {what} this is a message of {len(item):,} bytes, over which {_TRIES} workers in a row have lost "
        f"their connection; by default they receive {_USUAL_LIMIT:,}. {instead} Or let workers receive more: "
        "GrpcChannelOptions(max_receive_message_length=...)."
    )
    return pb.TaskFailureDetails(errorType="MessageTooLarge", errorMessage=message, isNonRetriable=True)


_RENDER = {"orchestration": _render_episode, "activity": _render_activity, "entity": _render_batch}
