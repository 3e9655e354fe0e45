"""The command `dafx` as a person uses it: processes, a terminal, pipes, signals."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dafx_actors.sync import DurableAIAgentClient
from tests.conftest import free_port

APP = Path(__file__).parent / "command_app.py"
DAFX = [sys.executable, "-m", "dafx_actors.cli"]
PATIENCE = 60.0
"""Seconds for what is about to be, on a machine that has much else to do."""

pytestmark = pytest.mark.timeout(900)  # many programs, one after the other, on a machine that does other things


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("ENDPOINT", "TASKHUB", "NO_COLOR")}
    # A terminal that does nothing but show text, so that it is the same with the extra `cli` and without.
    return {**kept, "TERM": "dumb", "PYTHONPATH": str(APP.parent.parent), "COLUMNS": "200", **more}


def ran(*arguments: str, endpoint: str = "", code: int = 0, stdin: str = "") -> str:
    """What it writes on standard output, where it ends with this code; one line on standard error tells a failure."""
    more = {"ENDPOINT": endpoint} if endpoint else {}
    done = subprocess.run(
        [*DAFX, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False, input=stdin,
        env=environment(**more),
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == (0 if code == 0 or done.stderr == "" else 1), done.stderr
    assert "\x1b" not in done.stdout + done.stderr, "no colour where there is no terminal"
    return done.stdout


def records(*arguments: str, **how: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ran(*arguments, "--json", **how).splitlines()]


def until(check: Callable[[], Any]) -> Any:
    late = time.monotonic() + PATIENCE
    while not (found := check()):
        assert time.monotonic() < late
        time.sleep(0.02)
    return found


@contextmanager
def process(*arguments: str, **how: Any) -> Generator[subprocess.Popen[str]]:
    """The command as a process of its own, killed at the end."""
    settings: dict[str, Any] = {"env": environment(), **how}
    with subprocess.Popen(
        [*DAFX, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def line_of(started: subprocess.Popen[str]) -> str:
    assert started.stdout is not None
    line = started.stdout.readline()
    assert line, started.stderr.read() if started.stderr else ""
    return line.strip()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """`dafx dev` with the app: the endpoint."""
    folder = tmp_path_factory.mktemp("served")
    app = Path(shutil.copy(APP, folder / "app.py"))
    with process("dev", str(app), "--port", "0", "--db", str(folder / "dafx.db"), "--json", "--no-reload") as started:
        said = json.loads(line_of(started))
        assert said["agents"] == ["Parrot", "Payer"]
        yield said["endpoint"]
        started.send_signal(signal.SIGTERM)
        assert started.wait(PATIENCE) == 0


@pytest.fixture
def client(served: str) -> Generator[DurableAIAgentClient]:
    with DurableAIAgentClient.connect(served) as client:
        yield client


class Terminal:
    """The command at a terminal: what is typed, and what is on the screen."""

    TAKES = "import fcntl,os,sys,termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.executable, sys.argv[1:])"

    def __init__(self, *arguments: str, endpoint: str, **more: str) -> None:
        self._screen, other = pty.openpty()
        self.shown = ""
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.TAKES, *DAFX, *arguments], stdin=other, stdout=other, stderr=other,
            start_new_session=True, env=environment(ENDPOINT=endpoint, **more),
        )  # fmt: skip
        os.close(other)

    def sees(self, pattern: str) -> str:
        """Wait until this is on the screen; what stands before it is not looked at again."""
        late = time.monotonic() + PATIENCE
        while (match := re.search(pattern, self.shown)) is None:
            assert time.monotonic() < late, self.shown
            if not self._read():
                raise AssertionError(f"it has ended, and shows {self.shown!r}")
        self.shown = self.shown[match.end() :]
        return match.group()

    def types(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def interrupts(self, pattern: str) -> None:
        """Press Ctrl+C until this is on the screen: readline loses one that comes while it makes ready."""
        late = time.monotonic() + PATIENCE
        while time.monotonic() < late:
            self.types("\x03")
            again = time.monotonic() + 3
            while time.monotonic() < again:
                if select.select([self._screen], [], [], 0.1)[0]:
                    self._read()
                if re.search(pattern, self.shown):
                    self.sees(pattern)
                    return
        raise AssertionError(f"Ctrl+C does nothing: {self.shown!r}")

    def ends(self) -> int:
        while self._read():
            pass
        return self.process.wait(PATIENCE)

    def _read(self) -> bool:
        if not select.select([self._screen], [], [], PATIENCE)[0]:
            raise AssertionError(f"nothing comes: {self.shown!r}")
        try:
            data = os.read(self._screen, 65_536)
        except OSError:  # so Linux says that nobody has the other end
            return False
        self.shown += data.decode(errors="replace").replace("\r\n", "\n")
        return bool(data)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._screen)


@pytest.fixture
def terminal(served: str) -> Generator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def open_it(*arguments: str, **how: str) -> Terminal:
        opened.append(Terminal(*arguments, **{"endpoint": served, **how}))
        return opened[-1]

    yield open_it
    for each in opened:
        each.close()


# --- The frame ----------------------------------------------------------------------------------------------------


COMMANDS = [
    "dev",
    "chat",
    "run",
    "worker",
    "scheduler",
    "threads",
    "turns",
    "inbox",
    "orchestrations",
    "doctor",
    "check",
]


def test_the_help_names_each_command_and_each_of_them_teaches_by_an_example() -> None:
    help_of_all = ran("--help")
    assert all(f"    {name}" in help_of_all for name in COMMANDS)
    assert "130  Ctrl+C" in help_of_all
    for name in ("dev", "check"):
        assert "example" in ran(name, "--help")
    assert "example" in ran("threads", "delete", "--help")


def test_a_mistake_of_the_user_is_said_in_a_line(tmp_path: Path) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    ran("turns", "list", endpoint=nowhere, code=4)
    ran("turns", "list", endpoint="localhost", code=1)
    ran("turns", "cancel", endpoint=nowhere, code=2)
    ran("run", "Parrot", " ", endpoint=nowhere, code=2)
    ran("threads", "import", "Parrot", "x", str(tmp_path / "no such file"), endpoint=nowhere, code=1)
    for content in ("x = (", "1 / 0", "import sys; sys.exit(3)", "x = 1"):
        (tmp_path / "app.py").write_text(content)
        ran("worker", str(tmp_path / "app.py"), endpoint=nowhere, code=2)
    ran("worker", str(tmp_path / "missing.py"), endpoint=nowhere, code=2)
    ran("worker", f"{APP}:Nobody", endpoint=nowhere, code=2)
    ran("check", str(APP), "--histories", str(tmp_path), code=2)
    ran("scheduler", "check", str(tmp_path / "missing.db"), code=1)


def test_a_reader_who_has_heard_enough_is_no_error(served: str) -> None:
    ran("run", "Parrot", "Hi", endpoint=served)
    for arguments in (["--help"], ["turns", "list"], ["threads", "list", "--json"]):
        with process(*arguments, env=environment(ENDPOINT=served)) as started:
            assert started.stdout is not None
            assert started.stderr is not None
            started.stdout.close()
            assert (started.wait(PATIENCE), started.stderr.read()) == (0, "")


def test_ctrl_c_ends_a_command_with_130_and_the_turn_goes_on(served: str, client: DurableAIAgentClient) -> None:
    with process("run", "Parrot", "sleep", "--turn", "ctrl-c", env=environment(ENDPOINT=served)) as started:
        turn = client.get_agent("Parrot").get_turn("ctrl-c")
        until(lambda: [each for each in client.turns.list(state="running") if each.correlation_id == "ctrl-c"])
        started.send_signal(signal.SIGINT)
        assert started.wait(PATIENCE) == 130
        assert started.stderr is not None
        assert started.stderr.read() == ""
    assert turn.status().state == "running"
    assert ran("turns", "cancel", "ctrl-c", endpoint=served) == "ctrl-c: cancelled\n"
    again = ran("turns", "cancel", "ctrl-c", "--reason", "another", endpoint=served)
    assert again == "ctrl-c: had ended before\n"


# --- Looking ------------------------------------------------------------------------------------------------------


def test_threads_and_turns_are_run_listed_shown_exported_and_deleted(served: str) -> None:
    [said] = records("run", "Parrot", "Hi", "--thread", "looked", "--turn", "looked-1", endpoint=served)
    assert (said["text"], said["thread"], said["turn"]) == ("You said: Hi", "looked", "looked-1")
    assert ran("run", "Parrot", "-", "--thread", "looked", endpoint=served, stdin="Again") == "You said: Again\n"
    [listed] = records("threads", "list", "--prefix", "looked", "--details", endpoint=served)
    assert (listed["agent"], listed["thread"], listed["state"], listed["entries"]) == ("Parrot", "looked", "idle", 4)
    shown = ran("threads", "show", "Parrot", "looked", endpoint=served)
    assert [line.split(maxsplit=1) for line in shown.splitlines()][:2] == [
        ["user", "Hi"],
        ["assistant", "You said: Hi"],
    ]
    found = [
        each for each in records("turns", "list", "--agent", "Parrot", endpoint=served) if each["thread"] == "looked"
    ]
    assert [each["state"] for each in found] == ["completed", "completed"]
    exported = ran("threads", "export", "Parrot", "looked", endpoint=served)
    ran("threads", "import", "Parrot", "copied", "-", endpoint=served, stdin=exported)
    [would] = records("threads", "delete", "Parrot", "copied", "--dry-run", endpoint=served)
    assert would == {"agent": "Parrot", "thread": "copied", "would_be": "deleted"}
    assert ran("threads", "show", "Parrot", "copied", endpoint=served) == shown
    ran("threads", "delete", "Parrot", "copied", endpoint=served)
    ran("threads", "show", "Parrot", "copied", endpoint=served, code=3)
    ran("threads", "export", "Parrot", "copied", endpoint=served, code=3)
    ran("threads", "reset", "Parrot", "looked", endpoint=served)
    ran("threads", "show", "Parrot", "looked", endpoint=served, code=3)
    ran("turns", "show", "nobody", endpoint=served, code=3)


def test_a_turn_that_failed_is_found_and_retried_and_one_is_followed(served: str) -> None:
    ran("run", "Parrot", "fail", "--turn", "failed-1", endpoint=served, code=1)
    assert [each["turn"] for each in records("turns", "list", "--state", "failed", endpoint=served)] == ["failed-1"]
    assert "dafx turns retry failed-1" in ran("turns", "show", "failed-1", endpoint=served)
    [would] = records("turns", "retry", "--agent", "Parrot", "--all", "--dry-run", endpoint=served)
    assert would == {"turn": "failed-1", "would_be": "retried"}
    [done] = records("turns", "retry", "failed-1", endpoint=served)
    assert done["retried"]
    assert "[failed: " in ran("turns", "tail", "failed-1", endpoint=served, code=1)
    ran("run", "Parrot", "Hi", "--turn", "tailed-1", endpoint=served)
    assert ran("turns", "tail", "tailed-1", endpoint=served) == "You said: Hi\n[completed]\n"


def test_orchestrations_are_started_told_and_purged_and_the_code_is_checked(served: str, tmp_path: Path) -> None:
    ran("orchestrations", "start", "waits", "--input", "2", "--id", "o1", endpoint=served)
    ran("orchestrations", "suspend", "o1", endpoint=served)
    until(lambda: records("orchestrations", "list", "--state", "suspended", endpoint=served))
    ran("orchestrations", "resume", "--state", "suspended", endpoint=served)
    ran("orchestrations", "raise", "o1", "more", "--data", "3", endpoint=served)
    until(lambda: records("orchestrations", "list", "--state", "completed", endpoint=served))
    history = tmp_path / "histories" / "o1.json"
    history.parent.mkdir()
    assert "output         5" in ran("orchestrations", "show", "o1", "--history", str(history), endpoint=served)
    app = tmp_path / "app.py"
    app.write_text(APP.read_text())
    assert ran("check", str(app), "--histories", str(history.parent)) == f"{history}: as recorded\n"
    app.write_text(APP.read_text().replace("return start + await", "await context.sleep(1)\n    return start + await"))
    assert "today's code says" in ran("check", str(app), "--histories", str(history.parent), code=5)
    ran("orchestrations", "purge", endpoint=served, code=2)
    assert ran("orchestrations", "purge", "--all", "--dry-run", endpoint=served) == "o1: would be purged\n"
    assert ran("orchestrations", "purge", "--all", endpoint=served) == "o1: purged\n"
    ran("orchestrations", "show", "o1", endpoint=served, code=3)
    ran("orchestrations", "terminate", "o1", endpoint=served, code=3)


def test_a_scheduler_is_looked_after(served: str, tmp_path: Path) -> None:
    [stats] = records("scheduler", "stats", endpoint=served)
    assert stats["is_writable"]
    [backup] = records("scheduler", "backup", "kept", endpoint=served)
    assert Path(backup["path"]).stat().st_size == backup["bytes"]
    ran("scheduler", "backup", "kept", endpoint=served, code=4)
    assert ran("scheduler", "check", backup["path"]) == f"{backup['path']} is whole\n"
    ran("scheduler", "check", stats["database"], code=1)  # which is in use
    restored = tmp_path / "restored.db"
    ran("scheduler", "restore", backup["path"], str(restored))
    ran("scheduler", "restore", backup["path"], str(restored), code=2)
    assert restored.stat().st_mode & 0o077 == 0
    with process("scheduler", "--db", str(restored), "--port", "0") as started:
        assert records("turns", "list", endpoint=line_of(started)) is not None
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(restored.read_bytes()[:8192] + b"\xff" * 8192)
    ran("scheduler", "check", str(damaged), code=5)
    ran("scheduler", "restore", str(damaged), str(tmp_path / "other.db"), code=5)
    assert not (tmp_path / "other.db").exists()


def test_the_doctor_finds_what_is_blocked_and_says_what_to_do(served: str, client: DurableAIAgentClient) -> None:
    client.get_agent("Nobody").start("Hi", correlation_id="stuck-1")
    out = ran("doctor", endpoint=served, code=5)
    assert re.search(
        r"PROBLEM +turns +turn stuck-1 of Nobody is blocked: no worker has Nobody\n +-> .*turns cancel", out
    )
    assert {each["about"] for each in records("doctor", endpoint=served, code=5)} >= {"versions", "agents", "disk"}
    ran("orchestrations", "terminate", "stuck-1", endpoint=served)
    assert "none is stuck" in ran("doctor", endpoint=served)
    assert "PROBLEM  scheduler" in ran("doctor", endpoint=f"http://127.0.0.1:{free_port()}", code=5)


# --- At a terminal ------------------------------------------------------------------------------------------------


def test_a_conversation_is_held_and_taken_up_again(terminal: Callable[..., Terminal]) -> None:
    chat = terminal("chat", "Parrot")
    thread = chat.sees(r"thread [-0-9a-f]{36}").split()[1]
    chat.sees("Parrot> ")
    chat.types("Hello\n")
    chat.sees("You said: Hello")
    chat.sees(r"\[0 \+ 0 tokens, 1 steps\]")
    chat.sees("Parrot> ")
    chat.types("fail\n")
    chat.sees("dafx: .*it is broken")
    chat.sees("Parrot> ")
    chat.types("\x04")
    chat.sees(f"dafx chat Parrot --thread {thread}")
    assert chat.ends() == 0
    again = terminal("chat", "Parrot", "--thread", thread)
    again.sees(r"assistant +You said: Hello")
    again.sees("Parrot> ")
    again.types("/exit\n")
    assert again.ends() == 0


def test_ctrl_c_cancels_the_turn_and_not_the_program(
    terminal: Callable[..., Terminal], client: DurableAIAgentClient
) -> None:
    chat = terminal("chat", "Parrot", "--thread", "interrupted")
    chat.sees("Parrot> ")
    chat.interrupts(r"\(Ctrl\+D ends\)")
    chat.sees("Parrot> ")
    chat.types("sleep\n")
    until(lambda: list(client.threads.list("Parrot", prefix="interrupted", state="running")))
    chat.interrupts(r"\[cancelled\]")
    chat.sees("Parrot> ")
    chat.types("Hello\n")
    chat.sees("You said: Hello")
    chat.sees("Parrot> ")
    chat.types("\x04")
    assert chat.ends() == 0


def test_a_tool_call_is_decided_inline_and_one_that_was_left_by_the_inbox(terminal: Callable[..., Terminal]) -> None:
    chat = terminal("chat", "Payer")
    chat.sees("Payer> ")
    chat.types("Pay\n")
    chat.sees(re.escape('Payer wants to call pay({"amount": 5})'))
    chat.types("a\n")
    chat.sees(r"\[approve: pay\]")
    chat.sees("<- paid 5")
    chat.sees("Done: paid 5")
    chat.sees("Payer> ")
    chat.types("Pay\n")
    chat.sees("leave it open")
    chat.types("\n")
    chat.sees("left open")
    inbox = terminal("inbox")
    inbox.sees("Payer wants to call pay")
    inbox.types("d\n")
    inbox.sees("Why?")
    inbox.types("too much\n")
    inbox.sees("deny: pay")
    assert inbox.ends() == 0
    chat.sees("Done: ")
    chat.sees("Payer> ")
    chat.types("\x04")
    assert chat.ends() == 0


def test_the_inbox_is_listed_and_decided_without_a_terminal(served: str, client: DurableAIAgentClient) -> None:
    client.get_agent("Payer").start("Pay", thread="asked", correlation_id="asked-1")
    [asked] = until(lambda: records("inbox", "list", "--agent", "Payer", endpoint=served))
    assert (asked["agent"], asked["tool"], asked["arguments"]) == ("Payer", "pay", {"amount": 5})
    assert asked["key"][:12] in ran("inbox", endpoint=served)
    assert asked["top"] == {"agent": "Payer", "thread": asked["thread"], "turn": asked["turn"]}
    assert records("inbox", "list", "--thorough", endpoint=served) == [asked]
    ran("inbox", "resolve", asked["key"], "retry", endpoint=served, code=2)
    [said] = records(
        "inbox", "approve", asked["key"][:8], "--arguments", '{"amount": 6}', "--by", "ana", endpoint=served
    )
    assert said["said"] == "approve: pay"
    assert client.get_agent("Payer").get_turn("asked-1").result(PATIENCE).text == "Done: paid 6"
    ran("inbox", "approve", asked["key"], endpoint=served, code=3)


# --- What serves --------------------------------------------------------------------------------------------------


def test_a_worker_is_killed_and_started_again_and_nothing_is_lost(tmp_path: Path) -> None:
    with process("scheduler", "--db", str(tmp_path / "dafx.db"), "--port", "0") as scheduler:
        endpoint = line_of(scheduler)
        with process("worker", str(APP), "--json", env=environment(ENDPOINT=endpoint)) as worker:
            assert json.loads(line_of(worker)) == {"hosts": ["Parrot", "Payer"]}
            ran("run", "Payer", "Pay", "--turn", "t1", "--no-wait", endpoint=endpoint)
            [asked] = until(lambda: records("inbox", "list", endpoint=endpoint))
            worker.kill()
            worker.wait(PATIENCE)
        until(lambda: ran("doctor", endpoint=endpoint, code=5).count("its worker has gone") == 2)
        stored = ran("inbox", "approve", asked["key"], "--timeout", "0.1", endpoint=endpoint)
        assert "is stored" in stored
        with process("worker", f"{APP}:Payer", env=environment(ENDPOINT=endpoint)) as worker:
            assert ran("turns", "tail", "t1", endpoint=endpoint).endswith("Done: paid 5\n[completed]\n")
            worker.send_signal(signal.SIGINT)
            assert worker.wait(PATIENCE) == 0


def test_dev_loads_what_has_changed_and_loses_no_turn(tmp_path: Path) -> None:
    app = Path(shutil.copy(APP, tmp_path / "app.py"))
    with process("dev", str(app), "--port", "0", "--db", str(tmp_path / "dafx.db"), "--json") as dev:
        endpoint = json.loads(line_of(dev))["endpoint"]
        ran("run", "Payer", "Pay", "--turn", "t1", "--no-wait", endpoint=endpoint)
        [asked] = until(lambda: records("inbox", "list", endpoint=endpoint))
        app.write_text(app.read_text() + "\nx = (\n")
        assert dev.stderr is not None
        assert "was never closed" in dev.stderr.readline()
        assert ran("run", "Parrot", "Hi", endpoint=endpoint) == "You said: Hi\n"
        app.write_text(APP.read_text().replace("You said", "You have said").replace("Done:", "New:"))
        assert json.loads(line_of(dev)) == {"reloaded": ["Parrot", "Payer"]}
        assert ran("run", "Parrot", "Hi", endpoint=endpoint) == "You have said: Hi\n"
        ran("inbox", "approve", asked["key"], endpoint=endpoint)
        assert ran("turns", "tail", "t1", endpoint=endpoint).endswith("New: paid 5\n[completed]\n")
        dev.send_signal(signal.SIGINT)
        assert dev.wait(PATIENCE) == 0


def test_dev_with_nothing_given_has_a_demo_that_answers(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    without = dict.fromkeys(("OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT"), "")
    with process("dev", "--port", "0", "--json", cwd=tmp_path, env=environment(**without)) as dev:
        said = json.loads(line_of(dev))
        assert said["agents"] == ["Demo"]
        if os.environ.get("DAFX_REQUIRE_LOCAL_MODEL"):
            assert ran("run", "Demo", "Say hello.", endpoint=said["endpoint"]).strip()
