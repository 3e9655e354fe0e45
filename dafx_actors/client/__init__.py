"""Asks and waits; it runs no agent code."""

from __future__ import annotations

from dafx_actors._durable.recorded import History
from dafx_actors.client._client import DurableAIAgentClient
from dafx_actors.client._listing import Listing, Page
from dafx_actors.client._orchestrations import OrchestrationInfo
from dafx_actors.client._proxies import DurableAIAgent, RunOptions
from dafx_actors.client._scheduler import Backup, HostedAgent, HubStats, SchedulerStats, WorkerStats, WorkStats
from dafx_actors.client._threads import ThreadInfo
from dafx_actors.client._turns import TurnInfo

__all__ = [
    "Backup",
    "DurableAIAgent",
    "DurableAIAgentClient",
    "History",
    "HostedAgent",
    "HubStats",
    "Listing",
    "OrchestrationInfo",
    "Page",
    "RunOptions",
    "SchedulerStats",
    "ThreadInfo",
    "TurnInfo",
    "WorkStats",
    "WorkerStats",
]
