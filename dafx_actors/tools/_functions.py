"""Functions as tools: what they take, and how they are called."""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import attrs

from dafx_actors._json.values import arguments_of, dump_value, json_schema, returned_by, unreadable
from dafx_actors._raised import safe
from dafx_actors.errors import ValueMismatch
from dafx_actors.tools._declared import ToolContext

if TYPE_CHECKING:
    from dafx_actors._json.schemas import Arguments


@attrs.frozen
class Signature:
    """The parameters of a tool: those that the model fills, and those that are injected."""

    arguments: Arguments
    defaults: Mapping[str, Any]
    contexts: tuple[str, ...]
    """The parameters that get the `ToolContext`."""


def signature_of(
    function: Callable[..., Any], descriptions: Mapping[str, str], label: str
) -> tuple[Signature | None, list[str]]:
    try:
        hints = hints_of(function)
    except NameError as error:
        where = "import it outside `if TYPE_CHECKING:`, and define it at the top of a module"
        return None, [f"{label}: its annotations cannot be read, since {error}; {where}"]
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
        elif is_context(hint):
            contexts.append(parameter.name)
        elif wrong := _no_schema(hint):
            mistakes.append(f"{label}: parameter `{parameter.name}`: {wrong}")
        else:
            kinds[parameter.name] = hint
            if parameter.default is not parameter.empty:
                defaults[parameter.name] = parameter.default
    if (unknown := unreadable(returned_by(underlying(function)))) is not None:
        # It would act, and its result could not be kept.
        mistakes.append(f"{label}: returns `{unknown}`, of which JSON can hold no value; return what it can hold")
    if mistakes:
        return None, mistakes
    arguments = arguments_of(kinds, frozenset(kinds.keys() - defaults.keys()), descriptions)
    for name, default in defaults.items():
        with contextlib.suppress(ValueMismatch):  # then the model knows only that there is one
            arguments.schema["properties"][name]["default"] = dump_value(default)
    return Signature(arguments, defaults, tuple(contexts)), []


_UNNAMED: Mapping[Any, str] = {
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


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    return typing.get_type_hints(underlying(function), include_extras=True)


def underlying(function: Callable[..., Any]) -> Any:
    """The function that has the annotations and the docstring: of a method, a partial, or an object with `__call__`."""
    while isinstance(function, functools.partial | types.MethodType):
        function = function.func if isinstance(function, functools.partial) else function.__func__
    return function if inspect.isroutine(function) else type(function).__call__


def is_context(hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return is_context(typing.get_args(hint)[0])
    if origin is typing.Union or origin is types.UnionType:
        return any(is_context(member) for member in typing.get_args(hint))
    return hint is ToolContext


def contexts_of(function: Callable[..., Any]) -> list[str]:
    return [name for name, hint in hints_of(function).items() if name != "return" and is_context(hint)]


# --- Calling ------------------------------------------------------------------------------------------------------


async def result_of(function: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    try:
        if _is_async(function):
            return await function(**values)
        # A limiter of its own for each call: how many run at once is the worker's business. anyio's default of 40
        # would be a second bound, and threads that were left to themselves would use it up.
        limiter = anyio.CapacityLimiter(1)
        bound = functools.partial(_on_a_thread, function, values)
        made = await anyio.to_thread.run_sync(bound, abandon_on_cancel=True, limiter=limiter)
        return await made if inspect.isawaitable(made) else made
    except SystemExit as error:
        raise RuntimeError(f"it called `sys.exit({error.code!r})`") from error  # that would end the worker


def _on_a_thread(function: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    try:
        return function(**values)
    except GeneratorExit as error:
        # Out of a future, Python would take it for the end of those that await that, and close them.
        failed = error
    raise safe(failed)


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(underlying(function))


async def asks(predicate: Callable[..., Any] | str, values: Mapping[str, Any]) -> bool:
    if isinstance(predicate, str):
        raise TypeError(f"the approval's predicate {predicate!r} was not bound to an agent")
    answer: object = predicate(**asked_for(predicate, values))
    if inspect.isawaitable(answer):
        answer = await answer
    if not isinstance(answer, bool):
        # None, of a forgotten `return`, would let every call pass.
        raise TypeError(f"the approval's predicate returned {answer!r}; return True or False")
    return answer


def asked_for(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Pick of `values` those that the function has parameters for."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(values)
    return {name: value for name, value in values.items() if name in parameters}


# --- Mistakes -----------------------------------------------------------------------------------------------------


def kind_mistake(function: object) -> str | None:
    if not callable(function):
        return f"must be a method, not {function!r}"
    if isinstance(function, type):
        return "is a class; decorate a function"
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        return "is a generator; return a list, and report what comes in between by `ToolContext.report_progress`"
    return None


def callback_mistakes(
    callback: object, parameters: set[str], label: str, may_have_context: bool = False
) -> Iterator[str]:
    """Say what is wrong with a function that is called with the tool's arguments by name; None if nothing is."""
    if isinstance(callback, str):
        yield f"{label} is the method {callback!r}, which the agent does not have"
        return
    if not callable(callback):
        yield f"{label} must be a function or the name of a method, not {callback!r}"
        return
    contexts = contexts_of(callback) if may_have_context and not _is_unreadable(callback) else []
    for parameter in inspect.signature(callback).parameters.values():
        if parameter.kind is parameter.POSITIONAL_ONLY:
            yield f"{label} has the positional-only parameter `{parameter.name}`; it is called by name"
        elif (
            parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            and parameter.default is parameter.empty
            and parameter.name not in parameters
            and parameter.name not in contexts
        ):
            takes = ", ".join(sorted(parameters)) or "nothing"
            yield f"{label} asks for `{parameter.name}`, which the tool does not take; it takes {takes}"


def _is_unreadable(function: Callable[..., Any]) -> bool:
    try:
        hints_of(function)
    except (NameError, TypeError):
        return True
    return False
