"""The fixture `agent_host`, in projects of users: pytest runs each of them as a program of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

AGENTS = """
from dafx_actors import durable_agent
from dafx_actors.testing import AgentHost, ScriptedModel

ENDED = []


def joker():
    @durable_agent(model=ScriptedModel("Hi.", "Hi again."))
    class Joker:
        instructions = "You tell jokes."

    return Joker


async def ask(host):
    ENDED.append(host)
    return (await host.client.get_agent("Joker").run("Hello")).text


def all_have_ended():
    for host in ENDED:
        try:
            host.client
        except RuntimeError as error:
            assert "not running" in str(error)
        else:
            raise AssertionError("a host outlived its test")
    return len(ENDED)
"""
STRICT = """
import pytest
import pytest_asyncio
from agents import all_have_ended, ask, joker


@pytest.mark.asyncio
async def test_a_host(agent_host):
    assert await ask(await agent_host(joker())) == "Hi."


@pytest.mark.asyncio
async def test_two_hosts(agent_host):
    assert [await ask(await agent_host(joker())) for _ in range(2)] == ["Hi."] * 2


@pytest.mark.asyncio(loop_scope="module")
async def test_on_the_modules_loop(agent_host):
    assert await ask(await agent_host(joker())) == "Hi."


@pytest.mark.asyncio(loop_scope="class")
class TestOnTheLoopOfAClass:
    async def test_it(self, agent_host):
        assert await ask(await agent_host(joker())) == "Hi."


@pytest_asyncio.fixture
async def host(agent_host):
    started = await agent_host(joker())
    yield started
    assert started.now  # it ends after the fixtures that asked for it


@pytest.mark.asyncio
async def test_a_host_of_another_fixture(host):
    assert await ask(host) == "Hi."


@pytest.mark.anyio
async def test_beside_anyios_plugin(agent_host):
    assert await ask(await agent_host(joker())) == "Hi."


def test_all_have_ended():
    assert all_have_ended() == 7
"""
ONE_FOR_MANY = """
import pytest
{imports}
from agents import AgentHost, joker, ask

{marks}

{fixture}
async def host({arguments}):
    async with AgentHost(joker()) as host:
        yield host


async def test_first(host):
    assert await ask(host) == "Hi."


async def test_second(host):
    assert await ask(host) == "Hi again."
"""
MISTAKES = """
import pytest
import pytest_asyncio
from agents import joker


@pytest_asyncio.fixture(loop_scope="session")
async def elsewhere(agent_host):
    return await agent_host(joker())


@pytest.mark.asyncio
async def test_another_loop(elsewhere):
    raise AssertionError


def test_not_async(agent_host):
    raise AssertionError


async def test_without_a_mark(agent_host):
    raise AssertionError


@pytest.mark.anyio
@pytest.mark.asyncio
async def test_with_both_marks(agent_host):
    raise AssertionError


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_a_copy_on_trio(agent_host):
    raise AssertionError


class TestOnTrio:
    @pytest.fixture
    def anyio_backend(self):
        return "trio"

    @pytest.mark.anyio
    async def test_on_trio(self, agent_host):
        raise AssertionError
"""
OLD = """
import pytest_asyncio


def fixture(fixture_function=None, **how):
    if "loop_scope" in how:
        raise TypeError("fixture() got an unexpected keyword argument 'loop_scope'")


pytest_asyncio.fixture = fixture
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "agents.py").write_text(AGENTS)
    return tmp_path


def outcome(project: Path, test: str, *options: str, status: int = 0) -> str:
    """What pytest says of a file of tests, with nothing of this suite's configuration."""
    (project / "test_it.py").write_text(test)
    # pytest-asyncio warns where this is not set; without it, pytest warns that nobody knows it.
    ini = "" if "no:asyncio" in options else "asyncio_default_fixture_loop_scope = function\n"
    (project / "pytest.ini").write_text(f"[pytest]\n{ini}")
    assert find_spec("pytest_asyncio"), "pytest-asyncio is missing: pip install -e '.[dev]'"
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "error", *options],
        cwd=project,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTEST_ADDOPTS": "", "COLUMNS": "300"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def test_with_pytest_asyncio_in_strict_mode(project: Path) -> None:
    assert "7 passed" in outcome(project, STRICT)


def test_with_pytest_asyncio_in_auto_mode(project: Path) -> None:
    """The same tests without a mark, and fixtures of pytest itself; beside anyio's there is an error of one line."""
    unmarked = STRICT.replace("@pytest.mark.asyncio\n", "").replace("pytest_asyncio.fixture", "pytest.fixture")
    alone = re.sub(r"@pytest.mark.anyio\n.*?\n\n\n", "", unmarked, flags=re.DOTALL).replace("== 7", "== 6")
    assert "6 passed" in outcome(project, alone, "-o", "asyncio_mode=auto")


def test_with_anyios_plugin(project: Path) -> None:
    without_loops = re.sub(r"\(loop_scope=.*?\)", "", STRICT).replace("import pytest_asyncio\n", "")
    anyio = without_loops.replace("pytest_asyncio.fixture", "pytest.fixture").replace("mark.asyncio", "mark.anyio")
    assert "7 passed" in outcome(project, anyio, "-p", "no:asyncio")


@pytest.mark.parametrize("plugin", ["anyio", "asyncio"])
def test_one_host_serves_many_tests(project: Path, plugin: str) -> None:
    if plugin == "anyio":
        test = ONE_FOR_MANY.format(
            imports="",
            marks="pytestmark = pytest.mark.anyio\n\n\n"
            "@pytest.fixture(scope='module')\ndef anyio_backend():\n    return 'asyncio'",
            fixture="@pytest.fixture(scope='module')",
            arguments="anyio_backend",
        )
    else:
        test = ONE_FOR_MANY.format(
            imports="import pytest_asyncio",
            marks="pytestmark = pytest.mark.asyncio(loop_scope='module')",
            fixture="@pytest_asyncio.fixture(scope='module', loop_scope='module')",
            arguments="",
        )
    assert "2 passed" in outcome(project, test)


def test_what_it_cannot_do_is_said_in_one_line(project: Path) -> None:
    output = outcome(project, MISTAKES, "-rs", status=1)
    said = dict(re.findall(r"_ ERROR at setup of (?:TestOnTrio\.)?(\w+)\S* _+\n(.*)\n(?:_|=)", output))
    assert {test: line.split(":")[0] for test, line in said.items()} == {
        "test_another_loop": "`agent_host` was awaited on another event loop than the test's, where the host must end",
        "test_not_async": "`agent_host` starts hosts in an `async def` test that anyio's pytest plugin or "
        "pytest-asyncio runs",
        "test_without_a_mark": "`agent_host` starts hosts in an `async def` test that anyio's pytest plugin or "
        "pytest-asyncio runs",
        "test_with_both_marks": "`agent_host` is run by anyio's pytest plugin or by pytest-asyncio, and both want this "
        "test",
        "test_on_trio": "agents run on asyncio only",
    }
    assert re.search(r"^SKIPPED \[1\] .*agents run on asyncio only", output, re.MULTILINE)


def test_a_pytest_asyncio_without_scopes_of_loops_is_named(project: Path) -> None:
    (project / "old.py").write_text(OLD)
    test = (
        "import pytest\n\n\n@pytest.mark.asyncio\nasync def test_it(agent_host):\n    pass\n\n\n"
        "@pytest.mark.asyncio\nasync def test_another():\n    pass\n"
    )
    output = outcome(project, test, "-p", "old", status=1)
    assert "\n`agent_host` needs pytest-asyncio 0.24 or newer, or anyio's pytest plugin\n" in output
    assert "1 passed, 1 error" in output
