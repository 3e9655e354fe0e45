"""What must, and what must not, type-check in programs that use this package.

Never run: mypy and pyright read it (`tests/test_typing.py`). A line that must not type-check carries a suppression,
and both checkers complain about one that is not needed.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from datetime import datetime
from typing import Any, BinaryIO, TextIO, assert_type

import attrs
from durabletask import task
from durabletask.entities import EntityInstanceId

from dafx_actors import (
    AgentRunResponse,
    AgentThread,
    ChatMessage,
    Decision,
    DecisionAccepted,
    DecisionStored,
    DurableAgentTask,
    DurableAIAgent,
    DurableAIAgentClient,
    DurableTask,
    Limits,
    OrchestrationContext,
    OrchestrationHandle,
    PendingApproval,
    PendingOutcome,
    Turn,
    TurnHandle,
    durable_agent,
    orchestrator,
    when_all,
    when_any,
)
from dafx_actors import sync as _sync
from dafx_actors.client import Listing
from dafx_actors.decisions import InboxAsked, InboxGone
from dafx_actors.errors import ModelError, ThreadBusy, ThreadTimeout
from dafx_actors.transcript import Json


@attrs.frozen
class Joke:
    setup: str
    punchline: str


@durable_agent
class Joker:
    instructions = "x"


@durable_agent(name="Other", durability="turn")
class Other:
    instructions = "x"


assert_type(Joker(), Joker)
assert_type(Other().instructions, str)
durable_agent(durability="sometimes")  # type: ignore[call-overload] # pyright: ignore[reportArgumentType, reportCallIssue]


@orchestrator
async def count(context: OrchestrationContext, jokes: list[Joke]) -> int:
    return len(jokes)


@orchestrator
async def bare(context: OrchestrationContext) -> str:
    return "x"


@orchestrator
def generator(context: OrchestrationContext, prompt: str) -> Generator[Any, Any, str]:
    answer: AgentRunResponse[None] = yield context.get_agent(Joker).run(prompt)
    return answer.text


async def answers_are_typed(agent: DurableAIAgent) -> None:
    assert_type(await agent.run("x"), AgentRunResponse[None])
    typed = await agent.run("x", response_format=Joke)
    assert_type(typed, AgentRunResponse[Joke])
    assert_type(typed.value, Joke)
    assert_type((await agent.run("x")).value, None)
    assert_type(await agent.run("x", response_format={"type": "object"}), AgentRunResponse[Any])
    assert_type(await agent.run("x", wait_for_response=False), str)
    await agent.run(["x", 5])  # type: ignore[list-item] # pyright: ignore[reportArgumentType, reportCallIssue]
    await agent.run("x", thread=5)  # type: ignore[call-overload] # pyright: ignore[reportArgumentType, reportCallIssue]


async def orchestrations_are_typed(client: DurableAIAgentClient) -> None:
    handle = await client.schedule_new_orchestration(count, input=[Joke("a", "b")])
    assert_type(handle, OrchestrationHandle[int])
    assert_type(await handle, int)
    assert_type(await handle.result(timeout=1), int)
    assert_type(await client.schedule_new_orchestration(bare), OrchestrationHandle[str])
    assert_type(await client.schedule_new_orchestration("by name", input=1), OrchestrationHandle[Any])
    assert_type(await client.schedule_new_orchestration(generator, input="x"), OrchestrationHandle[str])
    await client.schedule_new_orchestration(count, input="x")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType, reportCallIssue]
    await client.schedule_new_orchestration(bare, input=1)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType, reportCallIssue]
    await client.schedule_new_orchestration(generator, input=1)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType, reportCallIssue]
    assert_type(client.get_orchestration("o1"), OrchestrationHandle[Any])
    assert_type(client.get_orchestration("o1", return_type=int), OrchestrationHandle[int])
    await client.schedule_new_orchestration(5)  # type: ignore[call-overload] # pyright: ignore[reportArgumentType, reportCallIssue]


def double(number: int) -> int:
    return 2 * number


async def halve(_: task.ActivityContext, number: int) -> float:
    return number / 2


async def nothing() -> str:
    return "x"


async def activities_are_typed(context: OrchestrationContext) -> list[int]:
    assert_type(await context.call_activity(double, input=1), int)
    assert_type(await context.call_activity(halve, input=1), float)
    assert_type(await context.call_activity("double", input=1), Any)
    assert_type(await context.call_activity("double", input=1, return_type=int), int)
    assert_type(await context.call_activity(nothing), str)
    await context.call_activity(double, input="x")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType, reportCallIssue]
    await context.call_activity(halve, input="x")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType, reportCallIssue]
    assert_type(await context.call_sub_orchestrator(count, input=[]), int)
    assert_type(await context.call_sub_orchestrator(generator, input="x"), str)
    assert_type(await context.call_sub_orchestrator("count", input=1, return_type=int), int)
    assert_type(await context.call_sub_orchestrator("count", input=1), Any)
    await context.call_sub_orchestrator(count, input="x")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType, reportCallIssue]
    entity = EntityInstanceId("counter", "one")
    assert_type(await context.call_entity(entity, "get", return_type=int), int)
    assert_type(await context.call_entity(entity, "get"), Any)
    assert_type(await context.wait_for_external_event("decided", data_type=Joke), Joke)
    assert_type(await context.wait_for_external_event("decided"), Any)
    return await when_all([context.call_activity(double, input=n) for n in range(3)])


async def turns_are_typed(agent: DurableAIAgent) -> None:
    turn = await agent.start("x", response_format=Joke, limits=Limits(steps=5))
    assert_type(turn, TurnHandle[Joke])
    assert_type((await turn).value, Joke)
    assert_type(await agent.start("x"), TurnHandle[None])
    assert_type(agent.get_turn("t1"), TurnHandle[None])
    assert_type(agent.get_turn("t1", response_format=Joke), TurnHandle[Joke])
    assert_type(agent.create_session(session_id="s1"), AgentThread)
    assert_type(await agent.run("x", session=agent.create_session(), limits=Limits(steps=1)), AgentRunResponse[None])
    await agent.start("x", limit=5)  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]


async def tasks_are_typed(context: OrchestrationContext) -> None:
    agent = context.get_agent(Joker)
    assert_type(agent.run("x"), DurableAgentTask[None])
    assert_type(agent.run("x", response_format=Joke), DurableAgentTask[Joke])
    assert_type((await agent.run("x", response_format=Joke)).value, Joke)
    assert_type(await when_all([agent.run("x"), agent.run("y")]), list[AgentRunResponse[None]])
    assert_type(await when_all([bare(context), bare(context)]), list[str])
    assert_type(await when_any([agent.run("x"), agent.run("y")]), DurableTask[AgentRunResponse[None]])
    _: DurableTask[Any] = await when_any([agent.run("x"), context.sleep(1), bare(context)])
    assert_type(await context.sleep(1), None)
    assert_type(await count(context, []), int)
    await count(context, "x")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    both: list[Any] = await when_all([agent.run("x"), agent.run("y", response_format=Joke)])  # in any mix
    both += await when_all([agent.run("x"), context.sleep(5), bare(context)])
    assert_type(agent.run("x", timeout=5, limits=Limits(steps=1), correlation_id="c"), DurableAgentTask[None])
    mixed: list[Any] = [agent.run("x"), context.sleep(1), bare(context)]
    assert_type(await when_all(mixed), list[Any])
    plain: list[task.Task[int]] = []
    assert_type(await when_all(plain), list[int])
    await when_all([1, 2])  # type: ignore[arg-type] # pyright: ignore[reportArgumentType, reportCallIssue]


async def threads_are_kept_up(client: DurableAIAgentClient, thread: AgentThread, file: TextIO, raw: BinaryIO) -> None:
    assert_type(await client.threads.delete(thread, timeout=5), None)
    assert_type(await client.threads.reset(thread), None)
    async for line in client.threads.export(thread):
        assert_type(line, str)
    await client.threads.import_(thread, file, timeout=5)
    await client.threads.import_(thread, raw)
    await client.threads.import_(thread, client.threads.export(thread))
    await client.threads.import_(thread, ["{}", b"{}"])
    await client.threads.delete("t1")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    await client.threads.import_(thread, 5)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


async def the_inbox_is_typed(client: DurableAIAgentClient, sync: _sync.DurableAIAgentClient) -> None:
    assert_type(client.inbox(), Listing[PendingApproval | PendingOutcome])
    async for question in client.inbox([Joker, "Other"], thorough=True, timeout=5):
        assert_type(question, PendingApproval | PendingOutcome)
        assert_type((question.top_thread, question.top_turn), tuple[AgentThread, str])
        if isinstance(question, PendingApproval):
            await client.approve(question)
        await client.approve(question)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType, reportCallIssue]
    async for event in client.watch_inbox(Joker, every=5):
        if isinstance(event, InboxAsked):
            assert_type(event.question, PendingApproval | PendingOutcome)
        else:
            assert_type(event, InboxGone)
    assert_type(next(sync.watch_inbox()), InboxAsked | InboxGone)
    assert_type(list(sync.inbox(Joker)), list[PendingApproval | PendingOutcome])
    client.watch_inbox(every="5")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


async def decisions_are_typed(client: DurableAIAgentClient) -> None:
    approvals, outcomes = await client.pending_approvals(Joker), await client.pending_outcomes(Joker)
    assert_type(approvals, list[PendingApproval])
    assert_type(outcomes, list[PendingOutcome])
    decided = await client.approve(approvals[0])
    assert_type(decided, DecisionAccepted | DecisionStored)
    both: Decision = decided
    assert_type((both.by, decided.at), tuple[str, datetime])
    if isinstance(decided, DecisionStored):
        assert_type(await decided.outcome(timeout=5), DecisionAccepted)
    else:
        assert_type(decided.call_arguments, Mapping[str, Json])
    thread = AgentThread("Joker", "t1")
    assert_type(await client.approve(key="k", thread=thread, digest="d"), DecisionAccepted | DecisionStored)
    assert_type(await client.deny(key="k", thread="t1", agent=Joker, reason="no"), DecisionAccepted | DecisionStored)
    await client.resolve(key="k", thread=await client.get_agent(Joker).start("x"), action="fail")
    await client.resolve(outcomes[0], "retry")
    await client.approve(key="k")  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]
    await client.resolve(key="k", thread=thread)  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]
    await client.approve(outcomes[0])  # type: ignore[call-overload] # pyright: ignore[reportArgumentType, reportCallIssue]
    await client.deny(outcomes[0])  # type: ignore[call-overload] # pyright: ignore[reportArgumentType, reportCallIssue]
    await client.resolve(approvals[0], "retry")  # type: ignore[call-overload] # pyright: ignore[reportArgumentType, reportCallIssue]


def a_turn_shows_its_last_turns(turn: Turn) -> None:
    assert_type(turn.last_turns(20), tuple[ChatMessage, ...])
    turn.last_turns("20")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


def sync_programs_are_typed(client: _sync.DurableAIAgentClient) -> None:
    agent = client.get_agent(Joker)
    assert_type(agent, _sync.DurableAIAgent)
    assert_type(agent.run("x", session=agent.create_session()), AgentRunResponse[None])
    assert_type(agent.run("x", response_format=Joke), AgentRunResponse[Joke])
    assert_type(agent.run("x", response_format=Joke).value, Joke)
    assert_type(agent.run("x", response_format={"type": "object"}), AgentRunResponse[Any])
    assert_type(agent.run("x", wait_for_response=False), str)
    agent.run("x", thread=5)  # type: ignore[call-overload] # pyright: ignore[reportArgumentType, reportCallIssue]
    turn = agent.start("x", response_format=Joke, limits=Limits(steps=5))
    assert_type(turn, _sync.TurnHandle[Joke])
    assert_type(turn.result(timeout=1).value, Joke)
    assert_type(agent.get_turn("t1"), _sync.TurnHandle[None])
    assert_type(agent.get_turn("t1", response_format=Joke), _sync.TurnHandle[Joke])
    agent.start("x", limit=5)  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]
    handle = client.schedule_new_orchestration(count, input=[Joke("a", "b")])
    assert_type(handle, _sync.OrchestrationHandle[int])
    assert_type(handle.result(), int)
    assert_type(client.schedule_new_orchestration(bare), _sync.OrchestrationHandle[str])
    assert_type(client.get_orchestration("o1", return_type=int), _sync.OrchestrationHandle[int])
    client.schedule_new_orchestration(count, input="x")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType, reportCallIssue]
    approvals, outcomes = client.pending_approvals(Joker), client.pending_outcomes(Joker)
    assert_type(approvals, list[PendingApproval])
    assert_type(client.approve(approvals[0]), DecisionAccepted | _sync.DecisionStored)
    assert_type(client.deny(key="k", thread=turn), DecisionAccepted | _sync.DecisionStored)
    client.deny(outcomes[0])  # type: ignore[call-overload] # pyright: ignore[reportArgumentType, reportCallIssue]
    assert_type(turn.retry(), bool)
    assert_type(list(client.threads.export(AgentThread("Joker", "t1"))), list[str])
    client.resolve(outcomes[0], "retry")


def errors_have_fields(busy: ThreadBusy, late: ThreadTimeout) -> None:
    assert_type(late.remains, tuple[str, ...])
    assert_type(busy.active, str)
    assert_type(ModelError("timeout", "x", status=504, attempts=2).status, int | None)
    ModelError("bad luck", "x")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    ThreadBusy("only one")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
