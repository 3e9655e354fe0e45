"""An agent on a worker: its thread entity, its orchestrations, its activities.

::

    client.run --start--> turn: call_entity(thread, begin)     -> granted | queued | answered
                                call_activity(model step)      -> reply
                                call_activity(tool step)*      -> results
                                call_entity(thread, commit)    -> response; wakes the next turn in line

The rules are in `_rules`; the turn's orchestration is in `steps.py`, the entity in `entity.py`, the activities in
`activities.py`. Steps are coroutines on the loop where agents run; operations of threads are plain functions, also the
one that a whole turn can be (`whole.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs
from durabletask.entities import EntityContext

from dafx_actors._json.crossing import CrossingError, crosses
from dafx_actors._json.operations import Telling
from dafx_actors._json.requests import raise_error_in
from dafx_actors._json.steps import TurnInput
from dafx_actors._turns.activities import Steps
from dafx_actors._turns.asking import AgentSteps
from dafx_actors._turns.entity import ThreadEntity
from dafx_actors._turns.host import Host
from dafx_actors._turns.recent import RecentDocuments, RecentEntries
from dafx_actors._turns.steps import TurnSteps
from dafx_actors._turns.tell import tell
from dafx_actors._turns.whole import WholeTurn
from dafx_actors.agents import Agent
from dafx_actors.errors import DafxError
from dafx_actors.ids import AgentThread, tell_name, turn_name
from dafx_actors.orchestration._context import OrchestrationContext, orchestrator
from dafx_actors.tools._toolbox import Toolbox
from dafx_actors.transcript import Json

_logger = logging.getLogger("dafx_actors.worker")


@attrs.frozen
class HostedAgent:
    """An agent on a worker."""

    agent: Agent
    toolbox: Toolbox
    whole: WholeTurn
    steps: Steps
    threads: ThreadEntity

    @classmethod
    def on(cls, host: Host, agent: Agent) -> HostedAgent:
        """Put an agent on a worker."""
        definition = agent.definition
        toolbox = Toolbox(
            agent.tools, max_result_bytes=definition.max_result_bytes, is_stopping=lambda: host.is_stopping
        )
        entries, documents = RecentEntries(), RecentDocuments()
        asking = AgentSteps(agent, host, toolbox)
        whole = WholeTurn(asking, entries)
        steps = Steps(asking, documents, entries)
        return cls(agent, toolbox, whole, steps, ThreadEntity(definition, host, documents, whole))

    @property
    def activities(self) -> Mapping[str, Callable[..., Awaitable[Json]]]:
        """The activities, by their names."""
        return self.steps.activities

    def entity(self, context: EntityContext, raw: Json) -> Json:
        """One operation of a thread."""
        return self.threads.operate(context, raw)

    def turn(self) -> Callable[..., Any]:
        """The turn's orchestration."""
        name, by_turn = self.agent.name, self.agent.definition.durability == "turn"

        async def turn(context: OrchestrationContext, raw: Json) -> Json:
            # Anybody can start one: what is wrong with its input is said in the words of a ValueError.
            sent = TurnInput.load(raw)
            thread = AgentThread(name, sent.thread_id)
            if sent.started_at is None and sent.listener is not None:
                context.send_event(sent.listener.orchestration, sent.listener.event)
            steps = TurnSteps(
                context,
                thread,
                sent.request,
                started_at=sent.started_at,
                eager=sent.eager,
                form=sent.form,
                callers=sent.callers,
                retry=sent.retry,
            )
            response: Json = None
            try:
                response = await (steps.in_one_operation() if by_turn else steps.step_by_step())
                if response is None:
                    context.continue_as_new(TurnInput.again(raw, steps.started_at), save_events=True)
                else:
                    raise_error_in(response, thread)
            except DafxError as error:
                failed = error
            else:
                if response is not None:
                    steps.tell_end(context.create_replay_safe_logger(_logger), response)
                return response
            steps.tell_end(context.create_replay_safe_logger(_logger), response, failed)
            # Out here, where no other error is told with it. The turn above counts what this one took.
            raise CrossingError(failed, steps.spent(response)) if sent.callers and crosses(failed) else failed

        turn.__name__ = turn.__qualname__ = turn_name(name)
        return orchestrator(turn)

    def tell(self) -> Callable[..., Any]:
        """The orchestration by which clients and steps tell a thread something."""
        name = self.agent.name

        async def telling(context: OrchestrationContext, raw: Json) -> Json:
            sent = Telling.load(raw)
            return await tell(context, AgentThread(name, sent.thread_id), sent)

        telling.__name__ = telling.__qualname__ = tell_name(name)
        return orchestrator(telling)
