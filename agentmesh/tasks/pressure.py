"""Back-pressure: what a submitter is told when a queue takes no more, and when to try again.

Two bounds refuse a task. The broker's own: so many tasks on one subject, that is for one agent and priority; when the
whole stream is full, everybody is refused. And ours, for tasks with large bodies: they get half of the stream's bytes,
which all tenants of an account share, so that a flood of them leaves room for everybody else's ordinary tasks. It is
kept by submitters, not by the broker: a tenant that cannot be trusted needs an account of its own.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from agentmesh.errors import BrokerError, QueueFullError, StreamFullError
from agentmesh.subjects import Subjects
from agentmesh.tasks.layout import QUEUE_LIMIT, TASKS
from agentmesh.transport import Transport

T = TypeVar("T")

LARGE = 16 * 1024
"""Bytes from which on a body is a large one."""

SHARE = 0.5
"""Fraction of the stream's bytes that large bodies may fill."""

SHORTEST, LONGEST = 0.1, 60.0
"""Bounds of `retry_after`, in seconds."""

UNKNOWN, NOBODY = 0.5, 5.0
"""`retry_after` at the first refusal, and when nothing drains: no worker runs, or all are busy with long tasks."""

_LONGEST_PAUSE = 2.0
"""Seconds between tries, about: a worker may start at any moment."""

_LOOK_AGAIN = 0.2
"""Seconds a look at the stream or a queue is good for."""

_REMEMBERED = 256

_ROOM = 100
"""The part of a queue that should have drained when its submitters try again is one of that many."""


@dataclass(frozen=True)
class Patience:
    """How long a submitter waits for room."""

    seconds: float = 0.0
    """0 tries once."""
    on_full: Callable[[QueueFullError], None] | None = None
    """Told of each refusal that is waited out."""


IMPATIENT = Patience()


@dataclass
class _Drain:
    """How fast a queue drained lately."""

    looked_at: float
    settled: int
    rate: float | None = None
    """Tasks a second between the last two looks; None: looked at once."""


class Pressure:
    """See the module. One for each `TaskClient`."""

    def __init__(self, transport: Transport, subjects: Subjects) -> None:
        self._transport = transport
        self._subjects = subjects
        self._drains: dict[str, _Drain] = {}
        self._limit = QUEUE_LIMIT
        self._bytes = 0
        self._max_bytes = 0
        self._looked_at = float("-inf")

    async def patiently(
        self,
        submit: Callable[[], Awaitable[T]],
        subject: str,
        size: int,
        patience: Patience,
    ) -> T:
        """Submit; while the queue is full, again as long as `patience` lasts, at random moments about `retry_after`.

        Args:
            submit: Stores the task.
            subject: Where it is to wait.
            size: Bytes of it.
            patience: How long.

        Raises:
            QueueFullError: The queue was full to the end.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + patience.seconds
        while True:
            try:
                if size > LARGE:
                    await self._room_for(subject, size)
                return await submit()
            except StreamFullError as error:
                refusal = await self._refusal(subject, "bytes" if "bytes" in error.problem else "tasks")
            except QueueFullError as error:
                refusal = error
            left = end - loop.time()
            if left <= 0:
                raise refusal
            if patience.on_full is not None:
                patience.on_full(refusal)
            await asyncio.sleep(min(left, min(refusal.retry_after, _LONGEST_PAUSE) * random.uniform(0.5, 1.5)))

    async def _room_for(self, subject: str, size: int) -> None:
        """Refuse a large body when others of that kind have filled their share."""
        now = asyncio.get_running_loop().time()
        if now - self._looked_at > _LOOK_AGAIN:
            await self._look(now)
        if self._max_bytes and self._bytes + size > SHARE * self._max_bytes:
            raise await self._refusal(subject, "bytes")
        self._bytes += size

    async def _look(self, now: float) -> None:
        info = await self._transport.stream_info(TASKS)
        if info is not None:
            self._bytes, self._looked_at = info.bytes, now
            self._max_bytes = max(0, int(info.config.get("max_bytes", 0)))
            self._limit = int(info.config.get("max_msgs_per_subject", 0)) or QUEUE_LIMIT

    async def _refusal(self, subject: str, unit: str) -> QueueFullError:
        """The error, with what can be found out within a moment; that it is not found out is no error of its own."""
        now = asyncio.get_running_loop().time()
        retry_after = UNKNOWN
        try:
            if now - self._looked_at > _LOOK_AGAIN:
                await self._look(now)
            retry_after = await self._retry_after(subject, now)
        except BrokerError:
            pass
        limit = self._limit if unit == "tasks" else int(SHARE * self._max_bytes)
        return QueueFullError(subject, limit, round(retry_after, 3), unit)

    async def _retry_after(self, subject: str, now: float) -> float:
        drain = self._drains.get(subject)
        if drain is None or now - drain.looked_at > _LOOK_AGAIN:
            info = await self._transport.consumer_info(TASKS, self._consumer(subject))
            if info is None:
                return NOBODY
            drain = self._measured(drain, now, info.settled)
            self._drains[subject] = drain
            if len(self._drains) > _REMEMBERED:
                del self._drains[next(iter(self._drains))]
        if drain.rate is None:
            return UNKNOWN
        wanted = max(1.0, self._limit / _ROOM)
        return min(LONGEST, max(SHORTEST, wanted / drain.rate)) if drain.rate else NOBODY

    def _measured(self, last: _Drain | None, now: float, settled: int) -> _Drain:
        if last is None or settled < last.settled:  # the first look, or the consumer was made anew
            return _Drain(now, settled)
        return _Drain(now, settled, (settled - last.settled) / (now - last.looked_at))

    def _consumer(self, subject: str) -> str:
        if subject == self._subjects.task_door():
            return self._subjects.dispatch_consumer()
        agent, priority = subject.split(".")[-2:]
        return self._subjects.task_consumer(agent, priority)
