"""A simulated connection: what stands in for the NATS client, below everything that is agentmesh's own.

`Connection`, requests, durable publishes, pulls, direct gets, watchdog are the real ones. Messages of one direction
keep their order; with a broken connection both directions lose what is on its way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING, Any

from agentmesh.transport.wire import Message
from tests.simulation.loop import PROCESS, Process

if TYPE_CHECKING:
    from tests.simulation.broker import Broker

Sink = Callable[[Message], None]

APART = 1e-6
"""Seconds between messages of one direction, which keeps their order."""


class Interest:
    """One subscription, as both sides know it."""

    __slots__ = ("link", "queue", "sid", "sink", "subject")

    def __init__(self, link: Link, sid: int, subject: str, queue: str, sink: Sink) -> None:
        self.link = link
        self.sid = sid
        self.subject = subject
        self.queue = queue
        self.sink = sink


class Link:
    """The client of one connection, and its two directions.

    Args:
        broker: What it connects to.
    """

    max_payload = 1024 * 1024
    buffered = 0
    _pending_data_size = 0
    is_deaf = False
    is_stuck = False
    is_closed = False
    last_error = None
    client_id = 1
    server_pool = (None,)
    _current_server = None

    def __init__(self, broker: Broker) -> None:
        process = PROCESS.get()
        assert process is not None, "connect inside a process"
        self.process: Process = process
        self._context: Context = process.context
        self.broker = broker
        self.options: dict[str, Any] = {}
        self.stats = {"in_msgs": 0}
        self.generation = 0
        self.is_connected = False
        self.hole_until = 0.0
        """A fault: nothing gets through before, all of it comes late."""
        self._server_info = {"version": "2.15.1"}
        self._interests: dict[int, Interest] = {}
        self._sid = 0
        self._outbox: list[tuple[Any, ...]] = []
        self._callbacks: dict[str, Any] = {}
        self._up_at = self._down_at = 0.0

    @property
    def is_reconnecting(self) -> bool:
        return not self.is_connected and not self.is_closed

    def hears(self, generation: int) -> bool:
        """Whether the connection of that generation still stands, as far as the broker knows."""
        return self.is_connected and generation == self.generation

    # -- connecting, and not

    async def connect(self, servers: list[str], **options: Any) -> None:
        self.options = options
        self._callbacks = options
        while not self.broker.is_up:  # noqa: ASYNC110  (as the client does)
            await asyncio.sleep(0.2)
        await asyncio.sleep(self.broker.latency())
        self._begin()

    def _begin(self) -> None:
        self.generation += 1
        self.is_connected = True
        self.broker.links[self] = None
        for interest in self._interests.values():
            self._send(self.broker.subscribe, interest)
        outbox, self._outbox = self._outbox, []
        for entry in outbox:
            self._send(*entry)

    def cut(self, pause: float = 0.0, *, lose_buffered: bool = False) -> None:
        """Break the connection; both sides notice at once. It comes back after `pause` seconds, if the broker is up."""
        if not self.is_connected:
            return
        self._lose()
        if lose_buffered:
            self._outbox.clear()
        loop = self.broker.loop
        loop.create_task(self._callbacks["disconnected_cb"](), context=self._context.copy())
        loop.call_later(pause + 0.05, self._reconnect, context=self._context)

    def _lose(self) -> None:
        self.is_connected = False
        self.generation += 1
        self.broker.forget(self)

    def _reconnect(self) -> None:
        if self.is_closed or self.is_connected:
            return
        loop = self.broker.loop
        if not self.broker.is_up:
            loop.call_later(0.2, self._reconnect, context=self._context)
            return
        self._begin()
        loop.create_task(self._callbacks["reconnected_cb"](), context=self._context.copy())

    async def force_reconnect(self) -> None:
        self.cut()

    def abort(self) -> None:
        """The socket is dropped; whoever calls this reconnects or closes."""

    async def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            if self.is_connected:
                self._lose()

    # -- from the client

    async def listen(self, subject: str, queue: str, sink: Sink) -> Interest:
        self._sid += 1
        interest = self._interests[self._sid] = Interest(self, self._sid, subject, queue, sink)
        if self.is_connected:
            self._send(self.broker.subscribe, interest)
        return interest

    def unlisten(self, interest: Interest) -> None:
        if self._interests.pop(interest.sid, None) is not None and self.is_connected:
            self._send(self.broker.unsubscribe, interest)

    async def finish(self, interest: Interest, timeout: float) -> None:
        self.unlisten(interest)
        await self.round_trip(timeout)

    def write(self, subject: str, data: bytes, reply: str = "", headers: bytes = b"") -> None:
        if self.is_connected:
            self._send(self.broker.receive, self, subject, data, reply, headers)
        else:
            self._outbox.append((self.broker.receive, self, subject, data, reply, headers))

    def drained(self) -> None:
        return None

    async def round_trip(self, timeout: float) -> bool:
        pong: asyncio.Future[None] = self.broker.loop.create_future()
        if self.is_connected:
            self._send(self._pong, pong)
        await asyncio.wait({pong}, timeout=timeout)
        return pong.done()

    def _pong(self, pong: asyncio.Future[None]) -> None:
        self._later(self._resolve, self.generation, pong)

    def _resolve(self, generation: int, pong: asyncio.Future[None]) -> None:
        if generation == self.generation and not pong.done():
            pong.set_result(None)

    def _send(self, arrive: Callable[..., None], *arguments: Any) -> None:
        """Towards the broker."""
        broker = self.broker
        self._up_at = max(self._up_at + APART, broker.loop.time() + broker.latency(), self.hole_until)
        broker.loop.call_at(self._up_at, self._arrive, self.generation, arrive, arguments, context=broker.context)

    def _arrive(self, generation: int, arrive: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if generation == self.generation and self.broker.is_up:
            arrive(*arguments)

    # -- to the client

    def deliver(self, interest: Interest, message: Message) -> None:
        """Towards the client; called by the broker."""
        self._later(self._hand_over, self.generation, interest.sid, message)

    def _later(self, do: Callable[..., None], *arguments: Any) -> None:
        broker = self.broker
        self._down_at = max(self._down_at + APART, broker.loop.time() + broker.latency(), self.hole_until)
        broker.loop.call_at(self._down_at, do, *arguments, context=self._context)

    def _hand_over(self, generation: int, sid: int, message: Message) -> None:
        interest = self._interests.get(sid)
        if generation != self.generation or interest is None:
            return
        self.stats["in_msgs"] += 1
        interest.sink(message)
