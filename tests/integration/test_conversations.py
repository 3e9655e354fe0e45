"""A client, a worker and a scheduler: what users see."""

from __future__ import annotations

import anyio
import attrs
import pytest
from durabletask.client import TaskHubGrpcClient
from durabletask.worker import TaskHubGrpcWorker
from pydantic import BaseModel

from dafx_actors import (
    ChatMessage,
    DataContent,
    DurableAIAgentClient,
    DurableAIAgentWorker,
    ModelReply,
    ModelRequest,
    OrchestrationContext,
    Turn,
    UriContent,
    UsageStats,
    durable_agent,
    orchestrator,
)
from dafx_actors.errors import (
    AgentNotHosted,
    CorrelationConflict,
    InvalidAnswer,
    ModelError,
    SchedulerUnreachable,
    TurnFailed,
    TurnTimeout,
)
from dafx_actors.testing import ScriptedModel
from tests.conftest import free_port
from tests.integration.conftest import Hosting

pytestmark = pytest.mark.anyio


def agent_with(model: ScriptedModel, name: str = "Joker", durability: str = "step") -> type:
    @durable_agent(name=name, model=model, durability=durability)  # type: ignore[call-overload]
    class Agent:
        instructions = "You are good at telling jokes."

    return Agent


def echo(request: ModelRequest) -> str:
    """Answers with what was asked, and how much of the conversation was seen."""
    return f"{request.messages[-1].text} ({len(request.messages)} messages)"


@pytest.mark.parametrize("durability", ["step", "turn"])
async def test_the_second_turn_has_seen_the_first(hosting: Hosting, durability: str) -> None:
    model = ScriptedModel("One about clouds.", "One about Python.")
    async with hosting(agent_with(model, durability=durability)) as client:
        joker = client.get_agent("Joker")
        thread = joker.get_new_thread()
        first = await joker.run("Tell me a joke", thread=thread)
        second = await joker.run("Another one", thread=thread)
        transcript = await joker.get_transcript(thread)
    assert [first.text, second.text] == ["One about clouds.", "One about Python."]
    assert [(message.role, message.text) for message in model.requests[1].messages] == [
        ("system", "You are good at telling jokes."),
        ("user", "Tell me a joke"),
        ("assistant", "One about clouds."),
        ("user", "Another one"),
    ]
    assert first.usage == UsageStats(input_tokens=10, output_tokens=3, total_tokens=13)
    assert (second.thread, str(thread)) == (thread, thread.thread_id)
    assert [message.text for message in transcript] == [
        "Tell me a joke",
        "One about clouds.",
        "Another one",
        "One about Python.",
    ]


async def test_another_program_takes_up_the_thread_by_its_id(hosting: Hosting, endpoint: str) -> None:
    async with hosting(agent_with(ScriptedModel(echo))) as client:
        joker = client.get_agent("Joker")
        stored = str((await joker.run("Hello")).thread)
        async with DurableAIAgentClient.connect(endpoint) as other:
            answer = await other.get_agent("Joker").run("Again", thread=stored)
    assert answer.text == "Again (4 messages)"


async def test_overlapping_requests_are_answered_in_the_order_in_which_they_arrived(hosting: Hosting) -> None:
    release = anyio.Event()
    answers: list[str] = []

    async def slow(request: ModelRequest) -> str:
        await release.wait()
        return echo(request)

    async with hosting(agent_with(ScriptedModel(slow))) as client:
        joker = client.get_agent("Joker")
        thread = joker.get_new_thread()

        async def ask(text: str) -> None:
            answers.append((await joker.run(text, thread=thread)).text)

        async with anyio.create_task_group() as tasks:
            for number in range(4):
                tasks.start_soon(ask, f"Question {number}")
                await arrived(client, joker.name, str(thread), number + 1)
            release.set()
        transcript = await joker.get_transcript(thread)
    assert sorted(answers) == [f"Question {number} ({2 * number + 2} messages)" for number in range(4)]
    assert [message.text for message in transcript][::2] == [f"Question {number}" for number in range(4)]


async def arrived(client: DurableAIAgentClient, agent: str, thread: str, count: int) -> None:
    """Wait until the thread knows of `count` requests: the active one, and those that wait."""
    entity = client.get_agent(agent).get_thread(thread).entity_id
    while True:
        document = await client._backend.thread(entity)
        ours = document["data"].get("dafx", {}) if document else {}
        if bool(ours.get("active")) + len(ours.get("line", ())) == count:
            return
        await anyio.lowlevel.checkpoint()


async def test_the_same_correlation_id_gives_the_same_answer_from_one_model_call(hosting: Hosting) -> None:
    model = ScriptedModel("Only once.")
    async with hosting(agent_with(model)) as client:
        joker = client.get_agent("Joker")
        thread = joker.get_new_thread()
        first = await joker.run("Hello", thread=thread, correlation_id="order-17")
        again = await joker.run("Hello", thread=thread, correlation_id="order-17")
    assert first == again
    assert len(model.requests) == 1


async def test_a_correlation_id_names_one_request_only(hosting: Hosting) -> None:
    async with hosting(agent_with(ScriptedModel(echo)), agent_with(ScriptedModel(echo), name="Other")) as client:
        joker, other = client.get_agent("Joker"), client.get_agent("Other")
        thread = joker.get_new_thread()
        await joker.run("Hello", thread=thread, correlation_id="order-17")
        for differs, agent, text, where in [
            ("request", joker, "Something else", thread),
            ("thread", joker, "Hello", None),
            ("agent", other, "Hello", None),
        ]:
            with pytest.raises(CorrelationConflict) as caught:
                await agent.run(text, thread=where, correlation_id="order-17")
            assert caught.value.differs == differs


async def test_a_request_can_be_sent_now_and_its_answer_picked_up_later(hosting: Hosting) -> None:
    async with hosting(agent_with(ScriptedModel(echo))) as client:
        joker = client.get_agent("Joker")
        thread = joker.get_new_thread()
        correlation_id = await joker.run("Hello", thread=thread, wait_for_response=False)
        answer = await joker.run("Hello", thread=thread, correlation_id=correlation_id)
    assert (answer.text, answer.correlation_id) == ("Hello (2 messages)", correlation_id)


async def test_a_timeout_says_how_to_pick_the_answer_up(hosting: Hosting) -> None:
    release = anyio.Event()

    async def slow(request: ModelRequest) -> str:
        await release.wait()
        return echo(request)

    async with hosting(agent_with(ScriptedModel(slow))) as client:
        joker = client.get_agent("Joker")
        thread = joker.get_new_thread()
        late, seconds = None, 0.1
        while late is None:
            try:
                await joker.run("Hello", thread=thread, timeout=seconds)
            except TurnTimeout as error:
                late = error
            except SchedulerUnreachable:  # a machine that does other things, too: nothing was sent
                seconds *= 4
        release.set()
        answer = await joker.run("Hello", thread=thread, correlation_id=late.correlation_id)
    assert answer.text == "Hello (2 messages)"
    assert repr(late.correlation_id) in str(late)


async def test_an_agent_that_nobody_hosts_is_an_error_that_lists_what_is_hosted(
    hosting: Hosting, endpoint: str, request: pytest.FixtureRequest
) -> None:
    # Only the embedded scheduler can tell, and then nobody has to wait for the whole of the usual `start_timeout`.
    embedded = "embedded" in request.node.name
    async with (
        hosting(agent_with(ScriptedModel(echo))) as hosts,
        DurableAIAgentClient.connect(endpoint, start_timeout=None if embedded else 1.5) as client,
    ):
        await hosts.get_agent("Joker").run("Hello")
        with pytest.raises(AgentNotHosted) as caught:
            await client.get_agent("Nobody").run("Hello")
    assert (caught.value.agent, caught.value.task_hub) == ("Nobody", "default")
    assert caught.value.hosted == (("Joker",) if embedded else None)
    assert caught.value.seconds == (1.0 if embedded else 1.5)


@pytest.mark.parametrize("endpoint", ["embedded"], indirect=True)
async def test_a_start_timeout_that_is_given_is_kept_where_no_worker_is_connected_yet(endpoint: str) -> None:
    """So that a client which was started again takes up its turn while the workers are being started, too."""
    async with DurableAIAgentClient.connect(endpoint, start_timeout=1.2) as client:
        with pytest.raises(AgentNotHosted) as caught:
            await client.get_agent("Joker").run("Hello")
    assert caught.value.hosted == ()
    assert caught.value.seconds == pytest.approx(1.2)


async def test_no_scheduler_is_an_error_that_says_how_to_start_one() -> None:
    async with DurableAIAgentClient.connect(f"http://127.0.0.1:{free_port()}") as client:
        with pytest.raises(SchedulerUnreachable, match="dafx scheduler"):
            await client.get_agent("Joker").run("Hello")


async def test_a_models_failure_is_typed_and_does_not_poison_the_thread(hosting: Hosting) -> None:
    refused = ModelError("context_length", "too long", status=400)
    model = ScriptedModel(refused, echo)
    async with hosting(agent_with(model)) as client:
        joker = client.get_agent("Joker")
        thread = joker.get_new_thread()
        with pytest.raises(ModelError) as caught:
            await joker.run("A very long text", thread=thread)
        answer = await joker.run("A short one", thread=thread)
        transcript = await joker.get_transcript(thread)
    assert (caught.value.kind, caught.value.status) == ("context_length", 400)
    assert answer.text == "A short one (2 messages)"
    failed = transcript.response(getattr(transcript.entries[0], "correlation_id", ""))
    assert failed is not None
    assert failed.error is not None
    assert failed.error.error_code == "ModelError"


@pytest.mark.parametrize("durability", ["step", "turn"])
async def test_what_the_agents_code_raises_is_a_failed_turn(hosting: Hosting, durability: str) -> None:
    @durable_agent(durability=durability)  # type: ignore[call-overload]
    class Clumsy:
        async def respond(self, turn: Turn) -> str:
            raise KeyError(turn.text)

    async with hosting(Clumsy) as client:
        with pytest.raises(TurnFailed) as caught:
            await client.get_agent("Clumsy").run("the key")
    assert caught.value.error_type == "KeyError"
    assert "the key" in str(caught.value)


async def test_an_agent_may_answer_with_its_own_code_and_ask_its_model(hosting: Hosting) -> None:
    model = ScriptedModel("forty-two")

    @durable_agent(model=model)
    class Careful:
        def __init__(self, prefix: str) -> None:
            self.prefix = prefix

        async def instructions(self, turn: Turn) -> str:
            return f"Answer {turn.thread.agent}'s question."

        async def respond(self, turn: Turn) -> ModelReply:
            reply = await turn.ask_model(temperature=0)
            return attrs.evolve(reply, message=ChatMessage("assistant", f"{self.prefix} {reply.message.text}"))

    async with hosting(Careful("Surely")) as client:
        answer = await client.get_agent(Careful).run("How much?", options={"top_p": 0.5})
    assert answer.text == "Surely forty-two"
    assert model.requests[0].messages[0].text == "Answer Careful's question."
    assert model.requests[0].options == {"temperature": 0, "top_p": 0.5}


async def test_a_model_may_be_made_by_its_class(hosting: Hosting) -> None:
    class Echo(ScriptedModel):
        def __init__(self) -> None:
            super().__init__(echo)

    @durable_agent(model=Echo)
    class Joker:
        instructions = "You are good at telling jokes."

    async with hosting(Joker) as client:
        answer = await client.get_agent(Joker).run("Hello")
    assert answer.text == "Hello (2 messages)"


async def test_images_reach_the_model_by_address_and_by_value(hosting: Hosting) -> None:
    model = ScriptedModel(lambda request: str(len(request.messages[-1].contents)))
    picture = DataContent.from_bytes(b"\x89PNG", "image/png")
    elsewhere = UriContent("https://example.org/cat.png", "image/png")
    async with hosting(agent_with(model)) as client:
        answer = await client.get_agent("Joker").run(["What is this?", picture, elsewhere])
    assert answer.text == "3"
    assert model.requests[0].messages[-1].contents[1:] == (picture, elsewhere)


class Forecast(BaseModel):
    city: str
    celsius: float


async def test_a_typed_answer_is_asked_for_and_given(hosting: Hosting) -> None:
    model = ScriptedModel('{"city": "Oslo", "celsius": -3.5}', "It is cold.", "It is very cold.")
    async with hosting(agent_with(model)) as client:
        joker = client.get_agent("Joker")
        answer = await joker.run("Weather?", response_format=Forecast)
        with pytest.raises(InvalidAnswer) as caught:
            await joker.run("Weather?", response_format=Forecast)
    assert answer.value == Forecast(city="Oslo", celsius=-3.5)
    assert model.requests[0].response_schema == Forecast.model_json_schema()
    assert caught.value.text == "It is very cold."
    assert "it is not JSON" in str(caught.value)


async def test_an_answer_may_be_asked_for_by_a_json_schema(hosting: Hosting) -> None:
    schema = {"type": "array", "items": {"type": "integer"}}
    model = ScriptedModel("[1, 2]", *['{"not": "a list"}'] * 2)
    async with hosting(agent_with(model)) as client:
        joker = client.get_agent("Joker")
        answer = await joker.run("Count", response_format=schema)
        with pytest.raises(InvalidAnswer, match="is not of type 'array'"):
            await joker.run("Count", response_format=schema)
    assert answer.value == [1, 2]
    assert model.requests[0].response_schema == schema


async def test_plain_durabletask_workers_and_sync_clients_can_be_wrapped(endpoint: str) -> None:
    address = endpoint.removeprefix("http://")
    worker, client = TaskHubGrpcWorker(host_address=address), TaskHubGrpcClient(host_address=address)
    agent_worker, agent_client = DurableAIAgentWorker(worker), DurableAIAgentClient(client)
    agent_worker.add_agent(agent_with(ScriptedModel(echo)))
    worker.start()  # type: ignore[no-untyped-call]  # durabletask leaves it without types
    try:
        joker = agent_client.get_agent("Joker")
        thread = joker.get_new_thread()
        answers = [(await joker.run(text, thread=thread)).text for text in ("One", "Two")]
    finally:
        await anyio.to_thread.run_sync(agent_worker.stop)
        client.close()
    assert agent_worker.registered_agent_names == ["Joker"]
    assert answers == ["One (2 messages)", "Two (4 messages)"]


async def test_orchestrations_take_a_thread_or_its_id_and_refuse_another_agents(hosting: Hosting) -> None:
    """As clients do: another agent's thread would be begun anew, under the same id."""

    @orchestrator
    async def ask(context: OrchestrationContext, thread_id: str) -> list[str]:
        joker = context.get_agent("Joker")
        by_id = await joker.run("Hello", thread=thread_id)
        by_thread = await joker.run("Again", thread=by_id.thread)
        try:
            await joker.run("Hello", thread=context.get_agent("Pirate").get_thread(thread_id))
        except ValueError as error:
            return [by_id.text, by_thread.text, str(error)]
        return []

    async with hosting(agent_with(ScriptedModel(echo)), orchestrators=(ask,)) as client:
        answers = await (await client.schedule_new_orchestration(ask, input="t1"))
    assert answers[:2] == ["Hello (2 messages)", "Again (4 messages)"]
    assert "belongs to agent 'Pirate', not to 'Joker'" in answers[2]
