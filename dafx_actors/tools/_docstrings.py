"""What a docstring says to a model: what a function is for, and what its parameters mean.

Read are Google's style (`Args:`), NumPy's (`Parameters`, underlined), reStructuredText's (`:param x:`) and Epytext's
(`@param x:`). What is told of a parameter that the function has goes to that parameter. What is told of its results and
its errors is left out. All else stays in the description: what is not understood is never dropped.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import attrs

_ABOUT_PARAMETERS: Final = frozenset({"args", "arguments", "parameters", "params", "kwargs"})
"""The last word of a section's title: also `Keyword Args`, `Other Parameters`."""
_LEFT_OUT: Final = frozenset({"returns", "return", "raises", "raise", "yields", "yield", "warns"})
_FIELDS: Final = frozenset({"param", "parameter", "arg", "argument", "key", "keyword", "kwarg", "kwparam"})
_TYPE_FIELDS: Final = frozenset({"type", "kwtype", "paramtype"})
_FIELDS_LEFT_OUT: Final = _LEFT_OUT | {"rtype", "ytype", "except", "exception"}

_GOOGLE: Final = re.compile(r"(?P<title>[A-Za-z]+(?: [A-Za-z]+){0,2}):\s*$")
_NUMPY: Final = re.compile(r"(?P<title>[A-Za-z]+(?: [A-Za-z]+){0,2})\s*$")
_UNDERLINE: Final = re.compile(r"[-=~]{3,}\s*$")
_FIELD: Final = re.compile(r"[:@](?P<field>\w+)(?:\s+(?P<about>[^:]*?))?\s*:(?:\s+(?P<text>.*))?$")
# Perhaps as an item of a list, in bold or as code; several names have one meaning.
_NAMES: Final = re.compile(r"(?:[-*+]\s+)?(?P<names>[`*]*\w+[`*]*(?:\s*,\s*[`*]*\w+[`*]*)*)")
_SEPARATOR: Final = re.compile(r"\s*:(?:\s+|$)|\s*:(?=\w)|\s+(?:-{1,2}|[\u2013\u2014])\s+")  # also long dashes
_TYPE_WORDS: Final = frozenset(
    re.findall(
        r"\w+",
        """a an and any array bool boolean booleans bytes callable date datetime decimal dict dictionary float floats
        frozenset int integer integers iterable iterator list lists mapping none number numbers object of optional or
        path required sequence set str string strings time timedelta tuple typing union uuid""",
    )
)


@attrs.frozen
class Documented:
    """The parts of a docstring that a model is shown."""

    text: str
    """The purpose of the function, without what is told of its parameters, results and errors."""
    parameters: dict[str, str]
    """The meaning of each parameter that is described, on one line."""


def read(docstring: str | None, parameters: Mapping[str, str]) -> Documented:
    """Read a docstring as it stands in the source.

    Args:
        docstring: None where there is none.
        parameters: Those that the function has, and their annotations as text, empty where there is none.
    """
    lines = inspect.cleandoc(docstring or "").splitlines()
    reader = _Reader(parameters)
    index = 0
    while index < len(lines):
        index = reader.take(lines, index)
    whole = re.sub(r"\n{3,}", "\n\n", "\n".join(reader.text)).strip()
    return Documented(whole, reader.described())


@attrs.frozen
class _Entry:
    """The first line of what is told of some parameters."""

    names: Sequence[str]
    kind: str
    """What stands where a type may stand."""
    text: str


@attrs.define
class _Meaning:
    """What is told of a parameter, in pieces."""

    kinds: list[str] = attrs.field(factory=list[str])
    texts: list[str] = attrs.field(factory=list[str])


class _Reader:
    def __init__(self, parameters: Mapping[str, str]) -> None:
        self.text: list[str] = []
        self._parameters = parameters
        self._meanings: dict[str, _Meaning] = {}

    def take(self, lines: Sequence[str], index: int) -> int:
        """Take what begins at a line; where the rest begins."""
        if (field := _FIELD.match(lines[index])) is not None:
            return self._field(field, lines, index)
        if (title := _title(lines, index)) is None:
            self.text.append(lines[index])
            return index + 1
        name, is_numpy = title
        first = index + (2 if is_numpy else 1)
        end = _numpy_end(lines, first) if is_numpy else _indented_end(lines, first)
        body = lines[first:end]
        if not any(line.strip() for line in body):
            self.text += lines[index:end]
        elif name not in _LEFT_OUT:
            left = self._entries(body, is_numpy)
            if any(line.strip() for line in left):
                self.text += [*lines[index:first], *left, ""]
        return end

    def described(self) -> dict[str, str]:
        """What is known of each parameter."""
        found: dict[str, str] = {}
        for name, meaning in self._meanings.items():
            text = " ".join(" ".join(meaning.texts).split())
            kinds = [kind for kind in meaning.kinds if kind and not self._is_type(name, kind)]
            kind = " ".join("; ".join(kinds).split())
            if said := f"({kind}) {text}" if kind and text else kind or text:
                found[name] = said
        return found

    # --- Sections -------------------------------------------------------------------------------------------------

    def _field(self, field: re.Match[str], lines: Sequence[str], index: int) -> int:
        """`:param count: How many.`, also with a type before the name."""
        end = _indented_end(lines, index + 1)
        said = "\n".join([field["text"] or "", *lines[index + 1 : end]])
        *kind, name = (field["about"] or "").split() or [""]
        name = name.strip("*`")
        what = field["field"]
        if what in _FIELDS and name in self._parameters:
            self._add(_Entry([name], " ".join(kind), said))
        elif what in _TYPE_FIELDS and name in self._parameters:
            self._add(_Entry([name], said, ""))
        elif what not in _FIELDS_LEFT_OUT:
            self.text += lines[index:end]
        return end

    def _entries(self, body: Sequence[str], is_numpy: bool) -> list[str]:
        """Take the entries of a section; the lines that belong to none of a parameter that the function has.

        They begin at the least indentation. What is indented more goes on with the one before.
        """
        least = min(_indent(line) for line in body if line.strip())
        left: list[str] = []
        known: list[str] = []
        for number, line in enumerate(body):
            here = line[least:]
            is_followed = number + 1 < len(body) and _indent(body[number + 1]) > least
            begins = bool(here.strip()) and not here[0].isspace()
            entry = _entry(here, is_numpy, is_followed) if begins else None
            if entry is not None:
                known = [name for name in entry.names if name in self._parameters]
                self._add(attrs.evolve(entry, names=known))
            elif known:
                self._add(_Entry(known, "", here))
            if not known:
                left.append(line)
        return left

    def _add(self, entry: _Entry) -> None:
        for name in entry.names:
            meaning = self._meanings.setdefault(name, _Meaning())
            meaning.kinds.append(entry.kind)
            meaning.texts.append(entry.text)

    def _is_type(self, name: str, kind: str) -> bool:
        """Whether this says no more than the annotation."""
        known = _TYPE_WORDS | set(re.findall(r"\w+", self._parameters[name].lower()))
        # What stands in quotes or braces is a choice, and not a type.
        return not re.search(r"[{}'\"]", kind) and known.issuperset(re.findall(r"[^\W\d]\w*|\d\S*", kind.lower()))


# --- Where sections begin and end ---------------------------------------------------------------------------------


def _title(lines: Sequence[str], index: int) -> tuple[str, bool] | None:
    """The last word of the title of a section on parameters, results or errors, and whether it is NumPy's."""
    following = lines[index + 1] if index + 1 < len(lines) else ""
    is_numpy = bool(_UNDERLINE.match(following))
    found = (_NUMPY if is_numpy else _GOOGLE).match(lines[index])
    if found is None:
        return None
    words = found["title"].lower().split()
    if words[-1] in _ABOUT_PARAMETERS or (words[0] in _LEFT_OUT and len(words) == 1):
        return words[-1], is_numpy
    return None


def _indented_end(lines: Sequence[str], index: int) -> int:
    """Where the indented lines end, with empty ones between them."""
    end = index
    for number in range(index, len(lines)):
        if lines[number].strip():
            if not lines[number][0].isspace():
                break
            end = number + 1
    return end


def _numpy_end(lines: Sequence[str], index: int) -> int:
    """Where the next section begins, of whatever style, or a paragraph that is no entry."""
    for number in range(index, len(lines)):
        line = lines[number]
        if not line.strip() or line[0].isspace():
            continue
        follows = lines[number + 1] if number + 1 < len(lines) else ""
        if _UNDERLINE.match(follows) or _FIELD.match(line) or _title(lines, number) is not None:
            return number
        is_paragraph = number > index and not lines[number - 1].strip() and not follows[:1].isspace()
        if is_paragraph and _is_prose(line):
            return number
    return len(lines)


def _is_prose(line: str) -> bool:
    """Whether this is a sentence, and not `name : type` or a type."""
    return not re.match(r"[`*]*\w+[`*]*\s+:\s", line) and (
        len(line.split()) > 3 or line.rstrip().endswith((".", "!", "?", ":"))
    )


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


# --- Entries ------------------------------------------------------------------------------------------------------


def _entry(line: str, is_numpy: bool, is_followed: bool) -> _Entry | None:
    """The names, the type and the beginning of the text of an entry; None where the line begins none."""
    found = _NAMES.match(line)
    if found is None:
        return None
    names = [name.strip("`* \t") for name in found["names"].split(",")]
    kind, rest = _bracketed(line[found.end() :])
    separator = _SEPARATOR.match(rest)
    if separator is None:
        # A name alone, with its meaning below.
        return _Entry(names, kind, "") if not rest.strip() and (is_numpy or is_followed) else None
    said = rest[separator.end() :]
    if is_numpy and ":" in separator[0]:
        return _Entry(names, f"{kind} {said}".strip(), "")
    return _Entry(names, kind, said)


def _bracketed(text: str) -> tuple[str, str]:
    """What stands in brackets at the beginning, brackets in them included, and the rest."""
    inside = text.lstrip()
    if not inside.startswith("("):
        return "", text
    depth = 0
    for number, character in enumerate(inside):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            return inside[1:number], inside[number + 1 :]
    return "", text


def annotations_of(parameters: Iterable[inspect.Parameter]) -> dict[str, str]:
    """What `read` wants to know of a function: its parameters by name, and their annotations as text."""
    return {
        each.name: "" if each.annotation is each.empty else inspect.formatannotation(each.annotation)
        for each in parameters
    }
