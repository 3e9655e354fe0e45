"""The orchestrations of a task hub: carries out what `_rules/episodes.py` decides, in memory and in a change."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import attrs

from dafx_actors.scheduler._ground import events as _events
from dafx_actors.scheduler._ground.pacing import Pace
from dafx_actors.scheduler._ground.proto import LARGE, Status, frame_past, orchestrator_item, pb, serialize, stamp
from dafx_actors.scheduler._ground.records import Activity, History, Message, Orchestration, Parent
from dafx_actors.scheduler._hub.effects import Emit, EndBelow, ForEntities, ReleaseLocksOf, Rewind
from dafx_actors.scheduler._hub.idle import Evicted, IdleCache
from dafx_actors.scheduler._rules import episodes as _episodes
from dafx_actors.scheduler._rules.filters import Lane
from dafx_actors.scheduler.storage import tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dafx_actors.scheduler._ground.records import MessageKind, Start
    from dafx_actors.scheduler._hub.delivery import Rendered
    from dafx_actors.scheduler._hub.ground import Ground
    from dafx_actors.scheduler.storage.committer import Changes

_MOST_IDLE = 2_000
_HEAVIEST_IDLE = 128 * 2**20
"""So that one of the largest stays: to read it from the disk holds the loop."""
_RECORD_WEIGHT = 1_000


class Orchestrations:
    """Every method that takes `changes` adds to them, and is carried out in memory at once."""

    def __init__(self, ground: Ground, emit: Emit, notify: Callable[[Orchestration], None]) -> None:
        """Know none yet.

        Args:
            ground: of the task hub.
            emit: carries out what concerns others.
            notify: called when the status of one is on disk.
        """
        self._ground = ground
        self._emit = emit
        self._notify = notify
        self._by_name: dict[str, Orchestration] = {}
        self._by_id: dict[int, Orchestration] = {}
        self._idle: IdleCache[int] = IdleCache(self._evict, most=_MOST_IDLE, heaviest=_HEAVIEST_IDLE)
        self._evicted: Evicted[Orchestration] = Evicted()
        self._resting: dict[int, tuple[Orchestration, asyncio.TimerHandle]] = {}
        # Each function takes its own kind of effect, which the key says.
        self._effects: dict[type, Callable[[Changes, Orchestration, Any], None]] = {
            _episodes.RunActivity: self._run_activity,
            _episodes.StartTimer: self._start_timer,
            _episodes.StartChild: self._start_child,
            _episodes.SendEvent: self._send_event,
            _episodes.Terminate: self._terminate_other,
            _episodes.TellEntity: self._for_entities,
            _episodes.RequestLock: self._for_entities,
            _episodes.ReleaseLock: self._for_entities,
        }

    # --- finding -------------------------------------------------------------------------------------------------

    def find(self, instance_id: str) -> Orchestration | None:
        """The instance of this id, if there is one."""
        found = self._by_name.get(instance_id)
        if found is None:
            found = self._remember(self._ground.store.orchestration(self._ground.hub, instance_id))
        return None if found is None or found.gone else found

    def find_by_id(self, row: int) -> Orchestration | None:
        """The instance with this row, if it is still there."""
        found = self._by_id.get(row)
        if found is None:
            found = self._remember(self._ground.store.orchestration_by_id(row))
        return None if found is None or found.gone else found

    def _remember(self, found: Orchestration | None) -> Orchestration | None:
        if found is not None:
            found = self._evicted.same(found.id, found)
            # Another row of that id may be in memory: one that was deleted, and is not on disk any more.
            self._by_name.setdefault(found.instance_id, found)
            known = self._by_id.setdefault(found.id, found)
            assert known is found, "one record stands for an orchestration"
            self.rest(found)
        return found

    def rest(self, it: Orchestration) -> None:
        """It was used: if nothing is left to do for it, it may be forgotten, those that were used before it first."""
        if it.idle and not it.gone:
            self._idle.put(it.id, _weight(it))

    def __len__(self) -> int:
        return len(self._by_id)

    def _evict(self, row: int) -> None:
        found = self._by_id.get(row)
        if found is None or not found.idle or found.dirty > self._ground.store.committer.committed:
            return
        del self._by_id[row]
        if self._by_name.get(found.instance_id) is found:
            del self._by_name[found.instance_id]
        if not found.gone:
            self._evicted.add(row, found)

    def forget(self) -> None:
        """Drop all from memory; what is on disk counts."""
        for it, _ in list(self._resting.values()):
            self._end_rest(it)
        self._by_name.clear()
        self._by_id.clear()
        self._idle.clear()
        self._evicted.clear()

    def load(self, ready: Iterable[Orchestration]) -> None:
        """Those that may have an episode to take, from the store."""
        for it in ready:
            self._remember(it)
            self.offer(it)

    def touch(self, changes: Changes, it: Orchestration) -> None:
        """It is part of these changes: look after it when they are on disk."""
        known = self._by_id.setdefault(it.id, it)
        assert known is it, "one record stands for an orchestration"
        if it.dirty != changes.seq:
            it.dirty = changes.seq
            self._idle.take(it.id)
            # Its episode need not wait for the disk: to take one has no effect but the answer, which is written after
            # this, or refused if this cannot be written. So the worker replays while the disk works.
            changes.at_once(lambda: self.offer(it))
            changes.then(lambda: self._committed(it, changes.seq))

    def _committed(self, it: Orchestration, seq: int) -> None:
        if it.dirty == seq:
            # Else a later change is not on disk yet, and nobody may be told of it.
            self._notify(it)
        if it.dirty > seq or not it.idle:
            return
        if it.gone or it.ended:
            self._evict(it.id)
        else:
            self.rest(it)

    def offer(self, it: Orchestration) -> None:
        """Queue its next episode, if it has one to take; after a rest, where that is due (see `pacing.py`)."""
        if it.queued:
            if it.id in self._resting and it.pace.rest(time.monotonic()) <= 0:
                self._rested(it)
            return
        if not _episodes.ready(it, self._ground.clock.now()):
            return
        it.queued = True
        self._idle.take(it.id)
        rest = it.pace.rest(time.monotonic())
        if rest > 0:
            # Not by the scheduler's clock, which a test may hold: nothing waits for a time here.
            self._resting[it.id] = it, asyncio.get_running_loop().call_later(rest, self._rested, it)
        else:
            self._deliver(it)

    def _rested(self, it: Orchestration) -> None:
        self._end_rest(it)
        self._deliver(it)

    def _end_rest(self, it: Orchestration) -> None:
        _, timer = self._resting.pop(it.id, (None, None))
        if timer is not None:
            timer.cancel()

    def _deliver(self, it: Orchestration) -> None:
        self._ground.delivery.offer(it, self._lane(it))

    @staticmethod
    def _lane(it: Orchestration) -> Lane:
        return Lane(kind="orchestration", name=it.name, version=it.version or "")

    @property
    def resting(self) -> list[str]:
        """The names of those that will be told soon what has come."""
        return [it.name for it, _ in self._resting.values()]

    # --- being told ----------------------------------------------------------------------------------------------

    def create(self, changes: Changes, instance_id: str, start: Start, parent: Parent | None = None) -> Orchestration:
        """A new instance; whatever had its id must have been deleted."""
        now = self._ground.clock.now()
        scheduled = start.scheduled if start.scheduled is not None and start.scheduled > now else None
        it = Orchestration(
            id=self._ground.ids.row(),
            instance_id=instance_id,
            execution_id=self._ground.ids.execution(),
            name=start.name,
            version=start.version,
            status=Status.PENDING,
            created=now,
            updated=now,
            scheduled=scheduled,
            parent=parent,
            start=start,
            history=History(),
        )
        self._by_name[instance_id] = self._by_id[it.id] = it
        tables.insert_orchestration(changes, self._ground.hub, it)
        if scheduled is not None:
            timer = self._ground.ids.row()
            it.timers.add(timer)
            tables.insert_scheduled_start(changes, timer, self._ground.hub, scheduled, it.id)
            changes.then(lambda: self._ground.add_timer(scheduled, timer, tables.TIMER_STARTS, it.id, None))
        self.touch(changes, it)
        return it

    def tell(self, changes: Changes, it: Orchestration, kind: MessageKind, event: bytes) -> None:
        """Put a message into its inbox; one that has ended accepts nothing."""
        if it.ended or it.gone:
            return
        message = Message(self._ground.ids.row(), kind, event)
        it.inbox.append(message)
        tables.insert_message(changes, it.id, message)
        self.touch(changes, it)

    def answer(self, changes: Changes, row: int, execution_id: str, event: bytes) -> None:
        """Deliver an answer to one execution of an orchestration; a later one must not get it."""
        it = self.find_by_id(row)
        if it is not None and it.execution_id == execution_id:
            self.tell(changes, it, "answer", event)
            if self._ground.delivery.has_worker_for(self._lane(it)):
                changes.follow = True

    def fire(self, changes: Changes, it: Orchestration, event: bytes) -> None:
        """One of its timers is due."""
        self.tell(changes, it, "answer", stamp(event, self._ground.clock.now()))

    def may_start(self, changes: Changes, it: Orchestration) -> None:
        """The time that it was scheduled for has come."""
        it.scheduled = None
        tables.update_orchestration(changes, it)
        self.touch(changes, it)

    def suspend(self, changes: Changes, it: Orchestration, reason: str | None) -> None:
        """Suspend it once it was told so; nothing, if it is or will be."""
        if not _episodes.suspended(it.status, it.inbox):
            self.tell(changes, it, "suspend", _events.execution_suspended(self._ground.clock.now(), reason))

    def resume(self, changes: Changes, it: Orchestration, reason: str | None) -> None:
        """Resume it. A worker fails an orchestration that is resumed without having been suspended."""
        if _episodes.suspended(it.status, it.inbox):
            self.tell(changes, it, "resume", _events.execution_resumed(self._ground.clock.now(), reason))

    def terminate(self, changes: Changes, it: Orchestration, output: str | None, *, recurse: bool) -> None:
        """End it here and now: also if it is suspended, or no worker takes it, or the one that has it hangs.

        With `recurse`, all below it ends soon after; see `Endings`. To ask again, after a lost answer, is fine.
        """
        if recurse and it.status in {*Status.LIVE, Status.TERMINATED} and self._may_have_children(it):
            tables.insert_ending(changes, self._ground.hub, it.id, output)
            self.touch(changes, it)
            self._emit(changes, EndBelow(it.id, output))
        if it.ended:
            return
        at = max(self._ground.clock.now(), it.updated)
        events = [_events.execution_terminated(at, output, recurse)]
        if not self._ground.store.has_history(it):
            self._ground.store.load_payload(it)
            events = [*_episodes.first_events(it, at), *events]
        self._append(changes, it, frame_past(events))
        self.finish(changes, it, _episodes.Ended(status=Status.TERMINATED, output=output, failure=None), at)

    def _may_have_children(self, it: Orchestration) -> bool:
        # A child is written together with the answer that asked for it.
        store = self._ground.store
        return it.dirty > store.committer.committed or store.has_children(it.id)

    def finish(self, changes: Changes, it: Orchestration, end: _episodes.Ended, at: int) -> None:
        """The orchestration is over; drop what it waits for, and tell whoever waits for it."""
        self._ground.store.load_payload(it)
        event = end.event or frame_past([_events.execution_completed(at, end.status, end.output, end.failure)])
        self._append(changes, it, event)
        self._drop_work(changes, it)
        it.status, it.output, it.failure = end.status, end.output, end.failure
        it.completed = it.updated = at
        it.scheduled = None
        tables.update_orchestration(changes, it)
        tables.update_outcome(changes, it)
        self._emit(changes, ReleaseLocksOf(it.id))
        self.touch(changes, it)
        self.report(changes, it, end.report)

    def fail(self, changes: Changes, it: Orchestration, failure: pb.TaskFailureDetails) -> None:
        """End it, because nobody can go on with it."""
        at = max(self._ground.clock.now(), it.updated)
        self.finish(changes, it, _episodes.Ended(status=Status.FAILED, output=None, failure=serialize(failure)), at)

    def report(self, changes: Changes, it: Orchestration, event: bytes | None = None) -> None:
        """Tell its parent how it ended; in an `event` that was made before, where that is large."""
        parent, at = it.parent, self._ground.clock.now()
        if parent is None:
            return
        waiting = self.find_by_id(parent.id)
        if waiting is not None:
            waiting.pace.answered()
        if event is not None:
            pass
        elif it.status == Status.COMPLETED:
            event = _events.child_completed(at, parent.task_id, it.output)
        else:
            failure = it.failure or _events.failure(
                "SubOrchestrationTerminated" if it.status == Status.TERMINATED else "SubOrchestrationFailed",
                f"The sub-orchestration {it.instance_id!r} was {Status.NAMES[it.status]}.",
            )
            event = _events.child_failed(at, parent.task_id, failure)
        self.answer(changes, parent.id, parent.execution_id, event)

    def _drop_work(self, changes: Changes, it: Orchestration) -> None:
        """Nothing that this execution waits for may reach it any more."""
        if it.inbox or it.activities or it.timers:
            tables.delete_work(changes, it.id)
        it.inbox.clear()
        delivery = self._ground.delivery
        withdrawn = [work for activity in it.activities if (work := delivery.withdraw(activity)) is not None]
        if withdrawn:
            changes.then(lambda: delivery.tell_unwanted(withdrawn))
        it.activities.clear()
        it.large.clear()
        if it.timers:
            self._ground.timers.cancel(it.timers)
            it.timers = set()
        delivery.withdraw(it.id)
        self._end_rest(it)
        it.queued, it.lease, it.taken, it.pace = False, None, 0, Pace()

    def delete(self, changes: Changes, it: Orchestration) -> None:
        """Forget an instance that has ended."""
        assert it.ended, "a running one is terminated first, so that nobody waits for it in vain"
        # It stays in memory until that is on disk, where it would else be found again.
        it.gone = True
        tables.delete_orchestration(changes, it.id)
        self.touch(changes, it)

    def _append(self, changes: Changes, it: Orchestration, events: bytes) -> None:
        if it.history is not None:
            it.history.add(events)
        tables.append_history(changes, self._ground.ids.row, it.id, events)

    # --- episodes ---------------------------------------------------------------------------------------------------

    def render(self, it: Orchestration, token: str, *, at_once: bool = False) -> Rendered | None:
        """The work item of its next episode, which is now out under this token; what makes a large one, on a thread."""
        it.queued = False
        if not _episodes.ready(it, self._ground.clock.now()):
            return None
        store = self._ground.store
        history = store.load_history(it)
        if not history:
            store.load_payload(it)
        now = self._ground.clock.now()
        # The list stands for this episode: whatever becomes of it, the next one has another.
        told = list[bytes]()
        size = sum(len(message.event) for message in it.inbox)
        size += len(history) or len((it.start and it.start.input) or "")
        given = it if at_once or size < LARGE else attrs.evolve(it, inbox=deque(it.inbox))
        past = [*history.parts]

        def make() -> bytes:
            told[:] = _episodes.new_events(given, now)[1]
            return orchestrator_item(
                token=token,
                instance_id=given.instance_id,
                execution_id=given.execution_id,
                past=past,
                new=told,
                trace=given.trace,
            )

        item = make() if given is it else make  # which may raise, before anything is changed
        it.episode_started, it.taken = _episodes.next_episode(it, now)
        it.lease, it.told = token, told
        it.pace.given = time.monotonic()
        return item

    def not_given(self, it: Orchestration) -> None:
        """Its episode could not be made, and waits until something happens to it."""
        it.lease, it.taken, it.told = None, 0, []

    def taken_back(self, it: Orchestration) -> None:
        """Its episode is not out any more, and has to be given again."""
        self.not_given(it)
        it.queued = True

    def turned(self, changes: Changes, it: Orchestration, answer: pb.OrchestratorResponse) -> None:
        """A worker has answered for its episode.

        Raises:
            InvalidAnswer: nothing was changed; the episode has to be given again.
        """
        at = max(self._ground.clock.now(), it.episode_started)
        verdict = _episodes.judge(it, answer, at)
        told = self.take_answer(changes, it, verdict, at)
        for effect in verdict.effects:
            self.carry_out(changes, it, effect)
        self.conclude(changes, it, verdict, told, at)

    def take_answer(
        self, changes: Changes, it: Orchestration, verdict: _episodes.Verdict, at: int, record: bytes | None = None
    ) -> list[Message]:
        """The episode is over: what it was told joins the history. Returns that; the effects are to follow.

        Args:
            changes: what to add to.
            it: the orchestration.
            verdict: what the answer changes.
            at: its clock.
            record: what joins the history, where that was made before; see `_episodes.record_of`.
        """
        if not isinstance(verdict.conclusion, _episodes.Waits):
            self._ground.store.load_payload(it)  # Before anything is changed, since it may not be readable.
        it.pace.turned(time.monotonic())
        told = [it.inbox.popleft() for _ in range(it.taken)]
        new, it.told, it.lease, it.taken = it.told, [], None, 0
        changes.heavy = changes.heavy or record is not None
        if told:
            tables.delete_messages(changes, it.id, told[-1].id)
        it.updated, it.custom_status, it.trace = at, verdict.custom_status, verdict.trace
        if not isinstance(verdict.conclusion, _episodes.Rewound | _episodes.Continued):
            self._append(changes, it, record or frame_past([*new, *verdict.confirmations]))
        if isinstance(verdict.conclusion, _episodes.Waits):
            it.status = _episodes.status_after(it, told)
            tables.update_orchestration(changes, it)
            self.touch(changes, it)
        return told

    def carry_out(self, changes: Changes, it: Orchestration, effect: _episodes.Effect) -> None:
        """Do one thing that an answer asks for."""
        self._effects[type(effect)](changes, it, effect)

    def conclude(
        self, changes: Changes, it: Orchestration, verdict: _episodes.Verdict, told: list[Message], at: int
    ) -> None:
        """Leave the orchestration as the answer says, after all of its effects."""
        conclusion = verdict.conclusion
        if isinstance(conclusion, _episodes.Ended):
            self.finish(changes, it, conclusion, at)
        elif isinstance(conclusion, _episodes.Continued):
            self._continue(changes, it, conclusion, suspended=_episodes.status_after(it, told) == Status.SUSPENDED)
        elif isinstance(conclusion, _episodes.Rewound):
            self._emit(changes, Rewind(it, conclusion))

    def _continue(self, changes: Changes, it: Orchestration, how: _episodes.Continued, *, suspended: bool) -> None:
        """Begin a new execution under the same id."""
        store, now = self._ground.store, self._ground.clock.now()
        store.load_payload(it)
        assert it.start is not None, "loaded"
        later = [message for message in it.inbox if message.kind in _episodes.SURVIVE_CONTINUE_AS_NEW]
        self._drop_work(changes, it)
        self._emit(changes, ReleaseLocksOf(it.id))
        it.execution_id = self._ground.ids.execution()
        it.version = how.version if how.version is not None else it.version
        it.start = attrs.evolve(it.start, input=how.input, version=it.version, scheduled=None)
        it.status = Status.RUNNING
        it.history = History()
        tables.delete_history(changes, it.id)
        tables.write_payload(changes, it)
        tables.update_orchestration(changes, it)
        self.tell(changes, it, "nudge", b"")
        for event in how.carried:
            self.tell(changes, it, "event", event)
        if suspended:
            self.tell(changes, it, "suspend", _events.execution_suspended(now, None))
        for message in later:
            self.tell(changes, it, message.kind, message.event)

    # --- effects -------------------------------------------------------------------------------------------------

    def _for_entities(
        self,
        changes: Changes,
        it: Orchestration,
        effect: _episodes.TellEntity | _episodes.RequestLock | _episodes.ReleaseLock,
    ) -> None:
        self._emit(changes, ForEntities(it, effect))

    def _run_activity(self, changes: Changes, it: Orchestration, effect: _episodes.RunActivity) -> None:
        activity = Activity(
            id=self._ground.ids.row(),
            orchestration=it.id,
            instance_id=it.instance_id,
            task_id=effect.task_id,
            name=effect.name,
            version=effect.version,
            request=effect.request,
        )
        it.activities.add(activity.id)
        if len(activity.request) >= LARGE:
            it.large.add(activity.id)
        it.pace.awaited += 1
        tables.insert_activity(changes, activity)
        # Unless its orchestration has ended meanwhile.
        changes.then(lambda: self.offer_activity(activity) if activity.id in it.activities else None)

    def offer_activity(self, activity: Activity) -> None:
        """Queue an activity."""
        lane = Lane(kind="activity", name=activity.name, version=activity.version or "")
        self._ground.delivery.offer(activity, lane, group=activity.orchestration)

    def offer_stored(self, activity: Activity) -> None:
        """Queue an activity that was read from the store, after a start."""
        if len(activity.request) >= LARGE and (it := self.find_by_id(activity.orchestration)) is not None:
            it.large.add(activity.id)
            self._idle.take(it.id)
        self.offer_activity(activity)

    def activity_answered(self, changes: Changes, activity: Activity, event: bytes) -> None:
        """A worker has answered for an activity, which the event says."""
        it = self.find_by_id(activity.orchestration)
        if it is None or activity.id not in it.activities:
            return
        it.activities.discard(activity.id)
        it.large.discard(activity.id)
        it.pace.answered()
        tables.delete_activity(changes, activity)
        changes.heavy = changes.heavy or len(activity.request) >= LARGE  # also to delete it
        self.tell(changes, it, "answer", event)

    def _start_timer(self, changes: Changes, it: Orchestration, effect: _episodes.StartTimer) -> None:
        timer = self._ground.ids.row()
        it.timers.add(timer)
        tables.insert_timer(changes, timer, self._ground.hub, effect.due, it.id, effect.event)
        changes.then(lambda: self._arm(it, effect, timer))

    def _arm(self, it: Orchestration, effect: _episodes.StartTimer, timer: int) -> None:
        if timer in it.timers:
            self._ground.add_timer(effect.due, timer, tables.TIMER_FIRES, it.id, effect.event)

    def _start_child(self, changes: Changes, it: Orchestration, effect: _episodes.StartChild) -> None:
        parent = Parent(
            id=it.id,
            instance_id=it.instance_id,
            execution_id=it.execution_id,
            task_id=effect.task_id,
            name=it.name,
            version=it.version,
        )
        existing = self.find(effect.instance_id)
        if existing is not None and (reason := _why_not_replaced(existing, parent)) is not None:
            failure = _events.failure(
                "OrchestrationAlreadyExists",
                f"An orchestration with the instance id {effect.instance_id!r} exists {reason}.",
            )
            self.tell(changes, it, "answer", _events.child_failed(self._ground.clock.now(), effect.task_id, failure))
            return
        if existing is not None:
            self.delete(changes, existing)
        it.pace.awaited += 1
        self.create(changes, effect.instance_id, effect.start, parent)

    def _send_event(self, changes: Changes, _: Orchestration, effect: _episodes.SendEvent) -> None:
        target = self.find(effect.instance_id)
        if target is not None:
            self.tell(changes, target, "event", effect.event)

    def _terminate_other(self, changes: Changes, _: Orchestration, effect: _episodes.Terminate) -> None:
        target = self.find(effect.instance_id)
        if target is not None:
            self.terminate(changes, target, effect.output, recurse=effect.recurse)


def _why_not_replaced(existing: Orchestration, parent: Parent) -> str | None:
    """Why a new child may not take the place of an instance that has its id; None where it may.

    A parent may make its own child anew, when that has ended: it retries it, or was rewound. What somebody else has
    started under that id, and the record of it, stays.
    """
    if not existing.ended:
        return "and has not ended"
    if existing.parent is None or existing.parent.instance_id != parent.instance_id:
        return "and was not started by this parent"
    return None


def _weight(it: Orchestration) -> int:
    payload = it.start.input if it.start is not None else None
    return _RECORD_WEIGHT + len(it.history or ()) + sys.getsizeof(payload) + sys.getsizeof(it.output)
