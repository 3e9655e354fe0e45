"""Words while a model says them: over the embedded scheduler, from attempts that die, and to nobody."""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import attrs
import grpc
import pytest

from dafx_actors import ChatMessage, DurableAIAgentClient, DurableAIAgentWorker, ModelReply, ModelRequest, RetryPolicy
from dafx_actors._durable.words import tell_words
from dafx_actors.errors import ModelError
from dafx_actors.models import ModelDelta
from dafx_actors.scheduler import EmbeddedScheduler
from dafx_actors.scheduler._hub import views as _views
from dafx_actors.testing import AgentHost
from dafx_actors.transcript import Content, FunctionCallContent, TextContent
from dafx_actors.updates import Ended, Reset, Step, Text, Update
from tests.conftest import free_port
from tests.integration.conftest import Hosting
from tests.integration.test_updates_in_turns import kinds, told_by
from tests.integration.turns import agent, until
from tests.test_updates import Screen, entries_of

pytestmark = pytest.mark.anyio

Piece = str | Callable[[], Awaitable[object]] | FunctionCallContent


class Speaker:
    """A model that says each of its answers in pieces, and does between them what it is told to."""

    def __init__(self, *answers: list[Piece], says: str | None = None) -> None:
        self.answers = list(answers)
        self.completed = 0
        self.says = says

    async def complete(self, request: ModelRequest) -> ModelReply:
        self.completed += 1
        [reply] = [each async for each in self.stream(request) if isinstance(each, ModelReply)]
        return reply

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelDelta | ModelReply]:
        pieces = self.answers.pop(0)
        for piece in pieces:
            if isinstance(piece, str):
                yield ModelDelta(text=piece)
            elif not isinstance(piece, FunctionCallContent):
                await piece()
        text = "".join(piece for piece in pieces if isinstance(piece, str)) if self.says is None else self.says
        calls = [piece for piece in pieces if isinstance(piece, FunctionCallContent)]
        contents: list[Content] = [*([TextContent(text)] if text else []), *calls]
        yield ModelReply(message=ChatMessage("assistant", contents), finish_reason="tool_calls" if calls else "stop")

    async def aclose(self) -> None: ...


def look_up() -> str:
    """Look it up."""
    return "a word"


async def until_said(stream: Any, screen: Screen, text: str) -> list[Update]:
    """Read until the latest step says this."""
    told: list[Update] = []
    while not (len(screen.steps) > 1 and screen.text(len(screen.steps) - 1) == text):
        update = await anext(stream)
        if isinstance(update, Step | Text | Reset):
            screen.show(update)
        told.append(update)
    return told


@pytest.fixture
async def embedded() -> AsyncIterator[EmbeddedScheduler]:
    async with EmbeddedScheduler() as scheduler:
        yield scheduler


async def test_words_come_while_the_model_says_them_and_views_end_with_the_turn(embedded: EmbeddedScheduler) -> None:
    first, second = anyio.Event(), anyio.Event()
    model = Speaker(["Let me see.", first.wait, FunctionCallContent("c", "look_up")], ["It ", second.wait, "is."])
    worker = DurableAIAgentWorker.connect(embedded.endpoint)
    worker.add_agent(agent(model, look_up))
    async with worker, DurableAIAgentClient.connect(embedded.endpoint) as client:
        async with client.get_agent("Worker").run_stream("Hen?") as stream:
            screen = Screen()
            await until_said(stream, screen, "Let me see.")
            async with client.get_agent("Worker").get_turn(str(stream.turn)).updates() as late:
                await until_said(late, Screen(), "Let me see.")
            first.set()
            async for update in stream:
                if not isinstance(update, Ended) and update.kind != "state":
                    screen.show(update)
                if isinstance(update, Text) and update.step == 2:
                    assert update.text == "It "
                    break
            second.set()
            screen, rest = await told_by(stream, screen)
            response = await stream.response()
        assert kinds(rest) == ["text", "ended"]
        assert screen.steps == entries_of(response.messages)
        assert model.completed == 0
        [hub] = embedded.engine.hubs.values()
        assert len(hub.views) == 0


async def test_a_turn_that_nobody_streams_asks_for_no_pieces(embedded: EmbeddedScheduler) -> None:
    seen: list[int] = []
    [hub, *_] = [*embedded.engine.hubs.values()] or [embedded.engine.hub("default")]

    async def look() -> None:
        seen.append(len(hub.views))

    model = Speaker(["One ", look, "two."])
    worker = DurableAIAgentWorker.connect(embedded.endpoint)
    worker.add_agent(agent(model))
    async with worker, DurableAIAgentClient.connect(embedded.endpoint) as client:
        turn = await client.get_agent("Worker").start("Count.")
        async with turn.updates() as stream:
            _, told = await told_by(stream)
        assert kinds(told) == ["step", "text", "ended"]
    assert (model.completed, seen) == (1, [0])


async def test_on_any_scheduler_the_answer_is_told_whole_at_the_end(hosting: Hosting) -> None:
    model = Speaker(["One ", "two."], ["Three."])
    async with hosting(agent(model)) as client:
        for text in ("One two.", "Three."):
            async with client.get_agent("Worker").run_stream("Count.") as stream:
                screen, _ = await told_by(stream)
                assert (await stream.response()).text == text
            assert screen.text(1) == text
    assert model.completed == 0


async def test_a_reply_that_differs_from_its_pieces_counts(embedded: EmbeddedScheduler) -> None:
    go_on = anyio.Event()
    worker = DurableAIAgentWorker.connect(embedded.endpoint)
    worker.add_agent(agent(Speaker(["My key is 123", go_on.wait], says="I do not tell.")))
    async with worker, DurableAIAgentClient.connect(embedded.endpoint) as client:
        taken_back: list[str] = []
        async with client.get_agent("Worker").run_stream("Key?") as stream:
            pieces: list[str] = []
            async for piece in stream.text(on_reset=taken_back.append):
                pieces.append(piece)
                go_on.set()
    assert (pieces, taken_back) == (["My key is 123", "I do not tell."], [""])


async def test_a_stream_without_a_reply_is_a_failure_of_the_model(hosting: Hosting) -> None:
    class Silent(Speaker):
        async def stream(self, request: ModelRequest) -> AsyncIterator[ModelDelta | ModelReply]:
            yield ModelDelta(text="Half a")

    async with hosting(agent(Silent(), retry=_once())) as client:
        async with client.get_agent("Worker").run_stream("Hello") as stream:
            screen, told = await told_by(stream)
        assert isinstance(told[-1], Ended)
        assert isinstance(told[-1].error, ModelError)
        assert told[-1].error.kind == "bad_response"
    assert screen.steps == [[]]


async def test_a_typed_answer_is_asked_for_as_a_whole(hosting: Hosting) -> None:
    model = Speaker(["4", "2"])
    async with (
        hosting(agent(model)) as client,
        client.get_agent("Worker").run_stream("How many?", response_format=int) as stream,
    ):
        assert (await stream.response()).value == 42
    assert model.completed == 1


def _once() -> RetryPolicy:
    return RetryPolicy(first_retry_interval=timedelta(seconds=1), max_number_of_attempts=1)


async def test_words_of_an_attempt_that_died_are_taken_back() -> None:
    said = anyio.Event()

    async def never() -> None:
        said.set()
        await anyio.sleep_forever()

    model = Speaker(["first attempt", never], ["second ", "attempt"])
    async with AgentHost(agent(model)) as host:
        async with host.client.get_agent("Worker").run_stream("Hello") as stream:
            screen = Screen()
            told = await until_said(stream, screen, "first attempt")
            _crash(host)
            screen, rest = await told_by(stream, screen)
        assert kinds(told + rest)[:2] == ["step", "text"]
        assert "reset" in kinds(rest)
        assert screen.text(1) == "second attempt"


async def test_whatever_crashes_the_words_are_of_one_attempt_and_at_the_end_those_of_the_transcript() -> None:
    """Each attempt says other words, workers crash in the middle of them, and readers are cut and come back."""
    chance = random.Random(17)
    attempts = itertools.count()

    class Tagged(Speaker):
        async def stream(self, request: ModelRequest) -> AsyncIterator[ModelDelta | ModelReply]:
            tag, words = next(attempts), chance.randint(1, 8)
            text = ""
            for word in range(words):
                piece = f"a{tag}w{word} "
                text += piece
                yield ModelDelta(text=piece)
                await anyio.sleep(chance.choice([0, 0.01, 0.04]))
            is_last = request.messages[-1].role == "tool"
            contents: list[Content] = [TextContent(text)]
            if not is_last:
                contents.append(FunctionCallContent(f"c{tag}", "look_up"))
            reason = "stop" if is_last else "tool_calls"
            yield ModelReply(message=ChatMessage("assistant", contents), finish_reason=reason)

    ended = crashed = 0
    async with AgentHost(agent(Tagged(), look_up)) as host:
        worker = host.client.get_agent("Worker")

        async def crashes() -> None:
            nonlocal crashed
            # What crashes oftener is handed out again after a pause, by a clock that stands still here.
            while ended < 6 and crashed < 4:
                await anyio.sleep(chance.uniform(0.05, 0.4))
                _crash(host)
                crashed += 1
                await anyio.sleep(0.5)

        async def read() -> None:
            nonlocal ended
            screen, cursor = Screen(), None
            turn = await worker.start("Hello", stream=True)
            while True:
                async with turn.updates(after=cursor) as stream:
                    async for update in stream:
                        cursor = update.cursor
                        if isinstance(update, Ended):
                            assert update.response is not None, update.error
                            assert screen.steps == entries_of(update.response.messages)
                            ended += 1
                            return
                        if update.kind != "state":
                            screen.show(update)
                        for step in range(1, len(screen.steps)):
                            assert len({word.split("w")[0] for word in screen.text(step).split()}) <= 1, screen.steps
                        if chance.random() < 0.2:
                            break

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(crashes)
            for _ in range(6):
                tasks.start_soon(read)
    assert crashed > 0


def _crash(host: AgentHost) -> None:
    life = host._up.life
    life.worker.abandon()
    life.over.set()


async def test_words_under_a_token_that_is_not_out_are_refused(embedded: EmbeddedScheduler) -> None:
    go_on = anyio.Event()
    worker = DurableAIAgentWorker.connect(embedded.endpoint)
    worker.add_agent(agent(Speaker(["Hello", go_on.wait])))
    async with (
        worker,
        DurableAIAgentClient.connect(embedded.endpoint) as client,
        client.get_agent("Worker").run_stream("Hi") as stream,
    ):
        screen = Screen()
        await until_said(stream, screen, "Hello")
        [hub] = embedded.engine.hubs.values()
        view = hub.views._views[str(stream.turn)]
        channel = grpc.insecure_channel(embedded.endpoint.removeprefix("http://"))

        async def forge(*told: Any) -> int | None:
            return await anyio.to_thread.run_sync(lambda: tell_words(channel, *told))

        assert await forge("nonsense", 1, 0, "forged") is None
        assert await forge(view.attempt, 1, 2, "l") == 5  # late, and twice
        assert await forge(view.attempt, 1, 99, "x") == 5
        assert view.text == "Hello"
        go_on.set()
        screen, _ = await told_by(stream, screen)
        assert screen.text(1) == "Hello"
        assert await forge(view.attempt, 1, 0, "forged") is None
        with pytest.raises(grpc.RpcError) as refused:
            await forge(view.attempt, -1, 0, "forged")
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        channel.close()


@pytest.mark.parametrize("request_", [b"{", b"[]", b'{"turns": {"i": 1}, "seconds": 1}', b'{"turns": {}}'])
async def test_a_look_that_cannot_be_read_is_refused(embedded: EmbeddedScheduler, request_: bytes) -> None:
    async with grpc.aio.insecure_channel(embedded.endpoint.removeprefix("http://")) as channel:
        look: Any = channel.unary_unary("/dafx.scheduler.v1.Updates/Look")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await look(request_)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_scheduler_that_is_restarted_in_the_middle_loses_no_answer(tmp_path: Path) -> None:
    go_on = anyio.Event()
    model = Speaker(["before", go_on.wait], ["after ", "that"], ["after ", "that"])
    port = free_port()
    how = {"db": tmp_path / "dafx.db", "port": port}
    endpoint = f"http://127.0.0.1:{port}"
    worker = DurableAIAgentWorker.connect(endpoint)
    worker.add_agent(agent(model))
    async with DurableAIAgentClient.connect(endpoint) as client:
        async with EmbeddedScheduler(**how):  # type: ignore[arg-type]
            await worker.__aenter__()
            stream = client.get_agent("Worker").run_stream("Hello", timeout=100)
            await stream.__aenter__()
            screen = Screen()
            await until_said(stream, screen, "before")
        go_on.set()
        async with EmbeddedScheduler(**how):  # type: ignore[arg-type]
            screen, told = await told_by(stream, screen)
            assert isinstance(told[-1], Ended)
            assert told[-1].response is not None
            assert screen.steps == entries_of(told[-1].response.messages)
            await stream.__aexit__(None, None, None)
            await worker.__aexit__(None, None, None)


# --- The views of the scheduler -----------------------------------------------------------------------------------


@attrs.define
class _Out:
    """Work that is out."""

    turns: dict[str, str]

    def held_under(self, token: str, kind: str) -> Any:
        turn = self.turns.get(token)
        return (
            None if turn is None else attrs.make_class("W", ["subject"])(attrs.make_class("A", ["instance_id"])(turn))
        )


async def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_views, "MOST_OF_ONE", 10)
    monkeypatch.setattr(_views, "MOST_OF_ALL", 15)
    delivery: Any = _Out({"a": "one", "b": "two", "c": "one"})
    views = _views.Views(delivery)
    assert views.tell("a", 1, 0, "0123456789") == 10
    assert views.tell("a", 1, 10, "x") is None
    assert views.tell("b", 1, 0, "0123456789") == 10
    assert (len(views), await views.look({"one": ("", 0)}, 0)) == (1, {})
    assert views.tell("c", 1, 3, "x") == 0
    assert views.tell("c", 1, 0, "ab") == 2
    assert views.tell("c", 2, 0, "c") == 1
    assert await views.look({"one": ("c", 1), "two": ("b", 4)}, 0) == {
        "two": {"attempt": "b", "step": 1, "position": 4, "text": "456789"}
    }
    views.drop("one")
    views.drop("two")
    assert (len(views), views._size) == (0, 0)


async def test_who_looks_is_woken_and_nothing_is_left() -> None:
    delivery: Any = _Out({"a": "one"})
    views = _views.Views(delivery)
    found: list[Any] = []

    async def look() -> None:
        found.append(await views.look({"one": ("", 0), "two": ("", 0)}, 60))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(look)

        async def looks() -> bool:
            return bool(views._looking)

        await until(looks)
        views.tell("a", 1, 0, "Hello")
    assert found[0]["one"]["text"] == "Hello"
    assert views._looking == {}
    views.stop(RuntimeError("over"))
    with pytest.raises(RuntimeError, match="over"):
        await views.look({}, 60)
