"""What a worker keeps of what it has just written."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import anyio
import pytest

from dafx_actors import DurableAIAgentClient, DurableAIAgentWorker, durable_agent
from dafx_actors._json.document import load_entries
from dafx_actors._turns.recent import RecentDocuments, RecentEntries
from dafx_actors.scheduler import EmbeddedScheduler
from dafx_actors.testing import ScriptedModel


def test_a_document_is_found_once_and_by_its_own_token() -> None:
    """A step that is made again reads; so does one whose operation another worker made."""
    recent = RecentDocuments()
    first, second = recent.keep({"n": 1}, 1), recent.keep({"n": 2}, 1)
    assert recent.take(second) == {"n": 2}
    assert recent.take(second) is None
    assert recent.take(first) == {"n": 1}
    assert recent.take("another worker's") is None
    assert recent.take(None) is None


def test_the_oldest_go_when_there_is_too_much() -> None:
    """One that is too long alone is not kept at all."""
    recent = RecentDocuments(entries=10)
    tokens = [recent.keep({"n": n}, 4) for n in range(3)]
    assert [recent.take(token) for token in tokens] == [None, {"n": 1}, {"n": 2}]
    assert recent.take(recent.keep({}, 11)) is None


def test_what_nobody_asked_for_goes_with_the_next() -> None:
    """So that what other workers' steps never take does not stay."""
    now = 0.0
    recent = RecentDocuments(seconds=10, clock=lambda: now)
    old = recent.keep({}, 1)
    now = 11.0
    new = recent.keep({"new": True}, 1)
    assert recent.take(old) is None
    assert recent.take(new) == {"new": True}


@pytest.mark.anyio
async def test_a_turn_on_one_worker_reads_nothing(tmp_path: Path) -> None:
    """Its model step finds what the operation before it has stored: with what an earlier turn left."""
    model = ScriptedModel("One", "Two")

    @durable_agent(model=model)
    class Counter:
        instructions = "Count."

    async with EmbeddedScheduler(db=tmp_path / "dafx.db") as scheduler:
        worker = DurableAIAgentWorker.connect(scheduler.endpoint)
        worker.add_agent(Counter)
        async with worker, DurableAIAgentClient.connect(scheduler.endpoint) as client:
            agent = client.get_agent(Counter)
            thread = agent.get_new_thread()
            await agent.run("Begin", thread=thread)
            await agent.run("Go on", thread=thread)
            assert worker._host._reader is None
    assert [message.text for message in model.requests[1].messages] == ["Count.", "Begin", "One", "Go on"]


@pytest.mark.anyio
async def test_what_is_on_its_way_can_be_waited_for() -> None:
    """An operation runs on another thread than the step that waits for it."""
    recent = RecentDocuments()
    keeping = threading.Thread(target=recent.keep, args=({"n": 1}, 1, "t1/c1"))
    async with anyio.create_task_group() as group:

        async def wait() -> None:
            assert await recent.wait_for("t1/c1", 30)
            assert recent.take("t1/c1") == {"n": 1}

        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        keeping.start()
    keeping.join()
    recent.keep(None, 0, "t1/c2")
    assert await recent.wait_for("t1/c2", 0)
    assert recent.take("t1/c2") is None


@pytest.mark.anyio
async def test_what_does_not_come_is_not_waited_for_any_longer() -> None:
    recent = RecentDocuments()
    assert not await recent.wait_for("t1/c1", 0.001)
    recent.keep({"n": 1}, 1, "t1/c1")  # nobody waits any more
    assert recent.take("t1/c1") == {"n": 1}


def test_what_is_kept_again_under_a_token_takes_its_place() -> None:
    recent = RecentDocuments(entries=10)
    recent.keep({"n": 1}, 6, "t1/c1")
    recent.keep({"n": 2}, 6, "t1/c1")
    assert recent.take("t1/c1") == {"n": 2}
    assert recent.take(recent.keep({"n": 3}, 10)) == {"n": 3}


def stored(*texts: str) -> list[Any]:
    def request(text: str) -> dict[str, Any]:
        message = {"role": "user", "contents": [{"$type": "text", "text": text}]}
        return {"$type": "request", "correlationId": text, "messages": [message]}

    return [request(text) for text in texts]


def test_entries_that_were_read_before_are_not_read_again() -> None:
    recent = RecentEntries(at_least=1)
    first = recent.load("t1", stored("a", "b"))
    again = recent.load("t1", stored("a", "b", "c"))
    assert [entry is known for entry, known in zip(again, first, strict=False)] == [True, True]
    assert again == load_entries(stored("a", "b", "c"))


@pytest.mark.parametrize("now", [("x", "b", "c"), ("a", "x", "c"), ("a",), (), ("a", "b")])
def test_entries_of_a_thread_that_was_changed_are_read_as_they_are_now(now: tuple[str, ...]) -> None:
    """It was reset, or somebody wrote it anew."""
    recent = RecentEntries(at_least=0)
    recent.load("t1", stored("a", "b"))
    assert recent.load("t1", stored(*now)) == load_entries(stored(*now))
    assert recent.load("t2", stored(*now)) == load_entries(stored(*now))


def test_entries_of_threads_that_were_not_read_for_longest_go_first() -> None:
    recent = RecentEntries(entries=4, at_least=1)
    first = recent.load("t1", stored("a", "b"))
    recent.load("t2", stored("c", "d"))
    assert recent.load("t1", stored("a", "b"))[0] is first[0]
    recent.load("t3", stored("e", "f"))
    assert recent.load("t1", stored("a", "b"))[0] is first[0]
    assert recent.load("t4", stored("g", "h", "i", "j", "k")) == load_entries(stored("g", "h", "i", "j", "k"))
    assert recent.load("t1", stored("a", "b"))[0] is not first[0]
