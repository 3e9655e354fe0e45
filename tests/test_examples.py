"""Every example and every Python block of the README runs, as a program of its own, and prints what it should."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from durabletask.client import TaskHubGrpcClient

from dafx_actors.scheduler import EmbeddedScheduler
from tests.conftest import free_port
from tests.provider import Answer, Calls, Hold, Provider, provider, repeat

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
SINGLE = EXAMPLES / "01_single_agent"
MULTI = EXAMPLES / "02_multi_agent"
CHAINING = EXAMPLES / "04_single_agent_orchestration_chaining"
CONCURRENT = EXAMPLES / "05_multi_agent_orchestration_concurrency"
CONDITIONALS = EXAMPLES / "06_multi_agent_orchestration_conditionals"
HITL = EXAMPLES / "07_single_agent_orchestration_hitl"
TOOLS = EXAMPLES / "08_tools_and_approvals"
FOLDERS = sorted(sample.parent for sample in EXAMPLES.glob("*/sample.py"))
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


def run(
    *arguments: str | Path, env: Mapping[str, str], cwd: Path | None = None, stdin: int | None = None, status: int = 0
) -> str:
    """Run Python, without a terminal unless one is given; what it printed, to both streams."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        env=dict(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL if stdin is None else stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        timeout=100,
        check=False,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def started(
    *arguments: str | Path, env: Mapping[str, str], cwd: Path | None = None, stdin: int | None = None
) -> subprocess.Popen[str]:
    """Python, which runs."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", *arguments],
        env=dict(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL if stdin is None else stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )


@contextmanager
def program(
    *arguments: str | Path, env: Mapping[str, str], until: str, stdin: int | None = None
) -> Generator[tuple[subprocess.Popen[str], re.Match[str]]]:
    """Python, once it has printed what is looked for; killed at the end if it lives."""
    with started(*arguments, env=env, stdin=stdin) as process:
        try:
            assert process.stdout is not None
            said = ""
            while (found := re.search(until, said)) is None:
                line = process.stdout.readline()
                assert line, said
                said += line
            yield process, found
        finally:
            process.kill()


@contextmanager
def worker(script: Path, env: Mapping[str, str]) -> Generator[subprocess.Popen[str]]:
    """A worker that says it is ready; killed at the end if it lives."""
    with program(script, env=env, until="Worker is ready and listening for requests...") as (process, _):
        yield process


def killed(process: subprocess.Popen[str]) -> str:
    """End a program at once (SIGKILL); what else it had printed."""
    process.kill()
    said, _ = process.communicate(timeout=60)
    return said


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


def typed(asked: dict[str, Any]) -> str:
    """What a model answers that is asked for the forms of these examples; else, what it was asked."""
    question = asked["messages"][-1]["content"]
    turns = sum(message["role"] == "user" for message in asked["messages"])
    spam = "prize" in question
    answers = {
        "SpamDetectionResult": {"is_spam": spam, "reason": "It offers a prize." if spam else "It is about work."},
        "EmailResponse": {"response": "Thank you."},
        "GeneratedContent": {"title": f"Draft {turns}", "content": question},
    }
    wanted = asked.get("response_format", {}).get("json_schema", {}).get("name")
    return json.dumps(answers[wanted]) if wanted else repeat(asked)


def published(output: str) -> dict[str, str]:
    """What a client of the writer shows at its end."""
    result: dict[str, str] = json.loads(output.partition("Final Result: ")[2])
    return result


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


# A sample with the scheduler in its own process, as where there is none: on a port and a file of the test's own.
WITH_ITS_OWN_SCHEDULER = """
import os, runpy, sys
from contextlib import asynccontextmanager

import dafx_actors.scheduler


@asynccontextmanager
async def scheduler_if_needed(*, say):
    async with dafx_actors.scheduler.EmbeddedScheduler(db="dafx.db") as scheduler:
        os.environ["ENDPOINT"] = scheduler.endpoint
        yield scheduler.endpoint


dafx_actors.scheduler.scheduler_if_needed = scheduler_if_needed
del sys.argv[0]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def interrupted(process: subprocess.Popen[str]) -> str:
    """Press Ctrl+C; what the program had printed, once it has ended as one that was interrupted."""
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert not re.search("Traceback|KeyboardInterrupt|Error|Exception", said), said
    return said


@pytest.mark.parametrize("example", FOLDERS, ids=lambda example: example.name)
def test_ctrl_c_ends_a_sample_without_a_traceback(example: Path, tmp_path: Path) -> None:
    """While its model is asked; what the worker does not end in time is told in a line, and done at the next start."""
    (tmp_path / "program.py").write_text(WITH_ITS_OWN_SCHEDULER)
    with provider(answer=lambda _: Hold()) as model:
        env = environment(None, model) | {"LEDGER": str(tmp_path / "ledger")}
        process = started(tmp_path / "program.py", example / "sample.py", env=env, cwd=tmp_path)
        with process:
            try:
                assert model.held.wait(60)
                said = interrupted(process)
            finally:
                process.kill()
    assert re.search(
        r"^WARNING:dafx_actors.worker:[12] steps did not end within 1 s; they are handed out", said, re.MULTILINE
    )


def test_a_sample_goes_on_where_ctrl_c_ended_it(endpoint: str) -> None:
    with (
        provider(answer=lambda _: Hold()) as model,
        started(SINGLE / "sample.py", env=environment(endpoint, model)) as (process),
    ):
        try:
            assert model.held.wait(60)
            found = re.search(f"Created conversation thread: ({UUID})", interrupted(process))
        finally:
            process.kill()
    assert found is not None
    with provider() as model:
        run(SINGLE / "sample.py", found[1], env=environment(endpoint, model))
    assert len(model.requests) == 3  # the one that was cut off, and two new ones


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="this system has no pseudo-terminals")
def test_ctrl_c_ends_a_sample_that_asks_a_person(endpoint: str) -> None:
    keyboard, terminal = os.openpty()
    try:
        with (
            provider(answer=typed) as model,
            program(
                HITL / "sample.py",
                env=environment(endpoint, model),
                until=r"INFO:__main__:Content: .*\n",
                stdin=terminal,
            ) as (process, _),
        ):
            interrupted(process)
    finally:
        os.close(keyboard)
        os.close(terminal)


@pytest.mark.parametrize("example", [SINGLE, HITL], ids=lambda example: example.name)
def test_ctrl_c_ends_a_client_that_waits(example: Path, endpoint: str, model: Provider) -> None:
    until = "User: Tell|Orchestration started"
    with program(example / "client.py", env=environment(endpoint, model), until=until) as (process, _):
        interrupted(process)


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


def test_each_of_two_agents_has_its_own_instructions_and_thread(endpoint: str, model: Provider) -> None:
    output = run(MULTI / "sample.py", env=environment(endpoint, model))
    assert lines(output)[-11:] == [
        "INFO:__main__:Testing WeatherAgent",
        "INFO:__main__:Created conversation thread: <id>",
        "INFO:__main__:User: What is the weather in Seattle?",
        "INFO:__main__:WeatherAgent: Answer to: What is the weather in Seattle?",
        "INFO:__main__:",
        "INFO:__main__:Testing MathAgent",
        "INFO:__main__:Created conversation thread: <id>",
        "INFO:__main__:User: Calculate a 20% tip on a $50 bill",
        "INFO:__main__:MathAgent: Answer to: Calculate a 20% tip on a $50 bill",
        "INFO:__main__:",
        "INFO:__main__:Both agents completed successfully!",
    ]
    weather, math = ([message["content"] for message in request["messages"]] for request in model.requests)
    assert "weather assistant" in weather[0]
    assert "math assistant" in math[0]
    assert (weather[1:], math[1:]) == (["What is the weather in Seattle?"], ["Calculate a 20% tip on a $50 bill"])


def test_the_writer_improves_its_own_draft(endpoint: str, model: Provider) -> None:
    output = run(CHAINING / "sample.py", env=environment(endpoint, model))
    draft = "Answer to: Write a concise inspirational sentence about learning."
    improved = f"Answer to: Improve this further while keeping it under 25 words: {draft}"
    assert [line for line in lines(output) if line.startswith("INFO:__main__:[Orchestration]")] == [
        "INFO:__main__:[Orchestration] Created thread: <id>",
        "INFO:__main__:[Orchestration] First agent run: Generating initial sentence",
        f"INFO:__main__:[Orchestration] Initial response: {draft}",
        "INFO:__main__:[Orchestration] Second agent run: Refining the sentence",
        f"INFO:__main__:[Orchestration] Refined response: {improved}",
    ]
    assert lines(output)[-2:] == [
        "INFO:__main__:Orchestration completed successfully!",
        f"INFO:__main__:Final refined sentence: {improved}",
    ]
    assert [message["role"] for message in model.requests[1]["messages"]] == ["system", "user", "assistant", "user"]


def test_spam_is_set_aside_and_other_email_is_answered(endpoint: str) -> None:
    with provider(answer=typed) as model:
        output = run(CONDITIONALS / "sample.py", env=environment(endpoint, model))
    results = [line for line in lines(output) if re.search("Activity|Result:|is_spam", line)]
    assert results == [
        "INFO:__main__:[Orchestration] Spam detection result: is_spam=False",
        "INFO:__main__:[Activity] Sending email: Thank you.",
        "INFO:__main__:Result: Email sent: Thank you.",
        "INFO:__main__:[Orchestration] Spam detection result: is_spam=True",
        "INFO:__main__:[Activity] Handling spam email: It offers a prize.",
        "INFO:__main__:Result: Email marked as spam: It offers a prize.",
    ]
    wanted = [request["response_format"]["json_schema"] for request in model.requests]
    assert [schema["name"] for schema in wanted] == ["SpamDetectionResult", "EmailResponse", "SpamDetectionResult"]
    assert all(schema["strict"] for schema in wanted)


def test_an_answer_without_the_form_that_was_asked_for_is_shown_with_the_error(endpoint: str, model: Provider) -> None:
    output = run(CONDITIONALS / "sample.py", "Hello!", env=environment(endpoint, model), status=1)
    assert re.search(
        f"WARNING:__main__:Orchestration {UUID} ended as FAILED: InvalidAnswer: "
        "The answer does not fit `response_format`: it is not JSON .*\n"
        f"WARNING:__main__:The model's answer was: {re.escape(repeat(model.requests[-1]))}$",
        output,
    )


def test_an_article_without_the_form_that_was_asked_for_is_shown_with_the_error(endpoint: str, model: Provider) -> None:
    output = run(HITL / "sample.py", "Cats", env=environment(endpoint, model), status=1)
    assert lines(output)[-2].startswith(
        "Orchestration <id> ended as FAILED: InvalidAnswer: The answer does not fit `response_format`: it is not JSON"
    )
    assert lines(output)[-1] == f"The model's answer was: {repeat(model.requests[-1])}"
    assert len(model.requests) == 2  # it was told what was wrong, once


def test_what_a_person_approves_is_published(endpoint: str) -> None:
    with provider(answer=typed) as model:
        output = run(HITL / "sample.py", "Cats", "--approve", env=environment(endpoint, model))
    assert len(model.requests) == 1
    assert "INFO:__main__:PUBLISHING: Content has been published successfully: Draft 1\n" in output
    assert published(output) == {"title": "Draft 1", "content": "Write two short sentences about 'Cats'."}


def test_what_a_person_rejects_is_written_again_with_the_feedback(endpoint: str) -> None:
    with provider(answer=typed) as model:
        output = run(HITL / "sample.py", "--reject", "Too long.", "--approve", env=environment(endpoint, model))
    asked = re.findall(r"Requesting human feedback \(Attempt (\d), timeout 300s\)", output)
    assert sorted(set(asked)) == ["1", "2"]
    assert output.count("NOTIFICATION: Please review the following content for approval:") == 2
    assert output.count("PUBLISHING:") == 1
    assert published(output)["title"] == "Draft 2"
    again = model.requests[1]["messages"]
    assert [message["role"] for message in again] == ["system", "user", "assistant", "user"]
    assert "Too long." in again[-1]["content"]


def test_nothing_is_published_after_the_last_attempt(endpoint: str) -> None:
    arguments = ("--reject", "", "--max-review-attempts", "1")
    with provider(answer=typed) as model:
        output = run(HITL / "sample.py", *arguments, env=environment(endpoint, model), status=1)
    assert "INFO:__main__:Orchestration status: FAILED, Max review attempts exhausted.\n" in output
    assert "Content could not be approved after 1 iteration(s)." in lines(output)[-1]
    assert "PUBLISHING:" not in output


def test_nothing_is_published_when_nobody_decides_in_time(endpoint: str) -> None:
    with provider(answer=typed) as model:
        output = run(HITL / "sample.py", "--timeout-seconds", "0.2", env=environment(endpoint, model), status=1)
    assert "NOTIFICATION: Please review the following content for approval:" in output
    assert re.search(r"ended as FAILED: .*TimeoutError: Human approval timed out after 0.2 second", lines(output)[-1])
    assert "PUBLISHING:" not in output


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="this system has no pseudo-terminals")
def test_a_person_at_the_terminal_is_asked(endpoint: str) -> None:
    keyboard, terminal = os.openpty()
    try:
        os.write(keyboard, b"perhaps\nno\nToo long.\nyes\n")
        with provider(answer=typed) as model:
            output = run(HITL / "sample.py", env=environment(endpoint, model), stdin=terminal)
    finally:
        os.close(keyboard)
        os.close(terminal)
    assert output.count("Do you approve this content? (yes/no): ") == 3
    assert output.count("Enter feedback for improvement: ") == 1
    assert "Too long." in model.requests[1]["messages"][-1]["content"]
    assert published(output)["title"] == "Draft 2"


def test_a_draft_waits_for_its_approval_while_the_worker_is_killed_and_started_again(endpoint: str) -> None:
    waiting = f"Waiting for somebody to decide: python client.py --instance ({UUID}) --approve"
    with provider(answer=typed) as model:
        env = environment(endpoint, model)
        with (
            worker(HITL / "worker.py", env) as first,
            program(HITL / "client.py", env=env, until=waiting) as (
                client,
                found,
            ),
        ):
            assert killed(first).count("NOTIFICATION:") == 1
            with worker(HITL / "worker.py", env) as second:
                output = run(HITL / "client.py", "--instance", found[1], "--approve", env=env)
                assert published(output)["title"] == "Draft 1"
                rest, _ = client.communicate(timeout=60)  # the first client has waited all the while
                said = killed(second)
    assert (client.returncode, published(rest)) == (0, published(output))
    assert (said.count("NOTIFICATION:"), said.count("PUBLISHING:")) == (0, 1)
    assert len(model.requests) == 1


def test_a_decision_about_an_earlier_draft_is_none_about_this_one(endpoint: str) -> None:
    waiting = f"Waiting for somebody to decide: python client.py --instance ({UUID}) --approve"
    with provider(answer=typed) as model:
        env = environment(endpoint, model)
        with (
            worker(HITL / "worker.py", env),
            program(HITL / "client.py", "--reject", "Too long.", env=env, until=waiting) as (_, found),
        ):
            late = {"approved": True, "attempt": 1}
            with TaskHubGrpcClient(host_address=endpoint) as client:
                client.raise_orchestration_event(found[1], "HumanApproval", data=late)
            output = run(HITL / "client.py", "--instance", found[1], "--reject", "", "--approve", env=env)
    assert published(output)["title"] == "Draft 3"


ARGUMENTS = {HITL: ["--approve"], TOOLS: ["--approve"]}


@pytest.mark.parametrize("example", FOLDERS, ids=lambda example: example.name)
def test_every_example_runs_as_two_programs(example: Path, endpoint: str, tmp_path: Path) -> None:
    with provider(answer=refunding if example == TOOLS else typed) as model:
        env = {**environment(endpoint, model), "LEDGER": str(tmp_path / "ledger")}
        with worker(example / "worker.py", env) as hosting:
            output = run(example / "client.py", *ARGUMENTS.get(example, []), env=env)
            said = killed(hosting)
    assert re.search("completed successfully!|Result: Email|SupportAgent: Done", output)
    assert not re.search("ERROR|WARNING|Traceback", said + output)


def refunding(asked: dict[str, Any]) -> Answer:
    """A model that looks the order up, refunds it, and says what came of it."""
    order = "A-1002" if "A-1002" in str(asked["messages"][1]["content"]) else "A-1001"
    results = [message["content"] for message in asked["messages"] if message["role"] == "tool"]
    if not results:
        return Calls([("find_order", {"order_id": order})])
    if len(results) == 1:
        return Calls([("refund", {"order_id": order, "amount": json.loads(results[0])["price"]})])
    return f"Done: {results[1]}"


def refunds(ledger: Path) -> list[tuple[str, float]]:
    lines = ledger.read_text("utf-8").splitlines() if ledger.exists() else []
    return [(paid["order_id"], paid["amount"]) for paid in map(json.loads, lines)]


@pytest.mark.parametrize(
    ("arguments", "said", "paid"),
    [
        (["--approve"], "Done: refunded 950.00 for A-1002", [("A-1002", 950.0)]),
        (["--deny", "Out of warranty."], "a person denied it: Out of warranty.", []),
        (["Refund A-1001."], "Done: refunded 40.00 for A-1001", [("A-1001", 40.0)]),
    ],
    ids=["approved", "denied", "too small to ask"],
)
def test_a_refund_is_paid_once_and_if_large_after_a_person_agreed(
    arguments: list[str], said: str, paid: list[tuple[str, float]], endpoint: str, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    with provider(answer=refunding) as model:
        env = {**environment(endpoint, model), "LEDGER": str(ledger)}
        with worker(TOOLS / "worker.py", env):
            output = run(TOOLS / "client.py", *arguments, env=env)
    assert said in output
    assert refunds(ledger) == paid


def test_a_refund_waits_for_its_approval_while_the_worker_is_killed(endpoint: str, tmp_path: Path) -> None:
    waiting = f"Waiting for somebody to decide: python client.py --turn ({UUID}) --approve"
    ledger = tmp_path / "ledger"
    with provider(answer=refunding) as model:
        env = {**environment(endpoint, model), "LEDGER": str(ledger)}
        with (
            worker(TOOLS / "worker.py", env) as first,
            program(TOOLS / "client.py", env=env, until=waiting) as (client, found),
        ):
            killed(first)
            with worker(TOOLS / "worker.py", env):
                assert "Done: refunded" in run(TOOLS / "client.py", "--turn", found[1], "--approve", env=env)
                rest, _ = client.communicate(timeout=60)
    assert "Done: refunded" in rest
    assert refunds(ledger) == [("A-1002", 950.0)]


def test_a_model_that_cannot_call_tools_is_named(endpoint: str, model: Provider) -> None:
    env = {name: value for name, value in environment(endpoint, model).items() if not name.startswith("OPENAI_")}
    with worker(TOOLS / "worker.py", env):
        assert "The local model cannot call tools." in run(TOOLS / "client.py", "--approve", env=env, status=1)


def test_the_examples_are_listed() -> None:
    listed = re.findall(r"^\| \[(\w+)\]\((\w+)\)", (EXAMPLES / "README.md").read_text("utf-8"), re.MULTILINE)
    assert listed == [(example.name, example.name) for example in FOLDERS]


@pytest.mark.parametrize("example", FOLDERS, ids=lambda example: example.name)
def test_the_requirements_of_an_example_are_this_clone(example: Path) -> None:
    """Relative to the folder that pip is called in; the README says to call it in the example's."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    wanted = [
        line for line in (example / "requirements.txt").read_text("utf-8").splitlines() if not line.startswith("#")
    ]
    found = [re.fullmatch(r"-e ([./]+)(?:\[(\w+)\])?", line) for line in wanted]
    assert [(each is not None and (example / each[1]).resolve()) for each in found] == [ROOT.resolve()]
    assert {each[2] for each in found if each is not None} <= {None, *extras}
    assert "pip install -r requirements.txt" in (example / "README.md").read_text("utf-8")


ASKING = {HITL, TOOLS}
"""Without arguments their samples ask a person on the terminal; here there is none, and they would wait."""
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("example", FOLDERS, ids=lambda example: example.name)
def test_what_the_readme_of_an_example_shows_is_so(example: Path, endpoint: str, tmp_path: Path) -> None:
    """Its commands run, in their order; and what stands under one is what that prints, but for answers and ids."""
    with provider(answer=refunding if example == TOOLS else typed) as model, ExitStack() as workers:
        env = {**environment(endpoint, model), "LEDGER": str(tmp_path / "ledger")}
        printed, thread, shown = "", "", 0
        blocks = BLOCK.findall((example / "README.md").read_text("utf-8"))
        for (language, block), (_, below) in itertools.pairwise([*blocks, ("", "")]):
            if language == "bash":
                printed = ""
            elif "INFO:__main__:" in block:
                assert re.search(as_printed(block, endpoint), printed), printed
                shown += 1
            commands = [shlex.split(line) for line in block.splitlines() if line.startswith("python ")]
            for _, script, *arguments in commands if language == "bash" else ():
                if script == "worker.py":
                    last = re.escape(below.splitlines()[-1])
                    _, found = workers.enter_context(program(example / script, env=env, until=f"(?s).*{last}\n"))
                    printed = found[0]
                elif script.endswith(".py") and (arguments or script != "sample.py" or example not in ASKING):
                    known = [thread if re.fullmatch(UUID, each) else each for each in arguments]
                    printed = run(example / script, *known, env=env, cwd=tmp_path)
                    if (created := re.search(f"thread: ({UUID})", printed)) is not None:
                        thread = created[1]
    assert shown >= 2


def as_printed(block: str, endpoint: str) -> str:
    """A pattern for the lines of a README: `...` is any text, and ids and numbers of tokens are others each time."""
    pattern = re.escape(block.replace("http://localhost:8080", endpoint)).replace(re.escape("..."), ".*")
    pattern = re.sub(r"[0-9a-f]{8}(\\-[0-9a-f]{4}){3}\\-[0-9a-f]{12}", lambda _: UUID, pattern)
    return re.sub(r"(_tokens=)\d+", r"\1\\d+", pattern)


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
    program = tmp_path / "test_program.py"
    program.write_text(block, encoding="utf-8")
    env = environment(endpoint, model)
    if "def test_" in block:
        output = run("-m", "pytest", "-W", "error", "-p", "no:asyncio", program, env=env, cwd=tmp_path)
        assert re.search(r"= [1-9]\d* passed in ", output)
    else:
        assert run(program, env=env, cwd=tmp_path)


def test_a_block_of_the_readme_is_a_test() -> None:
    assert len([block for block in README_BLOCKS if "def test_" in block]) == 1
