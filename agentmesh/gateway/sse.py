"""Server-sent events: `GET /stream/{id}`, and what every stream of events over HTTP needs.

id: 17-2034                          the chunk's cursor: send it as `Last-Event-ID` to go on behind it
data: {"id": "…", "type": "text", "content": "Hel", …}

: still here                         every 15 seconds of silence

event: end                           nothing more will come
id: 18-2035.end                      who connects again with it gets 204, on which an EventSource stops
data: {"reason": "finish"}
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from agentmesh.chat import settle
from agentmesh.codes import ErrorCode
from agentmesh.errors import AgentMeshError, HttpError
from agentmesh.gateway.describe import operation
from agentmesh.gateway.errors import explained, refused
from agentmesh.streams import Chunk
from agentmesh.streams.chunk import parse_cursor
from agentmesh.streams.follow import STREAM
from agentmesh.subjects import token

if TYPE_CHECKING:
    from agentmesh.client import Client
    from agentmesh.gateway.gateway import Gateway

HEARTBEAT = 15.0
"""Seconds of silence within which a comment is sent, so that proxies and clients know that the connection lives."""

SILENCE = 5.0
"""Seconds without a chunk after which it is asked what became of the runs that are open."""

THOROUGH = 4
"""Each fourth time it is also asked whether their tasks are there at all."""

RETRY = 1.0
"""Seconds a client is asked to wait before it connects again."""

END = ".end"
"""What the id of the last event ends with."""

STILL_HERE = b": still here\n\n"

HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store, no-transform",
    "x-accel-buffering": "no",  # nginx would hold events back
}

log = logging.getLogger("agentmesh.gateway.sse")


class Heartbeats:
    """One timer for all streams of a gateway, and one task that tells them when it stops."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._streams: set[EventStream] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._shutdown: asyncio.Task[None] | None = None

    def add(self, stream: EventStream) -> None:
        """From now on it is kept alive."""
        self._streams.add(stream)
        if self._shutdown is None:
            self._shutdown = asyncio.get_running_loop().create_task(self._await_shutdown(), name="sse: shutdown")
        if self._timer is None:
            self._next()
        if self._gateway.shutdown.is_set():
            stream.stop()

    def remove(self, stream: EventStream) -> None:
        """It has ended."""
        self._streams.discard(stream)
        if self._streams:
            return
        if self._timer is not None:
            self._timer.cancel()
        if self._shutdown is not None:
            self._shutdown.cancel()
        self._timer = self._shutdown = None

    def _next(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(HEARTBEAT / 3, self._beat)

    def _beat(self) -> None:
        for stream in tuple(self._streams):
            stream.beat()
        self._next()

    async def _await_shutdown(self) -> None:
        await self._gateway.shutdown.wait()
        for stream in tuple(self._streams):
            stream.stop()


def heartbeats(gateway: Gateway) -> Heartbeats:
    """Those of a gateway."""
    if "heartbeats" not in gateway.shared:
        gateway.shared["heartbeats"] = Heartbeats(gateway)
    beats: Heartbeats = gateway.shared["heartbeats"]
    return beats


class EventStream(Response):
    """An answer that is a stream of events. It ends with its source, with its client, or with the gateway.

    Back-pressure is the connection's: no more than its 64 kB buffer waits for a client that does not read, and one
    that takes nothing for `http.write_timeout` seconds is cut off.

    Args:
        gateway: Whose.
        source: The bytes of whole events. Closed at the end, whatever ends it.
        stack: Closed after it, for instance the slot of the caller.
        look: Called every few seconds.
    """

    def __init__(
        self,
        gateway: Gateway,
        source: AsyncGenerator[bytes, None],
        stack: AsyncExitStack,
        look: Callable[[], object] | None = None,
    ) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._gateway = gateway
        self._source = source
        self._stack = stack
        self._look = look
        self._send: Send | None = None
        self._sending = asyncio.Lock()
        self._pumping: asyncio.Task[None] | None = None
        self._beating: asyncio.Task[None] | None = None
        self._sent_at = 0.0
        self._stopped = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        self._send = send
        beats = heartbeats(self._gateway)
        async with self._stack, aclosing(self._source):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            self._pumping = asyncio.get_running_loop().create_task(self._pump(), name="sse")
            gone = asyncio.get_running_loop().create_task(wait_until_gone(receive), name="sse: client")
            beats.add(self)
            try:
                await asyncio.wait({self._pumping, gone}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                beats.remove(self)
                tasks = [task for task in (self._pumping, gone, self._beating) if task is not None]
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            if self._pumping.cancelled() and not self._stopped:
                return  # the client went
            if not self._pumping.cancelled() and (problem := self._pumping.exception()) is not None:
                raise problem
            tail = f"retry: {RETRY * 2000:.0f}\n\n".encode() if self._stopped else b""
            await send({"type": "http.response.body", "body": tail, "more_body": False})

    def beat(self) -> None:
        """Say something, if nothing was said for a while."""
        if self._look is not None:
            self._look()
        now = asyncio.get_running_loop().time()
        busy = self._sending.locked() or (self._beating is not None and not self._beating.done())
        if not busy and now - self._sent_at >= HEARTBEAT * 0.66:
            self._beating = asyncio.get_running_loop().create_task(self._write(STILL_HERE), name="sse: heartbeat")

    def stop(self) -> None:
        """The gateway stops: the client may come back to the next one."""
        self._stopped = True
        if self._pumping is not None:
            self._pumping.cancel()

    async def _pump(self) -> None:
        async for events in self._source:
            await self._write(events)

    async def _write(self, data: bytes) -> None:
        assert self._send is not None
        async with self._sending:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
            self._sent_at = asyncio.get_running_loop().time()


async def wait_until_gone(receive: Receive) -> None:
    """Returns when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def event(data: bytes, *, id: str = "", name: str = "") -> bytes:
    """The bytes of an event. `data` is JSON and so has no line ends."""
    head = (f"event: {name}\n" if name else "") + (f"id: {id}\n" if id else "")
    return head.encode() + b"data: " + data + b"\n\n"


def routes(gateway: Gateway) -> list[BaseRoute]:
    """`GET /stream/{id}`."""

    @operation(
        tags=["chats"],
        media="text/event-stream",
        query={"from_offset": "The number of the first chunk, from 0.", "run": "Only this run, and no longer."},
        headers={"Last-Event-ID": "Go on behind the event with this id."},
    )
    async def stream(request: Request) -> Response:
        """Read a conversation as server-sent events: what is stored, then what comes.

        One that does not exist yet is waited for.
        """
        caller = gateway.caller(request)
        wanted = Wanted(request)
        if request.method == "HEAD":
            return Response(headers=HEADERS)
        if wanted.is_over:
            return Response(status_code=204)
        conversation = request.path_params["id"]
        token("conversation id", conversation)
        if wanted.run_id:
            token("run id", wanted.run_id)
        if wanted.cursor:
            parse_cursor(wanted.cursor)
        await _check_cursor(gateway.client(caller.tenant), conversation, wanted)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(gateway.stream_slot(caller))
            reader = Reader(gateway.client(caller.tenant), conversation, wanted)
            stack.push_async_callback(reader.close)
            return EventStream(gateway, reader.events(), stack.pop_all(), reader.look)

    return [Route("/stream/{id}", stream)]


class Wanted:
    """What a reader asks for.

    Raises:
        HttpError: 400, with the parameter that cannot be.
    """

    def __init__(self, request: Request) -> None:
        query = request.query_params
        header = request.headers.get("last-event-id", "").strip()
        self.is_over = header.endswith(END)
        # In the query it is somebody who wants more, not an EventSource that comes back by itself.
        self.cursor = header or query.get("last_event_id", "").strip().removesuffix(END)
        self.from_offset = _number(query.get("from_offset", query.get("from", "")), "from_offset")
        self.run_id = query.get("run", query.get("run_id", ""))
        self.follow = _flag(query.get("follow", ""), "follow")

    def arguments(self) -> dict[str, Any]:
        """For `Streams.read`."""
        place = {"cursor": self.cursor} if self.cursor else {"from_offset": self.from_offset}
        return {**place, "run_id": self.run_id, "to_end": not self.follow}


async def _check_cursor(client: Client, conversation_id: str, wanted: Wanted) -> None:
    """A cursor may be older than the broker's store, which somebody has begun anew: it would be waited for in vain.

    Raises:
        HttpError: 412, it points beyond the end.
    """
    if not wanted.cursor or not (sequence := parse_cursor(wanted.cursor)[1]):
        return
    last = await client.transport.last_message(STREAM, client.subjects.stream(conversation_id), latest=True)
    if last is None:
        wanted.cursor = ""  # there is nothing it could point at: whatever comes is new
    elif last.sequence < sequence:
        text = "that event is not of this conversation as it is stored now; read it from the start"
        raise refused(ErrorCode.FAILED_PRECONDITION, text)


class Reader:
    """One reader of a conversation."""

    def __init__(self, client: Client, conversation_id: str, wanted: Wanted) -> None:
        self._client = client
        self._conversation_id = conversation_id
        self._wanted = wanted
        self._open: set[str] = set()
        """Runs that a task is to end."""
        self._heard_at = self._looked_at = 0.0
        self._looks = 0
        self._settling: asyncio.Task[None] | None = None

    async def events(self) -> AsyncGenerator[bytes, None]:
        """What is sent."""
        last: Chunk | None = None
        yield f"retry: {RETRY * 1000:.0f}\n\n".encode()
        try:
            async with aclosing(self._client.streams.read(self._conversation_id, **self._wanted.arguments())) as chunks:
                async for chunk in chunks:
                    last = chunk
                    self._note(chunk)
                    yield event(chunk.to_json(), id=chunk.cursor)
        except AgentMeshError as error:  # it has begun: the status cannot say it any more
            problem = explained(error)
            log.warning("a stream breaks off: %s", error)
            said = {"code": str(problem.code), "message": problem.message}
            yield event(msgspec.json.encode(said), name="problem")
            return
        reason, cursor = (last.type, last.cursor) if last is not None else ("", self._wanted.cursor)
        yield event(msgspec.json.encode({"reason": reason}), id=f"{cursor}{END}", name="end")

    def _note(self, chunk: Chunk) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        if chunk.is_final:
            self._open.discard(chunk.run_id)
        elif chunk.run_id and chunk.owner == chunk.run_id:
            self._open.add(chunk.run_id)

    def look(self) -> None:
        """A turn that is silent may have been decided without a word: cancelled in the queue, expired, dead."""
        now = asyncio.get_running_loop().time()
        busy = self._settling is not None and not self._settling.done()
        if not self._open or busy or now - max(self._heard_at, self._looked_at) < SILENCE:
            return
        self._looked_at = now
        self._looks += 1
        self._settling = asyncio.get_running_loop().create_task(self._settle(), name="sse: settle")

    async def _settle(self) -> None:
        lost = self._looks % THOROUGH == 0
        for run_id in tuple(self._open):
            try:
                await settle(self._client, self._conversation_id, run_id, lost=lost)
            except AgentMeshError as error:
                log.debug("run %s of %s: %s", run_id, self._conversation_id, error)

    async def close(self) -> None:
        """It has ended."""
        if self._settling is not None:
            self._settling.cancel()
            await asyncio.gather(self._settling, return_exceptions=True)


def _number(text: str, name: str) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdecimal() and len(text) < 16):
        raise _bad(name, text, "a whole number from 0")
    return int(text)


def _flag(text: str, name: str) -> bool:
    if text.lower() not in ("", "0", "1", "true", "false"):
        raise _bad(name, text, "true or false")
    return text.lower() in ("1", "true")


def _bad(name: str, value: str, expected: str) -> HttpError:
    return refused(ErrorCode.INVALID_ARGUMENT, f"{name}={value[:40]!r}: expected {expected}", parameter=name)
