"""One answer of a model, by as many calls as its server makes necessary: most often one.

A request is sent again, in another form, where the server refused that of the answer or of the conversation, which it
does before anything else. Where tools and a format cannot be had together, the last call is for the format alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import attrs

from dafx_actors.errors import ModelError
from dafx_actors.models import ModelReply, ModelRequest
from dafx_actors.models._dialects import Dialect, Structured, amended, dialect_of
from dafx_actors.models._structured import Shape, is_json, is_refusal, simpler
from dafx_actors.models._wire import Outgoing, outgoing
from dafx_actors.transcript import FunctionCallContent, Json

__all__ = ["Asking"]

Call = Callable[[Outgoing], Awaitable[ModelReply]]


@attrs.define(kw_only=True)
class Asking:
    """Asks the models of one server."""

    base_url: str
    structured: Structured | None
    """How typed answers are asked for; None as the server's name says, and what it refuses."""
    _learned: dict[str, Shape] = attrs.field(init=False, factory=dict[str, Shape])
    """By the names of models, how answers are asked for that are not refused."""
    _dialects: dict[str, Dialect] = attrs.field(init=False, factory=dict[str, Dialect])
    """By the names of models, what conversations are not refused."""

    def outgoing(
        self, model: str, request: ModelRequest, defaults: Mapping[str, Json], shape: Shape | None = None
    ) -> Outgoing:
        """One call, as it is sent.

        Raises:
            ModelError: Of kind `bad_request`: it holds something that this API cannot be sent.
        """
        dialect = self._dialect(model)
        host = self.base_url.partition("://")[2].partition("/")[0].rpartition("@")[2]
        shape = shape or self._shape(model)
        return outgoing(model, request, defaults, dialect=dialect, shape=shape, host=host)

    async def answer(self, model: str, request: ModelRequest, defaults: Mapping[str, Json], call: Call) -> ModelReply:
        """The answer.

        Args:
            model: The model's name.
            request: What is asked.
            defaults: Options of every call.
            call: Makes one call.

        Raises:
            ModelError: A call failed.
        """
        shape = self._shape(model)
        own = (request.options if "response_format" in request.options else defaults).get("response_format")
        typed = request.response_schema is not None
        while True:
            going = self.outgoing(model, request, defaults, shape)
            try:
                reply = await call(going)
            except ModelError as error:
                if self._amends(model, going, error):
                    continue
                may_change = self.structured is None and own is None
                easier = simpler(shape, error, with_tools=going.with_tools, may_change=may_change) if typed else None
                if easier is None:
                    raise
                shape = easier
                # What is wrong with one schema may not be with the next.
                self._learned[model] = attrs.evolve(shape, strict=True)
                continue
            break
        if not typed or not shape.apart or not going.with_tools or shape.kind not in {"schema", "json"}:
            return reply
        called = any(isinstance(content, FunctionCallContent) for content in reply.message.contents)
        if called or is_json(reply.message.text):
            return reply
        last = attrs.evolve(request, tools=(), tool_choice=None)
        shaped = await self.answer(model, last, defaults, call)
        usage = shaped.usage if reply.usage is None else reply.usage + shaped.usage if shaped.usage else reply.usage
        return attrs.evolve(shaped, usage=usage)

    def _shape(self, model: str) -> Shape:
        if (learned := self._learned.get(model)) is not None:
            return learned
        dialect = self._dialect(model)
        return Shape(kind=self.structured or dialect.structured, apart=dialect.apart)

    def _dialect(self, model: str) -> Dialect:
        return self._dialects.get(model) or dialect_of(self.base_url, model)

    def _amends(self, model: str, going: Outgoing, error: ModelError) -> bool:
        """Whether a call is to be made again, with the conversation in another form."""
        if not is_refusal(error):
            return False
        dialect = self._dialect(model)
        made = amended(dialect, error.message, shows_media=going.shows_media, gives_back=going.gives_back)
        if made is not None:
            self._dialects[model] = made
        return made is not None
