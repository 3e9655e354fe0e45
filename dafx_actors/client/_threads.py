"""Threads: listing and reading them, deleting, resetting, exporting, importing. `_clearing.py` clears one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Literal, TypeAlias, get_args

import attrs
from durabletask.client import EntityQuery
from durabletask.entities import EntityInstanceId

from dafx_actors._durable.backend import Backend
from dafx_actors._durable.calls import Sent, is_too_large, limit_in, within
from dafx_actors._json.document import Outline, check_document
from dafx_actors._json.export import ExportReader, export_lines
from dafx_actors.client._clearing import Clearance
from dafx_actors.client._executor import ClientAgentExecutor
from dafx_actors.client._listing import Listing, Page, before
from dafx_actors.errors import (
    MessageTooLarge,
    SchedulerRefused,
    ThreadTimeout,
    ThreadTooLarge,
    TurnFailed,
    UnsupportedTranscript,
)
from dafx_actors.ids import AgentThread, agent_name, agent_of_entity, agent_of_turn, threads_prefix
from dafx_actors.transcript import Entry

__all__ = ["ThreadInfo", "ThreadState", "Threads"]

ThreadState: TypeAlias = Literal["idle", "running", "waiting", "unreadable"]
"""`idle`: no turn runs. `waiting`: the turn that runs waits for a person. `unreadable`: what is stored is no thread."""


@attrs.frozen(kw_only=True)
class ThreadInfo:
    """A thread of a list: where it stood when it was read. What is None was not asked for."""

    thread: AgentThread
    """Its agent's name is in small letters where no worker hosts it, or nobody can tell: schedulers keep no more."""
    changed_at: datetime
    """When its stored state changed last."""
    state: ThreadState | None = None
    turn: str | None = None
    """The correlation id of the turn that runs; None where none does."""
    entries: int | None = None
    """Requests and responses that it remembers."""
    in_line: int | None = None
    """Turns that wait for the one that runs."""


class Threads:
    """The threads of a task hub, as `client.threads`: list, read, delete, reset, export and import them."""

    def __init__(self, backend: Backend, executor: ClientAgentExecutor) -> None:
        self._backend = backend
        self._executor = executor

    def list(
        self,
        agent: str | type | object | None = None,
        *,
        prefix: str = "",
        state: ThreadState | None = None,
        older: timedelta | None = None,
        details: bool = False,
        timeout: float | None = None,
    ) -> Listing[ThreadInfo]:
        """The threads, by the scheduler's order of their ids.

        On any backend. 100 are looked at in a call; of the embedded scheduler one call more is made for the names of
        agents. With `details` or `state` each thread's stored state is read, which may be megabytes; without, only
        that it is there.

        Args:
            agent: Of this agent, by name or class.
            prefix: Whose ids begin so.
            state: In this state.
            older: Not changed for so long.
            details: Say of each thread in what state it is.
            timeout: Seconds for each page, outages of the scheduler included; by default as long as it takes.

        Raises:
            ConfigurationError: `agent` is none.
            ValueError: `state` is none, or `older` is negative.
        """
        if state is not None and state not in get_args(ThreadState):
            raise ValueError(f"{state!r} is no state of a thread; these are: {', '.join(get_args(ThreadState))}")
        name = None if agent is None else agent_name(agent)
        reads = details or state is not None
        query = EntityQuery(
            instance_id_starts_with=threads_prefix(name, prefix),
            last_modified_to=before(older),
            include_state=reads,
            # Some schedulers call a thread transient while an operation waits for it, and would leave it out.
            include_transient=True,
        )

        async def read(size: int, after: str) -> Page[ThreadInfo]:
            sized = dataclasses.replace(query, page_size=size)
            with self._backend.bounded(timeout):
                entities, token = await self._backend.page_of_entities(sized, after)
                names = {} if name is not None else await self._names()
                found: list[ThreadInfo] = []
                for entity in entities:
                    thread = _thread(entity.id, name, names)
                    if thread is None or not thread.thread_id.startswith(prefix):
                        continue
                    info = ThreadInfo(thread=thread, changed_at=entity.modified_at)
                    if reads:
                        info = await self._detailed(info, entity.state)
                    if state in (None, info.state):
                        found.append(info)
            return Page(items=tuple(found), next=token)

        return Listing(read)

    async def history(self, thread: AgentThread, *, timeout: float | None = None) -> AsyncIterator[Entry]:
        """What was said in a thread, oldest first: a `Request` and a `Response` for each turn that has begun.

        One call: the thread is read once, whole, as it is at that moment; what the running turn has recorded so far is
        not in it (`DurableAIAgent.get_transcript` has it). A thread that is not there has no entries.

        Args:
            thread: As of `delete`.
            timeout: Seconds to wait for the thread, outages of the scheduler included; by default as long as it takes.

        Raises:
            UnsupportedTranscript: It was stored by a newer version.
            SchedulerUnreachable: Nothing answers, or not within `timeout`.
        """
        for entry in (await self._executor.transcript(_checked(thread), timeout)).entries:
            yield entry

    async def delete(self, thread: AgentThread, *, timeout: float | None = None) -> None:
        """Delete a thread, with all that belongs to it: when this returns, nothing of it is there any more.

        Its turns end first, the running one and those in line, as cancelled (`TurnCancelled`), and what they asked of
        persons goes with them. Then go the transcript, the threads of agents that it used as tools, with all that
        belongs to those, and the orchestrations of its turns. A tool that has begun is left to finish. A request that
        comes before the transcript has gone is cancelled; one that comes after that begins the thread anew, also under
        a correlation id that was used before.

        A thread that is not there is deleted already. Whoever dies in the middle of this, or raises, calls it again: it
        goes on where it stopped. It takes two calls of the scheduler for each turn that was in the thread.

        Args:
            thread: The thread; `client.get_agent("Joker").get_thread(id)` makes it of an id.
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it goes on, but no longer
                than a minute for one turn that was cancelled.

        Raises:
            ThreadTimeout: Something of it is still there, as it says.
            AgentNotHosted: No worker hosts the agent; nothing was changed.
            UnsupportedByPeer: A worker of the peer hosts it.
            SchedulerUnreachable: Nothing answers; call it again.
        """
        await self._clear(thread, "delete", timeout)

    async def reset(self, thread: AgentThread, *, timeout: float | None = None) -> None:
        """Forget what was said in a thread. The thread stays, empty, with what others keep of it beside its transcript.

        All else is as with `delete`.

        Args:
            thread: As of `delete`.
            timeout: As of `delete`.

        Raises:
            ThreadTimeout, AgentNotHosted, UnsupportedByPeer, SchedulerUnreachable: As of `delete`.
        """
        await self._clear(thread, "reset", timeout)

    async def export(self, thread: AgentThread, *, timeout: float | None = None) -> AsyncIterator[str]:
        r"""A thread as JSON Lines, for `import_`: a header, then all that is kept of each entry of the transcript.

        ::

            with open("thread.jsonl", "w") as file:
                async for line in client.threads.export(thread):
                    file.write(line)

        Each line ends with `\n`, and is ASCII. The thread is read once, as it is at that moment; a turn that runs is
        left out, and named in the header. A thread that is not there has no entries. Nothing is in it that is not in
        the thread; that is all that was said, and tools' arguments and results.

        Args:
            thread: As of `delete`.
            timeout: Seconds to wait for the thread, outages of the scheduler included; by default as long as it takes.

        Raises:
            UnsupportedTranscript: It was stored by a newer version.
            SchedulerUnreachable: Nothing answers, or not within `timeout`.
        """
        with self._executor.bounded(timeout):
            document = await self._executor.document(_checked(thread))
        for line in export_lines(thread, document, datetime.now(UTC)):
            yield line

    async def import_(
        self,
        thread: AgentThread,
        lines: str | bytes | Iterable[str | bytes] | AsyncIterable[str | bytes],
        *,
        timeout: float | None = None,
    ) -> None:
        """Put an export into a thread in which nothing was said; all of it, or nothing.

        The underscore is that of all Python names that would be keywords. ::

            with open("thread.jsonl") as file:
                await client.threads.import_(joker.get_new_thread(), file)

        The thread may be another one than that of the export, and of another agent. The same export again, into the
        thread that has it, is fine. The threads of agents that it used as tools are exported and imported by
        themselves. Turns of the export answer in the new thread to their correlation ids, where no other turn of the
        task hub has these.

        Args:
            thread: As of `delete`.
            lines: The export, whole or in lines: an open file, or what `export` gives.
            timeout: Seconds to wait, outages of the scheduler included; by default as long as it takes.

        Raises:
            InvalidThreadExport: It is none, or was cut off or changed; it says which line is wrong.
            UnsupportedTranscript: It was stored by a newer version.
            ThreadNotEmpty: Something was said in the thread.
            ThreadTooLarge: It is larger than the messages that the scheduler takes.
            AgentNotHosted: No worker hosts the agent.
            UnsupportedByPeer: A worker of the peer hosts it.
            ThreadTimeout: Not within `timeout`; it may be there, or follow.
            SchedulerUnreachable: Nothing answers.
        """
        reader, sent = ExportReader(), Sent()
        async for line in _lines(lines):
            reader.read(line)
        message = reader.end()
        check_document(message.document or None)
        late = ThreadTimeout(_checked(thread).agent, thread.thread_id, "import", timeout or 0.0)
        with within(timeout, lambda: late if sent.maybe else self._backend.silence(timeout)):
            try:
                await self._executor.tell(thread, message, sent, leaves_record=False)
            except SchedulerRefused as error:
                if not is_too_large(error.detail):
                    raise
                raise ThreadTooLarge(thread.agent, thread.thread_id, reader.size, limit_in(error.detail)) from error
            except MessageTooLarge as error:  # on its way from the worker to the thread
                raise ThreadTooLarge(thread.agent, thread.thread_id, reader.size, error.limit) from error
            except TurnFailed as error:
                if error.error_type != MessageTooLarge.__name__:
                    raise
                raise ThreadTooLarge(thread.agent, thread.thread_id, reader.size) from error

    async def _names(self) -> dict[str, str]:
        """The names of agents, by what schedulers make of them, as far as anybody can tell."""
        hosted = await self._backend.hosted()
        known = () if hosted is None else hosted.lately.orchestrations.names | hosted.orchestrations.names
        return {agent.lower(): agent for name in known if (agent := agent_of_turn(name))}

    async def _detailed(self, info: ThreadInfo, state: str | None) -> ThreadInfo:
        try:
            # What is too large for a list is read by itself.
            document = await self._executor.document(info.thread) if state is None else json.loads(state)
            data, outline = check_document(document), Outline.of(document)
        except (ValueError, RecursionError, UnsupportedTranscript):
            return attrs.evolve(info, state="unreadable")
        waits = outline.active is not None and any(each.decision is None for each in outline.questions)
        return attrs.evolve(
            info,
            state="waiting" if waits else "idle" if outline.active is None else "running",
            turn=outline.active,
            entries=len(data.get("conversationHistory", ())),
            in_line=len(outline.line),
        )

    async def _clear(self, thread: AgentThread, operation: str, timeout: float | None) -> None:
        clearance = Clearance(self._backend, self._executor, _checked(thread), operation, timeout)
        with within(timeout, clearance.late):
            await clearance.carry_out()


def _thread(entity: str, agent: str | None, names: Mapping[str, str]) -> AgentThread | None:
    """The thread that an entity is; None where it is none."""
    try:
        found = EntityInstanceId.parse(entity)
        known = agent_of_entity(found.entity)
        return None if known is None else AgentThread(agent or names.get(known, known), found.key)
    except ValueError:  # anybody may give an entity of their own such a name
        return None


def _checked(thread: AgentThread) -> AgentThread:
    """The thread.

    Raises:
        TypeError: It is something else; an id does not say whose thread it is.
    """
    if not isinstance(thread, AgentThread):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may not type-check
        raise TypeError(
            f"expected an `AgentThread`, not {thread!r}; `client.get_agent(name).get_thread(id)` makes one of an id"
        )
    return thread


async def _lines(given: str | bytes | Iterable[str | bytes] | AsyncIterable[str | bytes]) -> AsyncIterator[str | bytes]:
    if isinstance(given, str):
        given = given.split("\n")
    elif isinstance(given, bytes):
        given = given.split(b"\n")
    if isinstance(given, AsyncIterable):
        async for line in given:
            yield line
    else:
        for line in given:
            yield line
