"""`Turn.last_turns`: what a model is shown of a long thread, with every call beside its result."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dafx_actors import ChatMessage, ModelReply, Transcript, Turn, durable_agent, tool
from dafx_actors._json.crossing import error_content
from dafx_actors._rules.conversation import conversation
from dafx_actors._rules.open_calls import closed, open_calls, results_in
from dafx_actors.errors import TurnCancelled
from dafx_actors.exchange import RunRequest
from dafx_actors.ids import AgentThread
from dafx_actors.testing import AgentHost, ScriptedModel, call
from dafx_actors.transcript import Entry, FunctionCallContent, FunctionResultContent, Request, Response

RULES = ChatMessage("system", "Be brief.")


def asked(turn: str) -> Request:
    return Request(correlation_id=turn, messages=(ChatMessage("user", f"{turn}?"),))


def calling(turn: str, calls: int) -> tuple[ChatMessage, ...]:
    """An assistant's calls with their results; all of them have the same ids, as some models' have."""
    made = tuple(FunctionCallContent(f"call-{n}", "look", {"turn": turn}) for n in range(calls))
    told = tuple(FunctionResultContent(f"call-{n}", f"{turn} {n}") for n in range(calls))
    return ChatMessage("assistant", made), ChatMessage("tool", told)


def said(turn: str, kind: str) -> tuple[ChatMessage, ...]:
    """What a turn has recorded, of each kind of turn."""
    answer = ChatMessage("assistant", f"{turn}!")
    return {
        "plain": (answer,),
        "calls": (*calling(turn, 2), *calling(turn, 1), answer),
        "joined": (*calling(turn, 1), ChatMessage("user", f"{turn} and more"), answer),
        "repaired": (answer, ChatMessage("user", "That is no JSON."), answer),
        "cut off": closed(calling(turn, 2)[:1]),
        "failed": (*calling(turn, 1), ChatMessage("assistant", [error_content(TurnCancelled("A", turn))])),
    }[kind]


KINDS = ("plain", "calls", "joined", "repaired", "cut off", "failed")


@st.composite
def turns(draw: Any) -> Turn:
    """A turn of a thread in which others were, of which one may have left the line while it ran."""
    entries: list[Entry] = []
    for number, kind in enumerate(draw(st.lists(st.sampled_from(KINDS), max_size=12))):
        entries.append(asked(turn := f"t{number}"))
        if draw(st.integers(0, 5)) == 0:
            gone = ChatMessage("assistant", [error_content(TurnCancelled("A", f"w{number}"))])
            entries += [asked(f"w{number}"), Response(correlation_id=f"w{number}", messages=(gone,))]
        entries.append(Response(correlation_id=turn, messages=said(turn, kind)))
    entries.append(asked("now"))
    draft = draw(st.sampled_from([(), calling("now", 2), (*calling("now", 1), ChatMessage("user", "and more"))]))
    return turn_of(Transcript(entries=tuple(entries), draft=draft))


def turn_of(transcript: Transcript, instructions: tuple[ChatMessage, ...] = (RULES,)) -> Turn:
    async def complete(_: Any) -> ModelReply:
        raise AssertionError("nobody asks")

    request = RunRequest(correlation_id="now", messages=(ChatMessage("user", "now?"),))
    messages = (*instructions, *conversation(transcript, "now"))
    thread = AgentThread("A", "t")
    return Turn(thread=thread, request=request, transcript=transcript, messages=messages, complete=complete)


def unbalanced(messages: tuple[ChatMessage, ...]) -> list[str]:
    """The ids of results without their calls, and of calls without results before all else is said."""
    wrong, opened = list[str](), list[str]()
    for message in messages:
        answers = results_in(message)
        if opened and not answers:
            wrong += opened
            opened = []
        for each in answers:
            if each in opened:
                opened.remove(each)
            else:
                wrong.append(each)
        opened += open_calls([message]) if not answers else ()
    return wrong + opened


@given(turns(), st.integers(0, 15))
def test_no_call_is_cut_from_its_result_and_what_counts_stays(turn: Turn, most: int) -> None:
    shown = turn.last_turns(most)
    assert unbalanced(shown) == []
    assert shown[0] == RULES
    behind = turn.messages[len(turn.messages) - len(shown) + 1 :]
    assert shown[1:] == behind, "what is shown is how the conversation ends, and nothing between is left out"
    own = conversation(Transcript(entries=(asked("now"),), draft=turn.transcript.draft), "now")
    assert shown[-len(own) :] == own
    ended = sum(isinstance(entry, Response) for entry in turn.transcript.entries)
    everything = turn.messages
    assert (shown == everything) or ended > most
    assert turn.last_turns(most + ended) == everything


def plain(count: int) -> Turn:
    entries: list[Entry] = []
    for number in range(count):
        entries += [asked(f"t{number}"), Response(correlation_id=f"t{number}", messages=said(f"t{number}", "plain"))]
    return turn_of(Transcript(entries=(*entries, asked("now"))))


def test_between_so_many_and_half_as_many_more_stay_and_the_beginning_moves_in_blocks() -> None:
    kept = [(len(plain(count).last_turns(10)) - 2) // 2 for count in range(31)]
    assert kept[:11] == list(range(11))
    assert set(kept[10:]) == {10, 11, 12, 13, 14}
    starts = [plain(count).last_turns(10)[1].text for count in range(10, 31)]
    assert len(set(starts)) == 5


def test_instructions_may_be_missing_and_no_turn_may_stay() -> None:
    bare = attrs.evolve(plain(3), messages=plain(3).messages[1:])
    assert [message.text for message in bare.last_turns(0)] == ["now?"]
    assert [message.text for message in plain(3).last_turns(1)] == ["Be brief.", "t2?", "t2!", "now?"]
    with pytest.raises(ValueError, match="0 or more"):
        bare.last_turns(-1)


def test_entries_without_ids_go_with_their_answers() -> None:
    old: list[Entry] = [
        Request(messages=(ChatMessage("user", "a?"),)),
        Response(messages=(ChatMessage("assistant", "a!"),)),
    ]
    new: list[Entry] = [
        Request(messages=(ChatMessage("user", "b?"),)),
        Response(messages=(ChatMessage("assistant", "b!"),)),
    ]
    turn = turn_of(Transcript(entries=(*old, *new, asked("now"))))
    assert [message.text for message in turn.last_turns(1)] == ["Be brief.", "b?", "b!", "now?"]


@pytest.mark.anyio
async def test_an_agent_shows_its_model_the_last_turns_only() -> None:
    model = ScriptedModel(call("look"), "a", "b", call("look"), "c")

    @durable_agent(model=model)
    class Brief:
        instructions = "Be brief."

        @tool
        def look(self) -> str:
            """Look."""
            return "seen"

        async def respond(self, turn: Turn) -> ModelReply:
            return await turn.ask_model(turn.last_turns(1))

    async with AgentHost(Brief) as host:
        brief = host.client.get_agent(Brief)
        for text in ("one", "two", "three"):
            answer = await brief.run(text, thread="t")
        kept = (await brief.get_transcript("t")).entries
    assert (answer.text, len(kept)) == ("c", 6)
    assert [message.role for message in model.requests[-1].messages] == [
        *("system", "user", "assistant", "user", "assistant", "tool")
    ]
    assert [message.text for message in model.requests[-1].messages][:4] == ["Be brief.", "two", "b", "three"]
