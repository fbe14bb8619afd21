"""One connection to the broker that comes back by itself, whatever ends it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import re
from collections.abc import Callable
from typing import Any

import nats.errors
from nats.aio.subscription import Subscription as NatsSubscription

from agentmesh.errors import (
    AgentMeshError,
    BrokerTooOldError,
    BrokerUnavailableError,
    ConnectionClosedError,
    ConnectionLostError,
    PayloadTooLargeError,
    PermissionDeniedError,
)
from agentmesh.ids import new_id
from agentmesh.transport.client import NatsClient
from agentmesh.transport.dialing import REFUSED, dial, hang_up, plain, version_of
from agentmesh.transport.inbox import Mux
from agentmesh.transport.options import TransportOptions, shown_url
from agentmesh.transport.watchdog import Watchdog
from agentmesh.transport.wire import HEADROOM, Message, check_pattern, check_subject, encode_headers

log = logging.getLogger("agentmesh.transport")

REQUIRED_VERSION = (2, 14)
STALL_TIMEOUT = 5.0
"""Seconds a publish waits for a server that takes no data."""
HIGH_WATER = 1024 * 1024
"""Bytes in the write buffer from which publishers wait."""
KNOWN_SUBJECTS = 1024

_DENIED = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"', re.IGNORECASE)


class Subscription:
    """A live subscription; it survives reconnects and rebuilt connections until `unsubscribe()`."""

    __slots__ = ("_connection", "_live", "callback", "denied", "queue", "subject")

    def __init__(self, connection: Connection, subject: str, callback: Callable[[Message], None], queue: str) -> None:
        self._connection = connection
        self._live: NatsSubscription | None = None
        self.subject = subject
        self.callback = callback
        self.queue = queue
        self.denied = False

    async def unsubscribe(self) -> None:
        """End it. Messages that are on their way are dropped. Never raises because the broker is gone."""
        self._connection.forget(self)

    async def drain(self, timeout: float = 1.0) -> None:
        """End it; what the broker sent before it knew is still delivered. Takes a round trip, at most `timeout` s."""
        await self._connection.finish(self, timeout)


class Connection:
    """See the module. `state` is connected, reconnecting or closed."""

    def __init__(self, options: TransportOptions, label: str = "", *, jetstream: bool = True) -> None:
        self.options = options
        self.name = options.name + label
        self.state = "connecting"
        self.generation = 0
        """Grows with every connection made; what was in flight on an older one may be lost."""
        self._nc = NatsClient()
        self._subscriptions: dict[Subscription, None] = {}
        self._known: set[str] = set()
        self._limit = 0
        self._room: asyncio.Future[None] | None = None
        self._usable = asyncio.Event()
        self._watchdog = Watchdog(self, jetstream=jetstream)
        self._watching: asyncio.Task[None] | None = None
        self._rebuilding: asyncio.Task[None] | None = None
        self._listeners: list[Callable[[str], None]] = []
        self._wait = 0.2
        self._last_problem = ""
        self.closed_because = ""
        """Why we closed it without being asked to; empty if we did not."""
        self._prefix = f"{options.reply_prefix}.{new_id()}"
        self._unique = itertools.count(1)
        self.inbox = Mux(self, self._prefix)

    # -- opening and closing

    async def open(self) -> None:
        """Make the first connection within `connect_timeout`.

        Raises:
            BrokerUnavailableError: Nobody answers there in time, or the login is refused.
            BrokerTooOldError: The broker is older than agentmesh needs.
            PermissionDeniedError: The user may not subscribe to its own reply subjects.
        """
        await self._dial(self._nc, self.options.connect_timeout)
        version = str(self._nc._server_info.get("version", "0"))
        if version_of(version) < REQUIRED_VERSION:
            await self.close()
            raise BrokerTooOldError(version, ".".join(map(str, REQUIRED_VERSION)))
        self._up()
        try:
            await self.subscribe(self.inbox.prefix + "*", self.inbox.dispatch)
        except PermissionDeniedError:
            await self.close()
            raise
        self._watching = asyncio.create_task(self._watchdog.run())

    async def close(self) -> None:
        """Send what is buffered and close, within a second. Never raises because the broker is gone."""
        if self.state == "closed":
            return
        nc, was = self._nc, self.state
        self._set_state("closed")
        self.inbox.fail_all(self.closed_because or "the connection was closed")
        for task in (self._watching, self._rebuilding):
            if task is not None:
                task.cancel()
        if was == "connected" and nc.is_connected:
            await nc.round_trip(0.4)
        await hang_up(nc)

    async def _dial(self, nc: NatsClient, timeout: float) -> None:
        self._last_problem = "no answer"
        callbacks = {
            "error_cb": self._on_error,
            "disconnected_cb": self._on_disconnected,
            "reconnected_cb": self._on_reconnected,
            "closed_cb": self._on_closed,
        }
        if not await dial(nc, self.options, self.name, timeout, callbacks):
            raise BrokerUnavailableError(self.options.shown, f"{self._last_problem} within {timeout:g} s")

    # -- publishing

    async def publish(
        self,
        subject: str,
        data: bytes,
        reply: str = "",
        headers: dict[str, str] | None = None,
        patience: float = STALL_TIMEOUT,
    ) -> None:
        """Put a message on the wire. It is gone when the connection is: only durable publishes are confirmed.

        Raises:
            InvalidSubjectError: `subject` or `reply` is malformed; nothing was sent.
            PayloadTooLargeError: Body and headers are over the limit; nothing was sent.
            ConnectionLostError: The broker took no data for `patience` seconds (5 at most), or we are closed.
        """
        if subject not in self._known:
            self._check(subject)
        if reply and not reply.startswith(self.inbox.prefix):
            check_subject(reply)
        block = encode_headers(headers) if headers else b""
        if len(data) + len(block) > self._limit:
            raise PayloadTooLargeError(len(data) + len(block), self._limit)
        if self._nc._pending_data_size > HIGH_WATER or self._nc.is_closed:
            await self._make_room(min(patience, STALL_TIMEOUT))
        self._nc.write(subject, data, reply, block)

    async def until_usable(self, timeout: float) -> None:
        """Wait for a connection; ConnectionLostError if there is none within `timeout` seconds."""
        if self.state == "closed":
            raise self._closed()
        try:
            async with asyncio.timeout(timeout):
                await self._usable.wait()
        except TimeoutError as error:
            raise ConnectionLostError(f"no connection to the broker within {timeout:g} s") from error

    def send(self, subject: str, data: bytes, reply: str = "") -> None:
        """Like `publish`, for small messages of our own on checked subjects; dropped while there is no connection."""
        if self.state == "connected" and not self._nc.is_closed:
            self._nc.write(subject, data, reply)

    def _check(self, subject: str) -> None:
        check_subject(subject)
        if len(self._known) >= KNOWN_SUBJECTS:
            self._known.clear()
        self._known.add(subject)

    async def _make_room(self, patience: float) -> None:
        """Wait until the write buffer is below its limit; a stalled or missing server ends the wait after a while."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        while self._nc.buffered > HIGH_WATER or self._nc.is_closed:
            left = deadline - loop.time()
            if self.state == "closed":
                raise self._closed()
            if left <= 0:
                raise ConnectionLostError(f"the broker took no data for {patience:g} s; nothing was sent")
            if self._room is None or self._room.done():
                self._room = self._nc.drained()
            if self._room is None:
                await asyncio.sleep(min(left, 0.05))
            else:
                await asyncio.wait({self._room}, timeout=min(left, 0.25))

    # -- subscribing

    async def subscribe(self, subject: str, callback: Callable[[Message], None], queue: str = "") -> Subscription:
        """Subscribe, and wait until the broker knows; without a broker, it will know at the next connection.

        Raises:
            PermissionDeniedError: The broker does not let this user subscribe there.
        """
        check_pattern(subject)
        if self.state == "closed":
            raise self._closed()
        subscription = Subscription(self, subject, callback, queue)
        self._subscriptions[subscription] = None
        if not self._nc.is_closed:
            subscription._live = await self._nc.listen(subject, queue, callback)
            if self.state == "connected":
                await self._nc.round_trip(2.0)
        if subscription.denied:
            self.forget(subscription)
            raise PermissionDeniedError("subscribe", subject)
        return subscription

    def _closed(self) -> ConnectionClosedError:
        return ConnectionClosedError(self.closed_because) if self.closed_because else ConnectionClosedError()

    def unique_subject(self) -> str:
        """The stem of reply subjects to subscribe to; inside what this user may read, outside the inbox wildcard."""
        return f"{self._prefix}.s{next(self._unique)}"

    def forget(self, subscription: Subscription) -> None:
        self._subscriptions.pop(subscription, None)
        if subscription._live is not None:
            self._nc.unlisten(subscription._live)

    async def finish(self, subscription: Subscription, timeout: float) -> None:
        self._subscriptions.pop(subscription, None)
        if subscription._live is not None:
            await self._nc.finish(subscription._live, timeout)

    # -- what nats-py tells us; nothing here may raise, it runs inside its read loop

    async def _on_error(self, error: Exception) -> None:
        self._last_problem = plain(error)
        denied = _DENIED.search(str(error))
        if denied is not None:
            self._on_denied(denied.group(1).lower(), denied.group(2))
        elif self.state == "reconnecting" and self._last_problem == REFUSED:
            self.rebuild(REFUSED)  # with credentials asked for anew, and for a limited time
        elif self.state == "reconnecting":
            self._wait = min(2.0, self._wait * 1.3)
            self._nc.options["reconnect_time_wait"] = self._wait * random.uniform(0.8, 1.2)
        elif self.state == "connected":
            log.warning("broker connection %s: %s", self.name, self._last_problem)

    def _on_denied(self, operation: str, subject: str) -> None:
        if operation == "publish":
            if not self.inbox.denied(subject):
                log.warning("the broker denies publish on %r to this user; the message was dropped", subject)
            return
        for subscription in self._subscriptions:
            if subscription.subject.lower() == subject:
                subscription.denied = True
                log.warning("the broker denies subscribe on %r to this user", subscription.subject)

    async def _on_disconnected(self) -> None:
        if self.state == "connected":
            self._wait = 0.2
            self._set_state("reconnecting")

    async def _on_reconnected(self) -> None:
        self._up()

    async def _on_closed(self) -> None:
        """nats-py gave up: a refused login, an oversized message, an account limit. Start over with a new client."""
        self.rebuild(plain(self._nc.last_error) if self._nc.last_error else "no reason given")

    def rebuild(self, problem: str) -> None:
        """Replace the client by a new one, with all subscriptions."""
        if self.state == "closed" or self._rebuilding is not None:
            return
        self._set_state("reconnecting")
        log.warning("broker connection %s was closed (%s); connecting anew", self.name, problem)
        self._rebuilding = asyncio.create_task(self._rebuild())

    async def _rebuild(self) -> None:
        pause, said = 0.2, ""
        loop = asyncio.get_running_loop()
        refused_since: float | None = None
        while self.state != "closed":
            nc = NatsClient()
            try:
                await self._dial(nc, 5.0)
                self._nc, old = nc, self._nc
                for subscription in list(self._subscriptions):
                    subscription._live = await nc.listen(
                        subscription.subject, subscription.queue, subscription.callback
                    )
                await hang_up(old)
            except (AgentMeshError, OSError, nats.errors.Error) as error:
                if str(error) != said:
                    said = str(error)
                    log.warning("broker connection %s: %s", self.name, error)
                if not (isinstance(error, BrokerUnavailableError) and error.problem == REFUSED):
                    refused_since = None
                elif refused_since is None:
                    refused_since = loop.time()
                elif loop.time() - refused_since >= self.options.login_patience:
                    await self._give_up()
                    return
                await asyncio.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(2.0, pause * 2)
            else:
                self._rebuilding = None
                self._up()
                return

    async def _give_up(self) -> None:
        """The login was good once, and is not any more."""
        self.closed_because = (
            f"{REFUSED} for {self.options.login_patience:g} s: it was changed, revoked, or has expired"
        )
        log.error("broker connection %s is closed for good: %s", self.name, self.closed_because)
        self._rebuilding = None
        await self.close()

    # -- state

    def _up(self) -> None:
        self._limit = min(self._nc.max_payload, self.options.max_payload or self._nc.max_payload) - HEADROOM
        self.generation += 1
        self._set_state("connected")

    def on_state(self, callback: Callable[[str], None]) -> None:
        self._listeners.append(callback)

    def _set_state(self, state: str) -> None:
        if self.state == "closed":
            return
        self.state = state
        if state == "connected":
            self._usable.set()
        else:
            self._usable.clear()
            self._room = None
            self.inbox.interrupt("the connection was lost on the way")
        for listener in self._listeners:
            try:
                listener(state)
            except Exception:  # a broken listener must not end nats-py's read loop
                log.exception("a connection state callback failed")

    @property
    def nc(self) -> NatsClient:
        """The client of the moment; another one after a rebuild."""
        return self._nc

    @property
    def reconnects(self) -> int:
        """Connections after the first one."""
        return max(0, self.generation - 1)

    @property
    def max_payload(self) -> int:
        """Bytes a message may have, headers included."""
        return self._limit

    @property
    def server_info(self) -> dict[str, Any]:
        return self._nc._server_info

    @property
    def url(self) -> str:
        """The server we are connected to, without credentials."""
        server = self._nc._current_server
        return shown_url(server.uri.geturl()) if server is not None else self.options.shown
