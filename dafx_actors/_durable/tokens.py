"""The token of an embedded scheduler on this machine: where it lies, and who sends it.

`dafx scheduler --token` keeps a token in the user's own state folder, in a file that is named by the port and says
which process listens there. Clients and workers of the same user that connect to that port on this machine send it, as
long as that process lives. Elsewhere `DAFX_TOKEN_FILE` names a file with the token.
"""

from __future__ import annotations

import json
import logging
import os
import stat
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs

from dafx_actors._secrets import keep
from dafx_actors.errors import ConfigurationError

logger = logging.getLogger("dafx_actors._tokens")

FILE_VARIABLE = "DAFX_TOKEN_FILE"
_OTHERS = 0o077
_DEFAULT_PORT = 8080
_FOREVER = 2**34
"""Seconds since 1970 at which the token ends: it does not."""


def is_loopback(endpoint: str) -> bool:
    """Whether an address is of this machine itself, so that what is sent there crosses no network."""
    host, _ = _split(endpoint)
    return host in {"localhost", "::1"} or (host.startswith("127.") and host.replace(".", "").isdigit())


def _split(endpoint: str) -> tuple[str, int]:
    """The host and the port; no host, where it is no address, which others say in their own words."""
    try:
        parts = urlsplit(endpoint if "://" in endpoint else f"http://{endpoint}")
        return (parts.hostname or "").lower(), parts.port or _DEFAULT_PORT
    except ValueError:
        return "", _DEFAULT_PORT


@attrs.frozen
class SchedulerToken:
    """Gives the token to durabletask, as a credential of azure-identity would; of either kind, since it never waits."""

    endpoint: str

    def get_token(self, *_: str, **__: Any) -> Any:
        """What durabletask sends as `authorization: Bearer ...`.

        Raises:
            ConfigurationError: The file that is named cannot be read.
        """
        from azure.core.credentials import AccessToken

        token = token_for(self.endpoint)
        keep(self, token)
        return AccessToken(token or "none", _FOREVER)


def token_for(endpoint: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """The token for a scheduler at this address, where there is one.

    Raises:
        ConfigurationError: The file that is named cannot be read.
    """
    if named := environ.get(FILE_VARIABLE):
        return read_token(named)
    return _published(_split(endpoint)[1], environ) if is_loopback(endpoint) else None


def read_token(path: str | os.PathLike[str]) -> str:
    """The token in a file, which nobody else may read; its permissions are mended where they can be.

    Raises:
        ConfigurationError: It cannot be read, is empty, holds control characters, or others can read it.
    """
    try:
        token = Path(path).read_text(encoding="utf-8").strip()
        mend_permissions(path)
    except (OSError, ValueError) as error:
        raise ConfigurationError((f"The token cannot be read: {error}",)) from error
    if not token:
        raise ConfigurationError((f"The token file {path} is empty.",))
    if not (token.isascii() and token.isprintable()):
        raise ConfigurationError(
            (f"The token in {path} holds characters that cannot be sent; use letters and digits.",)
        )
    return token


def mend_permissions(path: str | os.PathLike[str]) -> None:
    """See that nobody else can read a file.

    Raises:
        OSError: They can, and that cannot be mended.
    """
    if sys.platform == "win32":
        return
    mode = stat.S_IMODE(os.stat(path).st_mode)  # noqa: PTH116 - a name such as a path
    if not mode & _OTHERS:
        return
    try:
        os.chmod(path, mode & ~_OTHERS)  # noqa: PTH101 - likewise
    except OSError as error:
        raise PermissionError(
            f"other users of this machine can read {os.fspath(path)}, and its permissions cannot be changed ({error}); "
            "give it those of its owner alone (chmod 600)"
        ) from error
    logger.warning("Other users could read %s; now its owner alone can", path)


# --- In the user's state folder ------------------------------------------------------------------------------------


def _folder(environ: Mapping[str, str]) -> Path:
    state = environ.get("XDG_STATE_HOME")
    if not state and sys.platform == "win32":
        state = environ.get("LOCALAPPDATA")
    return (Path(state) if state else Path.home() / ".local" / "state") / "dafx"


def _file(port: int, environ: Mapping[str, str]) -> Path:
    return _folder(environ) / f"scheduler-{port}.json"


def kept_token(port: int, environ: Mapping[str, str] = os.environ) -> str:
    """The token for a scheduler on this port: that of the last time, which its clients know, else a new one."""
    known = _read(_file(port, environ))
    token = known.get("token")
    if isinstance(token, str) and token:
        return token
    import secrets  # a scheduler's alone; clients and workers begin sooner without it

    return secrets.token_urlsafe(32)


@contextmanager
def published(port: int, token: str, environ: Mapping[str, str] = os.environ) -> Generator[Path]:
    """Let this user's programs find the token, as long as this process listens on the port.

    Raises:
        ConfigurationError: The state folder cannot be written.
    """
    file = _file(port, environ)
    entry = {"token": token, "pid": os.getpid(), "started": _started(os.getpid())}
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(file, json.dumps(entry))
    except OSError as error:
        message = f"The token cannot be kept in {file}: {error}. Set XDG_STATE_HOME, or use --token-file."
        raise ConfigurationError((message,)) from error
    try:
        yield file
    finally:
        # The token stays, for the next time; that nobody listens is said at once.
        with suppress(OSError):
            _write(file, json.dumps({"token": token}))


def _write(file: Path, text: str) -> None:
    """As a whole and private from the beginning."""
    import tempfile  # likewise

    descriptor, name = tempfile.mkstemp(dir=file.parent)  # for its owner alone
    try:
        with open(descriptor, "w", encoding="utf-8") as opened:  # noqa: PTH123 - a descriptor
            opened.write(text)
        os.replace(name, file)  # noqa: PTH105 - likewise
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _read(file: Path) -> dict[str, Any]:
    try:
        if sys.platform != "win32" and file.stat().st_uid != os.getuid():
            return {}  # another user's, who means to be sent something
        known: object = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}  # pyright: ignore[reportUnknownVariableType]


def _published(port: int, environ: Mapping[str, str]) -> str | None:
    known = _read(_file(port, environ))
    pid, token = known.get("pid"), known.get("token")
    if not (isinstance(pid, int) and isinstance(token, str) and _lives(pid)):
        return None
    return token if known.get("started") == _started(pid) else None


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def _started(pid: int) -> str | None:
    """When a process was started, where the system tells: a number may come again."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError, ValueError):
        return None
