"""What was said in a thread, for people and for programs."""

from __future__ import annotations

import json
from typing import Any

from dafx_actors.transcript import (
    ChatMessage,
    Content,
    DataContent,
    Entry,
    ErrorContent,
    FunctionCallContent,
    FunctionResultContent,
    OpaqueEntry,
    Request,
    TextContent,
    TextReasoningContent,
    UriContent,
)

_LONGEST = 200
"""Characters that are shown of a tool's arguments, or of its result."""


def cut(text: str, longest: int = _LONGEST) -> str:
    """A text in a line, and its beginning if it is long."""
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


def call_line(name: str, arguments: Any) -> str:
    """A tool call in a line."""
    given = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False, default=dict)
    return f"{name}({cut(given)})"


def content_line(content: Content) -> str | None:
    """A content of a message, for people; None where nothing of it is shown."""
    match content:
        case TextContent():
            return content.text
        case TextReasoningContent():
            return None
        case FunctionCallContent():
            return f"-> {call_line(content.name, content.arguments)}"
        case FunctionResultContent():
            result = content.result
            return (
                f"<- {cut(result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str))}"
            )
        case ErrorContent():
            return f"!! {content.message or content.error_code or 'an error'}"
        case DataContent() | UriContent():
            return f"[{content.media_type or 'a file'}]"
        case _:
            return f"[{type(content).__name__.removesuffix('Content').lower()}]"


def message_lines(message: ChatMessage) -> list[str]:
    """A message, for people."""
    return [line for content in message.contents if (line := content_line(content)) is not None]


def entry_record(entry: Entry) -> dict[str, Any]:
    """An entry of a thread, for programs."""
    if isinstance(entry, OpaqueEntry):
        return {"kind": "unknown", "raw": entry.raw}
    return {
        "kind": "request" if isinstance(entry, Request) else "response",
        "turn": entry.correlation_id,
        "at": entry.created_at,
        "messages": [{"role": each.role, "lines": message_lines(each)} for each in entry.messages],
    }


def entry_text(entry: Entry) -> str:
    """An entry of a thread, for people."""
    if isinstance(entry, OpaqueEntry):
        return "[an entry that this version does not know]"
    lines: list[str] = []
    for message in entry.messages:
        for number, line in enumerate(message_lines(message)):
            lines.append(f"{message.role if not number else '':<9} {line}")
    return "\n".join(lines)
