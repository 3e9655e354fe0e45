"""The embedded scheduler: a durable, single-node Durable Task backend.

An asyncio gRPC server over one SQLite file, for a laptop, tests and one small server. It serves
`TaskHubSidecarService` to the public SDKs' clients and workers; beyond one machine the same program runs on the
hosted scheduler, by changing its endpoint.
"""

from typing import TYPE_CHECKING

from dafx_actors._lazy import importing

if TYPE_CHECKING:
    from dafx_actors.scheduler._ground.clock import Alarm, Clock, SystemClock
    from dafx_actors.scheduler._hub.engine import Patience, Retention
    from dafx_actors.scheduler.embedded import EmbeddedScheduler, Tls
    from dafx_actors.scheduler.if_needed import scheduler_if_needed

__all__ = ["Alarm", "Clock", "EmbeddedScheduler", "Patience", "Retention", "SystemClock", "Tls", "scheduler_if_needed"]

_HOMES = {
    "Alarm": "dafx_actors.scheduler._ground.clock",
    "Clock": "dafx_actors.scheduler._ground.clock",
    "EmbeddedScheduler": "dafx_actors.scheduler.embedded",
    "Patience": "dafx_actors.scheduler._hub.engine",
    "Retention": "dafx_actors.scheduler._hub.engine",
    "SystemClock": "dafx_actors.scheduler._ground.clock",
    "Tls": "dafx_actors.scheduler.embedded",
    "scheduler_if_needed": "dafx_actors.scheduler.if_needed",
}
"""The module that has a name, as the imports above say it to a type checker."""
_MODULES = dict.fromkeys(("embedded", "hosted", "if_needed", "storage"), __name__)
"""Reached as attributes, too."""


if not TYPE_CHECKING:
    __getattr__ = importing(__name__, {**_HOMES, **_MODULES})


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
