"""Doors as functions that take bytes, for `guided.py`: each asserts what must hold for whatever comes through it.

They are those at which inputs that are led by coverage found what random ones had not. The rest of the doors are in
the tests beside this.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import attrs

from dafx_actors._json import peer as _peer_forms
from dafx_actors._json.crossing import dump_error, load_error
from dafx_actors._json.document import load_transcript
from dafx_actors._json.messages import dump_message, dump_usage, load_message, load_usage
from dafx_actors._json.requests import dump_request, load_request, request_digest
from dafx_actors._rules import state as _state
from dafx_actors.errors import InvalidArguments, ModelError, TurnTimeout, UnsupportedByPeer, UnsupportedTranscript
from dafx_actors.models import ModelReply
from dafx_actors.models._reading import StreamedReply, reply
from dafx_actors.transcript import FunctionCallContent
from tests.fuzz.test_models import ANSWER, SAYS, TOOLS
from tests.fuzz.test_threads import ACTIVE, STATES, TOLD, document, refuse, request, tell


@attrs.frozen
class Door:
    """Where something comes in from outside."""

    check: Callable[[Any], None]
    """Raises where what must hold for a JSON value does not."""
    seeds: tuple[Any, ...]
    """JSON values to begin with."""

    def take(self, data: bytes) -> None:
        """Check a JSON text; what is none stays outside."""
        try:
            value = json.loads(data)
            json.dumps(value, allow_nan=False)
        except (ValueError, RecursionError):
            return
        self.check(value)


def _sent(value: Any) -> Any:
    """The value on the other side: JSON, which has no NaN."""
    return json.loads(json.dumps(value, allow_nan=False))


# --- Requests and errors ------------------------------------------------------------------------------------------


def _request(raw: Any) -> None:
    """It is read, and survives the way to its turn and that to the peer; or it is a ValueError."""
    try:
        read = load_request(raw)
    except ValueError:
        return
    assert load_request(_sent(dump_request(read))) == read
    request_digest(read.messages, read.response_schema)
    _peer_forms.waits_for_answer(raw)
    with suppress(UnsupportedByPeer):
        _sent(_peer_forms.dump_for_peer("A", read))


def _error(raw: Any) -> None:
    """It is rebuilt, and can cross again; or it is None."""
    made = load_error(raw)
    if made is not None:
        assert type(load_error(_sent(dump_error(made)))) is type(made)


# --- What threads are told, and what is stored of them ------------------------------------------------------------


def _told(value: Any) -> None:
    """`[state, [[operation, input], ...]]`, the state by itself or as the number of one of `STATES`."""
    match value:
        case [state, [*told]]:
            pass
        case _:
            return
    if isinstance(state, int) and 0 <= state < len(STATES):
        state = STATES[state]
    for each in told:
        match each:
            case [str(operation), raw]:
                pass
            case _:
                return
        try:
            _state.load(state)
            load_transcript(state)
        except UnsupportedTranscript:
            if operation != "delete":
                refuse(operation, raw, state)
            return
        state = tell(operation, raw, state)


# --- What a model's server answers --------------------------------------------------------------------------------


def _answer(raw: Any) -> None:
    """A reply that can be stored, or a ModelError."""
    try:
        given = reply(raw)
    except ModelError:
        return
    _can_be_kept(given)


def _stream(chunks: Any) -> None:
    """Likewise; no text is lost on the way, and none is told before that the reply does not have."""
    if not isinstance(chunks, list):
        return
    streamed = StreamedReply()
    try:
        text = "".join(streamed.add(chunk) for chunk in chunks)
        given = streamed.reply()
    except ModelError:
        return
    assert sorted(given.message.text) == sorted(text)  # a refusal comes behind the text, wherever it came before
    _can_be_kept(given)


def _can_be_kept(given: ModelReply) -> None:
    assert load_message(_sent(dump_message(given.message))) == given.message
    if given.usage is not None:
        assert load_usage(_sent(dump_usage(given.usage))) == given.usage
    for content in given.message.contents:
        if isinstance(content, FunctionCallContent):
            for tool in TOOLS:
                with suppress(InvalidArguments):
                    tool.bind(content.arguments)


# --- All of them --------------------------------------------------------------------------------------------------

_FULL = {**request("c1"), "deadline": 5.0, "tool_choice": "auto", "responseSchema": {"type": "object"}}
_PIECES = [{"index": 0, "id": "call_1", "function": {"name": "look", "arguments": "{}"}}]
_CHUNKS: list[dict[str, Any]] = [
    {"id": "1", "choices": [{"delta": {"role": "assistant", "content": "He", "reasoning_content": "x"}}]},
    {"choices": [{"delta": {"content": "llo", "refusal": "no", "tool_calls": _PIECES}}]},
    {"choices": [{"delta": {}, "finish_reason": "stop"}]},
    {"choices": [], "usage": ANSWER["usage"]},
]
_TURNS = ["old", "older", "c1", "c2", "c3", "c4"]

DOORS: Mapping[str, Door] = {
    "requests": Door(_request, (_FULL, json.dumps(_FULL), {"message": "x", "correlationId": "c1", "role": "user"})),
    "errors": Door(
        _error,
        (
            dump_error(TurnTimeout("A", "t", "c1", 3.5)),
            dump_error(ModelError("timeout", "late", data={"received": "x"})),
        ),
    ),
    "threads": Door(
        _told,
        (
            *([state, [[name, {**raw, "correlationId": turn}]]]
              for state in (1, 3) for turn in _TURNS for name, raw in TOLD.items()),
            [ACTIVE, [[name, TOLD[name]] for name in TOLD]],
            [document(), [["begin", _FULL], ["record", TOLD["record"]], ["commit", TOLD["commit"]]]],
        ),
    ),
    "answers": Door(_answer, (ANSWER, SAYS)),
    "streams": Door(_stream, (_CHUNKS,)),
}  # fmt: skip
