"""What began in an older form of values is taken up and ended in it; what begins today is in today's."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from dafx_actors import DurableAIAgentClient, DurableAIAgentWorker
from dafx_actors._json.forms import (
    FORM,
    dump_bytes,
    dump_clock,
    in_form,
    load_bytes,
    load_clock,
    reading_what_is_stored,
)
from dafx_actors.scheduler import EmbeddedScheduler
from dafx_actors.transcript import FunctionResultContent, Json, Transcript
from tests.histories import planned

pytestmark = pytest.mark.anyio

OLD = (b"Y2Fmw6k=", datetime(2024, 7, 1, 15))
"""What a tool got for what the model gave, and what it gets today."""
NEW = ("café".encode(), datetime(2024, 7, 1, 15))


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[DurableAIAgentClient]:
    """Of a scheduler on the recorded database, with a worker of today."""
    planned.ACTED.clear()
    planned.restore(tmp_path / "dafx.db")
    async with EmbeddedScheduler(db=tmp_path / "dafx.db") as scheduler:
        worker = DurableAIAgentWorker.connect(endpoint=scheduler.endpoint)
        planned.host(worker)
        async with worker, DurableAIAgentClient.connect(endpoint=scheduler.endpoint) as client:
            yield client


def results_in(transcript: Transcript) -> list[Json]:
    return [c.result for m in transcript for c in m.contents if isinstance(c, FunctionResultContent)]


async def test_a_call_that_was_planned_before_an_upgrade_is_made_as_it_was_planned(
    client: DurableAIAgentClient,
) -> None:
    keeper = client.get_agent(planned.Keeper)
    await keeper.get_turn("keep")
    assert [("keep", *OLD)] == planned.ACTED
    thread = keeper.get_thread(planned.THREADS["keep"])
    then = {"data": base64.b85encode(OLD[0]).decode(), "at": "2024-07-01T15:00:00+00:00"}
    assert results_in(await keeper.get_transcript(thread)) == [then]
    await keeper.run("keep", thread=thread)
    assert planned.ACTED[1:] == [("keep", *NEW)]
    now = {"data": "Y2Fmw6k=", "at": "2024-07-01T15:00:00"}
    assert results_in(await keeper.get_transcript(thread)) == [then, now]


async def test_a_call_that_waited_for_a_person_acts_once_as_it_was_approved(client: DurableAIAgentClient) -> None:
    keeper = client.get_agent(planned.Keeper)
    [asked] = await client.pending_approvals(planned.Keeper)
    await client.approve(asked, by="ana")
    await keeper.get_turn("charge")
    assert ("charge", *OLD) in planned.ACTED
    assert [name for name, *_ in planned.ACTED].count("charge") == 1


async def test_an_orchestration_reads_what_an_earlier_version_recorded(client: DurableAIAgentClient) -> None:
    handle: Any = client.get_orchestration("fetch", return_type=list[Any])
    await handle.raise_event("go")
    assert await handle == [True, "2024-07-01T12:00:00+00:00"]


# --- The forms themselves -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", range(1, FORM + 1))
@pytest.mark.parametrize("data", [b"", b"x", b"caf\xc3\xa9", bytes(range(256))])
def test_bytes_come_back_in_each_form(form: int, data: bytes) -> None:
    with in_form(form):
        assert load_bytes(dump_bytes(data)) == data
        assert dump_bytes(bytearray(data)) == dump_bytes(memoryview(data)) == dump_bytes(data)


@pytest.mark.parametrize("text", ["-_-_", "+/+/", "+/+/ \n", "YQ==", "YQ", "YQ\n=="])
def test_base64_is_read_in_its_spellings(text: str) -> None:
    assert load_bytes(text) in (b"\xfb\xff\xbf", b"a")


@pytest.mark.parametrize("broken", ["a b c d e", "Y2Fm!w6k", "Y", "é", 5, None, ["YQ=="]])
def test_what_is_no_base64_is_refused(broken: Json) -> None:
    with pytest.raises(ValueError, match="base64"):
        load_bytes(broken)


@pytest.mark.parametrize("data", [b"", b"\x00", b"ab", bytes(range(7)), bytes(range(200))])
def test_what_is_stored_is_read_in_either_form(data: bytes) -> None:
    with reading_what_is_stored():
        assert load_bytes(base64.b64encode(data).decode()) == data
        assert load_bytes(base64.b85encode(data).decode()) == data


@pytest.mark.parametrize(
    ("moment", "text", "before"),
    [
        (datetime(2024, 7, 1, 15), "2024-07-01T15:00:00", "2024-07-01T15:00:00+00:00"),
        (datetime(2024, 7, 1, 15, tzinfo=UTC), "2024-07-01T15:00:00+00:00", "2024-07-01T15:00:00+00:00"),
        (
            datetime(2024, 7, 1, 15, tzinfo=timezone(timedelta(hours=2))),
            "2024-07-01T15:00:00+02:00",
            "2024-07-01T13:00:00+00:00",
        ),
        (datetime.max, "9999-12-31T23:59:59.999999", "9999-12-31T23:59:59.999999+00:00"),
    ],
)
def test_times_keep_what_the_clock_said(moment: datetime, text: str, before: str) -> None:
    assert dump_clock(moment) == text
    assert (load_clock(text), load_clock(text).utcoffset()) == (moment, moment.utcoffset())
    with in_form(1):
        assert dump_clock(moment) == before
