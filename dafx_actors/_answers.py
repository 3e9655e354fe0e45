"""Whether an answer fits the JSON schema that was asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from dafx_actors._json import cut, load_json
from dafx_actors.transcript import Json

_MOST = 5
"""Mistakes that a model is told at once."""


def answer_mismatch(text: str, schema: Mapping[str, Json] | None) -> str | None:
    """What is wrong with an answer, in words for the model that gave it; None where it fits.

    Args:
        text: The answer.
        schema: Of JSON Schema, draft 2020-12 unless it says otherwise; None takes any text.
    """
    if schema is None:
        return None
    try:
        value = load_json(text)
    except ValueError as error:
        return f"it is not JSON ({error})"
    # Not at the top: programs that ask for no typed answers need not wait for it.
    validators: Any = importlib.import_module("jsonschema.validators")  # its stubs are a package of their own
    try:
        mistakes: list[Any] = sorted(validators.validator_for(schema)(schema).iter_errors(value), key=_place)
    except Exception as error:  # noqa: BLE001 - a schema that refers to what is not there, or is none
        return f"the schema itself is broken ({cut(str(error))})"
    if not mistakes:
        return None
    return "; ".join(f"{cut(each.json_path)}: {cut(each.message)}" for each in mistakes[:_MOST])


def _place(mistake: Any) -> str:
    place: str = mistake.json_path
    return place
