"""Which work goes to which worker: rules without I/O.

Work that is ready goes at once to the least loaded worker that wants it and has room; among equals, to the one
that has waited longest. What nobody can take waits in its *lane* (see `filters.py: Lane`), so that work nobody wants
never stands in the way of other work. A worker that gets room is served from its lanes in turn, and within a lane
of activities the orchestrations are served in turn, so that one that scheduled ten thousand does not make the
others wait for them all.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from itertools import count
from typing import TYPE_CHECKING

import attrs

from dafx_actors.scheduler._ground.records import WORK_KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from dafx_actors.scheduler._ground.records import Activity, Entity, Orchestration, WorkKind
    from dafx_actors.scheduler._rules.filters import Filters, Lane


@attrs.define(kw_only=True, eq=False)
class Work:
    """A piece of work that is ready: in a lane, on its way to a worker, or with it."""

    lane: Lane
    subject: Orchestration | Activity | Entity
    since: int
    """When it became ready."""
    group: int
    """Work of one lane is handed out to its groups in turn."""
    attempts: int = 0
    """How often in a row a worker was given it and did not answer."""
    dropped: bool = False
    """Nobody needs it any more."""
    waiting: bool = False
    """It is in a lane."""
    worker: Worker | None = None
    """Who was given it."""
    assigned: int = 0
    """When that worker was to be given it."""
    token: str | None = None
    """The completion token under which that worker holds it; None until it was sent."""
    given: int = 0
    """When it was sent."""

    @property
    def kind(self) -> WorkKind:
        return self.lane.kind


@attrs.define(kw_only=True, eq=False)
class Worker:
    """A connected stream of work items."""

    filters: Filters
    limits: Mapping[WorkKind, int]
    """How many items of a kind it takes at once; 0 where it did not say."""
    name: str = ""
    since: int = 0
    wake: Callable[[], None] = attrs.field(default=lambda: None)
    """Called when something was put into the outbox."""
    outbox: deque[Work] = attrs.field(factory=deque["Work"])
    """Assigned to it, not sent yet."""
    unwanted: list[str] | None = None
    """Tokens of activities that it holds and nobody waits for any more, to be told; None if it cannot be told."""
    load: dict[WorkKind, int] = attrs.field(factory=lambda: dict.fromkeys(WORK_KINDS, 0))
    """Assigned to it and not answered."""
    served: int = 0
    """When it was last given something, in turns."""
    answered: int = 0
    """When it last answered, or connected."""
    is_late: bool = False
    """It let work lie and has not answered since: one item at a time is enough to see whether it does."""
    resting: set[WorkKind] = attrs.field(factory=set["WorkKind"])
    """Kinds of which it has just given work back, as one does that stops: it is given no more of them for a while."""

    def room(self, kind: WorkKind) -> bool:
        """Whether it takes another item of this kind."""
        if kind in self.resting:
            return False
        if self.is_late:
            return not any(self.load.values())
        limit = self.limits[kind]
        return limit <= 0 or self.load[kind] < limit


class _LaneQueue:
    """Work that waits in one lane: a queue for each group, served in turn."""

    __slots__ = ("groups", "size")

    def __init__(self) -> None:
        self.groups: OrderedDict[int, deque[Work]] = OrderedDict()
        self.size = 0

    def add(self, work: Work, *, front: bool) -> None:
        group = self.groups.setdefault(work.group, deque())
        if front:
            group.appendleft(work)
            self.groups.move_to_end(work.group, last=False)
        else:
            group.append(work)
        self.size += 1
        work.waiting = True

    def pop(self) -> Work | None:
        """The next piece of work that somebody still needs."""
        while self.groups:
            key, group = next(iter(self.groups.items()))
            work = group.popleft()
            if group:
                self.groups.move_to_end(key)
            else:
                del self.groups[key]
            if not work.dropped:
                self.size -= 1
                work.waiting = False
                return work
        return None


class WorkQueue:
    """All work of a task hub that no worker holds, and all its workers."""

    def __init__(self, now: Callable[[], int] = lambda: 0) -> None:
        """Start without work.

        Args:
            now: the time, in microseconds, at which work is assigned.
        """
        self._now = now
        self.workers: list[Worker] = []
        self._lanes: dict[WorkKind, OrderedDict[Lane, _LaneQueue]] = {kind: OrderedDict() for kind in WORK_KINDS}
        self._takers: dict[Lane, list[Worker]] = {}
        self._turns = count(1)
        self.paused = False
        """While the store cannot be written nothing is handed out: its answer could not be kept."""

    def add(self, work: Work, *, front: bool = False) -> None:
        """Give this to a worker that wants it and has room, or let it wait.

        Args:
            work: what is ready.
            front: it was handed out before, so it goes ahead of what has not been.
        """
        worker = None if self.paused else self._best(work.lane)
        if worker is not None:
            self._assign(worker, work)
        else:
            self._lanes[work.kind].setdefault(work.lane, _LaneQueue()).add(work, front=front)

    def drop(self, work: Work) -> None:
        """Nobody needs this any more."""
        if work.waiting and not work.dropped:
            lane = self._lanes[work.kind][work.lane]
            lane.size -= 1
            if lane.size == 0:
                del self._lanes[work.kind][work.lane]
        work.dropped = True

    def connect(self, worker: Worker) -> None:
        """A worker has come; it is given what it wants."""
        worker.answered = self._now()
        self.workers.append(worker)
        self._takers.clear()
        self._fill(worker, WORK_KINDS)

    def disconnect(self, worker: Worker) -> list[Work]:
        """A worker has gone. Returns what it was to be sent and was not."""
        if worker in self.workers:
            self.workers.remove(worker)
        self._takers.clear()
        unsent = [work for work in worker.outbox if not work.dropped]
        worker.outbox.clear()
        return unsent

    def release(self, worker: Worker, kind: WorkKind) -> None:
        """The worker has answered, or will not; it has room for another."""
        worker.load[kind] -= 1
        if worker in self.workers:
            self._fill(worker, (kind,))

    def rested(self, worker: Worker, kind: WorkKind) -> None:
        """A worker that gave work of this kind back may take some again."""
        worker.resting.discard(kind)
        if worker in self.workers:
            self._fill(worker, (kind,))

    def unsent(self, before: Mapping[WorkKind, int]) -> list[Work]:
        """What was assigned before the moment for its kind and not sent; it is not any more."""
        found: list[Work] = []
        for worker in self.workers:
            late = [work for work in worker.outbox if work.assigned < before[work.kind]]
            if late:
                worker.outbox = deque(work for work in worker.outbox if work.assigned >= before[work.kind])
                for work in late:
                    worker.load[work.kind] -= 1
                found += [work for work in late if not work.dropped]
        return found

    def has_answered(self, worker: Worker) -> None:
        """The worker does what it was given."""
        worker.answered = self._now()
        if worker.is_late:
            worker.is_late = False
            if worker in self.workers:
                self._fill(worker, WORK_KINDS)

    def resume(self) -> None:
        """Hand out again what waits."""
        self.paused = False
        for worker in self.workers:
            self._fill(worker, WORK_KINDS)

    def forget(self) -> None:
        """Drop all work; the workers stay."""
        for lanes in self._lanes.values():
            lanes.clear()
        for worker in self.workers:
            worker.outbox.clear()
            worker.load.update(dict.fromkeys(WORK_KINDS, 0))

    def waiting(self, kind: WorkKind) -> dict[Lane, int]:
        """How much waits in each lane of this kind."""
        return {lane: queue.size for lane, queue in self._lanes[kind].items() if queue.size}

    def wanted(self, lane: Lane) -> bool:
        """Whether a connected worker takes work of this lane."""
        return any(worker.filters.take(lane) for worker in self.workers)

    def unwanted(self, kind: WorkKind) -> dict[Lane, int]:
        """Lanes in which work waits that no connected worker takes, each with when the oldest of it became ready."""
        lanes = {lane: queue for lane, queue in self._lanes[kind].items() if queue.size and not self.wanted(lane)}
        # The first of each group is its oldest, or was handed out before and is about as old.
        return {
            lane: min((next(iter(group)).since for group in queue.groups.values()), default=0)
            for lane, queue in lanes.items()
        }

    def oldest(self, kind: WorkKind) -> int | None:
        """Since when the oldest work of this kind waits; None if none waits."""
        # What was handed out before stands in front, so the first of each group is the oldest in it.
        first = (
            next((work.since for work in group if not work.dropped), None)
            for queue in self._lanes[kind].values()
            for group in queue.groups.values()
        )
        return min((since for since in first if since is not None), default=None)

    def _best(self, lane: Lane) -> Worker | None:
        takers = self._takers.get(lane)
        if takers is None:
            takers = self._takers[lane] = [worker for worker in self.workers if worker.filters.take(lane)]
        best: Worker | None = None
        for worker in takers:
            if worker.room(lane.kind) and (
                best is None or _preference(worker, lane.kind) < _preference(best, lane.kind)
            ):
                best = worker
        return best

    def _assign(self, worker: Worker, work: Work) -> None:
        worker.load[work.kind] += 1
        worker.served = next(self._turns)
        work.worker = worker
        work.assigned = self._now()
        worker.outbox.append(work)
        worker.wake()

    def _fill(self, worker: Worker, kinds: Iterable[WorkKind]) -> None:
        """Give the worker what waits, until it is full or nothing it wants is left."""
        if self.paused:
            return
        for kind in kinds:
            lanes = self._lanes[kind]
            while worker.room(kind):
                lane = next((lane for lane in lanes if worker.filters.take(lane)), None)
                if lane is None:
                    break
                work = lanes[lane].pop()
                if lanes[lane].size == 0:
                    del lanes[lane]
                else:
                    lanes.move_to_end(lane)
                if work is not None:
                    self._assign(worker, work)


def _preference(worker: Worker, kind: WorkKind) -> tuple[bool, int, int]:
    """The smallest is the best: a worker that answers, the least loaded, the one that has waited longest."""
    return worker.is_late, worker.load[kind], worker.served
