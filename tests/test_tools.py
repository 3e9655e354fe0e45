"""Tools: what the model is told of a function, what it may call it with, and how it is called."""

from __future__ import annotations

import contextvars
import enum
import functools
import inspect
import logging
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, Optional

import anyio
import attrs
import jsonschema  # type: ignore[import-untyped]
import pydantic
import pytest
from durabletask.task import RetryPolicy
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import Doc, TypedDict

from dafx_actors import AgentThread, Transcript, durable_agent
from dafx_actors._json.values import dump_value
from dafx_actors.errors import ConfigurationError, InvalidArguments, NotDone, ValueMismatch
from dafx_actors.models import ToolDefinition
from dafx_actors.tools import (
    AgentTool,
    Approval,
    Tool,
    ToolContext,
    ToolSource,
    as_tool,
    source_needs_approval,
    tool,
    tool_mistakes,
    tools_of,
)

if TYPE_CHECKING:
    from fractions import Fraction

pytestmark = pytest.mark.anyio
RETRY = RetryPolicy(first_retry_interval=timedelta(seconds=1), max_number_of_attempts=3)


class Unit(enum.Enum):
    CELSIUS = "C"
    FAHRENHEIT = "F"


@attrs.frozen
class Place:
    """Somewhere."""

    city: str
    country: str = "DE"


def a_context(**changed: Any) -> ToolContext:
    given: dict[str, Any] = {
        "thread": AgentThread("Weather", "t1"),
        "correlation_id": "c1",
        "call_id": "call_1",
        "idempotency_key": "key",
        "attempt": 1,
        "logger": logging.getLogger("tests"),
        "transcript": Transcript,
        "report": lambda _: None,
    }
    return ToolContext(**given | changed)


class Host:
    """An agent's instance: whatever has tools."""

    def __init__(self, *tools: Any) -> None:
        self.tools = tools


def hosted(*functions: Any) -> list[Any]:
    return tools_of(Host(*functions))


def only(function: Any) -> Tool:
    (made,) = hosted(function)
    assert isinstance(made, Tool)
    return made


# --- What the model is told ---------------------------------------------------------------------------------------


@tool
async def forecast(
    place: Place,
    days: Annotated[int, "How many days.", pydantic.Field(ge=1, le=7)] = 1,
    unit: Unit = Unit.CELSIUS,
    *,
    style: Literal["short", "long"] = "short",
    since: date | None = None,
    context: ToolContext,
    anything: Any = None,
) -> str:
    """Tell the weather.

    It is made up.

    Args:
        place: Where.
        days: Loses to the annotation.
        unit: Of the temperatures,
            on both sides.

    Returns:
        A sentence.

    Raises:
        LookupError: No such place.
    """
    return f"{place.city}: {days} {unit.value} {style} {since} {context.call_id} {anything}"


def test_the_schema_comes_from_signature_annotations_and_docstring() -> None:
    made = only(forecast)
    assert (made.name, made.description) == ("forecast", "Tell the weather.\n\nIt is made up.")
    assert made.parameters == {
        "$defs": {
            "Place": {
                "title": "Place",
                "description": "Somewhere.",
                "type": "object",
                "properties": {"city": {"type": "string"}, "country": {"type": "string", "default": "DE"}},
                "required": ["city"],
                "additionalProperties": False,
            },
            "Unit": {"title": "Unit", "type": "string", "enum": ["C", "F"]},
        },
        "type": "object",
        "properties": {
            "place": {"$ref": "#/$defs/Place", "description": "Where."},
            "days": {"type": "integer", "minimum": 1, "maximum": 7, "description": "How many days.", "default": 1},
            "unit": {
                "$ref": "#/$defs/Unit",
                "description": "Of the temperatures, on both sides.",
                "default": "C",
            },
            "style": {"type": "string", "enum": ["short", "long"], "default": "short"},
            "since": {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}], "default": None},
            "anything": {"default": None},
        },
        "required": ["place"],
        "additionalProperties": False,
    }
    jsonschema.Draft202012Validator.check_schema(dict(made.parameters))
    assert made.definition() == ToolDefinition(
        name="forecast", description=made.description, parameters=made.parameters, strict=False
    )


@pytest.mark.parametrize(
    "documented",
    [
        "Look up.\n\nArgs:\n    key: The key\n        of it.\n    more (str, optional): What: else.\nReturns:\n    x",
        "Look up.\n\nParameters\n---\nkey : str\n    The key\n    of it.\nmore\n    What: else.\n\nReturns\n---\nstr",
        "Look up.\n\n:param key: The key\n    of it.\n:param str more: What: else.\n:type key: str\n:returns: x",
    ],
    ids=["google", "numpy", "rest"],
)
def test_parameters_are_described_in_every_common_style(documented: str) -> None:
    def look_up(key: str, more: str = "") -> str:
        return key + more

    look_up.__doc__ = documented
    made = only(look_up)
    described = {name: field["description"] for name, field in made.parameters["properties"].items()}
    assert described == {"key": "The key of it.", "more": "What: else."}
    assert made.description == "Look up."


def test_what_is_no_section_about_parameters_stays_in_the_description() -> None:
    def look_up(key: Annotated[str, Doc("The key.")]) -> str:
        """Look up.

        Note:
            Slow.

        Notes
        -----
        Very.

        Example: `look_up("x")`
        """
        return key

    made = only(look_up)
    assert made.description.splitlines()[-1] == 'Example: `look_up("x")`'
    assert "Note:\n    Slow." in made.description
    assert "Very." in made.description
    assert made.parameters["properties"]["key"]["description"] == "The key."


def test_a_function_without_anything_takes_nothing_or_any_json() -> None:
    untyped: dict[str, Any] = {}
    exec("def untyped(a, b=1): return [a, b]\ndef nothing(): pass", untyped)
    made = only(untyped["untyped"])
    assert made.description == ""
    assert made.parameters["properties"] == {"a": {}, "b": {"default": 1}}
    assert made.bind({"a": {"x": [1]}}) == {"a": {"x": [1]}}
    assert only(untyped["nothing"]).parameters == {
        "type": "object",
        "properties": {},
        "additionalProperties": False,
    }


def test_names_that_pydantic_would_want_for_itself_may_be_parameters() -> None:
    def odd(schema: str, model_config: int, _private: bool, json: str, self_: int = 0) -> str:
        return schema

    given = {"schema": "s", "model_config": 1, "_private": True, "json": "j", "self_": 2}
    assert only(odd).bind(given) == given


def test_a_default_that_json_cannot_hold_is_not_told() -> None:
    marker = object()

    def ask(value: Any = marker) -> bool:
        return value is marker

    assert only(ask).parameters["properties"] == {"value": {}}


# --- What it may be called with -----------------------------------------------------------------------------------


FITS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"place": {"city": "Ulm"}}, {"place": Place("Ulm")}),
    (
        {"place": {"city": "Ulm", "country": "XX"}, "days": 7, "unit": "F", "since": "2025-01-02", "style": "long"},
        {
            "place": Place("Ulm", "XX"),
            "days": 7,
            "unit": Unit.FAHRENHEIT,
            "since": date(2025, 1, 2),
            "style": "long",
        },
    ),
    (
        {"place": {"city": "Ulm"}, "since": None, "anything": [1]},
        {"place": Place("Ulm"), "since": None, "anything": [1]},
    ),
]


@pytest.mark.parametrize(("arguments", "values"), FITS)
def test_arguments_become_the_values_of_their_annotations(arguments: Any, values: Any) -> None:
    assert only(forecast).bind(arguments) == values


MISTAKEN: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["`place`: is missing"]),
    ({"place": {}}, ["`place.city`: is missing"]),
    ({"place": "Ulm"}, ["`place`: input should be an object, found 'Ulm'"]),
    (
        {"place": {"city": 1, "zip": "x"}},
        ["`place.city`: input should be a valid string, found 1", "`place.zip`: is not known"],
    ),
    ({"place": {"city": "x"}, "days": "3"}, ["`days`: input should be a valid integer, found '3'"]),
    ({"place": {"city": "x"}, "days": True}, ["`days`: input should be a valid integer, found True"]),
    ({"place": {"city": "x"}, "days": 8}, ["`days`: input should be less than or equal to 7, found 8"]),
    ({"place": {"city": "x"}, "unit": "K"}, ["`unit`: input should be 'C' or 'F', found 'K'"]),
    ({"place": {"city": "x"}, "since": 5}, ["`since`: input should be a valid date, found 5"]),
    (
        {"day": 1, "context": {}, "style": "x"},
        [
            "`place`: is missing",
            "`style`: input should be 'short' or 'long', found 'x'",
            "`day`: is not known",
            "`context`: is not known",
        ],
    ),
]


@pytest.mark.parametrize(("arguments", "mistakes"), MISTAKEN)
def test_every_mistake_is_told_with_its_place(arguments: Any, mistakes: list[str]) -> None:
    with pytest.raises(InvalidArguments) as caught:
        only(forecast).bind(arguments)
    assert sorted(caught.value.mistakes) == sorted(mistakes)
    assert "forecast" in str(caught.value)
    assert all(mistake in str(caught.value) for mistake in mistakes)
    assert list(jsonschema.Draft202012Validator(only(forecast).parameters, format_checker=None).iter_errors(arguments))


class Area(TypedDict):
    places: list[Place]
    name: NotRequired[str]


def many_kinds(
    number: float = 0,
    count: Annotated[int, pydantic.Field(ge=0, le=5)] = 0,
    flag: bool = False,
    text: Annotated[str, pydantic.Field(min_length=1)] = "x",
    unit: Unit = Unit.CELSIUS,
    word: Literal["a", "b", 1] = "a",
    maybe: int | None = None,
    either: Place | str = "",
    pair: tuple[int, str] = (0, ""),
    area: Area | None = None,
    mapping: Mapping[str, list[int]] = {},
    anything: Any = None,
) -> None: ...


some_json = st.recursive(
    st.sampled_from([None, True, 0, 1, 1.0, 2.5, -1, 6, "", "a", "C", "Ulm", {}, {"city": "Ulm"}, {"city": 1}])
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["city", "country", "places", "name", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
MANY_KINDS = tools_of(Host(many_kinds))[0]


@given(st.dictionaries(st.sampled_from([*inspect.signature(many_kinds).parameters, "other"]), some_json, max_size=3))
@settings(max_examples=500)
def test_what_fits_is_exactly_what_fits_the_schema(arguments: dict[str, Any]) -> None:
    assert isinstance(MANY_KINDS, Tool)
    fits = jsonschema.Draft202012Validator(MANY_KINDS.parameters).is_valid(arguments)
    if fits:
        MANY_KINDS.bind(arguments)
    else:
        with pytest.raises(InvalidArguments):
            MANY_KINDS.bind(arguments)


class Level(enum.IntEnum):
    LOW = 0
    HIGH = 1


def choices(word: Literal["a", 1] = 1, level: Level = Level.LOW, yes: Literal[True] = True) -> None: ...


def test_true_is_not_one_of_some_numbers_nor_is_one_true() -> None:
    [either] = tools_of(Host(choices))
    assert isinstance(either, Tool)
    assert either.bind({"word": 1, "level": 1, "yes": True}) == {"word": 1, "level": Level.HIGH, "yes": True}
    for wrong in ({"word": True}, {"level": True}, {"level": False}, {"yes": 1}):
        with pytest.raises(InvalidArguments, match="is one of"):
            either.bind(wrong)
    assert either.parameters["properties"]["word"] == {"enum": ["a", 1], "default": 1}


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_json_does_not_have_are_refused(number: float) -> None:
    assert isinstance(MANY_KINDS, Tool)
    with pytest.raises(InvalidArguments, match="JSON cannot hold"):
        MANY_KINDS.bind({"number": number})


def test_arguments_that_are_nested_too_deeply_are_refused() -> None:
    """It was a RecursionError."""
    assert isinstance(MANY_KINDS, Tool)
    deep: Any = 1
    for _ in range(5_000):
        deep = [deep]
    with pytest.raises(InvalidArguments, match="JSON cannot hold"):
        MANY_KINDS.bind({"anything": deep})


def test_a_mistake_in_a_list_or_a_union_has_its_place() -> None:
    def visit(places: list[Place | str], pair: tuple[int, int] = (0, 0)) -> None: ...

    with pytest.raises(InvalidArguments) as caught:
        only(visit).bind({"places": ["Ulm", {"city": 1}, 5], "pair": [1]})
    assert caught.value.mistakes == (
        "`places[1].city`: input should be a valid string, found 1",
        "`places[1]`: input should be a valid string, found {'city': 1}",
        "`places[2]`: input should be an object, found 5, or input should be a valid string, found 5",
        "`pair[1]`: is missing",
    )


def test_what_a_users_validator_raises_is_a_mistake() -> None:
    def even(_: Any, __: Any, value: int) -> None:
        if value % 2:
            raise LookupError(f"{value} is odd")

    @attrs.frozen
    class Pair:
        left: int = attrs.field(validator=even)

    def take(pair: Any) -> None: ...

    take.__annotations__["pair"] = Pair
    with pytest.raises(InvalidArguments, match="`pair`: 3 is odd"):
        only(take).bind({"pair": {"left": 3}})


# --- Calling ------------------------------------------------------------------------------------------------------

SEEN: contextvars.ContextVar[str] = contextvars.ContextVar("SEEN", default="nothing")


async def test_an_async_tool_runs_on_the_loop_with_its_context_injected() -> None:
    result = await only(forecast).call(a_context(), {"place": {"city": "Ulm"}, "unit": "F"})
    assert result == "Ulm: 1 F short None call_1 None"


async def test_any_other_tool_runs_in_a_thread_with_the_callers_context_variables() -> None:
    def where(*, context: Optional[ToolContext]) -> dict[str, Any]:  # noqa: UP045 - users write it so
        assert context is not None
        return {"thread": threading.current_thread().name, "seen": SEEN.get(), "key": context.idempotency_key}

    SEEN.set("it")
    result = await only(where).call(a_context(), {})
    assert result["thread"] != threading.current_thread().name
    assert (result["seen"], result["key"]) == ("it", "key")


async def test_many_threads_run_at_once() -> None:
    together = threading.Barrier(60, timeout=20)

    def meet() -> int:
        return together.wait()

    made = only(meet)
    async with anyio.create_task_group() as group:
        for _ in range(60):
            group.start_soon(made.call, a_context(), {})


async def test_results_are_json_by_the_annotation() -> None:
    def place() -> Place:
        return Place("Ulm")

    def wrong() -> int:
        return "1"  # type: ignore[return-value] # pyright: ignore[reportReturnType]

    def unholdable() -> Any:
        return object()

    def nothing() -> None: ...

    assert await only(place).call(a_context(), {}) == {"city": "Ulm", "country": "DE"}
    assert await only(nothing).call(a_context(), {}) is None
    for function in wrong, unholdable:
        with pytest.raises(ValueMismatch):
            await only(function).call(a_context(), {})


async def test_what_a_tool_raises_is_raised_but_never_ends_the_worker() -> None:
    def leaves(how: Literal["exit", "stop", "key"]) -> None:
        if how == "exit":
            sys.exit(3)
        raise StopIteration if how == "stop" else KeyError("x")

    @tool
    async def leaves_the_loop() -> None:
        sys.exit("bye")

    made = only(leaves)
    with pytest.raises(RuntimeError, match=r"sys.exit\(3\)"):
        await made.call(a_context(), {"how": "exit"})
    with pytest.raises(RuntimeError, match="StopIteration"):
        await made.call(a_context(), {"how": "stop"})
    with pytest.raises(KeyError):
        await made.call(a_context(), {"how": "key"})
    with pytest.raises(RuntimeError, match=r"sys.exit\('bye'\)"):
        await only(leaves_the_loop).call(a_context(), {})


async def test_invalid_arguments_are_found_before_anything_runs() -> None:
    ran: list[int] = []

    @tool(effect="once", reconcile=lambda number: ran.append(number))
    def act(number: int) -> None:
        ran.append(number)

    made = only(act)
    for call in made.call, made.call_reconcile:
        with pytest.raises(InvalidArguments):
            await call(a_context(), {"number": "1"})
    assert ran == []


@pytest.mark.parametrize("limit", [0.05, timedelta(milliseconds=50)])
async def test_a_tool_that_takes_too_long_is_a_timeout(limit: Any) -> None:
    stopped = threading.Event()
    left = threading.Event()

    @tool(timeout=limit)
    async def waits() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            stopped.set()

    @tool(timeout=limit)
    def blocks() -> None:
        assert left.wait(20)

    for function in waits, blocks:
        started = time.monotonic()
        with pytest.raises(TimeoutError, match=f"{function.__name__} did not finish within 0.05 s"):
            await only(function).call(a_context(), {})
        assert time.monotonic() - started < 10
    assert stopped.is_set()
    left.set()


async def test_a_function_that_returns_an_awaitable_is_awaited() -> None:
    async def inner(number: int) -> int:
        return number

    def outer(number: int) -> Any:
        return inner(number)

    class Doubler:
        """Doubles."""

        async def __call__(self, number: int) -> int:
            return 2 * number

    assert await only(outer).call(a_context(), {"number": 1}) == 1
    assert await only(tool(name="twice")(Doubler())).call(a_context(), {"number": 2}) == 4
    bound = tool(name="three")(functools.partial(inner, number=3))
    assert await only(bound).call(a_context(), {}) == 3


def test_the_context_reads_the_transcript_once_and_when_asked() -> None:
    reads: list[int] = []
    reported: list[Any] = []

    def read() -> Transcript:
        reads.append(1)
        return Transcript()

    context = a_context(transcript=read, report=reported.append)
    assert reads == []
    assert context.transcript is context.transcript
    assert reads == [1]
    context.report_progress({"done": Place("Ulm")})
    assert reported == [{"done": {"city": "Ulm", "country": "DE"}}]
    with pytest.raises(ValueMismatch):
        context.report_progress(object())
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        context.attempt = 2  # type: ignore[misc] # pyright: ignore[reportAttributeAccessIssue]


# --- Approval and reconciliation ----------------------------------------------------------------------------------


class Bank:
    limit = 100

    def is_large(self, amount: int, currency: str) -> bool:
        """Sees defaults as well."""
        return currency != "EUR" or amount > self.limit

    async def is_odd(self, amount: int) -> bool:
        return amount % 2 == 1

    @tool(approval=is_large)
    def pay(self, amount: int, currency: str = "EUR") -> str:
        return f"{amount} {currency}"

    @tool(approval=Approval(when="is_odd", timeout=timedelta(days=2), on_timeout="fail"))
    def lend(self, amount: int) -> str:
        return f"{amount}"

    @tool(approval=True)
    def close(self) -> None: ...

    def what_became_of(self, amount: int, context: ToolContext, note: str) -> str:
        if amount == 0:
            raise NotDone
        return f"{amount} {context.idempotency_key} {note}"

    @tool(effect="once", reconcile=what_became_of, parallel=False)
    def send(self, amount: int, note: str = "-") -> str:
        return f"{amount} {note}"

    @tool(effect="once", reconcile="found_out")
    def book(self, amount: int) -> str:
        return f"{amount}"

    async def found_out(self) -> Place:
        return Place("found")


class CarefulBank(Bank):
    limit = 10

    def is_large(self, amount: int, currency: str) -> bool:
        return super().is_large(amount, currency) or amount == 1


def of(agent: object, name: str) -> Any:
    return next(each for each in tools_of(agent) if each.name == name)


@pytest.mark.parametrize(
    ("agent", "name", "arguments", "needed"),
    [
        (Bank(), "pay", {"amount": 100}, False),
        (Bank(), "pay", {"amount": 101}, True),
        (Bank(), "pay", {"amount": 1, "currency": "USD"}, True),
        (CarefulBank(), "pay", {"amount": 11}, True),
        (CarefulBank(), "pay", {"amount": 1}, True),
        (CarefulBank(), "pay", {"amount": 2}, False),
        (Bank(), "lend", {"amount": 3}, True),
        (Bank(), "lend", {"amount": 4}, False),
        (Bank(), "close", {}, True),
        (Bank(), "send", {"amount": 4}, False),
    ],
)
async def test_calls_need_approval_by_their_arguments(agent: Any, name: str, arguments: Any, needed: bool) -> None:
    assert await of(agent, name).needs_approval(arguments) is needed


async def test_an_approval_is_never_passed_by_mistake() -> None:
    def forgets(amount: int) -> bool:
        if amount > 5:
            return True
        return None  # type: ignore[return-value] # pyright: ignore[reportReturnType]

    def fails(amount: int) -> bool:
        raise LookupError(amount)

    for predicate, error in (forgets, TypeError), (fails, LookupError):

        @tool(approval=predicate)
        def pay(amount: int) -> None: ...

        with pytest.raises(error):
            await only(pay).needs_approval({"amount": 1})
        with pytest.raises(InvalidArguments):
            await only(pay).needs_approval({"amount": "1"})


def test_the_deadline_of_an_approval_is_in_seconds() -> None:
    approval = of(Bank(), "lend").approval
    assert (approval.timeout, approval.on_timeout) == (172800.0, "fail")


async def test_reconcile_gets_what_it_asks_for() -> None:
    bank = Bank()
    assert await of(bank, "send").call_reconcile(a_context(), {"amount": 2}) == "2 key -"
    assert await of(bank, "book").call_reconcile(a_context(), {"amount": 2}) == {"city": "found", "country": "DE"}
    with pytest.raises(NotDone):
        await of(bank, "send").call_reconcile(a_context(), {"amount": 0})
    with pytest.raises(TypeError, match="has no `reconcile`"):
        await of(bank, "pay").call_reconcile(a_context(), {"amount": 0})


# --- Which tools an agent has -------------------------------------------------------------------------------------


class Base:
    @tool
    def first(self) -> str:
        return "base"

    @tool(name="renamed", description="Said.", timeout=5, retry=RETRY)
    def second(self) -> str:
        return "base"

    @tool
    def dropped(self) -> str:
        return "base"


@durable_agent
class Derived(Base):
    """Has tools."""

    instructions = "x"
    dropped = None  # type: ignore[assignment] # pyright: ignore[reportAssignmentType]

    def __init__(self) -> None:
        self.tools = [forecast, as_tool("Other")]

    def first(self) -> str:
        return "derived"

    @tool
    @staticmethod
    def third() -> str:
        return "static"

    @classmethod
    @tool
    def fourth(cls) -> str:
        return cls.__name__


async def test_methods_come_first_in_order_of_definition_then_what_is_listed() -> None:
    agent = Derived()
    made = tools_of(agent)
    assert [each.name for each in made] == ["first", "renamed", "third", "fourth", "forecast", "Other"]
    bound = [each for each in made if isinstance(each, Tool)][:4]
    assert [await each.call(a_context(), {}) for each in bound] == ["derived", "base", "static", "Derived"]
    assert (bound[1].description, bound[1].timeout, bound[1].retry) == (
        "Said.",
        5,
        RETRY,
    )
    assert tool_mistakes(agent) == tool_mistakes(Derived) == []


def test_the_decorator_hands_back_what_it_was_given() -> None:
    def function() -> int:
        return 1

    assert tool(function) is function
    assert tool(name="x")(function) is function
    assert Base().first() == "base"


def test_an_agent_is_a_tool_of_another() -> None:
    assert (
        as_tool(Derived) == as_tool(Derived()) == AgentTool(name="Derived", description="Has tools.", agent="Derived")
    )
    named = as_tool("Derived", name="ask", description="Asks.", new_thread=False)
    assert (named.name, named.description, named.agent, named.new_thread) == ("ask", "Asks.", "Derived", False)
    assert named.definition().parameters["required"] == ["request"]
    assert named.request({"request": "x"}) == "x"
    with pytest.raises(InvalidArguments, match="`request`: is missing"):
        named.request({"question": "x"})
    with pytest.raises(ConfigurationError, match="was its class decorated"):
        as_tool(Base)


@attrs.frozen
class Source:
    """A source that is all in memory."""

    name: str
    approval: Approval | None = None

    async def tools(self) -> list[ToolDefinition]:
        return []

    async def call(self, name: str, arguments: Mapping[str, Any], context: ToolContext) -> Any:
        return [name, arguments, context.call_id]

    async def aclose(self) -> None: ...


async def test_a_source_is_a_tool_whose_approval_sees_name_and_arguments() -> None:
    def removes(name: str, arguments: Mapping[str, Any]) -> bool:
        return name == "remove" and "force" in arguments

    source = Source("files", Approval(when=removes))
    assert isinstance(source, ToolSource)
    assert hosted(source) == [source]
    assert await source_needs_approval(source, "remove", {"force": True})
    assert not await source_needs_approval(source, "remove", {})
    assert not await source_needs_approval(Source("x"), "remove", {})
    assert await source_needs_approval(Source("x", Approval()), "list", {})


# --- Mistakes -----------------------------------------------------------------------------------------------------


def stars(*args: int, **kwargs: int) -> None: ...


def by_position(a: int, /) -> None: ...


def no_schema(a: Callable[[], Awaitable[int]], b: threading.Thread) -> None: ...


def invisible(a: Fraction) -> None: ...


def generates() -> Iterator[int]:
    yield 1


async def generates_later() -> AsyncIterator[int]:
    yield 1


def fine(amount: int) -> None: ...


def bad_name(a: int) -> None: ...


def asks(amount: int, colour: str) -> bool:
    return bool(colour)


def declared(**how: Any) -> Any:
    def function(amount: int) -> None: ...

    return tool(name="act", **how)(function)


anonymous: Any = lambda: 1  # noqa: E731 - it is what is tested


WRONG: list[tuple[list[Any], list[str]]] = [
    ([fine, fine], ["two tools are called 'fine'"]),
    ([fine, as_tool("fine")], ["two tools are called 'fine'"]),
    ([Source("s"), Source("s")], ["two tool sources are called 's'"]),
    ([stars], ["parameter `*args: 'int'` has no name", "parameter `**kwargs: 'int'` has no names"]),
    ([by_position], ["parameter `a: 'int'` is positional-only"]),
    (
        [no_schema],
        ["parameter `a`: no JSON schema can be made of", "parameter `b`: no JSON schema can be made of Thread"],
    ),
    ([invisible], ["name 'Fraction' is not defined; import it outside `if TYPE_CHECKING:`"]),
    ([generates, generates_later], ["'generates' is a generator", "'generates_later' is a generator"]),
    ([anonymous], ["a lambda cannot be a tool"]),
    ([tool(name="a b")(bad_name)], ["'a b' cannot be a tool's name"]),
    ([as_tool("x" * 65)], ["cannot be a tool's name"]),
    ([tool(name="")(lambda: 1)], ["'' cannot be a tool's name"]),
    ([5, "fine"], ["`tools` has 5, which is no tool", "`tools` has 'fine', which is no tool"]),
    ([Derived], ["an agent is given as `as_tool(...)`"]),
    ([Derived()], ["give it as `as_tool(...)`"]),
    ([Place], ["has the class Place, which is no tool"]),
    ([declared(effect="twice")], ["`effect` is 'repeatable', 'once' or 'none', not 'twice'"]),
    ([declared(effect="once", retry=RETRY)], ["`retry` would act twice"]),
    ([declared(retry=3)], ["`retry` is a `durabletask.task.RetryPolicy`, not 3"]),
    ([declared(reconcile=fine)], ['`reconcile` is for `effect="once"`']),
    ([declared(effect="once", reconcile="lost")], ["`reconcile` is the method 'lost', which the agent does not have"]),
    ([declared(effect="once", reconcile=asks)], ["`reconcile` asks for `colour`, which the tool does not take"]),
    ([declared(effect="once", reconcile=5)], ["`reconcile` must be a function or the name of a method, not 5"]),
    ([declared(approval=asks)], ["its approval asks for `colour`, which the tool does not take; it takes amount"]),
    ([declared(approval=Approval(when="lost"))], ["its approval is the method 'lost', which the agent does not have"]),
    ([declared(approval=by_position)], ["has the positional-only parameter `a`"]),
    ([declared(approval="yes")], ["`approval` is True, a predicate or an `Approval`, not 'yes'"]),
    ([declared(approval=Approval(timeout=-1))], ["`timeout` of its approval is a number of seconds above 0"]),
    ([declared(approval=Approval(on_timeout="wait"))], ["`on_timeout` of its approval is 'deny' or 'fail'"]),  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    ([declared(timeout=0)], ["`timeout` is a number of seconds above 0 or a timedelta, not 0"]),
    ([declared(timeout="5")], ["`timeout` is a number of seconds above 0 or a timedelta, not '5'"]),
    ([Source("s", Approval(when=asks))], ["asks for `amount`", "asks for `colour`"]),
]


@pytest.mark.parametrize(("listed", "mistakes"), WRONG, ids=range(len(WRONG)))
def test_mistakes_are_found_all_at_once(listed: list[Any], mistakes: list[str]) -> None:
    found = tool_mistakes(Host(*listed))
    assert len(found) == len(mistakes)
    for sentence, expected in zip(found, mistakes, strict=True):
        assert expected in sentence
        assert sentence.startswith("Host: ")
    with pytest.raises(ConfigurationError) as caught:
        hosted(*listed)
    assert list(caught.value.mistakes) == found


def test_mistakes_of_methods_are_found_in_the_class_already() -> None:
    class Agent:
        tools = "none"

        @tool(effect="once", reconcile="missing")
        def act(self, amount: int) -> None: ...

        @tool(approval=lambda colour: bool(colour))
        def paint(self, amount: int) -> None: ...

    assert tool_mistakes(Agent) == tool_mistakes(Agent())
    assert [mistake.split(": ", 1)[1] for mistake in tool_mistakes(Agent)] == [
        "tool 'act': `reconcile` is the method 'missing', which the agent does not have",
        "tool 'paint': the predicate of its approval asks for `colour`, which the tool does not take; it takes amount",
        "`tools` must be a list of tools, not 'none'",
    ]


def test_only_a_function_can_be_decorated() -> None:
    nothing: Any = 5
    with pytest.raises(ConfigurationError, match="decorates a function, not 5"):
        tool(nothing)


# --- Forms of values ----------------------------------------------------------------------------------------------


class Upload(pydantic.BaseModel):
    raw: bytes
    ready: pydantic.Base64Bytes = b""
    shown: Annotated[bytes, pydantic.PlainSerializer(bytes.hex)] = b"\xff"
    told: bytes = b"\xff"

    @pydantic.field_serializer("told")
    def tell(self, told: bytes) -> str:
        return told.hex()

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def size(self) -> int:
        return len(self.raw)


async def test_bytes_are_base64_in_arguments_and_results() -> None:
    def echo(data: bytes, inside: Upload, many: dict[int, bytes]) -> dict[int, bytes]:
        seen.append((data, inside.raw, inside.ready, many))
        return {1: data}

    seen: list[Any] = []
    made = only(echo)
    arguments = {"data": "/w==", "inside": {"raw": "YQ", "ready": "Yg=="}, "many": {"7": "_w"}}
    assert await made.call(a_context(), arguments) == {"1": "/w=="}
    assert seen == [(b"\xff", b"a", b"b", {7: b"\xff"})]
    whole = {"raw": "YQ==", "ready": "Yg==", "shown": "ff", "told": "ff", "size": 1}
    assert dump_value([Upload(raw=b"a", ready=b"Yg==")]) == [whole]
    with pytest.raises(InvalidArguments, match="`data`: expected bytes in base64"):
        made.bind({**arguments, "data": "no base64!"})
    assert made.parameters["properties"]["data"]["contentEncoding"] == "base64"


async def test_times_are_given_to_a_tool_as_the_model_wrote_them() -> None:
    def echo(at: datetime) -> datetime:
        return at

    for text in ("2024-07-01T15:00:00", "2024-07-01T15:00:00+02:00"):
        assert await only(echo).call(a_context(), {"at": text}) == text


class Alien:
    pass


def abducts() -> Alien | None:
    raise AssertionError("it would act")


def imagines() -> list[complex]:
    raise AssertionError("likewise")


@pytest.mark.parametrize("function", [abducts, imagines])
def test_a_tool_whose_result_could_not_be_kept_is_refused_before_it_acts(function: Callable[..., Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"returns `.*`, of which JSON can hold no value"):
        only(function)


async def test_mistakes_in_arguments_are_told_in_a_readable_length() -> None:
    def act(numbers: list[int]) -> None: ...

    for arguments in ({"numbers": ["x" * 10_000] * 1000}, {f"{n}{'x' * 10_000}": n for n in range(1000)}):
        with pytest.raises(InvalidArguments) as caught:
            only(act).bind(arguments)
        assert len(str(caught.value)) < 10_000
