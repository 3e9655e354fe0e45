"""What a provider wants back with the history, kept opaque in the transcript's `extra`. Pure.

Gemini signs its thoughts at each call, DeepSeek wants its reasoning back wherever tools were called, OpenRouter its
reasoning's details. Each goes back to the provider and the model that gave it and to no other, as it came, and is never
shown as text. In `extra["dafx"]` of a message: `from`, `back`, and `reply` for what is kept for people.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import attrs

from dafx_actors._json.shapes import is_list, is_object
from dafx_actors.models import ModelReply
from dafx_actors.transcript import ChatMessage, Content, FunctionCallContent, Json

__all__ = ["GatheredReply", "back_of_call", "back_of_message", "keep"]

_BACK = ("reasoning_details", "extra_content", "thinking_blocks", "provider_specific_fields")
"""Of a message, wherever it stands."""
_BACK_WITH_TOOLS = ("reasoning_content", "reasoning")
"""Of a message between two of the user's, where tools were called there; elsewhere it is refused, or ignored."""
_BACK_OF_CALLS = ("extra_content", "provider_specific_fields", "thought_signature")
_FOR_PEOPLE = ("id", "model", "system_fingerprint", "service_tier")


def keep(reply: ModelReply, answer: Json, origin: str, *, with_tools: bool) -> ModelReply:
    """The reply with what is kept of the chat completion that it was read from.

    Args:
        reply: As it was read.
        answer: The JSON of the response.
        origin: The provider and the model, as one text.
        with_tools: Whether the model had tools to call.
    """
    if not is_object(answer):
        return reply
    choice = _first(answer.get("choices"))
    given = choice.get("message")
    message: Mapping[str, Json] = given if is_object(given) else {}
    about = {name: answer[name] for name in _FOR_PEOPLE if isinstance(answer.get(name), str) and answer[name]}
    if choice.get("logprobs"):
        about["logprobs"] = choice["logprobs"]
    wanted = (*_BACK, *(_BACK_WITH_TOOLS if with_tools else ()))
    back = {name: message[name] for name in wanted if message.get(name)}
    if "reasoning_details" in back:
        back.pop("reasoning", None)  # says in words what the details hold
    if "reasoning_content" in message and message.get("tool_calls") and "reasoning_content" not in back:
        back["reasoning_content"] = message["reasoning_content"] or ""
    raw_calls = message.get("tool_calls")
    contents = tuple(_with_back(reply.message.contents, raw_calls if is_list(raw_calls) else []))
    ours: dict[str, Json] = {**({"reply": about} if about else {}), **({"back": back} if back else {})}
    if back or contents != reply.message.contents:
        ours["from"] = origin
    if not ours:
        return reply
    extra = {**reply.message.extra, "dafx": {**_ours(reply.message.extra), **ours}}
    return attrs.evolve(reply, message=attrs.evolve(reply.message, contents=contents, extra=extra))


def _with_back(contents: Sequence[Content], calls: Sequence[Json]) -> Iterator[Content]:
    number = 0
    for content in contents:
        if not isinstance(content, FunctionCallContent):
            yield content
            continue
        call = calls[number] if number < len(calls) else None
        number += 1
        back = {name: call[name] for name in _BACK_OF_CALLS if call.get(name)} if is_object(call) else {}
        if back:
            ours = {**_ours(content.extra), "back": back}
            yield attrs.evolve(content, extra={**content.extra, "dafx": ours})
        else:
            yield content


def back_of_message(message: ChatMessage, origin: str, *, tools_called: bool) -> Mapping[str, Json]:
    """The fields of a message that its server wants back; none for another server or model.

    Args:
        message: Of the assistant.
        origin: Of the request that is made.
        tools_called: Whether tools were called between the same two messages of the user.
    """
    ours = _ours(message.extra)
    back = ours.get("back")
    if ours.get("from") != origin or not is_object(back):
        return {}
    wanted = (*_BACK, *(_BACK_WITH_TOOLS if tools_called else ()))
    return {name: back[name] for name in wanted if name in back}


def back_of_call(message: ChatMessage, call: FunctionCallContent, origin: str) -> Mapping[str, Json]:
    """Keep the fields of one of its calls."""
    back = _ours(call.extra).get("back")
    return back if _ours(message.extra).get("from") == origin and is_object(back) else {}


def _ours(extra: Mapping[str, Json]) -> Mapping[str, Json]:
    found = extra.get("dafx")
    return found if is_object(found) else {}


def _first(choices: Json) -> Mapping[str, Json]:
    first = choices[0] if is_list(choices) and choices else None
    return first if is_object(first) else {}


@attrs.define
class GatheredReply:
    """Of a streamed reply what is kept: `add()` each chunk, then take `answer()`."""

    _about: dict[str, Json] = attrs.field(factory=dict[str, Json])
    _message: dict[str, Json] = attrs.field(factory=dict[str, Json])
    _calls: dict[int, dict[str, Json]] = attrs.field(factory=dict[int, "dict[str, Json]"])

    def add(self, chunk: Json) -> None:
        """Take one chunk, of any form."""
        if not is_object(chunk):
            return
        self._about |= {name: chunk[name] for name in _FOR_PEOPLE if chunk.get(name)}
        delta = _first(chunk.get("choices")).get("delta")
        if not is_object(delta):
            return
        for name in (*_BACK, *_BACK_WITH_TOOLS):
            if delta.get(name):
                self._message[name] = _joined(self._message.get(name), delta[name])
        calls = delta.get("tool_calls")
        for call in calls if is_list(calls) else []:
            if is_object(call):
                index = call.get("index")
                kept = self._calls.setdefault(index if isinstance(index, int) else len(self._calls), {})
                kept.update({name: call[name] for name in _BACK_OF_CALLS if call.get(name)})

    def answer(self) -> Json:
        """As a whole chat completion has it."""
        calls = [self._calls[index] for index in sorted(self._calls)]
        return {**self._about, "choices": [{"message": {**self._message, "tool_calls": calls}}]}


def _joined(before: Json, piece: Json) -> Json:
    if isinstance(before, str) and isinstance(piece, str):
        return before + piece
    if is_list(before) and is_list(piece):
        return [*before, *piece]
    if is_object(before) and is_object(piece):
        return {**before, **piece}
    return piece
