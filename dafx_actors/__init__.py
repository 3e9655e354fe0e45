"""Durable AI agents: conversations that survive crashes, on any Durable Task scheduler.

The front door: everything public that a program needs, and nothing else. Errors are in `dafx_actors.errors`, models in
`dafx_actors.models`, help for tests in `dafx_actors.testing`.
"""

from durabletask.task import RetryPolicy

from dafx_actors.agents import AgentDefinition, Turn, durable_agent
from dafx_actors.client._client import DurableAIAgentClient
from dafx_actors.client._handles import OrchestrationHandle, PendingStep, TurnHandle, TurnStatus
from dafx_actors.client._proxies import DurableAIAgent, RunOptions
from dafx_actors.decisions import Decision, PendingDecision
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

__all__ = [
    "AgentDefinition",
    "AgentRunResponse",
    "AgentThread",
    "Approval",
    "ChatMessage",
    "DafxError",
    "DataContent",
    "Decision",
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
    "PendingDecision",
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
    "UriContent",
    "UsageStats",
    "as_tool",
    "durable_agent",
    "orchestrator",
    "tool",
    "when_all",
    "when_any",
]
