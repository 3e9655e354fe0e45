"""Values of user code: what fits comes back as it was, what does not is an error that says why."""

from __future__ import annotations

import collections
import dataclasses
import enum
import json
import pathlib
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from ipaddress import IPv4Address
from typing import Annotated, Any, Generic, Literal, Never, NewType, Optional, Required, TypeVar
from uuid import UUID

import attrs
import jsonschema  # type: ignore[import-untyped]  # its stubs are a package of their own
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import TypedDict

from dafx_actors import AgentRunResponse, AgentThread, ChatMessage
from dafx_actors._json.values import (
    dump_as,
    dump_value,
    json_schema,
    load_value,
    parameters_of,
    returned_by,
    unreadable,
)
from dafx_actors.errors import ValueMismatch
from dafx_actors.transcript import UsageStats

NOON = datetime(2025, 1, 2, 12, tzinfo=UTC)
OSLO = timezone(timedelta(hours=2))
T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@attrs.frozen
class Point:
    x: int
    y: int = 0


@attrs.frozen
class Shape:
    """A figure."""

    corners: list[Point]
    colour: Colour = Colour.RED
    centre: Point | None = None
    tags: dict[str, list[str]] = attrs.field(factory=dict[str, "list[str]"])
    name: Annotated[str, pydantic.Field(description="What people call it")] = "?"


@attrs.frozen
class Box(Generic[T]):
    inside: T


def is_even(_: Any, __: Any, value: int) -> None:
    if value % 2:
        raise LookupError("odd")


@attrs.frozen
class Even:
    number: int = attrs.field(validator=is_even)


@dataclasses.dataclass(frozen=True)
class Line:
    start: Point
    end: Point
    label: str = ""


@dataclasses.dataclass
class Segment:
    length: int
    tags: list[str] = dataclasses.field(default_factory=list[str])


class Size(TypedDict):
    width: int
    height: float


class Person(pydantic.BaseModel):
    name: str
    born: date | None = None


@attrs.frozen
class Secret:
    _code: int
    tags: list[str] = attrs.field(factory=list[str])


@dataclasses.dataclass
class Node:
    at: Point
    next: list[Node] = dataclasses.field(default_factory=list)


class Route(TypedDict, total=False):
    start: Required[Point]
    note: Annotated[str, "What to tell the driver"]


class Trip(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    at: Point
    back: Trip | None = None


@dataclasses.dataclass
class Loose:
    words: list[str] = dataclasses.field(default_factory=list[str])


@dataclasses.dataclass
class Bound:
    pages: list[int] = dataclasses.field(default_factory=list[int])


class Level(enum.IntEnum):
    HIGH = 3


@dataclasses.dataclass
class Photo:
    raw: bytes


class Album(pydantic.BaseModel):
    cover: bytes
    pages: list[Photo] = []
    title: str | None = None


class Scalar:
    """A number as numpy has them."""

    dtype = "int64"

    def __init__(self, number: int) -> None:
        self.number = number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scalar) and self.number == other.number

    def __hash__(self) -> int:
        return hash(self.number)

    def __repr__(self) -> str:  # without an address: it is part of names of tests, which are the same in all processes
        return f"Scalar({self.number})"

    def item(self) -> int:
        return self.number


class Array:
    """An array as numpy has them."""

    __array_interface__ = None
    ndim = 1

    def __init__(self, *items: Scalar) -> None:
        self.items = items

    def tolist(self) -> list[Scalar]:
        return list(self.items)


UserId = NewType("UserId", str)
ANSWER = AgentRunResponse[None](
    messages=(ChatMessage("assistant", '{"x": 1}'),),
    usage=UsageStats(1, 2, 3),
    correlation_id="c",
    thread=AgentThread("Joker", "t"),
    created_at=NOON,
)


P1 = {"x": 1, "y": 0}


class Alien:
    pass


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def endless() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def shown(value: object) -> str:
    return repr(value)[:40]


BOTH_WAYS: list[tuple[Any, Any, Any]] = [
    (int, 1, 1),
    (str, "x", "x"),
    (bool, True, True),
    (float, 1.5, 1.5),
    (None, None, None),
    (Any, {"a": [1, None]}, {"a": [1, None]}),
    (object, [1], [1]),
    (list, [1, "a"], [1, "a"]),
    (dict, {"a": 1}, {"a": 1}),
    (list[int], [1, 2], [1, 2]),
    (tuple[int, str], (1, "a"), [1, "a"]),
    (tuple[int, ...], (1, 2), [1, 2]),
    (tuple[()], (), []),
    (set[str], {"a"}, ["a"]),
    (frozenset[int], frozenset({1}), [1]),
    (Sequence[int], (1, 2), [1, 2]),
    (dict[str, Point], {"a": Point(1)}, {"a": {"x": 1, "y": 0}}),
    (Mapping[str, int], {"a": 1}, {"a": 1}),
    (dict[Colour, int], {Colour.RED: 1}, {"red": 1}),
    (Optional[Point], None, None),  # noqa: UP045 - users write it so
    (Point | None, Point(1, 2), {"x": 1, "y": 2}),
    (int | str, "x", "x"),
    (int | str | None, 1, 1),
    (Point | str, Point(1), {"x": 1, "y": 0}),
    (Point | Even, Even(2), {"number": 2}),
    (Literal["a", 1], 1, 1),
    (UserId, UserId("u"), "u"),
    (Annotated[int, "pixels"], 1, 1),
    (Colour, Colour.BLUE, "blue"),
    (datetime, NOON, "2025-01-02T12:00:00+00:00"),
    (date, date(2025, 1, 2), "2025-01-02"),
    (Point, Point(1, 2), {"x": 1, "y": 2}),
    (Box[Point], Box(Point(1)), {"inside": {"x": 1, "y": 0}}),
    (
        Shape,
        Shape([Point(1)], Colour.BLUE, Point(2), {"a": ["b"]}),
        {
            "corners": [{"x": 1, "y": 0}],
            "colour": "blue",
            "centre": {"x": 2, "y": 0},
            "tags": {"a": ["b"]},
            "name": "?",
        },
    ),
    (Line, Line(Point(1), Point(2)), {"start": {"x": 1, "y": 0}, "end": {"x": 2, "y": 0}, "label": ""}),
    (Size, {"width": 1, "height": 2.0}, {"width": 1, "height": 2.0}),
    (Person, Person(name="Ann", born=date(2000, 1, 2)), {"name": "Ann", "born": "2000-01-02"}),
    (list[Person], [Person(name="Ann")], [{"name": "Ann", "born": None}]),
    (bytes, b"\x00\xff", "AP8="),
    (bytearray, bytearray(b"ab"), "YWI="),
    (Photo, Photo(b"\xff"), {"raw": "/w=="}),
    (Album, Album(cover=b"\xff", pages=[Photo(b"a")]), {"cover": "/w==", "pages": [{"raw": "YQ=="}], "title": None}),
    (dict[int, str], {1: "a", -20: "b"}, {"1": "a", "-20": "b"}),
    (dict[float, int], {1.5: 1}, {"1.5": 1}),
    (dict[bool, int], {True: 1}, {"true": 1}),
    (dict[int | None, int], {None: 1, 2: 2}, {"null": 1, "2": 2}),
    (dict[Level, int], {Level.HIGH: 1}, {"3": 1}),
    (dict[date, int], {date(2025, 1, 2): 1}, {"2025-01-02": 1}),
    (dict[str, dict[int, Point]], {"a": {7: Point(1)}}, {"a": {"7": {"x": 1, "y": 0}}}),
    (Scalar, Scalar(7), 7),
    (datetime, datetime(2024, 7, 1, 15), "2024-07-01T15:00:00"),
    (datetime, datetime(2024, 7, 1, 15, tzinfo=OSLO), "2024-07-01T15:00:00+02:00"),
    (Secret, Secret(7), {"code": 7, "tags": []}),
    (Node, Node(Point(1), [Node(Point(2))]), {"at": P1, "next": [{"at": {"x": 2, "y": 0}, "next": []}]}),
    (Route, {"start": Point(1)}, {"start": P1}),
    (Trip, Trip(at=Point(1), back=Trip(at=Point(1))), {"at": P1, "back": {"at": P1, "back": None}}),
    (Loose | Bound, Bound(), {"pages": []}),
    (Loose | Bound, Loose(["a"]), {"words": ["a"]}),
    (Segment | Secret, Secret(7), {"code": 7, "tags": []}),
    (Person | Segment, Segment(3), {"length": 3, "tags": []}),
    (Point | list[Point], [Point(1)], [P1]),
    (Point | dict[str, Point], {"a": Point(1)}, {"a": P1}),
    (datetime | str, "soon", "soon"),
    (datetime | str, NOON, "2025-01-02T12:00:00+00:00"),
    (UUID, UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    (Decimal, Decimal("1.50"), "1.50"),
    (timedelta, timedelta(days=1, hours=2), "P1DT2H"),
    (time, time(1, 2), "01:02:00"),
    (IPv4Address, IPv4Address("127.0.0.1"), "127.0.0.1"),
    (ChatMessage, ChatMessage("user", "x"), {"role": "user", "contents": [{"$type": "text", "text": "x"}]}),
]


@pytest.mark.parametrize(("annotation", "value", "stored"), BOTH_WAYS, ids=shown)
def test_a_value_is_stored_and_comes_back_as_it_was(annotation: Any, value: Any, stored: Any) -> None:
    assert json.loads(json.dumps(dump_value(value))) == stored
    loaded = load_value(stored, annotation)
    assert loaded == value
    assert type(loaded) is type(value)
    assert dump_as(value, annotation) == dump_value(value)


def test_an_answer_is_stored_and_comes_back_whole() -> None:
    stored = json.loads(json.dumps(dump_value({"first": ANSWER})))
    assert load_value(stored, dict[str, AgentRunResponse[None]]) == {"first": ANSWER}
    assert load_value(stored["first"], AgentRunResponse) == ANSWER


def test_the_value_of_an_answer_is_made_again_from_its_text() -> None:
    typed = attrs.evolve(ANSWER, value=None)
    loaded = load_value(json.loads(json.dumps(dump_value(typed))), AgentRunResponse[Point])
    assert loaded.value == Point(1)


DOES_NOT_FIT: list[tuple[Any, Any, str]] = [
    (True, int, "expected int, found True"),
    (1.0, int, "expected int, found 1.0"),
    ("1", int, "expected int, found '1'"),
    (1, str, "expected str, found 1"),
    (1, bool, "expected bool, found 1"),
    ("1", float, "expected a number, found '1'"),
    (True, float, "expected a number, found True"),
    (1, None, "expected null, found 1"),
    ("ab", list[str], "expected a list, found 'ab'"),
    ("ab", Sequence[str], "expected a list, found 'ab'"),
    ("ab", tuple[str, str], "expected a list, found 'ab'"),
    ("ab", set[str], "expected a list, found 'ab'"),
    ({"a": 1}, list[str], "expected a list"),
    ({"a": 1}, list, "expected list"),
    ([1, "a"], list[int], "expected int, found 'a'"),
    ([1], tuple[int, str], "expected 2 items, found [1]"),
    ([["a", 1]], dict[str, int], "expected an object"),
    (1, dict[str, int], "expected an object, found 1"),
    ({"a": "b"}, dict[str, int], "expected int, found 'b'"),
    ("green", Colour, "'green' is not a valid Colour"),
    ("c", Literal["a", "b"], "expected one of 'a', 'b', found 'c'"),
    (True, Literal[1], "expected one of 1, found True"),
    ([], Literal["a"], "expected one of 'a'"),
    ({}, Point, "'x' is missing"),
    ({"x": "1"}, Point, "expected int, found '1'"),
    ("x", Point, "expected an object, found 'x'"),
    ([], Point, "expected an object, found []"),
    (None, Point, "expected an object, found None"),
    ({"start": {"x": 1}, "end": {}}, Line, "'x' is missing"),
    ({"width": 1}, Size, "'height' is missing"),
    ({"name": 5}, Person, "valid string"),
    ({"number": 3}, Even, "odd"),
    (5, Point | None, "expected an object, found 5"),
    ("yesterday", datetime, "isoformat"),
    (5, datetime, "not a time: 5"),
    (5, date, "must be str"),
    ({"role": "boss"}, ChatMessage, "expected one of user"),
    ("x", complex, "Unsupported type"),
    (5, Point | list[Point], "expected an object, found 5; expected a list, found 5"),
    ("P", timedelta, "duration"),
    (5, UUID, "UUID"),
    ({"at": {"x": "1"}}, Trip, "integer"),
    ({}, AgentRunResponse, "'thread' is missing"),
]


@pytest.mark.parametrize(("value", "annotation", "reason"), DOES_NOT_FIT, ids=shown)
def test_what_does_not_fit_is_an_error_with_a_readable_reason(value: Any, annotation: Any, reason: str) -> None:
    with pytest.raises(ValueMismatch) as caught:
        load_value(value, annotation)
    assert reason in str(caught.value)
    assert "does not fit" in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        *(object(), int, {"a": {(): 1}}, [object()], float("nan"), float("inf"), {"a": [float("-inf")]}, 1j),
        *({1: "a", "1": "b"}, {float("nan"): 1}, {b"a"[0:0]: 1, "": 2}, iter([1]), map(str, [1]), ValueError("x"), ...),
        *(10**5000, {"a": -(10**5000)}, nested(100_000), nested(300), {"a": nested(100_000)}, [Scalar], endless()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_json_cannot_hold_is_an_error(value: Any) -> None:
    with pytest.raises(ValueMismatch, match="cannot be stored") as caught:
        dump_value(value)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (range(3), [0, 1, 2]),
        (memoryview(b"ab"), "YWI="),
        ({"a": 1}.keys(), ["a"]),
        ({"a": Point(1)}.values(), [P1]),
        ({"a": 1}.items(), [["a", 1]]),
        (collections.deque([Scalar(1)]), [1]),
        (collections.UserList([1]), [1]),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        ({None: 1, True: 2, 3: 4, 1.5: 5}, {"null": 1, "true": 2, "3": 4, "1.5": 5}),
        ({Level.HIGH: {Colour.RED: [b"\xff"]}}, {"3": {"red": ["/w=="]}}),
        ({Scalar(1): Scalar(2)}, {"1": 2}),
        (Array(Scalar(1), Scalar(2)), [1, 2]),
        (pathlib.PurePosixPath("/a/b"), "/a/b"),
        (pydantic.SecretStr("x"), "**********"),
        (10**30, 10**30),
        (2**63, 2**63),
        (nested(150), nested(150)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_common_is_stored_as_json_has_it(value: Any, stored: Any) -> None:
    assert dump_value(value) == json.loads(json.dumps(dump_value(value))) == stored


@pytest.mark.parametrize(
    "annotation",
    [complex, type, Exception, Alien, list[Alien], Alien | None, dict[str, list[Alien]], Annotated[Alien, "x"]],
    ids=repr,
)
def test_a_type_of_which_json_has_no_value_is_known(annotation: Any) -> None:
    assert unreadable(annotation) is not None


@pytest.mark.parametrize("annotation", [*[each for each, *_ in BOTH_WAYS], T, "Forward", Never], ids=repr)
def test_all_others_are_readable(annotation: Any) -> None:
    assert unreadable(annotation) is None


def test_a_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(ValueMismatch) as caught:
        load_value("x" * 5000, int)
    assert len(str(caught.value)) < 300


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(json_values)
def test_every_json_value_survives(value: Any) -> None:
    assert load_value(json.loads(json.dumps(dump_value(value))), Any) == value


@given(json_values, st.sampled_from([annotation for annotation, _, _ in BOTH_WAYS]))
def test_any_value_fits_an_annotation_or_is_a_mismatch(value: Any, annotation: Any) -> None:
    try:
        loaded = load_value(value, annotation)
    except ValueMismatch:
        return
    dump_value(loaded)


# --- Signatures ---------------------------------------------------------------------------------------------------


def test_parameters_and_results_are_read_from_annotations() -> None:
    def function(context: Any, point: Point, /, *, more: int = 0) -> list[Point]:
        return [point]

    assert list(parameters_of(function)) == [("context", Any), ("point", Point)]
    assert returned_by(function) == list[Point]


def test_without_annotations_json_is_taken_as_it_is() -> None:
    untyped: Any = eval("lambda context, point: None")  # the checkers want annotations everywhere else

    assert list(parameters_of(untyped)) == [("context", Any), ("point", Any)]
    assert returned_by(untyped) is Any


# --- Schemas ------------------------------------------------------------------------------------------------------


def resolved(schema: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = schema["$defs"][part["$ref"].split("/")[-1]]
    return found


def test_the_schema_of_an_attrs_class_knows_its_nested_classes_and_annotations() -> None:
    schema = json_schema(Shape)
    properties = schema["properties"]
    assert (schema["type"], schema["required"], schema["description"]) == ("object", ["corners"], "A figure.")
    assert resolved(schema, properties["corners"]["items"])["properties"]["x"]["type"] == "integer"
    assert properties["name"]["description"] == "What people call it"
    assert properties["tags"]["type"] == "object"
    assert "default" not in properties["tags"]
    assert {"type": "null"} in properties["centre"]["anyOf"]


@pytest.mark.parametrize(
    ("annotation", "kind"),
    [
        (Point, "object"),
        (Segment, "object"),
        (Size, "object"),
        (Person, "object"),
        (dict[str, Point], "object"),
        (list[Point], "array"),
        (tuple[Point, int], "array"),
        (Colour, "string"),
        (Literal["a", "b"], "string"),
        (int, "integer"),
        (Annotated[Point, "x"], "object"),
        (Secret, "object"),
        (Node, "object"),
        (Route, "object"),
        (Trip, "object"),
        (Box[Point], "object"),
        (list[Node], "array"),
        (NewType("Where", Point), "object"),
    ],
    ids=repr,
)
def test_every_kind_of_type_has_a_schema(annotation: Any, kind: str) -> None:
    assert json_schema(annotation)["type"] == kind


HAVE_NO_SCHEMA: list[Any] = [ChatMessage, object, Scalar, dict[Level, int]]
"""Of which pydantic makes none, or one that does not take keys as JSON has them."""


@pytest.mark.parametrize(
    ("annotation", "stored"),
    [(annotation, stored) for annotation, _, stored in BOTH_WAYS if annotation not in HAVE_NO_SCHEMA],
    ids=shown,
)
def test_what_is_stored_fits_the_schema(annotation: Any, stored: Any) -> None:
    jsonschema.validate(stored, json_schema(annotation))


def test_classes_inside_others_are_described() -> None:
    assert resolved(json_schema(Node), json_schema(Node)["properties"]["at"])["required"] == ["x"]
    assert json_schema(Secret)["required"] == ["code"]
    route = json_schema(Route)
    assert (route["required"], route["properties"]["note"]["description"]) == (["start"], "What to tell the driver")


def test_the_schema_of_a_union_has_its_members() -> None:
    schema = json_schema(Point | Person | None)
    assert [resolved(schema, part)["title"] for part in schema["anyOf"][:2]] == ["Point", "Person"]
    assert schema["anyOf"][2] == {"type": "null"}


def test_a_schema_is_taken_as_it_is() -> None:
    given: dict[str, Any] = {"type": "object", "properties": {}}
    assert json_schema(given) == given


def test_what_has_no_schema_is_an_error() -> None:
    with pytest.raises(ValueMismatch, match="no JSON schema"):
        json_schema(object())
