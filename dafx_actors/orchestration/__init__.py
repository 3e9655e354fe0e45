"""`async def` that can be replayed."""

from __future__ import annotations

from dafx_actors.orchestration._context import (
    DurableAgentTask,
    DurableAIAgentOrchestrationContext,
    DurableTask,
    OrchestrationAgent,
    OrchestrationAgentExecutor,
    OrchestrationContext,
    orchestrator,
    when_all,
    when_any,
)

__all__ = [
    "DurableAIAgentOrchestrationContext",
    "DurableAgentTask",
    "DurableTask",
    "OrchestrationAgent",
    "OrchestrationAgentExecutor",
    "OrchestrationContext",
    "orchestrator",
    "when_all",
    "when_any",
]
