"""Leases: of all processes that want a name, one has it at a time.

    async with Lease(transport, subjects, "supervisor", on_gained=begin, on_lost=end) as lease:
        ...
        if lease.held:
            await act(fence=lease.token)

A lease is one message on `$KV.mesh_lease.T.<name>` that the broker forgets after `ttl` seconds. Whoever stores it where
there is none is the holder, and stores it again every 0.3 `ttl`, on condition that its own is still the last one. It
stops acting when that is refused, and 0.7 `ttl` after it began its last successful renewal, by its own clock: before
the broker forgets the lease, so that no two holders act at once. The others look every half second, and at once when
the holder says that it let go. A holder killed with SIGKILL is replaced within `ttl` + 0.5 s.

A clock cannot stop what is under way: a process that is frozen between asking `held` and acting acts late. What must
not happen then has to be refused by whoever stores it, for example by comparing `token`: it grows with every holder.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable
from datetime import datetime
from types import TracebackType
from typing import Self

import msgspec

from agentmesh.errors import (
    AgentMeshError,
    ConfigError,
    ConnectionLostError,
    JetStreamUnavailableError,
    PublishTimeoutError,
    SequenceConflictError,
)
from agentmesh.ids import new_id, now
from agentmesh.subjects import Subjects
from agentmesh.tasks.layout import LEASES
from agentmesh.transport import Message, StoredMessage, Subscription, Transport

log = logging.getLogger("agentmesh.lease")

TTL = 5.0
"""Seconds, unless told otherwise."""

LOOK_PERIOD = 0.5
"""Seconds between the looks of those that wait."""

RENEW, ACT = 0.3, 0.7
"""Fractions of the TTL: when to renew, and how long a holder may act after its last renewal began."""

RELEASE_TIMEOUT = 1.0
"""Seconds to let go of a lease; later it ends by itself."""

PROMPT = "lease"
"""Control subject: the name of a lease that was let go."""


class Holder(msgspec.Struct, omit_defaults=True):
    """Who has a lease, as it is stored."""

    holder: str
    """Id of this one `Lease` object."""
    since: datetime
    host: str = ""
    pid: int = 0
    about: str = ""
    """What the holder says of itself."""
    ttl: float = TTL
    token: int = 0
    """Stream sequence of the acquisition: grows with every holder. 0 in the record that acquires."""

    @property
    def seems_dead(self) -> bool:
        """Whether no process of its id runs on its host, which is this one. In a container, "this one" may deceive."""
        return self.host == socket.gethostname() and not _lives(self.pid)


_decode = msgspec.json.Decoder(Holder).decode
_AWAY = (TimeoutError, ConnectionLostError, PublishTimeoutError, JetStreamUnavailableError)


def clock() -> float:
    """Seconds that only grow, also while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Lease:
    """See the module. Use it as an async context manager, or call `start` and `stop`.

    Args:
        transport: The connection.
        subjects: The tenant's subjects.
        name: What is leased.
        ttl: Whole seconds, 1 or more, until the lease of a holder that is gone ends.
        about: Shown to whoever looks who has it.
        on_gained: Called in the event loop when this process has become the holder; must not block.
        on_lost: Called with the reason when it no longer is; it must stop acting at once.
        on_other: Called with the record of another holder when it is first seen.

    Raises:
        ConfigError: `ttl` is nothing the broker can count.
    """

    def __init__(
        self,
        transport: Transport,
        subjects: Subjects,
        name: str,
        *,
        ttl: float = TTL,
        about: str = "",
        on_gained: Callable[[], None] = lambda: None,
        on_lost: Callable[[str], None] = lambda reason: None,
        on_other: Callable[[Holder], None] = lambda holder: None,
    ) -> None:
        if ttl < 1 or ttl != int(ttl):
            raise ConfigError("ttl", f"{ttl:g}: expected whole seconds, 1 or more")
        self.name = name
        self.ttl = float(ttl)
        self.token = 0
        """Of the present holding, or of the last one: the stream sequence of its acquisition."""
        self.holder: Holder | None = None
        """Who had it at the last look; None: nobody."""
        self.previous: Holder | None = None
        """The last one seen to have it, other than this one."""
        self.problem = ""
        """Why the last look or renewal failed; empty: it did not."""
        self._transport = transport
        self._subjects = subjects
        self._subject = subjects.lease(name)
        self._record = Holder(new_id(), now(), socket.gethostname(), os.getpid(), about, self.ttl)
        self._on_gained = on_gained
        self._on_lost = on_lost
        self._on_other = on_other
        self._revision = 0
        self._until = 0.0
        self._renewed = 0.0
        self._held = False
        self._sure = False
        self._changed = asyncio.Event()
        self._prompted = asyncio.Event()
        self._subscription: Subscription | None = None
        self._end: asyncio.TimerHandle | None = None
        self._loop: asyncio.Task[None] | None = None

    @property
    def held(self) -> bool:
        """Whether this process may act now. Looks at the clock: false at once in a process that was frozen."""
        return self._held and clock() < self._until

    async def start(self) -> None:
        """Begin to want the lease; it comes some time later, or never."""
        self._subscription = await self._transport.subscribe(self._subjects.control(PROMPT), self._on_prompt)
        self._loop = asyncio.get_running_loop().create_task(self._run(), name=f"lease {self.name}")

    async def stop(self) -> None:
        """Stop wanting it. A holder lets go, so that another one can take it at once; `on_lost` is called before."""
        if self._loop is None:
            return
        self._loop.cancel()
        await asyncio.wait([self._loop])
        self._loop = None
        had_it = self._revision > 0 and self._transport.is_connected
        self._lose("let go")
        with contextlib.suppress(AgentMeshError, TimeoutError):
            async with asyncio.timeout(RELEASE_TIMEOUT):
                if self._subscription is not None:
                    await self._subscription.unsubscribe()
                if had_it:
                    await self._release()

    async def settled(self) -> bool:
        """Wait until it is known who has it; whether this process has."""
        while not self.held and self.holder is None:
            self._changed.clear()
            await self._changed.wait()
        return self.held

    async def gained(self) -> int:
        """Wait until this process is the holder; the token."""
        while not self.held:
            self._changed.clear()
            await self._changed.wait()
        return self.token

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # ------------------------------------------------------------ the life of a lease
    async def _run(self) -> None:
        while True:
            try:
                if self.held:
                    await asyncio.sleep(max(0.0, self._renewed + RENEW * self.ttl - clock()))
                    await self._renew()
                else:
                    self._lose("it was not renewed in time")
                    await self._acquire()
                    if not self.held:
                        await self._wait()
            except Exception as error:  # whatever it is, wanting the lease must not end in silence
                self._trouble(error)
                await asyncio.sleep(min(LOOK_PERIOD, self.ttl / 20))
            else:
                self.problem = ""

    def _trouble(self, error: Exception) -> None:
        """A broker that is away is not worth a line: the transport says so. One that refuses us is."""
        self._sure = False  # a broker that was replaced may not have the stream
        problem = str(error) or type(error).__name__
        if not isinstance(error, _AWAY) and problem != self.problem:
            log.warning("lease %s cannot be had: %s", self.name, problem)
        self.problem = problem

    async def _wait(self) -> None:
        """Until the next look: half a second, or until the holder says that it let go."""
        self._prompted.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_PERIOD):
                await self._prompted.wait()

    async def _acquire(self) -> None:
        """Take it if nobody has it. A record of our own is from a holding that our clock ended: it is taken over."""
        if not self._sure:
            await self._transport.ensure_stream(LEASES)
            self._sure = True
        async with asyncio.timeout(ACT * self.ttl):
            stored = await self._transport.last_message(LEASES.name, self._subject)
            if stored is not None and not self._see(stored):
                return
            self._record.since, self._record.token = now(), 0
            began = clock()
            with contextlib.suppress(SequenceConflictError):  # somebody was faster
                self._gain(await self._store(stored.sequence if stored else 0), began)

    async def _renew(self) -> None:
        began = clock()
        try:
            async with asyncio.timeout(RENEW * self.ttl):
                self._extend(await self._store(self._revision), began)
        except SequenceConflictError:
            await self._refused()

    async def _refused(self) -> None:
        """Somebody else has it, or an earlier renewal was stored and only its confirmation was lost."""
        async with asyncio.timeout(RENEW * self.ttl):
            stored = await self._transport.last_message(LEASES.name, self._subject)
        if stored is None:
            self._lose("the renewal was refused: it had ended")
        elif self._see(stored):
            self._revision = stored.sequence  # not counted as a renewal: the next one follows at once
        else:
            other = read(stored)
            self._lose(f"the renewal was refused: pid {other.pid} on {other.host} has it")

    def _see(self, stored: StoredMessage) -> bool:
        """Note whose record it is; whether it is ours."""
        found = read(stored)
        self.holder = found
        self._changed.set()
        if found.holder == self._record.holder:
            return True
        known, self.previous = self.previous, found
        if known is None or known.holder != found.holder:
            self._call(lambda: self._on_other(found))
        return False

    async def _store(self, expected: int) -> int:
        """Store our record if the last one has the sequence `expected` (0: if there is none); its sequence."""
        ack = await self._transport.publish_durable(
            self._subject,
            msgspec.json.encode(self._record),
            headers={"Nats-TTL": f"{int(self.ttl)}s"},
            expect_last=expected,
            timeout=ACT * self.ttl,
        )
        return ack.sequence

    async def _release(self) -> None:
        """Remove our record, and nobody else's: a sequence is given once."""
        stored = await self._transport.last_message(LEASES.name, self._subject)
        if stored is not None and read(stored).holder == self._record.holder:
            await self._transport.delete_message(LEASES.name, stored.sequence)
            await self._transport.publish(self._subjects.control(PROMPT), self.name.encode())

    # ------------------------------------------------------------ state
    def _gain(self, revision: int, began: float) -> None:
        self.token = self._record.token = revision
        self._held = True
        self._extend(revision, began)
        if not self.held:  # it took so long that it is over
            self._held = False
            return
        self.holder = self._record
        self._changed.set()
        log.debug("lease %s is ours (token %d)", self.name, self.token)
        self._call(self._on_gained)

    def _extend(self, revision: int, began: float) -> None:
        self._revision, self._renewed, self._until = revision, began, began + ACT * self.ttl
        if self._end is not None:
            self._end.cancel()
        left = max(0.0, self._until - clock())
        self._end = asyncio.get_running_loop().call_later(left, self._lose, "it was not renewed in time")

    def _lose(self, reason: str) -> None:
        if self._end is not None:
            self._end.cancel()
            self._end = None
        self._revision = 0
        if self._held:
            self._held = False
            log.debug("lease %s is no longer ours: %s", self.name, reason)
            self._call(lambda: self._on_lost(reason))

    def _call(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception:  # whoever is told must not end the lease
            log.exception("lease %s: a callback failed", self.name)

    def _on_prompt(self, message: Message) -> None:
        if message.data == self.name.encode():
            self._prompted.set()


def _lives(pid: int) -> bool:
    """Whether there is such a process here, or one we may not see."""
    try:
        os.kill(max(1, pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


async def holders(transport: Transport, subjects: Subjects) -> dict[str, Holder]:
    """Who has which lease of the tenant now, by name."""
    if await transport.stream_info(LEASES.name) is None:
        return {}
    stored = await transport.messages(LEASES.name, subjects.all_leases())
    return {message.subject.rpartition(".")[2]: read(message) for message in stored}


def read(stored: StoredMessage) -> Holder:
    """The record; of somebody unknown if it is none of ours. The one that acquires has its own sequence as token."""
    try:
        holder = _decode(stored.data)
    except msgspec.MsgspecError:
        holder = Holder("unknown", stored.time)
    holder.token = holder.token or stored.sequence
    return holder
