"""What a worker hosts: tools that are bound to their agent, whole agents as tools, and sources of tools."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import anyio
import attrs
from durabletask.task import RetryPolicy

from dafx_actors._json.values import arguments_of, returned_by
from dafx_actors.errors import ConfigurationError, InvalidArguments
from dafx_actors.ids import AGENT_DEFINITION
from dafx_actors.models import ToolDefinition
from dafx_actors.tools._declared import Approval, Effect, Told, ToolContext
from dafx_actors.tools._functions import Signature, asked_for, asks, contexts_of, result_of, underlying
from dafx_actors.tools._results import dump_tool_result
from dafx_actors.transcript import Json


@attrs.frozen(kw_only=True)
class Tool:
    """A tool as a worker hosts it: a function bound to its agent, and how it is to be called."""

    name: str
    description: str
    parameters: Mapping[str, Json]
    """A JSON schema of the arguments, of type `object`."""
    function: Callable[..., Any]
    effect: Effect = "repeatable"
    approval: Approval | None = None
    """None if no call waits for a person."""
    parallel: bool = True
    timeout: float | None = None
    """Seconds that one attempt may take."""
    retry: RetryPolicy | None = None
    reconcile: Callable[..., Any] | None = None
    max_result_bytes: int | None = None
    """The most bytes that a result may have as JSON in UTF-8; None for the bound of the agent."""
    errors: Told = "text"
    _signature: Signature = attrs.field(repr=False, eq=False, alias="signature")

    def definition(self) -> ToolDefinition:
        """The tool as the model sees it."""
        return ToolDefinition(name=self.name, description=self.description, parameters=self.parameters)

    def bind(self, arguments: Mapping[str, Json]) -> dict[str, Any]:
        """The values of the arguments by parameter, as their annotations say; what was left out is left out.

        Raises:
            InvalidArguments: They do not fit; it lists every mistake.
        """
        values, mistakes = self._signature.arguments.load(arguments)
        if mistakes:
            raise InvalidArguments(self.name, mistakes)
        return values

    async def needs_approval(self, arguments: Mapping[str, Json]) -> bool:
        """Decide whether this call must wait for a person's decision. If the rule raises, the call must not be made.

        Raises:
            InvalidArguments: The arguments do not fit.
            TypeError: The predicate answered neither True nor False.
            Exception: What the predicate raised.
        """
        if self.approval is None:
            return False
        if self.approval.when is None:
            return True
        return await asks(self.approval.when, {**self._signature.defaults, **self.bind(arguments)})

    async def call(self, context: ToolContext, arguments: Mapping[str, Json]) -> Json:
        """Run it once: an async function on this loop, any other in a thread, with this task's context variables.

        A thread cannot be stopped. When the call is cancelled or its time is over, it is left to itself: what the
        function still does is not seen by anybody, and the process does not end before it.

        Raises:
            InvalidArguments: The arguments do not fit; nothing was run.
            ResultNotKept: It has run; JSON cannot hold the result, or it is not what the annotation says.
            TimeoutError: It took longer than `timeout`.
            Exception: What the function raised.
        """
        values = self.bind(arguments) | dict.fromkeys(self._signature.contexts, context)
        return await self._run(self.function, values)

    async def call_reconcile(self, context: ToolContext, arguments: Mapping[str, Json]) -> Json:
        """Find out what became of a call: its result.

        Raises:
            NotDone: The effect has not happened; the tool may run again.
            InvalidArguments: The arguments do not fit; nothing was run.
            Exception: What the function raised. The outcome is still unknown.
        """
        if self.reconcile is None:
            raise TypeError(f"tool {self.name} has no `reconcile`")
        values = asked_for(self.reconcile, {**self._signature.defaults, **self.bind(arguments)})
        return await self._run(self.reconcile, values | dict.fromkeys(contexts_of(self.reconcile), context))

    async def _run(self, function: Callable[..., Any], values: Mapping[str, Any]) -> Json:
        annotation = returned_by(underlying(function))
        with anyio.move_on_after(self.timeout):
            return dump_tool_result(self.name, await result_of(function, values), annotation)
        raise TimeoutError(f"{self.name} did not finish within {self.timeout:g} s")


@attrs.frozen(kw_only=True)
class AgentTool:
    """A whole agent as a tool of another: a call is a turn of it."""

    name: str
    description: str
    agent: str
    """The agent's name."""
    new_thread: bool = True
    """True if each call is a conversation of its own; False if all calls from one thread go on with the same one."""

    @property
    def parameters(self) -> Mapping[str, Json]:
        """A JSON schema of the arguments: the request's text."""
        return {
            "type": "object",
            "properties": {"request": {"type": "string", "description": "What to ask, with all that it must know."}},
            "required": ["request"],
            "additionalProperties": False,
        }

    def definition(self) -> ToolDefinition:
        """The tool as the model sees it."""
        return ToolDefinition(name=self.name, description=self.description, parameters=self.parameters)

    def request(self, arguments: Mapping[str, Json]) -> str:
        """The text to send to the agent.

        Raises:
            InvalidArguments: The arguments do not fit; it lists every mistake.
        """
        values, mistakes = arguments_of({"request": str}, frozenset({"request"})).load(arguments)
        if mistakes:
            raise InvalidArguments(self.name, mistakes)
        return str(values["request"])


def as_tool(
    agent: str | type | object, *, name: str | None = None, description: str | None = None, new_thread: bool = True
) -> AgentTool:
    """Make a tool of an agent, for the `tools` of another.

    Args:
        agent: Its name, class or instance.
        name: The tool's; the agent's by default.
        description: When to call it, for the model; the agent's by default.
        new_thread: See `AgentTool.new_thread`.

    Raises:
        ConfigurationError: It is no agent.
    """
    # By name: `agents` stands below this module and makes use of it.
    definition: Any = getattr(agent, AGENT_DEFINITION, None)
    if definition is None and not isinstance(agent, str):
        raise ConfigurationError(f"{agent!r} is not an agent; was its class decorated with `@durable_agent`?")
    called: str = agent if isinstance(agent, str) else str(getattr(definition, "name", ""))
    said: str = (description or getattr(definition, "description", "")) or f"Asks the agent {called}."
    return AgentTool(name=name or called, description=said, agent=called, new_thread=new_thread)


@runtime_checkable
class ToolSource(Protocol):
    """Tools that are known only at run time, such as those of an MCP server."""

    @property
    def name(self) -> str:
        """The name of the source, unique among the tools of its agent."""
        ...

    @property
    def approval(self) -> Approval | None:
        """For all its tools; a predicate is asked with `name` (of the tool) and `arguments` (JSON)."""
        ...

    async def tools(self) -> list[ToolDefinition]:
        """The tools that it has now."""
        ...

    async def call(self, name: str, arguments: Mapping[str, Json], context: ToolContext) -> Json:
        """Call one of them; the result, as the model is to see it.

        Raises:
            Exception: The call failed; the model is told its text.
        """
        ...

    async def aclose(self) -> None:
        """Give back connections and processes. It may be used again, and then opens them anew."""
        ...


async def source_needs_approval(source: ToolSource, name: str, arguments: Mapping[str, Json]) -> bool:
    """Decide whether this call must wait for a person's decision. If the rule raises, it must not be made.

    Raises:
        TypeError: The predicate answered neither True nor False.
        Exception: What the predicate raised.
    """
    approval = source.approval
    if approval is None:
        return False
    return approval.when is None or await asks(approval.when, {"name": name, "arguments": arguments})
