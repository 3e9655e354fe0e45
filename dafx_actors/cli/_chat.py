"""`dafx chat Agent`: a conversation. Ctrl+C cancels the turn that runs, and not the program."""

from __future__ import annotations

import argparse
import asyncio
import functools
import logging
import os
import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from dafx_actors.cli._io import (
    FAILED,
    INTERRUPTED,
    OK,
    Mistake,
    Output,
    add_common,
    clean,
    one_line,
    tell_outages,
    told,
)
from dafx_actors.errors import DafxError

if TYPE_CHECKING:
    from dafx_actors.client import DurableAIAgentClient
    from dafx_actors.client._handles import TurnHandle
    from dafx_actors.decisions import PendingDecision
    from dafx_actors.exchange import AgentRunResponse
    from dafx_actors.transcript import ChatMessage

_LOOK_AGAIN = 0.15
"""Seconds between looks at a turn."""
_SHOWN = 10
"""Entries of a thread that are shown when it is taken up again."""


def declare(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.description = (
        "Talk to an agent. What its tools do is shown; what waits for a person is asked here. Ctrl+C cancels the turn "
        "that runs; Ctrl+D, or /exit, ends. The conversation stays: --thread takes it up again."
    )
    parser.epilog = "examples:\n  dafx chat Joker\n  dafx chat Joker --thread 4f2c"
    parser.set_defaults(run=run)
    parser.add_argument("agent", help="the agent's name")
    parser.add_argument("--thread", metavar="ID", help="the conversation to go on with (default: a new one)")
    add_common(parser, as_json=False)


def run(arguments: argparse.Namespace) -> int:
    """Talk until the input ends."""
    from dafx_actors.client import DurableAIAgentClient

    logging.getLogger("dafx_actors").addHandler(logging.NullHandler())
    # The event loop runs while a turn does. A question is asked, and a line is read, while it does not: so Ctrl+C is
    # Python's own there, and here cancels what is awaited.
    with asyncio.Runner() as runner:
        client = DurableAIAgentClient.connect(arguments.endpoint, arguments.taskhub)
        try:
            return _Chat(runner, client, arguments.agent, arguments.thread).talk()
        finally:
            runner.run(client.close())


class _Chat:
    def __init__(self, runner: asyncio.Runner, client: DurableAIAgentClient, agent: str, thread: str | None) -> None:
        self._runner = runner
        self._client = client
        self._agent = client.get_agent(agent)
        self._is_new = thread is None
        self._thread = self._agent.get_new_thread() if thread is None else self._agent.get_thread(thread)
        self._out = Output(as_json=False)
        self._is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self._read = _reader(f"{self._agent.name}> ") if self._is_terminal else input
        self._left: set[str] = set()
        """Questions that the person has left open."""

    def talk(self) -> int:
        """Until the input ends.

        Raises:
            DafxError: The scheduler does not answer.
        """
        self._runner.run(self._client.ping(timeout=10))
        tell_outages()
        self._out.text(f"thread {self._thread}")
        if self._is_terminal:
            self._out.text("Ctrl+C cancels the turn that runs; Ctrl+D ends.")
        if not self._is_new:
            self._take_up()
        while True:
            try:
                said = self._read().strip()
            except EOFError:
                break
            except KeyboardInterrupt:
                if not self._is_terminal:
                    return INTERRUPTED
                self._out.text("\n(Ctrl+D ends)")
                continue
            if said in ("/exit", "/quit"):
                break
            if said:
                self._turn(said)
        self._out.text(f"take it up again: dafx chat {self._agent.name} --thread {self._thread}")
        return OK

    def _take_up(self) -> None:
        """Show what was said, and go on with a turn that runs."""
        from dafx_actors.cli._said import entry_text

        entries, running = self._runner.run(self._before())
        if len(entries) > _SHOWN:
            self._out.text(
                f"... {len(entries) - _SHOWN} entries before: dafx threads show {self._agent.name} {self._thread}"
            )
        for entry in entries[-_SHOWN:]:
            self._out.text(entry_text(entry))
        if running is not None:
            self._out.text(f"turn {running} runs")
            self._see_to(self._agent.get_turn(running))

    async def _before(self) -> tuple[list[Any], str | None]:
        entries = [entry async for entry in self._client.threads.history(self._thread)]
        name = str(self._thread)
        async for info in self._client.threads.list(self._agent.name, prefix=name, details=True):
            if str(info.thread) == name and info.turn is not None:
                return entries, info.turn
        return entries, None

    def _turn(self, said: str) -> None:
        """One request, until its answer, or what became of it."""
        from dafx_actors.ids import new_id

        correlation_id = new_id()  # known before it is sent: so it can be cancelled at any time
        starting = functools.partial(self._agent.start, said, thread=self._thread, correlation_id=correlation_id)
        self._see_to(self._agent.get_turn(correlation_id), starting)

    def _see_to(self, turn: TurnHandle[Any], begin: Callable[[], Coroutine[Any, Any, object]] | None = None) -> None:
        """See a turn through to its end; Ctrl+C cancels it, whenever that comes."""
        try:
            if begin is not None:
                self._runner.run(begin())
            self._follow(turn)
        except KeyboardInterrupt:
            self._cancel(turn)
        except (DafxError, OSError, Mistake) as error:
            _tell(error)

    def _follow(self, turn: TurnHandle[Any]) -> None:
        from dafx_actors.cli._inbox import ask, decide
        from dafx_actors.cli._turns import who

        watch = _Watch(self._client, turn, self._out, self._left)
        while True:
            found = self._runner.run(watch.until_something())
            if isinstance(found, tuple):
                self._answered(*found)
                return
            decided = ask(self._out, found)
            if decided is None:
                self._left.add(found.key)
                self._out.text(f"left open: dafx inbox decides it; Ctrl+C cancels the turn ({turn})")
            else:
                self._out.text(f"[{self._runner.run(decide(self._client, found, decided, who()))}]")

    def _answered(self, response: AgentRunResponse[Any], steps: int) -> None:
        _say(response.text, is_terminal=self._is_terminal)
        usage = response.usage
        self._out.text(f"[{usage.input_tokens} + {usage.output_tokens} tokens, {steps} steps]")

    def _cancel(self, turn: TurnHandle[Any]) -> None:
        from dafx_actors.cli._turns import who
        from dafx_actors.errors import TurnNotFound

        self._out.text("\n[cancels the turn]")
        try:
            cancelled = self._runner.run(turn.cancel("Ctrl+C", by=who(), timeout=30))
            self._out.text("[cancelled]" if cancelled else "[it had ended]")
        except TurnNotFound:
            self._out.text("[it was not sent]")
        except (DafxError, OSError, Mistake) as error:
            _tell(error)


def _tell(error: Exception) -> None:
    """Say what became of a turn; the conversation goes on."""
    words, _ = told(error) or (str(error), FAILED)
    sys.stdout.flush()
    sys.stderr.write(f"dafx: {one_line(words)}\n")


class _Watch:
    """Shows what a turn does."""

    def __init__(self, client: DurableAIAgentClient, turn: TurnHandle[Any], out: Output, left: set[str]) -> None:
        self._client = client
        self._turn = turn
        self._out = out
        self._left = left
        self._shown = 0
        self._state = ""

    async def until_something(self) -> PendingDecision | tuple[AgentRunResponse[Any], int]:
        """Until there is an answer, which comes with the number of steps; or a question for a person."""
        waiting = asyncio.ensure_future(self._turn.result())
        try:
            while True:
                done, _ = await asyncio.wait({waiting}, timeout=_LOOK_AGAIN)
                if done:
                    response = waiting.result()
                    self._show(response.messages[:-1])
                    return response, (await self._turn.status()).steps
                if (asked := await self._look()) is not None:
                    return asked
        finally:
            waiting.cancel()

    async def _look(self) -> PendingDecision | None:
        status, thread = await self._turn.status(), await self._turn.thread()
        if status.state in ("queued", "pending"):
            self._say_state(status.state, "")
            return None
        agent = self._client.get_agent(self._turn.agent)
        if status.steps:
            self._show((await agent.get_transcript(thread)).draft)
        if status.state == "waiting":
            asked = [
                *await self._client.pending_approvals(agent.name, thread),
                *await self._client.pending_outcomes(agent.name, thread),
            ]
            return next((each for each in asked if each.key not in self._left), None)
        self._say_state(status.state, ", ".join(status.waits_for) or status.error or "")
        return None

    def _say_state(self, state: str, why: str) -> None:
        said = f"[{state}{f': {why}' if why else ''}]"
        if state not in ("running", "completed") and said != self._state:
            self._state = said
            self._out.text(said)

    def _show(self, messages: Any) -> None:
        from dafx_actors.cli._said import message_lines

        message: ChatMessage
        for message in messages[self._shown :]:
            for line in message_lines(message):
                self._out.text(line)
        self._shown = max(self._shown, len(messages))


def _reader(prompt: str) -> Callable[[], str]:
    """What reads a line on a terminal: with history and editing, as far as that is installed."""
    from contextlib import suppress
    from importlib import import_module

    if os.environ.get("TERM", "dumb") != "dumb":
        with suppress(ImportError):
            session: Any = import_module("prompt_toolkit").PromptSession()
            return lambda: str(session.prompt(prompt))
    with suppress(ImportError):
        import_module("readline")
    return lambda: input(prompt)


def _say(text: str, *, is_terminal: bool) -> None:
    """An answer: as Markdown on a terminal that may have colours, where `rich` is installed."""
    from contextlib import suppress
    from importlib import import_module

    if is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb":
        with suppress(ImportError):
            markdown = import_module("rich.markdown").Markdown(clean(text))
            import_module("rich.console").Console().print(markdown)
            return
    sys.stdout.write(f"{clean(text)}\n")
    sys.stdout.flush()
