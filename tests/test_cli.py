"""The command `dafx` without a subcommand, and what its scheduler leaves in a folder."""

from __future__ import annotations

import subprocess
import sys
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path

import pytest

from dafx_actors.scheduler import EmbeddedScheduler

ROOT = Path(__file__).parent.parent


def dafx(*arguments: str) -> str:
    """What it says on standard output; it ends well and says nothing else."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "dafx_actors.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_alone_it_shows_its_help() -> None:
    assert dafx() == dafx("--help")
    assert dafx().startswith("usage: dafx ")


def test_it_says_its_version() -> None:
    assert dafx("--version") == f"dafx {version('dafx-actors')}\n"


@pytest.mark.parametrize("ignoring", [ROOT / ".gitignore", ROOT / "examples" / ".gitignore"], ids=["clone", "examples"])
def test_what_a_scheduler_leaves_is_ignored_by_git(ignoring: Path, tmp_path: Path) -> None:
    patterns = ignoring.read_text("utf-8").splitlines()
    with EmbeddedScheduler(db=tmp_path / "dafx.db").on_a_thread():
        running = [file.name for file in tmp_path.iterdir()]
    left = [file.name for file in tmp_path.iterdir()]
    assert "dafx.db" in left
    found = {*running, *left, "dafx.db-backups"}
    assert [name for name in found if not any(fnmatch(name, pattern) for pattern in patterns)] == []
