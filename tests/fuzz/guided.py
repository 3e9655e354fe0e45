"""Fuzzing that is led by coverage: `python -m tests.fuzz.guided [door ...] [--seconds N]`, all doors by default.

An input that reaches code which no other has reached is kept, and changed further. So it gets through conditions that
random values seldom fulfil together. What it finds is written down, and then becomes a test like any other.

It needs `pip install atheris`. That is not among the extras: it is built for a few systems only (x86-64 Linux, and
some versions of Python on a Mac), and wants a C compiler with libFuzzer on others.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.fuzz.inputs import WORDS

atheris: Any = importlib.import_module("atheris")  # it has no types

with atheris.instrument_imports(include=["dafx_actors"]):
    from tests.fuzz.doors import DOORS

ODD: list[Any] = [None, True, False, 0, -1, 1.5, 2**63, 10**400, 1e308, "", [], {}, "NaN", "1e999"]
_LONGEST = 8_000
_LONGEST_PIECE = 200


def fuzz(name: str, seconds: int, found: Path) -> None:
    """Try inputs at a door for a time. It ends the process, with an exit code other than 0 if there is a fault."""
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(DOORS[name].seeds):
            (Path(folder) / str(number)).write_text(json.dumps(seed))
        options = [f"-max_total_time={seconds}", f"-max_len={_LONGEST}", "-len_control=0", "-verbosity=0"]
        options += ["-print_final_stats=1", f"-artifact_prefix={found}/{name}-", folder]
        atheris.Setup([sys.argv[0], *options], DOORS[name].take, custom_mutator=_changed)
        atheris.Fuzz()


def _changed(data: bytes, longest: int, seed: int) -> bytes:
    """The JSON text, with some values in it changed; changed bytes would hardly ever be one again."""
    chance = random.Random(seed)
    try:
        document = json.loads(data)
    except ValueError:
        return bytes(atheris.Mutate(data, longest))
    for _ in range(chance.choice([1, 1, 2, 4])):
        places = list(_places(document))
        value, other = _at(document, place := chance.choice(places)), _at(document, chance.choice(places))
        document = _with(document, place, _other(value, other, chance))
    changed = json.dumps(document).encode()
    return changed if len(changed) <= longest else data


def _other(value: Any, other: Any, chance: random.Random) -> Any:
    """Something in place of a value, perhaps made with another one of the document."""
    made: list[Any] = [chance.choice(ODD), chance.choice(WORDS), other, _mutated(value), [value], json.dumps(value)]
    if isinstance(value, dict):
        gone = chance.choice([*value, ""])
        made += [{**value, chance.choice(WORDS): other}, {key: item for key, item in value.items() if key != gone}]
    if isinstance(value, list):
        at = chance.randint(0, len(value))
        made += [[*value[:at], other, *value[at:]], [*value[:at], *value[at + 1 :]]]
    return chance.choice(made)


def _mutated(value: Any) -> Any:
    """The value, as the text that the fuzzer makes of it says; it knows with what the code has compared texts."""
    text = bytes(atheris.Mutate(json.dumps(value).encode(), _LONGEST_PIECE)).decode(errors="replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = (
        document.items() if isinstance(document, dict) else enumerate(document if isinstance(document, list) else ())
    )
    for step, value in items:
        yield from _places(value, (*path, step))


def _at(document: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        document = document[step]
    return document


def _with(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    step, *rest = path
    changed = _with(document[step], tuple(rest), value)
    if isinstance(document, dict):
        return {**document, step: changed}
    return [*document[:step], changed, *document[step + 1 :]]


def main() -> int:
    """Fuzz the doors one after the other, each in a process: the fuzzer ends the one that it runs in."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.guided", description="Fuzzing led by coverage.")
    parser.add_argument("doors", nargs="*", metavar="door", help=f"of {', '.join(DOORS)}; all by default")
    parser.add_argument("--seconds", type=int, default=60, help="for each door, 60 by default")
    parser.add_argument("--found", type=Path, default=Path.cwd(), help="folder for inputs that show a fault")
    given = parser.parse_args()
    if unknown := set(given.doors) - DOORS.keys():
        parser.error(f"there is no door {', '.join(sorted(unknown))}; there are {', '.join(DOORS)}")
    if len(given.doors) == 1:
        fuzz(given.doors[0], given.seconds, given.found)
    again = [sys.executable, "-m", "tests.fuzz.guided", "--seconds", str(given.seconds), "--found", str(given.found)]
    failed = [name for name in given.doors or DOORS if subprocess.run([*again, name], check=False).returncode]
    print(f"faults at: {', '.join(failed)}" if failed else "no faults")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
