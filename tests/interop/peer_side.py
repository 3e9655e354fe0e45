"""Runs in the peer's environment, and does there what a test asks: a JSON object a line in, one a line out.

Nothing of the peer is replaced but the model. It is not imported by tests, whose environment has no peer.
"""
# mypy: ignore-errors
# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import AsyncIterator
from typing import Any

from agent_framework import (
    Agent,
    AgentResponse,
    BaseChatClient,
    ChatResponse,
    ChatResponseUpdate,
    Content,
    FunctionInvocationLayer,
    Message,
)
from agent_framework_durabletask import (
    AgentSessionId,
    DurableAgentSession,
    DurableAgentState,
    DurableAIAgentClient,
    DurableAIAgentOrchestrationContext,
    DurableAIAgentWorker,
)
from durabletask.azuremanaged.client import DurableTaskSchedulerClient
from durabletask.azuremanaged.worker import DurableTaskSchedulerWorker
from durabletask.task import TaskFailedError, when_all
from pydantic import BaseModel

# --- The model ----------------------------------------------------------------------------------------------------


def every_content() -> list[Content]:
    return [
        Content.from_text("Hello"),
        Content.from_text_reasoning(text="Hm."),
        Content.from_data(b"x", media_type="text/plain"),
        Content.from_uri("https://example.com/a.png", media_type="image/png"),
        Content.from_hosted_file(file_id="f1"),
        Content.from_hosted_vector_store(vector_store_id="v1"),
        Content.from_usage(usage_details={"input_token_count": 1, "output_token_count": 2, "cached_tokens": 7}),
        Content.from_function_call(call_id="c1", name="weather", arguments='{"city": "Oslo"}'),
        Content.from_function_result(call_id="c1", result={"degrees": 7}),
        Content.from_error(message="no", error_code="E1", error_details="really"),
        Content(type="shell_tool_call", commands=["ls"]),
    ]


CALLED, RELEASED = threading.Event(), threading.Event()


class StubClient(FunctionInvocationLayer, BaseChatClient):
    """Answers with what was asked, and how much of the conversation was seen."""

    def _reply(self, messages: list[Message], options: dict[str, Any]) -> Message:
        asked = messages[-1]
        if asked.text == "fail":
            raise RuntimeError("the model is down")
        if asked.text == "everything":
            return Message("assistant", every_content())
        if asked.text == "options":
            return Message("assistant", [json.dumps(options, default=str, sort_keys=True)])
        if asked.text == "person":
            return Message("assistant", ['{"name": "Ada"}'])
        if asked.text == "weather":
            call = Content.from_function_call(call_id="c1", name="weather", arguments='{"city": "Oslo"}')
            return Message("assistant", [call])
        if asked.text == "slow":
            return Message("assistant", ["At last."])
        if asked.role == "tool":
            return Message("assistant", [f"It is {asked.contents[0].result}."])
        count = len(messages) + bool(options.get("instructions"))
        return Message("assistant", [f"{asked.text} ({count} messages)"])

    async def _hold(self, messages: Any) -> None:
        if messages[-1].text == "slow":
            CALLED.set()
            await asyncio.to_thread(RELEASED.wait)

    def _inner_get_response(self, *, messages: Any, stream: bool, options: Any, **_: Any) -> Any:
        async def whole() -> ChatResponse:
            await self._hold(messages)
            usage = {"input_token_count": 3, "output_token_count": 4, "total_token_count": 7}
            return ChatResponse(messages=[self._reply(list(messages), dict(options))], usage_details=usage)

        async def parts() -> AsyncIterator[ChatResponseUpdate]:
            await self._hold(messages)
            reply = self._reply(list(messages), dict(options))
            usage = {"input_token_count": 3, "output_token_count": 4, "total_token_count": 7}
            yield ChatResponseUpdate(contents=[*reply.contents, Content.from_usage(usage)], role="assistant")

        return self._build_response_stream(parts()) if stream else whole()


def weather(city: str) -> str:
    """The weather of a city."""
    return f"warm in {city}"


class Person(BaseModel):
    name: str


# --- Its orchestrations -------------------------------------------------------------------------------------------


def ask_twice(context: Any, asked: dict[str, Any]) -> Any:
    """Two turns of one session, and the fields that its users read."""
    agent = DurableAIAgentOrchestrationContext(context).get_agent(asked["agent"])
    session = agent.create_session()
    first = yield agent.run(asked["texts"][0], session=session)
    second = yield agent.run(asked["texts"][1], session=session)
    return [seen(first), seen(second)]


def ask_at_once(context: Any, asked: dict[str, Any]) -> Any:
    agent = DurableAIAgentOrchestrationContext(context).get_agent(asked["agent"])
    answers = yield when_all([agent.run(text) for text in asked["texts"]])
    return [answer.text for answer in answers]


def ask_and_forget(context: Any, asked: dict[str, Any]) -> Any:
    agent = DurableAIAgentOrchestrationContext(context).get_agent(asked["agent"])
    session = DurableAgentSession(durable_session_id=AgentSessionId(name=asked["agent"], key=asked["thread"]))
    accepted = agent.run(asked["texts"][0], session=session, options={"wait_for_response": False})
    # Not yielded: it is complete, and an orchestration whose first task is complete when it is yielded never goes on.
    return accepted.get_result().text


def ask_in_thread(context: Any, asked: dict[str, Any]) -> Any:
    agent = DurableAIAgentOrchestrationContext(context).get_agent(asked["agent"])
    session = DurableAgentSession(durable_session_id=AgentSessionId(name=asked["agent"], key=asked["thread"]))
    try:
        answer = yield agent.run(asked["texts"][0], session=session)
    except TaskFailedError as error:
        return {"raised": f"{error.details.error_type}: {error.details.message}"}
    return seen(answer)


def ask_for_person(context: Any, asked: dict[str, Any]) -> Any:
    agent = DurableAIAgentOrchestrationContext(context).get_agent(asked["agent"])
    answer = yield agent.run(asked["texts"][0], options={"response_format": Person})
    return answer.value.name


ORCHESTRATIONS = [ask_twice, ask_at_once, ask_and_forget, ask_in_thread, ask_for_person]


def seen(response: AgentResponse) -> dict[str, Any]:
    """What a user of the peer sees of a response."""
    return {
        "text": response.text,
        "roles": [str(message.role) for message in response.messages],
        "contents": [content.type for message in response.messages for content in message.contents],
        "errors": [
            [content.error_code, content.message]
            for message in response.messages
            for content in message.contents
            if content.type == "error"
        ],
        "usage": dict(response.usage_details or {}),
        "created_at": response.created_at,
    }


# --- What a test asks ---------------------------------------------------------------------------------------------


class Peer:
    def __init__(self, endpoint: str) -> None:
        self._where = {
            "host_address": endpoint,
            "taskhub": "default",
            "secure_channel": False,
            "token_credential": None,
        }
        self._worker: Any = None

    def start_worker(self, agents: list[str], filters: bool = True) -> None:
        worker = DurableTaskSchedulerWorker(**self._where)
        hosting = DurableAIAgentWorker(worker)
        for name in agents:
            hosting.add_agent(Agent(client=StubClient(), name=name, instructions="Be brief.", tools=[weather]))
        for orchestration in ORCHESTRATIONS:
            worker.add_orchestrator(orchestration)
        if filters:
            worker.use_work_item_filters()
        hosting.start()
        self._worker = hosting

    def stop_worker(self) -> None:
        self._worker.stop()
        self._worker = None

    def called(self) -> None:
        assert CALLED.wait(60)

    def release(self) -> None:
        RELEASED.set()

    def run(self, agent: str, text: str, thread: str | None = None, wait: bool = True, person: bool = False) -> Any:
        client = DurableAIAgentClient(DurableTaskSchedulerClient(**self._where), 1200, 0.05)
        proxy = client.get_agent(agent)
        session = proxy.create_session()
        if thread is not None:
            session.durable_session_id = AgentSessionId(name=agent, key=thread)
        options: dict[str, Any] = {"wait_for_response": wait, **({"response_format": Person} if person else {})}
        response = proxy.run(text, session=session, options=options)
        named = {"name": response.value.name} if person and response.text else {}
        return {**seen(response), "thread": session.durable_session_id.key, **named}

    def orchestrate(self, name: str, asked: dict[str, Any]) -> Any:
        client = DurableTaskSchedulerClient(**self._where)
        instance = client.schedule_new_orchestration(name, input=asked)
        state: Any = client.wait_for_orchestration_completion(instance, timeout=60)
        failure = state.failure_details
        return {
            "status": state.runtime_status.name,
            "output": json.loads(state.serialized_output or "null"),
            "failure": failure and f"{failure.error_type}: {failure.message}",
        }

    def read(self, state: dict[str, Any]) -> Any:
        """A stored thread through its state classes: what they make of each content, and what they write."""
        loaded = DurableAgentState.from_dict(state)
        contents: list[Any] = []
        for entry in loaded.data.conversation_history:
            for message in entry.messages:
                contents += [content.to_dict() for content in message.to_chat_message().contents]
        return {"contents": contents, "state": json.loads(loaded.to_json())}

    def answer_in(self, state: dict[str, Any], correlation_id: str) -> Any:
        response = DurableAgentState.from_dict(state).try_get_agent_response(correlation_id)
        return None if response is None else seen(response)


def main(endpoint: str) -> None:
    logging.disable(logging.CRITICAL)
    peer = Peer(endpoint)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            reply = {"result": getattr(peer, asked.pop("do"))(**asked)}
        except Exception:
            reply = {"raised": traceback.format_exc()}
        print(json.dumps(reply), flush=True)
    # The test is over, and nothing of this process may outlive it.
    RELEASED.set()
    give_up = threading.Timer(10, os._exit, [1])
    give_up.daemon = True
    give_up.start()
    if peer._worker is not None:
        peer.stop_worker()


if __name__ == "__main__":
    main(sys.argv[1])
