"""Secrets that a program was configured with, and texts without them.

Keys, tokens and headers are given to models, MCP servers and clients. Servers repeat them in what they answer, and
libraries in what they raise. Whoever is given a secret says so here (`keep`), for as long as it lives; and every text
that leaves the process, in an error, a log, a result or a thread, has `[secret]` in its place. What is shorter than
eight characters is no secret: it would be found in ordinary words.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import re
import threading
import traceback
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast
from urllib.parse import quote, unquote, unquote_plus, urlsplit

from dafx_actors.errors import ConfigurationError

SHOWN = "[secret]"
"""What stands where a secret was."""
_SHORTEST = 8
_WORD = re.compile(r"[A-Za-z]{1,15}")
"""What may as well be a word, such as `assistant`: taken out of errors and logs, and left in data, where it may be what
a field is called or holds."""


# --- What is known ------------------------------------------------------------------------------------------------


class _Known:
    """The secrets of all who live; their forms are read without a lock."""

    def __init__(self) -> None:
        self._counted: Counter[str] = Counter()
        self._mutex = threading.RLock()  # a finalizer may run while it is held
        self.in_texts: tuple[str, ...] = ()
        self.in_data: tuple[str, ...] = ()
        self.in_bytes: tuple[bytes, ...] = ()

    def add(self, secrets: Iterable[str]) -> None:
        with self._mutex:
            self._counted.update(secrets)
            self._formed()

    def remove(self, secrets: Iterable[str]) -> None:
        with self._mutex:
            self._counted.subtract(secrets)
            self._counted += Counter()  # without those that nobody has any more
            self._formed()

    def _formed(self) -> None:
        def forms(secrets: Iterable[str]) -> tuple[str, ...]:
            # The longest first: one may be part of another.
            found = {form for each in secrets for form in _forms(each)}
            return tuple(sorted(found, key=lambda form: (-len(form), form)))

        self.in_texts = forms(self._counted)
        self.in_data = forms(each for each in self._counted if not _WORD.fullmatch(each))
        self.in_bytes = tuple(form.encode(errors="surrogatepass") for form in self.in_data)


_known = _Known()


def _forms(secret: str) -> Iterator[str]:
    """A secret as texts hold it: as it is, in JSON, in JSON that is text in JSON, in an address, in a header."""
    once = json.dumps(secret)[1:-1]
    yield from (secret, once, json.dumps(once)[1:-1], repr(secret)[1:-1])
    yield from (quote(secret, safe=""), quote(secret))
    yield base64.b64encode(secret.encode(errors="surrogatepass")).decode()


def keep(owner: object, *secrets: str | None) -> None:
    """Say that texts must not hold these, as long as `owner` lives; one that is too short, or None, is left out."""
    kept = [each for each in secrets if each is not None and len(each) >= _SHORTEST]
    if kept:
        _known.add(kept)
        weakref.finalize(owner, _known.remove, kept).atexit = False
        guard_logs()


# --- Texts without them -------------------------------------------------------------------------------------------


def without(text: str) -> str:
    """A text without any secret."""
    for form in _known.in_texts:
        if form in text:
            text = text.replace(form, SHOWN)
    return text


def without_in_data(text: str) -> str:
    """JSON as text, or any text that a program may read, without secrets other than plain words."""
    for form in _known.in_data:
        if form in text:
            text = text.replace(form, SHOWN)
    return text


def without_in(value: Any) -> Any:
    """A JSON value without secrets, itself where it holds none; the names of fields stay."""
    return _cleaned(value) if _known.in_data and _is_dirty(value) else value


def _is_dirty(value: Any) -> bool:
    if isinstance(value, str):
        return any(form in value for form in _known.in_data)
    if isinstance(value, Mapping):
        return any(map(_is_dirty, cast("Mapping[str, Any]", value).values()))
    return isinstance(value, list | tuple) and any(map(_is_dirty, cast("list[Any]", value)))


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return without_in_data(value)
    if isinstance(value, Mapping):
        given = cast("Mapping[str, Any]", value)
        return {name: _cleaned(item) for name, item in given.items()}
    if isinstance(value, list | tuple):
        return [_cleaned(item) for item in cast("list[Any]", value)]
    return value


def holds(text: str) -> bool:
    """Whether a text holds a secret."""
    return any(form in text for form in _known.in_texts)


def are_known() -> bool:
    """Whether there are secrets to be taken out of data."""
    return bool(_known.in_bytes)


def is_in(data: bytes) -> bool:
    """Whether bytes, such as those of a message, hold one of those."""
    return any(form in data for form in _known.in_bytes)


# --- Logs ---------------------------------------------------------------------------------------------------------

_LOGGERS = ("dafx_actors", "openai", "mcp", "client", "httpx2", "httpcore2", "azure", "asyncio", "concurrent.futures")
"""Whose records may hold a secret: ours, and those of what keys are given to. `client` is a logger of `mcp`."""


class _Cleans(logging.Filter):
    """Lets every record pass, without secrets."""

    def filter(self, record: logging.LogRecord) -> bool:
        if _known.in_texts:
            try:
                said = record.getMessage()
            except Exception:  # noqa: BLE001 - whoever writes the record down says what is wrong with it
                return True
            if holds(said):
                record.msg, record.args = without(said), ()
            if record.exc_info:
                led_to = "".join(traceback.format_exception(*record.exc_info))
                if holds(led_to):
                    record.exc_info, record.exc_text = None, without(led_to).rstrip()
        return True


_cleans = _Cleans()


def guard_logs() -> None:
    """Have all loggers that may tell a secret leave it out.

    A filter counts for one logger, and not for those below; so this is done again when more may have been made, which
    libraries do when they are imported.
    """
    for name in (*_LOGGERS, *list(logging.root.manager.loggerDict)):
        if name in _LOGGERS or name.startswith(tuple(f"{each}." for each in _LOGGERS)):
            logging.getLogger(name).addFilter(_cleans)  # which it has once, however often it is given


# --- Where they are given -----------------------------------------------------------------------------------------

_NO_SECRETS = {
    *("accept", "accept-charset", "accept-encoding", "accept-language", "cache-control", "connection", "content-type"),
    *("host", "origin", "referer", "user-agent", "mcp-protocol-version", "http-referer", "x-title"),
}
_NO_SECRETS_EITHER = re.compile(r"version|beta|organi[sz]ation|project|region|tenant", re.IGNORECASE)
"""In the name of a header: what it holds, such as `2023-06-01`, is what people write, too."""
_ARE_SECRETS = {"auth", "authorization", "code", "cookie", "credential", "credentials", "pat", "pwd", "session", "sig"}
_END_OF_SECRETS = ("key", "token", "secret", "password", "passwd", "passphrase", "signature")


def key_given(what: str, key: Any) -> Any:
    """A key without the spaces and line breaks around it that files and variables have; what gives one, as it is.

    Args:
        what: What it is called where it is given.
        key: What was given.

    Raises:
        ConfigurationError: It is no text, or has characters that no header can hold; without the value.
    """
    if key is None or callable(key):
        return key
    if not isinstance(key, str):
        raise ConfigurationError(f"{what} is no text, but {type(key).__name__}.")
    if mistake := value_mistake(stripped := key.strip()):
        raise ConfigurationError(f"{what} has {mistake}.")
    return stripped


def value_mistake(value: str) -> str | None:
    """Why a header cannot hold a value, without it."""
    if re.search(r"[\x00-\x08\x0a-\x1f\x7f]", value):
        return "characters that HTTP cannot send, such as a line break"
    return None if value.isascii() else "characters that HTTP cannot send, since they are not of ASCII"


def header_mistakes(headers: Mapping[str, str]) -> Iterator[str]:
    """A sentence for each header that HTTP cannot send; none holds a value, which may be a secret."""
    for name, value in headers.items():
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", str(name)):
            yield f"{name!r} in `headers` is no name of a header."
        elif not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance] - whatever a program gives
            yield f"The header {name!r} in `headers` is no text, but {type(value).__name__}."
        elif mistake := value_mistake(value):
            yield f"The header {name!r} in `headers` has {mistake}."


def in_headers(headers: Mapping[str, Any]) -> Iterator[str]:
    """The secrets in HTTP headers: every value but those that are known to be none."""
    for name, value in headers.items():
        if not isinstance(value, str) or str(name).lower() in _NO_SECRETS or _NO_SECRETS_EITHER.search(str(name)):
            continue
        yield value
        scheme, _, credentials = value.partition(" ")
        if credentials and " " not in credentials:
            yield credentials
            if scheme.lower() == "basic":
                yield from _of_basic(credentials)
        if str(name).lower() == "cookie":
            yield from (each.partition("=")[2].strip() for each in value.split(";"))


def _of_basic(credentials: str) -> Iterator[str]:
    try:
        decoded = base64.b64decode(credentials, validate=True).decode()
    except (binascii.Error, ValueError):
        return
    yield decoded
    yield decoded.partition(":")[2]


def _names_a_secret(name: str) -> bool:
    """Whether a variable or a parameter is called as secrets are: `GITHUB_TOKEN`, `apiKey`; not `GIT_AUTHOR_NAME`."""
    words = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower()
    return any(word in _ARE_SECRETS or word.endswith(_END_OF_SECRETS) for word in re.split(r"[^a-z0-9]+", words))


def in_variables(variables: Mapping[str, Any]) -> Iterator[str]:
    """The secrets in variables, or in parameters of an address: those whose names say so."""
    for name, value in variables.items():
        if _names_a_secret(str(name)) and isinstance(value, str):
            yield value


def in_address(address: str) -> Iterator[str]:
    """The secrets in an address, as they stand there and as they are meant: its password, and such parameters."""
    try:
        parts = urlsplit(address)
        password = parts.password
    except ValueError:
        return
    if password:
        yield from (password, unquote(password))
    for each in parts.query.split("&"):
        name, _, value = each.partition("=")
        if _names_a_secret(unquote_plus(name)):
            yield from (value, unquote_plus(value))


def shown_address(address: str) -> str:
    """An address as people are shown it: without user, password, query and fragment."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return ""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
