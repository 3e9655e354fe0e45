"""Decisions that are signed: an agent with deciders takes no others, on any backend."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, TypeAlias

import attrs
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from dafx_actors import Approval, DecisionAccepted, ModelRequest, durable_agent, tool
from dafx_actors.decisions import DecisionSigner, PendingApproval, load_deciders, signature_mistake
from dafx_actors.errors import ConfigurationError, DecisionRefused
from dafx_actors.ids import AgentThread
from dafx_actors.testing import AgentHost, ScriptedModel, call
from dafx_actors.testing._model import Reply

ANA, BOB, EVE = (DecisionSigner.generate(name) for name in ("ana", "bob", "eve"))
THREAD = AgentThread("Treasurer", "t1")


def answer(request: ModelRequest) -> Reply:
    return "Done." if request.messages[-1].role == "tool" else call("pay", amount=5)


@durable_agent(model=ScriptedModel(answer), deciders={"ana": ANA.public_key, "bob": BOB.public_key})
class Treasurer:
    instructions = "You pay."

    @tool(approval=Approval(timeout=timedelta(days=1)))
    def pay(self, amount: int) -> str:
        """Pay."""
        return f"paid {amount}"


async def waiting(host: AgentHost) -> tuple[Any, PendingApproval]:
    turn = await host.client.get_agent(Treasurer).start("Pay 5.")
    await host.settled()
    [approval] = await host.client.pending_approvals(Treasurer, await turn.thread())
    return turn, approval


@pytest.mark.anyio
async def test_a_decision_that_none_of_the_deciders_signed_is_refused() -> None:
    async with AgentHost(Treasurer) as host:
        turn, approval = await waiting(host)
        forged = DecisionSigner("ana", EVE.key)
        other = attrs.evolve(approval, correlation_id="another")
        elsewhere = ANA.sign(other.thread, other.correlation_id, other.key, other.digest, {"action": "approve"})
        assert elsewhere["by"] == "ana"
        for by, signer in (("ana", None), ("", EVE), ("", forged)):
            with pytest.raises(DecisionRefused) as caught:
                await host.client.approve(approval, by=by, signer=signer)
            assert caught.value.why == "unsigned"
        with pytest.raises(DecisionRefused):
            await host.client.deny(approval, by="ana")
        decision = await host.client.approve(approval, signer=ANA, arguments={"amount": 4}, by="somebody else")
        assert (decision.by, decision.arguments) == ("ana", {"amount": 4})
        answer = await turn
        assert answer.text == "Done."
        assert "paid 4" in str(answer.messages)


@pytest.mark.anyio
async def test_a_signature_is_over_the_arguments_so_it_needs_their_digest() -> None:
    async with AgentHost(Treasurer) as host:
        turn, approval = await waiting(host)
        with pytest.raises(DecisionRefused, match="give the `digest` of what was seen") as here:
            await host.client.approve(key=approval.key, thread=approval.thread, signer=ANA)
        with pytest.raises(DecisionRefused, match="give the `digest` of what was seen") as there:
            await host.client.deny(key=approval.key, thread=approval.thread, by="ana")
        assert (here.value.why, there.value.why) == ("unsigned", "unsigned")
        with pytest.raises(DecisionRefused, match="it is not signed"):
            await host.client.deny(key=approval.key, thread=turn, digest=approval.digest, by="ana")
        made = await host.client.approve(key=approval.key, thread=turn, digest=approval.digest, signer=ANA)
        assert isinstance(made, DecisionAccepted)
        assert (made.by, made.call_arguments) == ("ana", {"amount": 5})
        assert "paid 5" in str((await turn).messages)


@pytest.mark.anyio
async def test_the_deadline_needs_no_signature_and_a_signed_no_counts() -> None:
    async with AgentHost(Treasurer) as host:
        turn, _ = await waiting(host)
        await host.advance(timedelta(days=1))
        assert "nobody approved it in time" in str((await turn).messages)
        turn, approval = await waiting(host)
        await host.client.deny(approval, "no", signer=BOB)
        assert "a person denied it: no" in str((await turn).messages)


DECISION: Mapping[str, Any] = {"action": "approve", "at": "2026-01-01T00:00:00Z", "arguments": {"a": 1}}


About: TypeAlias = tuple[AgentThread, str, str, str]


def mistake(about: About, signed: Mapping[str, Any]) -> str:
    thread, turn, key, digest = about
    keys = load_deciders({"ana": ANA.public_key})
    return signature_mistake(keys, thread, turn, key, digest, signed) or ""


def test_a_signature_is_of_one_call_of_one_thread_and_of_all_that_was_decided() -> None:
    about: About = (THREAD, "turn", "turn.1.0", "digest")
    signed = ANA.sign(THREAD, "turn", "turn.1.0", "digest", DECISION)
    assert mistake(about, signed) == ""
    others: list[About] = [
        (AgentThread("Treasurer", "t2"), "turn", "turn.1.0", "digest"),
        (THREAD, "another", "turn.1.0", "digest"),
        (THREAD, "turn", "turn.1.1", "digest"),
        (THREAD, "turn", "turn.1.0", "other"),
    ]
    assert all("not ana's" in mistake(other, signed) for other in others)
    for field, value in (("action", "deny"), ("arguments", {"a": 2}), ("reason", "x"), ("at", "2027"), ("more", 1)):
        assert "not ana's" in mistake(about, {**signed, field: value})
    for signature in ("", "!", "AAAA", signed["signature"][:-4], "é"):
        assert "not ana's" in mistake(about, {**signed, "signature": signature})
    assert "not signed" in mistake(about, {**DECISION, "by": "ana"})
    by_bob = BOB.sign(THREAD, "turn", "turn.1.0", "digest", DECISION)
    assert "none of its deciders" in mistake(about, by_bob)
    assert "none of its deciders" in mistake(about, {**signed, "by": ["ana"]})


def test_keys_come_in_several_forms_and_are_never_shown() -> None:
    public = ANA.key.public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for form in (public, pem, pem.decode(), public.public_bytes_raw(), ANA.public_key):
        assert load_deciders({"ana": form}) == {"ana": public.public_bytes_raw()}
    for nonsense in ("", "x", b"short", 3, None, "-----BEGIN PUBLIC KEY-----"):
        with pytest.raises(ConfigurationError, match="'ana'"):
            load_deciders({"ana": nonsense})
    key = Ed25519PrivateKey.generate()
    plain = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"pw"))
    assert DecisionSigner.from_pem("a", plain).public_key == DecisionSigner.from_pem("a", locked, b"pw").public_key
    for wrong in ((b"nonsense", None), (locked, b"other"), (locked, None), (plain, b"pw")):
        with pytest.raises(ConfigurationError, match="cannot be read"):
            DecisionSigner.from_pem("a", *wrong)
    assert repr(ANA) == "DecisionSigner(name='ana')"
