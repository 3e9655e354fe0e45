"""What the steps of a turn need, wherever they are taken: as activities, or all of them inside one operation."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anyio.to_thread
import attrs

from dafx_actors._json.answers import answer_mismatch
from dafx_actors._json.checker import CHECKER, TookTooLong
from dafx_actors._json.crossing import crosses
from dafx_actors._json.messages import dump_message, load_message
from dafx_actors._json.operations import Note
from dafx_actors._json.schema_limits import LONG_ANSWER, look
from dafx_actors._json.shapes import check_json, shown
from dafx_actors._json.steps import Caller, ModelAnswer, ModelResult
from dafx_actors._json.text import well_formed
from dafx_actors._raised import contained, kind_of, text_of
from dafx_actors._rules.conversation import Waiting
from dafx_actors._rules.conversation import conversation as seen_by_model
from dafx_actors._secrets import without_in
from dafx_actors._turns import above as _above
from dafx_actors._turns.host import Host
from dafx_actors.agents import Agent, Turn
from dafx_actors.errors import ModelError, TurnFailed, ValueMismatch
from dafx_actors.exchange import RunRequest
from dafx_actors.ids import AgentThread
from dafx_actors.models import (
    UNPARSED_ARGUMENTS,
    ModelDelta,
    ModelReply,
    ModelRequest,
    StreamingModel,
    ending_of,
)
from dafx_actors.tools import ToolContext
from dafx_actors.tools._toolbox import Toolbox, size_of
from dafx_actors.transcript import ChatMessage, Content, FunctionCallContent, Json, Transcript

_logger = logging.getLogger("dafx_actors.worker")
_tools_logger = logging.getLogger("dafx_actors.tools")


def _storable(reply: ModelReply) -> ModelReply:
    """A reply that can be stored: arguments that JSON cannot hold are not those of a call that can be made."""
    message = dump_message(reply.message)
    # Half an emoji, and a key that a server has repeated.
    if (whole := without_in(well_formed(message))) is not message:
        reply = attrs.evolve(reply, message=load_message(whole))
    contents: list[Content] = []
    for content in reply.message.contents:
        if isinstance(content, FunctionCallContent):
            try:
                check_json(content.arguments)
            except ValueError:
                written = {UNPARSED_ARGUMENTS: shown(content.arguments)}
                content = FunctionCallContent(content.call_id, content.name, extra=written)
        contents.append(content)
    return attrs.evolve(reply, message=attrs.evolve(reply.message, contents=tuple(contents)))


_LIMITS = ("max_completion_tokens", "max_output_tokens", "max_tokens", "num_predict", "n_predict")
"""The options by which providers are told how long a reply may be."""


def _limit_of(options: Mapping[str, Json], reply: ModelReply) -> str:
    """The limit at which a reply was cut off, in words."""
    asked = next((f"{name}={options[name]!r}" for name in _LIMITS if options.get(name) is not None), None)
    tokens = f" ({reply.usage.output_tokens} tokens)" if reply.usage and reply.usage.output_tokens else ""
    return f"{asked or 'the limit of tokens for an answer (max_tokens)'}{tokens}"


async def _streamed(model: StreamingModel, asked: ModelRequest, words: Callable[[str], None]) -> ModelReply:
    """A model call whose words are told while they come. The reply counts, which may say otherwise.

    Raises:
        ModelError: The call failed, or did not end with a reply.
    """
    reply: ModelReply | None = None
    pieces: Any = model.stream(asked)
    try:
        async for piece in pieces:
            if isinstance(piece, ModelReply):
                reply = piece
            elif isinstance(piece, ModelDelta):
                words(piece.text)
    finally:
        if hasattr(pieces, "aclose"):  # it is an iterator, and nothing more is said of it
            await pieces.aclose()
    if reply is None:
        raise ModelError("bad_response", f"`stream` of {type(model).__name__} did not end with a `ModelReply`")
    return reply


async def _mismatch(text: str, schema: Mapping[str, Json] | None) -> str | None:
    """As `answer_mismatch`; what may take long is checked beside the event loop, and not for ever."""
    if schema is None or not (look(schema).may_be_slow or len(text) > LONG_ANSWER):
        return answer_mismatch(text, schema)
    try:
        checking = functools.partial(answer_mismatch, text, schema, CHECKER.mistakes)
        return await anyio.to_thread.run_sync(checking, abandon_on_cancel=True)
    except TookTooLong:
        return f"whether it fits the schema could not be found out within {CHECKER.seconds:g} s"


@attrs.frozen
class AgentSteps:
    """Asks one agent on a worker."""

    agent: Agent
    host: Host
    toolbox: Toolbox

    async def reply(
        self,
        thread: AgentThread,
        request: RunRequest,
        transcript: Transcript,
        *,
        first: bool,
        callers: Sequence[Caller] = (),
        beside: Waiting | None = None,
        words: Callable[[str], None] | None = None,
    ) -> ModelAnswer:
        """Ask the agent's code or model. Whatever it raises is the outcome of the step, and not of the worker.

        Neither is asked where one of the turns above (`callers`) does not want it any more. Where the turn goes on
        `beside` another, the model is shown that one, and offered only tools without effect. `words` is told what the
        model says while it says it.
        """
        try:
            asked = functools.partial(
                self._ask, thread, request, transcript, first=first, callers=callers, beside=beside, words=words
            )
            return ModelAnswer(result=await contained(asked, lambda: self.host.is_stopping))
        except Exception as error:
            if crosses(error):
                return ModelAnswer(error=error)
            _logger.exception("Turn %s of agent %s failed.", request.correlation_id, thread.agent)
            return ModelAnswer(error=TurnFailed(thread.agent, request.correlation_id, kind_of(error), text_of(error)))

    async def _ask(
        self,
        thread: AgentThread,
        request: RunRequest,
        transcript: Transcript,
        *,
        first: bool,
        callers: Sequence[Caller],
        beside: Waiting | None,
        words: Callable[[str], None] | None,
    ) -> ModelResult:
        wanted = functools.partial(_above.check, self.host, callers, thread.agent, request.correlation_id)
        await wanted()
        if request.response_schema is not None and (mistake := look(request.response_schema).mistake) is not None:
            raise ModelError("bad_request", f"the schema in `response_format` is not taken: {mistake}", attempts=0)
        tools = await self.toolbox.definitions(is_beside=beside is not None) if request.enable_tool_calls else ()

        def options_of(asked: Mapping[str, Json]) -> Mapping[str, Json]:
            return {**self.agent.definition.options, **asked}

        async def complete(asked: ModelRequest) -> ModelReply:
            await wanted()  # the agent's instructions, or its code, may have taken a while
            asked = attrs.evolve(asked, options=options_of(asked.options))
            model = self.host.model_of(self.agent)
            # What an agent's own code asks its model need not be its answer; and an answer of a form is read as a
            # whole, for which a model may make several calls.
            is_read = words is not None and not self.agent.responds and asked.response_schema is None
            if words is None or not is_read or not isinstance(model, StreamingModel):
                return await model.complete(asked)
            return await _streamed(model, asked, words)

        conversation = seen_by_model(transcript, request.correlation_id, beside)
        turn = Turn(
            thread=thread,
            request=request,
            transcript=transcript,
            messages=conversation,
            tools=tools,
            # A model that must call a tool would never come to an answer.
            tool_choice=request.tool_choice if first and tools else None,
            complete=complete,
        )
        instructions = await self.agent.instructions(turn)
        if instructions:
            turn = attrs.evolve(turn, messages=(ChatMessage("system", instructions), *conversation))
        reply = _storable(await self.agent.respond(turn))
        calls = [content for content in reply.message.contents if isinstance(content, FunctionCallContent)]
        invalid = None if calls else await _mismatch(reply.message.text, request.response_schema)
        ending = ending_of(reply.finish_reason)
        if ending != "whole":
            calls = []  # they may be half of what the model meant
        return ModelResult(
            message=reply.message,
            usage=reply.usage,
            finish_reason=reply.finish_reason,
            ending=ending,
            limit=_limit_of(options_of(request.options), reply) if ending == "cut" else None,
            calls=tuple([await self.toolbox.plan(call, tools, is_beside=beside is not None) for call in calls]),
            invalid=invalid,
        )

    def tool_context(
        self, thread: AgentThread, turn: str, key: str, call_id: str, attempt: int, read: Callable[[], Transcript]
    ) -> ToolContext:
        """Make the context that a tool is given with a call."""
        most = self.agent.definition.max_result_bytes

        def report(progress: Json) -> None:
            progress = without_in(progress)
            if (size := size_of(progress)) > most:
                raise ValueMismatch(f"a progress has {size:,} bytes as JSON, and may have {most:,}, as a result")
            self.host.report(thread, Note(turn=turn, key=key, progress=progress))

        return ToolContext(
            thread=thread,
            correlation_id=turn,
            call_id=call_id,
            idempotency_key=key,
            attempt=attempt,
            logger=_tools_logger,
            transcript=read,
            report=report,
        )
