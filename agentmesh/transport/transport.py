"""The transport: everything agentmesh asks of NATS, in one object."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import Any

from agentmesh.breaker import Breakers
from agentmesh.errors import (
    ConnectionClosedError,
    ConnectionLostError,
    DeliveryError,
    PermissionDeniedError,
)
from agentmesh.tracing import make_tracer
from agentmesh.transport.api import JetStreamApi
from agentmesh.transport.connection import Connection, Subscription
from agentmesh.transport.inbox import Inbox
from agentmesh.transport.mending import Mender
from agentmesh.transport.options import TransportOptions
from agentmesh.transport.publisher import PubAck, Publisher
from agentmesh.transport.pull import Delivery, PullConsumer
from agentmesh.transport.reading import Reader, StoredMessage
from agentmesh.transport.services import Services
from agentmesh.transport.streams import Admin, ConsumerInfo, ConsumerSpec, Copy, StreamInfo, StreamSpec
from agentmesh.transport.wire import Message, is_no_responders

log = logging.getLogger("agentmesh.transport")

LAST_OPENING = 1.0
"""Seconds that `close` waits for a connection that is just being opened."""

ACK_TRIES = 3
ACK_TIMEOUT = 1.0


class Transport:
    """One process's connection to the broker, with everything agentmesh needs on top. Made by `connect`."""

    def __init__(self, options: TransportOptions, *, jetstream: bool = True) -> None:
        self.options = options
        self.tracer = make_tracer(options.tracing)
        """Makes spans of what is sent and handled; None: nothing is traced."""
        self.breakers = None if options.breaker is None else Breakers(options.breaker)
        """Of the agents that are asked over it; None: there are none."""
        self.connection = Connection(options, jetstream=jetstream)
        self._bulk: Connection | None = None
        self._bulk_publisher: Publisher | None = None
        self._bulk_opening = asyncio.Lock()
        self._api = JetStreamApi(self.connection.inbox)
        self._admin = Admin(self._api)
        self._mender = Mender(self._admin, lambda: self.replicas)
        self._publisher = Publisher(self.connection, self._mender.nobody_on)
        self._reader = Reader(self.connection.inbox, self._mender.nobody_has)
        self._may_ask_leaders = True
        self.services = Services(self.connection)
        """Discovery: `add` a service and `start` once."""
        self._pulls: set[PullConsumer] = set()
        self.shared: dict[tuple[str, str], Any] = {}
        """What everybody on this connection has in common, by kind and tenant; it goes when the connection does."""

    @classmethod
    async def connect(cls, options: TransportOptions, *, jetstream: bool = True) -> Transport:
        """Connect within `options.connect_timeout` seconds.

        Args:
            options: Where, and who we are.
            jetstream: Whether a server whose JetStream does not answer is of no use to us.

        Raises:
            BrokerUnavailableError: No connection in time, or the login was refused.
            BrokerTooOldError: The broker is older than 2.14.
        """
        transport = cls(options, jetstream=jetstream)
        await transport.connection.open()
        return transport

    async def close(self) -> None:
        """Send what is buffered and close; at most a second. Never raises because the broker is gone."""
        for pull in list(self._pulls):
            await pull.stop()
        open_ones = [c for c in (self.connection, self._bulk) if c is not None]
        await asyncio.gather(*(connection.close() for connection in open_ones))
        if self._bulk_opening.locked():
            with contextlib.suppress(TimeoutError):  # it closes again what it is opening
                async with asyncio.timeout(LAST_OPENING), self._bulk_opening:
                    pass

    async def __aenter__(self) -> Transport:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # -- the connection

    @property
    def url(self) -> str:
        """The server we are connected to, without credentials."""
        return self.connection.url

    @property
    def server_version(self) -> str:
        return str(self.connection.server_info.get("version", ""))

    @property
    def max_payload(self) -> int:
        """Bytes a message may have, headers included."""
        return self.connection.max_payload

    @property
    def client_id(self) -> int | None:
        return self.connection.nc.client_id

    @property
    def state(self) -> str:
        """connected, reconnecting or closed."""
        return self.connection.state

    @property
    def is_connected(self) -> bool:
        return self.connection.state == "connected"

    @property
    def closed_because(self) -> str:
        """Why the connection was closed for good without `close` being called; empty if it was not."""
        return self.connection.closed_because

    async def round_trip(self, timeout: float) -> bool:
        """Whether the broker answers within `timeout` seconds, behind everything that was sent before."""
        return self.is_connected and await self.connection.nc.round_trip(timeout)

    def on_state(self, callback: Callable[[str], None]) -> None:
        """Call `callback(state)` at every change. It must not block; what it raises is logged."""
        self.connection.on_state(callback)

    # -- core NATS

    async def publish(self, subject: str, data: bytes, reply: str = "", headers: dict[str, str] | None = None) -> None:
        """Send an event: at most once, gone when nobody listens or the connection breaks.

        Raises:
            InvalidSubjectError: `subject` or `reply` is malformed; nothing was sent.
            PayloadTooLargeError: Body and headers are over `max_payload`; nothing was sent.
            ConnectionLostError: The broker took no data for 5 seconds, or we are closed.
        """
        await self.connection.publish(subject, data, reply, headers)

    async def subscribe(self, subject: str, callback: Callable[[Message], None], *, queue: str = "") -> Subscription:
        """Call `callback` with every message, in order. It is a plain function and must not block.

        What it raises is logged and never ends the subscription, which survives reconnects. When this returns, the
        broker knows the subscription (without a connection: at the next one).

        Raises:
            PermissionDeniedError: The broker does not let this user subscribe there.
        """
        return await self.connection.subscribe(subject, callback, queue)

    async def request(
        self, subject: str, data: bytes, *, timeout: float, headers: dict[str, str] | None = None
    ) -> Message:
        """Send a request and return the first reply.

        Raises:
            NoRespondersError: Nobody is subscribed to `subject`; known at once.
            DeadlineExceededError: No reply within `timeout` seconds; the work may or may not have been done.
            PermissionDeniedError: The broker does not let this user publish there; known at once.
        """
        return await self.connection.inbox.request(subject, data, timeout=timeout, headers=headers)

    async def request_many(self, subject: str, data: bytes, *, timeout: float, stall: float) -> list[Message]:
        """Every reply to a request; may be empty.

        The first is waited for up to `timeout` seconds (nobody there is known at once); after that `stall` seconds of
        silence, or `timeout` in all, end the wait.
        """
        replies: list[Message] = []
        arrived = asyncio.Event()

        def on_reply(message: Message) -> None:
            replies.append(message)
            arrived.set()

        inbox = self.open_inbox(on_reply)
        try:
            await self.publish(subject, data, inbox.subject)
            async with asyncio.timeout(timeout):
                while True:
                    async with asyncio.timeout(stall if replies else None):
                        await arrived.wait()
                    arrived.clear()
                    if is_no_responders(replies[-1]):
                        return []
        except TimeoutError:
            return replies
        finally:
            inbox.close()

    def open_inbox(self, callback: Callable[[Message], None]) -> Inbox:
        """A unique reply subject whose messages go to `callback`, until closed; costs no subscription.

        "No responders" arrives as a message: see `is_no_responders`.
        """
        return self.connection.inbox.open(callback)

    # -- durable

    async def publish_durable(
        self,
        subject: str,
        data: bytes,
        *,
        msg_id: str = "",
        headers: dict[str, str] | None = None,
        expect_last: int | None = None,
        timeout: float = 30.0,
        bulk: bool = False,
    ) -> PubAck:
        """Store a message in the stream that captures `subject`; repeated with the same id until confirmed.

        Args:
            subject: Where to.
            data: The body.
            msg_id: Stored once within the stream's duplicate window, also when you call this again. Without it (and
                without `expect_last`) only the repetitions of this one call are recognised.
            headers: Copied, not changed.
            expect_last: Store it only if the last message on `subject` has this sequence; 0: if there is none.
            timeout: Seconds until PublishTimeoutError. Cancelling leaves the fate of the message unknown, too.
            bulk: Use the second connection, so that a slow token stream cannot delay acks.

        Raises:
            PublishTimeoutError: Not confirmed in time: it may or may not be stored.
            StreamFullError: The stream takes no more on this subject; nothing was stored.
            SequenceConflictError: `expect_last` does not hold; nothing was stored.
            PayloadTooLargeError: Over the limit of the broker or the stream; nothing was stored.
        """
        publisher = await self._bulk_line() if bulk else self._publisher
        return await publisher.publish(
            subject, data, msg_id=msg_id, headers=headers, expect_last=expect_last, timeout=timeout
        )

    async def _bulk_line(self) -> Publisher:
        """The publisher on the second connection, opened at its first use."""
        if self._bulk_publisher is None:
            async with self._bulk_opening:
                if self._bulk_publisher is None:
                    if self.state == "closed":
                        raise ConnectionClosedError
                    connection = Connection(self.options, "/bulk")
                    await connection.open()
                    if self.state == "closed":  # meanwhile
                        await connection.close()
                        raise ConnectionClosedError
                    self._bulk, self._bulk_publisher = connection, Publisher(connection, self._mender.nobody_on)
        return self._bulk_publisher

    async def last_message(self, stream: str, subject: str, *, latest: bool = False) -> StoredMessage | None:
        """The last message on `subject`. In a cluster, a replica that lags may answer with an older one or None.

        Args:
            stream: Which stream.
            subject: Without wildcards.
            latest: Have the leader of the stream answer instead, as far as this user may ask it. A single server
                always has the latest, and is asked in the faster way.
        """
        if latest and self._may_ask_leaders and self.clustered:
            try:
                return await self._reader.latest(stream, subject)
            except PermissionDeniedError:
                self._may_ask_leaders = False
        return await self._reader.last(stream, subject)

    async def messages(self, stream: str, subject: str, *, start: int = 1, limit: int = 500) -> list[StoredMessage]:
        """Up to `limit` messages on `subject` (wildcards allowed) from stream sequence `start`, oldest first."""
        return await self._reader.many(stream, subject, start, limit)

    def pages(self, stream: str, subject: str, *, start: int = 1) -> AsyncGenerator[list[StoredMessage], None]:
        """All messages on `subject` from stream sequence `start` to the last there is now, oldest first, in pages of
        at most 500 messages and about 2 MB; the next page comes while one is worked on."""
        return self._reader.pages(stream, subject, start)

    async def get_message(self, stream: str, sequence: int) -> StoredMessage | None:
        """The message with that stream sequence, None if it was never there or is gone."""
        return await self._reader.at(stream, sequence)

    async def delete_message(self, stream: str, sequence: int) -> None:
        """Remove one message; it is not an error if it is gone."""
        await self._api.find(f"STREAM.MSG.DELETE.{stream}", {"seq": sequence, "no_erase": True})

    async def purge(self, stream: str, subject: str) -> int:
        """Remove all messages on `subject` (wildcards allowed) and return how many."""
        answer = await self._api.call(f"STREAM.PURGE.{stream}", {"filter": subject})
        return int(answer.get("purged", 0))

    # -- streams and consumers

    async def ensure_stream(self, spec: StreamSpec) -> None:
        """Make the stream, or check the one that is there: a bound that differs is logged. If it is deleted later,
        the first use that finds nobody there makes it again, empty.

        Raises:
            ConfigError: It is there and promises something else (subjects, retention, storage, discard …).
        """
        await self._admin.ensure_stream(spec, self.replicas)
        self._mender.streams[spec.name] = spec

    async def edit_stream(self, name: str, **changes: int | str) -> None:
        """Change bounds of a stream, given as the broker names them, for everybody who uses it.

        Raises:
            JetStreamError: There is no such stream, or it cannot be changed to that.
        """
        await self._admin.edit_stream(name, changes)

    async def ensure_consumer(self, spec: ConsumerSpec) -> None:
        """Make the consumer, or check the one that is there. If it is deleted later, pulls make it again.

        Raises:
            ConfigError: It is there and delivers something else.
        """
        await self._admin.ensure_consumer(spec)
        self._mender.consumers[spec.stream, spec.name] = spec

    async def delete_consumer(self, stream: str, name: str) -> None:
        """Delete it; it is not an error if it is gone."""
        self._mender.consumers.pop((stream, name), None)
        await self._admin.delete_consumer(stream, name)

    async def delete_stream(self, name: str) -> None:
        """Delete a stream with everything in it; it is not an error if it is gone."""
        self._mender.streams.pop(name, None)
        await self._admin.delete_stream(name)

    async def stream_info(self, name: str) -> StreamInfo | None:
        return await self._admin.stream_info(name)

    async def streams(self) -> list[StreamInfo]:
        """Every stream of the account, also those of others."""
        return await self._admin.streams()

    async def clock_offset(self, stream: str) -> float | None:
        """Seconds by which the broker's time of day is ahead of ours, within a round trip; None without the stream."""
        return await self._admin.clock_offset(stream)

    async def consumer_info(self, stream: str, name: str) -> ConsumerInfo | None:
        return await self._admin.consumer_info(stream, name)

    async def copies(self, stream: str) -> list[Copy]:
        """The copies of a stream beside the leader's, as the leader sees them; none without a cluster."""
        return await self._admin.copies(stream)

    async def leaders(self, stream: str) -> dict[str, str]:
        """The server that each consumer of a stream is led by, by name of the consumer; empty: nobody leads it."""
        return await self._admin.leaders(stream)

    async def step_down(self, stream: str, consumer: str) -> None:
        """Have another server lead a consumer. Deliveries under way stay valid."""
        await self._admin.step_down(stream, consumer)

    async def subjects_of(self, stream: str, pattern: str) -> dict[str, int]:
        """How many messages the stream holds per subject matching `pattern`."""
        return await self._admin.subjects_of(stream, pattern)

    @property
    def clustered(self) -> bool:
        """Whether the server is one of several."""
        return bool(self.connection.server_info.get("cluster"))

    @property
    def replicas(self) -> int:
        """Copies of each stream we make: as configured, else 3 in a cluster of three or more nodes."""
        if self.options.replicas is not None:
            return self.options.replicas
        info = self.connection.server_info
        return 3 if self.clustered and len(info.get("connect_urls") or ()) >= 3 else 1

    # -- deliveries

    def pull(self, stream: str, consumer: str, *, ready: asyncio.Event | None = None) -> PullConsumer:
        """A worker's side of a durable consumer. Several may share one `ready` event."""
        pull = PullConsumer(self, stream, consumer, ready)
        self._pulls.add(pull)
        return pull

    async def ack(self, delivery: Delivery) -> bool:
        """Settle it and wait for the broker's confirmation; three tries of a second. False if unconfirmed."""
        for _ in range(ACK_TRIES):
            try:
                await self.connection.inbox.attempt(delivery.reply, b"+ACK", timeout=ACK_TIMEOUT)
            except (DeliveryError, ConnectionLostError):
                continue
            return True
        return False

    async def nak(self, delivery: Delivery, delay: float = 0.0) -> None:
        """Give it back: delivered again, to anybody, after `delay` seconds."""
        options = f" {json.dumps({'delay': int(delay * 1e9)})}" if delay > 0 else ""
        await self._settle(delivery, f"-NAK{options}".encode())

    async def in_progress(self, delivery: Delivery) -> None:
        """Tell the broker that we are still at it: its `ack_wait` starts again."""
        await self._settle(delivery, b"+WPI")

    async def term(self, delivery: Delivery, reason: str) -> None:
        """Never deliver it again. `reason` appears in the broker's advisory."""
        await self._settle(delivery, f"+TERM {reason}".encode())

    async def _settle(self, delivery: Delivery, verdict: bytes) -> None:
        try:
            await self.connection.publish(delivery.reply, verdict)
        except ConnectionLostError:
            log.debug("%r stays with the broker until its ack_wait passes", delivery)

    def forget_pull(self, pull: PullConsumer) -> None:
        self._pulls.discard(pull)

    async def remake_consumer(self, stream: str, consumer: str) -> None:
        """Make a consumer again that was deleted under its workers; nothing happens if it is there."""
        await self._mender.consumer(stream, consumer)
