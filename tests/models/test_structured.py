"""Typed answers: how they are asked for, what a server refuses, and how they are found in the reply."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dafx_actors.errors import ModelError
from dafx_actors.models import ModelRequest, ToolDefinition
from dafx_actors.models._reading import reply
from dafx_actors.models._strict import strict_form
from dafx_actors.models._structured import ANSWER_TOOL, Shape
from dafx_actors.models._wire import Outgoing, outgoing
from dafx_actors.models.openai import OpenAIChatModel
from dafx_actors.transcript import ChatMessage, FunctionCallContent, FunctionResultContent, TextContent
from tests.provider import Answer, Calls, Provider, Refusal, Says, provider

pytestmark = pytest.mark.anyio

CITY: dict[str, Any] = {
    "type": "object",
    "title": "City",
    "properties": {"name": {"type": "string"}, "people": {"type": "integer", "default": 0, "description": "How many."}},
    "required": ["name"],
}
ROME = '{"name": "Rome", "people": 3}'
LOOK = ToolDefinition(name="look", description="Looks.", parameters={"type": "object", "properties": {}})


def asked(schema: dict[str, Any] = CITY, *, kind: Any = "schema", **more: Any) -> Outgoing:
    options, how = more.pop("options", {}), {name: more.pop(name) for name in ("apart", "strict") if name in more}
    request = ModelRequest(
        messages=(ChatMessage("system", "Be brief."), ChatMessage("user", "?")),
        response_schema=schema,
        options=options,
        **more,
    )
    return outgoing("m", request, {}, shape=Shape(kind=kind, **how))


def schema_in(going: Outgoing) -> dict[str, Any]:
    found: dict[str, Any] = going.body["response_format"]["json_schema"]
    return found


# --- the strict form -------------------------------------------------------------------------------------------------


def test_an_ordinary_schema_is_made_strict() -> None:
    """Closed, with all its properties required; what is refused is said in words."""
    assert schema_in(asked()) == {
        "name": "City",
        "strict": True,
        "schema": {
            "type": "object",
            "title": "City",
            "properties": {
                "name": {"type": "string"},
                "people": {"type": "integer", "description": "How many. (default: 0)"},
            },
            "required": ["name", "people"],
            "additionalProperties": False,
        },
    }  # fmt: skip


def of_property(schema: Any, **more: Any) -> Any:
    form = strict_form({"type": "object", "properties": {"a": schema}, **more})
    return None if form is None else form["properties"]["a"]


MAYOR = {"$defs": {"Mayor": {"type": "object", "properties": {"name": {"type": "string"}}}}}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"$ref": "#/$defs/Mayor"}, {"$ref": "#/$defs/Mayor"}),
        (
            {"$ref": "#/$defs/Mayor", "description": "Who rules."},
            {
                "type": "object",
                "properties": {"name": {"type": "string"}},
                "required": ["name"],
                "additionalProperties": False,
                "description": "Who rules.",
            },
        ),
        (
            {"allOf": [{"$ref": "#/$defs/Mayor"}]},
            {"$ref": "#/$defs/Mayor"},
        ),
        ({"type": "string", "format": "uri"}, {"type": "string", "description": 'format: "uri"'}),
        ({"type": "string", "format": "date"}, {"type": "string", "format": "date"}),
        ({"type": "string", "minLength": 2}, {"type": "string", "description": "minLength: 2"}),
        ({"type": "string", "pattern": "^(?=a)"}, {"type": "string", "description": 'pattern: "^(?=a)"'}),
        (
            {"oneOf": [{"type": "string"}, {"type": "null"}], "discriminator": {"propertyName": "kind"}},
            {"anyOf": [{"type": "string"}, {"type": "null"}]},
        ),
        ({}, None),
        ({"type": "object", "additionalProperties": {"type": "string"}}, None),
        ({"type": "array"}, None),
        ({"$ref": "https://example.com/a.json", "description": "x"}, None),
        ({"$ref": "#/$defs/Nobody", "description": "x"}, None),
    ],
)
def test_parts_of_a_strict_schema(schema: dict[str, Any], expected: Any) -> None:
    """A `$ref` alone, formats that are known, unions as `anyOf`; None where there is no such form."""
    assert of_property(schema, **MAYOR) == expected


def test_a_schema_that_refers_to_itself() -> None:
    """It ends: as a reference, and as nothing where it cannot be unfolded."""
    tree = {
        "$defs": {"T": {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/T"}, {"type": "null"}]}}}}
    }
    assert of_property({"$ref": "#/$defs/T"}, **tree) == {"$ref": "#/$defs/T"}
    assert of_property({"$ref": "#/$defs/L"}, **{"$defs": {"L": {"$ref": "#/$defs/L", "description": "x"}}}) is None


def test_a_schema_that_cannot_be_strict_is_a_wish() -> None:
    """It goes as it is."""
    loose = {"type": "object", "properties": {"extra": {}}, "required": ["extra"]}
    assert schema_in(asked(loose)) == {"name": "answer", "strict": False, "schema": loose}


# --- roots that are no object ----------------------------------------------------------------------------------------


def returned(going: Outgoing, **message: Any) -> Any:
    answer = {"choices": [{"message": message, "finish_reason": "stop"}]}
    return going.returned(reply(answer), answer)


@pytest.mark.parametrize("kind", ["schema", "json", "tool"])
def test_a_root_that_is_no_object_is_wrapped_and_unwrapped(kind: Any) -> None:
    """In each way that takes objects only; a model that does not wrap is understood as well."""
    cities = {"type": "array", "items": {"$ref": "#/$defs/City"}, "$defs": {"City": CITY}}
    going = asked(cities, kind=kind)
    for said in (f'{{"value": [{ROME}]}}', f'Here:\n```json\n{{ "value" : [{ROME}] }}\n```', f"[{ROME}]"):
        assert json.loads(returned(going, content=said).message.text) == [json.loads(ROME)]
    if kind == "schema":
        wrapping = schema_in(going)
        assert wrapping["strict"] is True
        assert wrapping["schema"]["required"] == ["value"]
        assert set(wrapping["schema"]["$defs"]) == {"City"}


def test_references_to_a_root_that_was_wrapped() -> None:
    """They follow it, and the value of a wrapping is taken at its outermost."""
    going = asked({"anyOf": [{"type": "array", "items": {"$ref": "#"}}, {"type": "integer"}]})
    inner = schema_in(going)["schema"]["properties"]["value"]
    assert inner["anyOf"][0]["items"] == {"$ref": "#/properties/value"}
    assert returned(going, content='{"value": {"value": 1}}').message.text == '{"value": 1}'


# --- the ways to ask -------------------------------------------------------------------------------------------------


def test_json_with_the_schema_in_words() -> None:
    """Among the instructions, of which there is one message."""
    going = asked(kind="json")
    assert going.body["response_format"] == {"type": "json_object"}
    first, second = going.body["messages"]
    assert (first["role"], second["role"]) == ("system", "user")
    assert first["content"].startswith("Be brief.\n\nAnswer with JSON")
    assert json.dumps(CITY) in first["content"]


def test_words_alone() -> None:
    """No format at all; without instructions, the words are the instructions."""
    going = asked(kind="prompt")
    assert "response_format" not in going.body
    assert json.dumps(CITY) in going.body["messages"][0]["content"]
    bare = ModelRequest(messages=(ChatMessage("user", "?"),), response_schema=CITY)
    assert outgoing("m", bare, {}, shape=Shape(kind="prompt")).body["messages"][0]["role"] == "system"


def test_as_the_arguments_of_a_tool() -> None:
    """The tool must be called; its arguments are the text of the answer, and what was said beside it is not."""
    going = asked(kind="tool")
    assert [tool["function"]["name"] for tool in going.body["tools"]] == [ANSWER_TOOL]
    assert going.body["tool_choice"] == {"type": "function", "function": {"name": ANSWER_TOOL}}
    call = {"id": "c1", "function": {"name": ANSWER_TOOL, "arguments": ROME}}
    got = returned(going, content="Here it is.", tool_calls=[call])
    assert got.message.text == ROME
    assert not any(isinstance(content, FunctionCallContent) for content in got.message.contents)
    assert got.finish_reason == "stop"


def test_a_tool_for_the_answer_beside_others() -> None:
    """One of them is called; an answer beside other calls came too early."""
    going = asked(kind="tool", tools=(LOOK,))
    assert going.body["tool_choice"] == "required"
    calls = [{"id": name, "function": {"name": name, "arguments": "{}"}} for name in (ANSWER_TOOL, "look")]
    got = returned(going, content=None, tool_calls=calls)
    assert [call.name for call in got.message.contents if isinstance(call, FunctionCallContent)] == ["look"]


def test_arguments_of_the_answer_that_are_no_json() -> None:
    """They are the text of the answer as they were written, for the model to be told what is wrong."""
    call = {"id": "c1", "function": {"name": ANSWER_TOOL, "arguments": '{"name": "Ro'}}
    assert returned(asked(kind="tool"), content=None, tool_calls=[call]).message.text == '{"name": "Ro'


def test_a_format_of_the_callers_own() -> None:
    """It is sent as it is, in each way to ask; the schema is said in words, unless it holds one."""
    own = {"type": "json_object"}
    going = asked(options={"response_format": own})
    assert going.body["response_format"] == own
    assert "JSON schema" in going.body["messages"][0]["content"]
    whole = {"type": "json_schema", "json_schema": {"name": "mine", "schema": {"type": "object"}}}
    going = asked(options={"response_format": whole})
    assert going.body["response_format"] == whole
    assert going.body["messages"][0]["content"] == "Be brief."
    without = ModelRequest(messages=(ChatMessage("user", "?"),), options={"response_format": own})
    assert outgoing("m", without, {}).body["response_format"] == own


# --- what servers refuse, over a socket ------------------------------------------------------------------------------


def model(server: Provider, **how: Any) -> OpenAIChatModel:
    return OpenAIChatModel("m", base_url=server.environment["OPENAI_BASE_URL"], api_key="k", trust_env=False, **how)


def request(*tools: ToolDefinition, **more: Any) -> ModelRequest:
    return ModelRequest(messages=(ChatMessage("user", "?"),), response_schema=CITY, tools=tools, **more)


def kind_of(body: dict[str, Any]) -> str:
    return body["response_format"]["type"] if "response_format" in body else "none"


def refusing(what: str, *refused: str) -> Any:
    def answer(body: dict[str, Any]) -> Answer:
        return Refusal(400, message=what) if kind_of(body) in refused else ROME

    return answer


@pytest.mark.parametrize(
    ("refused", "kinds"),
    [
        ((), ["json_schema"]),
        (("json_schema",), ["json_schema", "json_object"]),
        (("json_schema", "json_object"), ["json_schema", "json_object", "none"]),
    ],
)
async def test_a_server_without_a_form(refused: tuple[str, ...], kinds: list[str]) -> None:
    """It is asked more simply at once, and from then on."""
    with provider(answer=refusing("This response_format type is unavailable now", *refused)) as server:
        asking = model(server)
        assert (await asking.complete(request())).message.text == ROME
        assert (await asking.complete(request())).message.text == ROME
        await asking.aclose()
    assert [kind_of(body) for body in server.requests] == [*kinds, kinds[-1]]


async def test_a_schema_that_a_server_refuses_is_a_wish() -> None:
    """Without `strict`; the next schema is asked for strictly again."""

    def answer(body: dict[str, Any]) -> Answer:
        strict = body["response_format"]["json_schema"]["strict"]
        what = "Invalid schema for response_format 'City': In context=(), 'title' is not permitted."
        return Refusal(400, message=what) if strict else ROME

    with provider(answer=answer) as server:
        asking = model(server)
        for _ in range(2):
            assert (await asking.complete(request())).message.text == ROME
        await asking.aclose()
    assert [body["response_format"]["json_schema"]["strict"] for body in server.requests] == [True, False, True, False]


@pytest.mark.parametrize("how", [{"structured": "schema"}, {"options": {"response_format": {"type": "json_schema"}}}])
async def test_a_form_that_somebody_chose_is_not_changed(how: dict[str, Any]) -> None:
    """The refusal is the answer."""
    with provider(answer=refusing("This response_format type is unavailable now", "json_schema")) as server:
        asking = model(server, **how)
        with pytest.raises(ModelError, match="unavailable now"):
            await asking.complete(request())
        await asking.aclose()
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "refusal",
    [Refusal(400, message="The image is broken."), Refusal(429, message="response_format: too many requests")],
)
async def test_what_is_refused_for_another_reason_is_not_asked_again(refusal: Refusal) -> None:
    """A broken request, or one too many."""
    with provider(answer=lambda _: refusal) as server:
        asking = model(server)
        with pytest.raises(ModelError):
            await asking.complete(request())
        await asking.aclose()
    assert len(server.requests) == 1


async def test_the_format_comes_with_the_last_step() -> None:
    """Where tools and a format are refused together: tools alone, and an answer that is no JSON is asked for again."""

    def answer(body: dict[str, Any]) -> Answer:
        if body.get("tools") and body.get("response_format"):
            return Refusal(400, message="json mode cannot be combined with tool/function calling")
        if body.get("response_format"):
            return ROME
        return "Rome has three." if len(server.requests) > 2 else Calls([("look", {})])

    with provider(answer=answer) as server:
        asking = model(server)
        first = await asking.complete(request(LOOK))
        assert [call.name for call in first.message.contents if isinstance(call, FunctionCallContent)] == ["look"]
        last = await asking.complete(request(LOOK))
        await asking.aclose()
    assert last.message.contents == (TextContent(ROME),)
    assert [(bool(body.get("tools")), kind_of(body)) for body in server.requests] == [
        (True, "json_schema"),
        (True, "none"),
        (True, "none"),
        (False, "json_schema"),
    ]
    assert last.usage is not None
    assert last.usage.output_tokens == 6


async def test_signatures_over_a_socket() -> None:
    """What a server gives with a call comes back to it."""
    signed = {"google": {"thought_signature": "c2ln"}}
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}, "extra_content": signed}
    with provider(answer=lambda _: Says({"content": None, "tool_calls": [call]})) as server:
        asking = model(server)
        got = await asking.complete(ModelRequest(messages=(ChatMessage("user", "?"),), tools=(LOOK,)))
        gave = ChatMessage("tool", (FunctionResultContent("c1", "a street"),))
        await asking.complete(ModelRequest(messages=(ChatMessage("user", "?"), got.message, gave), tools=(LOOK,)))
        await asking.aclose()
    assert server.requests[1]["messages"][1]["tool_calls"][0]["extra_content"] == signed
