"""A real HTTP server that speaks the OpenAI chat API and does what a test tells it to."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from agentmesh.agents.llm.backends.offline import count_tokens

Behaviour = Callable[["Seen"], Awaitable[Response]]


@dataclass
class Seen:
    """A request as the server got it."""

    body: dict[str, Any]
    headers: dict[str, str]
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when its answer has ended or was given up."""


class ModelServer:
    """Answers each request with the next behaviour of `script`; the last one stays."""

    def __init__(self, *script: Behaviour) -> None:
        self.script = list(script) or [says("Hello")]
        self.seen: list[Seen] = []
        self.arrived = asyncio.Event()
        self.url = ""

    async def answer(self, request: Request) -> Response:
        seen = Seen(await request.json(), dict(request.headers))
        self.seen.append(seen)
        self.arrived.set()
        behave = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        return await behave(seen)


class _Runner(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


@asynccontextmanager
async def serving(server: ModelServer) -> AsyncIterator[ModelServer]:
    """Run it on a free port."""
    app = Starlette(routes=[Route("/v1/chat/completions", server.answer, methods=["POST"])])
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    runner = _Runner(uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1))
    task = asyncio.create_task(runner.serve(sockets=[listener]))
    server.url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    await runner.ready.wait()
    try:
        yield server
    finally:
        runner.should_exit = True
        await task
        listener.close()


def says(text: str, *, gate: asyncio.Event | None = None, cut: int | None = None, **delta: Any) -> Behaviour:
    """Stream the words of a text.

    Args:
        text: The answer.
        gate: Before the second word it waits for this.
        cut: After that many words the connection breaks.
        delta: Further fields of the first delta, such as `tool_calls`.
    """

    async def stream(seen: Seen) -> AsyncIterator[str]:
        words = [f"{word} " for word in text.split(" ")]
        words[-1] = words[-1].rstrip()
        model = seen.body["model"]
        try:
            for number, word in enumerate(words):
                if number == cut:
                    raise ConnectionResetError
                if number == 1 and gate is not None:
                    await gate.wait()
                yield _chunk(model, {"content": word, **(delta if not number else {})})
            yield _chunk(model, {}, "tool_calls" if delta.get("tool_calls") else "stop")
            if seen.body.get("stream_options", {}).get("include_usage"):
                prompt = sum(count_tokens(message["content"] or "") for message in seen.body["messages"])
                usage = {"prompt_tokens": prompt, "completion_tokens": len(words), "total_tokens": prompt + len(words)}
                yield _event(
                    {"id": "c1", "object": "chat.completion.chunk", "model": model, "choices": [], "usage": usage}
                )
            yield "data: [DONE]\n\n"
        finally:
            seen.gone.set()

    async def behave(seen: Seen) -> Response:
        if seen.body.get("stream"):
            return StreamingResponse(stream(seen), media_type="text/event-stream")
        message = {"role": "assistant", "content": text}
        usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return JSONResponse({"id": "c1", "model": seen.body["model"], "choices": [choice], "usage": usage})

    return behave


def fails(status: int, message: str = "no", headers: dict[str, str] | None = None, **error: Any) -> Behaviour:
    """Answer with an error."""

    async def behave(seen: Seen) -> Response:
        return JSONResponse({"error": {"message": message, **error}}, status, headers=headers)

    return behave


def hangs() -> Behaviour:
    """Say nothing, until the caller goes."""

    async def silence(seen: Seen) -> AsyncIterator[str]:
        try:
            await asyncio.Event().wait()
            yield ""
        finally:
            seen.gone.set()

    async def behave(seen: Seen) -> Response:
        return StreamingResponse(silence(seen), media_type="text/event-stream")

    return behave


_OBJECT = {"id": "c1", "object": "chat.completion.chunk", "created": 0}


def _chunk(model: str, delta: dict[str, Any], reason: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return _event({**_OBJECT, "model": model, "choices": [choice]})


def _event(document: dict[str, Any]) -> str:
    return f"data: {json.dumps(document)}\n\n"
