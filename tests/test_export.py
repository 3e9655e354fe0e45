"""A thread as JSON Lines, and back: all of it, or an error that names the line."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dafx_actors._json.export import ExportReader, export_lines
from dafx_actors._json.messages import dump_entry
from dafx_actors._json.operations import Import
from dafx_actors._rules import clearing as _clearing
from dafx_actors._rules import state as _state
from dafx_actors._rules.state import ThreadState
from dafx_actors.errors import InvalidThreadExport, UnsupportedTranscript
from dafx_actors.ids import AgentThread
from tests.test_codec import ENTRIES, document, entries, json_values, objects

THREAD = AgentThread("Joker", "t1")
NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)


def exported(stored: Any) -> list[str]:
    return list(export_lines(THREAD, stored, NOW))


def read(lines: list[Any]) -> Import:
    reader = ExportReader()
    for line in lines:
        reader.read(line)
    return reader.end()


def imported(lines: list[Any]) -> Any:
    """What is stored of a thread into which these went."""
    message = Import.load(json.loads(json.dumps(read(lines).dump())))
    state, _ = _clearing.take_over(ThreadState(), THREAD, message)
    return _state.dump(state)


documents = st.builds(
    lambda stored, version, beside, above: {
        **above,
        "schemaVersion": version,
        "data": {**beside, "conversationHistory": stored},
    },
    st.lists(entries.map(dump_entry) | objects, max_size=5),
    st.sampled_from(["1.0.0", "1.1.0", "1.2.0"]),
    st.dictionaries(st.sampled_from(["extensionData", "more"]), json_values, max_size=2),
    st.dictionaries(st.sampled_from(["etag", "more"]), json_values, max_size=1),
)


@given(documents)
def test_what_is_imported_is_what_was_exported(stored: Any) -> None:
    stored = json.loads(json.dumps(stored))
    lines = exported(stored)
    assert all(line.isascii() and line.endswith("\n") and line.count("\n") == 1 for line in lines)
    assert imported(lines) == stored
    assert imported([line.encode() for line in lines]) == stored
    assert imported("".join(lines).splitlines()) == stored
    assert list(map(json.loads, exported(imported(lines)))) == list(map(json.loads, lines))


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0", "1.2.0"])
def test_threads_of_the_peer_come_back_as_they_were(version: str) -> None:
    stored = document(version, *ENTRIES, extensionData={"peer": [1]})
    assert imported(exported(stored)) == stored


def test_a_thread_that_is_not_there_has_a_header_only() -> None:
    (line,) = exported(None)
    assert json.loads(line) == {
        "format": "dafx.thread",
        "version": 1,
        "agent": "Joker",
        "thread": "t1",
        "exportedAt": "2026-01-02T12:00:00+00:00",
        "entries": 0,
        "document": {},
    }
    assert read([line]) == Import(entries=(), document={})


def test_a_result_may_be_as_deep_as_it_was_when_it_was_kept() -> None:
    deep: Any = 1
    for _ in range(100):
        deep = [deep]
    entry = {"$type": "response", "messages": [{"contents": [{"$type": "functionResult", "result": deep}]}]}
    stored = document("1.1.0", entry)
    assert imported(exported(stored)) == stored


def test_what_is_no_thread_of_this_version_is_not_exported() -> None:
    with pytest.raises(UnsupportedTranscript):
        exported(document("2.0.0"))


HEADER, *REST = exported(document("1.1.0", *ENTRIES))


def header(**fields: Any) -> str:
    return json.dumps({**json.loads(HEADER), **fields})


@pytest.mark.parametrize(
    ("lines", "line", "reason"),
    [
        ([], 1, "there is no header"),
        (["", " \n"], 2, "there is no header"),
        (REST, 1, "the first line is a header"),
        (["[]"], 1, "expected an object"),
        (["{"], 1, "Expecting"),
        ([HEADER, *REST[:2]], 3, "the header says 3 entries, and 2 are there"),
        ([HEADER, *REST, REST[0]], 5, "the header says 3 entries, and 4 are there"),
        ([HEADER, "", REST[0][:-9]], 3, "char"),
        ([HEADER, "7"], 2, "expected an object"),
        ([HEADER, '{"x": NaN}'], 2, "NaN"),
        ([HEADER, b"\xff\xfe"], 2, "utf-8"),
        ([HEADER, "[" * 5000], 2, "levels deep"),
        ([header(version=2)], 1, "export of version 2, and this version of dafx_actors reads up to 1"),
        ([header(version="1")], 1, "expected"),
        ([header(entries=None)], 1, "expected"),
        ([header(agent=5)], 1, "text"),
        ([header(document={"schemaVersion": "1.1.0", "data": {"dafx": {"active": "c1"}}})], 1, "turns that run"),
    ],
)
def test_a_line_that_is_wrong_is_named(lines: list[Any], line: int, reason: str) -> None:
    with pytest.raises(InvalidThreadExport, match=reason) as raised:
        read(lines)
    assert raised.value.line == line


def test_an_export_of_a_thread_of_a_newer_version_is_refused_as_such() -> None:
    with pytest.raises(UnsupportedTranscript, match=r"2\.0\.0"):
        read([header(document={"schemaVersion": "2.0.0", "data": {}})])


@given(st.lists(st.sampled_from([HEADER, *REST, "", "{}"]) | st.text(max_size=20) | st.binary(max_size=20), max_size=5))
def test_any_lines_are_an_export_or_an_error_that_names_one(lines: list[Any]) -> None:
    reader = ExportReader()
    try:
        for line in lines:
            reader.read(line)
        message = reader.end()
    except InvalidThreadExport as error:
        told = error
    else:
        assert _state.load(_state.dump(_clearing.take_over(ThreadState(), THREAD, message)[0]))
        return
    assert told.line == max(reader.line, 1)
    assert f"Line {told.line}" in str(told)
