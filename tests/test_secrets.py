"""Configured secrets are told to nobody: not in errors, logs, threads, histories or the database."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import logging
import sys
import traceback
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import pytest

from dafx_actors import DurableAIAgentClient, DurableAIAgentWorker, durable_agent, tool
from dafx_actors._secrets import SHOWN, holds, in_address, in_headers, in_variables, keep, without, without_in
from dafx_actors.errors import ConfigurationError, DafxError, ModelError
from dafx_actors.mcp import McpServer
from dafx_actors.models.openai import AzureOpenAIChatModel, OpenAIChatModel
from dafx_actors.scheduler import EmbeddedScheduler
from dafx_actors.tools import tools_of
from dafx_actors.worker._last_line import without_secrets
from tests.conftest import free_port
from tests.provider import Calls, Refusal, provider
from tests.test_mcp import SERVER, listens, serving, until

pytestmark = pytest.mark.anyio

KEY = "sk-proj-0123456789+/abcdef=="
TOKEN = "mcp-token-ABCDEF-012345"
SERVICE = "ghp_service0123456789"


class Owner:
    """Somebody who was given a secret."""


# --- Texts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", [KEY, 'with "quotes" and \\', "with space %", "ünïcödé-secret"])
def test_a_secret_is_found_in_each_form_that_texts_give_it(secret: str) -> None:
    owner = Owner()
    keep(owner, secret)
    in_json = json.dumps({"said": secret})
    forms = [
        secret,
        in_json,
        json.dumps({"nested": in_json}),
        json.dumps(secret, ensure_ascii=False),
        repr(secret),
        quote(secret, safe=""),
        base64.b64encode(secret.encode()).decode(),
    ]
    for form in forms:
        clean = without(f"before {form} after")
        assert SHOWN in clean
        assert secret not in clean
        assert clean.startswith("before ")
        assert clean.endswith(" after")
    assert json.loads(without(in_json)) == {"said": SHOWN}


def test_a_secret_counts_as_long_as_somebody_has_it() -> None:
    first, second = Owner(), Owner()
    keep(first, KEY)
    keep(second, KEY, None)
    del first
    gc.collect()
    assert holds(f"x{KEY}")
    del second
    gc.collect()
    assert not holds(f"x{KEY}")


def test_what_is_short_or_may_be_a_word_is_left_in_data() -> None:
    owner = Owner()
    keep(owner, "unused", "assistant", KEY, KEY + "-and-more")
    data = {"role": "assistant", "contents": [KEY, f"{KEY}-and-more", 1, None, "unused"]}
    assert without_in(data) == {"role": "assistant", "contents": [SHOWN, SHOWN, 1, None, "unused"]}
    assert without("the assistant is unused") == f"the {SHOWN} is unused"
    same: dict[str, Any] = {"a": ["b"]}
    assert without_in(same) is same


def test_an_answer_to_the_scheduler_is_cleaned_where_values_are(request: pytest.FixtureRequest) -> None:
    from durabletask.internal import orchestrator_service_pb2 as pb

    keep(request, KEY)
    failure = pb.TaskFailureDetails(errorType="E", errorMessage=f"no {KEY}", stackTrace={"value": KEY})
    failure.innerFailure.errorMessage = f"no {KEY}"
    clean = without_secrets(pb.ActivityResponse(instanceId=KEY, result={"value": KEY}, failureDetails=failure))
    assert clean.result.value == SHOWN
    assert clean.failureDetails.innerFailure.errorMessage == f"no {SHOWN}"
    assert clean.failureDetails.stackTrace.value == SHOWN
    assert clean.instanceId == KEY, "an id is not a value; it would be answered to nobody"
    batch = pb.EntityBatchResult(entityState={"value": json.dumps({"a": KEY})})
    batch.results.add().success.result.value = KEY
    batch.actions.add().sendSignal.input.value = KEY
    assert KEY.encode() not in without_secrets(batch).SerializeToString()


# --- Where they are given -----------------------------------------------------------------------------------------


def test_keys_are_stripped_and_are_of_characters_that_can_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    assert OpenAIChatModel("m", api_key=f" {KEY}\r\n").api_key == KEY
    assert AzureOpenAIChatModel("m", endpoint="https://x.example", api_key=f"{KEY}\n").api_key == KEY
    assert OpenAIChatModel("m", headers={"X-Key": f"{KEY}\n"}).headers == {"X-Key": KEY}
    server = McpServer.streamable_http("s", "http://h/mcp", headers={"Authorization": f"Bearer {TOKEN}\n"})
    assert server.address.headers == {"Authorization": f"Bearer {TOKEN}"}  # type: ignore[union-attr]
    for broken in (f"{KEY}\nX-Evil: 1", f"{KEY}\0", f"{KEY}é"):
        for give in (
            lambda key: OpenAIChatModel("m", api_key=key),
            lambda key: OpenAIChatModel("m", headers={"Authorization": key}),
            lambda key: AzureOpenAIChatModel("m", endpoint="https://x.example", api_key=key),
            lambda key: McpServer.streamable_http("s", "http://h/mcp", headers={"X-Key": key}),
            lambda key: EmbeddedScheduler(token=key),
        ):
            with pytest.raises(ConfigurationError, match="characters that HTTP cannot send") as caught:
                give(broken)
            assert KEY not in str(caught.value)
    with pytest.raises(ConfigurationError, match="is no text, but bytes"):
        OpenAIChatModel("m", api_key=b"bytes")  # type: ignore[arg-type]


async def test_a_key_in_the_environment_is_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with provider() as echo:
        echo.answers = [Refusal(401, message=f"Incorrect API key provided: {KEY}")]
        monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{echo.server_port}/v1")
        model = OpenAIChatModel("m")
        with pytest.raises(ModelError, match=r"Incorrect API key provided: \[secret\]") as caught:
            await model.complete(_request())
        await model.aclose()
        assert echo.headers[0]["authorization"] == f"Bearer {KEY}"
        monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nmore")
        broken = OpenAIChatModel("m")
        with pytest.raises(ConfigurationError, match="OPENAI_API_KEY has characters") as refused:
            await broken.complete(_request())
    for error in (caught.value, refused.value):
        assert KEY not in "".join(traceback.format_exception(error))


def _request() -> Any:
    from dafx_actors.models import ModelRequest
    from dafx_actors.transcript import ChatMessage

    return ModelRequest(messages=(ChatMessage("user", "Hello"),))


def test_what_is_a_secret_is_told_by_its_name_where_not_all_values_are() -> None:
    """A version is no secret, though it stands in a header: it would be taken out of what people write."""
    headers = {
        "anthropic-version": "2023-06-01",
        "OpenAI-Organization": "org-01234567",
        "X-Gateway": KEY,
        "Accept": "a/bcdefgh",
    }
    assert list(in_headers(headers)) == [KEY]
    assert list(in_headers({"Authorization": f"Bearer {TOKEN}"})) == [f"Bearer {TOKEN}", TOKEN]
    basic = base64.b64encode(f"ana:{TOKEN}".encode()).decode()
    assert TOKEN in list(in_headers({"Authorization": f"Basic {basic}"}))
    assert TOKEN in list(in_headers({"Cookie": f"a=b; session={TOKEN}"}))
    names = [
        "GITHUB_TOKEN",
        "apiKey",
        "OPENAI_API_KEY",
        "x-functions-key",
        "DB_PASSWORD",
        "APIKEY",
        "sig",
        "accessToken",
    ]
    assert list(in_variables({name: name for name in names})) == names
    others = ["GIT_AUTHOR_NAME", "MAX_TOKENS", "KEYBOARD", "TOKENIZERS_PARALLELISM", "PATH", "HOME", "api-version"]
    assert list(in_variables({name: name for name in others})) == []
    address = "https://ana:p%40ssword1@h/x?api_key=a+b%2Fcdefg&q=1"
    assert list(in_address(address)) == ["p%40ssword1", "p@ssword1", "a+b%2Fcdefg", "a b/cdefg"]


def test_representations_hold_none() -> None:
    shown = [
        OpenAIChatModel(
            "m", api_key=KEY, base_url=f"http://user:{TOKEN}@h/v1", headers={"X-Key": KEY}, query={"key": KEY}
        ),
        AzureOpenAIChatModel("m", endpoint="https://x.example", api_key=KEY),
        McpServer.streamable_http("s", f"http://h/mcp?token={TOKEN}", headers={"X-Key": KEY}),
        McpServer.stdio("s", "program", env={"SERVICE_TOKEN": SERVICE}),
    ]
    assert not [each for each in map(repr, shown) if KEY in each or TOKEN in each or SERVICE in each]


# --- A whole system -----------------------------------------------------------------------------------------------


class Everything(logging.Handler):
    """Takes all records of all loggers, as a file would show them."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.text: list[str] = []
        self.setFormatter(logging.Formatter("%(name)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.text.append(self.format(record))


@pytest.fixture
def logged() -> Any:
    everything, root = Everything(), logging.getLogger()
    level = root.level
    root.addHandler(everything)
    root.setLevel(logging.DEBUG)
    yield everything.text
    root.removeHandler(everything)
    root.setLevel(level)


def _model(port: int) -> OpenAIChatModel:
    return OpenAIChatModel("m", base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, keep_alive=False)


@pytest.mark.parametrize("durability", ["step", "turn"])
async def test_servers_that_repeat_what_they_are_sent_do_not_bring_it_into_the_house(
    tmp_path: Path, logged: list[str], durability: Any
) -> None:
    """A model's server in errors and answers, an MCP server in results, errors and progress, a tool in its errors."""
    port = free_port()
    with provider() as echo, serving(SERVER, port, tmp_path / "calls"):
        await until(lambda: listens(port))
        echo.answers = [
            Calls([("web_echo", {}), ("web_echo", {"fails": True}), ("own_echo", {}), ("breaks", {"word": KEY})]),
            f"It said {TOKEN}, and your key is {KEY}.",
            Refusal(401, message=f"Incorrect API key provided: {KEY}"),
            "Fine.",
        ]
        web = McpServer.streamable_http(
            "web", f"http://127.0.0.1:{port}/mcp?token={TOKEN}", headers={"X-Key": f"{TOKEN}\n"}, prefix="web_"
        )
        own = McpServer.stdio("own", sys.executable, SERVER, "stdio", env={"SERVICE_TOKEN": SERVICE}, prefix="own_")

        @durable_agent(model=_model(echo.server_port), durability=durability)
        class Echo:
            instructions = "Say it."
            tools = (web, own)

            @tool
            def breaks(self, word: str) -> str:
                """Breaks."""
                raise ValueError(f"the service said: bad key {KEY}")

        with EmbeddedScheduler(tmp_path / "dafx.db").on_a_thread() as scheduler:
            worker = DurableAIAgentWorker.connect(scheduler.endpoint)
            worker.add_agent(Echo)
            async with DurableAIAgentClient.connect(scheduler.endpoint) as client, worker:
                agent = client.get_agent(Echo)
                answer = await agent.run("Go")
                one = answer.thread
                with pytest.raises(ModelError, match="Incorrect API key") as caught:
                    await agent.run("Again", thread=one)
                assert (await agent.run("And again", thread=one)).text == "Fine."
                transcript = repr(await agent.get_transcript(one))
        asked = json.dumps(echo.requests)
    assert answer.text == f"It said {SHOWN}, and your key is {SHOWN}."
    told = ["".join(traceback.format_exception(caught.value)), transcript, "\n".join(logged)]
    for secret in (KEY, TOKEN, SERVICE):
        assert [secret in text for text in told] == [False, False, False]
        # What the model is told is told to its provider.
        assert secret not in asked
        for file in tmp_path.glob("dafx.db*"):
            assert secret.encode() not in file.read_bytes()
    assert transcript.count(SHOWN) >= 8
    assert f"bad key {SHOWN}" in transcript
    assert f"bad key {SHOWN}" in told[2], "the log tells of the tool's failure, without the key"


async def test_an_orchestration_and_an_activity_tell_none(tmp_path: Path, logged: list[str]) -> None:
    """Of users' own code: results, errors, what led to them, and the status."""
    model = OpenAIChatModel("m", api_key=KEY)

    async def leaks(context: Any, give: str) -> str:
        context.set_custom_status({"key": KEY})
        if give == "fails":
            try:
                json.loads(KEY)
            except ValueError as error:
                error.args = (KEY,)
                raise RuntimeError("no") from error
        given: str = await context.call_activity(same, input=KEY)
        return given

    def same(context: Any, text: str) -> str:
        return f"{text} and {KEY}"

    with EmbeddedScheduler(tmp_path / "dafx.db").on_a_thread() as scheduler:
        worker = DurableAIAgentWorker.connect(scheduler.endpoint)
        worker.add_orchestrator(leaks)
        worker.add_activity(same)
        async with DurableAIAgentClient.connect(scheduler.endpoint) as client, worker:
            given = await (await client.schedule_new_orchestration(leaks, input="result")).result()
            with pytest.raises(DafxError) as caught:
                await (await client.schedule_new_orchestration(leaks, input="fails")).result()
    assert given == f"{SHOWN} and {SHOWN}"
    assert KEY not in "".join(traceback.format_exception(caught.value))
    assert KEY not in "\n".join(logged)
    for file in tmp_path.glob("dafx.db*"):
        assert KEY.encode() not in file.read_bytes()
    assert model.api_key == KEY


@pytest.mark.parametrize("errors", ["text", "type"])
async def test_a_tool_says_how_much_of_its_errors_is_told(tmp_path: Path, logged: list[str], errors: Any) -> None:
    with provider() as server:
        server.answers = [Calls([("breaks", {}), ("late", {})]), "Done."]

        @durable_agent(model=_model(server.server_port))
        class Worker:
            instructions = "Work."

            @tool(errors=errors)
            def breaks(self) -> str:
                """Breaks."""
                raise ValueError("patient 4711")

            @tool(errors=errors, timeout=0.05)
            async def late(self) -> str:
                """Is late."""
                try:
                    await anyio.sleep(60)
                except asyncio.CancelledError:
                    raise TimeoutError("patient 4711") from None
                return ""

        with EmbeddedScheduler().on_a_thread() as scheduler:
            worker = DurableAIAgentWorker.connect(scheduler.endpoint)
            worker.add_agent(Worker)
            async with DurableAIAgentClient.connect(scheduler.endpoint) as client, worker:
                agent = client.get_agent(Worker)
                answer = await agent.run("Go")
                transcript = repr(await agent.get_transcript(answer.thread))
    assert "ValueError" in transcript
    assert "TimeoutError" in transcript
    for text in (transcript, json.dumps(server.requests)):
        assert ("patient 4711" in text) is (errors == "text")
    assert "patient 4711" in "\n".join(logged)


def test_how_much_is_told_is_one_of_two() -> None:
    class Wrong:
        instructions = "Work."

        @tool(errors="all")  # type: ignore[call-overload, untyped-decorator]
        def breaks(self) -> str:
            """Breaks."""
            return ""

    with pytest.raises(ConfigurationError, match="`errors` is 'text' or 'type', not 'all'"):
        tools_of(Wrong())
