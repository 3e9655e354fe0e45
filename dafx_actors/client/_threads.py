"""The upkeep of threads: deleting, resetting, exporting, importing. What clears a thread is in `_clearing.py`."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable
from datetime import UTC, datetime

from dafx_actors._durable.backend import Backend
from dafx_actors._durable.calls import Sent, is_too_large, limit_in, within
from dafx_actors._json.document import check_document
from dafx_actors._json.export import ExportReader, export_lines
from dafx_actors.client._clearing import Clearance
from dafx_actors.client._executor import ClientAgentExecutor
from dafx_actors.errors import MessageTooLarge, SchedulerRefused, ThreadTimeout, ThreadTooLarge, TurnFailed
from dafx_actors.ids import AgentThread

__all__ = ["Threads"]


class Threads:
    """The threads of a task hub, as `client.threads`: delete, reset, export and import them."""

    def __init__(self, backend: Backend, executor: ClientAgentExecutor) -> None:
        self._backend = backend
        self._executor = executor

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

    async def _clear(self, thread: AgentThread, operation: str, timeout: float | None) -> None:
        clearance = Clearance(self._backend, self._executor, _checked(thread), operation, timeout)
        with within(timeout, clearance.late):
            await clearance.carry_out()


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
