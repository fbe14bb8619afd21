"""The NATS client with its message path replaced.

nats-py queues every message behind a task per subscription, drops messages when that queue is full, loses a
subscription when a callback is cancelled, and blocks a publisher for ever on a stalled server. Here a message goes
from the parser straight to a plain function, and a publish appends to the write buffer and never waits.
Connecting, authentication, TLS, reconnecting and the parser stay nats-py's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from random import shuffle
from typing import Any

from nats.aio.client import Client
from nats.aio.subscription import Subscription

from agentmesh.transport.wire import Message, parse_headers

log = logging.getLogger("agentmesh.transport")

Sink = Callable[[Message], None]


class NatsClient(Client):
    """nats-py's client; see the module for what differs."""

    def __init__(self) -> None:
        super().__init__()
        self._sinks: dict[int, Sink] = {}
        self._kick: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._kick.set_result(None)  # the flusher completes what it finds in its queue, unless it is complete

    async def listen(self, subject: str, queue: str, sink: Sink) -> Subscription:
        """Subscribe; `sink` gets every message, in order, in the reading task. nats-py replays it on reconnects."""
        self._sinks[self._sid + 1] = sink  # the number nats-py takes next: no message can come before its sink
        return await self.subscribe(subject, queue=queue)

    def unlisten(self, subscription: Subscription) -> None:
        """End a subscription; what is on its way is dropped."""
        self._unsubscribe(subscription)
        self._sinks.pop(subscription._id, None)

    async def finish(self, subscription: Subscription, timeout: float) -> None:
        """End a subscription; what the server sent before it knew is still delivered, within `timeout` seconds."""
        if self._unsubscribe(subscription):
            await self.round_trip(timeout)
        self._sinks.pop(subscription._id, None)

    def _unsubscribe(self, subscription: Subscription) -> bool:
        known = self._subs.pop(subscription._id, None) is not None
        if known and self.is_connected:
            self._buffer(f"UNSUB {subscription._id}\r\n".encode())
            return True
        return False

    def write(self, subject: str, data: bytes, reply: str = "", headers: bytes = b"") -> None:
        """Put a checked message into the write buffer; sent by the flusher, or after the next reconnect."""
        if headers:
            size = len(headers)
            head = f"HPUB {subject} {reply} {size} {size + len(data)}\r\n".encode()
            self._buffer(b"".join((head, headers, data, b"\r\n")))
        else:
            self._buffer(f"PUB {subject} {reply} {len(data)}\r\n".encode() + data + b"\r\n")

    def _buffer(self, command: bytes) -> None:
        self._pending.append(command)
        self._pending_data_size += len(command)
        queue = self._flush_queue
        if queue is not None and queue.empty():
            queue.put_nowait(self._kick)

    @property
    def buffered(self) -> int:
        """Bytes waiting to be handed to the socket."""
        return self._pending_data_size

    def drained(self) -> asyncio.Future[None] | None:
        """A future that is done when what is buffered now went to the socket; None if that cannot be waited for."""
        queue = self._flush_queue
        if queue is None or queue.full():
            return None
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.put_nowait(done)
        return done

    async def round_trip(self, timeout: float) -> bool:
        """Whether the server answered a PING, sent behind everything buffered so far, within `timeout` seconds.

        The future is never cancelled: a PONG that comes late to a cancelled one would end nats-py's read loop.
        """
        pong: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pongs.append(pong)
        self._buffer(b"PING\r\n")
        await asyncio.wait({pong}, timeout=timeout)
        return pong.done()

    @property
    def is_deaf(self) -> bool:
        """Connected by its own account, but nobody reads the socket any more."""
        return self.is_connected and (self._reading_task is None or self._reading_task.done())

    @property
    def is_stuck(self) -> bool:
        """Reconnecting by its own account, but nobody is at it any more."""
        task = self._reconnection_task
        return self.is_reconnecting and task is not None and task.done()

    def abort(self) -> None:
        """Drop the socket without waiting for unsent bytes: a stalled peer would make that wait endless."""
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()

    async def _attempt_reconnect(self) -> None:
        """Any other server first: nats-py would go back to the one it just gave up as often as to another."""
        self.abort()
        others = [server for server in self._server_pool if server is not self._current_server]
        shuffle(others)
        self._server_pool = [*others, *(server for server in self._server_pool if server is self._current_server)]
        await super()._attempt_reconnect()

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        sink = self._sinks.get(sid)
        if sink is None:
            return
        self.stats["in_msgs"] += 1
        # Whatever escapes here would end nats-py's read loop and leave a connection that hears nothing.
        try:
            sink(Message(subject.decode(), data, reply.decode(), parse_headers(headers) if headers else None))
        except (Exception, asyncio.CancelledError):
            log.exception("handling a message on %r failed", subject)
