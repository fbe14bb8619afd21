"""Subscriptions to what passes by: callbacks side by side, bounded, and none that raises ends anything."""

from __future__ import annotations

import asyncio
import inspect
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any

from agentmesh.errors import AgentMeshError
from agentmesh.facade.compression import unpacked
from agentmesh.facade.message import Incoming, Send, error_headers
from agentmesh.transport import Message, Subscription, Transport

Callback = Callable[[Incoming], Any]
"""A coroutine function or a plain one; a plain one must not block."""

log = logging.getLogger("agentmesh.facade")

GRACE = 1.0
"""Seconds that callbacks get to finish when the client is closed."""


class FacadeSubscription(ABC):
    """A subscription made by `subscribe`, until `unsubscribe()`.

    Callbacks begin in the order in which messages came; up to `concurrency` of them run side by side. With 1, each ends
    before the next begins.
    """

    def __init__(self, subject: str, queue: str, concurrency: int) -> None:
        self.subject = subject
        self.queue = queue
        self.concurrency = concurrency
        self._running: set[asyncio.Task[None]] = set()
        self.on_end: Callable[[FacadeSubscription], None] | None = None
        """Called once, when it ends."""

    async def unsubscribe(self, *, grace: float | None = None) -> None:
        """Take nothing more, and wait for the callbacks that run.

        Args:
            grace: Seconds after which those still running are cancelled; None waits for them.
        """
        await self._end()
        told, self.on_end = self.on_end, None
        if told is not None:
            told(self)
        running = self._running - {task for task in (asyncio.current_task(),) if task is not None}
        if running:
            _, late = await asyncio.wait(running, timeout=grace)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    @abstractmethod
    async def _end(self) -> None:
        """Have nothing more arrive."""


class Passing(FacadeSubscription):
    """A subscription of core NATS: what nobody is there for is gone.

    Args:
        subject: May have wildcards.
        queue: Each message goes to one of those who say the same.
        callback: What to call.
        concurrency: See the base class.
        limit: Messages that may wait here; one more is dropped, and a warning logged.
        send: Sends answers.
        max_unpacked: Bytes a compressed body may have.
    """

    def __init__(
        self, subject: str, queue: str, callback: Callback, concurrency: int, limit: int, send: Send, max_unpacked: int
    ) -> None:
        super().__init__(subject, queue, concurrency)
        self._callback = callback
        self._limit = limit
        self._send = send
        self._max_unpacked = max_unpacked
        self._waiting: deque[Message] = deque()
        self._subscription: Subscription | None = None
        self._loop = asyncio.get_running_loop()
        self._quiet_until = 0.0
        self.dropped = 0
        """Messages that found no room."""

    async def start(self, transport: Transport) -> None:
        self._subscription = await transport.subscribe(self.subject, self._on_message, queue=self.queue)

    async def _end(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.unsubscribe()
        self._waiting.clear()

    def _on_message(self, message: Message) -> None:
        if len(self._waiting) >= self._limit:
            self.dropped += 1
            if self._loop.time() >= self._quiet_until:  # a flood must not become a flood of log lines
                self._quiet_until = self._loop.time() + 1.0
                log.warning("callbacks of %r are too slow: %d messages were dropped so far", self.subject, self.dropped)
            return
        self._waiting.append(message)
        self._pump()

    def _pump(self) -> None:
        while self._waiting and len(self._running) < self.concurrency:
            task = self._loop.create_task(self._handle(self._waiting.popleft()))
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._pump()

    async def _handle(self, message: Message) -> None:
        """The way of one message; whoever waits for an answer hears of an error."""
        headers = dict(message.headers or {})
        incoming = Incoming(message.subject, message.data, headers, message.reply, self._send)
        try:
            incoming.data = unpacked(message.data, headers, self._max_unpacked)
            await call(self._callback, incoming)
        except (Exception, SystemExit) as error:  # the edge to foreign code: a callback may raise anything
            log.exception("a callback of %r failed", self.subject)
            if not incoming.answered:
                problem = error if isinstance(error, Exception) else RuntimeError("the callback exits")
                await refuse(incoming, problem)


async def call(callback: Callback, incoming: Incoming) -> Any:
    """Call it, and wait for what it returns if that is to be awaited."""
    outcome = callback(incoming)
    return await outcome if inspect.isawaitable(outcome) else outcome


async def refuse(incoming: Incoming, error: Exception) -> None:
    """Answer with an error, if an answer is waited for and can be sent."""
    try:
        await incoming.respond(b"", error_headers(error))
    except AgentMeshError as problem:
        log.warning("the error of a callback could not be sent: %s", problem)
