"""What servers of chat completions take, by the name of their host. Pure.

A server that nobody knows gets what all of them take; what it refuses by name is asked for in another way
(`_structured.py`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

import attrs

__all__ = ["STRUCTURED", "UNKNOWN", "Dialect", "Structured", "amended", "dialect_of"]

Structured: TypeAlias = Literal["schema", "json", "tool", "prompt"]
"""How a typed answer is asked for.

`schema`: `response_format` with the JSON schema. `json`: `response_format` for any JSON, the schema in words. `tool`:
as the arguments of a tool. `prompt`: the schema in words alone.
"""
STRUCTURED: tuple[Structured, ...] = ("schema", "json", "tool", "prompt")


@attrs.frozen(kw_only=True)
class Dialect:
    """What one server takes."""

    structured: Structured = "schema"
    apart: bool = False
    """Whether tools and a format for the answer are refused together, or a format keeps the model from its tools."""
    call_ids: Literal["nine", "forty", "any"] = "nine"
    """`nine`: letters and digits, as Mistral wants them and everybody takes. `forty`: at most so many characters.
    `any`: as the model made them."""
    authors: bool = True
    """Whether a message may say its author's name."""
    user_after_tool: bool = True
    """Whether a user's message may follow a tool's."""
    reasoning: Literal["given", "always", "never"] = "given"
    """Whether calls go with the reasoning before them: where it came from there; `always`, if need be an empty one, as
    for calls that another model made; or `never`."""
    signs: bool = False
    """Whether a message's first call has a thought signature, also where another model made it."""
    media: bool = True
    """Whether the model looks at what tools give it that is no text."""


UNKNOWN = Dialect()
_OPENAI = Dialect(call_ids="forty")
_MISTRAL = Dialect(authors=False, user_after_tool=False)
_KIMI = Dialect(call_ids="any")  # its template reads the tool's name out of the id: `functions.name:0`


def _gemini(model: str) -> Dialect:
    # Up to Gemini 2.5, a function call "with a response mime type" is refused.
    is_third = "gemini-3" in model
    return Dialect(call_ids="forty", apart=not is_third, signs=is_third)


_HOSTS: tuple[tuple[str, Dialect | Callable[[str], Dialect]], ...] = (
    ("api.openai.com", _OPENAI),
    ("openai.azure.com", _OPENAI),
    ("cognitiveservices.azure.com", _OPENAI),
    ("services.ai.azure.com", _OPENAI),
    ("generativelanguage.googleapis.com", _gemini),
    ("aiplatform.googleapis.com", _gemini),
    ("api.anthropic.com", Dialect(structured="tool", call_ids="forty")),  # ignores `response_format`
    ("api.deepseek.com", Dialect(structured="json", call_ids="forty", reasoning="always")),
    ("api.mistral.ai", _MISTRAL),
    ("api.groq.com", Dialect(apart=True, call_ids="forty")),
    ("api.moonshot.ai", _KIMI),
    ("api.moonshot.cn", _KIMI),
)
_OLLAMA_PORT = 11434
_OLLAMA = Dialect(apart=True)  # a format keeps its models from calling tools


@functools.lru_cache(maxsize=1000)
def dialect_of(base_url: str, model: str) -> Dialect:
    """What the server at an address takes, from a model of that name."""
    address = urlsplit(base_url)
    host = (address.hostname or "").lower()
    for name, known in _HOSTS:
        if host == name or host.endswith((f".{name}", f"-{name}")):
            return known(model.lower()) if callable(known) else known
    if "kimi" in model.lower():
        return _KIMI
    try:
        port = address.port
    except ValueError:
        port = None
    return _OLLAMA if port == _OLLAMA_PORT or host == "ollama" or host.endswith("ollama.com") else UNKNOWN


_ABOUT_MEDIA = re.compile(
    r"image_url|image[_ ]?(input|content)|\bimages?\b.*not support|not support.*\bimages?\b|multi-?modal|\bvision\b"
    r"|input_audio|content must be a string",
    re.IGNORECASE | re.DOTALL,
)
_REFUSED = re.compile(
    r"unsupported|not supported|not permitted|unknown|unrecognized|extra (input|field)", re.IGNORECASE
)


def amended(dialect: Dialect, refusal: str, *, shows_media: bool, gives_back: bool) -> Dialect | None:
    """The dialect after a server refused a conversation that another model began; None where that is not why.

    Args:
        dialect: As it was taken to be.
        refusal: The server's words.
        shows_media: Whether the conversation had something that a tool gave to look at.
        gives_back: Whether it had what only this server gave.
    """
    made = dialect
    if "thought_signature" in refusal:
        made = attrs.evolve(dialect, signs=True)
    elif "reasoning" in refusal and _REFUSED.search(refusal):
        made = attrs.evolve(dialect, reasoning="never") if gives_back else dialect
    elif "reasoning_content" in refusal:
        made = attrs.evolve(dialect, reasoning="always")
    elif shows_media and _ABOUT_MEDIA.search(refusal):
        made = attrs.evolve(dialect, media=False)
    return None if made == dialect else made
