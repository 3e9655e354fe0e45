"""What a reader has told, held against what is known of the turn: only the difference is told.

Nothing that comes from elsewhere is simply told on: pieces get lost, come twice, late, or from an attempt that is over.
What is known of a turn is its draft (what the thread has recorded), the end (the response), and the view (what an
attempt of a model call has said so far). Each is compared; where it goes on from what was told, the rest is told, and
where it differs, there is a `reset` first.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence

import attrs

from dafx_actors.transcript import ChatMessage, FunctionCallContent, FunctionResultContent
from dafx_actors.updates._content import Entries, Entry, Said, Whole, Words, begins_with, cut, steps_of
from dafx_actors.updates._cursors import Cursor, checksum, offset_of
from dafx_actors.updates._words import Call, Content, Message, Reasoning, Reset, Result, Step, Text, Update


@attrs.frozen(kw_only=True)
class View:
    """What an attempt of a model call has said so far."""

    step: int
    """The number of the reply that it will be, from 1."""
    text: str


@attrs.frozen(kw_only=True)
class Known:
    """What is known of a turn at this moment."""

    steps: tuple[Said, ...]
    """From 0 on. All but the last have been recorded as a whole."""
    is_end: bool = False
    """The turn has ended with these: there is nothing else."""
    is_live: bool = False
    """The last step is on its way: its reply may go on."""

    @classmethod
    def drafted(cls, draft: Iterable[ChatMessage]) -> Known:
        """What the thread has recorded so far."""
        return cls(steps=steps_of(draft))

    @classmethod
    def ended(cls, messages: Iterable[ChatMessage]) -> Known:
        """What the turn has ended with."""
        return cls(steps=steps_of(messages), is_end=True)

    def misses(self, view: View) -> bool:
        """Whether a view is of a later step than the next one: the thread has recorded more than this."""
        return view.step > len(self.steps) or (view.step == len(self.steps) and _has_open_calls(self.steps[-1]))

    def with_view(self, view: View | None) -> Known:
        """This draft, with what is on its way; without it where it is of a step that was recorded since, or too new."""
        if view is None or view.step != len(self.steps) or self.misses(view):
            return self
        reply = (Words("text", view.text),) if view.text else ()
        return attrs.evolve(self, steps=(*self.steps, Said(reply)), is_live=True)


def _has_open_calls(step: Said) -> bool:
    results = {
        each.said.call_id
        for each in step.after
        if isinstance(each, Whole) and isinstance(each.said, FunctionResultContent)
    }
    calls = (each.said for each in step.reply if isinstance(each, Whole))
    return any(isinstance(call, FunctionCallContent) and call.call_id not in results for call in calls)


class Reading:
    """What one reader was told, and how it goes on."""

    def __init__(self, after: Cursor | None = None) -> None:
        """Begin.

        Args:
            after: What the reader was told before. Nothing is told until something is known that shows how it goes on.
        """
        self._told: list[Entries] = [()]
        self._sums = [0]
        """Of each step that was told, the checksum."""
        # One that was told nothing has nothing to be compared.
        self._after = None if after is None or (after.step, after.entries) == (0, 0) else after

    @property
    def step(self) -> int:
        """The step that was told last."""
        return len(self._told) - 1 if self._after is None else self._after.step

    @property
    def told(self) -> Sequence[Entries]:
        """All that was told, by steps; of what was told before its cursor, as soon as that was found."""
        return tuple(self._told)

    def cursor(self, *, is_end: bool = False) -> str:
        """Where the reader is."""
        if self._after is not None:
            return str(attrs.evolve(self._after, is_end=is_end))
        last = self._told[-1]
        cursor = Cursor(
            step=self.step,
            entries=len(last),
            offset=offset_of(last),
            before=_chained(self._sums[:-1]),
            within=self._sums[-1],
            is_end=is_end,
        )
        return str(cursor)

    def see(self, known: Known) -> Iterator[Update]:
        """Tell what is new, or otherwise than it was told. To be exhausted.

        Args:
            known: The turn, from any source, in any order: what is older than what was told tells nothing.
        """
        if self._after is not None and not (yield from self._take_up(known, self._after)):
            return
        last = len(known.steps) - 1
        for number, step in enumerate(known.steps):
            entries = step.entries
            if number < len(self._told):
                said = self._told[number]
                if said == entries:
                    continue
                if number == last and not known.is_end and _is_ahead(said, step, is_live=known.is_live):
                    continue
                # Of a step before the one that was told last nothing may be missing: it would come out of order.
                if number < self.step or not begins_with(entries, said):
                    yield self._reset(number)
            yield from self._tell(number, entries)
        if known.is_end and self.step > last:
            yield self._reset(last + 1)

    # --- Inside ---------------------------------------------------------------------------------------------------

    def _take_up(self, known: Known, after: Cursor) -> Generator[Update, None, bool]:
        """Find in what is known what the reader was told before; False where that cannot be told yet."""
        last = len(known.steps) - 1
        if after.step > last and not known.is_end:
            return False
        steps = [step.entries for step in known.steps[: after.step]]
        sums = [checksum(entries) for entries in steps]
        part: Entries | None = None
        if after.step <= last and _chained(sums) == after.before:
            part = cut(known.steps[after.step].entries, after.entries, after.offset)
            if part is None and after.step == last and not known.is_end:
                return False
            if part is None or checksum(part) != after.within:
                self._after, self._told, self._sums = None, [*steps, ()], [*sums, 0]
                yield self._reset(after.step)
                return True
        self._after = None
        if part is None:
            yield self._reset(0)
        else:
            self._told, self._sums = [*steps, part], [*sums, after.within]
        return True

    def _reset(self, number: int) -> Reset:
        del self._told[number:], self._sums[number:]
        if not number:
            self._told, self._sums = [()], [0]
        return Reset(step=number, cursor=self.cursor())

    def _tell(self, number: int, entries: Entries) -> Iterator[Update]:
        if number == len(self._told):
            self._told.append(())
            self._sums.append(0)
            yield Step(step=number, cursor=self.cursor())
        said = self._told[number]
        if said and said[-1] != entries[len(said) - 1]:
            yield self._more(said, entries[len(said) - 1])
        for entry in entries[len(said) :]:
            self._told[-1] = (*self._told[-1], entry)
            self._sums[-1] = entry.checksum(self._sums[-1])
            yield self._update(entry)

    def _more(self, said: Entries, longer: Entry) -> Update:
        """Tell how the words go on that were told last."""
        words = said[-1]
        assert isinstance(longer, Words)
        assert isinstance(words, Words)
        more = longer.text[len(words.text) :]
        self._told[-1] = (*said[:-1], longer)
        self._sums[-1] = Words.more(more, self._sums[-1])
        return self._update(Words(words.kind, more))

    def _update(self, entry: Entry) -> Update:
        step, cursor = self.step, self.cursor()
        if isinstance(entry, Words):
            words = Text if entry.kind == "text" else Reasoning
            return words(step=step, cursor=cursor, text=entry.text)
        said = entry.said
        if isinstance(said, ChatMessage):
            return Message(step=step, cursor=cursor, message=said)
        if isinstance(said, FunctionCallContent):
            return Call(step=step, cursor=cursor, call=said)
        if isinstance(said, FunctionResultContent):
            return Result(step=step, cursor=cursor, result=said)
        return Content(step=step, cursor=cursor, content=said)


def _is_ahead(said: Entries, step: Said, *, is_live: bool) -> bool:
    """Whether what was told of a step goes on from what is known of it, which is older."""
    if is_live:
        return begins_with(said, step.entries)
    replied = len(step.reply)
    return said[:replied] == step.reply and begins_with(said[replied:], step.after)


def _chained(sums: Iterable[int]) -> int:
    """The checksum of several steps."""
    before = 0
    for each in sums:
        before = zlib.crc32(each.to_bytes(4, "big"), before)
    return before
