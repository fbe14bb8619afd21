"""The use of limits, kept at the broker: changed by compare-and-set, and read on the broker's clock."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Collection
from typing import TypeVar
from weakref import WeakValueDictionary

from agentmesh.errors import ConnectionLostError, SequenceConflictError
from agentmesh.subjects import Subjects
from agentmesh.tasks.allowance import Operation, Record, decode, encode
from agentmesh.tasks.layout import LIMITS
from agentmesh.transport import StoredMessage, Transport

O = TypeVar("O", bound=Operation)  # noqa: E741

TIMEOUT = 5.0
"""Seconds for one round trip to a record."""

_TRIES = 100
_KNOWN = 1_000
"""Records remembered."""

_HELD = 3600.0
"""Seconds a record of running tasks is kept without a sign of life of anybody."""
_IDLE = 60.0
"""Seconds one is kept that counts nothing any more."""

MEASURE_EVERY = 30.0
_SILENCE = 0.9
"""Seconds without an answer of the broker that are worth remembering."""

_SHARP = 0.02
"""Seconds of uncertainty about the broker's clock that are good enough not to measure again at once."""


class Clock:
    """The broker's time, known to lie between two values. It is the only clock that all hosts share."""

    def __init__(self, transport: Transport, subject: str) -> None:
        self._transport = transport
        self._subject = subject
        self._low, self._high = 0.0, math.inf
        self._measured = -math.inf
        self._generation = -1
        self._measuring = asyncio.Lock()

    async def ready(self) -> None:
        """Measure if that was never done, is long ago, or was done with another connection."""
        if self._outdated():
            async with self._measuring:
                if self._outdated():
                    await self._measure()

    def earliest(self) -> float:
        """It is not earlier than this."""
        return time.monotonic() + self._low

    def latest(self) -> float:
        """It is not later than this."""
        return time.monotonic() + self._high

    def interval(self) -> tuple[float, float]:
        """Both."""
        return self.earliest(), self.latest()

    def _outdated(self) -> bool:
        generation = self._transport.connection.generation
        return generation != self._generation or time.monotonic() - self._measured > MEASURE_EVERY

    async def _measure(self) -> None:
        """What is read was stored after we sent and before we got it, whoever stored it: that is the interval."""
        best = (0.0, math.inf)
        generation = self._transport.connection.generation
        for _ in range(3):
            sent = time.monotonic()
            await self._transport.publish_durable(self._subject, b"{}", headers={"Nats-TTL": "60s"}, timeout=TIMEOUT)
            stored = await self._transport.last_message(LIMITS.name, self._subject)
            got = time.monotonic()
            if stored is None:
                continue
            stamp = stored.time.timestamp()
            if got - sent < best[1] - best[0]:
                best = (stamp - got, stamp - sent)
            if best[1] - best[0] < _SHARP:
                break
        if math.isinf(best[1]):
            raise ConnectionLostError("the broker's clock cannot be read")
        self._low, self._high = best
        self._measured, self._generation = time.monotonic(), generation


class _Desk:
    """One record as this process knows it."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.waiting: list[Operation] = []
        self.done: set[Operation] = set()
        self.data: bytes | None = None
        self.revision = -1
        """-1: not known."""
        self.seen: dict[str, tuple[int, float, float]] = {}
        """Per holder: its beat, since when it has been that, and when that was last looked at."""


class Records:
    """The records of one tenant. One per connection and tenant; what its users do at the same time is one write."""

    def __init__(self, transport: Transport, subjects: Subjects) -> None:
        self.clock = Clock(transport, subjects.limit_clock())
        self._transport = transport
        self._subjects = subjects
        self._desks: dict[str, _Desk] = {}
        self._generation = -1
        self._contact = -math.inf
        self._silences: deque[tuple[float, float]] = deque(maxlen=32)
        """When the last silences ended, and how long they were."""

    async def ready(self) -> None:
        """The broker's clock is known."""
        await self._ensure()
        await self.clock.ready()

    async def do(self, path: str, operation: O) -> O:
        """Apply the operation to the record at `path`, and store what it changed.

        Raises:
            BrokerError: Unknown whether it was done; doing it again is safe.
        """
        desk = self._desk(path)
        desk.waiting.append(operation)
        try:
            async with desk.lock:
                if operation not in desk.done:
                    await self._commit(path, desk)
        finally:
            desk.done.discard(operation)
            if operation in desk.waiting:
                desk.waiting.remove(operation)
        return operation

    async def look(self, path: str) -> Record:
        """The record as it is now, without holders that are gone.

        Raises:
            BrokerError: It cannot be read.
        """
        desk = self._desk(path)
        async with desk.lock:
            await self._read(path, desk)
            record = decode(desk.data)
        for attempt in self._gone(desk, record):
            del record.holders[attempt]
        return record

    async def _commit(self, path: str, desk: _Desk) -> None:
        """Do everything that waits, in one write."""
        fresh = False
        for _ in range(_TRIES):
            if desk.revision < 0:
                await self._read(path, desk)
                fresh = True
            operations = list(desk.waiting)
            record = decode(desk.data)
            gone = self._gone(desk, record)
            changed = [operation.apply(record, gone) for operation in operations]
            if not fresh and any(operation.refused for operation in operations):
                desk.revision = -1  # somebody may have made room since
                continue
            if any(changed):
                try:
                    await self._write(path, desk, record)
                except SequenceConflictError:
                    desk.revision, fresh = -1, False
                    await asyncio.sleep(random.uniform(0, 0.005))
                    continue
            desk.done.update(operations)
            desk.waiting = [operation for operation in desk.waiting if operation not in desk.done]
            return
        raise ConnectionLostError(f"the limit {path} is changed by others all the time")

    async def _read(self, path: str, desk: _Desk) -> None:
        await self._ensure()
        stored = await self._stored(path)
        desk.data, desk.revision = (None, 0) if stored is None else (stored.data, stored.sequence)
        self._watch_beats(desk)

    async def _write(self, path: str, desk: _Desk, record: Record) -> None:
        data = encode(record)
        kept = max(_HELD if record.holders else _IDLE, _IDLE + record.period)
        expected, desk.revision = desk.revision, -1  # not known while we do not know what becomes of it
        ack = await self._transport.publish_durable(
            self._subjects.limit(path),
            data,
            headers={"Nats-TTL": f"{math.ceil(kept)}s"},
            expect_last=expected,
            timeout=TIMEOUT,
        )
        desk.data, desk.revision = data, ack.sequence
        self._watch_beats(desk)

    async def _ensure(self) -> None:
        """The stream is there; looked at again with each connection, since the broker may be another one."""
        generation = self._transport.connection.generation
        if generation != self._generation:
            await self._transport.ensure_stream(LIMITS)
            self._generation = generation

    async def _stored(self, path: str) -> StoredMessage | None:
        try:
            async with asyncio.timeout(TIMEOUT):
                return await self._transport.last_message(LIMITS.name, self._subjects.limit(path))
        except TimeoutError as error:
            raise ConnectionLostError("the records of limits cannot be read") from error

    # ------------------------------------------------------------ who is gone

    def _watch_beats(self, desk: _Desk) -> None:
        """Note since when each holder has given no sign of life, as seen from here.

        Time in which the broker may have been away does not count: then nobody could give one.
        """
        now = time.monotonic()
        self._note_contact(now)
        seen = {}
        for attempt, holder in decode(desk.data).holders.items():
            beat, since, looked = desk.seen.get(attempt, (-1, now, now))
            if beat != holder.beat or self._lost_contact(looked, holder.ttl):
                since = now
            seen[attempt] = (holder.beat, since, now)
        desk.seen = seen

    def _note_contact(self, now: float) -> None:
        """The broker answered. What waits is looked at twice a second, so a longer silence is one of the broker's."""
        if now - self._contact > _SILENCE:
            self._silences.append((now, now - self._contact))
        self._contact = now

    def _lost_contact(self, since: float, ttl: float) -> bool:
        return any(end > since and seconds > min(2.0, ttl / 2) for end, seconds in self._silences)

    def _gone(self, desk: _Desk, record: Record) -> Collection[str]:
        return [
            attempt
            for attempt, holder in record.holders.items()
            if attempt in desk.seen and desk.seen[attempt][2] - desk.seen[attempt][1] > holder.ttl
        ]

    def _desk(self, path: str) -> _Desk:
        desk = self._desks.pop(path, None) or _Desk()
        self._desks[path] = desk  # the last one used is the last to be forgotten
        if len(self._desks) > _KNOWN:
            for known, one in list(self._desks.items())[: _KNOWN // 10]:
                if not one.lock.locked() and not one.waiting:
                    del self._desks[known]
        return desk


# Records keep their transport alive, so its id is not given to another one meanwhile.
_shared: WeakValueDictionary[tuple[int, str], Records] = WeakValueDictionary()


def records_of(transport: Transport, subjects: Subjects) -> Records:
    """The records that all workers on a connection share."""
    place = (id(transport), subjects.tenant)
    records = _shared.get(place)
    if records is None:
        records = _shared[place] = Records(transport, subjects)
    return records
