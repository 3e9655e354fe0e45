"""The peer's environment: `python -m tests.interop.environment` makes it, once, and prints its Python.

Of its own, since the peer needs other packages than ours. It is kept in the folder that `DAFX_PEER_HOME` names, by
default among the user's caches; `DAFX_PEER_PYTHON` names an environment that has been made before.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import venv
from pathlib import Path

PEER = "agent-framework-durabletask==1.0.0b260922"
_TRIED = f"import importlib.metadata as m; assert m.version('{PEER.split('==')[0]}') == '{PEER.split('==')[1]}'"


class NoPeer(Exception):
    """The peer cannot be had here."""


def home() -> Path:
    """The folder that the environment is kept in."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Path(os.environ.get("DAFX_PEER_HOME") or caches / "dafx" / f"{PEER.replace('==', '-')}-py{version}")


@functools.cache
def peer_python() -> Path:
    """The Python of an environment that has the peer.

    Raises:
        NoPeer: There is none.
    """
    given = os.environ.get("DAFX_PEER_PYTHON")
    python = Path(given) if given else home() / "bin" / "python"
    try:
        subprocess.run([python, "-c", _TRIED], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise NoPeer(f"{PEER} is not installed: run `python -m tests.interop.environment`") from error
    return python


def make() -> Path:
    """Make the environment, unless it is there.

    Raises:
        NoPeer: It could not be installed.
    """
    try:
        return peer_python()
    except NoPeer:
        pass
    if os.environ.get("DAFX_PEER_PYTHON"):
        raise NoPeer(f"the environment that DAFX_PEER_PYTHON names has no {PEER}")
    venv.create(home(), with_pip=True, clear=True)
    python = str(home() / "bin" / "python")
    try:
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--pre", PEER], check=True)
    except subprocess.CalledProcessError as error:
        raise NoPeer(f"{PEER} could not be installed") from error
    return peer_python()


if __name__ == "__main__":
    print(make())
