"""`dafx inbox`: what waits for a person."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from dafx_actors.cli._io import Mistake, NotThere, Output, actions, add_common, json_value, when, with_client

if TYPE_CHECKING:
    from dafx_actors.client import DurableAIAgentClient
    from dafx_actors.decisions import DecisionSigner, PendingDecision

_COLUMNS = ["key", "kind", "agent", "thread", "asked", "deadline", "call"]
_SHORT = 12
"""Characters of a key that are shown; any beginning of a key that only one has will do."""


def declare(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.epilog = "example:\n  dafx inbox            asks for each, on a terminal; else it lists them"
    parser.set_defaults(run=run_inbox)
    _add_where(parser)
    add_common(parser)
    add = actions(parser, required=False)
    _add_where(add("list", "list what waits for a person", run_list, example="dafx inbox list --agent Cashier"))
    approve = add("approve", "let a tool call be made", run_approve, example="dafx inbox approve 3f9a --by ana")
    approve.add_argument("--arguments", type=json_value, metavar="JSON", help="instead of those that the model wrote")
    deny = add("deny", "do not let a tool call be made", run_deny, example='dafx inbox deny 3f9a --reason "too much"')
    resolve = add(
        "resolve", "say what became of a call that was cut off", run_resolve,
        example="dafx inbox resolve 3f9a result --result 950",
    )  # fmt: skip
    for each in (approve, deny, resolve):
        each.add_argument("key", metavar="KEY", help="of the question, or its beginning")
        each.add_argument("--by", help="who decides (default: this user)")
        each.add_argument("--reason", default="", help="for the transcript")
        each.add_argument(
            "--timeout",
            type=float,
            default=10.0,
            metavar="SECONDS",
            help="how long to wait for the thread's word; the decision is stored in any case (default: %(default)s)",
        )
        each.add_argument(
            "--signing-key", metavar="FILE", help="a private Ed25519 key (PEM): signs the decision as --by"
        )
        _add_where(each)
    resolve.add_argument(
        "answer", choices=("retry", "result", "fail"),
        help="retry: it did not act; result: it acted, and gave --result; fail: end the turn",
    )  # fmt: skip
    resolve.add_argument("--result", type=json_value, metavar="JSON", help="with `result`")


def _add_where(parser: argparse.ArgumentParser) -> None:
    # The same option stands behind `inbox` and behind its actions: the latter must not forget what the former was told.
    parser.add_argument("--agent", default=argparse.SUPPRESS, help="only of this agent (default: all)")
    parser.add_argument(
        "--thorough", action="store_true", default=argparse.SUPPRESS,
        help="ask all running turns: finds as well what workers of an older version have asked",
    )  # fmt: skip


def _where(arguments: argparse.Namespace) -> dict[str, Any]:
    """Where to look, as it was said."""
    return {name: getattr(arguments, name) for name in ("agent", "thorough") if hasattr(arguments, name)}


async def pending(
    client: DurableAIAgentClient, agent: str | None = None, *, thorough: bool = False
) -> list[PendingDecision]:
    """What waits for a person, of one agent or of all."""
    return [asked async for asked in client.inbox(agent, thorough=thorough)]


def record(asked: PendingDecision) -> dict[str, Any]:
    """A question, for programs and for a table."""
    from dafx_actors.cli._said import call_line

    return {
        "key": asked.key,
        "kind": asked.kind,
        "agent": asked.thread.agent,
        "thread": str(asked.thread),
        "turn": asked.correlation_id,
        "top": {"agent": asked.top_thread.agent, "thread": str(asked.top_thread), "turn": asked.top_turn},
        "tool": asked.tool,
        "arguments": dict(asked.arguments),
        "asked": asked.asked_at,
        "deadline": asked.deadline,
        "call": call_line(asked.tool, dict(asked.arguments)),
    }


def run_list(arguments: argparse.Namespace) -> int:
    """List."""

    async def run(client: DurableAIAgentClient, out: Output) -> None:
        found = await pending(client, **_where(arguments))
        if out.as_json:
            out.table(map(record, found), _COLUMNS)
        elif not found:
            out.text("nothing waits for a person")
        else:
            out.table([{**record(each), "key": each.key[:_SHORT]} for each in found], _COLUMNS)

    return with_client(arguments, run)


def run_inbox(arguments: argparse.Namespace) -> int:
    """On a terminal: ask for each."""
    if arguments.json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return run_list(arguments)
    import asyncio
    import logging

    from dafx_actors.cli._turns import who
    from dafx_actors.client import DurableAIAgentClient

    logging.getLogger("dafx_actors").addHandler(logging.NullHandler())
    out = Output(as_json=False)
    # Questions are asked while no event loop runs, so that Ctrl+C is Python's own.
    with asyncio.Runner() as runner:
        client = DurableAIAgentClient.connect(arguments.endpoint, arguments.taskhub)
        try:
            found = runner.run(pending(client, **_where(arguments)))
            if not found:
                out.text("nothing waits for a person")
            for asked in found:
                decided = ask(out, asked)
                if decided is not None:
                    out.text(str(runner.run(decide(client, asked, decided, who()))))
        finally:
            runner.run(client.close())
    return 0


def ask(out: Output, asked: PendingDecision) -> tuple[str, str] | None:
    """Have a person decide: an action and a reason; None where they leave it open."""
    from dafx_actors.cli._said import call_line

    until = f", until {when(asked.deadline)}" if asked.deadline else ""
    out.text(f"{asked.thread.agent} wants to call {call_line(asked.tool, dict(asked.arguments))}{until}")
    if asked.kind == "approval":
        choices = {"a": "approve", "d": "deny"}
        words = "[a]pprove, [d]eny, or leave it open (Enter)? "
    else:
        out.text("It was cut off: look at what it acts on.")
        choices = {"r": "retry", "f": "fail"}
        words = "[r]etry, since it did not act; [f]ail the turn; or leave it open (Enter)? "
    while True:
        try:
            said = input(words).strip().lower()
        except EOFError:
            return None
        if not said:
            return None
        if (action := choices.get(said[0])) is not None:
            return action, input("Why? ").strip() if action == "deny" else ""


async def decide(
    client: DurableAIAgentClient,
    asked: PendingDecision,
    decided: tuple[str, str],
    by: str,
    *,
    arguments: Any = None,
    result: Any = None,
    signer: DecisionSigner | None = None,
    timeout: float = 10.0,
) -> str:
    """Tell what a person decided; what became of it, in words."""
    from dafx_actors.decisions import DecisionAccepted, PendingApproval, PendingOutcome

    action, reason = decided
    how: dict[str, Any] = {"by": by, "reason": reason, "signer": signer, "timeout": timeout}
    if isinstance(asked, PendingApproval) and action == "approve":
        said = await client.approve(asked, arguments=arguments, **how)
    elif isinstance(asked, PendingApproval) and action == "deny":
        said = await client.deny(asked, **how)
    elif isinstance(asked, PendingOutcome) and action in ("retry", "result", "fail"):
        chosen: Any = action
        said = await client.resolve(asked, chosen, result=result, **how)
    else:
        wanted = "`approve` or `deny`" if asked.kind == "approval" else "`resolve`"
        raise Mistake(f"{asked.key} is an {asked.kind}: use {wanted}")
    if not isinstance(said, DecisionAccepted):
        return str(said)
    return f"{said.action}: {said.tool}{f'; {said.note}' if said.note else ''}"


def run_approve(arguments: argparse.Namespace) -> int:
    """Approve."""
    return _decided(arguments, "approve")


def run_deny(arguments: argparse.Namespace) -> int:
    """Deny."""
    return _decided(arguments, "deny")


def run_resolve(arguments: argparse.Namespace) -> int:
    """Resolve."""
    if arguments.result is not None and arguments.answer != "result":
        raise Mistake("--result goes with the answer `result`")
    return _decided(arguments, arguments.answer)


def _decided(arguments: argparse.Namespace, action: str) -> int:
    from dafx_actors.cli._turns import who

    by = arguments.by or who()
    signer = _signer(arguments.signing_key, by) if arguments.signing_key else None

    async def run(client: DurableAIAgentClient, out: Output) -> None:
        found = [each for each in await pending(client, **_where(arguments)) if each.key.startswith(arguments.key)]
        if not found:
            raise NotThere(
                f"no question with the key {arguments.key!r} waits any more; `dafx inbox list` shows what does"
            )
        if len(found) > 1:
            raise Mistake(f"{len(found)} keys begin with {arguments.key!r}: give more of it")
        said = await decide(
            client,
            found[0],
            (action, arguments.reason),
            by,
            arguments=getattr(arguments, "arguments", None),
            result=getattr(arguments, "result", None),
            signer=signer,
            timeout=arguments.timeout,
        )
        out.record({"key": found[0].key, "action": action, "by": by, "said": said}, said)

    return with_client(arguments, run)


def _signer(file: str, name: str) -> DecisionSigner:
    from pathlib import Path

    from dafx_actors.decisions import DecisionSigner

    return DecisionSigner.from_pem(name, Path(file).read_bytes())
