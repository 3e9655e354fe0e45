"""From an agent to its tools, and what is wrong with them."""

from __future__ import annotations

import functools
import inspect
import re
import typing
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias, cast

import attrs
from durabletask.task import RetryPolicy

from dafx_actors.errors import ConfigurationError
from dafx_actors.ids import AGENT_DEFINITION
from dafx_actors.tools import _docstrings
from dafx_actors.tools._declared import DECLARATION, Approval, Declaration, Effect, Told
from dafx_actors.tools._functions import callback_mistakes, kind_mistake, signature_of, underlying
from dafx_actors.tools._hosted import AgentTool, Tool, ToolSource

AnyTool: TypeAlias = Tool | AgentTool | ToolSource
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def tools_of(agent: object) -> list[AnyTool]:
    """The tools of an agent's instance, in order of definition: its methods, then what its `tools` lists.

    Raises:
        ConfigurationError: Lists everything that is wrong with them.
    """
    tools, mistakes = _collected(agent)
    if mistakes:
        raise ConfigurationError(mistakes)
    return tools


def tool_mistakes(agent: object) -> list[str]:
    """List the mistakes in the tools of an agent's instance or class, a sentence each.

    Makes their schemas, for which pydantic is imported.
    """
    return _collected(agent)[1]


def _collected(agent: object) -> tuple[list[AnyTool], list[str]]:
    cls = agent if isinstance(agent, type) else type(agent)
    label = cls.__qualname__
    tools: list[AnyTool] = []
    mistakes: list[str] = []

    def add(made: AnyTool | None, wrong: Iterable[str]) -> None:
        mistakes.extend(f"{label}: {mistake}" for mistake in wrong)
        if made is not None:
            tools.append(made)

    for attribute, declaration in _declared(cls).items():
        add(*_made(_bound(agent, attribute), attribute, declaration, agent))
    listed, wrong = _listed(agent)
    add(None, wrong)
    for entry in listed:
        add(*_made_of(entry))
    add(None, _same_names(tools))
    return tools, mistakes


def _declared(cls: type) -> dict[str, Declaration]:
    """The decorated methods, inherited ones first. One that overrides another needs no decorator of its own."""
    declared: dict[str, Declaration] = {}
    for base in reversed(cls.__mro__):
        for attribute, value in vars(base).items():
            declaration = getattr(value, DECLARATION, None) or getattr(
                getattr(value, "__func__", None), DECLARATION, None
            )
            if isinstance(declaration, Declaration):
                declared[attribute] = declaration
            elif attribute in declared and value is None:
                del declared[attribute]  # as with `__hash__ = None`
    return declared


def _bound(agent: object, attribute: str) -> Any:
    """A method, as it can be called; of a class, as if there were an instance."""
    if not isinstance(agent, type):
        return getattr(agent, attribute)
    attribute_value = inspect.getattr_static(agent, attribute)
    return attribute_value.__get__(object(), agent) if hasattr(attribute_value, "__get__") else attribute_value


def _listed(agent: object) -> tuple[list[object], list[str]]:
    entries = getattr(agent, "tools", ())
    if isinstance(entries, property | functools.cached_property):  # of a class; it is looked at again when it is added
        return [], []
    if not isinstance(entries, list | tuple):
        return [], [f"`tools` must be a list of tools, not {entries!r}"]
    return list(cast("list[object]", entries)), []


def _made_of(entry: object) -> tuple[AnyTool | None, list[str]]:
    """The tool that an entry of `tools` stands for."""
    if isinstance(entry, Tool | AgentTool):
        return entry, _name_mistakes(entry.name)
    if isinstance(entry, type):
        hint = "; an agent is given as `as_tool(...)`" if hasattr(entry, AGENT_DEFINITION) else ""
        return None, [f"`tools` has the class {entry.__qualname__}, which is no tool{hint}"]
    if hasattr(entry, AGENT_DEFINITION):
        return None, [f"`tools` has an agent, {entry!r}; give it as `as_tool(...)`"]
    if isinstance(entry, ToolSource):
        return entry, list(_approval_mistakes(entry.approval, {"name", "arguments"}, f"tool source {entry.name!r}"))
    if not callable(entry):
        return None, [f"`tools` has {entry!r}, which is no tool; list functions, `as_tool(...)` or MCP servers"]
    declaration = getattr(entry, DECLARATION, None)
    name: str = getattr(entry, "__name__", type(entry).__name__)
    return _made(entry, name, declaration if isinstance(declaration, Declaration) else Declaration(), None)


def _same_names(tools: Iterable[AnyTool]) -> list[str]:
    names = [each.name for each in tools if isinstance(each, Tool | AgentTool)]
    sources = [each.name for each in tools if not isinstance(each, Tool | AgentTool)]
    repeated = [f"two tools are called {name!r}" for name in dict.fromkeys(names) if names.count(name) > 1]
    return repeated + [
        f"two tool sources are called {name!r}" for name in dict.fromkeys(sources) if sources.count(name) > 1
    ]


def _made(
    function: Any, attribute: str, declaration: Declaration, agent: object | None
) -> tuple[Tool | None, list[str]]:
    name = attribute if declaration.name is None else declaration.name
    label = f"tool {name!r}"
    mistakes = [*_name_mistakes(name), *_declaration_mistakes(declaration, label)]
    if wrong := kind_mistake(function):
        return None, [*mistakes, f"{label} {wrong}"]
    known = _docstrings.annotations_of(inspect.signature(function).parameters.values())
    documented = _docstrings.read(inspect.getdoc(underlying(function)), known)
    signature, wrongs = signature_of(function, documented.parameters, label)
    mistakes += wrongs
    if signature is None:
        return None, mistakes
    parameters = set(signature.arguments.names)
    approval = _approval(declaration.approval, agent)
    reconcile = _resolved(declaration.reconcile, agent)
    mistakes += _approval_mistakes(approval, parameters, label)
    if declaration.reconcile is not None:
        mistakes += callback_mistakes(reconcile, parameters, f"{label}: `reconcile`", may_have_context=True)
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
        max_result_bytes=declaration.max_result_bytes,
        errors=declaration.errors,
        signature=signature,
    ), []


def _approval(approval: object, agent: object | None) -> Approval | None:
    if isinstance(approval, Approval):
        return attrs.evolve(approval, when=_resolved(approval.when, agent))
    if callable(approval):
        return Approval(when=_resolved(approval, agent))
    return Approval() if approval else None


def _resolved(rule: Any, agent: object | None) -> Any:
    """A method that was given by name, or as the function in the class, bound to the agent; an unknown name is left."""
    if rule is None or agent is None:
        return rule
    name = rule if isinstance(rule, str) else _name_in(agent, rule)
    return _bound(agent, name) if name is not None and hasattr(agent, name) else rule


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


def _declaration_mistakes(declaration: Declaration, label: str) -> Iterator[str]:
    effect, timeout = declaration.effect, declaration.timeout
    if effect not in typing.get_args(Effect):
        yield f"{label}: `effect` is 'repeatable', 'once' or 'none', not {effect!r}"
    if declaration.retry is not None and not isinstance(declaration.retry, RetryPolicy):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may not type-check
        yield f"{label}: `retry` is a `durabletask.task.RetryPolicy`, not {declaration.retry!r}"
    if declaration.retry is not None and effect == "once":
        yield f'{label}: `retry` would act twice; leave it out, or the `effect="once"`'
    if declaration.reconcile is not None and effect != "once":
        yield f'{label}: `reconcile` is for `effect="once"`; what is repeatable is repeated'
    if not _is_duration(timeout):
        yield f"{label}: `timeout` is a number of seconds above 0 or a timedelta, not {timeout!r}"
    if not is_size(declaration.max_result_bytes):
        yield f"{label}: `max_result_bytes` is a whole number above 0, not {declaration.max_result_bytes!r}"
    if declaration.errors not in typing.get_args(Told):
        yield f"{label}: `errors` is 'text' or 'type', not {declaration.errors!r}"
    if not isinstance(declaration.approval, bool | Approval) and not callable(declaration.approval):
        yield f"{label}: `approval` is True, a predicate or an `Approval`, not {declaration.approval!r}"


def _is_duration(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and value > 0)


def is_size(value: object) -> bool:
    """Say whether a value is a number of bytes, or None."""
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0)


def _approval_mistakes(approval: Approval | None, parameters: set[str], label: str) -> Iterator[str]:
    if approval is None:
        return
    if approval.when is not None:
        yield from callback_mistakes(approval.when, parameters, f"{label}: the predicate of its approval")
    if not _is_duration(approval.timeout):
        yield f"{label}: `timeout` of its approval is a number of seconds above 0, not {approval.timeout!r}"
    if approval.on_timeout not in ("deny", "fail"):
        yield f"{label}: `on_timeout` of its approval is 'deny' or 'fail', not {approval.on_timeout!r}"
