"""The command `dafx`: one subcommand a file, imported when it runs."""

from __future__ import annotations

from dafx_actors.cli._main import main

__all__ = [
    "main",
]
