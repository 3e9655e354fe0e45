"""Updates of turns on real schedulers, also on one that is not ours: readers who come, leave, and come back late."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from dafx_actors import (
    AgentRunResponse,
    ModelReply,
    ToolContext,
    Turn,
    TurnHandle,
    TurnStream,
    as_tool,
    durable_agent,
    tool,
)
from dafx_actors.errors import InvalidAnswer, ModelError, TurnCancelled, TurnNotFound, TurnTimeout
from dafx_actors.models import ModelRequest
from dafx_actors.testing import AgentHost, ScriptedModel
from dafx_actors.transcript import ErrorContent
from dafx_actors.updates import Asked, Decided, Ended, Progress, Reset, State, Text, Update, is_end
from tests.integration.conftest import Hosting
from tests.integration.turns import agent, asks, until, using, whenever_asked
from tests.test_updates import Screen, entries_of

pytestmark = pytest.mark.anyio

BESIDE = (State, Progress, Asked, Decided)
"""Updates that are no part of what is put together."""


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dafx_actors.client._updates._FIRST_PAUSE", 0.02)


def look_up(word: str) -> str:
    """Look a word up."""
    return f"{word} is a word"


async def told_by(stream: TurnStream[Any], screen: Screen | None = None) -> tuple[Screen, list[Update]]:
    """All that a stream tells, put together."""
    screen, told = screen or Screen(), []
    async for update in stream:
        told.append(update)
        if not isinstance(update, BESIDE) and not isinstance(update, Ended):
            screen.show(update)
    return screen, told


def kinds(told: list[Update]) -> list[str]:
    return [update.kind for update in told if not isinstance(update, BESIDE)]


def end_of(told: list[Update]) -> Ended:
    assert isinstance(told[-1], Ended)
    assert is_end(told[-1].cursor)
    return told[-1]


async def test_a_turn_is_told_step_by_step_and_its_end_after_the_commit(hosting: Hosting) -> None:
    async with hosting(agent(using(asks(("look_up", {"word": "hen"}))), look_up)) as client:
        worker = client.get_agent("Worker")
        thread = worker.get_new_thread()
        async with worker.run_stream("Hen?", thread=thread) as stream:
            screen, told = await told_by(stream)
            transcript = await worker.get_transcript(thread)
            response = await stream.response()
        assert kinds(told) == ["step", "call", "result", "step", "text", "ended"]
        assert end_of(told).response == response
        committed = transcript.response(response.correlation_id)
        assert committed is not None
        assert committed.messages == response.messages
        assert screen.steps == entries_of(response.messages)
        assert json.loads(told[-1].to_json())["response"]["text"] == "hen is a word"


async def test_an_ended_turn_is_told_the_same_and_a_cursor_goes_on_where_it_was(hosting: Hosting) -> None:
    async with hosting(agent(using(asks(("look_up", {"word": "hen"}))), look_up)) as client:
        worker = client.get_agent("Worker")
        turn = await worker.start("Hen?", stream=True)
        response = await turn
        again = worker.get_turn(turn.correlation_id)
        async with again.updates() as stream:
            whole, told = await told_by(stream)
        assert kinds(told) == ["step", "call", "result", "step", "text", "ended"]
        assert whole.steps == entries_of(response.messages)
        for number, update in enumerate(told[:-1]):
            async with again.updates(after=update.cursor) as stream:
                _, rest = await told_by(stream, _shown(told[: number + 1]))
            assert kinds(rest) == kinds(told[number + 1 :])
        async with again.updates(after=told[-1].cursor) as stream:
            assert [update async for update in stream] == []
            assert (await stream.response()).text == response.text


def _shown(told: list[Update]) -> Screen:
    screen = Screen()
    for update in told:
        if not isinstance(update, BESIDE):
            screen.show(update)
    return screen


@pytest.mark.parametrize("durability", ["step", "turn"])
async def test_agents_with_code_of_their_own_and_turns_in_one_operation(hosting: Hosting, durability: Any) -> None:
    @durable_agent(durability=durability)
    class Parrot:
        async def respond(self, turn: Turn) -> str:
            return f"{turn.text}!"

    async with hosting(Parrot) as client, client.get_agent("Parrot").run_stream("Hello") as stream:
        _, told = await told_by(stream)
        assert kinds(told) == ["step", "text", "ended"]
        assert (await stream.response()).text == "Hello!"


async def test_questions_and_what_was_decided_are_told(hosting: Hosting) -> None:
    @durable_agent(model=whenever_asked(("pay", {"amount": 5})))
    class Payer:
        instructions = "You pay."

        @tool(approval=True)
        def pay(self, amount: int) -> str:
            """Pay."""
            return f"paid {amount}"

    told: list[Update] = []
    async with hosting(Payer) as client, client.get_agent("Payer").run_stream("Pay.") as stream:
        async for update in stream:
            told.append(update)
            if isinstance(update, Asked):
                assert update.approval.arguments == {"amount": 5}
                await client.approve(update.approval, by="ana")  # type: ignore[arg-type]
        assert (await stream.response()).text == "paid 5"
    asked = [update for update in told if isinstance(update, Asked | Decided)]
    assert [update.kind for update in asked] in (["asked", "decided"], ["asked"])
    if isinstance(asked[-1], Decided):
        assert asked[-1].decision is not None
        assert asked[-1].decision.by == "ana"
    assert json.loads(asked[0].to_json())["approval"]["tool"] == "pay"
    states = [update.state for update in told if isinstance(update, State)]
    assert states


async def test_questions_of_agents_that_are_used_as_tools_are_told(hosting: Hosting) -> None:
    def pay() -> str:
        """Pay."""
        return "paid"

    below = agent(whenever_asked(("pay", {})), tool(approval=True)(pay), name="Below")
    above = agent(whenever_asked(("Below", {"request": "Pay."})), as_tool(below), name="Above")
    async with hosting(above, below) as client, client.get_agent("Above").run_stream("Pay.") as stream:
        asked: list[str] = []
        async for update in stream:
            if isinstance(update, Asked):
                asked.append(update.approval.thread.agent)
                await client.approve(update.approval, by="ana")  # type: ignore[arg-type]
        assert (await stream.response()).text == "paid"
    assert asked == ["Below"]


async def test_progress_of_a_tool_is_told(hosting: Hosting) -> None:
    seen = anyio.Event()

    @durable_agent(model=whenever_asked(("dig", {})))
    class Digger:
        instructions = "You dig."

        @tool
        async def dig(self, context: ToolContext) -> str:
            """Dig."""
            context.report_progress("half way")
            await seen.wait()
            return "a hole"

    async with hosting(Digger) as client, client.get_agent("Digger").run_stream("Dig.") as stream:
        async for update in stream:
            if isinstance(update, Progress):
                assert update.progress == "half way"
                seen.set()
        assert seen.is_set()


async def test_leaving_a_stream_cancels_nothing_and_its_turn_can_be_cancelled(hosting: Hosting) -> None:
    go_on, asked = anyio.Event(), anyio.Event()

    async def slowly(_: ModelRequest) -> str:
        asked.set()
        await go_on.wait()
        return "Done."

    async with hosting(agent(ScriptedModel(slowly, slowly))) as client:
        worker = client.get_agent("Worker")
        async with worker.run_stream("Hello") as stream:
            await asked.wait()
        left = stream.turn
        async with worker.run_stream("Hello again") as other:
            assert await other.turn.cancel("enough", by="ana")
            screen, told = await told_by(other)
            assert isinstance(end_of(told).error, TurnCancelled)
            with pytest.raises(TurnCancelled, match="enough"):
                await other.response()
        assert screen.steps == [[]]
        go_on.set()
        assert (await left).text == "Done."


async def test_a_turn_that_fails_says_so_in_its_end_and_iterating_does_not_raise(hosting: Hosting) -> None:
    def refuses(_: ModelRequest) -> ModelReply:
        raise ModelError("bad_request", "no such model", attempts=1)

    async with hosting(agent(using(asks(("look_up", {"word": "hen"})), refuses), look_up)) as client:
        worker = client.get_agent("Worker")
        thread = worker.get_new_thread()
        async with worker.run_stream("Hen?", thread=thread) as stream:
            screen, told = await told_by(stream)
            assert isinstance(end_of(told).error, ModelError)
            with pytest.raises(ModelError, match="no such model"):
                await stream.response()
        kept = (await worker.get_transcript(thread)).response(stream.turn.correlation_id)
        assert kept is not None
        assert any(isinstance(content, ErrorContent) for message in kept.messages for content in message.contents)
        assert screen.steps == entries_of(kept.messages)
        assert kinds(told) == ["step", "call", "result", "ended"]


async def test_an_answer_of_the_wrong_form_is_told_and_then_said_to_be_wrong(hosting: Hosting) -> None:
    model = ScriptedModel("many", "more")
    async with (
        hosting(agent(model)) as client,
        client.get_agent("Worker").run_stream("How many?", response_format=int) as stream,
    ):
        screen, told = await told_by(stream)
        assert isinstance(end_of(told).error, InvalidAnswer)
        assert next(step for step in screen.steps if step) == screen.steps[1]
        assert "message" in kinds(told)


async def test_a_request_that_joined_a_turn_is_told_that_turn(hosting: Hosting) -> None:
    go_on, asked = anyio.Event(), anyio.Event()

    async def slowly(_: ModelRequest) -> str:
        asked.set()
        await go_on.wait()
        return "One."

    async with hosting(agent(ScriptedModel(slowly, "Both."), overlap="steer")) as client:
        worker = client.get_agent("Worker")
        thread = worker.get_new_thread()
        screens: list[Screen] = []
        async with worker.run_stream("First", thread=thread) as first:
            await asked.wait()
            async with worker.run_stream("And second", thread=thread) as second:

                async def joins() -> bool:
                    return (await second.turn.status()).state == "queued"

                await until(joins)
                go_on.set()
                for stream in (second, first):
                    screen, told = await told_by(stream)
                    assert end_of(told).error is None
                    screens.append(screen)
                response: AgentRunResponse[Any] = await first.response()
        assert screens[0].steps == screens[1].steps == entries_of(response.messages)
        assert [len(step) for step in screens[0].steps] == [0, 2, 1]


async def test_words_alone(hosting: Hosting) -> None:
    async with hosting(agent(using(asks(("look_up", {"word": "hen"}))), look_up)) as client:
        worker = client.get_agent("Worker")
        async with worker.run_stream("Hen?") as stream:
            assert "".join([piece async for piece in stream.text()]) == "hen is a word"
        async with stream.turn.updates() as again:
            assert [text async for text in again.snapshots()] == ["hen is a word"]


async def test_a_timeout_is_raised_and_the_turn_goes_on(hosting: Hosting) -> None:
    go_on = anyio.Event()

    async def slowly(_: ModelRequest) -> str:
        await go_on.wait()
        return "Done."

    async with hosting(agent(ScriptedModel(slowly))) as client:
        async with client.get_agent("Worker").run_stream("Hello", timeout=0.5) as stream:
            with pytest.raises(TurnTimeout):
                await told_by(stream)
            with pytest.raises(TurnTimeout):
                await stream.response()
        go_on.set()
        assert (await stream.turn).text == "Done."


async def test_a_call_that_is_cancelled_loses_no_update(hosting: Hosting) -> None:
    async with (
        hosting(agent(using(asks(("look_up", {"word": "hen"}))), look_up)) as client,
        client.get_agent("Worker").run_stream("Hen?") as stream,
    ):
        told: list[Update] = []
        while not told or not isinstance(told[-1], Ended):
            with anyio.move_on_after(0.003):
                told.append(await anext(stream))
        assert kinds(told) == ["step", "call", "result", "step", "text", "ended"]


async def test_what_is_not_there_and_what_is_not_open(hosting: Hosting) -> None:
    async with hosting(agent(ScriptedModel("Hello."))) as client:
        worker = client.get_agent("Worker")
        with pytest.raises(TurnNotFound):
            async with worker.get_turn("nobody").updates():
                pass
        closed = worker.run_stream("Hello")
        with pytest.raises(RuntimeError, match="async with"):
            await anext(closed)
        async with closed:
            pass
        with pytest.raises(RuntimeError, match="opened once"):
            await closed.__aenter__()
        with pytest.raises(ValueError, match="as it was told, or None"):
            worker.get_turn("nobody").updates(after="x")


# --- The programs of the docstring of `dafx_actors.updates` -------------------------------------------------------


async def test_a_terminal_chat(hosting: Hosting) -> None:
    screen: dict[int, str] = {}
    async with hosting(agent(using("Why did the hen?"))) as client:
        joker = client.get_agent("Worker")
        async with joker.run_stream("Tell me a joke.") as stream:
            async for update in stream:
                match update:
                    case Text():
                        screen[update.step] = screen.get(update.step, "") + update.text
                    case Reset():
                        screen = {step: text for step, text in screen.items() if step < update.step}
                    case Ended(error=None):
                        assert update.response is not None
                        screen[0] = update.response.text
                    case _:
                        pass
    assert screen == {1: "Why did the hen?", 0: "Why did the hen?"}


async def test_server_sent_events_go_on_behind_the_last_event_id(hosting: Hosting) -> None:
    async with hosting(agent(using(asks(("look_up", {"word": "hen"}))), look_up)) as client:
        joker = client.get_agent("Worker")

        async def events(request: Request) -> Response:
            after = request.headers.get("last-event-id")
            if after and is_end(after):
                return Response(status_code=204)

            async def body() -> AsyncIterator[str]:
                async with joker.get_turn(request.path_params["id"]).updates(after=after) as stream:
                    async for update in stream:
                        yield f"id: {update.cursor}\nevent: {update.kind}\ndata: {update.to_json()}\n\n"

            return StreamingResponse(body(), media_type="text/event-stream")

        app = Starlette(routes=[Route("/turns/{id}/events", events)])
        turn = await joker.start("Hen?", stream=True)
        url = f"/turns/{turn}/events"
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://test", timeout=60) as browser:
            sent = (await browser.get(url)).text
            found = [dict(line.split(": ", 1) for line in each.splitlines()) for each in sent.split("\n\n") if each]
            whole = [each for each in found if each["event"] != "state"]
            assert [each["event"] for each in whole] == ["step", "call", "result", "step", "text", "ended"]
            assert json.loads(whole[-2]["data"]) == {"kind": "text", "step": 2, "text": "hen is a word"}
            rest = (await browser.get(url, headers={"Last-Event-ID": whole[2]["id"]})).text
            assert [line for line in rest.splitlines() if line.startswith("event")] == [
                "event: step",
                "event: text",
                "event: ended",
            ]
            assert (await browser.get(url, headers={"Last-Event-ID": whole[-1]["id"]})).status_code == 204


async def test_with_an_agent_host() -> None:
    async with AgentHost(agent(ScriptedModel("Why?"))) as host:
        async with host.client.get_agent("Worker").run_stream("Tell me a joke.") as stream:
            told = [update.kind async for update in stream if update.kind != "state"]
        assert told == ["step", "text", "ended"]


async def test_a_turn_that_nobody_streams_says_nothing_of_it(hosting: Hosting, endpoint: str) -> None:
    async with hosting(agent(ScriptedModel("Hello.", "Hello."))) as client:
        worker = client.get_agent("Worker")
        turns: list[TurnHandle[Any]] = [await worker.start("Hi"), await worker.start("Hi", stream=True)]
        inputs = [(await client._backend.state(str(turn))) for turn in turns]
        said = ["stream" in (state.serialized_input or "") for state in inputs if state is not None]
        assert said == [False, True]
        for turn in turns:
            await turn
