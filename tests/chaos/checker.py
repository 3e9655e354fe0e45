"""What clients saw and what the tools did, against what is stored."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from dafx_actors._rules.retold import is_retold
from dafx_actors.transcript import (
    ChatMessage,
    Entry,
    FunctionCallContent,
    FunctionResultContent,
    Request,
    Response,
    Transcript,
)
from tests.chaos.effects import name_of
from tests.chaos.model import Asked

DISTURBED = 10.0
"""Seconds after a fault in which a step may be made again that was in flight then."""
FAULTS = (
    "lost",
    "twice",
    "out_of_order",
    "stuck",
    "repeated_steps",
    "repeated_effects",
    "invalid",
    "leaked",
    "crashed",
)


@attrs.define
class Report:
    """What became of it. All but the figures must be empty."""

    done: Counter[str] = attrs.field(factory=Counter[str])
    """Faults that were made, by their kind."""
    figures: Counter[str] = attrs.field(factory=Counter[str])
    lost: list[str] = attrs.field(factory=list[str])
    """Answers that a client saw and the thread does not hold; turns that ended in an error nobody asked for."""
    twice: list[str] = attrs.field(factory=list[str])
    """Requests or answers that stand twice in their thread, or were told with different words."""
    out_of_order: list[str] = attrs.field(factory=list[str])
    """Answers that had not seen exactly what stands before them."""
    stuck: list[str] = attrs.field(factory=list[str])
    """What has not ended two minutes after the last fault, and work that nobody does."""
    repeated_steps: list[str] = attrs.field(factory=list[str])
    """Model calls made again after the next one had been made, by a worker that nothing had happened to."""
    repeated_effects: list[str] = attrs.field(factory=list[str])
    """Calls with `effect="once"` that acted twice, attempts that were made twice; results of what never acted."""
    invalid: list[str] = attrs.field(factory=list[str])
    """Entries with a call that has no result, or a result without its call."""
    leaked: list[str] = attrs.field(factory=list[str])
    """Memory, files, threads and tasks that processes hold when all is done."""
    crashed: list[str] = attrs.field(factory=list[str])
    """Processes that ended by themselves."""
    left_out: list[str] = attrs.field(factory=list[str])
    """Faults that could not be made here, and why."""
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        return not any(getattr(self, fault) for fault in FAULTS)


def check_thread(thread: str, books: Sequence[Mapping[str, Any]], transcript: Transcript, report: Report) -> None:
    """Compare what clients wrote down with what a thread remembers."""
    entries = transcript.entries
    seen = Counter((type(entry).__name__, getattr(entry, "correlation_id", None)) for entry in entries)
    report.twice += [f"{kind} {turn} stands {times} times" for (kind, turn), times in seen.items() if times > 1]
    responses = {entry.correlation_id: entry for entry in entries if isinstance(entry, Response)}
    requests = {entry.correlation_id for entry in entries if isinstance(entry, Request)}
    report.lost += [f"{turn} has no request" for turn in responses.keys() - requests]
    wanted = {line["turn"] for line in books if line["what"] == "sends" and line["cancelled"]}
    for line in books:
        if line["what"] == "told":
            _check_told(line, responses.get(line["turn"]), line["turn"] in wanted, report)
    cancelled = {line["turn"] for line in books if line["what"] == "cancelled"}
    report.lost += [
        f"{turn}: its cancellation" for turn in cancelled if (r := responses.get(turn)) is None or r.error is None
    ]
    _check_order(thread, entries, report)
    for response in responses.values():
        _check_calls(response, report)


def _check_told(line: Mapping[str, Any], stored: Response | None, cancelled: bool, report: Report) -> None:
    turn = line["turn"]
    if stored is None:
        report.lost.append(f"{turn}: told {line}, and nothing is stored")
    elif "text" in line:
        report.figures["answers"] += 1
        if stored.text != line["text"]:
            report.twice.append(f"{turn}: told {line['text']!r}, stored {stored.text!r}")
        if json.loads(line["text"])["turn"] != turn:
            report.lost.append(f"{turn}: got the answer {line['text']!r}")
    elif line["error"] == "cancelled" and cancelled:
        report.figures["cancelled turns"] += 1
        if stored.error is None or stored.error.error_code != "TurnCancelled":
            report.lost.append(f"{turn}: told that it was cancelled, stored {stored.error}")
    else:
        report.lost.append(f"{turn}: {line['error']}: {line.get('detail')}")


def _check_order(thread: str, entries: Sequence[Entry], report: Report) -> None:
    """Each answer says how many messages of ended turns it has seen; and a client's own turns are in its order."""
    ended, last = 0, dict[str, int]()
    begun: dict[str | None, tuple[int, int]] = {}
    """Messages of ended turns when a turn began, and of its own request."""
    for entry in entries:
        if isinstance(entry, Request):
            _, client, number = str(entry.correlation_id).split(".")
            if int(number) <= last.get(client, 0):
                report.out_of_order.append(f"{thread}: {entry.correlation_id} stands after {client}.{last[client]}")
            last[client] = int(number)
            begun[entry.correlation_id] = ended, _said(entry)
        elif isinstance(entry, Response):
            before, own = begun.get(entry.correlation_id, (ended, 0))
            if entry.error is not None:
                ended += 2 if is_retold(entry) else 0  # as a request and what came of it
                continue
            # Requests that were withdrawn while it ran may have been seen, or not.
            if not before <= json.loads(entry.text)["after"] <= ended:
                report.out_of_order.append(f"{thread}: {entry.text} stands after {before} to {ended} messages")
            ended += own + _said(entry)


def _said(entry: Request | Response) -> int:
    return sum(message.role in {"user", "assistant"} for message in entry.messages)


def _check_calls(response: Response, report: Report) -> None:
    opened: list[str] = []
    for message in response.messages:
        for content in message.contents:
            if isinstance(content, FunctionCallContent):
                opened.append(content.call_id)
            elif isinstance(content, FunctionResultContent):
                if content.call_id not in opened:
                    report.invalid.append(f"{response.correlation_id}: a result without a call")
                else:
                    opened.remove(content.call_id)
    if opened:
        report.invalid.append(f"{response.correlation_id}: calls without results")


def check_effects(
    effects: Mapping[str, Sequence[tuple[str, int]]], responses: Sequence[Response], report: Report
) -> None:
    """A call acted once where its result says so, and never twice."""
    for key, lines in effects.items():
        words = Counter(word for word, _ in lines)
        report.figures["effects"] += words["acted"]
        report.figures["effects looked up"] += bool(words["fenced"])
        begun = Counter(number for word, number in lines if word == "begun")
        if words["acted"] > 1 or any(times > 1 for times in begun.values()):
            report.repeated_effects.append(f"{key}: {lines}")
    for response in responses:
        for content in _results(response.messages):
            key = name_of(str((content.extra.get("dafx") or {}).get("key")))
            if content.result in {"paid", "shipped", "found"}:
                words = Counter(word for word, _ in effects.get(key, ()))
                if words["acted"] != 1:
                    report.repeated_effects.append(f"{key}: its result is {content.result}, it acted {words['acted']}")


def _results(messages: Sequence[ChatMessage]) -> list[FunctionResultContent]:
    return [each for message in messages for each in message.contents if isinstance(each, FunctionResultContent)]


def check_steps(
    asked: Mapping[tuple[str, int], Sequence[Asked]],
    disturbances: Sequence[tuple[float, int | None]],
    report: Report,
) -> None:
    """No model call is made again once the next one was made: its reply was on record.

    Unless the worker had it in hand when something happened to it, or to its connection (None: to all of them).
    """
    for (turn, number), calls in asked.items():
        report.figures["model calls"] += len(calls)
        report.figures["steps in flight made again"] += len(calls) - 1
        following = asked.get((turn, number + 1))
        for call in calls:
            if following and call.at > following[0].at:
                excused = any(
                    call.at - DISTURBED < at <= call.at and process in {None, call.worker}
                    for at, process in disturbances
                )
                if not excused:
                    report.repeated_steps.append(f"{turn}: reply {number} was asked for after reply {number + 1}")
