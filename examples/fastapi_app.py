"""A chat behind FastAPI: start an answer, and stream it as server-sent events, as often as you like.

    uvicorn examples.fastapi_app:app        # needs: pip install fastapi

    curl -X POST "http://localhost:8000/chat?conversation_id=test-123&message=Hello"
    curl -N "http://localhost:8000/stream/test-123"

A browser that reloads goes on where it was: every event has an `id:`, which it sends back as `Last-Event-ID`. The
gateway of `agentmesh up` has these routes with keys, limits and the ownership of conversations; this shows what is in
them.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, Header, HTTPException, Request
from fastapi.responses import Response, StreamingResponse

from agentmesh.errors import InvalidNameError
from agentmesh.local import broker_here
from agentmesh.streams import AsyncPublisher, AsyncSubscriber, Chunk, Config
from agentmesh.subjects import token

KEEPALIVE = 15.0
"""Seconds without a chunk after which a comment keeps proxies from hanging up."""


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with broker_here() as url:
        config = Config(servers=url)
        async with AsyncPublisher(config) as publisher, AsyncSubscriber(config) as subscriber:
            app.state.publisher, app.state.subscriber = publisher, subscriber
            app.state.answers = set()
            yield
            for answer in app.state.answers:  # readers get an `error` chunk
                answer.cancel()
            await asyncio.gather(*app.state.answers, return_exceptions=True)


app = FastAPI(lifespan=lifespan)


@app.post("/chat")
async def chat(request: Request, conversation_id: str, message: str) -> dict[str, str]:
    """Start AI generation."""
    _check(conversation_id)

    async def generate() -> AsyncIterator[Chunk]:
        for word in f"You said: {message}".split():
            yield Chunk(conversation_id=conversation_id, content=word + " ", type="text")
            await asyncio.sleep(0.05)
        yield Chunk(conversation_id=conversation_id, content="", type="finish")

    state = request.app.state
    answer = asyncio.create_task(state.publisher.publish_stream(conversation_id, generate()))
    state.answers.add(answer)  # a task that nobody holds may be collected in the middle
    answer.add_done_callback(state.answers.discard)
    return {"conversation_id": conversation_id}


@app.get("/stream/{conversation_id}")
async def stream(
    request: Request,
    conversation_id: str,
    from_offset: int | None = None,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """Stream AI response via SSE. It may be asked for before the conversation begins."""
    _check(conversation_id)
    subscriber: AsyncSubscriber = request.app.state.subscriber
    if last_event_id is None or not last_event_id.isdigit():
        chunks = subscriber.subscribe(conversation_id, from_offset=from_offset)  # a reader for this request alone
        coming = asyncio.ensure_future(anext(chunks, None))
    else:
        chunks = subscriber.subscribe(conversation_id, from_offset=int(last_event_id))
        await anext(chunks, None)  # the one that the browser has already
        coming = asyncio.ensure_future(anext(chunks, None))
        if await _nothing_is_left(coming):
            return Response(status_code=204)  # tells an EventSource not to come back
    events = _events(chunks, coming)
    return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


async def _nothing_is_left(coming: asyncio.Future[Chunk | None]) -> bool:
    await asyncio.wait({coming}, timeout=1.0)
    return coming.done() and coming.result() is None


def _check(conversation_id: str) -> None:
    try:
        token("conversation id", conversation_id)
    except InvalidNameError as error:
        raise HTTPException(400, str(error)) from None


async def _events(chunks: AsyncGenerator[Chunk, None], coming: asyncio.Future[Chunk | None]) -> AsyncIterator[str]:
    async with aclosing(chunks):
        try:
            while True:
                while not (await asyncio.wait({coming}, timeout=KEEPALIVE))[0]:
                    yield ": keepalive\n\n"
                chunk = coming.result()
                if chunk is None:
                    break
                yield f"id: {chunk.offset}\ndata: {chunk.to_json().decode()}\n\n"
                coming = asyncio.ensure_future(anext(chunks, None))
        finally:
            if not coming.done():  # the browser has gone
                coming.cancel()
                await asyncio.wait({coming})
    yield "event: end\ndata: \n\n"
