"""What is in a file of a user: agents, orchestrations, or a worker of their own."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs

from dafx_actors.agents import AgentDefinition
from dafx_actors.cli._io import Mistake
from dafx_actors.ids import AGENT_DEFINITION
from dafx_actors.orchestration._context import is_orchestrator
from dafx_actors.worker._worker import DurableAIAgentWorker


@attrs.frozen(kw_only=True)
class App:
    """What `module:object`, or a file, names."""

    name: str
    agents: tuple[Any, ...] = ()
    orchestrators: tuple[Any, ...] = ()
    worker: DurableAIAgentWorker | None = None
    """One that the file has made, with all that it hosts."""

    def hosted(self, endpoint: str | None, taskhub: str | None) -> DurableAIAgentWorker:
        """The worker that hosts it.

        Raises:
            ConfigurationError: Something of it cannot be hosted; lists every mistake.
        """
        if self.worker is not None:
            return self.worker
        worker = DurableAIAgentWorker.connect(endpoint, taskhub)
        worker.add_agent(*self.agents)
        for each in self.orchestrators:
            worker.add_orchestrator(each)
        return worker

    @property
    def agent_names(self) -> list[str]:
        """The names of its agents; of a worker's, too."""
        names = self.worker.registered_agent_names if self.worker is not None else map(_name, self.agents)
        return sorted(names)


def load(target: str) -> App:
    """Import a file, or a module, and see what is in it, or in the object that is named behind a colon.

    Raises:
        Mistake: It cannot be imported, or there is nothing to host in it.
    """
    where, colon, attribute = target.rpartition(":") if ":" in target[2:] else (target, "", "")
    module = _imported(where)
    if not colon:
        return _all_of(module, target)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise Mistake(f"{where} has no {attribute!r}; it has: {', '.join(_public(module)) or 'nothing'}")
        found = getattr(found, part)
    if inspect.isfunction(found) and not is_orchestrator(found):
        found = _called(found, target)
    app = _app(target, [found])
    if app is None:
        raise Mistake(f"{target} is a {type(found).__name__}: name an agent, an orchestrator, or a worker")
    return app


def _all_of(module: ModuleType, target: str) -> App:
    app = _app(target, list(vars(module).values()))
    if app is None:
        raise Mistake(f"there is no agent in {target}: a class with `@durable_agent`, at the top level of the file")
    return app


def _app(name: str, found: list[Any]) -> App | None:
    unique = list({id(each): each for each in found}.values())
    workers = [each for each in unique if isinstance(each, DurableAIAgentWorker)]
    if len(workers) > 1:
        raise Mistake(f"there are {len(workers)} workers in {name}; name one: {name}:worker")
    agents = tuple(each for each in unique if _is_agent(each))
    orchestrators = tuple(each for each in unique if inspect.isfunction(each) and is_orchestrator(each))
    if not (workers or agents or orchestrators):
        return None
    return App(name=name, agents=agents, orchestrators=orchestrators, worker=workers[0] if workers else None)


def _is_agent(each: Any) -> bool:
    return isinstance(inspect.getattr_static(each, AGENT_DEFINITION, None), AgentDefinition) and (
        inspect.isclass(each) or not inspect.ismodule(each)
    )


def _name(agent: Any) -> str:
    definition: AgentDefinition = getattr(agent, AGENT_DEFINITION)
    return definition.name


def _public(module: ModuleType) -> Iterator[str]:
    return (name for name in vars(module) if not name.startswith("_"))


def _called(make: Any, target: str) -> Any:
    try:
        return make()
    except Exception as error:
        raise Mistake(f"{target}() fails: {_where(error)}") from error


def _imported(where: str) -> ModuleType:
    path = Path(where)
    try:
        if path.suffix == ".py" or path.exists():
            return _from_file(path)
        _find_in(Path.cwd())
        return importlib.import_module(where)
    except Mistake:
        raise
    except Exception as error:
        raise Mistake(f"{where} cannot be imported: {_where(error)}") from error
    except SystemExit as error:
        raise Mistake(f"{where} ends the program when it is imported: `sys.exit({error.code!r})`") from error


def _find_in(folder: Path) -> None:
    """Have the modules beside a file found, as where Python runs it."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise Mistake(f"there is no file {path}")
    name = path.stem if path.stem.isidentifier() and path.stem not in sys.modules else f"dafx_app_{path.stem}"
    _find_in(path.resolve().parent)
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise Mistake(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _where(error: BaseException) -> str:
    """An error in a line, with the place in the user's own code."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {error.msg}"
    frames = [each for each in traceback.extract_tb(error.__traceback__) if not _is_ours(each.filename)]
    at = f"{frames[-1].filename}:{frames[-1].lineno}: " if frames else ""
    said = f"{type(error).__name__}: {error}".removesuffix(": ")
    return f"{at}{said}"


def _is_ours(file: str) -> bool:
    return file.startswith(("<frozen", str(Path(__file__).parent.parent)))
