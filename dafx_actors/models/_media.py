"""Images, sound and files as parts of a chat message; and those that tools gave, out of their results. Pure."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import TypeAlias, cast
from urllib.parse import unquote_to_bytes

import attrs

from dafx_actors._json.shapes import is_list, is_object
from dafx_actors.errors import ModelError
from dafx_actors.transcript import Content, DataContent, HostedFileContent, Json, TextContent, UriContent

__all__ = ["ShownResult", "as_text", "cannot_send", "part", "shown_result"]

Part: TypeAlias = dict[str, Json]

_AUDIO_FORMATS = {
    "audio/wav": "wav",
    "audio/wave": "wav",
    "audio/x-wav": "wav",
    "audio/mpeg": "mp3",
    "audio/mp3": "mp3",
}


def part(content: Content) -> Part:
    """One content of a user's message.

    Raises:
        ModelError: Of kind `bad_request`: chat completions have no form for it.
    """
    match content:
        case TextContent(text=text):
            return {"type": "text", "text": text}
        case DataContent() | UriContent() if content.uri.startswith("data:"):
            return _data_part(content)
        case UriContent(uri=uri, media_type=media_type) if media_type.startswith("image/"):
            return {"type": "image_url", "image_url": {"url": uri}}
        case HostedFileContent(file_id=file_id):
            return {"type": "file", "file": {"file_id": file_id}}
        case UriContent():
            raise cannot_send("only images can be sent by URI; send the bytes as a `DataContent`", content)
        case _:
            raise cannot_send("chat completions have no form for it in a user message", content)


def _data_part(content: DataContent | UriContent) -> Part:
    media_type, data = _read_data_uri(content)
    if media_type.startswith("image/"):
        return {"type": "image_url", "image_url": {"url": f"data:{media_type};base64,{data}"}}
    if audio := _AUDIO_FORMATS.get(media_type):
        return {"type": "input_audio", "input_audio": {"data": data, "format": audio}}
    if media_type == "application/pdf":
        # The API wants a name for the file, and shows it to the model.
        file = {"filename": "document.pdf", "file_data": f"data:{media_type};base64,{data}"}
        return {"type": "file", "file": file}
    raise cannot_send("only images, wav or mp3 audio and PDF can be sent as bytes", content)


def _read_data_uri(content: DataContent | UriContent) -> tuple[str, str]:
    """The media type, in lower case and without parameters, and the bytes in base64 (RFC 2397)."""
    head, comma, tail = content.uri.removeprefix("data:").partition(",")
    media_type, *parameters = (each.strip().lower() for each in head.split(";"))
    try:
        data = unquote_to_bytes(tail)
        if "base64" in parameters:
            data = base64.b64decode(data, validate=True)
    except ValueError as error:  # which `binascii.Error` is, and what half a character raises
        raise cannot_send("its base64 is broken", content) from error
    if not comma or not data:
        raise cannot_send("its `data:` URI holds no data", content)
    declared = (content.media_type or media_type).partition(";")[0].strip().lower()
    return declared or "text/plain", base64.b64encode(data).decode()


def cannot_send(why: str, content: Content) -> ModelError:
    """The error for a content that a model should have had."""
    media_type = getattr(content, "media_type", None)
    what = type(content).__name__ + (f" ({media_type})" if media_type else "")
    return ModelError(kind="bad_request", message=f"{what} cannot be sent to the model: {why}.")


# --- what tools gave -------------------------------------------------------------------------------------------------


@attrs.frozen
class ShownResult:
    """A tool's result: the text of its message, and what is shown beside it."""

    text: str
    parts: tuple[Part, ...] = ()


def as_text(value: Json) -> str:
    """A value as text: JSON, unless it is a text itself."""
    return value if isinstance(value, str) else _ENCODER.encode(value)


def _as_dict(value: object) -> Json:
    """Mappings that are not dicts, which our frozen types may hold."""
    if isinstance(value, Mapping):
        return dict(cast("Mapping[str, Json]", value))
    raise TypeError(f"{type(value).__name__} is not a JSON value")


_ENCODER = json.JSONEncoder(ensure_ascii=False, default=_as_dict)
_MARKS = ("data:", "uri", "$type")
"""What the JSON of a value holds in which there is a content."""


def shown_result(result: Json, first: int = 1, *, may_show: bool = True) -> ShownResult:
    """A result with its images and files apart; in their places it says which they are, or why they are not shown.

    Args:
        result: As it is kept: text, or JSON with contents as they are stored.
        first: The number of the first that is shown.
        may_show: Whether the model looks at any.
    """
    if isinstance(result, str) and not result.startswith("data:"):
        return ShownResult(result)
    text = as_text(result)
    if not any(mark in text for mark in _MARKS):
        return ShownResult(text)
    parts: list[Part] = []
    left = _without_media(result, parts, first)
    if parts and not may_show:
        left, parts = _without_media(result, None, first), []
    contents = left if is_list(left) else [left]
    if is_list(result) and any(map(_is_content, result)) and all(isinstance(each, str) for each in contents):
        return ShownResult("\n".join(contents), tuple(parts))
    return ShownResult(as_text(left), tuple(parts))


def _without_media(value: Json, parts: list[Part] | None, first: int) -> Json:
    if (content := _content_in(value)) is not None:
        return _described(content, parts, first)
    if is_object(value):
        return {key: _without_media(item, parts, first) for key, item in value.items()}
    if is_list(value):
        return [_without_media(item, parts, first) for item in value]
    return value


def _described(content: Content, parts: list[Part] | None, first: int) -> str:
    if isinstance(content, TextContent):
        return content.text
    if (text := _text_in(content)) is not None:
        return text
    what = str(getattr(content, "media_type", None) or "a file")
    if parts is None:
        return f"[{what}: not shown. The model reads text only.]"
    try:
        made = part(content)
    except ModelError as error:
        return f"[{what}: not shown. {error.message}]"
    parts.append(made)
    return f"[{what}: number {first + len(parts) - 1} of what the next message shows]"


def _text_in(content: Content) -> str | None:
    """What a file of text says."""
    media_type = getattr(content, "media_type", None) or ""
    if not isinstance(content, DataContent | UriContent) or not content.uri.startswith("data:"):
        return None
    if not media_type.startswith("text/") and media_type.partition(";")[0] not in {
        "application/json",
        "application/xml",
    }:
        return None
    try:
        return base64.b64decode(_read_data_uri(content)[1]).decode()
    except (UnicodeDecodeError, ModelError):
        return None


def _is_content(value: Json) -> bool:
    return _content_in(value) is not None


def _content_in(value: Json) -> Content | None:
    """The content that a value is: as it is stored, as earlier versions kept a tool's, or as a `data:` URI."""
    if value is None or isinstance(value, int | float):
        return None
    if isinstance(value, str):
        head = value[5:].partition(",")[0] if value.startswith("data:") else ""
        is_media = head.endswith(";base64") and "/" in head and not any(map(str.isspace, value[:200]))
        return DataContent(value, head.partition(";")[0]) if is_media else None
    if not is_object(value):
        return None
    kind, uri = value.get("$type"), value.get("uri")
    if kind == "text" and isinstance(text := value.get("text"), str):
        return TextContent(text)
    if kind == "hostedFile" and isinstance(file := value.get("fileId"), str):
        return HostedFileContent(file)
    media_type = value.get("mediaType") or value.get("media_type")
    earlier = kind is None and set(value) == {"uri", "media_type", "extra"}
    if not isinstance(uri, str) or not isinstance(media_type, str | None) or not (kind in {"data", "uri"} or earlier):
        return None
    if uri.startswith("data:"):
        return DataContent(uri, media_type or uri[5:].partition(",")[0].partition(";")[0])
    return UriContent(uri, media_type) if media_type else None
