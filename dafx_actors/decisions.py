"""What a turn waits for a person to decide: whether a tool may be called, and what became of a call that was cut off.

::

    for approval in await client.pending_approvals(agent="Cashier"):
        print(approval.tool, approval.arguments)
        await client.approve(approval, by="ana@example.com")
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import attrs

from dafx_actors.errors import ConfigurationError
from dafx_actors.ids import AgentThread
from dafx_actors.transcript import Json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = [
    "Action",
    "Decision",
    "DecisionAccepted",
    "DecisionKind",
    "DecisionSigner",
    "InboxAsked",
    "InboxEvent",
    "InboxGone",
    "PendingApproval",
    "PendingDecision",
    "PendingOutcome",
    "call_digest",
]

DecisionKind: TypeAlias = Literal["approval", "outcome"]
Action: TypeAlias = Literal["approve", "deny", "retry", "result", "fail"]
"""An approval is approved or denied. A call of unknown outcome is made again, given a result, or fails its turn."""

ACTIONS: Mapping[DecisionKind, tuple[Action, ...]] = {
    "approval": ("approve", "deny"),
    "outcome": ("retry", "result", "fail"),
}


def _own_thread(asked: PendingDecision) -> AgentThread:
    return asked.thread


def _own_turn(asked: PendingDecision) -> str:
    return asked.correlation_id


@attrs.frozen(kw_only=True)
class PendingDecision:
    """A tool call that waits for a person: a `PendingApproval` or a `PendingOutcome`."""

    thread: AgentThread
    correlation_id: str
    """The turn."""
    key: str
    """The id of the question, unique in its turn."""
    idempotency_key: str
    """The idempotency key of the call. The tool gives it to the services that it acts on, where you can look up what
    became of it."""
    kind: DecisionKind
    """`approval`: may it be called? `outcome`: it was called and cut off, and nobody knows whether it acted."""
    call_id: str
    """The model's id of the call."""
    tool: str
    arguments: Mapping[str, Json] = attrs.field(hash=False)
    digest: str
    """A hash of tool and arguments: a decision counts for this very call."""
    asked_at: datetime
    deadline: datetime | None = None
    """When the turn stops waiting for it."""
    top_thread: AgentThread = attrs.field(default=attrs.Factory(_own_thread, takes_self=True))
    """The thread that a person knows: where this one's agent is used as a tool, perhaps by one that is used as a tool
    itself, the thread at the top; else `thread`. Decide with `thread`, or with the whole question."""
    top_turn: str = attrs.field(default=attrs.Factory(_own_turn, takes_self=True))
    """The turn there; its answer waits for the decision."""


@attrs.frozen(kw_only=True)
class PendingApproval(PendingDecision):
    """A tool call that is not made unless a person approves it: `client.approve`, `client.deny`."""

    kind: DecisionKind = attrs.field(default="approval", init=False)


@attrs.frozen(kw_only=True)
class PendingOutcome(PendingDecision):
    """A tool call that was made and cut off, and nobody knows whether it acted: `client.resolve`."""

    kind: DecisionKind = attrs.field(default="outcome", init=False)


@attrs.frozen(kw_only=True)
class InboxAsked:
    """A question has come into the inbox, or was in it when the watch began."""

    question: PendingApproval | PendingOutcome


@attrs.frozen(kw_only=True)
class InboxGone:
    """A question that was told waits no more: it was decided, its deadline passed, or its turn or thread has ended."""

    question: PendingApproval | PendingOutcome
    """As it was told."""


InboxEvent: TypeAlias = InboxAsked | InboxGone
"""What `client.watch_inbox` tells."""


@attrs.frozen(kw_only=True)
class Decision:
    """The decision of a person about a call."""

    action: Action
    by: str = ""
    """The name of whoever decided, as the program says that sent it; for an agent with `deciders`, the name of the key
    that signed it."""
    at: datetime
    reason: str = ""
    arguments: Mapping[str, Json] | None = attrs.field(default=None, hash=False)
    """With `approve`: instead of those that the model wrote."""
    result: Json = attrs.field(default=None, hash=False)
    """With `result`: what the tool's call counts as having given."""


@attrs.frozen(kw_only=True)
class DecisionAccepted(Decision):
    """A decision that its thread has on record: of several that say the same, the one that arrived first."""

    thread: AgentThread
    correlation_id: str
    """The turn."""
    key: str
    """Of the question; see `PendingDecision.key`."""
    tool: str
    call_arguments: Mapping[str, Json] = attrs.field(hash=False)
    """The arguments of the call that the decision counts for: those that the model wrote, or those of the decision
    where it has its own."""
    note: str = ""
    """Why the call will not be made as it stands, or needed no decision any more: a new version of the agent may have
    changed or dropped the tool while the call waited. Empty where nothing is known against it."""


def call_digest(tool: str, arguments: Mapping[str, Json]) -> str:
    """A hash of a tool's name and the arguments of a call."""
    named = json.dumps([tool, arguments], sort_keys=True, default=dict)
    return hashlib.sha256(named.encode()).hexdigest()[:32]


# --- Signed decisions ---------------------------------------------------------------------------------------------

_RAW_KEY = 32
"""Bytes of an Ed25519 key."""


@attrs.frozen
class DecisionSigner:
    """Signs decisions, for agents that take no others (`@durable_agent(deciders=...)`).

    ::

        signer = DecisionSigner.from_pem("ana", Path("ana.pem").read_bytes())
        await client.approve(approval, signer=signer)
    """

    name: str
    """Under which the agent knows the public key; it is the decision's `by`."""
    key: Ed25519PrivateKey = attrs.field(repr=False)

    @classmethod
    def from_pem(cls, name: str, pem: bytes, password: bytes | None = None) -> DecisionSigner:
        """With a private Ed25519 key as OpenSSL and others write it.

        Raises:
            ConfigurationError: It is none, or the password is wrong.
        """
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            key = load_pem_private_key(pem, password)
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"the private key of {name!r} cannot be read: {type(error).__name__}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigurationError(f"the private key of {name!r} is no Ed25519 key")
        return cls(name, key)

    @classmethod
    def generate(cls, name: str) -> DecisionSigner:
        """With a new key."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return cls(name, Ed25519PrivateKey.generate())

    @property
    def public_key(self) -> str:
        """For `deciders`: the 32 bytes as base64."""
        return base64.b64encode(self.key.public_key().public_bytes_raw()).decode()

    def sign(
        self, thread: AgentThread, turn: str, key: str, digest: str, decision: Mapping[str, Json]
    ) -> dict[str, Json]:
        """The decision, as JSON, with `by` and `signature`.

        Args:
            thread: That waits for it.
            turn: The correlation id.
            key: Of the call.
            digest: Of the call's tool and arguments, as the person saw them.
            decision: As `_json/requests.py: dump_decision` makes it.
        """
        named = {**decision, "by": self.name}
        signature = self.key.sign(_signed(thread, turn, key, digest, named))
        return {**named, "signature": base64.b64encode(signature).decode()}


def load_deciders(deciders: Mapping[str, Any]) -> dict[str, bytes]:
    """Public keys by name: each an Ed25519 key of `cryptography`, a PEM text, or the 32 bytes, raw or as base64.

    Raises:
        ConfigurationError: One is none of these.
    """
    return {name: _public_key(name, given) for name, given in deciders.items()}


def _public_key(name: str, given: Any) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    key: Any = given
    try:
        if isinstance(given, bytes) and len(given) == _RAW_KEY:
            return given
        if isinstance(given, str) and "BEGIN" not in given:
            raw = base64.b64decode(given, validate=True)
            key = Ed25519PublicKey.from_public_bytes(raw)
        elif isinstance(given, str | bytes):
            key = load_pem_public_key(given.encode() if isinstance(given, str) else given)
    except (ValueError, binascii.Error) as error:
        raise ConfigurationError(f"the public key of decider {name!r} cannot be read: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigurationError(
            f"the public key of decider {name!r} is no Ed25519 key: give a PEM text, its 32 bytes, or these as base64"
        )
    return key.public_bytes_raw()


def signature_mistake(
    deciders: Mapping[str, bytes], thread: AgentThread, turn: str, key: str, digest: str, decision: Mapping[str, Json]
) -> str | None:
    """Why a decision is none of one of the deciders, or None where it is. The arguments are those of `sign`."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    by, signature = decision.get("by"), decision.get("signature")
    if not isinstance(by, str) or by not in deciders:
        return f"{by!r} is none of its deciders"
    if not isinstance(signature, str):
        return "it is not signed"
    unsigned = {name: value for name, value in decision.items() if name != "signature"}
    try:
        raw = base64.b64decode(signature, validate=True)
        Ed25519PublicKey.from_public_bytes(deciders[by]).verify(raw, _signed(thread, turn, key, digest, unsigned))
    except (InvalidSignature, ValueError):
        return f"its signature is not {by}'s for this call"
    return None


def _signed(thread: AgentThread, turn: str, key: str, digest: str, decision: Mapping[str, Json]) -> bytes:
    """The bytes that are signed: the decision, and the call of the thread that it is about."""
    about = ["dafx.decision.1", thread.agent, thread.thread_id, turn, key, digest, dict(decision)]
    return json.dumps(about, sort_keys=True, separators=(",", ":")).encode()
