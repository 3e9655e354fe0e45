"""What one part of a task hub asks of another. Each knows only `emit`; the hub carries out what is emitted, at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import attrs

from dafx_actors.scheduler._rules.batches import StartOrchestration
from dafx_actors.scheduler._rules.episodes import ReleaseLock, RequestLock, Rewound, TellEntity

if TYPE_CHECKING:
    from dafx_actors.scheduler._ground.records import Orchestration
    from dafx_actors.scheduler.storage.committer import Changes


@attrs.frozen
class Answer:
    """An answer for one execution of an orchestration; a later one must not get it."""

    orchestration: int
    """Its row."""
    execution_id: str
    event: bytes


@attrs.frozen
class ForEntities:
    """What an orchestration asks of entities."""

    by: Orchestration
    effect: TellEntity | RequestLock | ReleaseLock


@attrs.frozen
class ReleaseLocksOf:
    """An orchestration is over, or begins anew: it holds nothing and waits for no lock."""

    orchestration: int
    """Its row."""


@attrs.frozen
class Rewind:
    """A worker has rewritten the history of an orchestration."""

    orchestration: Orchestration
    how: Rewound


@attrs.frozen
class EndBelow:
    """A terminated orchestration, whose mark is about to be on disk: all below it ends after that."""

    orchestration: int
    """Its row."""
    output: str | None


Effect: TypeAlias = Answer | StartOrchestration | ForEntities | ReleaseLocksOf | Rewind | EndBelow
Emit: TypeAlias = "Callable[[Changes, Effect], None]"
