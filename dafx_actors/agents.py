"""Agents: declared with `@durable_agent`, listed in a registry.

The decorator attaches a frozen definition to the class and hands the class back; importing a module registers
nothing. A worker's registry makes agents of classes and instances, and reports all mistakes at once.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, TypeAlias, TypeVar, get_args, overload

import attrs
from durabletask.task import RetryPolicy

from dafx_actors._rules.conversation import conversation, last_turns
from dafx_actors.decisions import load_deciders
from dafx_actors.errors import ConfigurationError
from dafx_actors.exchange import Limits, Overlap, RunRequest
from dafx_actors.ids import AGENT_DEFINITION, AgentThread, agent_name_mistake
from dafx_actors.ids import agent_name as agent_name
from dafx_actors.models import Model, ModelReply, ModelRequest, ToolDefinition
from dafx_actors.tools import AgentTool, Tool, ToolSource, is_size, tool_mistakes, tools_of
from dafx_actors.tools._declared import MAX_RESULT_BYTES
from dafx_actors.transcript import ChatMessage, Json, Transcript

C = TypeVar("C", bound=type)

Durability: TypeAlias = Literal["step", "turn"]


@attrs.frozen(kw_only=True)
class AgentDefinition:
    """The definition of an agent: the arguments of `@durable_agent`."""

    name: str
    description: str = ""
    model: Model | Callable[[], Model] | str | None = None
    """A model, a function that makes one, the name of one for the environment's provider, or None for its default."""
    durability: Durability = "step"
    """`step`: each model and tool call is recorded. `turn`: the whole turn is one operation, which a crash repeats."""
    options: Mapping[str, Json] = attrs.field(factory=dict[str, Json])
    """Parameters for every model call, by the provider's names."""
    limits: Limits = attrs.field(factory=Limits)
    """What a turn may take at most, with the agents that it uses as tools. A request may lower what is written here,
    and not lift it; what is not written it may."""
    retry: RetryPolicy | None = None
    """The retry policy of failed model calls; None for five attempts within ten minutes, at growing intervals."""
    deciders: Mapping[str, bytes] = attrs.field(factory=dict[str, bytes])
    """The Ed25519 public keys of those who may decide about its calls, 32 bytes each; empty: whoever says so may."""
    overlap: Overlap = "queue"
    """What becomes of a request while its thread works on another.

    `queue`: it waits. `reject`: it fails with `ThreadBusy`. `cancel_previous`: it takes the place of those before it.
    `steer`: it joins the running turn at its next model call, and both get one answer. `beside`: while the running turn
    waits for a person, it is a turn of its own, which may call only tools with `effect="none"`, and is answered; the
    other is shown that when it goes on. While nobody is waited for, it queues.
    """
    max_result_bytes: int = MAX_RESULT_BYTES
    """The most bytes that the result of a tool may have as JSON in UTF-8, unless the tool says otherwise."""


@attrs.frozen(kw_only=True)
class Turn:
    """One request to an agent, as its code sees it."""

    thread: AgentThread
    request: RunRequest
    transcript: Transcript
    """The transcript of the thread, with this request."""
    messages: tuple[ChatMessage, ...]
    """The messages that a model is sent: the instructions, and the conversation up to this request."""
    tools: tuple[ToolDefinition, ...] = ()
    """The tools that the model is offered."""
    tool_choice: str | None = None
    """The choice that the model is told to make among them; see `ModelRequest.tool_choice`."""
    _complete: Callable[[ModelRequest], Awaitable[ModelReply]] = attrs.field(repr=False, alias="complete")

    @property
    def correlation_id(self) -> str:
        """The id of this turn."""
        return self.request.correlation_id

    @property
    def text(self) -> str:
        """The text of the request."""
        return "\n".join(message.text for message in self.request.messages)

    def last_turns(self, turns: int) -> tuple[ChatMessage, ...]:
        """The messages without those of older turns: for `ask_model`, where a thread has become long.

        ::

            async def respond(self, turn: Turn) -> ModelReply:
                return await turn.ask_model(turn.last_turns(20))

        The instructions stay, and so does all of this turn. A turn stays whole or goes whole: no call is cut from its
        result. The thread itself keeps everything.

        Args:
            turns: How many turns before this one stay at least. Up to half as many more do: older ones go in blocks,
                so that the beginning of what a model is sent is mostly what it was sent the last time, which
                providers keep and charge less for.

        Raises:
            ValueError: `turns` is negative.
        """
        if turns < 0:
            raise ValueError(f"`turns` must be 0 or more, not {turns}")
        seen = conversation(self.transcript, self.correlation_id)
        instructions = self.messages[: max(len(self.messages) - len(seen), 0)]
        return (*instructions, *conversation(last_turns(self.transcript, turns), self.correlation_id))

    async def ask_model(self, messages: tuple[ChatMessage, ...] | None = None, **options: Json) -> ModelReply:
        """Call the agent's model, with this turn's messages unless others are given.

        Args:
            messages: Instead of `self.messages`; see `last_turns`.
            **options: Parameters of the model, by the provider's names; they win over the agent's.

        Raises:
            ModelError: The call failed.
        """
        request = ModelRequest(
            messages=messages or self.messages,
            tools=self.tools,
            tool_choice=self.tool_choice,
            response_schema=self.request.response_schema,
            options={**self.request.options, **options},
        )
        return await self._complete(request)


@overload
def durable_agent(cls: C, /) -> C: ...


@overload
def durable_agent(
    *,
    name: str | None = None,
    description: str | None = None,
    model: Model | Callable[[], Model] | str | None = None,
    durability: Durability = "step",
    options: Mapping[str, Json] | None = None,
    limits: Limits | None = None,
    retry: RetryPolicy | None = None,
    overlap: Overlap = "queue",
    max_result_bytes: int = MAX_RESULT_BYTES,
    deciders: Mapping[str, Any] | None = None,
) -> Callable[[C], C]: ...


def durable_agent(
    cls: C | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    model: Model | Callable[[], Model] | str | None = None,
    durability: Durability = "step",
    options: Mapping[str, Json] | None = None,
    limits: Limits | None = None,
    retry: RetryPolicy | None = None,
    overlap: Overlap = "queue",
    max_result_bytes: int = MAX_RESULT_BYTES,
    deciders: Mapping[str, Any] | None = None,
) -> C | Callable[[C], C]:
    """Declare an agent. Bare, it is called as its class and described by the class's docstring.

    The class has `instructions`, a string or a method (of the `Turn`, sync or async) that makes one per turn. It may
    instead answer with its own code: `async def respond(self, turn)`, which returns a string, a `ChatMessage` or a
    `ModelReply`. Its tools are its methods decorated with `@tool`, and what its attribute `tools` lists: functions,
    other agents (`as_tool`), MCP servers.

    Args:
        cls: The class, where the decorator stands bare.
        name: Letters, digits, `_` and `-`. Names on one task hub must differ in more than upper and lower case.
        description: What it is for; the docstring by default.
        model: See `AgentDefinition.model`.
        durability: See `AgentDefinition.durability`.
        options: Parameters for every model call, by the provider's names, such as `temperature`.
        limits: See `AgentDefinition.limits`.
        retry: See `AgentDefinition.retry`.
        overlap: See `AgentDefinition.overlap`.
        max_result_bytes: See `AgentDefinition.max_result_bytes`; 1 MiB by default.
        deciders: Who may decide about its calls, by name: Ed25519 public keys, as PEM text, as their 32 bytes, or as
            these in base64. A decision that none of them signed is refused, on any backend; see
            `decisions.DecisionSigner`. Without it, whoever reaches the task hub may decide, and `by` is what he says.

    Raises:
        ConfigurationError: Lists all that is wrong with the declaration.
    """

    def decorate(decorated: C) -> C:
        if not isinstance(decorated, type):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may not type-check
            raise ConfigurationError(
                f"`@durable_agent` decorates a class, not {_shown(decorated)}; a name is given as `name=...`"
            )
        definition = AgentDefinition(
            name=decorated.__name__ if name is None else name,
            description=description if description is not None else inspect.cleandoc(decorated.__doc__ or ""),
            model=model,
            durability=durability,
            options=options or {},
            limits=limits or Limits(),
            retry=retry,
            overlap=overlap,
            max_result_bytes=max_result_bytes,
            deciders=load_deciders(deciders) if deciders else {},
        )
        if mistakes := _class_mistakes(decorated, definition):
            raise ConfigurationError(mistakes)
        setattr(decorated, AGENT_DEFINITION, definition)
        return decorated

    return decorate if cls is None else decorate(cls)


def definition_of(agent: object) -> AgentDefinition | None:
    """The definition of an agent's class or instance, or None where it is none."""
    return getattr(agent, AGENT_DEFINITION, None)


@attrs.frozen
class Agent:
    """An agent that a worker hosts: its definition, and the object whose methods run."""

    definition: AgentDefinition
    instance: Any

    @property
    def name(self) -> str:
        """The agent's name."""
        return self.definition.name

    @functools.cached_property
    def tools(self) -> list[Tool | AgentTool | ToolSource]:
        """The tools of the agent. The schemas of their arguments are made when they are first asked for.

        Raises:
            ConfigurationError: Lists everything that is wrong with them.
        """
        return tools_of(self.instance)

    @property
    def responds(self) -> bool:
        """True if the agent answers with its own code."""
        return _overrides_respond(self.instance)

    async def instructions(self, turn: Turn) -> str:
        """The instructions for a turn; empty where the agent's own code needs none.

        Raises:
            TypeError: The agent's code made something else.
        """
        instructions: Any = getattr(self.instance, "instructions", "")
        made = instructions(turn) if callable(instructions) else instructions
        text: object = await made if inspect.isawaitable(made) else made
        if not isinstance(text, str):
            raise TypeError(f"`instructions` of {self.name} returned {text!r}; return a str")
        return text

    async def respond(self, turn: Turn) -> ModelReply:
        """The reply of the agent's own code, or of its model.

        Raises:
            TypeError: The agent's code returned something else.
        """
        if not self.responds:
            return await turn.ask_model()
        answer: Any = await self.instance.respond(turn)
        if isinstance(answer, ModelReply):
            return answer
        if isinstance(answer, ChatMessage):
            return ModelReply(message=answer)
        if isinstance(answer, str):
            return ModelReply(message=ChatMessage("assistant", answer))
        raise TypeError(f"`respond` of {self.name} returned {answer!r}; return a str, a ChatMessage or a ModelReply")


class AgentRegistry:
    """The agents of one worker."""

    def __init__(self) -> None:
        self._agents: dict[str, Agent] = {}

    def __iter__(self) -> Iterator[Agent]:
        return iter(self._agents.values())

    @property
    def names(self) -> list[str]:
        """The names, in the order in which they were added."""
        return [agent.name for agent in self]

    def add(self, *agents: object) -> list[Agent]:
        """Add classes or instances; all of them, or none if anything is wrong.

        Raises:
            ConfigurationError: Lists everything that is wrong with any of them.
        """
        mistakes: list[str] = []
        added: dict[str, Agent] = {}
        for candidate in agents:
            agent, mistakes_of_one = _host(candidate)
            mistakes += mistakes_of_one
            if agent is None:
                continue
            # Schedulers lower-case the names of entities.
            namesake = self._agents.get(agent.name.lower()) or added.get(agent.name.lower())
            if namesake is not None:
                mistakes.append(
                    f"{_shown(candidate)}: there is an agent {namesake.name!r} already; "
                    "upper and lower case count as the same"
                )
            added[agent.name.lower()] = agent
        mistakes = mistakes or _circles({**self._agents, **added})
        if mistakes:
            raise ConfigurationError(mistakes)
        self._agents |= added
        return list(added.values())

    def discard(self, agents: Iterable[Agent]) -> None:
        """Take back what `add` gave."""
        for agent in agents:
            del self._agents[agent.name.lower()]


def _host(candidate: object) -> tuple[Agent | None, list[str]]:
    definition = definition_of(candidate)
    if definition is None:
        return None, [f"{_shown(candidate)} is not an agent; was its class decorated with `@durable_agent`?"]
    instance = candidate
    if isinstance(candidate, type):
        try:
            inspect.signature(candidate).bind()
        except TypeError as error:
            return None, [f"{candidate.__name__} needs arguments ({error}); add an instance of it"]
        instance = candidate()
    mistake = _instructions_mistake(definition, instance)
    return Agent(definition, instance), [*([mistake] if mistake else []), *_tool_mistakes(definition, instance)]


def _class_mistakes(cls: type, definition: AgentDefinition) -> list[str]:
    """List the mistakes that the class shows.

    Instructions that `__init__` sets are looked for when an agent is added.
    """
    mistakes = [f"{cls.__qualname__}: {mistake}" for mistake in [agent_name_mistake(definition.name)] if mistake]
    if definition.durability not in ("step", "turn"):
        mistakes.append(f"{cls.__qualname__}: durability is 'step' or 'turn', not {definition.durability!r}")
    if definition.overlap not in get_args(Overlap):
        words = ", ".join(map(repr, get_args(Overlap)))
        mistakes.append(f"{cls.__qualname__}: overlap is one of {words}, not {definition.overlap!r}")
    if not isinstance(definition.max_result_bytes, int) or not is_size(definition.max_result_bytes):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may not type-check
        bound = definition.max_result_bytes
        mistakes.append(f"{cls.__qualname__}: `max_result_bytes` is a whole number above 0, not {bound!r}")
    if not _is_model(definition.model):
        mistakes.append(
            f"{cls.__qualname__}: `model` is an object with async `complete()` and `aclose()`, a function that makes "
            f"one, or a name, not {_shown(definition.model)}"
        )
    mistakes += [
        f"{cls.__qualname__}: `{name}` must take the turn: `def {name}(self, turn)`"
        for name in ("instructions", "respond")
        if not _takes_the_turn(inspect.getattr_static(cls, name, None))
    ]
    if _overrides_respond(cls) and not inspect.iscoroutinefunction(cls.respond):  # type: ignore[attr-defined]
        mistakes.append(f"{cls.__qualname__}: `respond` must be `async def`")
    if cls.__init__ is object.__init__ and (mistake := _instructions_mistake(definition, cls)):  # type: ignore[misc]
        mistakes.append(mistake)
    return mistakes


def _instructions_mistake(definition: AgentDefinition, agent: object) -> str | None:
    instructions = getattr(agent, "instructions", None)
    if instructions is None and not _overrides_respond(agent):
        return f"{definition.name}: `instructions` are missing; set a string, or write `async def respond(self, turn)`"
    if (
        instructions is not None
        and not isinstance(instructions, str)
        and not callable(instructions)
        and not isinstance(instructions, property)
    ):
        return f"{definition.name}: `instructions` must be a string or a method, not {_shown(instructions)}"
    return None


def _tool_mistakes(definition: AgentDefinition, instance: object) -> list[str]:
    if mistakes := tool_mistakes(instance):
        return mistakes
    if any(_waits_for_itself(entry, definition.name) for entry in tools_of(instance)):
        return [f"{definition.name}: as a tool of its own in the same thread it would wait for itself for ever"]
    if definition.durability != "turn":
        return []
    return [
        f"{definition.name}: the tool {entry.name!r} needs durability='step': with 'turn', nothing is recorded while "
        "the turn runs, and nobody can be waited for"
        for entry in tools_of(instance)
        if isinstance(entry, AgentTool)
        or entry.approval is not None
        or (isinstance(entry, Tool) and entry.effect == "once")
    ]


def _waits_for_itself(entry: Tool | AgentTool | ToolSource, agent: str) -> bool:
    return isinstance(entry, AgentTool) and not entry.new_thread and entry.agent.lower() == agent.lower()


def _circles(agents: Mapping[str, Agent]) -> list[str]:
    """Agents that use each other as tools in the thread where they are used, round to the first: all would wait.

    Those that other workers host are not seen here; their calls are refused when they are made.
    """
    uses = {
        name: [entry.agent.lower() for entry in agent.tools if isinstance(entry, AgentTool) and not entry.new_thread]
        for name, agent in agents.items()
    }
    mistakes: list[str] = []
    circles: set[frozenset[str]] = set()
    for first in uses:
        circle = _way_back(first, uses)
        if circle and frozenset(circle) not in circles:
            circles.add(frozenset(circle))
            names = " -> ".join(agents[name].name for name in (*circle, first))
            mistakes.append(
                f"{names}: used as tools of each other in the same thread (`new_thread=False`), they would wait for "
                "each other for ever; let one of them be asked in a new thread"
            )
    return mistakes


def _way_back(first: str, uses: Mapping[str, list[str]]) -> list[str] | None:
    """The shortest way over uses from an agent back to itself, or None."""
    ways, seen = [[first]], {first}
    for way in ways:  # it grows meanwhile
        for used in uses.get(way[-1], ()):
            if used == first:
                return way
            if used not in seen:
                seen.add(used)
                ways.append([*way, used])
    return None


def _is_model(model: object) -> bool:
    return model is None or callable(model) or isinstance(model, str | Model)


def _takes_the_turn(method: object) -> bool:
    """Say whether a method can be called with a turn; what is no plain method is left alone."""
    if not inspect.isfunction(method):
        return True
    try:
        inspect.signature(method).bind("self", "turn")
    except TypeError:
        return False
    return True


def _overrides_respond(agent: object) -> bool:
    return callable(getattr(agent, "respond", None))


def _shown(value: object) -> str:
    return value.__qualname__ if isinstance(value, type) else repr(value)
