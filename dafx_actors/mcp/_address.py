"""Where an MCP server is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import attrs


@attrs.frozen(kw_only=True)
class Stdio:
    """A server that is a process of this machine."""

    command: str
    args: tuple[str, ...] = ()
    env: Mapping[str, str] | None = attrs.field(default=None, repr=False)
    """Added to the few variables that the process inherits: PATH, HOME and the like, not this program's secrets."""
    cwd: str | Path | None = None


@attrs.frozen(kw_only=True)
class Http:
    """A server that speaks MCP's streamable HTTP."""

    url: str
    headers: Mapping[str, str] | None = attrs.field(default=None, repr=False)


Address: TypeAlias = Stdio | Http
