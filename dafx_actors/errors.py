"""Every exception of this package, one tree.

::

    DafxError
    ├── ConfigurationError          a declaration or the environment is wrong; lists every mistake
    │   └── ModelNotConfigured      no model was named and none could be found
    ├── IncompatibleDurableTask     durabletask is another version than the tested ones, or lacks a name
    ├── InvalidThreadId             a thread id that an entity key cannot hold
    ├── UnsupportedTranscript       stored by a newer version, or not a transcript; never rewritten
    ├── ValueMismatch               a value of user code that does not fit its annotation, or JSON
    │   ├── InvalidArguments        what a model wrote for a tool's arguments does not fit them
    │   └── ResultNotKept           what a tool or an activity that acted gave cannot be kept
    ├── NotDone                     a tool's `reconcile` found that the effect did not happen
    ├── McpError                    between this process and an MCP server
    │   ├── McpUnreachable          it cannot be started or reached; nothing was called
    │   ├── McpConnectionLost       it went away during a call, which may have had its effect
    │   └── McpToolFailed           its tool says that it failed
    ├── NotDurableError             an orchestration awaited something that cannot be replayed
    ├── OrchestrationChanged        an orchestration does not ask what its history says that it asked
    ├── SchedulerError              between this process and the scheduler
    │   ├── SchedulerUnreachable    nothing answers at the endpoint
    │   ├── SchedulerRefused        it answers that it cannot: its disk is full, or a token is missing
    │   ├── SchedulerCredentialError  it wants a token of Azure's, and there is none to be had
    │   ├── ClientOfAnotherLoop     a durabletask client that is wrapped belongs to another event loop
    │   ├── ForkedWhileConnected    this process was forked from one that had connections open
    │   ├── MessageTooLarge         an answer is larger than the messages that the scheduler takes
    │   ├── SchedulerInUse          another process has the embedded scheduler's database open
    │   ├── SchedulerDatabaseError  its database file cannot be used as it is
    │   ├── SchedulerWriteFailed    its disk refused a write; nothing that was acknowledged is lost
    │   ├── SchedulerReadFailed     its database could not be read just now; nothing was changed
    │   ├── SchedulerNotSecured     it would listen to other machines without TLS and a token
    │   └── SchedulerCannotListen   it cannot have its address
    ├── LoopWouldBlock              a sync client was called where an event loop runs
    ├── OrchestrationFailed         an orchestration that a client awaited did not complete
    ├── ThreadError                 what `client.threads` could not do
    │   ├── ThreadTimeout           not in time; called again, it goes on where it stopped
    │   ├── ThreadNotEmpty          something was said in the thread that an export was to go into
    │   ├── ThreadTooLarge          an export is larger than the messages that the scheduler takes
    │   └── InvalidThreadExport     what was to be imported is no export, or was cut off or changed
    └── TurnError                   what can become of a request to an agent
        ├── AgentNotHosted          no worker on the task hub takes this agent
        ├── CorrelationConflict     the correlation id was used for another request
        ├── ThreadBusy              the thread works on another turn and cannot wait for it
        ├── TurnTimeout             no answer in time; the turn may still be running
        ├── TurnSuperseded          the thread was reset or deleted, or the turn was taken for dead
        ├── TurnTerminated          somebody ended the turn before it had an answer
        ├── TurnCancelled           somebody cancelled the turn, or a newer request took its place
        ├── TurnDeadlineExceeded    the turn's own deadline was over
        ├── TurnLimitExceeded       the turn would have taken more steps or tokens than it may
        ├── TurnNotFound            there is no turn of that id
        ├── RetryRefused            a turn that has ended is not taken up again
        ├── DecisionRefused         a decision came too late, twice, or for another call
        ├── ApprovalExpired         nobody decided in time whether a tool may be called
        ├── OutcomeUnknown          nobody knows whether a tool acted, and somebody chose to end the turn
        ├── UnsupportedByPeer       the agent's worker is the peer's, which cannot do that
        ├── TurnFailed              the agent's own code raised
        ├── StaleTranscript         a step kept reading less of the thread than was recorded
        ├── InvalidAnswer           the answer does not fit `response_format`
        └── ModelError              the model's call failed

Each is an attrs class: the fields are what a program needs, `str()` is the sentence that a person
needs: what happened, what may still be true, what to do. A `TurnError` crosses orchestrations and
processes as those fields (see `_json/crossing.py`), so they hold JSON values only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import attrs

from dafx_actors._shown import Shown

ModelFailure = Literal[
    "rate_limit",
    "server_error",
    "timeout",
    "connection",
    "bad_request",
    "authentication",
    "not_found",
    "content_filter",
    "context_length",
    "bad_response",
    "length",
    "error",
]
"""Why a model call failed. The first four, and `bad_response`, may go better when tried again."""

_MOST_IN_SENTENCES = 400


def _sentences(mistakes: str | Iterable[str]) -> tuple[str, ...]:
    return (mistakes,) if isinstance(mistakes, str) else tuple(mistakes)


def _beginning(text: str) -> str:
    return text if len(text) <= _MOST_IN_SENTENCES else f"{text[: _MOST_IN_SENTENCES - 3]}..."


def _names(names: Iterable[str] | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(names)


class DafxError(Shown, Exception):
    """The root: catch this to catch everything that this package raises on purpose."""


@attrs.define(eq=False, slots=False, repr=False)
class ConfigurationError(DafxError):
    """A declaration or the environment is wrong."""

    mistakes: tuple[str, ...] = attrs.field(converter=_sentences)
    """Every mistake that was found, a sentence each."""

    def __str__(self) -> str:
        if len(self.mistakes) == 1:
            return self.mistakes[0]
        return "\n".join([f"{len(self.mistakes)} mistakes:", *(f"  - {mistake}" for mistake in self.mistakes)])


class ModelNotConfigured(ConfigurationError):
    """No model was named and none could be found in the environment."""


@attrs.define(eq=False, slots=False, repr=False)
class IncompatibleDurableTask(DafxError):
    """durabletask is another version than the tested ones, or lacks a name that is needed. Nothing was started."""

    found: str
    """The version that is installed."""
    tested: str
    """The versions that were tested."""
    missing: tuple[str, ...] = ()
    """Names that it lacks."""

    def __str__(self) -> str:
        lacks = f", and lacks {', '.join(self.missing)}" if self.missing else ""
        return (
            f"durabletask {self.found} is installed{lacks}; dafx_actors was tested with {self.tested}, whose private "
            f"names it uses. Nothing was started. Install that version, or a newer dafx_actors."
        )


@attrs.define(eq=False, slots=False, repr=False)
class InvalidThreadId(DafxError, ValueError):
    """A thread id that an entity key cannot hold."""

    thread_id: str
    reason: str

    def __str__(self) -> str:
        return (
            f"{self.thread_id!r} cannot be a thread id: {self.reason}. "
            "Take `get_new_thread()`, or a short id of letters, digits and -_.:"
        )


@attrs.define(eq=False, slots=False, repr=False)
class UnsupportedTranscript(DafxError):
    """The stored state of a thread cannot be read. It was left as it is."""

    found: str
    """The schema version found, or what is wrong with the document."""
    supported: str
    """The newest schema version that this package reads."""

    def __str__(self) -> str:
        return (
            f"The thread's stored state cannot be read ({self.found}; this version of dafx_actors reads up to "
            f"{self.supported}). Nothing was changed. Upgrade dafx_actors on this worker."
        )


@attrs.define(eq=False, slots=False, repr=False)
class ValueMismatch(DafxError, ValueError):
    """A value that user code gave or was to be given does not fit its annotation, or JSON cannot hold it."""

    reason: str

    def __str__(self) -> str:
        return self.reason


@attrs.define(eq=False, slots=False, repr=False)
class InvalidArguments(ValueMismatch):
    """What a model wrote for a tool's arguments does not fit the tool's parameters. The tool was not called."""

    tool: str
    mistakes: tuple[str, ...] = attrs.field(converter=_sentences)
    """Every mistake, a clause each, with the place where it is."""
    reason: str = attrs.field(init=False, default="")

    def __attrs_post_init__(self) -> None:
        """Make the reason of the mistakes."""
        self.reason = "; ".join(self.mistakes)

    def __str__(self) -> str:
        listed = "".join(f"\n  - {mistake}" for mistake in self.mistakes)
        return f"The arguments do not fit the parameters of {self.tool}. Correct these and call it again:{listed}"


@attrs.define(eq=False, slots=False, repr=False)
class ResultNotKept(ValueMismatch):
    """A tool or an activity has acted, and what it returned cannot be kept. The call was made."""

    name: str
    """The tool's, or the activity's."""

    def __str__(self) -> str:
        return (
            f"The call of {self.name!r} was made, and it has acted; its result could not be kept: {self.reason}. "
            "Do not make the same call again for that."
        )


@attrs.define(eq=False, slots=False, repr=False)
class NotDone(DafxError):
    """Raised by a tool's `reconcile`: the effect has not happened, so that the tool may run again."""

    reason: str = ""

    def __str__(self) -> str:
        return self.reason or "The effect has not happened; the tool may run again."


class McpError(DafxError):
    """Between this process and an MCP server."""


@attrs.define(eq=False, slots=False, repr=False)
class McpUnreachable(McpError):
    """An MCP server cannot be started or reached. Nothing was called."""

    server: str
    reason: str

    def __str__(self) -> str:
        return (
            f"The MCP server {self.server!r} cannot be used: {self.reason}. Nothing was called. "
            "Check its command or URL; it is tried again at the next call."
        )


@attrs.define(eq=False, slots=False, repr=False)
class McpConnectionLost(McpError):
    """An MCP server went away during a call. The tool may have acted."""

    server: str
    tool: str
    reason: str

    def __str__(self) -> str:
        return (
            f"The MCP server {self.server!r} went away while it ran {self.tool} ({self.reason}). The tool may have "
            "acted; the call was not repeated. The next call connects anew."
        )


@attrs.define(eq=False, slots=False, repr=False)
class McpToolFailed(McpError):
    """A tool of an MCP server says that it failed."""

    server: str
    tool: str
    text: str
    """What it says."""

    def __str__(self) -> str:
        return self.text or f"{self.tool} failed, and the MCP server {self.server!r} does not say why."


@attrs.define(eq=False, slots=False, repr=False)
class NotDurableError(DafxError):
    """An orchestration awaited, or did, something that cannot be replayed."""

    what: str
    instead: str

    def __str__(self) -> str:
        return f"An orchestration cannot await {self.what}: it would not be replayed. {self.instead}"


@attrs.define(eq=False, slots=False, repr=False)
class OrchestrationChanged(DafxError):
    """An orchestration, when it was replayed, did not ask what its history says that it asked; it ends with this.

    durabletask's word for it is `NonDeterminismError`.
    """

    orchestration: str
    """The name of the orchestration."""
    step: int
    """The number of the call of its context, from 1."""
    then: str
    """What the history says was asked."""
    now: str
    """What the code asks in its place."""

    def __str__(self) -> str:
        return (
            f"Orchestration {self.orchestration!r} does not do again what it did: its step {self.step} was "
            f"{self.then}, and is now {self.now}. What is recorded answers the former, so the orchestration was ended "
            "and asked for nothing more; what it had begun before goes on by itself. If its code was changed while it "
            "ran: give changed code a new name, and host the old beside it until none of it runs. If it was not "
            "changed: it must take times, ids and chance from its context. `dafx_actors.testing.replay` finds both "
            "before a version is deployed."
        )


class SchedulerError(DafxError):
    """Something between this process and the scheduler."""


@attrs.define(eq=False, slots=False, repr=False)
class SchedulerUnreachable(SchedulerError, ConnectionError):
    """Nothing answers at the endpoint."""

    endpoint: str
    detail: str = ""

    def __str__(self) -> str:
        because = f" ({self.detail})" if self.detail else ""
        if self.detail.startswith("this client was closed"):
            return f"Nothing was asked of the scheduler at {self.endpoint}: {self.detail}. Make another client."
        return (
            f"No scheduler answers at {self.endpoint}{because}. Start one, with `dafx scheduler` or the Durable Task "
            "Scheduler emulator, or point ENDPOINT at the one that runs."
        )


@attrs.define(eq=False, slots=False, repr=False)
class SchedulerRefused(SchedulerError):
    """The scheduler answers, but it did not do what it was asked: its disk is full, or it wants another token."""

    endpoint: str
    status: str
    """gRPC's name of it, such as `RESOURCE_EXHAUSTED`."""
    detail: str = ""
    """The scheduler's own words."""

    def __str__(self) -> str:
        because = f": {self.detail}" if self.detail else "."
        return (
            f"The scheduler at {self.endpoint} refused a call ({self.status}){because} Nothing was changed by it; send "
            "it again, under the same correlation id, when that is mended."
        )


@attrs.define(eq=False, slots=False, repr=False)
class SchedulerCredentialError(SchedulerError):
    """The scheduler wants to know who calls, and azure-identity has no token to tell it."""

    endpoint: str
    detail: str = ""
    """What azure-identity says: which ways it has tried."""

    def __str__(self) -> str:
        because = f" ({self.detail})" if self.detail else ""
        return (
            f"There is no Azure token for the scheduler at {self.endpoint}{because}. Nothing was sent. Run `az login`, "
            "use a managed identity, or pass a `credential`; a scheduler without TLS (http://) wants none."
        )


@attrs.define(eq=False, slots=False, repr=False)
class ClientOfAnotherLoop(SchedulerError, RuntimeError):
    """A client wraps a durabletask client for asyncio that another event loop has used before. Nothing was sent."""

    endpoint: str

    def __str__(self) -> str:
        return (
            f"The durabletask client of {self.endpoint} belongs to another event loop: one for asyncio can be used "
            "from the first that uses it, and from no other. Nothing was sent. Wrap one in each event loop, or take "
            "`DurableAIAgentClient.connect()`, which makes a connection for each."
        )


@attrs.define(eq=False, slots=False, repr=False)
class ForkedWhileConnected(SchedulerError, RuntimeError):
    """This process was forked from one that had connections open, which cannot be used here. Nothing was sent."""

    endpoint: str
    detail: str
    """Of the process that it was forked from."""

    def __str__(self) -> str:
        return (
            f"No call to the scheduler at {self.endpoint} can be made here: this process was forked from one "
            f"{self.detail}, and gRPC does not outlive that. Nothing was sent. Before a fork, close async clients, "
            "workers and schedulers, or do not use them: make and use them in the child (`post_fork` of gunicorn, "
            '`worker_process_init` of Celery); or start processes with multiprocessing\'s "spawn". Clients of '
            "`dafx_actors.sync` that `connect()` made may be open."
        )


@attrs.define(eq=False, slots=False, repr=False)
class MessageTooLarge(SchedulerError):
    """An answer is larger than the messages that the scheduler takes. What made it has run, and is not run again."""

    what: str
    """The answer's name, such as `activity 'fetch'`."""
    size: int
    """Bytes of the message."""
    limit: int | None = None
    """Bytes that the scheduler takes, where it says so."""

    def __str__(self) -> str:
        bound = (
            "than the scheduler takes" if self.limit is None else f"than the {self.limit:,} that the scheduler takes"
        )
        return (
            f"The answer of {self.what} is a message of {self.size:,} bytes, which is more {bound}. It was not kept, "
            "and what made it is not run again. Keep less in it: give what is large a place of its own, and pass on "
            "where it is; or let the scheduler take more."
        )


@attrs.define(eq=False, slots=False, repr=False)
class SchedulerInUse(SchedulerError):
    """Another process has the database of the embedded scheduler open."""

    path: str
    pid: int | None = None
    """That process, where it could be told."""

    def __str__(self) -> str:
        who = f"process {self.pid}" if self.pid else "another process"
        return (
            f"The database {self.path} is in use by {who}. Nothing was changed. One process at a time may open it: "
            "connect to the scheduler that runs, stop it first, or name another file."
        )


@attrs.define(eq=False, slots=False, repr=False)
class SchedulerDatabaseError(SchedulerError):
    """The database file of the embedded scheduler cannot be used as it is. It was not changed."""

    path: str
    reason: str

    def __str__(self) -> str:
        return (
            f"The scheduler cannot use the database {self.path}: {self.reason}. It was left as it is. "
            "Repair it, restore a backup, or name another file."
        )


@attrs.define(eq=False, slots=False, repr=False)
class SchedulerWriteFailed(SchedulerError):
    """The disk refused a write of the embedded scheduler."""

    path: str
    reason: str

    def __str__(self) -> str:
        return (
            f"The scheduler could not write to {self.path}: {self.reason}. This request changed nothing, and nothing "
            "that was acknowledged before is lost; reads go on. Make room or repair the disk, and send it again: the "
            "scheduler goes on by itself when it can write."
        )


@attrs.define(eq=False, slots=False, repr=False)
class SchedulerReadFailed(SchedulerError):
    """The embedded scheduler could not read its database at the moment; the file is not damaged."""

    path: str
    reason: str

    def __str__(self) -> str:
        return (
            f"The scheduler could not read {self.path} at the moment: {self.reason}. This request changed nothing. "
            "Send it again; if that does not help, see what else uses the file, or how many files may be open."
        )


@attrs.define(eq=False, slots=False, repr=False)
class SchedulerNotSecured(SchedulerError):
    """The embedded scheduler was told to listen to other machines without TLS and a token."""

    host: str
    missing: tuple[str, ...] = attrs.field(converter=_sentences)

    def __str__(self) -> str:
        return (
            f"The scheduler does not listen on {self.host} without {' and '.join(self.missing)}: whoever reaches it "
            "could read and run everything. Give it what is missing, or let it listen on 127.0.0.1."
        )


@attrs.define(eq=False, slots=False, repr=False)
class SchedulerCannotListen(SchedulerError, OSError):
    """The embedded scheduler cannot have its address."""

    address: str
    reason: str

    def __str__(self) -> str:
        return (
            f"The scheduler cannot listen on {self.address}: {self.reason}. Another program may have that port; "
            "stop it, or choose another port (0 takes any free one)."
        )


@attrs.define(eq=False, slots=False, repr=False)
class LoopWouldBlock(DafxError, RuntimeError):
    """A client of `dafx_actors.sync` was called on a thread whose event loop runs. Nothing was sent."""

    call: str
    """What was called."""

    def __str__(self) -> str:
        return (
            f"`{self.call}` waits for an answer, and an event loop runs in this thread: all of its tasks would stand "
            "still. Nothing was sent. Await the same call of the async client, `dafx_actors.DurableAIAgentClient`, or "
            "make this one in another thread: `await asyncio.to_thread(...)`."
        )


@attrs.define(eq=False, slots=False, repr=False)
class OrchestrationFailed(DafxError):
    """An orchestration that a client awaited did not complete."""

    instance_id: str
    status: str
    """`FAILED` or `TERMINATED`."""
    error_type: str = ""
    detail: str = ""

    def __str__(self) -> str:
        because = ": ".join(part for part in (self.error_type, self.detail) if part)
        return f"Orchestration {self.instance_id} ended as {self.status}" + (f": {because}" if because else ".")


class ThreadError(DafxError):
    """What `client.threads` could not do with a thread."""


@attrs.define(eq=False, slots=False, repr=False)
class ThreadTimeout(ThreadError, TimeoutError):
    """A thread was not deleted, reset or imported in time. What was done so far stays done."""

    agent: str
    thread_id: str
    operation: str
    """`delete`, `reset` or `import`."""
    seconds: float
    """How long it was waited for, or, without a `timeout`, for what still runs."""
    remains: tuple[str, ...] = attrs.field(default=(), converter=_sentences)
    """What was still there, in words: turns that have not ended, child threads."""

    def __str__(self) -> str:
        remains = f" Still there: {'; '.join(self.remains)}." if self.remains else ""
        return (
            f"{self.operation!r} of thread {self.thread_id} of agent {self.agent!r} has not ended within "
            f"{self.seconds:g} s.{remains} What was done so far stays done, and more of it may follow. Call it again: "
            "it goes on where it stopped. A turn that is suspended, or whose workers are gone, has to be resumed or "
            "terminated before."
        )


@attrs.define(eq=False, slots=False, repr=False)
class ThreadNotEmpty(ThreadError):
    """An export can only go into a thread in which nothing was said."""

    agent: str
    thread_id: str
    entries: int
    """The entries of its transcript."""

    def __str__(self) -> str:
        return (
            f"Thread {self.thread_id} of agent {self.agent!r} is in use: its transcript has {self.entries} entries. "
            "Nothing was imported. Take a new thread, or `reset` this one first."
        )


@attrs.define(eq=False, slots=False, repr=False)
class ThreadTooLarge(ThreadError):
    """An export is larger than the messages that the scheduler takes. Nothing was imported."""

    agent: str
    thread_id: str
    size: int
    """Bytes of the export."""
    limit: int | None = None
    """Bytes that the scheduler takes, where it says so."""

    def __str__(self) -> str:
        bound = "" if self.limit is None else f" ({self.limit:,})"
        return (
            f"The export for thread {self.thread_id} of agent {self.agent!r} has {self.size:,} bytes. With what goes "
            f"with it that is more than a message to the scheduler may have{bound}. Nothing was imported. Let the "
            "scheduler take larger messages, or leave out the oldest entries."
        )


@attrs.define(eq=False, slots=False, repr=False)
class InvalidThreadExport(ThreadError, ValueError):
    """What was to be imported is no export of a thread, or was cut off or changed. Nothing was imported."""

    line: int
    """The number of the line that is wrong, from 1."""
    reason: str

    def __str__(self) -> str:
        return f"Line {self.line} of the export cannot be read: {self.reason}. Nothing was imported."


class TurnError(DafxError):
    """What can become of a request to an agent, other than an answer."""


@attrs.define(eq=False, slots=False, repr=False)
class AgentNotHosted(TurnError):
    """No worker on the task hub takes this agent."""

    agent: str
    endpoint: str
    task_hub: str
    seconds: float
    """How long the turn waited for a worker."""
    hosted: tuple[str, ...] | None = attrs.field(default=None, converter=_names)
    """The agents that connected workers take, or None where the scheduler cannot tell."""
    beside: tuple[str, ...] | None = attrs.field(default=None, converter=_names)
    """In an orchestration, which cannot ask the scheduler: the agents that its own worker takes."""
    operation: str = ""
    """What a thread was to be told, such as `cancel`, where that was no turn."""

    def __str__(self) -> str:
        if self.hosted is None and self.beside:
            known = f"The orchestration's own worker hosts {', '.join(self.beside)}."
        elif self.hosted is None:
            known = "The scheduler cannot tell what is hosted."
        else:
            known = f"Hosted there: {', '.join(self.hosted) or 'nothing'}."
        # An orchestration does not know where it runs.
        where = f" on task hub {self.task_hub!r} at {self.endpoint}" if self.endpoint else ""
        if self.operation:
            return (
                f"No worker told a thread of agent {self.agent!r}{where} of {self.operation!r} within "
                f"{self.seconds:g} s. {known}{self._meant()} Nothing was changed: turns that run or wait go on. Start "
                "a worker that hosts the agent, and do it again."
            )
        return (
            f"No worker took the turn of agent {self.agent!r}{where} "
            f"within {self.seconds:g} s. {known}{self._meant()} The request was withdrawn. Start a worker that hosts "
            "it, and check that the name (upper and lower case count), ENDPOINT and TASKHUB are the same on both sides."
        )

    def _meant(self) -> str:
        """A question about the name that was perhaps meant."""
        from difflib import get_close_matches  # which is needed where something went wrong

        hosted = {name.lower(): name for name in self.hosted or self.beside or ()}
        near = get_close_matches(self.agent.lower(), hosted, 1)
        return f" Did you mean {hosted[near[0]]!r}?" if near and hosted[near[0]] != self.agent else ""


@attrs.define(eq=False, slots=False, repr=False)
class CorrelationConflict(TurnError):
    """The correlation id was used before, for another request."""

    correlation_id: str
    differs: str
    """What differs: `agent`, `thread` or `request`."""

    def __str__(self) -> str:
        return (
            f"Correlation id {self.correlation_id!r} belongs to an earlier turn with another {self.differs}. "
            "Nothing was started. Use a new id for a new request; the same id picks up the earlier one's answer."
        )


@attrs.define(eq=False, slots=False, repr=False)
class ThreadBusy(TurnError):
    """The thread works on another turn, and this request cannot wait for it."""

    agent: str
    thread_id: str
    active: str
    """The correlation id of the turn that is active."""
    waiting: int = 0
    """Requests that wait in line, where no more may; 0 where this one may not wait at all."""

    def __str__(self) -> str:
        if self.waiting:
            return (
                f"Thread {self.thread_id} of agent {self.agent!r} is busy with turn {self.active}, and {self.waiting} "
                "requests wait for it in line, as many as may. Nothing was recorded. Send the request again later."
            )
        return (
            f"Thread {self.thread_id} of agent {self.agent!r} is busy with turn {self.active}. Nothing was recorded. "
            "Send the request again when that turn has ended. (A client's `run()` queues it, unless the agent was "
            'declared with `overlap="reject"`.)'
        )


@attrs.define(eq=False, slots=False, repr=False)
class TurnTimeout(TurnError, TimeoutError):
    """No answer came in time; the turn may still be running."""

    agent: str
    thread_id: str
    """Empty where it was not found out in time."""
    correlation_id: str
    """Empty for a decision that names no turn."""
    seconds: float
    operation: str = ""
    """What the thread was told about the turn, such as `decide` or `cancel`; empty where the answer was waited for."""

    def __str__(self) -> str:
        if self.operation:
            where = f"for turn {self.correlation_id}" if self.correlation_id else f"in thread {self.thread_id}"
            return (
                f"The thread of {self.agent!r} did not say within {self.seconds:g} s what became of {self.operation!r} "
                f"{where}: it may be on record, or follow. Send the same again, which is fine where it has arrived."
            )
        return (
            f"{self.agent!r} did not answer within {self.seconds:g} s; the turn may still be running, and its answer "
            f"will be kept. Pick it up with the same messages, thread and correlation_id={self.correlation_id!r}."
        )


@attrs.define(eq=False, slots=False, repr=False)
class TurnSuperseded(TurnError):
    """The thread no longer works on this turn."""

    thread_id: str
    correlation_id: str

    def __str__(self) -> str:
        return (
            f"Thread {self.thread_id} no longer works on turn {self.correlation_id}: the thread was reset or deleted "
            "meanwhile, or the turn was taken for dead. Its answer was not recorded. Send the request again under a "
            "new correlation id."
        )


@attrs.define(eq=False, slots=False, repr=False)
class TurnTerminated(TurnError):
    """The turn was ended from outside before it had an answer."""

    agent: str
    correlation_id: str
    detail: str = ""

    def __str__(self) -> str:
        because = f" ({self.detail})" if self.detail else ""
        return (
            f"The turn {self.correlation_id} of agent {self.agent!r} was terminated{because}. What it had recorded "
            "stays in the thread. Send the request again under a new correlation id."
        )


@attrs.define(eq=False, slots=False, repr=False)
class TurnCancelled(TurnError):
    """The turn was cancelled before it had an answer."""

    agent: str
    correlation_id: str
    reason: str = ""
    by: str = ""
    """Who cancelled it, where that was said."""

    def __str__(self) -> str:
        who = f" by {self.by}" if self.by else ""
        because = f" ({self.reason})" if self.reason else ""
        return (
            f"The turn {self.correlation_id} of agent {self.agent!r} was cancelled{who}{because}. Tools that had begun "
            "may have acted; the transcript shows which. Send the request again under a new correlation id."
        )


@attrs.define(eq=False, slots=False, repr=False)
class TurnDeadlineExceeded(TurnError, TimeoutError):
    """The turn did not end before its own deadline, and was stopped."""

    agent: str
    correlation_id: str
    seconds: float
    """That it had, from its start."""

    def __str__(self) -> str:
        return (
            f"The turn {self.correlation_id} of agent {self.agent!r} did not end within its {self.seconds:g} s and was "
            "stopped. Tools that had begun may have acted; the transcript shows which. Send the request again under a "
            "new correlation id, with more time."
        )


@attrs.define(eq=False, slots=False, repr=False)
class TurnLimitExceeded(TurnError):
    """The turn would have taken more than it may."""

    agent: str
    correlation_id: str
    limit: Literal["steps", "tokens"]
    most: int
    """What it may take."""
    needed: int
    """What it would have come to."""

    def __str__(self) -> str:
        return (
            f"The turn {self.correlation_id} of agent {self.agent!r} was ended at its limit of {self.most:,} "
            f"{self.limit} (it came to {self.needed:,}). What it had done stays in the transcript. Raise the limit, of "
            "the agent or of this request, or ask for less."
        )


@attrs.define(eq=False, slots=False, repr=False)
class TurnNotFound(TurnError):
    """There is no turn of that id."""

    agent: str
    correlation_id: str

    def __str__(self) -> str:
        return (
            f"Agent {self.agent!r} has no turn {self.correlation_id} on this task hub. Check the id, ENDPOINT and "
            "TASKHUB; it may also have been removed after its end."
        )


RetryRefusal = Literal["answered", "cancelled", "terminated", "joined", "nested"]
"""Why a turn is not taken up again: it has an answer; somebody cancelled or terminated it; its request became part of
another turn; or another turn used its agent as a tool, and has heard of the failure."""


@attrs.define(eq=False, slots=False, repr=False)
class RetryRefused(TurnError):
    """A turn cannot be taken up again. Nothing was changed."""

    agent: str
    correlation_id: str
    why: RetryRefusal

    def __str__(self) -> str:
        what = {
            "answered": "it was answered; await it for the answer",
            "cancelled": "it was cancelled; send the request again under a new correlation id",
            "terminated": "it was terminated; send the request again under a new correlation id",
            "joined": "its request became part of another turn; retry that one",
            "nested": "it ran for a turn of another agent, which has heard of the failure; retry that one",
        }[self.why]
        return f"Turn {self.correlation_id} of agent {self.agent!r} is not taken up again: {what}. Nothing was changed."


@attrs.define(eq=False, slots=False, repr=False)
class DecisionRefused(TurnError):
    """A decision about a tool call was not taken. Nothing was changed."""

    key: str
    """The call's, see `PendingDecision.key`."""
    why: Literal["not_pending", "changed", "decided", "unfit", "unsigned"]
    """The turn does not wait for it (any more); it was made for another call; somebody has decided otherwise; it is
    none that this call waits for; or none of the agent's deciders signed it."""
    detail: str = ""
    tool: str = ""
    """With `changed`: the tool of the call that stands there now."""
    arguments: dict[str, Any] | None = None
    """With `changed`: the arguments of that call."""
    digest: str = ""
    """With `changed`: the digest of that call, to decide about it."""

    def __str__(self) -> str:
        what = {
            "not_pending": "the turn does not wait for it, or not any more",
            "changed": "it was made for other arguments or another tool than those of the call",
            "decided": "somebody has decided already",
            "unfit": "it is none that this call waits for",
            "unsigned": "the agent takes only what one of its deciders signed",
        }[self.why]
        detail = f" ({self.detail})" if self.detail else ""
        now = ""
        if self.tool:
            arguments = _beginning(repr(self.arguments))
            now = f" What stands there now is {self.tool!r} with {arguments}, of digest {self.digest!r}."
        return f"The decision about call {self.key} was refused: {what}{detail}.{now} Nothing was changed; look again."


@attrs.define(eq=False, slots=False, repr=False)
class ApprovalExpired(TurnError):
    """Nobody decided in time whether a tool may be called."""

    tool: str
    key: str
    seconds: float

    def __str__(self) -> str:
        return (
            f"Nobody approved the call of {self.tool!r} ({self.key}) within {self.seconds:g} s. It was not made, and "
            "the turn was ended. Send the request again under a new correlation id."
        )


@attrs.define(eq=False, slots=False, repr=False)
class OutcomeUnknown(TurnError):
    """Nobody knows whether a tool of `effect="once"` has acted, and somebody decided to end the turn for that."""

    tool: str
    key: str
    reason: str = ""

    def __str__(self) -> str:
        because = f" ({self.reason})" if self.reason else ""
        return (
            f"The call of {self.tool!r} ({self.key}) was cut off: it may have acted, once, or not at all{because}. It "
            "was not made again. Look at what it acts on before you send the request again."
        )


@attrs.define(eq=False, slots=False, repr=False)
class UnsupportedByPeer(TurnError):
    """The agent is hosted by a worker of the peer, `agent-framework-durabletask`, which cannot do what was asked."""

    agent: str
    what: str
    """It cannot."""

    def __str__(self) -> str:
        return (
            f"Agent {self.agent!r} is hosted by a worker of agent-framework-durabletask, which cannot {self.what}. "
            "Nothing was sent. Do without, or host the agent on a worker of dafx_actors."
        )


@attrs.define(eq=False, slots=False, repr=False)
class TurnFailed(TurnError):
    """The agent's own code, or the worker around it, raised."""

    agent: str
    correlation_id: str
    error_type: str
    detail: str

    def __str__(self) -> str:
        return (
            f"The turn {self.correlation_id} of agent {self.agent!r} failed with {self.error_type}: {self.detail}. "
            "The worker's log has the traceback."
        )


@attrs.define(eq=False, slots=False, repr=False)
class StaleTranscript(TurnError):
    """A step kept reading less of the thread than the turn had recorded."""

    thread_id: str
    expected: int
    """How many entries the turn had recorded."""
    found: int

    def __str__(self) -> str:
        return (
            f"Thread {self.thread_id} should have {self.expected} entries, but only {self.found} could be read. "
            "The scheduler answers with old state, or the thread was reset meanwhile. Send the request again."
        )


@attrs.define(eq=False, slots=False, repr=False)
class InvalidAnswer(TurnError, ValueError):
    """The answer does not fit `response_format`."""

    text: str
    """What the agent answered."""
    reason: str

    def __str__(self) -> str:
        return f"The answer does not fit `response_format`: {self.reason}. It is in `.text`."


@attrs.define(eq=False, slots=False, repr=False)
class ModelError(TurnError):
    """The model's call failed."""

    kind: ModelFailure
    message: str
    """The provider's own words."""
    status: int | None = None
    """The HTTP status, where there was one."""
    retry_after: float | None = None
    """Seconds that the provider asked to wait, where it did."""
    attempts: int = 1
    """How often the call was made."""
    data: dict[str, Any] = attrs.field(factory=dict[str, Any])
    """What else is known, as JSON values: `code`, `type`, `param` and `request_id` as the provider gave them;
    `address`; the `categories` that a content filter found; `final`, true where the provider said, by its status or in
    words, that the same call would fail again."""

    @property
    def address(self) -> str | None:
        """Where the call went, without credentials and query."""
        address = self.data.get("address")
        return address if isinstance(address, str) else None

    @property
    def retryable(self) -> bool:
        """Whether the same call may go better when it is made again."""
        passing = self.kind in {"rate_limit", "server_error", "timeout", "connection", "bad_response"}
        return passing and self.data.get("final") is not True

    def __str__(self) -> str:
        status = f", HTTP {self.status}" if self.status else ""
        times = "once" if self.attempts == 1 else f"{self.attempts} times"
        where = f"; {self.address}" if self.address else ""
        return f"The model call failed ({self.kind}{status}; tried {times}{where}): {self.message}"
