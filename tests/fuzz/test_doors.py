"""The doors of `guided.py`, with what it begins with: that it finds nothing means something only if they let it in."""

from __future__ import annotations

import json

import pytest

from tests.fuzz.doors import DOORS


@pytest.mark.parametrize("name", DOORS)
def test_seeds_pass_their_door(name: str) -> None:
    for seed in DOORS[name].seeds:
        DOORS[name].take(json.dumps(seed).encode())


@pytest.mark.parametrize("data", [b"", b"\xff", b"NaN", b"[" * 100_000, b"1" * 5_000])
@pytest.mark.parametrize("name", DOORS)
def test_what_is_no_json_stays_outside(name: str, data: bytes) -> None:
    DOORS[name].take(data)
