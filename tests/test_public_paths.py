"""Every path by which a program could import something of 0.1.0 still leads there.

`tests/data/public_paths_0_1_0.txt` has a line for each module without an underscore: its name, and the names in it.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

LINES = (Path(__file__).parent / "data" / "public_paths_0_1_0.txt").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.partition(":")[0])
def test_what_was_public_is_where_it_was(line: str) -> None:
    module, _, names = line.partition(":")
    imported = importlib.import_module(module)
    assert [name for name in names.split() if not hasattr(imported, name)] == []
