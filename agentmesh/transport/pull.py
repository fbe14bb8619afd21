"""Pulling from a durable consumer, by hand: nothing is fetched that nobody asked for, nothing is left unowned."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from agentmesh.errors import AgentMeshError, BrokerError, ConsumerGoneError
from agentmesh.transport.connection import Connection, Subscription
from agentmesh.transport.wire import Message, ServerStatus

if TYPE_CHECKING:
    from agentmesh.transport.transport import Transport

log = logging.getLogger("agentmesh.transport")

HEARTBEAT = 0.5
EXPIRES = 5.0
NO_WAIT_EXPIRES = 0.02
"""Ends a pull for what is there now. An empty queue is only known when it passes; without it, a pull on a consumer
at its `max_ack_pending` would stay open for ever."""
LAST_WORDS = 1.0
"""Seconds that `end` waits for the broker."""
LOOK_AGAIN = 0.25
"""Seconds between looks at a waiting pull: renewed when expired, or silent for two heartbeats."""


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Delivery:
    """One message of a consumer, to be settled with `ack`, `nak` or `term` of the transport."""

    __slots__ = ("attempt", "data", "headers", "pending", "reply", "sequence", "subject")

    def __init__(self, message: Message) -> None:
        self.subject = message.subject
        self.data = message.data
        self.headers = message.headers
        self.reply = message.reply
        # $JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>, where servers with
        # js_ack_fc_v2 put <domain>.<account> in front of the stream and more behind.
        tokens = message.reply.split(".")
        base = 4 if len(tokens) == 9 else 6
        self.attempt = int(tokens[base])
        """How often it was delivered, from 1."""
        self.sequence = int(tokens[base + 1])
        """Its number in the stream."""
        self.pending = int(tokens[base + 4])
        """Messages the consumer had not delivered to anybody yet, when this one was."""

    @property
    def stored_at(self) -> datetime:
        """When the broker stored it, by the broker's clock; aware, UTC, and the same in every delivery."""
        tokens = self.reply.split(".")
        nanoseconds = int(tokens[7 if len(tokens) == 9 else 9])
        return _EPOCH + timedelta(microseconds=nanoseconds // 1000)

    def __repr__(self) -> str:
        return f"Delivery({self.subject!r}, sequence={self.sequence}, attempt={self.attempt})"


class _Lane:
    """A reply subject for pulls, one pull at a time.

    A delivery carries the subject it was stored under, so only the subscription tells whose pull it answers; the
    status that ends a pull carries the reply subject, so its last token tells which pull is over.
    """

    def __init__(self, consumer: PullConsumer, base: str) -> None:
        self._consumer = consumer
        self._base = base
        self._loop = asyncio.get_running_loop()
        self._count = 0
        self._subscription: Subscription | None = None
        self.over: asyncio.Future[None] | None = None
        self.open = False
        self.left = 0
        self.heard = 0.0
        self.deadline = 0.0

    async def start(self, connection: Connection) -> None:
        self._subscription = await connection.subscribe(self._base + ".*", self._on_message)

    async def stop(self, timeout: float) -> None:
        """Hear no more, which ends an open pull; what the broker sent before it knew still arrives."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.drain(timeout)
        self.end()

    def begin(self, n: int, expires: float) -> str:
        """Note a new pull of `n`; its reply subject."""
        if self._subscription is None:
            raise RuntimeError("call start() of the PullConsumer before pulling")
        self._count += 1
        self.open, self.left, self.heard = True, n, self._loop.time()
        self.deadline = self.heard + expires
        return f"{self._base}.{self._count}"

    def end(self) -> None:
        self.open = False
        if self.over is not None and not self.over.done():
            self.over.set_result(None)

    def _on_message(self, message: Message) -> None:
        self.heard = self._loop.time()
        if message.reply.startswith("$JS.ACK."):  # only deliveries have it; a user's `Status` header is data
            delivery = Delivery(message)
            self.left -= 1
            # Redeliveries come first and are not counted in `pending`: only a first delivery says "that was all".
            if self.left <= 0 or (delivery.pending == 0 and delivery.attempt == 1 and self.over is not None):
                self.end()
            self._consumer._deliver(delivery, wake=self.over is None)
        elif type(message.headers) is ServerStatus and message.headers.code != "100":
            if message.subject == f"{self._base}.{self._count}":
                self.end()
            self._consumer._on_status(message.headers)


class PullConsumer:
    """A worker's side of a durable consumer. See `Transport.pull`."""

    def __init__(self, transport: Transport, stream: str, consumer: str, ready: asyncio.Event | None = None) -> None:
        self.stream = stream
        self.consumer = consumer
        self.ready = ready or asyncio.Event()
        """Set whenever `received()` has something, or an error to raise. Clear it before you call `received()`."""
        self._transport = transport
        self._connection = transport.connection
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        base = transport.connection.unique_subject()
        self._now = _Lane(self, base + ".now")
        self._waiting = _Lane(self, base + ".wait")
        self._queue: deque[Delivery] = deque()
        self._armed = False
        self._error: AgentMeshError | None = None
        self._mending: asyncio.Task[None] | None = None
        self._generation = 0
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False
        self._stopped = False

    async def start(self) -> None:
        """Get ready to pull. Call it once, first."""
        await self._now.start(self._connection)
        await self._waiting.start(self._connection)

    async def end(self, timeout: float = LAST_WORDS) -> None:
        """Ask for nothing more. What the broker sent before it knew comes out of `take` and `received()`, and no more.

        Args:
            timeout: Seconds to wait for a take that is under way, and then for the broker.
        """
        self._armed, self._ended = False, True
        if self._now.over is not None:
            await asyncio.wait({self._now.over}, timeout=timeout)
        await asyncio.gather(*(lane.stop(timeout) for lane in (self._now, self._waiting)))

    async def stop(self) -> None:
        """Ask for nothing more; what was delivered and not handed out is given back."""
        self._stopped = True
        self._transport.forget_pull(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._mending is not None:
            self._mending.cancel()
        while self._queue:
            self._give_back(self._queue.popleft())
        await self.end()

    # -- take: what is there now

    async def take(self, n: int, *, timeout: float = 1.0) -> list[Delivery]:
        """Up to `n` messages that are there now, oldest first; [] when there are none. One call at a time.

        Without a connection it returns what came within `timeout` seconds. What arrives after that, or after the
        caller was cancelled, is kept for the next call.

        Raises:
            ConsumerGoneError: The consumer was deleted and could not be made again.
        """
        lane, queue = self._now, self._queue
        if len(queue) < n and not self._ended:
            reply = lane.begin(n - len(queue), NO_WAIT_EXPIRES)
            lane.over = asyncio.get_running_loop().create_future()
            request = f'{{"batch":{lane.left},"no_wait":true,"expires":{int(NO_WAIT_EXPIRES * 1e9)}}}'
            self._connection.send(self._next, request.encode(), reply)
            await asyncio.wait({lane.over}, timeout=timeout)
            lane.over = None
        if not queue:
            self._raise_error()
        return [queue.popleft() for _ in range(min(n, len(queue)))]

    # -- arm: wait for what will come

    @property
    def armed(self) -> bool:
        """Whether a waiting pull is open."""
        return self._armed

    def arm(self, n: int = 1) -> None:
        """Wait for `n` messages, over restarts of the broker; a no-op while armed. They come out of `received()`."""
        if not self._armed and not self._ended:
            self._armed = True
            self._wait_for(n)
            self._look_later()

    def disarm(self) -> None:
        """Wait no more. A pull the broker has already is not renewed: it may still bring what it asked for."""
        self._armed = False

    def received(self) -> list[Delivery]:
        """What was delivered since the last call; never blocks.

        Raises:
            ConsumerGoneError: The consumer was deleted and could not be made again.
        """
        if self._queue:
            deliveries = list(self._queue)
            self._queue.clear()
            return deliveries
        self._raise_error()
        return []

    def _wait_for(self, n: int) -> None:
        self._generation = self._connection.generation
        reply = self._waiting.begin(n, EXPIRES)
        request = f'{{"batch":{n},"expires":{int(EXPIRES * 1e9)},"idle_heartbeat":{int(HEARTBEAT * 1e9)}}}'
        self._connection.send(self._next, request.encode(), reply)

    def _look_later(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_AGAIN, self._look)

    def _look(self) -> None:
        """Renew the waiting pull when it ended, fell silent, or belongs to a connection that is gone."""
        self._timer = None
        if not self._armed:
            return
        self._look_later()
        if self._mending is not None or self._connection.state != "connected":
            return
        lane, now = self._waiting, asyncio.get_running_loop().time()
        silent = now - lane.heard > 2 * HEARTBEAT
        if silent or now > lane.deadline or not lane.open or self._generation != self._connection.generation:
            self._wait_for(lane.left)

    # -- what the broker sends

    def _deliver(self, delivery: Delivery, wake: bool) -> None:
        if self._stopped:
            self._give_back(delivery)
            return
        self._queue.append(delivery)
        if wake:
            self.ready.set()
        if self._armed and self._waiting.left <= 0:
            self._armed = False

    def _on_status(self, status: ServerStatus) -> None:
        """A pull is over. 404 and 408 are its ordinary end; a missing consumer is made again or reported."""
        missing = status.code == "503" or "Consumer Deleted" in status.description
        if missing and self._mending is None and not self._stopped:
            self._mending = asyncio.create_task(self._mend())

    async def _mend(self) -> None:
        try:
            await self._transport.remake_consumer(self.stream, self.consumer)
        except ConsumerGoneError as error:
            self._error = error
            self.ready.set()
        except BrokerError as error:  # an election, a restart: the next pull finds out
            log.debug("cannot check consumer %r of stream %r: %s", self.consumer, self.stream, error)
        finally:
            self._mending = None

    def _raise_error(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _give_back(self, delivery: Delivery) -> None:
        self._connection.send(delivery.reply, b"-NAK")
