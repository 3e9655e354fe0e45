"""Where the rivals are on this machine, in which versions, and how they come there.

A folder holds an environment for each of them and Restate's server; Postgres is the machine's.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs

PACKAGES: Mapping[str, tuple[str, ...]] = {
    "dbos": ("dbos==3.4.0",),
    "restate": ("restate-sdk[serde]==1.3.0", "hypercorn==0.18.0", "httpx==0.28.1"),
    "langgraph": ("langgraph==1.2.24", "langgraph-checkpoint-sqlite==3.1.2"),
}
"""What each environment is made of; the first is the one whose version is told."""

SERVER = "@restatedev/restate-server@1.7.12"
POSTGRES_USER = "postgres"
"""Who runs Postgres where this is run by root, whom Postgres refuses."""


class Absent(Exception):
    """A rival, or a tool that measures it, is not on this machine."""


def default_home() -> Path:
    """The folder that the rivals are kept in, unless another is named."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("DAFX_RIVALS_HOME") or caches / "dafx" / "rivals")


def _absolute(path: Path) -> Path:
    # Not resolved: a Python of an environment is a link, which says what the environment is.
    return path.absolute()


def _absolute_if_any(path: Path | None) -> Path | None:
    return path and path.absolute()


@attrs.frozen(kw_only=True)
class Installed:
    """Where things are; what was named by hand comes before what `prepare` made."""

    home: Path = attrs.field(converter=_absolute)
    """What `prepare` made."""
    pythons: Mapping[str, Path] = attrs.field(factory=dict[str, Path])
    """By rival."""
    restate_server: Path | None = attrs.field(default=None, converter=_absolute_if_any)
    """The program."""
    postgres: Path | None = attrs.field(default=None, converter=_absolute_if_any)
    """The folder of its programs."""

    def python(self, rival: str) -> str:
        """The Python of an environment that has a rival.

        Raises:
            Absent: There is none.
        """
        python = str(self.pythons.get(rival, self.home / rival / "bin" / "python").absolute())
        try:
            subprocess.run([python, "-c", f"import {rival}"], check=True, capture_output=True, timeout=120)
        except (OSError, subprocess.SubprocessError) as error:
            raise Absent(f"{python} has no {rival}: run `python -m tests.benchmarks.rivals prepare`") from error
        return python

    def server(self) -> str:
        """Restate's server.

        Raises:
            Absent: There is none.
        """
        found = [str(self.restate_server)] if self.restate_server else self._servers()
        for file in found:
            if os.access(file, os.X_OK):
                return file
        raise Absent("there is no restate-server: run `python -m tests.benchmarks.rivals prepare`")

    def _servers(self) -> list[str]:
        packed = self.home / "restate-server" / "node_modules" / "@restatedev"
        return [*map(str, packed.glob("restate-server-*/bin/restate-server")), shutil.which("restate-server") or ""]

    def postgres_program(self, name: str) -> str:
        """A program of Postgres, such as `initdb`.

        Raises:
            Absent: There is none, or nobody who may run it.
        """
        folders = [self.postgres] if self.postgres else sorted(Path("/usr/lib/postgresql").glob("*/bin"))[::-1]
        found = next((str(folder / name) for folder in folders if (folder / name).exists()), shutil.which(name))
        if not found:
            raise Absent("there is no Postgres: `apt-get install postgresql`, or name its programs with --postgres")
        self.postgres_user()
        return found

    def postgres_user(self) -> str | None:
        """Who runs it, where that is not who runs this.

        Raises:
            Absent: Root cannot, and there is nobody else.
        """
        if os.geteuid():
            return None
        try:
            pwd.getpwnam(POSTGRES_USER)
        except KeyError as error:
            raise Absent(f"root may not run Postgres, and there is no user `{POSTGRES_USER}`") from error
        return POSTGRES_USER

    def versions(self) -> dict[str, str]:
        """Of what is there."""

        def told(*command: str) -> str:
            done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120, cwd="/")
            return done.stdout.strip()

        found: dict[str, str] = {}
        for rival, packages in PACKAGES.items():
            names = [package.partition("==")[0].partition("[")[0] for package in packages]
            code = f"from importlib.metadata import version as v; print(*[d + ' ' + v(d) for d in {names}], sep=', ')"
            try:
                found[rival] = told(self.python(rival), "-c", code)
            except (Absent, subprocess.SubprocessError):
                continue
        for name, of in (("restate-server", self.server), ("postgres", lambda: self.postgres_program("postgres"))):
            try:
                found[name] = told(of(), "--version")
            except (Absent, OSError, subprocess.SubprocessError):
                continue
        return found


def strace() -> str:
    """The program that counts system calls.

    Raises:
        Absent: There is none.
    """
    if found := shutil.which("strace"):
        return found
    raise Absent("there is no strace: `apt-get install strace`")


def prepare(home: Path) -> None:
    """Make what is not there yet, and say what has to be installed by hand.

    Raises:
        subprocess.CalledProcessError: Something could not be installed.
    """
    installed = Installed(home=home)
    home = installed.home
    for rival, packages in PACKAGES.items():
        try:
            installed.python(rival)
        except Absent:
            print(f"{rival}: {', '.join(packages)}", flush=True)
            venv.create(home / rival, with_pip=True, clear=True)
            python = str(home / rival / "bin" / "python")
            subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    try:
        installed.server()
    except Absent:
        if npm := shutil.which("npm"):
            print(SERVER, flush=True)
            folder = home / "restate-server"
            folder.mkdir(parents=True, exist_ok=True)
            # The program comes in the package; what runs when it is installed only reports that it was.
            options = ("--ignore-scripts", "--no-fund", "--no-audit", "--prefix", str(folder))
            subprocess.run([npm, "install", *options, SERVER], check=True)
        else:
            print("there is no npm, which Restate's server comes by: `apt-get install npm`", file=sys.stderr)
    by_hand: tuple[Callable[[], str], ...] = (lambda: installed.postgres_program("postgres"), strace)
    for found in by_hand:
        try:
            found()
        except Absent as error:
            print(error, file=sys.stderr)
    for name, version in installed.versions().items():
        print(f"{name}: {version}")
