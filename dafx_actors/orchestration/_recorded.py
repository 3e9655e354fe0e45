"""What an orchestration asks, against what its history says that it asked.

durabletask gives recorded answers out by the number of the call, and looks at the kind and the name of what is called.
That lets a changed orchestration take the answer to one question for that to another. So what was asked is looked at as
well: the words of a question, the input of an activity, who is called. Where that was asked elsewhere, or somebody else
is asked, the orchestration ends. A question in other words alone keeps its answer, with a warning: prompts are
reworded, and what an orchestration had read of a clock or by chance was never seen. In tests (`AgentHost`, `replay`)
that is an error, too.

Not looked at is what another version, of the program or of this package, may write in another way and still ask the
same:

- ids that the context made, times of timers, and what events and signals carry, which nothing answers;
- of a turn all but its messages: limits, options and formats may be tuned while it runs;
- fields of an object that only one side has, the order of a list (sets have none), the form of times and bytes;
- the turns of agents: their orchestrations are code of this package, and `tests/histories` sees to those.
"""

from __future__ import annotations

import json
import logging
import threading
import uuid
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress

import attrs
from durabletask import task

from dafx_actors._durable.asked import Asked, look_at, recorded_here
from dafx_actors._durable.private import drop_asked, is_strict_here
from dafx_actors._json.crossing import CrossingError
from dafx_actors._json.forms import is_same_text
from dafx_actors._json.messages import dump_message
from dafx_actors._json.requests import load_request
from dafx_actors._json.shapes import as_list, as_object
from dafx_actors._raised import in_words
from dafx_actors.errors import OrchestrationChanged
from dafx_actors.ids import agent_of_turn, is_ours
from dafx_actors.transcript import Json

_logger = logging.getLogger("dafx_actors.orchestration")

_MOST_SHOWN = 120
"""Characters of an input in a sentence."""


class _Told:
    """What was told, so that it is told once; what was told long ago may be told again."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._told: OrderedDict[tuple[str, int], None] = OrderedDict()

    def add(self, what: tuple[str, int]) -> bool:
        """Note that this is told; False where it was told before."""
        with self._lock:
            if what in self._told:
                return False
            self._told[what] = None
            while len(self._told) > self._most:
                self._told.popitem(last=False)
            return True


_told = _Told(1000)


class NonDeterminismError(CrossingError, task.NonDeterminismError):
    """Carries an `OrchestrationChanged` out of an orchestration, by the name that durabletask has for it."""

    __module__ = "dafx_actors.orchestration"


class Recorded:
    """What the history of an orchestration says that it asked, while that is asked again."""

    def __init__(self, context: task.OrchestrationContext) -> None:
        """Look after an orchestration that has asked for nothing yet.

        Args:
            context: durabletask's.
        """
        self._context = context
        self._name, self._asked = recorded_here()
        self._all = dict(self._asked)
        self._started = {each.instance: number for number, each in self._asked.items() if each.instance}
        """Who asked for another orchestration, by that one's id."""
        if is_ours(self._name) or not (self._asked and look_at(context, self._confirm)):
            self._asked.clear()

    def _confirm(self, number: int, now: Asked | None) -> None:
        then = self._asked.pop(number, None)
        if then is None:
            return
        if now is None:
            raise self._changed(number, described(then), "nothing")
        if (differ := difference(then, now)) is not None:
            if is_strict_here() or not _is_reworded(then, now) or self._was_asked_elsewhere(number, now):
                raise self._changed(number, *differ)
            self._tell_reworded(number, *differ)
        if self._started.get(now.instance, number) != number and not _is_made(now.instance):
            raise self._changed(number, f"orchestration {then.instance}", f"orchestration {now.instance}")

    def _was_asked_elsewhere(self, number: int, now: Asked) -> bool:
        """Whether what is asked now has an answer of its own, so that it would get that of another question."""
        return any(other != number and difference(then, now) is None for other, then in self._all.items())

    def _tell_reworded(self, number: int, then: str, now: str) -> None:
        # Each replay comes by here.
        if _told.add((self._context.instance_id, number)):
            _logger.warning(
                "%s: step %d of orchestration %r was %s, and is now %s. It keeps the answer that it has.",
                self._context.instance_id,
                number,
                self._name,
                then,
                now,
            )

    def check_end(self, failed: Exception | None) -> None:
        """See that the history does not go on where the orchestration ends.

        Args:
            failed: What it ends with, if it fails.

        Raises:
            NonDeterminismError: It does.
        """
        if self._asked:
            number = min(self._asked)
            now = "its end" if failed is None else f"its end, with {in_words(failed)}"
            raise self._changed(number, described(self._asked[number]), now)

    def _changed(self, number: int, then: str, now: str) -> NonDeterminismError:
        self._asked.clear()
        # What it asks now was asked before, or is not wanted: nothing acts again.
        drop_asked(self._context)
        error = OrchestrationChanged(self._name, number, then, now)
        _logger.warning("%s: %s", self._context.instance_id, error)
        return NonDeterminismError(error)


def _is_reworded(then: Asked, now: Asked) -> bool:
    """Whether the same is asked, of the same, in other words or with another input."""
    if not _asks_the_same(attrs.evolve(then, sent=None), now):
        return False
    if agent_of_turn(then.name) is None:
        return True
    threads = [_field(_loaded(each.sent or "null"), "thread") for each in (then, now)]
    return threads[0] == threads[1] or all(map(_is_made, threads))


def difference(then: Asked, now: Asked) -> tuple[str, str] | None:
    """What was asked and what is asked, in words; None where the answer to the former answers the latter."""
    # Azure Functions record what is sent to an entity as an event; durabletask knows how to read that.
    if _asks_the_same(then, now) or (then.kind == "event" and then.of.startswith("@")):
        return None
    return described(then, now), described(now, then)


# --- In words -----------------------------------------------------------------------------------------------------


def described(asked: Asked, beside: Asked | None = None) -> str:
    """What is asked, with its input, for a sentence; of a long one the part in which it differs from another."""
    agent = agent_of_turn(asked.name)
    said = [asked.kind if agent is None else "agent", asked.name if agent is None else agent]
    if asked.of:
        said += ["of" if asked.kind == "call" else "to", asked.of]
    if asked.sent is not None:
        said += ["with", _part(_input_of(asked), "" if beside is None else _input_of(beside))]
    return " ".join(filter(None, said))


def _input_of(asked: Asked) -> str:
    sent = _loaded(asked.sent or "null")
    if agent_of_turn(asked.name) is not None:
        with suppress(ValueError, TypeError):
            texts = [message.text for message in load_request(_field(sent, "request")).messages]
            question = json.dumps(texts[0] if len(texts) == 1 else texts, ensure_ascii=False)
            thread = _field(sent, "thread")
            return question if _is_made(thread) else f"{question} in thread {thread}"
    return json.dumps(sent, ensure_ascii=False)


def _part(text: str, beside: str) -> str:
    if len(text) <= _MOST_SHOWN:
        return text
    same = next((n for n, (a, b) in enumerate(zip(text, beside, strict=False)) if a != b), min(len(text), len(beside)))
    start = max(0, min(same - _MOST_SHOWN // 4, len(text) - _MOST_SHOWN))
    part = text[start : start + _MOST_SHOWN]
    return f"{'...' if start else ''}{part}{'...' if start + _MOST_SHOWN < len(text) else ''}"


# --- Whether it is the same ---------------------------------------------------------------------------------------


def _asks_the_same(then: Asked, now: Asked) -> bool:
    if (then.kind, then.name) != (now.kind, now.name) or not _is_same_place(then.of, now.of):
        return False
    if then.sent is None or now.sent is None or then.sent == now.sent:
        return True
    sent = _loaded(then.sent), _loaded(now.sent)
    if agent_of_turn(then.name) is not None:
        return _is_same_turn(*sent)
    if _is_thread(then.of):  # which is asked by this package, or is one of the peer's
        return _is_alike(*(_field(each, "message") for each in sent))
    return _is_alike(*sent)


def _loaded(text: str) -> Json:
    try:
        return json.loads(text)
    except ValueError:  # of a converter of the user's own
        return text


def _field(value: Json, name: str) -> Json:
    return as_object(value).get(name) if isinstance(value, Mapping) else None


def _is_thread(place: str) -> bool:
    return is_ours(place.removeprefix("@"))


def _is_same_place(then: str, now: str) -> bool:
    names = {place.rpartition("@")[0] for place in (then, now)}
    return then == now or (len(names) == 1 and _is_thread(then) and _is_made(then) and _is_made(now))


def _is_made(place: Json) -> bool:
    """Whether an id, or the key of a thread, is one that the context of an orchestration made."""
    with suppress(ValueError):
        return isinstance(place, str) and uuid.UUID(place.rpartition("@")[2]).version == 5
    return False


def _is_same_turn(then: Json, now: Json) -> bool:
    threads = _field(then, "thread"), _field(now, "thread")
    if threads[0] != threads[1] and not all(map(_is_made, threads)):
        return False
    try:
        asked = [load_request(_field(turn, "request")).messages for turn in (then, now)]
    except (ValueError, TypeError):
        return True  # of a version that writes it in a way that cannot be read here
    return _is_alike(*([[each.role, dump_message(each).get("contents")] for each in messages] for messages in asked))


def _is_alike(then: Json, now: Json) -> bool:
    """Whether two versions can have written the same input."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        objects = as_object(then), as_object(now)
        common = objects[0].keys() & objects[1].keys()
        return (bool(common) or not all(objects)) and all(_is_alike(*(each[key] for each in objects)) for key in common)
    if isinstance(then, list) and isinstance(now, list):
        return _are_alike(as_list(then), as_list(now))
    if isinstance(then, str) and isinstance(now, str):
        return is_same_text(then, now)
    return isinstance(then, bool) == isinstance(now, bool) and bool(then == now)


def _are_alike(then: Sequence[Json], now: Sequence[Json]) -> bool:
    if len(then) != len(now):
        return False
    if all(map(_is_alike, then, now)):
        return True
    ordered = [sorted(each, key=lambda item: json.dumps(item, sort_keys=True)) for each in (then, now)]
    return all(map(_is_alike, *ordered))
