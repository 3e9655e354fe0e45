"""Every example and every Python block of the README runs, as a program of its own, and prints what it should."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from dafx_actors.scheduler import EmbeddedScheduler
from tests.conftest import free_port
from tests.provider import Provider, provider

ROOT = Path(__file__).parent.parent
SINGLE = ROOT / "examples" / "01_single_agent"
CONCURRENT = ROOT / "examples" / "05_multi_agent_orchestration_concurrency"
README_BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


@pytest.fixture
def model() -> Generator[Provider]:
    with provider() as serving:
        yield serving


@pytest.fixture
def endpoint(tmp_path: Path) -> Generator[str]:
    with EmbeddedScheduler(db=tmp_path / "dafx.db").on_a_thread() as scheduler:
        yield scheduler.endpoint


def environment(endpoint: str | None, model: Provider) -> dict[str, str]:
    """This process's environment, but for what decides about schedulers and models."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in {"ENDPOINT", "TASKHUB"} and not name.startswith(("OPENAI_", "AZURE_"))
    }
    return {**kept, **model.environment, **({"ENDPOINT": endpoint} if endpoint else {}), "PYTHONIOENCODING": "utf-8"}


def run(*arguments: str | Path, env: Mapping[str, str], cwd: Path | None = None) -> str:
    """Run Python; what it printed, to both streams."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        env=dict(env),
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@contextmanager
def worker(script: Path, env: Mapping[str, str]) -> Generator[subprocess.Popen[str]]:
    """A worker that says it is ready; killed at the end if it lives."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", script],
        env=dict(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    ) as process:
        try:
            assert process.stdout is not None
            said = ""
            while "Worker is ready and listening for requests..." not in said:
                line = process.stdout.readline()
                assert line, said
                said += line
            yield process
        finally:
            process.kill()


def lines(output: str) -> list[str]:
    """What was logged, without ids: they are new in every run."""
    return re.sub(UUID, "<id>", output).splitlines()


def test_single_agent_prints_the_references_lines(endpoint: str, model: Provider) -> None:
    assert lines(run(SINGLE / "sample.py", env=environment(endpoint, model))) == [
        "INFO:__main__:Using taskhub: default",
        f"INFO:__main__:Using endpoint: {endpoint}",
        "INFO:__main__:Creating and registering Joker agent...",
        "INFO:__main__:✓ Registered agent: Joker",
        "INFO:__main__:  Entity name: dafx-Joker",
        "INFO:__main__:",
        "INFO:__main__:Starting Durable Task Agent Client...",
        "INFO:__main__:Using taskhub: default",
        f"INFO:__main__:Using endpoint: {endpoint}",
        "INFO:__main__:",
        "INFO:__main__:Getting reference to Joker agent...",
        "INFO:__main__:Created conversation thread: <id>",
        "INFO:__main__:",
        "INFO:__main__:User: Tell me a short joke about cloud computing.",
        "INFO:__main__:",
        "INFO:__main__:Joker: Answer to: Tell me a short joke about cloud computing.",
        "INFO:__main__:Usage: UsageStats(input_tokens=14, output_tokens=3, total_tokens=17)",
        "INFO:__main__:",
        "INFO:__main__:User: Now tell me one about Python programming.",
        "INFO:__main__:",
        "INFO:__main__:Joker: Answer to: Now tell me one about Python programming.",
        "INFO:__main__:Usage: UsageStats(input_tokens=31, output_tokens=3, total_tokens=34)",
        "INFO:__main__:",
        "INFO:__main__:Conversation completed successfully!",
    ]
    assert [message["role"] for message in model.requests[1]["messages"]] == ["system", "user", "assistant", "user"]


def test_single_agent_remembers_a_thread_that_is_taken_up_again(endpoint: str, model: Provider) -> None:
    env = environment(endpoint, model)
    first = run(SINGLE / "sample.py", env=env)
    found = re.search(f"Created conversation thread: ({UUID})", first)
    assert found is not None
    again = run(SINGLE / "sample.py", found[1], env=env)
    assert f"Continuing conversation thread: {found[1]} (4 messages so far)" in again
    assert len(model.requests[-1]["messages"]) == 8


def test_single_agent_goes_on_when_worker_and_client_are_killed_between_turns(endpoint: str, model: Provider) -> None:
    env = environment(endpoint, model)
    with worker(SINGLE / "worker.py", env) as process:
        first = run(SINGLE / "client.py", env=env)
        process.send_signal(signal.SIGKILL)
    found = re.search(f"Created conversation thread: ({UUID})", first)
    assert found is not None
    with worker(SINGLE / "worker.py", env):
        again = run(SINGLE / "client.py", found[1], env=env)
    assert "(4 messages so far)" in again
    assert len(model.requests[-1]["messages"]) == 8


def handles(pid: int, received: signal.Signals) -> bool:
    """Whether a process has a handler of its own for a signal."""
    mask = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return mask is not None and bool(int(mask[1], 16) >> (received - 1) & 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells which signals a process handles")
def test_a_worker_stops_in_order_on_sigterm_and_on_ctrl_c(endpoint: str, model: Provider) -> None:
    for received in (signal.SIGTERM, signal.SIGINT):
        with worker(SINGLE / "worker.py", environment(endpoint, model)) as process:
            while not handles(process.pid, signal.SIGTERM):  # `serve()` takes both; Python always handles SIGINT
                pass
            process.send_signal(received)
            rest, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert rest in {"", "INFO:__main__:Press Ctrl+C to stop.\n"}  # which may have been read with the line before


def test_the_two_experts_are_asked_at_the_same_time(endpoint: str) -> None:
    # The provider answers neither of them before both have asked.
    with provider(together=2) as model:
        output = run(CONCURRENT / "sample.py", env=environment(endpoint, model))
    rule = "=" * 80
    assert (
        f"{rule}\nOrchestration completed successfully!\n{rule}\n\n"
        "Prompt: What is temperature?\n\nResults:\n\n"
        "Physicist's response:\n  Answer to: What is temperature?\n\n"
        f"Chemist's response:\n  Answer to: What is temperature?\n\n{rule}\n"
    ) in output
    logged = [line for line in lines(output) if line.startswith("INFO:__main__:[Orchestration]")]
    assert logged == [
        "INFO:__main__:[Orchestration] Starting concurrent execution for prompt: What is temperature?",
        "INFO:__main__:[Orchestration] Created threads - Physicist: <id>, Chemist: <id>",
        "INFO:__main__:[Orchestration] Created agent tasks, executing concurrently...",
        "INFO:__main__:[Orchestration] Both agents completed",
        "INFO:__main__:[Orchestration] Aggregated results ready",
    ]
    assert "INFO:__main__:Orchestration status: COMPLETED" in lines(output)
    experts = [request["messages"][0]["content"] for request in model.requests]
    assert {word for expert in experts for word in ("physics", "chemistry") if word in expert} == {
        "physics",
        "chemistry",
    }


def test_the_scheduler_is_started_where_there_is_none(tmp_path: Path, model: Provider) -> None:
    """On a port of the test's own: another program may use 8080 on this machine."""
    program = tmp_path / "program.py"
    program.write_text(
        "import anyio, dafx_actors.scheduler.if_needed as needed\n"
        f"needed._ENDPOINT = 'http://localhost:{free_port()}'\n"
        "async def main():\n"
        "    async with needed.scheduler_if_needed() as first, needed.scheduler_if_needed() as second:\n"
        "        assert first == second == needed._ENDPOINT\n"
        "anyio.run(main)\n"
    )
    output = run(program, env=environment(None, model), cwd=tmp_path)
    assert output.count("the embedded scheduler runs in this process, with its state in dafx.db.") == 1
    assert (tmp_path / "dafx.db").exists()


@pytest.mark.parametrize("block", README_BLOCKS, ids=lambda block: block.splitlines()[0])
def test_python_blocks_of_the_readme_run(block: str, endpoint: str, model: Provider, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(block, encoding="utf-8")
    assert run(program, env=environment(endpoint, model), cwd=tmp_path)
