"""Where a worker can be made to crash, and the worker's side of a crash.

::

    before ──> it runs ──> after ──> the answer is sent, and recorded ──> recorded

A crash cuts the worker off from the scheduler at that very point: nothing that it does afterwards is recorded, and what
runs on it is cancelled. The scheduler notices, and hands all that the worker had to the next one.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import attrs
import grpc

from dafx_actors.worker._gate import HandedBack
from dafx_actors.worker._work import Work, WorkKind

When: TypeAlias = Literal["before", "after", "recorded"]
"""`before` it has begun; `after` it has run, and its answer gets lost; when its answer has just been `recorded`."""

_ANSWERS = {"CompleteActivityTask", "CompleteOrchestratorTask", "CompleteEntityTask"}
_HARMLESS = {"Hello", "WaitForInstanceCompletion"}
"""Calls that a dead worker may make: they change nothing, and the threads that make them come to their end."""


@attrs.frozen(kw_only=True)
class Point:
    """A point that a worker has reached."""

    when: When
    kind: WorkKind
    """`model`, `tool`, `probe` and `activity` are steps; a `thread`'s are its operations, such as `begin` and `commit`;
    `turn`, `tell` (how a client tells a thread something) and `orchestration` are episodes of orchestrations."""
    name: str
    """The name of the tool, the activity, the orchestration or the thread's operation; for all else the agent."""
    nth: int
    """The number of times that a point of this `when`, `kind` and `name` has been reached, with this time."""
    instance_id: str
    """The orchestration that it belongs to; the entity, for an operation of a thread."""
    task_id: int | None
    """The number of a step among the tasks of its orchestration: the same when it is handed out again."""

    def __str__(self) -> str:
        return f"{self.when} {self.kind} {self.name} #{self.nth}"


Faults: TypeAlias = Callable[[Point], bool]
"""Says whether the worker crashes at a point. Called on the worker's threads, one at a time."""


@attrs.define(kw_only=True, eq=False)
class Fault:
    """A crash that is planned, or has happened."""

    when: When
    kind: WorkKind
    name: str | None
    nth: int
    point: Point | None = None
    """Where the worker crashed; None until it has."""
    _seen: int = 0
    _is_off: bool = False

    def cancel(self) -> None:
        """Do not crash there any more."""
        self._is_off = True

    def met_at(self, point: Point) -> bool:
        """Whether this is where."""
        if (
            self._is_off
            or self.point
            or (point.when, point.kind) != (self.when, self.kind)
            or self.name not in (None, point.name)
        ):
            return False
        self._seen += 1
        if self._seen < self.nth:
            return False
        self.point = point
        return True


class FaultPlan:
    """All crashes of a host, and all points that its workers have passed."""

    def __init__(self, faults: Faults | None) -> None:
        self.lock = threading.Lock()
        self.passed: list[Point] = []
        self.crashes: list[Point] = []
        self.planned: list[Fault] = []
        self._faults = faults
        self._counts: Counter[tuple[str, str, str]] = Counter()

    def reached(self, when: When, work: Work, *, dead: bool) -> bool:
        """Note that a worker is there; whether it is to crash, unless it is dead. Called with the lock held."""
        self._counts[when, work.kind, work.name] += 1
        point = Point(when=when, nth=self._counts[when, work.kind, work.name], **attrs.asdict(work))
        self.passed.append(point)
        if dead:
            return False
        # Each planned one counts, also where another is met at the same point.
        planned = [fault for fault in self.planned if fault.met_at(point)]
        if planned or (self._faults is not None and self._faults(point)):
            self.crashes.append(point)
            return True
        return False


LIFE = "dafx-testing-"
"""How the names begin under which a host's workers, one after the other, are connected."""
_numbers = itertools.count(1)


@attrs.frozen
class _CallDetails(grpc.ClientCallDetails):
    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class Cable(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Between one worker and the scheduler; it is cut when the worker crashes."""

    def __init__(self, plan: FaultPlan, crashed: Callable[[], None]) -> None:
        """Connect.

        Args:
            plan: Says where to crash.
            crashed: Called once, on the thread that crashes.
        """
        self.is_cut = False
        self.name = f"{LIFE}{next(_numbers)}"
        self._plan = plan
        self._crashed = crashed
        self._mine = threading.local()

    def on_work(self, work: Work) -> None:
        """The worker begins with something.

        Raises:
            HandedBack: It has crashed.
        """
        self._pass("before", [work])
        self._works().append(work)

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """A call of the worker; with an answer the points after its work are passed."""
        method = client_call_details.method.rsplit("/", 1)[-1]
        if method not in _ANSWERS:
            if self.is_cut and method not in _HARMLESS:
                raise HandedBack
            return continuation(client_call_details, request)
        works = list(self._works())
        self._works().clear()
        self._pass("after", works)
        call = continuation(client_call_details, request)
        if call.code() is grpc.StatusCode.OK:
            self._reached("recorded", works)
        elif self.is_cut:
            raise HandedBack  # it was on its way, and came too late
        return call

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """The stream of work, under the name of this worker."""
        given = client_call_details
        metadata = [*(given.metadata or ()), ("workerid", self.name)]
        details = _CallDetails(
            given.method, given.timeout, metadata, given.credentials, given.wait_for_ready, given.compression
        )
        return continuation(details, request)

    def _works(self) -> list[Work]:
        """What this thread has begun and not answered."""
        works: list[Work] | None = getattr(self._mine, "works", None)
        if works is None:
            self._mine.works = works = list[Work]()
        return works

    def _pass(self, when: When, works: list[Work]) -> None:
        with self._plan.lock:
            if self.is_cut:
                raise HandedBack
        self._reached(when, works)

    def _reached(self, when: When, works: list[Work]) -> None:
        with self._plan.lock:
            # Each counts, also where the first of them is where it crashes, or another thread has crashed meanwhile.
            met = [self._plan.reached(when, work, dead=self.is_cut) for work in works]
            crash = any(met)
            self.is_cut = self.is_cut or crash
        if crash:
            self._crashed()
            raise HandedBack
