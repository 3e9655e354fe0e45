"""Durable AI agents: conversations that survive crashes, on any Durable Task scheduler.

The front door: everything public that a program needs, and nothing else. Errors are in `dafx_actors.errors`, models in
`dafx_actors.models`, help for tests in `dafx_actors.testing`.

Each name is imported when it is first used: a program that is only a client loads no worker, and none waits for more
than it needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dafx_actors._lazy import importing

if TYPE_CHECKING:
    from durabletask.task import RetryPolicy

    from dafx_actors.agents import AgentDefinition, Turn, durable_agent
    from dafx_actors.client._client import DurableAIAgentClient
    from dafx_actors.client._decisions import DecisionStored
    from dafx_actors.client._handles import OrchestrationHandle, PendingStep, TurnHandle, TurnStatus, TurnStream
    from dafx_actors.client._proxies import DurableAIAgent, RunOptions
    from dafx_actors.decisions import Decision, DecisionAccepted, PendingApproval, PendingDecision, PendingOutcome
    from dafx_actors.errors import DafxError, NotDone
    from dafx_actors.exchange import AgentRunResponse, Limits
    from dafx_actors.ids import AgentThread
    from dafx_actors.models import Model, ModelReply, ModelRequest
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
    from dafx_actors.tools import Approval, ToolContext, ToolSource, as_tool, tool
    from dafx_actors.transcript import ChatMessage, DataContent, TextContent, Transcript, UriContent, UsageStats
    from dafx_actors.worker._worker import DurableAIAgentWorker

    __version__: str

__all__ = [
    "AgentDefinition",
    "AgentRunResponse",
    "AgentThread",
    "Approval",
    "ChatMessage",
    "DafxError",
    "DataContent",
    "Decision",
    "DecisionAccepted",
    "DecisionStored",
    "DurableAIAgent",
    "DurableAIAgentClient",
    "DurableAIAgentOrchestrationContext",
    "DurableAIAgentWorker",
    "DurableAgentTask",
    "DurableTask",
    "Limits",
    "Model",
    "ModelReply",
    "ModelRequest",
    "NotDone",
    "OrchestrationAgent",
    "OrchestrationAgentExecutor",
    "OrchestrationContext",
    "OrchestrationHandle",
    "PendingApproval",
    "PendingDecision",
    "PendingOutcome",
    "PendingStep",
    "RetryPolicy",
    "RunOptions",
    "TextContent",
    "ToolContext",
    "ToolSource",
    "Transcript",
    "Turn",
    "TurnHandle",
    "TurnStatus",
    "TurnStream",
    "UriContent",
    "UsageStats",
    "__version__",
    "as_tool",
    "durable_agent",
    "orchestrator",
    "tool",
    "when_all",
    "when_any",
]

_HOMES = {
    "AgentDefinition": "dafx_actors.agents",
    "AgentRunResponse": "dafx_actors.exchange",
    "AgentThread": "dafx_actors.ids",
    "Approval": "dafx_actors.tools",
    "ChatMessage": "dafx_actors.transcript",
    "DafxError": "dafx_actors.errors",
    "DataContent": "dafx_actors.transcript",
    "Decision": "dafx_actors.decisions",
    "DecisionAccepted": "dafx_actors.decisions",
    "DecisionStored": "dafx_actors.client._decisions",
    "DurableAIAgent": "dafx_actors.client._proxies",
    "DurableAIAgentClient": "dafx_actors.client._client",
    "DurableAIAgentOrchestrationContext": "dafx_actors.orchestration._context",
    "DurableAIAgentWorker": "dafx_actors.worker._worker",
    "DurableAgentTask": "dafx_actors.orchestration._context",
    "DurableTask": "dafx_actors.orchestration._context",
    "Limits": "dafx_actors.exchange",
    "Model": "dafx_actors.models",
    "ModelReply": "dafx_actors.models",
    "ModelRequest": "dafx_actors.models",
    "NotDone": "dafx_actors.errors",
    "OrchestrationAgent": "dafx_actors.orchestration._context",
    "OrchestrationAgentExecutor": "dafx_actors.orchestration._context",
    "OrchestrationContext": "dafx_actors.orchestration._context",
    "OrchestrationHandle": "dafx_actors.client._handles",
    "PendingApproval": "dafx_actors.decisions",
    "PendingDecision": "dafx_actors.decisions",
    "PendingOutcome": "dafx_actors.decisions",
    "PendingStep": "dafx_actors.client._handles",
    "RetryPolicy": "durabletask.task",
    "RunOptions": "dafx_actors.client._proxies",
    "TextContent": "dafx_actors.transcript",
    "ToolContext": "dafx_actors.tools",
    "ToolSource": "dafx_actors.tools",
    "Transcript": "dafx_actors.transcript",
    "Turn": "dafx_actors.agents",
    "TurnHandle": "dafx_actors.client._handles",
    "TurnStatus": "dafx_actors.client._handles",
    "TurnStream": "dafx_actors.client._handles",
    "UriContent": "dafx_actors.transcript",
    "UsageStats": "dafx_actors.transcript",
    "as_tool": "dafx_actors.tools",
    "durable_agent": "dafx_actors.agents",
    "orchestrator": "dafx_actors.orchestration._context",
    "tool": "dafx_actors.tools",
    "when_all": "dafx_actors.orchestration._context",
    "when_any": "dafx_actors.orchestration._context",
}
"""The module that has a name, as the imports above say it to a type checker."""
_MODULES = {
    "agents": __name__,
    "client": __name__,
    "decisions": __name__,
    "errors": __name__,
    "exchange": __name__,
    "handles": __name__,
    "ids": __name__,
    "mcp": __name__,
    "models": __name__,
    "orchestration": __name__,
    "proxies": __name__,
    "scheduler": __name__,
    "sync": __name__,
    "testing": __name__,
    "tools": __name__,
    "transcript": __name__,
    "updates": __name__,
    "worker": __name__,
}
"""Reached as attributes, too."""


if not TYPE_CHECKING:
    _imported = importing(__name__, {**_HOMES, **_MODULES})

    def __getattr__(name: str) -> object:
        if name == "__version__":
            from importlib.metadata import version

            return version("dafx-actors")
        return _imported(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
