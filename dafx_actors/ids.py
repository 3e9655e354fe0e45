"""Names and ids: how agents, threads and turns are called on the wire.

The only place that spells `dafx-`, the prefix that the peer gave to its entities. A Durable Task entity
id is `@name@key`; schedulers lower-case the name and refuse ids of more than 100 characters.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
import uuid
from typing import Any

import attrs
from durabletask.entities import EntityInstanceId

from dafx_actors.errors import ConfigurationError, InvalidThreadId
from dafx_actors.transcript import Json

_PREFIX = "dafx-"
_ASKS = "asks-"
"""With the prefix: how the names of the entities begin that are the inbox."""
_MAX_INSTANCE_ID = 100
_CALL_KEY = 40
"""Hexadecimal digits: 160 bits."""
_MAX_CALL_KEY = 64
_ASKS_KEY = 31
"""Hexadecimal digits: what is left in an id behind the longest name of an agent."""
_TELLING = 24
"""Hexadecimal digits that name the thread in the id of an orchestration that tells it something."""
_AGENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_FORBIDDEN_IN_KEYS = re.compile(r"[@/\\#?\x00-\x20\x7f]")
_UNSEEN = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Categories of characters that nobody sees: controls, halves of pairs, separators of lines and paragraphs."""
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""What turns a text round, so that an id looks like another."""


AGENT_DEFINITION = "__dafx_agent__"
"""Where `@durable_agent` leaves what it was told."""


def agent_name(agent: str | type | object) -> str:
    """The name of an agent, given by name, class or instance.

    Raises:
        ConfigurationError: It is no agent, or cannot be the name of one.
    """
    if isinstance(agent, str):
        if mistake := agent_name_mistake(agent):
            raise ConfigurationError(mistake)
        return agent
    definition: Any = getattr(agent, AGENT_DEFINITION, None)
    if definition is None:
        raise ConfigurationError(f"{agent!r} is not an agent; was its class decorated with `@durable_agent`?")
    name: str = definition.name
    return name


def agent_name_mistake(name: object) -> str | None:
    """Say what is wrong with `name` as an agent's name, or None. At most 57 characters leave room for a UUID."""
    longest = _MAX_INSTANCE_ID - len("@" + _PREFIX + "@") - len(str(uuid.UUID(int=0)))
    if not isinstance(name, str) or not name:
        return "an agent needs a name"
    if not _AGENT_NAME.fullmatch(name):
        return f"{name!r} cannot be an agent's name: use letters, digits, _ and -, and begin with a letter"
    if len(name) > longest:
        return f"{name!r} cannot be an agent's name: it is longer than {longest} characters"
    if name.lower().startswith(_ASKS):
        return f"{name!r} cannot be an agent's name: names that begin with {_ASKS!r} are those of the inbox"
    return None


def entity_name(agent: str) -> str:
    """The entity that holds the threads of `agent`, as it is registered and printed."""
    return f"{_PREFIX}{agent}"


def turn_name(agent: str) -> str:
    """The orchestration that runs a turn of `agent`."""
    return f"{_PREFIX}{agent}.turn"


def model_step_name(agent: str) -> str:
    """The activity that makes a model call of `agent`."""
    return f"{_PREFIX}{agent}.model"


def tool_step_name(agent: str, tool: str) -> str:
    """The activity that calls a tool of `agent`; each has its own, so that a worker gets only calls of tools it has."""
    return f"{_PREFIX}{agent}.tool.{tool}"


def tell_name(agent: str) -> str:
    """The orchestration that tells a thread of `agent` something, for a client or a step, and gives its answer."""
    return f"{_PREFIX}{agent}.tell"


def telling_id(thread: AgentThread, told: Json = None) -> str:
    """The id of an orchestration that tells this thread something; it begins with `telling_prefix`.

    A new one; or, by what is `told` for a person, the same where the same is told again. A hash over all of that, a
    signature too, so that what somebody else tells has another id.
    """
    if told is None:
        return telling_prefix(thread) + uuid.uuid4().hex
    what = json.dumps([thread.agent, thread.thread_id, told], sort_keys=True)
    return telling_prefix(thread) + hashlib.sha256(what.encode()).hexdigest()[:_CALL_KEY]


def telling_prefix(thread: AgentThread) -> str:
    """How the ids of the orchestrations begin that tell this thread something: by it they are found again."""
    digest = hashlib.sha256(str(thread.entity_id).encode()).hexdigest()[:_TELLING]
    return f"tell-{digest}-"


def call_key(thread: AgentThread, turn: str, step: int, index: int, retry: int = 0) -> str:
    """The key of a tool call of a turn: the same in every repeat, where a model's own ids of calls may come again.

    It is also the id of the turn that an agent used as a tool runs for it. A hash over all that tells calls apart: so
    no two calls share one, and an id that somebody picks for a turn of theirs does not stand in a call's place. A turn
    that failed and goes on (`retry`, the number of times that it was taken up again) counts its steps anew.
    """
    place = json.dumps([str(thread.entity_id), turn, step, index, *([retry] if retry else [])])
    return hashlib.sha256(place.encode()).hexdigest()[:_CALL_KEY]


def earlier_call_key(turn: str, step: int, index: int) -> str:
    """The key of a tool call in turns of versions that made it of the turn's id alone."""
    place = f".{step}.{index}"
    if len(turn) + len(place) > _MAX_CALL_KEY:
        turn = hashlib.sha256(turn.encode()).hexdigest()[:32]
    return turn + place


def probe_name(agent: str) -> str:
    """The activity that asks the scheduler what became of another turn of `agent`."""
    return f"{_PREFIX}{agent}.probe"


def agent_of_turn(orchestration: str) -> str | None:
    """The agent whose turns `orchestration` runs, or None if it runs no turns."""
    if orchestration.startswith(_PREFIX) and orchestration.endswith(".turn"):
        return orchestration[len(_PREFIX) : -len(".turn")]
    return None


def agent_of_entity(name: str) -> str | None:
    """The agent whose threads are entities of this name, which schedulers write in small letters; else None."""
    if name.lower().startswith(_PREFIX + _ASKS):
        return None
    return name[len(_PREFIX) :] or None if name.startswith(_PREFIX) else None


def asks_name(agent: str) -> str:
    """The entity that holds what a turn of `agent` asks a person, as it is registered."""
    return f"{_PREFIX}{_ASKS}{agent}"


def asks_id(agent: str, turn: str) -> EntityInstanceId:
    """The entity that holds what this turn asks a person; its key is a hash where the turn's id is too long for one."""
    name = asks_name(agent)
    if len(f"@{name}@{turn}") > _MAX_INSTANCE_ID or instance_id_mistake(turn) is not None:
        turn = hashlib.sha256(turn.encode(errors="replace")).hexdigest()[:_ASKS_KEY]
    return EntityInstanceId(name, turn)


def asks_prefix(agent: str | None) -> str:
    """How the ids begin of the entities that hold what turns of an agent, or of any, ask a person."""
    return f"@{_PREFIX}{_ASKS}" if agent is None else f"@{asks_name(agent).lower()}@"


def tool_of_step(agent: str, activity: str) -> str | None:
    """The tool of `agent` that `activity` calls, or None if it calls none."""
    prefix = tool_step_name(agent, "")
    return activity[len(prefix) :] if activity.startswith(prefix) else None


def threads_prefix(agent: str | None, prefix: str) -> str:
    """How the ids begin of the entities that are threads of an agent, or of any; and whose keys begin so."""
    return f"@{_PREFIX}" if agent is None else f"@{entity_name(agent).lower()}@{prefix}"


def is_ours(name: str) -> bool:
    """Say whether an orchestration, an activity or an entity of this name belongs to an agent."""
    return name.startswith(_PREFIX)


def new_id() -> str:
    """A new id for a thread or a turn: a UUID in its usual form."""
    return str(uuid.uuid4())


def new_id_mistake(value: str) -> str | None:
    """Say what is wrong with `value` as an id that is given now, or None; ids of before are used on as they are."""
    for character in value:
        if unicodedata.category(character) in _UNSEEN or character in _DIRECTIONS:
            return f"{character!a} is not allowed in it: nobody could see it"
    return None


def instance_id_mistake(value: object) -> str | None:
    """Say what is wrong with `value` as the id of a turn (an orchestration instance), or None."""
    if not isinstance(value, str):
        return f"it is no text but a {type(value).__name__}"
    if not value:
        return "it is empty"
    if found := _FORBIDDEN_IN_KEYS.search(value):
        return f"{found.group()!r} is not allowed in it"
    if len(value) > _MAX_INSTANCE_ID:
        return f"it is longer than {_MAX_INSTANCE_ID} characters"
    return None


@attrs.frozen
class AgentThread:
    """One conversation with one agent. `str(thread)` is its id, which another process can take up again."""

    agent: str
    """The agent's name."""
    thread_id: str
    """Unique among the threads of that agent; at most about 90 characters."""

    def __attrs_post_init__(self) -> None:
        """Refuse what could not be stored.

        Raises:
            InvalidThreadId: The id is empty, too long, or has characters that an entity key cannot hold.
        """
        reason = instance_id_mistake(self.thread_id)
        if reason is None and (too_long := len(str(self.entity_id)) - _MAX_INSTANCE_ID) > 0:
            reason = f"it is {too_long} characters too long for agent {self.agent!r}"
        if reason is not None:
            raise InvalidThreadId(self.thread_id, reason)

    def __str__(self) -> str:
        return self.thread_id

    @property
    def entity_id(self) -> EntityInstanceId:
        """The Durable Task entity that is this thread."""
        return EntityInstanceId(entity_name(self.agent), self.thread_id)


def thread_of(agent: str, given: AgentThread | str) -> AgentThread:
    """The thread of `agent` that a caller names: itself, or by its id.

    Raises:
        InvalidThreadId: The id cannot be one.
        ValueError: It belongs to another agent.
    """
    thread = given if isinstance(given, AgentThread) else AgentThread(agent, given)
    if thread.agent != agent:
        raise ValueError(
            f"thread {thread} belongs to agent {thread.agent!r}, not to {agent!r}; "
            f"take one of {agent!r} by its `get_new_thread()` or `get_thread(id)`"
        )
    return thread


def check_correlation_id(correlation_id: str) -> None:
    """See that a turn can have this id.

    Raises:
        ValueError: It cannot.
    """
    if mistake := instance_id_mistake(correlation_id) or new_id_mistake(correlation_id):
        raise ValueError(f"{correlation_id!r} cannot be a correlation id: {mistake}")


def conversation(thread: AgentThread | str | None, session: AgentThread | str | None) -> AgentThread | str | None:
    """The conversation that a caller names as `thread=`, or as `session=`.

    Raises:
        TypeError: Both are given.
    """
    if thread is not None and session is not None:
        raise TypeError("`session` is another name of `thread`: give one of the two")
    return thread if session is None else session
