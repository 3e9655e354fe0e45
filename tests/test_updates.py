"""What a reader is told of a turn: whatever comes of it, in whatever order, only the difference is told."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dafx_actors import updates
from dafx_actors.errors import InvalidCursor, TurnCancelled
from dafx_actors.transcript import (
    ChatMessage,
    Content,
    DataContent,
    ErrorContent,
    FunctionCallContent,
    FunctionResultContent,
    TextContent,
    TextReasoningContent,
)
from dafx_actors.updates import Call, Message, Reasoning, Reset, Result, Step, Text, Update, is_end
from dafx_actors.updates._content import Entry, Whole, Words, add_words, begins_with, cut, steps_of
from dafx_actors.updates._cursors import Cursor
from dafx_actors.updates._reading import Known, Reading, View


class Screen:
    """Puts together what a reader is told, as a program would: by the updates alone."""

    def __init__(self) -> None:
        self.steps: list[list[Entry]] = [[]]

    def show(self, update: Update) -> None:
        if isinstance(update, Reset):
            del self.steps[update.step :]
            self.steps = self.steps or [[]]
        elif isinstance(update, Step):
            assert update.step == len(self.steps)
            self.steps.append([])
        else:
            assert update.step == len(self.steps) - 1
            self._add(update)

    def _add(self, update: Update) -> None:
        if isinstance(update, Text | Reasoning):
            assert update.text
            add_words(self.steps[-1], "text" if isinstance(update, Text) else "reasoning", update.text)
        elif isinstance(update, Call):
            self.steps[-1].append(Whole(update.call))
        elif isinstance(update, Result):
            self.steps[-1].append(Whole(update.result))
        elif isinstance(update, Message):
            self.steps[-1].append(Whole(update.message))
        else:
            assert isinstance(update, updates.Content)
            self.steps[-1].append(Whole(update.content))

    def text(self, step: int) -> str:
        return "".join(entry.text for entry in self.steps[step] if not isinstance(entry, Whole))


def entries_of(messages: Iterable[ChatMessage]) -> list[list[Entry]]:
    return [list(step.entries) for step in steps_of(messages)]


# --- Any turn, seen in any way ------------------------------------------------------------------------------------


@attrs.frozen
class Happened:
    """A turn as it went: what its attempts said, and what its thread had recorded, from time to time."""

    attempts: Sequence[Sequence[str]]
    """Of each step, from 1."""
    drafts: Sequence[tuple[ChatMessage, ...]]
    """From the first to that with which it ended."""

    @property
    def end(self) -> tuple[ChatMessage, ...]:
        return self.drafts[-1]


def said(step: int, attempt: int, words: int, tag: bool) -> str:
    """Words that say whose they are, or, since attempts often say the same, do not."""
    return " ".join(f"s{step}a{attempt if tag else ''}w{word}" for word in range(words))


@st.composite
def turns(draw: st.DrawFn) -> Happened:
    attempts: list[list[str]] = []
    drafts: list[tuple[ChatMessage, ...]] = [()]

    def record(*messages: ChatMessage) -> None:
        drafts.append((*drafts[-1], *messages))

    steps = draw(st.integers(1, 4))
    for step in range(1, steps + 1):
        tag = draw(st.booleans())
        texts = [said(step, each, draw(st.integers(0, 4)), tag) for each in range(draw(st.integers(1, 3)))]
        attempts.append(texts)
        # The reply may be another one than the pieces: the agent's own code has changed it.
        text = draw(st.sampled_from([texts[-1], texts[-1], f"s{step}changed"]))
        calls = draw(st.integers(0, 2)) if step < steps else 0
        contents: list[Content] = [TextContent(text)] if text or draw(st.booleans()) else []
        contents += [FunctionCallContent(f"c{step}{call}", "look", {"n": call}) for call in range(calls)]
        record(ChatMessage("assistant", contents))
        results = [ChatMessage("tool", [FunctionResultContent(f"c{step}{call}", call)]) for call in range(calls)]
        if draw(st.booleans()):
            for result in results:
                record(result)
        elif results:
            record(*results)
        if step < steps and draw(st.booleans()):
            drafts[-1] = (*drafts[-1], ChatMessage("user", f"and {step}"))
    return Happened(attempts, drafts)


def known_of(draw: Any, turn: Happened, draft: int) -> tuple[int, Known]:
    """What a reader finds at some moment: a draft, perhaps an old one, and a view, perhaps of an attempt long over."""
    draft = draw(st.integers(0, len(turn.drafts) - 1)) if draw(st.booleans()) else draft
    known = Known.drafted(turn.drafts[draft])
    if not draw(st.booleans()):
        return draft, known
    step = draw(st.integers(1, len(turn.attempts)))
    text = draw(st.sampled_from(turn.attempts[step - 1]))
    view = View(step=step, text=text[: draw(st.integers(0, len(text)))])
    return draft, known.with_view(view)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_at_the_end_it_equals_the_messages_and_before_each_text_is_of_one_attempt(data: st.DataObject) -> None:
    turn = data.draw(turns())
    screen, reading, draft = Screen(), Reading(), 0
    whole = [*turn.attempts]
    recorded = [[str(m.text) for m in turn.end if m.role == "assistant"][number] for number in range(len(whole))]
    cursor = reading.cursor()
    for _ in range(data.draw(st.integers(0, 12))):
        draft, known = known_of(data.draw, turn, draft)
        for update in reading.see(known):
            screen.show(update)
            cursor = update.cursor
            for step in range(1, len(screen.steps)):
                texts = [*whole[step - 1], recorded[step - 1]]
                assert any(text.startswith(screen.text(step)) for text in texts), (step, screen.text(step))
        if data.draw(st.integers(0, 3)) == 0:  # the reader is killed, and comes back with its cursor
            reading = Reading(Cursor.parse(cursor))
    for update in reading.see(Known.ended(turn.end)):
        screen.show(update)
        cursor = update.cursor
    assert screen.steps == entries_of(turn.end)
    assert list(reading.see(Known.ended(turn.end))) == []
    assert list(Reading(Cursor.parse(cursor)).see(Known.ended(turn.end))) == []


@settings(max_examples=200, deadline=None)
@given(turns(), turns(), st.data())
def test_a_cursor_of_another_turn_or_of_any_place_is_fine(turn: Happened, other: Happened, data: st.DataObject) -> None:
    screen, reading = Screen(), Reading()
    told = list(reading.see(Known.ended(other.end)))
    count = data.draw(st.integers(0, len(told)))
    for update in told[:count]:
        screen.show(update)
    cursor = told[count - 1].cursor if count else Reading().cursor()
    shown = [list(step) for step in screen.steps]
    rest = list(Reading(Cursor.parse(cursor)).see(Known.ended(turn.end)))
    for update in rest:
        screen.show(update)
    assert screen.steps == entries_of(turn.end)
    whole = entries_of(turn.end)
    if shown == whole[: len(shown)]:
        assert not any(isinstance(update, Reset) for update in rest)


# --- Single cases -------------------------------------------------------------------------------------------------


def tell(reading: Reading, known: Known) -> list[tuple[object, ...]]:
    told: list[tuple[object, ...]] = []
    for update in reading.see(known):
        words = update.text if isinstance(update, Text | Reasoning) else None
        told.append((update.kind, update.step, *([words] if words else [])))
    return told


def test_words_are_told_as_they_come_and_a_new_attempt_takes_them_back() -> None:
    reading, nothing = Reading(), Known.drafted(())
    assert tell(reading, nothing.with_view(View(step=1, text="Why did"))) == [("step", 1), ("text", 1, "Why did")]
    assert tell(reading, nothing.with_view(View(step=1, text="Why did the hen"))) == [("text", 1, " the hen")]
    assert tell(reading, nothing.with_view(View(step=1, text="Why did"))) == []
    assert tell(reading, nothing) == []
    again = nothing.with_view(View(step=1, text="A man"))
    assert tell(reading, again) == [("reset", 1), ("step", 1), ("text", 1, "A man")]
    end = Known.ended([ChatMessage("assistant", "A man went.")])
    assert tell(reading, end) == [("text", 1, " went.")]


def test_a_view_that_is_ahead_of_the_draft_waits_for_it() -> None:
    call = FunctionCallContent("c1", "look")
    asks = ChatMessage("assistant", [call])
    later = View(step=2, text="It is")
    assert Known.drafted(()).misses(later)
    assert Known.drafted([asks]).misses(later)
    assert tell(Reading(), Known.drafted([asks]).with_view(later)) == [("step", 1), ("call", 1)]
    whole = Known.drafted([asks, ChatMessage("tool", [FunctionResultContent("c1", 4)])])
    assert not whole.misses(later)
    assert [kind for kind, *_ in tell(Reading(), whole.with_view(later))] == ["step", "call", "result", "step", "text"]


def test_a_view_of_a_step_that_was_recorded_tells_nothing() -> None:
    reading = Reading()
    draft = Known.drafted([ChatMessage("assistant", "Four."), ChatMessage("user", "As JSON, please.")])
    tell(reading, draft)
    assert tell(reading, draft.with_view(View(step=1, text="Fo"))) == []
    assert not draft.misses(View(step=1, text="Fo"))


def test_everything_in_a_message_is_told() -> None:
    image = DataContent.from_bytes(b"png", "image/png")
    contents: list[Content] = [
        TextReasoningContent("Hm."),
        TextContent("He"),
        TextContent("re."),
        image,
        TextContent("So."),
    ]
    told = list(Reading().see(Known.ended([ChatMessage("assistant", contents)])))
    assert [update.kind for update in told] == ["step", "reasoning", "text", "content", "text"]
    assert [json.loads(update.to_json()) for update in told][1:4] == [
        {"kind": "reasoning", "step": 1, "text": "Hm."},
        {"kind": "text", "step": 1, "text": "Here."},
        {"kind": "content", "step": 1, "content": {"$type": "data", "uri": image.uri, "mediaType": "image/png"}},
    ]


def test_the_error_of_a_turn_is_no_step_of_it() -> None:
    cancelled = ChatMessage("assistant", [ErrorContent("It was cancelled.", "TurnCancelled")])
    assert tell(Reading(), Known.ended([ChatMessage("assistant", "Yes, but"), cancelled])) == [
        ("step", 1),
        ("text", 1, "Yes, but"),
    ]
    ended = updates.Ended(step=1, cursor="", error=TurnCancelled("Joker", "t1", by="ana", reason="enough"))
    assert json.loads(ended.to_json())["error"]["type"] == "TurnCancelled"
    assert json.loads(updates.Ended(step=1, cursor="", error=LookupError("x")).to_json())["error"]["message"] == "x"


def test_an_empty_answer_is_a_step_of_its_own() -> None:
    assert tell(Reading(), Known.ended([ChatMessage("assistant", "")])) == [("step", 1)]


def test_what_was_told_and_is_not_in_the_end_is_taken_back() -> None:
    reading = Reading()
    tell(reading, Known.drafted(()).with_view(View(step=1, text="Half a")))
    assert tell(reading, Known.ended(())) == [("reset", 1)]
    assert reading.told == ((),)
    tell(reading, Known.drafted(()).with_view(View(step=1, text="Yes, but")))
    assert tell(reading, Known.ended([ChatMessage("assistant", "Yes")])) == [
        ("reset", 1),
        ("step", 1),
        ("text", 1, "Yes"),
    ]


def test_half_an_emoji_in_a_piece_is_told_and_put_right() -> None:
    reading = Reading()
    tell(reading, Known.drafted(()).with_view(View(step=1, text="\ud83d")))
    assert Reading(Cursor.parse(reading.cursor())).step == 1
    assert tell(reading, Known.ended([ChatMessage("assistant", "\U0001f600")])) == [
        ("reset", 1),
        ("step", 1),
        ("text", 1, "\U0001f600"),
    ]


@pytest.mark.parametrize("text", ["", "1", "abc", "1-0-0-0-0-0", "2-0-0-0-00000000-00000000", "x" * 10_000])
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(InvalidCursor, match=r"Give `update\.cursor`"):
        is_end(text)


def test_a_cursor_is_short_and_says_whether_it_is_the_end() -> None:
    reading = Reading()
    tell(reading, Known.ended([ChatMessage("assistant", "x" * 1000)] * 1000))
    assert len(reading.cursor(is_end=True)) < 100
    assert [is_end(reading.cursor(is_end=each)) for each in (False, True)] == [False, True]
    assert str(Cursor.parse(reading.cursor())) == reading.cursor()


def test_a_cursor_that_cannot_be_found_yet_waits() -> None:
    first = Reading()
    tell(first, Known.drafted(()).with_view(View(step=1, text="Why did")))
    second, nothing = Reading(Cursor.parse(first.cursor())), Known.drafted(())
    assert tell(second, nothing) == []
    assert tell(second, nothing.with_view(View(step=1, text="Why"))) == []
    assert second.cursor() == first.cursor()
    assert tell(second, nothing.with_view(View(step=1, text="Why did it"))) == [("text", 1, " it")]


def test_parts_of_entries() -> None:
    whole = steps_of([ChatMessage("assistant", [TextContent("Hello"), FunctionCallContent("c", "n")])])[1].entries
    assert cut(whole, 1, 3) == (Words("text", "Hel"),)
    assert cut(whole, 2, 0) == whole
    assert cut(whole, 2, 1) is cut(whole, 1, 6) is cut(whole, 3, 0) is cut(whole, 1, 0) is None
    assert begins_with(whole, cut(whole, 1, 3) or ())
    assert not begins_with(whole, (whole[1],))
