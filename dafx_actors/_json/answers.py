"""An answer: the JSON in it, whether it fits the schema that was asked for, and its value. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs

from dafx_actors._json.requests import load_response
from dafx_actors._json.schema_check import BrokenSchema, mistakes
from dafx_actors._json.schema_limits import look
from dafx_actors._json.shapes import as_object, cut, load_json
from dafx_actors._json.values import load_value
from dafx_actors.errors import InvalidAnswer, ValueMismatch
from dafx_actors.exchange import AgentRunResponse
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import Json


def answer_mismatch(
    text: str,
    schema: Mapping[str, Json] | None,
    mistakes_of: Callable[[Json, Any], list[tuple[str, str]]] = mistakes,
) -> str | None:
    """What is wrong with an answer, in words for the model that gave it; None where it fits.

    Args:
        text: The answer, which may hold the JSON among other words; see `values_in`.
        schema: Of JSON Schema, draft 2020-12 unless it says otherwise; None takes any text.
        mistakes_of: Holds one value against the schema.
    """
    if schema is None:
        return None
    wrong: str | None = None
    try:
        for value in values_in(text):
            mismatch = _mismatch(value, schema, mistakes_of)
            if mismatch is None:
                return None
            wrong = wrong or mismatch
    except ValueError as error:
        return f"it is not JSON ({error})"
    return wrong


def _mismatch(
    value: Json, schema: Mapping[str, Json], mistakes_of: Callable[[Json, Any], list[tuple[str, str]]]
) -> str | None:
    try:
        found = mistakes_of(value, schema)
    except BrokenSchema as error:
        return f"the schema itself is broken ({cut(str(error))})"
    return "; ".join(f"{cut(place)}: {cut(message)}" for place, message in found) or None


_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*[\w+-]*[ \t]*\r?\n(.*?)^[ \t]*\1[ \t]*$", re.DOTALL | re.MULTILINE)
_MOST_STARTS = 200
"""Places at which a value is looked for among words; each may cost as much as the text is long."""


def values_in(text: str) -> Iterator[Json]:
    """The JSON values that an answer may mean, likeliest first.

    That is the whole text, if it is JSON. Else what comes after the model's `<think>`: as a whole, in Markdown fences,
    or an object or a list among words; of several the last, which a model comes to after its examples.

    Raises:
        ValueError: There is none; says what is wrong with the text as a whole.
    """
    text = text.removeprefix("\ufeff")
    try:
        yield load_json(text)
    except ValueError:
        pass
    else:
        return
    said = _after_thinking(text)
    found = [value for part in (said, *_fenced(said)) for value in _read(part)]
    if not _is_json_twice(said):
        found += reversed(list(_among_words(said)))
    if not found:
        load_json(said)  # which says what is wrong
    yield from found


def _after_thinking(text: str) -> str:
    # Some servers leave out where the thinking begins; a model that was cut leaves out where it ends.
    said = text.rpartition("</think>")[2]
    return said.partition("<think>")[0].strip()


def _fenced(text: str) -> Iterator[str]:
    yield from reversed([fence[2] for fence in _FENCE.finditer(f"{text}\n")])
    if (opened := text.rfind("```")) >= 0 and text.count("```") % 2:  # a fence that is not closed, or all on one line
        yield re.sub(r"^```\w*", "", text[opened:])


def _read(text: str) -> Iterator[Json]:
    try:
        yield load_json(text)
    except ValueError:
        return


def _is_json_twice(text: str) -> bool:
    """Whether one JSON value follows another without a word: which of them is meant, nobody can say."""
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return text[end:].lstrip(" \t\r\n,;")[:1] in {"{", "["}


def _among_words(text: str) -> Iterator[Json]:
    decoder = json.JSONDecoder()
    at = 0
    for _ in range(_MOST_STARTS):
        start = re.compile(r"[{\[]").search(text, at)
        if start is None:
            return
        try:
            _, at = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            at = start.end()
            continue
        yield from _read(text[start.start() : at])


# --- The answer of a turn -----------------------------------------------------------------------------------------

_KINDS = {"object": dict, "array": list, "string": str, "integer": int, "number": float, "boolean": bool}
"""What an answer must be at least where a JSON schema was asked for; the model's provider holds it to the rest."""


def answer(raw: Json, thread: AgentThread, response_format: Any) -> AgentRunResponse[Any]:
    """What a turn gave, with its value where one was asked for.

    Raises:
        InvalidAnswer: The text does not fit `response_format`.
        TurnError: The turn had ended with this error.
    """
    response = load_response(raw, thread)
    if response_format is None:
        return response
    annotation = response_format
    if isinstance(response_format, Mapping):
        annotation = _KINDS.get(str(as_object(response_format).get("type")), Any)
    try:
        values = list(values_in(response.text))
    except ValueError as error:
        raise InvalidAnswer(response.text, f"it is not JSON ({error})") from error
    schema: Mapping[str, Json] = as_object(response_format) if isinstance(response_format, Mapping) else {}
    if schema and len(values) > 1 and not look(schema).may_be_slow:
        # The one that the worker took; a single one is taken as it is.
        values = [value for value in values if answer_mismatch(json.dumps(value), schema) is None] or values
    mismatches: list[ValueMismatch] = []
    for value in values:
        try:
            return attrs.evolve(response, value=load_value(value, annotation))
        except ValueMismatch as error:
            mismatches.append(error)
    raise InvalidAnswer(response.text, str(mismatches[0])) from mismatches[0]
