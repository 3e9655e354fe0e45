"""What a docstring says to a model: what a function is for, and what its parameters mean.

Read are Google's style (`Args:`), NumPy's (`Parameters` underlined) and reStructuredText's (`:param x:`).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable

import attrs

_ABOUT_PARAMETERS = frozenset({"args", "arguments", "parameters", "params", "keyword args", "keyword arguments"})
_OTHER = frozenset({"returns", "return", "raises", "yields", "yield", "other parameters", "warns"})
_GOOGLE = re.compile(r"(?P<name>[A-Z][A-Za-z ]*):\s*$")
_UNDERLINE = re.compile(r"\s*-{3,}\s*$")
_REST = re.compile(r":(?P<field>\w+)(?:\s+(?P<about>[^:]*?))?:\s*(?P<text>.*)$")
_ENTRY = re.compile(r"\*{0,2}(?P<name>\w+)\s*(?:\((?P<kind>[^)]*)\))?\s*:\s*(?P<text>.*)$")
_NUMPY_ENTRY = re.compile(r"(?P<names>\*{0,2}\w+(?:\s*,\s*\*{0,2}\w+)*)\s*(?::.*)?$")


@attrs.frozen
class Documented:
    """The parts of a docstring that a model is shown."""

    text: str
    """The purpose of the function, without the sections on parameters, results and errors."""
    parameters: dict[str, str]
    """The meaning of each parameter, on one line."""


def read(docstring: str | None) -> Documented:
    """Read a docstring as it stands in the source."""
    lines = inspect.cleandoc(docstring or "").splitlines()
    text: list[str] = []
    parameters: dict[str, str] = {}
    index = 0
    while index < len(lines):
        section = _section(lines, index)
        if section is None:
            text.append(lines[index])
            index += 1
            continue
        end, entries = section
        parameters |= entries
        index = end
    whole = re.sub(r"\n{3,}", "\n\n", "\n".join(text)).strip()
    return Documented(whole, {name: " ".join(said.split()) for name, said in parameters.items() if said.strip()})


def _section(lines: list[str], start: int) -> tuple[int, dict[str, str]] | None:
    """Where the section that begins at `start` ends, and the parameters that it tells of; None where none begins."""
    line = lines[start]
    if (field := _REST.match(line)) is not None:
        end = _while(lines, start + 1, lambda each: each[:1].isspace() and bool(each.strip()))
        return end, _rest(field, lines[start + 1 : end])
    following = lines[start + 1] if start + 1 < len(lines) else ""
    if _UNDERLINE.match(following) and (name := line.strip().lower()) in _ABOUT_PARAMETERS | _OTHER:
        end = _while(lines, start + 2, lambda each: True, stop=lambda at: _is_numpy_title(lines, at))
        return end, _entries(lines[start + 2 : end], numpy=True) if name in _ABOUT_PARAMETERS else {}
    if (title := _GOOGLE.match(line)) is not None and (name := title["name"].lower()) in _ABOUT_PARAMETERS | _OTHER:
        end = _while(lines, start + 1, lambda each: not each.strip() or each[:1].isspace())
        return end, _entries(lines[start + 1 : end], numpy=False) if name in _ABOUT_PARAMETERS else {}
    return None


def _while(
    lines: list[str], index: int, belongs: Callable[[str], bool], stop: Callable[[int], bool] = lambda _: False
) -> int:
    while index < len(lines) and belongs(lines[index]) and not stop(index):
        index += 1
    return index


def _is_numpy_title(lines: list[str], index: int) -> bool:
    return index + 1 < len(lines) and bool(lines[index].strip()) and bool(_UNDERLINE.match(lines[index + 1]))


def _rest(field: re.Match[str], more: Iterable[str]) -> dict[str, str]:
    # `:param int count: How many.` has the type before the name.
    words = (field["about"] or "").split()
    if field["field"] not in ("param", "parameter", "arg", "argument", "key", "keyword") or not words:
        return {}
    return {words[-1].lstrip("*"): "\n".join([field["text"], *more])}


def _entries(lines: list[str], numpy: bool) -> dict[str, str]:
    """Entries that begin at the least indentation; what is indented more goes on with the one before."""
    least = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    entries: dict[str, str] = {}
    current: list[str] = []
    for line in lines:
        here = line[least:]
        begins = bool(here.strip()) and not here[0].isspace()
        entry = (_NUMPY_ENTRY if numpy else _ENTRY).match(here) if begins else None
        if entry is None:
            for name in current:
                entries[name] += f"\n{here}"
            continue
        current = [name.strip().lstrip("*") for name in entry["names" if numpy else "name"].split(",")]
        entries |= dict.fromkeys(current, "" if numpy else entry["text"])
    return entries
