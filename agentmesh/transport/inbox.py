"""Replies: one wildcard subscription per connection, a dictionary, and one coarse timer for all deadlines."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Protocol

from agentmesh.errors import (
    ConnectionClosedError,
    ConnectionLostError,
    DeadlineExceededError,
    NoRespondersError,
    PermissionDeniedError,
)
from agentmesh.transport.wire import Message, is_no_responders

GRAIN = 0.05
"""Seconds by which a deadline may be late, so that one timer can serve them all."""

Callback = Callable[[Message], None]


class Writer(Protocol):
    """The part of a connection that requests need."""

    state: str

    async def until_usable(self, timeout: float) -> None: ...

    async def publish(
        self, subject: str, data: bytes, reply: str, headers: dict[str, str] | None, patience: float
    ) -> None: ...


class Waiting:
    """One request on its way."""

    __slots__ = ("deadline", "future", "repeatable", "subject", "timeout")

    def __init__(
        self, future: asyncio.Future[Message], subject: str, deadline: float, timeout: float, repeatable: bool
    ) -> None:
        self.repeatable = repeatable
        self.future = future
        self.subject = subject
        self.deadline = deadline
        self.timeout = timeout


class Inbox:
    """A unique reply subject whose messages go to a callback, until closed."""

    __slots__ = ("_mux", "callback", "key", "subject")

    def __init__(self, mux: Mux, key: str, callback: Callback) -> None:
        self._mux = mux
        self.key = key
        self.subject = mux.prefix + key
        self.callback = callback

    def close(self) -> None:
        self._mux.forget(self)


class Mux:
    """Hands the replies of one connection to whoever waits for them."""

    def __init__(self, writer: Writer, prefix: str) -> None:
        self.prefix = prefix + "."
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._skip = len(self.prefix)
        self._keys = map(str, itertools.count(1))
        self._waiting: dict[str, Waiting] = {}
        self._inboxes: dict[str, Inbox] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._wake = float("inf")

    # -- receiving

    def dispatch(self, message: Message) -> None:
        """The sink of the wildcard subscription."""
        key = message.subject[self._skip :]
        waiting = self._waiting.pop(key, None)
        if waiting is not None:
            if not waiting.future.done():
                waiting.future.set_result(message)
            return
        inbox = self._inboxes.get(key)
        if inbox is not None:
            inbox.callback(message)

    # -- requests

    async def request(
        self, subject: str, data: bytes, *, timeout: float, headers: dict[str, str] | None = None
    ) -> Message:
        """Send a request and wait for the first reply.

        Raises:
            NoRespondersError: Nobody is subscribed to `subject`; known at once.
            DeadlineExceededError: No reply within `timeout` seconds.
            PermissionDeniedError: The broker does not let us publish there; known at once.
        """
        reply = await self._exchange(subject, data, timeout, headers, False)
        if reply.headers is not None and is_no_responders(reply):
            raise NoRespondersError(subject)
        return reply

    async def attempt(
        self, subject: str, data: bytes, *, timeout: float, headers: dict[str, str] | None = None
    ) -> Message:
        """Like `request`, for callers that will try again: never sent without a connection, where copies would pile
        up in the write buffer, and failed with ConnectionLostError at once when the connection breaks."""
        if self._writer.state != "connected":
            await self._writer.until_usable(timeout)
        reply = await self._exchange(subject, data, timeout, headers, True)
        if reply.headers is not None and is_no_responders(reply):
            raise NoRespondersError(subject)
        return reply

    async def _exchange(
        self, subject: str, data: bytes, timeout: float, headers: dict[str, str] | None, repeatable: bool
    ) -> Message:
        key = next(self._keys)
        future: asyncio.Future[Message] = self._loop.create_future()
        deadline = self._loop.time() + timeout
        self._waiting[key] = Waiting(future, subject, deadline, timeout, repeatable)
        if deadline < self._wake:
            self._arm(deadline)
        try:
            await self._writer.publish(subject, data, self.prefix + key, headers, timeout)
            return await future
        finally:
            self._waiting.pop(key, None)

    async def send(self, subject: str, data: bytes, reply: str) -> None:
        await self._writer.publish(subject, data, reply, None, 2.0)

    def open(self, callback: Callback) -> Inbox:
        """A reply subject of its own; keep it open for as long as replies may come."""
        inbox = Inbox(self, next(self._keys), callback)
        self._inboxes[inbox.key] = inbox
        return inbox

    def forget(self, inbox: Inbox) -> None:
        self._inboxes.pop(inbox.key, None)

    # -- failures

    def denied(self, subject: str) -> bool:
        """Fail the requests to `subject`, which nats-py hands over in lower case; False if there are none."""
        hit = [w for w in self._waiting.values() if w.subject.lower() == subject and not w.future.done()]
        for waiting in hit:
            waiting.future.set_exception(PermissionDeniedError("publish", waiting.subject))
        return bool(hit)

    def interrupt(self, problem: str) -> None:
        """The connection broke: those who will try again need not wait for their deadline."""
        for waiting in self._waiting.values():
            if waiting.repeatable and not waiting.future.done():
                waiting.future.set_exception(ConnectionLostError(problem))

    def fail_all(self, problem: str) -> None:
        """The connection is closed for good: nobody will answer."""
        for waiting in self._waiting.values():
            if not waiting.future.done():
                waiting.future.set_exception(ConnectionClosedError(problem))
        if self._timer is not None:
            self._timer.cancel()

    @property
    def pending(self) -> int:
        """Requests without a reply so far."""
        return len(self._waiting)

    # -- the timer: runs only while something waits, at most once per GRAIN

    def _arm(self, deadline: float) -> None:
        now = self._loop.time()
        if self._timer is not None:
            if deadline > self._timer.when() - GRAIN:
                return
            self._timer.cancel()
        self._wake = max(deadline, now + GRAIN)
        self._timer = self._loop.call_at(self._wake, self._expire)

    def _expire(self) -> None:
        now = self._loop.time()
        self._timer, self._wake = None, float("inf")
        earliest = float("inf")
        for waiting in self._waiting.values():
            if waiting.deadline <= now:
                if not waiting.future.done():
                    waiting.future.set_exception(DeadlineExceededError(waiting.subject, waiting.timeout))
            elif waiting.deadline < earliest:
                earliest = waiting.deadline
        if earliest < float("inf"):
            self._arm(earliest)
