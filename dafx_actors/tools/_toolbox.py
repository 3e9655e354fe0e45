"""The tools of one agent on a worker: what the model is offered, how its calls are to be made, and making them."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import attrs

from dafx_actors._json.forms import FORM
from dafx_actors._json.shapes import load_json, shown
from dafx_actors._json.steps import AgentPlan, ApprovalPlan, Failed, NotMade, Plan, Returned, Unknown
from dafx_actors._raised import attempted, contained, in_words, is_ctrl_c, kind_of, text_of
from dafx_actors._secrets import without, without_in
from dafx_actors.decisions import DecisionKind
from dafx_actors.errors import InvalidArguments, NotDone, ResultNotKept
from dafx_actors.models import UNPARSED_ARGUMENTS, ToolDefinition
from dafx_actors.tools import AgentTool, Approval, Tool, ToolContext, ToolSource, source_needs_approval
from dafx_actors.tools._declared import MAX_RESULT_BYTES
from dafx_actors.tools._fitted import Unfit, digest_of, fitted
from dafx_actors.tools._results import dump_tool_result
from dafx_actors.transcript import FunctionCallContent, Json

_logger = logging.getLogger("dafx_actors.worker")

ONLY_WITHOUT_EFFECT = (
    "the call was not made: while another call waits for a person, only tools without effect may be called. "
    "Answer without it, or say what is to be done when the person has decided"
)
"""The refusal of a call in a turn that goes on beside another."""
_NOT_MADE = "the call will not be made, and the model will be told so"


@attrs.frozen(kw_only=True)
class _Offer(ToolDefinition):
    """A tool of a source, as a model is offered it."""

    source: ToolSource = attrs.field(eq=False, repr=False)


class Toolbox:
    """Finds tools by the names that a model uses."""

    def __init__(
        self,
        entries: Sequence[Tool | AgentTool | ToolSource],
        *,
        max_result_bytes: int = MAX_RESULT_BYTES,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """Take an agent's tools.

        Args:
            entries: The tools.
            max_result_bytes: What a result may take, unless the tool says otherwise.
            is_stopping: Whether the worker is, so that what is cancelled is handed back.
        """
        self._max_result_bytes = max_result_bytes
        self._is_stopping = is_stopping
        self._own = {entry.name: entry for entry in entries if isinstance(entry, Tool | AgentTool)}
        self._sources = [entry for entry in entries if not isinstance(entry, Tool | AgentTool)]
        self._offers: dict[str, _Offer] = {}
        """The latest listing of the sources; of two tools of one name, the one whose source stands first."""
        self._said: set[tuple[str, str]] = set()
        """The tools of which a warning has said that they are left out."""

    @property
    def activities(self) -> list[str]:
        """The names that need an activity: each function's, and each source's for all of its tools."""
        functions = [entry.name for entry in self._own.values() if isinstance(entry, Tool)]
        return functions + [source.name for source in self._sources]

    def is_without_effect(self, name: str, source: str | None = None) -> bool:
        """Say whether a tool changes nothing and asks nobody, so that a turn beside another may call it.

        What a source says of its tools nobody can check.
        """
        entry = self._own.get(name) if source is None else None
        return isinstance(entry, Tool) and entry.effect == "none" and entry.approval is None

    async def definitions(self, *, is_beside: bool = False) -> tuple[ToolDefinition, ...]:
        """List the tools that a model is offered, without sources that cannot be listed now.

        `is_beside`: its turn goes on beside one that waits for a person, so that it gets only those without effect.

        Raises:
            Exception: What the sources raised, if all of them did and the agent has no other tools.
        """
        if is_beside:
            return tuple(entry.definition() for name, entry in self._own.items() if self.is_without_effect(name))
        offers: dict[str, _Offer] = {}
        failed: Exception | None = None
        for source in self._sources:
            try:
                listed = list(await source.tools())
            except Exception as error:  # noqa: BLE001 - raised again, unless there are other tools
                failed = failed or error
                _logger.warning("The tools of %r are not offered now: %s", source.name, text_of(error))
                continue
            for definition in listed:
                if (offer := self._offer(source, definition, offers)) is not None:
                    offers[offer.name] = offer
        if failed is not None and not self._own and not offers:
            raise failed
        self._offers = offers
        return (*(entry.definition() for entry in self._own.values()), *offers.values())

    def _offer(self, source: ToolSource, tool: ToolDefinition, others: Mapping[str, _Offer]) -> _Offer | None:
        """A tool of a source, if it can be offered beside the others."""
        reason = None
        if tool.name in self._own:
            reason = "the agent has a tool of that name itself"
        elif (other := others.get(tool.name)) is not None:
            reason = f"{other.source.name!r} has one of that name, too, and stands before it"
        else:
            try:
                fit = fitted(tool)
                return _Offer(
                    **{each.name: getattr(fit, each.name) for each in attrs.fields(ToolDefinition)}, source=source
                )
            except Unfit as error:
                reason = str(error)
        if (source.name, tool.name) not in self._said:
            self._said.add((source.name, tool.name))
            _logger.warning("The tool %r of %r is left out: %s", tool.name, source.name, reason)
        return None

    async def plan(
        self, call: FunctionCallContent, offered: Sequence[ToolDefinition], *, is_beside: bool = False
    ) -> Plan:
        """Plan how a call is made.

        The plan is fixed when the model asks for the call, and kept in the turn's history.
        """
        if UNPARSED_ARGUMENTS in call.extra:
            return Plan(refusal=_unparsed(call.extra[UNPARSED_ARGUMENTS]))
        offer = next((definition for definition in offered if definition.name == call.name), None)
        if offer is None:
            names = [definition.name for definition in offered]
            if is_beside and call.name in self._own:
                return Plan(refusal=ONLY_WITHOUT_EFFECT)
            there_are = f"there are {', '.join(names)}" if names else "there are none"
            return Plan(refusal=f"there is no tool {call.name!r}; {there_are}")
        entry = self._own.get(call.name)
        if isinstance(entry, AgentTool):
            try:
                request = entry.request(call.arguments)
            except InvalidArguments as error:
                return Plan(refusal=str(error))
            most = self._max_result_bytes
            agent = AgentPlan(name=entry.agent, new_thread=entry.new_thread, request=request, max_result_bytes=most)
            return Plan(agent=agent)
        if isinstance(entry, Tool):
            return await self._plan_tool(entry, call)
        assert isinstance(offer, _Offer), "all else is the agent's own"
        asks = await self._needs_approval(offer.source, call.name, call.arguments)
        approval = _approval_plan(offer.source.approval) if asks else None
        return Plan(activity=offer.source.name, offer=digest_of(offer), approval=approval)

    async def _plan_tool(self, tool: Tool, call: FunctionCallContent) -> Plan:
        try:
            tool.bind(call.arguments)
        except InvalidArguments as error:
            return Plan(refusal=str(error))
        asks = await self.needs_approval(call.name, call.arguments)
        return Plan(
            activity=tool.name,
            form=FORM,
            approval=_approval_plan(tool.approval) if asks else None,
            alone=not tool.parallel,
            once=tool.effect == "once",
            retry=tool.retry,
        )

    async def needs_approval(self, name: str, arguments: Mapping[str, Json], source: str | None = None) -> bool:
        """Decide whether a call must not be made unless a person has approved it. If the rule fails, a person is asked.

        Args:
            name: Of the tool.
            arguments: Of the call.
            source: Whose tool it is, where the plan says that.
        """
        entry = self._own.get(name)
        if source is None and isinstance(entry, Tool):
            return await self._needs_approval(entry, name, arguments)
        owner = await self._source_of(name, source)
        return owner is not None and await self._needs_approval(owner, name, arguments)

    async def _needs_approval(self, entry: Tool | ToolSource, name: str, arguments: Mapping[str, Json]) -> bool:
        def asks() -> Awaitable[bool]:
            if isinstance(entry, Tool):
                return entry.needs_approval(arguments)
            return source_needs_approval(entry, name, arguments)

        try:
            return await contained(asks, self._is_stopping)
        except InvalidArguments:
            return True  # a person, or another version, wrote them: the call is not made, and says so itself
        except Exception:
            _logger.exception("Whether %r needs approval could not be told; a person is asked.", name)
            return True

    def against(self, kind: DecisionKind, name: str, arguments: Mapping[str, Json]) -> str:
        """What speaks against a call that a person was asked about, perhaps by another version of the agent.

        Nobody is asked: of a source's tool nothing is known until the call is made.

        Args:
            kind: What the person was asked.
            name: Of the tool.
            arguments: What the call would be made with.
        """
        entry = self._own.get(name)
        if not isinstance(entry, Tool):
            gone = f"the agent has no tool {name!r} any more: unless a worker comes that has it, {_NOT_MADE}"
            return "" if self._sources and entry is None else gone
        try:
            entry.bind(arguments)
        except InvalidArguments as error:
            return f"the arguments do not fit {name!r} as it is now ({without(error.reason)}): {_NOT_MADE}"
        except BaseException as error:
            if is_ctrl_c(error):
                raise
            return ""  # what a type of the user's raised shows when the call is made
        is_free = kind == "approval" and entry.approval is None
        return f"the tool {name!r} needs no approval any more" if is_free else ""

    def tool(self, name: str) -> Tool | None:
        """The function of that name, or None: what a source has is not one."""
        entry = self._own.get(name)
        return entry if isinstance(entry, Tool) else None

    async def call(
        self,
        name: str,
        arguments: Mapping[str, Json],
        context: ToolContext,
        *,
        source: str | None = None,
        offer: str | None = None,
        waited: bool = False,
    ) -> Returned | Failed:
        """Make a call.

        One of a source's tool is made only where that has what the model was offered, which `source` and `offer` say;
        plans of earlier versions do not. A call that `waited`, for a person, is held against what the source has now.

        A tool that has acted, and whose result cannot be kept, has not failed: the outcome says so, as `unkept`.
        """
        only_type = (tool := self.tool(name)) is not None and tool.errors == "type"
        try:
            making = functools.partial(self._outcome, name, arguments, context, source, offer, waited)
            outcome = await contained(making, self._is_stopping)
            if isinstance(outcome, Failed):
                return outcome
            return attrs.evolve(outcome, value=without_in(outcome.value))
        except ResultNotKept as error:
            context.logger.warning("What tool %r returned is not kept.", name, exc_info=True)
            return Returned(text_of(error), unkept=True)
        except InvalidArguments as error:
            return Failed(text_of(error))
        except TimeoutError as error:
            # Its own, or of what it called: whether that has acted nobody can tell.
            context.logger.warning("Tool %r ran out of time.", name, exc_info=True)
            said = "TimeoutError" if only_type else f"TimeoutError: {text_of(error)}"
            return Failed(said, by_tool=True, timed_out=True)
        except Exception as error:
            context.logger.warning("Tool %r failed.", name, exc_info=True)
            return Failed(kind_of(error) if only_type else in_words(error), by_tool=True)

    async def _outcome(
        self,
        name: str,
        arguments: Mapping[str, Json],
        context: ToolContext,
        source: str | None,
        offer: str | None,
        waited: bool,
    ) -> Returned | Failed:
        entry = self._own.get(name)
        if source is None and isinstance(entry, Tool):
            return Returned(self._kept(entry, name, await entry.call(context, arguments)))
        if (owner := await self._source_of(name, source)) is None:
            return Failed(f"there is no tool {name!r} on this worker")
        if offer is not None and not await self._has(owner, name, offer, now=waited):
            changed = f"the tool {name!r} of {owner.name!r} is not what it was when it was offered"
            return Failed(f"{changed}; the call was not made. Look at the tool as it is now, and call it again.")
        return Returned(self._kept(None, name, await owner.call(name, arguments, context)))

    async def _has(self, source: ToolSource, name: str, offer: str, *, now: bool) -> bool:
        """Say whether a source has a tool as it was offered.

        The source is asked again if its latest listing differs.
        """
        offered = None if now else self._offers.get(name)
        if offered is not None and offered.source is source and digest_of(offered) == offer:
            return True
        for tool in await source.tools():
            with suppress(Unfit):
                if tool.name == name and digest_of(fitted(tool)) == offer:
                    return True
        return False

    def _kept(self, tool: Tool | None, name: str, result: Any) -> Json:
        """A result, of which it is certain that it can be recorded.

        Raises:
            ResultNotKept: It cannot be.
        """
        dumped = result if tool else dump_tool_result(name, result, Any)
        most = (tool.max_result_bytes if tool else None) or self._max_result_bytes
        try:
            size = size_of(dumped)
        except (ValueError, TypeError, RecursionError) as error:
            reason = in_words(error)
        else:
            if size <= most:
                return dumped
            reason = f"it has {size:,} bytes, and may have {most:,}; ask for less at a time"
        raise ResultNotKept(reason, name)

    async def reconcile(
        self, tool: Tool, arguments: Mapping[str, Json], context: ToolContext
    ) -> Returned | NotMade | Unknown:
        """Find out what became of a call that was cut off, by the tool's `reconcile`."""
        if tool.reconcile is None:
            return Unknown()
        try:
            result = await contained(functools.partial(tool.call_reconcile, context, arguments), self._is_stopping)
            return Returned(without_in(self._kept(tool, tool.name, result)))
        except ResultNotKept as error:
            return Returned(text_of(error), unkept=True)
        except NotDone:
            return NotMade()
        except InvalidArguments as error:
            context.logger.warning("The outcome of a call of %r stays unknown: %s", tool.name, text_of(error))
            return Unknown()
        except Exception:
            context.logger.exception("`reconcile` of %r failed; the outcome stays unknown.", tool.name)
            return Unknown()

    async def _source_of(self, name: str, source: str | None) -> ToolSource | None:
        """The source that a plan names; else the one that has the tool, which is looked for if it is not known."""
        if source is not None:
            return next((each for each in self._sources if each.name == source), None)
        if name not in self._offers and self._sources:
            await self.definitions()
        offer = self._offers.get(name)
        return None if offer is None else offer.source

    async def aclose(self) -> None:
        """Give back what the sources hold."""
        for source in self._sources:
            await attempted(source.aclose, _logger, f"The tools of {source.name!r}")


def _unparsed(written: Json) -> str:
    """Why a call whose arguments are no JSON object is not made."""
    reason = "an object is expected"
    if isinstance(written, str):
        try:
            load_json(written)
        except ValueError as error:
            reason = str(error)
    return f"the arguments are no JSON object ({reason}): {shown(written)}"


def size_of(value: Json) -> int:
    """Bytes that a value takes as JSON, in UTF-8."""
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="surrogatepass"))


def _approval_plan(approval: Approval | None) -> ApprovalPlan:
    """With the defaults, where a call is stopped that needs none: by a rule that failed."""
    rule = approval or Approval()
    return ApprovalPlan(rule.timeout, rule.on_timeout)
