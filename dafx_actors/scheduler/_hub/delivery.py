"""Who holds which work, under which completion token.

Every piece of work is at one place at a time: in a lane, in a worker's outbox, or with a worker under a token. A
worker's answer counts only under the token that is out for that work now. When a worker's stream ends, all that it
held is handed out again at once, under new tokens; what it still answers to the old ones is refused.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

from dafx_actors.scheduler._ground.clock import SECOND
from dafx_actors.scheduler._rules.dispatch import Work, WorkQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from dafx_actors.scheduler._ground.clock import Clock
    from dafx_actors.scheduler._ground.ids import Ids
    from dafx_actors.scheduler._ground.records import Activity, Entity, Orchestration, WorkKind
    from dafx_actors.scheduler._rules.dispatch import Worker
    from dafx_actors.scheduler._rules.filters import Lane

Rendered: TypeAlias = "bytes | Callable[[], bytes]"
"""A work item; or what makes one that is large, to be called on a thread."""

PATIENCE = 4
"""How often work is handed out again at once when a worker did not answer for it."""

_LONGEST_DELAY = 60
"""Seconds; what a worker never answers for must not keep every worker busy, or take down one after the other."""


_CROWD = 8
"""So many pieces of work that workers have just been given make it worth waiting for another answer."""

_JUST_NOW = SECOND

_REST = 10 * SECOND
"""For how long a worker that gave work back is given no more of that kind."""


class Delivery:
    """All work of a task hub that is ready or out."""

    def __init__(self, clock: Clock, ids: Ids, render: Callable[[Work, str], Rendered | None]) -> None:
        """Start without work.

        Args:
            clock: for the age of work.
            ids: for completion tokens.
            render: makes the work item for a piece of work and its new token; None if there is nothing to do.
        """
        self._clock = clock
        self._ids = ids
        self._render = render
        self.queue = WorkQueue(clock.now)
        self._works: dict[int, Work] = {}
        """By the id of what is to be worked on."""
        self._out: dict[str, Work] = {}
        """By completion token, including what was dropped since."""

    def offer(self, subject: Orchestration | Activity | Entity, lane: Lane, group: int = 0) -> None:
        """This is ready to be worked on."""
        if subject.id not in self._works:
            work = Work(lane=lane, subject=subject, since=self._clock.now(), group=group)
            self._works[subject.id] = work
            self.queue.add(work)

    def withdraw(self, subject: int) -> Work | None:
        """Nobody needs this any more. Whoever works on it keeps its place among that worker's work. Gives the work."""
        work = self._works.pop(subject, None)
        if work is not None:
            self.queue.drop(work)
        return work

    def tell_unwanted(self, withdrawn: Iterable[Work]) -> None:
        """Have the workers that hold these know that they were withdrawn."""
        for work in withdrawn:
            worker = work.worker
            if worker is not None and worker.unwanted is not None and work.token in self._out:
                worker.unwanted.append(work.token)
                worker.wake()

    def take(self, worker: Worker) -> Rendered | None:
        """The next work item for this worker; None if there is none now."""
        while worker.outbox:
            work = worker.outbox.popleft()
            token = self._ids.token()
            item = None if work.dropped else self._render(work, token)
            if item is not None:
                work.token = token
                work.given = self._clock.now()
                self._out[token] = work
                return item
            if self._works.get(work.subject.id) is work:
                del self._works[work.subject.id]
            self.queue.release(worker, work.kind)
        return None

    def answered(self, token: str, kind: WorkKind) -> Work | None:
        """A worker has answered. Returns the work; None if the token is not out for such: the answer is refused."""
        work = self._settle(token, kind)
        if work is not None and work.worker is not None:
            self.queue.has_answered(work.worker)
        return work

    def given_back(self, token: str, kind: WorkKind) -> None:
        """A worker is about to give back what is out under this token: others are asked first, and it is no failure.

        Orchestrations that durabletask gives back are those of another version, and others it does.
        """
        work = self._out.get(token)
        if work is None or work.kind != kind or work.worker is None or kind == "orchestration":
            return
        work.attempts -= 1  # `again` counts one
        worker = work.worker
        if kind not in worker.resting:
            worker.resting.add(kind)
            self._clock.alarm(self._clock.now() + _REST, lambda: self.queue.rested(worker, kind))

    def _settle(self, token: str, kind: WorkKind) -> Work | None:
        """This is not out any more."""
        work = self._out.get(token)
        if work is None or work.kind != kind:
            return None
        del self._out[token]
        if not work.dropped:
            del self._works[work.subject.id]
        if work.worker is not None:
            self.queue.release(work.worker, kind)
        return work

    def held_under(self, token: str, kind: WorkKind) -> Work | None:
        """The work of this kind that is out under a token; it stays so."""
        work = self._out.get(token)
        return work if work is not None and work.kind == kind and not work.dropped else None

    def last_given(self, worker: Worker) -> Work:
        """What `take` has just given this worker."""
        return next(work for work in reversed(self._out.values()) if work.worker is worker)

    def is_with(self, worker: Worker, token: str) -> bool:
        """Whether this worker holds the work that is out under this token."""
        work = self._out.get(token)
        return work is not None and work.worker is worker

    def again(self, work: Work) -> None:
        """Hand this out again: the worker gave it back, or answered with nonsense, or went away."""
        if work.dropped:
            return
        if work.token is not None:
            work.attempts += 1
        work.worker = work.token = None
        self._works[work.subject.id] = work
        if work.attempts <= PATIENCE:
            self.queue.add(work, front=True)
        else:
            delay = min(2 ** (work.attempts - PATIENCE - 1), _LONGEST_DELAY)
            self._clock.alarm(self._clock.now() + delay * SECOND, lambda: self._after_delay(work))

    def _after_delay(self, work: Work) -> None:
        if not work.dropped and self._works.get(work.subject.id) is work:
            self.queue.add(work, front=True)

    def disconnect(self, worker: Worker) -> list[Work]:
        """A worker's stream has ended. Returns what it held, for the caller to hand out again."""
        unsent = self.queue.disconnect(worker)
        held = [work for work in self._out.values() if work.worker is worker]
        for work in held:
            assert work.token is not None, "it is out"
            del self._out[work.token]
        return [work for work in (*held, *unsent) if not work.dropped]

    def overdue(self, before: Mapping[WorkKind, int]) -> list[Work]:
        """What was assigned before the moment for its kind, sent or not; those workers do not hold it any more.

        One that has not answered anything since is given little until it does.
        """
        held = [work for work in self._out.values() if work.assigned < before[work.kind]]
        late = [*held, *self.queue.unsent(before)]
        for work in late:
            if work.worker is not None and work.worker.answered < before[work.kind]:
                work.worker.is_late = True
        for work in held:
            self._settle(work.token or "", work.kind)
        return [work for work in late if not work.dropped]

    def crowded(self, pieces: int = _CROWD) -> bool:
        """Whether workers have just been given so many pieces of work that more answers are about to come."""
        # It is out in the order in which it was given. What takes long, such as a model call, must not count.
        one = next(islice(reversed(self._out.values()), pieces - 1, None), None)
        return one is not None and one.given > self._clock.now() - _JUST_NOW

    def has_worker_for(self, lane: Lane) -> bool:
        """Whether a connected worker takes such work."""
        return self.queue.wanted(lane)

    def under_way(self) -> list[Work]:
        """What workers hold, what is on its way to one, and what a connected one will be given next."""
        every = dict.fromkeys((*self._works.values(), *self._out.values()))
        return [work for work in every if work.worker is not None or (work.waiting and self.queue.wanted(work.lane))]

    def held(self) -> int:
        """How much work is with workers."""
        return len(self._out)

    def forget(self) -> None:
        """Drop all work; workers stay connected, and what they answer is refused."""
        for work in (*self._works.values(), *self._out.values()):
            work.dropped = True
        self._works.clear()
        self._out.clear()
        self.queue.forget()
