"""A thread as JSON Lines: a header, then a line for each entry of the transcript, as it is stored.

::

    {"format": "dafx.thread", "version": 1, "agent": "Joker", "thread": "...", "exportedAt": "...", "entries": 2, ...}
    {"$type": "request", "correlationId": "...", "createdAt": "...", "messages": [...]}
    {"$type": "response", "correlationId": "...", "createdAt": "...", "messages": [...], "usage": {...}}

The lines are ASCII, with all else escaped, so that whatever reads or splits them reads the same. `document` in the
header is the stored thread without its entries: its schema version, and what others keep beside them. `leftOut` names
the turn that was running: its request is not yet a part of what was said.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime

import attrs

from dafx_actors._json.document import check_document, load_unfinished
from dafx_actors._json.operations import Import, check_without_entries
from dafx_actors._json.shapes import MOST_LEVELS, as_object, as_text, as_whole_number, dump_time, load_json, object_in
from dafx_actors.errors import InvalidThreadExport
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import Json

FORMAT, VERSION = "dafx.thread", 1
"""The version goes up where an older reader would misread what it is given; a new field is not a new version."""
_LEVELS = MOST_LEVELS + 20
"""Of an entry: a value in it, such as a tool's result, may have `MOST_LEVELS` of its own."""


def export_lines(thread: AgentThread, document: Json, now: datetime) -> Iterator[str]:
    """A stored thread as lines, each with its line end; a thread that is not there has a header only.

    Raises:
        UnsupportedTranscript: A newer major version, or not a thread at all.
    """
    data = check_document(document)
    active = load_unfinished(data).active
    history: list[Json] = list(data.get("conversationHistory", []))
    entries = [raw for raw in history if active is None or raw.get("correlationId") != active]
    rest = {name: value for name, value in data.items() if name not in ("conversationHistory", "dafx")}
    header: dict[str, Json] = {
        "format": FORMAT,
        "version": VERSION,
        "agent": thread.agent,
        "thread": thread.thread_id,
        "exportedAt": dump_time(now),
        "entries": len(entries),
        **({} if len(entries) == len(history) else {"leftOut": [active]}),
        "document": {**object_in(document), "data": rest} if document else {},
    }
    yield _line(header)
    for raw in entries:
        yield _line(raw)


def _line(value: Json) -> str:
    return json.dumps(value, separators=(",", ":")) + "\n"


@attrs.define
class ExportReader:
    """Reads an export, line by line; one that is blank says nothing."""

    line: int = 0
    """The number of the line that was read last."""
    size: int = 0
    """Bytes of what was read."""
    _header: Mapping[str, Json] | None = None
    _document: Mapping[str, Json] = attrs.field(factory=dict[str, Json])
    _entries: list[Json] = attrs.field(factory=list[Json])

    def read(self, line: str | bytes) -> None:
        """Take the next line, with or without its line end.

        Raises:
            InvalidThreadExport: It is none of an export.
            UnsupportedTranscript: A newer version stored the thread.
        """
        self.line += 1
        self.size += len(line)
        try:
            text = (line.decode("utf-8-sig") if isinstance(line, bytes) else line.removeprefix("\ufeff")).strip()
            if not text:
                return
            value = as_object(load_json(text, _LEVELS))
            if self._header is None:
                self._header = value
                self._document = self._read_header(value)
            else:
                self._entries.append(value)
        except ValueError as error:
            raise InvalidThreadExport(self.line, str(error)) from error

    def end(self) -> Import:
        """What is to be imported, when there are no more lines.

        Raises:
            InvalidThreadExport: There are fewer entries than the header says, or more, or there is no header.
        """
        if self._header is None:
            raise InvalidThreadExport(max(self.line, 1), "there is no header")
        said, found = self._header["entries"], len(self._entries)
        if said != found:
            reason = f"the header says {said} entries, and {found} are there: lines were cut off or added"
            raise InvalidThreadExport(self.line, reason)
        return Import(entries=tuple(self._entries), document=self._document)

    def _read_header(self, header: Mapping[str, Json]) -> Mapping[str, Json]:
        """The stored thread that the entries belong to, without them.

        Raises:
            ValueError: It is no header.
            UnsupportedTranscript: A newer version stored the thread.
        """
        if header.get("format") != FORMAT:
            raise ValueError(f'the first line is a header with "format": "{FORMAT}"; here it is another')
        if (version := as_whole_number(header.get("version"))) > VERSION:
            raise ValueError(
                f"it is an export of version {version}, and this version of dafx_actors reads up to {VERSION}; "
                "upgrade dafx_actors"
            )
        as_text(header.get("agent"))
        as_text(header.get("thread"))
        as_whole_number(header.get("entries"))
        document = as_object(header.get("document"))
        check_document(document or None)
        return check_without_entries(document)
