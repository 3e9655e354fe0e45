"""What a worker tells of the work that it does."""

from __future__ import annotations

from typing import Literal, TypeAlias

import attrs

WorkKind: TypeAlias = Literal["model", "tool", "probe", "activity", "thread", "turn", "tell", "orchestration"]
"""The first four are activities, a `thread`'s are operations of an entity, the last three are orchestrations."""


@attrs.frozen(kw_only=True)
class Work:
    """Something that durabletask has given to a worker: its result will be recorded as a whole, or not at all."""

    kind: WorkKind
    name: str
    """The name of the tool, the activity or the orchestration; the operation of a thread; for all else the agent."""
    instance_id: str
    """The orchestration that it belongs to; the entity, for an operation of a thread."""
    task_id: int | None = None
    """The number of an activity among the tasks of its orchestration: the same when it is handed out again."""
