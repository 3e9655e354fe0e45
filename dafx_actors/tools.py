"""Tools: what an agent may do, declared with `@tool`, and told to the model as a JSON schema.

The decorator attaches a frozen declaration to the function and hands the function back. A worker makes of it a `Tool`
that is bound to the agent's instance (`tools_of`), and reports all mistakes at once (`tool_mistakes`). *When* a tool
runs is the turn's business, and so is what it may repeat; *how* it runs is here: arguments are validated, the context
is injected, functions that block get a thread.
"""

from __future__ import annotations

import functools
import inspect
import logging
import re
import types
import typing
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar, cast, overload, runtime_checkable

import anyio
import anyio.to_thread
import attrs
from durabletask.task import RetryPolicy

from dafx_actors import _docstrings
from dafx_actors._values import arguments_of, dump_as, dump_value, json_schema, returned_by
from dafx_actors.errors import ConfigurationError, InvalidArguments, NotDone, ValueMismatch
from dafx_actors.ids import AgentThread
from dafx_actors.models import ToolDefinition
from dafx_actors.transcript import Json, Transcript

if TYPE_CHECKING:
    from dafx_actors._schemas import Arguments

__all__ = [
    "AgentTool",
    "Approval",
    "Effect",
    "InvalidArguments",
    "NotDone",
    "Tool",
    "ToolContext",
    "ToolSource",
    "as_tool",
    "source_needs_approval",
    "tool",
    "tool_mistakes",
    "tools_of",
]

F = TypeVar("F", bound=Callable[..., Any])

Effect: TypeAlias = Literal["repeatable", "once"]
"""`repeatable`: a crash may repeat the call in flight, with the same idempotency key. `once`: it is never run again
while it is not known what became of it."""

_DECLARATION = "__dafx_tool__"
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def _seconds(given: timedelta | float | None) -> float | None:
    return given.total_seconds() if isinstance(given, timedelta) else given


# --- What users write ---------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class ToolContext:
    """What a tool may know of the call that it runs for: a parameter annotated so is injected, and not in the schema."""

    thread: AgentThread
    """The conversation."""
    correlation_id: str
    """Names the turn."""
    call_id: str
    """The model's id of the call."""
    idempotency_key: str
    """The same whenever this call is repeated, after a crash or as a retry. Give it to services that know repeats by
    such a key."""
    attempt: int
    """1 for the first."""
    logger: logging.Logger | logging.LoggerAdapter[Any]
    """Its records carry the ids."""
    _transcript: Callable[[], Transcript] = attrs.field(repr=False, eq=False, alias="transcript")
    _report: Callable[[Json], None] = attrs.field(repr=False, eq=False, alias="report")

    @functools.cached_property
    def transcript(self) -> Transcript:
        """All that the thread remembers, up to the message that made this call. Decoded when first asked for."""
        return self._transcript()

    def report_progress(self, value: Json) -> None:
        """Tell those who watch the turn how far the call has come.

        Raises:
            ValueMismatch: JSON cannot hold the value.
        """
        self._report(dump_value(value))


@attrs.frozen(kw_only=True)
class Approval:
    """Which calls of a tool wait for a person's decision, and for how long."""

    when: Callable[..., bool | Awaitable[bool]] | str | None = None
    """A predicate over the call's arguments, by keyword, as the tool gets them; it asks for those that it needs. May be
    a method of the agent, given as a function or by its name. None: every call waits."""
    timeout: float | None = attrs.field(default=None, converter=_seconds)
    """Seconds (or a timedelta) until the decision is made by `on_timeout`; None: it waits for ever."""
    on_timeout: Literal["deny", "fail"] = "deny"
    """`deny`: the model is told that nobody approved. `fail`: the turn fails."""


@attrs.frozen(kw_only=True)
class _Declaration:
    """What `@tool` was told, as it was told."""

    name: str | None = None
    description: str | None = None
    approval: object = False
    effect: Effect = "repeatable"
    parallel: bool = True
    timeout: float | None = attrs.field(default=None, converter=_seconds)
    retry: RetryPolicy | None = None
    reconcile: Callable[..., Any] | str | None = None


@overload
def tool(function: F, /) -> F: ...


@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    approval: bool | Callable[..., bool | Awaitable[bool]] | Approval = False,
    effect: Effect = "repeatable",
    parallel: bool = True,
    timeout: timedelta | float | None = None,
    retry: RetryPolicy | None = None,
    reconcile: Callable[..., Any] | str | None = None,
) -> Callable[[F], F]: ...


def tool(
    function: F | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    approval: bool | Callable[..., bool | Awaitable[bool]] | Approval = False,
    effect: Effect = "repeatable",
    parallel: bool = True,
    timeout: timedelta | float | None = None,
    retry: RetryPolicy | None = None,
    reconcile: Callable[..., Any] | str | None = None,
) -> F | Callable[[F], F]:
    """Declare a tool: a method of an agent's class, or a function that the agent lists in `tools`.

    Its name, description and JSON schema come from its signature, annotations and docstring. Parameters without an
    annotation take any JSON; one annotated `ToolContext` is injected. The function stays what it was.

    Args:
        function: The function, where the decorator stands bare.
        name: At most 64 letters, digits, `_` and `-`; the function's by default.
        description: What it does, for the model; the docstring without its sections on parameters by default.
        approval: Whether calls wait for a person: all of them (True), those for whose arguments the predicate is
            true, or as an `Approval` says.
        effect: See `Effect`.
        parallel: Whether it may run beside other calls of the same answer.
        timeout: Seconds, or a timedelta, that one attempt may take. A function that blocks a thread cannot be stopped:
            its call fails in time, and what it does then goes on behind the agent's back.
        retry: How a failed attempt is repeated, by durable timers.
        reconcile: For `effect="once"`: a function or the name of a method that finds out what became of a call whose
            outcome a crash left unknown. It gets the same arguments and context as far as it asks for them, and returns
            the result or raises `NotDone`.
    """

    def decorate(decorated: F) -> F:
        declaration = _Declaration(
            name=name,
            description=description,
            approval=approval,
            effect=effect,
            parallel=parallel,
            timeout=timeout,
            retry=retry,
            reconcile=reconcile,
        )
        if not callable(decorated) and not isinstance(decorated, classmethod | staticmethod):
            raise ConfigurationError(f"`@tool` decorates a function, not {decorated!r}; a name is given as `name=...`")
        setattr(decorated, _DECLARATION, declaration)
        return decorated

    return decorate if function is None else decorate(function)


# --- What a worker hosts ------------------------------------------------------------------------------------------


@attrs.frozen
class _Signature:
    """What a tool takes: from the model, and from us."""

    arguments: Arguments
    defaults: Mapping[str, Any]
    contexts: tuple[str, ...]
    """The parameters that get the `ToolContext`."""


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
    """None: no call waits for a person."""
    parallel: bool = True
    timeout: float | None = None
    """Seconds that one attempt may take."""
    retry: RetryPolicy | None = None
    reconcile: Callable[..., Any] | None = None
    _signature: _Signature = attrs.field(repr=False, eq=False)

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
        """Whether this call must wait for a person's decision. Where it raises, the call must not be made.

        Raises:
            InvalidArguments: The arguments do not fit.
            TypeError: The predicate answered neither True nor False.
            Exception: What the predicate raised.
        """
        if self.approval is None:
            return False
        if self.approval.when is None:
            return True
        return await _asks(self.approval.when, {**self._signature.defaults, **self.bind(arguments)})

    async def call(self, context: ToolContext, arguments: Mapping[str, Json]) -> Json:
        """Run it once: an async function on this loop, any other in a thread, with this task's context variables.

        A thread cannot be stopped. When the call is cancelled or its time is over, it is left to itself.

        Raises:
            InvalidArguments: The arguments do not fit; nothing was run.
            ValueMismatch: JSON cannot hold the result, or it is not what the annotation says.
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
        values = _asked_for(self.reconcile, {**self._signature.defaults, **self.bind(arguments)})
        return await self._run(self.reconcile, values | dict.fromkeys(_contexts_of(self.reconcile), context))

    async def _run(self, function: Callable[..., Any], values: Mapping[str, Any]) -> Json:
        with anyio.move_on_after(self.timeout):
            return dump_as(await _result(function, values), returned_by(_underlying(function)))
        raise TimeoutError(f"{self.name} did not finish within {self.timeout:g} s")


@attrs.frozen(kw_only=True)
class AgentTool:
    """A whole agent as a tool of another: a call is a turn of it."""

    name: str
    description: str
    agent: str
    """The agent's name."""
    new_thread: bool = True
    """Whether each call is a conversation of its own. Else all calls from one thread go on with the same one."""

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
    definition = None if isinstance(agent, str) else getattr(agent, "__dafx_agent__", None)
    if definition is None and not isinstance(agent, str):
        raise ConfigurationError(f"{agent!r} is not an agent; was its class decorated with `@durable_agent`?")
    called: str = agent if isinstance(agent, str) else definition.name
    said: str = (description or getattr(definition, "description", "")) or f"Asks the agent {called}."
    return AgentTool(name=name or called, description=said, agent=called, new_thread=new_thread)


@runtime_checkable
class ToolSource(Protocol):
    """Tools that are known only at run time, such as those of an MCP server."""

    @property
    def name(self) -> str:
        """Names the source among those of its agent."""
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
    """Whether this call of a source's tool must wait for a person's decision. Where it raises, it must not be made.

    Raises:
        TypeError: The predicate answered neither True nor False.
        Exception: What the predicate raised.
    """
    approval = source.approval
    if approval is None:
        return False
    return approval.when is None or await _asks(approval.when, {"name": name, "arguments": arguments})


# --- Calling ------------------------------------------------------------------------------------------------------


async def _result(function: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    try:
        if _is_async(function):
            return await function(**values)
        # A limiter of its own for each call: how many run at once is the worker's business. anyio's default of 40
        # would be a second bound, and threads that were left to themselves would use it up.
        limiter = anyio.CapacityLimiter(1)
        bound = functools.partial(function, **values)
        made = await anyio.to_thread.run_sync(bound, abandon_on_cancel=True, limiter=limiter)
        return await made if inspect.isawaitable(made) else made
    except SystemExit as error:
        raise RuntimeError(f"it called `sys.exit({error.code!r})`") from error  # that would end the worker


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))


async def _asks(predicate: Callable[..., Any] | str, values: Mapping[str, Any]) -> bool:
    if isinstance(predicate, str):
        raise TypeError(f"the approval's predicate {predicate!r} was not bound to an agent")
    answer: object = predicate(**_asked_for(predicate, values))
    if inspect.isawaitable(answer):
        answer = await answer
    if not isinstance(answer, bool):
        # None, of a forgotten `return`, would let every call pass.
        raise TypeError(f"the approval's predicate returned {answer!r}; return True or False")
    return answer


def _asked_for(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Of `values`, those that the function has parameters for."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(values)
    return {name: value for name, value in values.items() if name in parameters}


# --- From functions to tools --------------------------------------------------------------------------------------


def tools_of(agent: object) -> list[Tool | AgentTool | ToolSource]:
    """The tools of an agent's instance, in order of definition: its methods, then what its `tools` lists.

    Raises:
        ConfigurationError: Lists everything that is wrong with them.
    """
    found, mistakes = _collected(agent)
    if mistakes:
        raise ConfigurationError(mistakes)
    return found


def tool_mistakes(agent: object) -> list[str]:
    """What is wrong with the tools of an agent's instance or class, a sentence each.

    Makes their schemas, for which pydantic is imported.
    """
    return _collected(agent)[1]


def _collected(agent: object) -> tuple[list[Tool | AgentTool | ToolSource], list[str]]:
    cls = agent if isinstance(agent, type) else type(agent)
    label = cls.__qualname__
    found: list[Tool | AgentTool | ToolSource] = []
    mistakes: list[str] = []

    def add(made: Tool | AgentTool | ToolSource | None, wrong: Iterable[str]) -> None:
        mistakes.extend(f"{label}: {mistake}" for mistake in wrong)
        if made is not None:
            found.append(made)

    for attribute, declaration in _declared(cls).items():
        add(*_made(_bound(agent, attribute), attribute, declaration, agent))
    listed, wrong = _listed(agent)
    add(None, wrong)
    for given in listed:
        add(*_made_of(given))
    add(None, _same_names(found))
    return found, mistakes


def _declared(cls: type) -> dict[str, _Declaration]:
    """The decorated methods, inherited ones first. One that overrides another needs no decorator of its own."""
    declared: dict[str, _Declaration] = {}
    for base in reversed(cls.__mro__):
        for attribute, value in vars(base).items():
            declaration = getattr(value, _DECLARATION, None) or getattr(
                getattr(value, "__func__", None), _DECLARATION, None
            )
            if isinstance(declaration, _Declaration):
                declared[attribute] = declaration
            elif attribute in declared and value is None:
                del declared[attribute]  # as with `__hash__ = None`
    return declared


def _bound(agent: object, attribute: str) -> Any:
    """A method, as it can be called; of a class, as if there were an instance."""
    if not isinstance(agent, type):
        return getattr(agent, attribute)
    given = inspect.getattr_static(agent, attribute)
    return given.__get__(object(), agent) if hasattr(given, "__get__") else given


def _listed(agent: object) -> tuple[list[object], list[str]]:
    given = getattr(agent, "tools", ())
    if isinstance(given, property | functools.cached_property):  # of a class; it is looked at again when it is added
        return [], []
    if not isinstance(given, list | tuple):
        return [], [f"`tools` must be a list of tools, not {given!r}"]
    return list(cast("list[object]", given)), []


def _made_of(given: object) -> tuple[Tool | AgentTool | ToolSource | None, list[str]]:
    """What an entry of `tools` stands for."""
    if isinstance(given, Tool | AgentTool):
        return given, _name_mistakes(given.name)
    if isinstance(given, type):
        hint = "; an agent is given as `as_tool(...)`" if hasattr(given, "__dafx_agent__") else ""
        return None, [f"`tools` has the class {given.__qualname__}, which is no tool{hint}"]
    if hasattr(given, "__dafx_agent__"):
        return None, [f"`tools` has an agent, {given!r}; give it as `as_tool(...)`"]
    if isinstance(given, ToolSource):
        return given, _approval_mistakes(given.approval, {"name", "arguments"}, f"tool source {given.name!r}")
    if not callable(given):
        return None, [f"`tools` has {given!r}, which is no tool; list functions, `as_tool(...)` or MCP servers"]
    declaration = getattr(given, _DECLARATION, None)
    name: str = getattr(given, "__name__", type(given).__name__)
    return _made(given, name, declaration if isinstance(declaration, _Declaration) else _Declaration(), None)


def _same_names(found: Iterable[Tool | AgentTool | ToolSource]) -> list[str]:
    names = [each.name for each in found if isinstance(each, Tool | AgentTool)]
    sources = [each.name for each in found if not isinstance(each, Tool | AgentTool)]
    repeated = [f"two tools are called {name!r}" for name in dict.fromkeys(names) if names.count(name) > 1]
    return repeated + [
        f"two tool sources are called {name!r}" for name in dict.fromkeys(sources) if sources.count(name) > 1
    ]


def _made(
    function: Any, attribute: str, declaration: _Declaration, agent: object | None
) -> tuple[Tool | None, list[str]]:
    name = attribute if declaration.name is None else declaration.name
    label = f"tool {name!r}"
    mistakes = [*_name_mistakes(name), *_declaration_mistakes(declaration, label)]
    if wrong := _kind_mistake(function):
        return None, [*mistakes, f"{label} {wrong}"]
    documented = _docstrings.read(inspect.getdoc(_underlying(function)))
    signature, wrongs = _signature_of(function, documented.parameters, label)
    mistakes += wrongs
    if signature is None:
        return None, mistakes
    known = set(signature.arguments.names)
    approval = _approval(declaration.approval, agent)
    reconcile = _resolved(declaration.reconcile, agent)
    mistakes += _approval_mistakes(approval, known, label)
    if declaration.reconcile is not None:
        mistakes += _callback_mistakes(reconcile, known, f"{label}: `reconcile`", may_have_context=True)
    if mistakes or isinstance(reconcile, str):
        return None, mistakes
    return Tool(
        name=name,
        description=documented.text if declaration.description is None else declaration.description,
        parameters=signature.arguments.schema,
        function=function,
        effect=declaration.effect,
        approval=approval,
        parallel=declaration.parallel,
        timeout=declaration.timeout,
        retry=declaration.retry,
        reconcile=reconcile,
        signature=signature,
    ), []


def _signature_of(
    function: Callable[..., Any], descriptions: Mapping[str, str], label: str
) -> tuple[_Signature | None, list[str]]:
    try:
        hints = _hints(function)
    except NameError as error:
        return None, [
            f"{label}: its annotations cannot be read, since {error}; import it outside `if TYPE_CHECKING:`, and define "
            "it at the top of a module"
        ]
    except TypeError as error:
        return None, [f"{label}: its annotations cannot be read: {error}"]
    mistakes: list[str] = []
    kinds: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    contexts: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        hint = hints.get(parameter.name, Any)
        if (unnamed := _UNNAMED.get(parameter.kind)) is not None:
            mistakes.append(f"{label}: parameter `{parameter}` {unnamed}; a model gives arguments by name")
        elif _is_context(hint):
            contexts.append(parameter.name)
        elif wrong := _no_schema(hint):
            mistakes.append(f"{label}: parameter `{parameter.name}`: {wrong}")
        else:
            kinds[parameter.name] = hint
            if parameter.default is not parameter.empty:
                defaults[parameter.name] = parameter.default
    if mistakes:
        return None, mistakes
    arguments = arguments_of(kinds, frozenset(kinds.keys() - defaults.keys()), descriptions)
    for name, default in defaults.items():
        try:
            arguments.schema["properties"][name]["default"] = dump_value(default)
        except ValueMismatch:
            continue  # then the model knows only that there is one
    return _Signature(arguments, defaults, tuple(contexts)), []


_UNNAMED = {
    inspect.Parameter.POSITIONAL_ONLY: "is positional-only",
    inspect.Parameter.VAR_POSITIONAL: "has no name",
    inspect.Parameter.VAR_KEYWORD: "has no names",
}


def _no_schema(hint: Any) -> str | None:
    try:
        json_schema(hint)
    except ValueMismatch as error:
        return str(error)
    return None


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    return typing.get_type_hints(_underlying(function), include_extras=True)


def _underlying(function: Callable[..., Any]) -> Any:
    """The function that has the annotations and the docstring: of a method, a partial, or an object with `__call__`."""
    while isinstance(function, functools.partial | types.MethodType):
        function = function.func if isinstance(function, functools.partial) else function.__func__
    return function if inspect.isroutine(function) else type(function).__call__


def _is_context(hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return _is_context(typing.get_args(hint)[0])
    if origin is typing.Union or origin is types.UnionType:
        return any(_is_context(member) for member in typing.get_args(hint))
    return hint is ToolContext


def _contexts_of(function: Callable[..., Any]) -> list[str]:
    return [name for name, hint in _hints(function).items() if name != "return" and _is_context(hint)]


def _approval(given: object, agent: object | None) -> Approval | None:
    if isinstance(given, Approval):
        return attrs.evolve(given, when=_resolved(given.when, agent))
    if callable(given):
        return Approval(when=cast("Any", _resolved(given, agent)))
    return Approval() if given else None


def _resolved(given: Any, agent: object | None) -> Any:
    """A method that was given by its name or as the function in the class, bound to the agent; a name that it does not
    have is left.
    """
    if given is None or agent is None:
        return given
    name = given if isinstance(given, str) else _name_in(agent, given)
    return _bound(agent, name) if name is not None and hasattr(agent, name) else given


def _name_in(agent: object, function: object) -> str | None:
    for base in (agent if isinstance(agent, type) else type(agent)).__mro__:
        for name, value in vars(base).items():
            if value is function or getattr(value, "__func__", None) is function:
                return name
    return None


# --- Mistakes -----------------------------------------------------------------------------------------------------


def _name_mistakes(name: object) -> list[str]:
    if isinstance(name, str) and _NAME.fullmatch(name):
        return []
    if name == "<lambda>":
        return ["a lambda cannot be a tool: it has no name, annotations or docstring; write a function"]
    return [f"{name!r} cannot be a tool's name: use 1 to 64 letters (a to z), digits, _ and -"]


def _kind_mistake(function: object) -> str | None:
    if not callable(function):
        return f"must be a method, not {function!r}"
    if isinstance(function, type):
        return "is a class; decorate a function"
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        return "is a generator; return a list, and report what comes in between by `ToolContext.report_progress`"
    return None


def _declaration_mistakes(declaration: _Declaration, label: str) -> Iterator[str]:
    effect, timeout = declaration.effect, declaration.timeout
    if effect not in typing.get_args(Effect):
        yield f"{label}: `effect` is 'repeatable' or 'once', not {effect!r}"
    if declaration.retry is not None and not isinstance(declaration.retry, RetryPolicy):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may not type-check
        yield f"{label}: `retry` is a `durabletask.task.RetryPolicy`, not {declaration.retry!r}"
    if declaration.retry is not None and effect == "once":
        yield f'{label}: `retry` would act twice; leave it out, or the `effect="once"`'
    if declaration.reconcile is not None and effect != "once":
        yield f'{label}: `reconcile` is for `effect="once"`; what is repeatable is repeated'
    if not _is_duration(timeout):
        yield f"{label}: `timeout` is a number of seconds above 0 or a timedelta, not {timeout!r}"
    if not isinstance(declaration.approval, bool | Approval) and not callable(declaration.approval):
        yield f"{label}: `approval` is True, a predicate or an `Approval`, not {declaration.approval!r}"


def _is_duration(given: object) -> bool:
    return given is None or (isinstance(given, int | float) and not isinstance(given, bool) and given > 0)


def _approval_mistakes(approval: Approval | None, known: set[str], label: str) -> Iterator[str]:
    if approval is None:
        return
    if approval.when is not None:
        yield from _callback_mistakes(approval.when, known, f"{label}: the predicate of its approval")
    if not _is_duration(approval.timeout):
        yield f"{label}: `timeout` of its approval is a number of seconds above 0, not {approval.timeout!r}"
    if approval.on_timeout not in ("deny", "fail"):
        yield f"{label}: `on_timeout` of its approval is 'deny' or 'fail', not {approval.on_timeout!r}"


def _callback_mistakes(given: object, known: set[str], label: str, may_have_context: bool = False) -> Iterator[str]:
    """What is wrong with a function that is called with the tool's arguments by name."""
    if isinstance(given, str):
        yield f"{label} is the method {given!r}, which the agent does not have"
        return
    if not callable(given):
        yield f"{label} must be a function or the name of a method, not {given!r}"
        return
    contexts = _contexts_of(given) if may_have_context and not _is_unreadable(given) else []
    for parameter in inspect.signature(given).parameters.values():
        if parameter.kind is parameter.POSITIONAL_ONLY:
            yield f"{label} has the positional-only parameter `{parameter.name}`; it is called by name"
        elif (
            parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            and parameter.default is parameter.empty
            and parameter.name not in known
            and parameter.name not in contexts
        ):
            takes = ", ".join(sorted(known)) or "nothing"
            yield f"{label} asks for `{parameter.name}`, which the tool does not take; it takes {takes}"


def _is_unreadable(function: Callable[..., Any]) -> bool:
    try:
        _hints(function)
    except (NameError, TypeError):
        return True
    return False
