"""The command line and the environment: whatever stands there, it works or says in words what is wrong."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import socket
from collections.abc import Generator
from pathlib import Path
from typing import Any
from unittest import mock

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dafx_actors import DurableAIAgentClient, DurableAIAgentWorker
from dafx_actors._durable.connect import address
from dafx_actors.cli import _serving as _command
from dafx_actors.cli import main
from dafx_actors.errors import ConfigurationError, ModelError
from dafx_actors.models import Model, ModelRequest
from dafx_actors.models.environment import model_from_environment
from dafx_actors.transcript import ChatMessage
from tests.fuzz.inputs import examples

OPTIONS = [
    "--db", "--in-memory", "--host", "--port", "--synchronous", "--token", "--token-file", "--tls-certificate",
    "--tls-key", "--keep-days", "--keep-count", "--backups", "--log-format", "--log-level", "--help", "--nothing",
]  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Generator[list[str]]:
    """Values for options: paths of all kinds, numbers, words; and a port that is taken."""
    folder = tmp_path_factory.mktemp("command")
    texts = {"token": b"secret\n", "empty": b"", "binary": b"\xff\xfe\x00", "text": b"not a database, nor PEM"}
    for name, content in texts.items():
        (folder / name).write_bytes(content)
    before = Path.cwd()
    os.chdir(folder)  # what is no path is the name of a file here
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield [
            *(str(folder / name) for name in (*texts, "new.db", "missing/new.db", "")), str(taken.getsockname()[1]),
            "0", "-1", "1e400", "nan", "inf", "-inf", "65536", "99999999999999999999", "1.5", "x", "", "a\u0000b",
            "localhost", "127.0.0.1", "::1", "0.0.0.0", "no such host", "full", "normal", "json", "text", "debug",
            "error", "\ud83d",
        ]  # fmt: skip
    os.chdir(before)


def run(arguments: list[str]) -> tuple[int, str]:
    """The exit code and what was printed; a scheduler that has started is stopped at once."""

    async def serve(scheduler: Any, _: str | None = None) -> None:
        async with scheduler:
            pass

    printed = io.StringIO()
    logger, level = logging.getLogger("dafx_actors"), logging.getLogger("dafx_actors").level
    handlers = list(logger.handlers)
    with (
        mock.patch.object(_command, "_serve", serve),
        contextlib.redirect_stderr(printed),
        contextlib.redirect_stdout(printed),
    ):
        try:
            code = main(arguments)
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            logger.handlers[:] = handlers
            logger.setLevel(level)
    return code, printed.getvalue()


@examples(60)
@given(data=st.data())
def test_any_arguments_of_the_scheduler(files: list[str], data: st.DataObject) -> None:
    words = st.sampled_from(files) | st.text(max_size=4)
    given = data.draw(st.lists(st.tuples(st.sampled_from(OPTIONS), st.none() | words), max_size=4))
    where = data.draw(st.sampled_from([["--in-memory"], ["--db", str(Path(files[0]).with_name("dafx.db"))]]))
    said = [word for option, value in given for word in (option, *([] if value is None else [value]))]
    code, printed = run(["scheduler", "--port", "0", *where, *said])
    assert code in {0, 1, 2}
    assert "Traceback" not in printed
    assert code == 0 or "dafx" in printed, (said, printed)


VARIABLES = ["ENDPOINT", "TASKHUB", "OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL", "AZURE_OPENAI_ENDPOINT",
             "AZURE_OPENAI_CHAT_DEPLOYMENT_NAME", "AZURE_OPENAI_API_KEY", "AZURE_OPENAI_API_VERSION"]  # fmt: skip
some_values = st.text(max_size=6) | st.sampled_from(
    ["", " ", "x", "http://", "https://", "http://[::1", "http://127.0.0.1:1", "http://127.0.0.1:99999", "ftp://x",
     "http://127.0.0.1:x", "http://a b", "http://\u00e9", "k\u00e9y", "a\nb", "localhost:8080", "http://127.0.0.1:1/v1?x"]
)  # fmt: skip


@examples(60)
@given(environ=st.dictionaries(st.sampled_from(VARIABLES[2:]), some_values))
def test_any_environment_of_a_model(environ: dict[str, str]) -> None:
    """A model, or what is missing; and where a model is made of it, its call fails with an error of ours."""
    try:
        model = model_from_environment(environ, "named")
    except ConfigurationError as error:
        assert str(error)  # noqa: PT017 - either is fine
        return
    reached = {
        name: value.strip() for name, value in environ.items() if name.endswith(("BASE_URL", "AZURE_OPENAI_ENDPOINT"))
    }
    offline = any("127.0.0.1" in value for value in reached.values())
    if offline and ("AZURE_OPENAI_ENDPOINT" not in reached or environ.get("AZURE_OPENAI_API_KEY", "").strip()):
        anyio.run(ask, model)


async def ask(model: Model) -> None:
    try:
        with pytest.raises((ModelError, ConfigurationError)), anyio.fail_after(20):
            await model.complete(ModelRequest(messages=(ChatMessage("user", "Hello"),)))
    finally:
        await model.aclose()


@examples(60)
@given(environ=st.dictionaries(st.sampled_from(VARIABLES[:2]), some_values))
def test_any_environment_of_clients_and_workers(environ: dict[str, str]) -> None:
    try:
        where = address(environ=environ)
    except ConfigurationError as error:
        assert str(error)  # noqa: PT017 - either is fine
        return
    if where.is_secure:
        return  # it would look for a credential
    anyio.run(connect, where.endpoint, where.task_hub)


async def connect(endpoint: str, task_hub: str) -> None:
    with contextlib.suppress(ConfigurationError):
        DurableAIAgentWorker.connect(endpoint, task_hub)
        client = DurableAIAgentClient.connect(endpoint, task_hub)
        await client.close()


@pytest.mark.parametrize(
    "environ",
    [
        {"OPENAI_API_KEY": "k\u00e9y", "OPENAI_BASE_URL": "http://127.0.0.1:1/v1"},
        {"OPENAI_API_KEY": "key", "OPENAI_BASE_URL": "http://127.0.0.1:x/v1"},
        {"OPENAI_API_KEY": "key", "OPENAI_BASE_URL": "http://127.0.0.1:99999/v1"},
        {"AZURE_OPENAI_ENDPOINT": "http://127.0.0.1:1", "AZURE_OPENAI_API_KEY": "\u0080"},
    ],
)
def test_a_key_or_an_address_that_cannot_be_sent_is_a_mistake_of_the_configuration(environ: dict[str, str]) -> None:
    """It was a UnicodeEncodeError, or an error of the HTTP package."""

    async def call() -> None:
        model = model_from_environment(environ, "named")
        try:
            await model.complete(ModelRequest(messages=(ChatMessage("user", "Hello"),)))
        finally:
            await model.aclose()

    with pytest.raises(ConfigurationError):
        anyio.run(call)
