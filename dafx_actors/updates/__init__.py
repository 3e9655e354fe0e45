r"""What the reader of a turn is told, held against what it was told before; no await, no clock, no network.

`agent.run_stream(...)`, and `turn.updates(after=cursor)` of a turn that was started anywhere, give a stream of updates;
each is one of the classes below. A terminal chat::

    async with joker.run_stream(text, thread=thread) as stream:
        async for update in stream:
            match update:
                case Text():
                    screen.add(update.step, update.text)
                case Reset():
                    screen.forget(from_step=update.step)
                case Asked():
                    await (client.approve if await ask(update) else client.deny)(update.approval, by="ana")
                case Ended(error=None):
                    print(update.response.usage)

Server-sent events, with FastAPI: a browser that comes back says in `Last-Event-ID` where it was::

    @app.get("/turns/{id}/events")
    async def events(id: str, request: Request) -> Response:
        after = request.headers.get("last-event-id")
        if after and is_end(after):
            return Response(status_code=204)  # so that the browser does not come back

        async def body() -> AsyncIterator[str]:
            async with joker.get_turn(id).updates(after=after) as stream:
                async for update in stream:
                    yield f"id: {update.cursor}\nevent: {update.kind}\ndata: {update.to_json()}\n\n"

        return StreamingResponse(body(), media_type="text/event-stream")

A reader that reconnects for ever; restarts of the scheduler of up to a minute are waited out inside::

    cursor = load()
    while True:
        try:
            async with turn.updates(after=cursor) as stream:
                async for update in stream:
                    apply(update)
                    save(cursor := update.cursor)
            break
        except SchedulerUnreachable:
            await anyio.sleep(5)

A test::

    async with AgentHost(Joker) as host:
        async with host.client.get_agent(Joker).run_stream("Tell me a joke.") as stream:
            told = [update.kind async for update in stream if update.kind != "state"]
        assert told[-1] == "ended"

**What is promised.** The scheduler and the thread are the truth, and updates are a view of what is on its way: losing
them loses no answer. What `text`, `reasoning`, `call`, `result`, `message` and `content` have told, put together step
by step, is of one attempt at every moment, and equals the messages of the turn when `ended` comes, which is after they
were committed. What turns out to be otherwise is taken back by a `reset`, and told again. `state`, `progress`, `asked`
and `decided` stand beside that: they may be told twice, and what came and went between two looks is not told.
"""

from __future__ import annotations

from dafx_actors.updates._cursors import is_end
from dafx_actors.updates._words import (
    Asked,
    Call,
    Content,
    Decided,
    Ended,
    Message,
    Progress,
    Reasoning,
    Reset,
    Result,
    State,
    Step,
    Text,
    Update,
)

__all__ = [
    "Asked",
    "Call",
    "Content",
    "Decided",
    "Ended",
    "Message",
    "Progress",
    "Reasoning",
    "Reset",
    "Result",
    "State",
    "Step",
    "Text",
    "Update",
    "is_end",
]
