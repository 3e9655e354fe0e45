"""A conversation as the JSON of chat completions: pure, without I/O and without the `openai` package.

This is the *wire form*, made of what is stored, which stays as it came. The names of that JSON are those of the API
reference, https://platform.openai.com/docs/api-reference/chat; what servers differ in is in `_dialects.py`.

Content that is for this program and not for a model stays behind: reasoning, usage, errors, and what this version
does not know. Content that a model should have had, but that cannot be sent, is a `ModelError` of kind `bad_request`
from `outgoing()`, before anything is sent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import attrs

from dafx_actors._json.text import well_formed, well_formed_text
from dafx_actors.models import UNPARSED_ARGUMENTS, ModelReply, ModelRequest, ToolDefinition
from dafx_actors.models._dialects import UNKNOWN, Dialect
from dafx_actors.models._kept import back_of_call, back_of_message, keep
from dafx_actors.models._media import Part, as_text, cannot_send, part, shown_result
from dafx_actors.models._names import CallIds, ToolNames
from dafx_actors.models._structured import Asked, Shape, asked_for, typed_reply
from dafx_actors.transcript import (
    ChatMessage,
    Content,
    ErrorContent,
    FunctionCallContent,
    FunctionResultContent,
    Json,
    OpaqueContent,
    TextContent,
    TextReasoningContent,
    UnknownContent,
    UsageContent,
)

__all__ = ["Body", "Outgoing", "outgoing"]

Body: TypeAlias = dict[str, Json]

_NOT_FOR_MODELS = (TextReasoningContent, UsageContent, ErrorContent, UnknownContent, OpaqueContent)


@attrs.frozen(kw_only=True)
class Outgoing:
    """One call as it is sent, and what is needed to read its reply."""

    body: Body
    asked: Asked
    names: ToolNames
    origin: str
    with_tools: bool
    """Whether tools are offered."""
    shows_media: bool
    """Whether a tool gave something to look at."""
    gives_back: bool
    """Whether the server gets back what it gave."""

    def returned(self, reply: ModelReply, answer: Json) -> ModelReply:
        """The reply as it is stored: names as they were, whole characters, the answer out of its wrapping.

        Args:
            reply: As it was read.
            answer: The JSON that it was read from, of which more is kept.
        """
        reply = keep(reply, answer, self.origin, with_tools=self.with_tools)
        contents = tuple(map(self._settled, reply.message.contents))
        if any(new is not old for new, old in zip(contents, reply.message.contents, strict=True)):
            reply = attrs.evolve(reply, message=attrs.evolve(reply.message, contents=contents))
        return typed_reply(reply, self.asked)

    def _settled(self, content: Content) -> Content:
        """With the name as it was, and whole characters."""
        match content:
            case TextContent(text=text) | TextReasoningContent(text=text):
                whole = well_formed_text(text)
                return content if whole is text else attrs.evolve(content, text=whole)
            case FunctionCallContent(name=name, arguments=arguments):
                was, whole = self.names.was(name), well_formed(arguments)
                same = was == name and whole is arguments
                return content if same else attrs.evolve(content, name=was, arguments=whole)
            case _:
                return content


def outgoing(
    model: str,
    request: ModelRequest,
    defaults: Mapping[str, Json],
    *,
    dialect: Dialect = UNKNOWN,
    shape: Shape | None = None,
    host: str = "",
) -> Outgoing:
    """One call.

    `request.options` come over `defaults`, and what the request itself says comes over both; but for a
    `response_format` among them, which is the caller's own.

    Args:
        model: Its name.
        request: What is asked.
        defaults: Options of every call.
        dialect: Of the server.
        shape: How a typed answer is asked for; None as the dialect has it.
        host: Whom it is sent to, so that what came from there goes back there.

    Raises:
        ModelError: Of kind `bad_request`: a message holds something that this API cannot be sent.
    """
    options = {**defaults, **request.options}
    asked = _asked(request, options, shape or Shape(kind=dialect.structured, apart=dialect.apart))
    tools = (*request.tools, *([asked.tool] if asked.tool else ()))
    names = ToolNames.of([tool.name for tool in tools])
    origin = f"{host}/{model}"
    writing = _Messages(dialect, names, CallIds(dialect.call_ids), origin)
    ours: Body = {"model": model, "messages": _with_words(writing.of(request.messages), well_formed_text(asked.words))}
    if tools:
        ours["tools"] = [_tool(tool, names.sent(tool.name)) for tool in tools]
        # The API refuses a choice where there is nothing to choose from.
        if (choice := _choice(request, asked)) is not None:
            ours["tool_choice"] = _tool_choice(choice, names)
    if request.response_schema is not None:
        options.pop("response_format", None)
        if asked.format is not None:
            ours["response_format"] = asked.format
    messages = ours.pop("messages")  # each of them is whole by now
    return Outgoing(
        body={"messages": messages, **well_formed({**options, **ours})},
        asked=asked,
        names=names,
        origin=origin,
        with_tools=bool(request.tools),
        shows_media=writing.shows_media,
        gives_back=writing.gives_back,
    )


def _asked(request: ModelRequest, options: Mapping[str, Json], shape: Shape) -> Asked:
    if request.response_schema is None:
        return Asked()
    holds_back = shape.apart and bool(request.tools)
    return asked_for(request.response_schema, shape, own=options.get("response_format"), holds_back=holds_back)


def _with_words(messages: list[Body], words: str) -> list[Body]:
    """With words among the instructions: many models take only one system message, and that first."""
    if not words:
        return messages
    if messages and messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{words}"}, *messages[1:]]
    return [{"role": "system", "content": words}, *messages]


def _choice(request: ModelRequest, asked: Asked) -> str | None:
    if asked.tool is None or request.tool_choice not in {None, "auto", "none"}:
        return request.tool_choice
    # What is called is a tool or the answer; words alone would be neither.
    return "required" if request.tools and request.tool_choice != "none" else asked.tool.name


@attrs.define
class _Messages:
    """Writes the messages of one conversation."""

    dialect: Dialect
    names: ToolNames
    ids: CallIds
    origin: str
    shows_media: bool = False
    gives_back: bool = False

    def of(self, messages: Sequence[ChatMessage]) -> list[Body]:
        written: list[Body] = []
        shown: list[Part] = []
        """What tools gave that is no text: for a message after all of their results."""
        called = _turns_with_calls(messages)
        for message, tools_called in zip(messages, called, strict=True):
            if (text := self._plain_text(message)) and not shown:
                self._add(written, {"role": message.role, "content": well_formed_text(text)})
                continue
            for wire in self._of(message, shown, tools_called=tools_called):
                if shown and wire["role"] != "tool":
                    self._show(written, shown)
                self._add(written, wire)
        if shown:
            self._show(written, shown)
        return written

    def _plain_text(self, message: ChatMessage) -> str | None:
        """The text of a message that is nothing else, as half of a conversation is: known at a glance."""
        contents = message.contents
        if len(contents) != 1 or message.extra or message.author_name or message.role == "tool":
            return None
        if message.role == "assistant" and self.dialect.reasoning == "always":
            return None
        content = contents[0]
        return content.text if isinstance(content, TextContent) else None

    def _show(self, written: list[Body], shown: list[Part]) -> None:
        numbers = "number 1" if len(shown) == 1 else f"numbers 1 to {len(shown)}"
        said: Part = {"type": "text", "text": f"What the tools gave to look at, {numbers}:"}
        self._add(written, {"role": "user", "content": well_formed([said, *shown])})
        self.shows_media = True
        shown.clear()

    def _add(self, written: list[Body], wire: Body) -> None:
        after_tool = bool(written) and written[-1]["role"] == "tool"
        if wire["role"] == "user" and after_tool and not self.dialect.user_after_tool:
            written.append({"role": "assistant", "content": "I have the results."})
        written.append(wire)

    def _of(self, message: ChatMessage, shown: list[Part], *, tools_called: bool) -> Iterator[Body]:
        """One of our messages as theirs: none, one, or one for each function result, which are messages there."""
        rest: list[Content] = []
        for content in message.contents:
            if isinstance(content, FunctionResultContent):
                result = shown_result(content.result, len(shown) + 1, may_show=self.dialect.media)
                call_id, said = self.ids.of_result(content.call_id), well_formed_text(result.text)
                yield {"role": "tool", "tool_call_id": call_id, "content": said}
                shown += result.parts
            elif not isinstance(content, _NOT_FOR_MODELS):
                rest.append(content)
        if not rest:
            return
        if message.role == "tool":
            raise cannot_send("a tool message holds function results only", rest[0])
        wire = _SPEAKERS[message.role](self, message, rest)
        if message.role == "assistant":
            if not wire["content"] and "tool_calls" not in wire:
                return  # who says nothing is refused by some
            wire |= self._given_back(message, tools_called=tools_called)
        if self.dialect.authors and (name := _author(message.author_name)):
            yield {"role": message.role, "name": name, **wire}
        else:
            yield {"role": message.role, **wire}

    def _given_back(self, message: ChatMessage, *, tools_called: bool) -> Body:
        if self.dialect.reasoning == "never" or not (message.extra or self.dialect.reasoning == "always"):
            return {}
        back = dict(back_of_message(message, self.origin, tools_called=tools_called))
        self.gives_back = self.gives_back or bool(back)
        if self.dialect.reasoning == "always" and tools_called:
            back.setdefault("reasoning_content", "")
        whole: Body = well_formed(back)
        return whole

    def user(self, _: ChatMessage, contents: Sequence[Content]) -> Body:
        # One text goes as a string: servers that only speak the core of the protocol do not take a list of parts.
        match contents:
            case [TextContent(text=text)]:
                return {"content": well_formed_text(text)}
            case _:
                return {"content": well_formed([part(content) for content in contents])}

    def system(self, _: ChatMessage, contents: Sequence[Content]) -> Body:
        return {"content": well_formed_text("".join(_text(content, "system") for content in contents))}

    def assistant(self, message: ChatMessage, contents: Sequence[Content]) -> Body:
        calls: list[FunctionCallContent] = []
        texts: list[str] = []
        for content in contents:
            if isinstance(content, FunctionCallContent):
                calls.append(content)
            else:
                texts.append(_text(content, "assistant"))
        wire: Body = {"content": well_formed_text("".join(texts)) if texts else None}
        if calls:
            ids = self.ids.of_calls([call.call_id for call in calls])
            wire["tool_calls"] = [
                {
                    "id": call_id,
                    "type": "function",
                    "function": {"name": self.names.sent(call.name), "arguments": _arguments(call)},
                    **(well_formed(back_of_call(message, call, self.origin)) if call.extra else {}),
                }
                for call_id, call in zip(ids, calls, strict=True)
            ]
            if self.dialect.signs and "extra_content" not in wire["tool_calls"][0]:
                wire["tool_calls"][0]["extra_content"] = _NO_SIGNATURE
        return wire


_NO_SIGNATURE: Json = {"google": {"thought_signature": "skip_thought_signature_validator"}}
"""Google's word for calls of other models; https://ai.google.dev/gemini-api/docs/thought-signatures."""

_SPEAKERS: dict[str, Callable[[_Messages, ChatMessage, Sequence[Content]], Body]] = {
    "system": _Messages.system,
    "user": _Messages.user,
    "assistant": _Messages.assistant,
}


def _turns_with_calls(messages: Sequence[ChatMessage]) -> list[bool]:
    """Of each message, whether tools were called between the same two messages of the user."""
    called = False
    found: list[bool] = []
    start = 0
    for number, message in enumerate(messages):
        if message.role == "user":
            found += [called] * (number - start)
            start, called = number, False
        called = called or any(isinstance(content, FunctionCallContent) for content in message.contents)
    return [*found, *[called] * (len(messages) - start)]


def _text(content: Content, role: str) -> str:
    if not isinstance(content, TextContent):
        raise cannot_send(f"a message of role {role!r} can hold text only", content)
    return content.text


def _arguments(call: FunctionCallContent) -> str:
    # Servers parse what they are sent, so what is no object goes inside of one: the error that the model is told about
    # would make no sense without it.
    unparsed = call.extra.get(UNPARSED_ARGUMENTS)
    return well_formed_text(as_text({"unparsed_arguments": unparsed} if unparsed is not None else call.arguments))


def _author(name: str | None) -> str | None:
    """The name in the characters that the API takes: no spaces, slashes, bars or angle brackets; at most 64."""
    return well_formed_text(re.sub(r"[\s<|\\/>]+", "_", name)[:64]) if name else None


def _tool(tool: ToolDefinition, name: str) -> Body:
    function: Body = {"name": name, "description": tool.description, "parameters": dict(tool.parameters)}
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def _tool_choice(choice: str, names: ToolNames) -> Json:
    if choice in {"auto", "none", "required"}:
        return choice
    return {"type": "function", "function": {"name": names.sent(choice)}}
