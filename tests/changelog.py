"""The page CHANGELOG.md, as it should be: what is not released yet is built of `changelog.d`, the rest is kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TOP = """# Changes

Each version is told in full: what was added, what is done otherwise, what was mended. Built of `changelog.d`; see
[CONTRIBUTING.md](CONTRIBUTING.md).

"""
BEGIN, END = "<!-- not released -->", "<!-- releases -->"


def page() -> str:
    """The page as it should be."""
    draft = subprocess.run(
        [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "Not released", "--date", ""],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    known = ROOT / "CHANGELOG.md"
    released = known.read_text(encoding="utf-8").partition(END)[2] if known.exists() else "\n"
    return f"{TOP}{BEGIN}\n{draft.strip()}\n\n{END}{released}"


if __name__ == "__main__":
    sys.stdout.write(page())
