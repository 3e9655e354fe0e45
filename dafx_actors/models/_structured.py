"""How a typed answer is asked for, and found in the reply. Pure.

::

    schema ──refused──> schema as a wish ──> json ──> prompt        what a server refuses is asked for more simply
    with tools ──refused──> apart                                   the format comes with the last step, without tools
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

import attrs

from dafx_actors._json.shapes import is_object
from dafx_actors.errors import ModelError
from dafx_actors.models import UNPARSED_ARGUMENTS, ModelReply, ToolDefinition
from dafx_actors.models._dialects import Structured
from dafx_actors.models._names import clean_name
from dafx_actors.models._strict import WRAPPED, is_object_schema, strict_form, wrapped
from dafx_actors.transcript import ChatMessage, Content, FunctionCallContent, Json, TextContent, TextReasoningContent

__all__ = [
    "ANSWER_TOOL",
    "Asked",
    "Shape",
    "answer_tool",
    "asked_for",
    "is_json",
    "is_refusal",
    "simpler",
    "typed_reply",
]

ANSWER_TOOL = "final_answer"


@attrs.frozen(kw_only=True)
class Shape:
    """The way in which an answer is asked for."""

    kind: Structured = "schema"
    apart: bool = False
    """Whether the format is left out while there are tools to call."""
    strict: bool = True
    """Whether the provider may be asked to enforce it."""


@attrs.frozen(kw_only=True)
class Asked:
    """What a request says of the answer's form."""

    format: Json = None
    """The `response_format`; None for none."""
    words: str = ""
    """For the instructions."""
    tool: ToolDefinition | None = None
    """Whose arguments are the answer."""
    wrapped: bool = False
    """Whether the answer is asked for as the only property of an object."""


def asked_for(schema: Mapping[str, Json], shape: Shape, *, own: Json = None, holds_back: bool = False) -> Asked:
    """How an answer that fits `schema` is asked for.

    Args:
        schema: The JSON schema.
        shape: The way.
        own: A `response_format` of the caller's own, which is left as it is.
        holds_back: Whether the format must not be sent now, since there are tools.
    """
    needs_object = own is not None or shape.kind != "prompt"
    wraps = needs_object and not is_object_schema(schema)
    whole = wrapped(schema) if wraps else dict(schema)
    words = f"Answer with JSON alone, and nothing around it. It fits this JSON schema: {_dumps(whole)}"
    if own is not None:
        of_schema = is_object(own) and own.get("type") == "json_schema"
        given = None if holds_back else own
        return Asked(format=given) if of_schema else Asked(format=given, words=words, wrapped=wraps)
    if shape.kind == "prompt":
        return Asked(words=words)
    if shape.kind == "tool":
        return Asked(tool=answer_tool(whole, strict=shape.strict), wrapped=wraps)
    if holds_back:
        return Asked(words=f"When you have all that you need: {words[0].lower()}{words[1:]}", wrapped=wraps)
    if shape.kind == "json":
        return Asked(format={"type": "json_object"}, words=words, wrapped=wraps)
    form = strict_form(whole) if shape.strict else None
    wish: dict[str, Json] = {"name": _name_of(schema), "schema": form or whole, "strict": form is not None}
    return Asked(format={"type": "json_schema", "json_schema": wish}, wrapped=wraps)


def answer_tool(schema: Mapping[str, Json], *, strict: bool) -> ToolDefinition:
    """A tool whose arguments are the answer."""
    form = strict_form(schema) if strict else None
    return ToolDefinition(
        name=ANSWER_TOOL,
        description="Give the final answer in this form. Call it once, alone, when you have all that you need.",
        parameters=form or schema,
        strict=form is not None,
    )


def _name_of(schema: Mapping[str, Json]) -> str:
    title = schema.get("title")
    return clean_name(title, "answer") if isinstance(title, str) and title else "answer"


def _dumps(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False)


# --- what a server refuses -------------------------------------------------------------------------------------------

_ABOUT_FORMATS = re.compile(
    r"response[_ ]?format|json[_ ]?(schema|object|mode)|response[_ ](mime|schema)|structured[_ ]?output|grammar|guided",
    re.IGNORECASE,
)
_ABOUT_SCHEMAS = re.compile(r"invalid schema|\bstrict\b|not permitted|additionalProperties|keyword", re.IGNORECASE)
_ABOUT_TOOLS = re.compile(r"\btools?\b|function|tool_choice", re.IGNORECASE)
_REFUSALS = frozenset({400, 404, 405, 415, 422, 500, 501})


def is_refusal(error: ModelError) -> bool:
    """Whether a server may have refused the form of a request; some do so with the status of a fault of their own."""
    return error.kind in {"bad_request", "server_error"} and error.status in _REFUSALS


def simpler(shape: Shape, error: ModelError, *, with_tools: bool, may_change: bool) -> Shape | None:
    """Another way to ask, where a server refused this one by name; None where that is not what it refused.

    Args:
        shape: The way.
        error: What the call ended with.
        with_tools: Whether tools were offered beside the format.
        may_change: Whether the kind is ours to choose.
    """
    if not is_refusal(error):
        return None
    if shape.kind == "tool":
        chooses = may_change and "tool_choice" in error.message
        return attrs.evolve(shape, kind="prompt") if chooses else None
    if shape.kind == "prompt" or not _ABOUT_FORMATS.search(error.message):
        return None
    if with_tools and not shape.apart and _ABOUT_TOOLS.search(error.message):
        return attrs.evolve(shape, apart=True)
    if shape.kind == "schema" and shape.strict and _ABOUT_SCHEMAS.search(error.message):
        return attrs.evolve(shape, strict=False)
    if not may_change:
        return None
    return attrs.evolve(shape, kind="json" if shape.kind == "schema" else "prompt")


# --- the answer in a reply -------------------------------------------------------------------------------------------

_WRAPPED = re.compile(r'\{\s*"' + WRAPPED + r'"\s*:')


def typed_reply(reply: ModelReply, asked: Asked) -> ModelReply:
    """The reply with its answer as text: out of the tool's arguments, and without what was wrapped around it."""
    contents: Sequence[Content] = reply.message.contents
    calls = [content for content in contents if isinstance(content, FunctionCallContent)]
    finish_reason = reply.finish_reason
    answers = [call for call in calls if asked.tool is not None and call.name == asked.tool.name]
    if answers and len(answers) < len(calls):
        # It answered before it knew what the other calls give.
        contents = [content for content in contents if content not in answers]
    elif answers:
        contents = [*map(_as_commentary, _without_calls(contents)), TextContent(_said_in(answers[-1]))]
        finish_reason = "stop" if finish_reason == "tool_calls" else finish_reason
    if asked.wrapped:
        contents = _unwrapped(contents)
    if contents is reply.message.contents and finish_reason == reply.finish_reason:
        return reply
    message = ChatMessage(
        "assistant", contents, reply.message.author_name, reply.message.created_at, extra=reply.message.extra
    )
    return attrs.evolve(reply, message=message, finish_reason=finish_reason)


def _without_calls(contents: Sequence[Content]) -> list[Content]:
    return [content for content in contents if not isinstance(content, FunctionCallContent)]


def _as_commentary(content: Content) -> Content:
    return TextReasoningContent(content.text, extra=content.extra) if isinstance(content, TextContent) else content


def _said_in(call: FunctionCallContent) -> str:
    written = call.extra.get(UNPARSED_ARGUMENTS)
    return written if isinstance(written, str) else _dumps(dict(call.arguments))


def _unwrapped(contents: Sequence[Content]) -> Sequence[Content]:
    texts = [content for content in contents if isinstance(content, TextContent)]
    inner = _inside("".join(content.text for content in texts))
    if inner is None:
        return contents
    return [*(content for content in contents if not isinstance(content, TextContent)), TextContent(inner)]


def _inside(text: str) -> str | None:
    """What is wrapped in the last object of the text that is such a wrapping; None where there is none."""
    inner, end = None, 0
    for found in _WRAPPED.finditer(text):
        if found.start() < end:
            continue  # inside of one
        try:
            value, end = json.JSONDecoder().raw_decode(text, found.start())
        except (ValueError, RecursionError):
            continue
        if is_object(value) and set(value) == {WRAPPED}:
            inner = _dumps(value[WRAPPED])
    return inner


_FENCED = re.compile(r"\A\s*```\w*\s*|\s*```\s*\Z")


def is_json(text: str) -> bool:
    """Whether a text is JSON, in a Markdown fence or not."""
    try:
        json.loads(_FENCED.sub("", text))
    except (ValueError, RecursionError):
        return False
    return True
