"""mypy and pyright, both strict, agree with the programs in `typing/`: on what must type-check, and what must not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
USERS = ["tests/typing/users.py", "tests/typing/tool_users.py"]


@pytest.mark.timeout(300)
def test_mypy_agrees(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path), *USERS]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.timeout(300)
@pytest.mark.skipif(
    shutil.which("pyright") is None and not Path(sys.executable).with_name("pyright").exists(),
    reason="pyright is not installed",
)
def test_pyright_agrees(tmp_path: Path) -> None:
    rules = tmp_path / "pyrightconfig.json"
    rules.write_text(
        json.dumps(
            {
                "include": [str(ROOT / user) for user in USERS],
                "extraPaths": [str(ROOT)],
                "typeCheckingMode": "strict",
                "pythonVersion": "3.11",
                "reportUnnecessaryTypeIgnoreComment": "error",
                "enableTypeIgnoreComments": False,
            }
        )
    )
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "-p", str(rules)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
