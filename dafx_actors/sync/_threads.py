"""Threads, for programs without an event loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta

from dafx_actors.client import _threads as _async
from dafx_actors.client._threads import ThreadInfo, ThreadState
from dafx_actors.ids import AgentThread
from dafx_actors.sync._calls import Caller
from dafx_actors.sync._listing import Listing
from dafx_actors.transcript import Entry

__all__ = ["Threads"]


class Threads:
    """The threads of a task hub, as `client.threads`: list, read, delete, reset, export and import them."""

    def __init__(self, caller: Caller, threads: _async.Threads) -> None:
        self._caller = caller
        self._threads = threads

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
        found = self._threads.list(agent, prefix=prefix, state=state, older=older, details=details, timeout=timeout)
        return Listing(self._caller, found)

    def history(self, thread: AgentThread, *, timeout: float | None = None) -> Iterator[Entry]:
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
        said = self._threads.history(thread, timeout=timeout)

        async def entries() -> list[Entry]:
            return [entry async for entry in said]

        yield from self._caller.call(entries)

    def delete(self, thread: AgentThread, *, timeout: float | None = None) -> None:
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
        self._caller.call(self._threads.delete, thread, timeout=timeout)

    def reset(self, thread: AgentThread, *, timeout: float | None = None) -> None:
        """Forget what was said in a thread. The thread stays, empty, with what others keep of it beside its transcript.

        All else is as with `delete`.

        Args:
            thread: As of `delete`.
            timeout: As of `delete`.

        Raises:
            ThreadTimeout, AgentNotHosted, UnsupportedByPeer, SchedulerUnreachable: As of `delete`.
        """
        self._caller.call(self._threads.reset, thread, timeout=timeout)

    def export(self, thread: AgentThread, *, timeout: float | None = None) -> Iterator[str]:
        r"""A thread as JSON Lines, for `import_`: a header, then all that is kept of each entry of the transcript.

        ::

            with open("thread.jsonl", "w") as file:
                for line in client.threads.export(thread):
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
        exported = self._threads.export(thread, timeout=timeout)

        async def lines() -> list[str]:
            return [line async for line in exported]

        yield from self._caller.call(lines)

    def import_(
        self,
        thread: AgentThread,
        lines: str | bytes | Iterable[str | bytes],
        *,
        timeout: float | None = None,
    ) -> None:
        """Put an export into a thread in which nothing was said; all of it, or nothing.

        The underscore is that of all Python names that would be keywords. ::

            with open("thread.jsonl") as file:
                client.threads.import_(joker.get_new_thread(), file)

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
        # Read here, and not on the loop that all clients share.
        whole = lines if isinstance(lines, str | bytes) else list(lines)
        self._caller.call(self._threads.import_, thread, whole, timeout=timeout)
