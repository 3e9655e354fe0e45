"""The embedded scheduler: a durable, single-node Durable Task backend.

An asyncio gRPC server over one SQLite file, for a laptop, tests and one small server. It serves
`TaskHubSidecarService` to the public SDKs' clients and workers; beyond one machine the same program runs on the
hosted scheduler, by changing its endpoint.
"""

from dafx_actors.scheduler._ground.clock import Alarm, Clock, SystemClock
from dafx_actors.scheduler._hub.engine import Patience, Retention
from dafx_actors.scheduler.embedded import EmbeddedScheduler, Tls
from dafx_actors.scheduler.if_needed import scheduler_if_needed

__all__ = ["Alarm", "Clock", "EmbeddedScheduler", "Patience", "Retention", "SystemClock", "Tls", "scheduler_if_needed"]
