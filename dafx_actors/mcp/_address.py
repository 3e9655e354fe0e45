"""Where an MCP server is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias, cast

import attrs

from dafx_actors import _secrets
from dafx_actors.errors import ConfigurationError


def _stripped(headers: Mapping[str, str] | None) -> Mapping[str, str] | None:
    """Without spaces and line breaks around the values, as files and variables have them."""
    if headers is None:
        return None
    values = cast("Mapping[str, Any]", headers)
    return {name: value.strip() if isinstance(value, str) else value for name, value in values.items()}


@attrs.frozen(kw_only=True)
class Stdio:
    """A server that is a process of this machine."""

    command: str
    args: tuple[str, ...] = ()
    env: Mapping[str, str] | None = attrs.field(default=None, repr=False, hash=False)
    """Added to the few variables that the process inherits: PATH, HOME and the like, not this program's secrets."""
    cwd: str | Path | None = None

    def __attrs_post_init__(self) -> None:
        _secrets.keep(self, *_secrets.in_variables(self.env or {}))


@attrs.frozen(kw_only=True)
class Http:
    """A server that speaks MCP's streamable HTTP."""

    url: str = attrs.field(repr=lambda url: repr(_secrets.shown_address(url)))
    headers: Mapping[str, str] | None = attrs.field(default=None, repr=False, converter=_stripped, hash=False)

    def __attrs_post_init__(self) -> None:
        _secrets.keep(self, *_secrets.in_headers(self.headers or {}), *_secrets.in_address(self.url))
        if mistakes := tuple(_secrets.header_mistakes(self.headers or {})):
            raise ConfigurationError(mistakes)


Address: TypeAlias = Stdio | Http
