"""What is wrong with a value by a JSON schema. Also a program: it checks values, a line each, where nobody waits.

As a program it is run by its file, with nothing of this package: see `checker.py`.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

MOST = 5
"""Mistakes that a model is told at once."""


class BrokenSchema(Exception):
    """The schema itself cannot be used; says why."""


def mistakes(value: Any, schema: Any) -> list[tuple[str, str]]:
    """The places of the first mistakes, and what is wrong there; none where the value fits. Nothing is ever fetched.

    Raises:
        BrokenSchema: It is none, or refers to what is not in it.
    """
    # Not at the top: programs that ask for no typed answers need not wait for it.
    validators: Any = importlib.import_module("jsonschema.validators")  # its stubs are a package of their own
    registry: Any = importlib.import_module("referencing").Registry()
    try:
        validator = validators.validator_for(schema)(schema, registry=registry)
        found: list[Any] = sorted(validator.iter_errors(value), key=_place)
    except Exception as error:
        raise BrokenSchema(str(error)) from error
    return [(each.json_path, each.message) for each in found[:MOST]]


def _place(mistake: Any) -> str:
    place: str = mistake.json_path
    return place


def _main() -> None:
    """Answer each line: `[value, schema]` with `{"mistakes": ...}` or `{"broken": text}`. Ends with its input."""
    sys.path[:] = json.loads(sys.stdin.readline())
    importlib.import_module("jsonschema.validators")
    _say({})
    for line in sys.stdin:
        try:
            answer: dict[str, Any] = {"mistakes": mistakes(*json.loads(line))}
        except BrokenSchema as error:
            answer = {"broken": str(error)}
        _say(answer)


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _main()
