"""What a model is shown of turns that ended without an answer: text that any provider takes. Pure.

A turn that failed may have acted: a tool paid, and then the provider refused the next call. Whoever is not told of it
pays again. So such a turn is retold: what was asked, as the user's message; each tool call with its arguments and its
result, and how the turn ended, as the assistant's. The two keep the order in which speakers take turns, which some
providers insist on, and each text of others is cut, so that one large result does not fill every later request.

Not retold are images, files and reasoning, which may be what was refused; and, all of it, a turn that made no call and
that the provider refused: it has done nothing, and would be refused again.

A result may itself be what a provider refuses. Where it refuses the next turns, too, for the same reason and before
they have made a call, what was refused first is retold in brief: without what others wrote in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence

from dafx_actors._json.crossing import load_error
from dafx_actors._json.shapes import as_list, as_object
from dafx_actors.errors import DafxError, ModelError, TurnCancelled
from dafx_actors.transcript import (
    ChatMessage,
    DataContent,
    ErrorContent,
    FunctionCallContent,
    FunctionResultContent,
    HostedFileContent,
    HostedVectorStoreContent,
    Json,
    Request,
    Response,
    TextContent,
    UriContent,
)

MOST_CHARACTERS = 2_000
"""Of a request, of a call's arguments, and of its result, as they are retold."""
_MOST_IN_BRIEF = 200
_REFUSED = frozenset({"bad_request", "content_filter", "context_length"})
"""Kinds of model errors that say that the provider did not take the conversation."""
_UNKNOWN = "its outcome is not known: it may have acted, or not"
_WITHHELD = "its result is not repeated here"
_INLINE = re.compile(r"data:([^;,\s]*)[^,\s]*,")


def is_retold(response: Response) -> bool:
    """Say whether a turn that ended with an error has something to tell."""
    return not _is_refused(response) or any(_calls(response.messages))


def in_brief(responses: Sequence[Response]) -> frozenset[int]:
    """Which of these, the responses of a thread in their order, are retold without what others wrote in them."""
    brief: set[int] = set()
    refused: list[tuple[int, str | None]] = []
    """With their kinds. Once a later turn was answered, they are not what the provider does not take."""
    for number, response in enumerate(responses):
        if response.error is None:
            refused.clear()
        elif _is_refused(response):
            kind = _kind(_error(response))
            if any(_calls(response.messages)):
                refused.append((number, kind))
            else:
                brief.update(earlier for earlier, its_kind in refused if its_kind == kind)
    return frozenset(brief)


def retold(request: Request | None, response: Response, *, brief: bool = False) -> tuple[ChatMessage, ChatMessage]:
    """A turn that ended with an error: what was asked, and what came of it."""
    asked = "" if request is None or brief else _shown("\n\n".join(filter(None, map(_said, request.messages))))
    lines = list(_lines(response.messages, brief=brief))
    done = ["What was done in it:", *lines] if lines else ["No tool was called in it."]
    summary = "\n".join([f"(This turn ended without an answer: {_end(response)}.", *done])
    return ChatMessage("user", asked or "(This request is not repeated here.)"), ChatMessage("assistant", f"{summary})")


def _is_refused(response: Response) -> bool:
    return _kind(_error(response)) in _REFUSED


def _calls(messages: Iterable[ChatMessage]) -> Iterable[FunctionCallContent]:
    return (each for message in messages for each in message.contents if isinstance(each, FunctionCallContent))


def _error(response: Response) -> DafxError | None:
    content = response.error
    return None if content is None else load_error({"type": content.error_code, "fields": content.details})


def _kind(error: DafxError | None) -> str | None:
    return error.kind if isinstance(error, ModelError) else None


def _end(response: Response) -> str:
    """Say how a turn ended. What the provider withheld or refused is not quoted."""
    error, content = _error(response), response.error
    if (kind := _kind(error)) in _REFUSED:
        return f"the model's provider refused to go on ({kind})"
    if isinstance(error, TurnCancelled):
        return f"it was cancelled{_because(error)}"
    said = str(error) if error is not None else content.message if content is not None else None
    return _cut(said or "nobody knows how", MOST_CHARACTERS).rstrip(".")


def _because(error: TurnCancelled) -> str:
    by = f" by {error.by}" if error.by else ""
    return _cut(f"{by}: {error.reason}" if error.reason else by, MOST_CHARACTERS)


def _lines(messages: Sequence[ChatMessage], *, brief: bool) -> Iterable[str]:
    """A line for each call, and for what the user said meanwhile."""
    for number, message in enumerate(messages):
        calls = [each for each in message.contents if isinstance(each, FunctionCallContent)]
        results = _results_behind(messages[number + 1 :]) if calls else {}
        for call in calls:
            answers = results.get(call.call_id)
            yield _line(call, answers.pop(0) if answers else None, brief=brief)
        # What joined the turn; the others of this role are ours, which tell a model what is wrong with its answer.
        if message.role == "user" and "correlationId" in message.extra and not brief and (said := _said(message)):
            yield f"- The user added: {_shown(said)}"


def _results_behind(messages: Iterable[ChatMessage]) -> dict[str, list[FunctionResultContent]]:
    """The results that stand right behind their calls, by the ids of those; models may give several the same id."""
    results_by_id: dict[str, list[FunctionResultContent]] = {}
    for message in messages:
        results = [each for each in message.contents if isinstance(each, FunctionResultContent)]
        if not results:
            break
        for each in results:
            results_by_id.setdefault(each.call_id, []).append(each)
    return results_by_id


def _line(call: FunctionCallContent, result: FunctionResultContent | None, *, brief: bool) -> str:
    ours = _object_or_none(None if result is None else result.extra.get("dafx"))
    # Whoever approved a call may have changed what it was made with.
    edited: Json = _object_or_none(ours.get("decision")).get("arguments")
    arguments = _as_text(call.arguments if edited is None else edited)
    most = _MOST_IN_BRIEF if brief else MOST_CHARACTERS
    made = f"- {_cut(call.name, _MOST_IN_BRIEF)}({_cut(arguments, most)})"
    if result is None or ours.get("open"):
        return f"{made}: {_UNKNOWN}"
    if brief:
        return f"{made}: {'it failed' if ours.get('failed') else _WITHHELD}"
    return f"{made}: {_shown(_as_text(result.result))}"


def _object_or_none(value: Json) -> Mapping[str, Json]:
    """What is kept under `dafx`; others may have stored anything there, which is no reason to fail every later turn."""
    return as_object(value) if isinstance(value, Mapping) else {}


def _said(message: ChatMessage) -> str:
    """The words of a message; images and files are named."""
    parts: list[str] = []
    for content in message.contents:
        if isinstance(content, TextContent):
            parts.append(content.text)
        elif isinstance(content, DataContent | UriContent):
            parts.append(f"[{content.media_type or 'data'}, not shown again]")
        elif isinstance(content, HostedFileContent | HostedVectorStoreContent | ErrorContent):
            parts.append("[not shown again]")
    text = "\n".join(part for part in parts if part)
    return text if message.role == "user" or not text else f"[{message.role}] {text}"


def _as_text(value: Json) -> str:
    value = _without_inline(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _without_inline(value: Json) -> Json:
    """A value without what it holds as `data:` URIs."""
    if isinstance(value, str):
        match = _INLINE.match(value)
        return f"[{match[1] or 'data'}, not shown again]" if match else value
    if isinstance(value, Mapping):
        return {key: _without_inline(each) for key, each in as_object(value).items()}
    if isinstance(value, list):
        return [_without_inline(each) for each in as_list(value)]
    return value


def _shown(text: str) -> str:
    return _cut(text, MOST_CHARACTERS)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}... [cut off here; {len(text):,} characters in all]"
