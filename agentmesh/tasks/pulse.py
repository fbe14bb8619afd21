"""One loop per worker keeps all its tasks alive: heartbeats, time limits, missed cancellations."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from agentmesh.errors import BrokerError
from agentmesh.tasks import lineage
from agentmesh.tasks.attempt import Attempt
from agentmesh.transport import Transport

log = logging.getLogger("agentmesh.tasks")

TICK = 0.1
"""Seconds by which a time limit may be late."""

STUBBORN = 5.0
"""Seconds a handler has to end after it was cancelled; then its task is settled without it."""

_LOOK_EVERY = 3
"""Heartbeats between looks into the slot of a running task, for a cancellation whose prompt got lost."""


class Pulse:
    """Runs only while there are tasks in hand.

    Args:
        transport: The connection.
        in_hand: The worker's attempts, by stream sequence.
        chore: Runs a coroutine beside everything else.
    """

    def __init__(
        self,
        transport: Transport,
        in_hand: Mapping[int, Attempt],
        chore: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._transport = transport
        self._in_hand = in_hand
        self._chore = chore
        self._busy = asyncio.Event()
        self._period = 0.0

    def wake(self) -> None:
        """There is something in hand."""
        self._busy.set()

    async def run(self, ack_wait: float) -> None:
        """Beat until cancelled. `ack_wait`: seconds after which the broker gives a silent task to somebody else."""
        self._period = ack_wait / 3
        loop = asyncio.get_running_loop()
        tick = min(TICK, self._period / 2)
        while True:
            if not self._in_hand:
                self._busy.clear()
                await self._busy.wait()
            due = loop.time() + tick
            await asyncio.sleep(tick)
            now = loop.time()
            if now - due > self._period:
                log.warning(
                    "the event loop was blocked for %.1f s and no heartbeat went out: a handler must not block; "
                    "use asyncio.to_thread() for what does",
                    now - due,
                )
            for attempt in list(self._in_hand.values()):
                await self._tend(attempt, now)

    async def _tend(self, attempt: Attempt, now: float) -> None:
        if now - attempt.beaten_at >= self._period:
            attempt.beaten_at = now
            attempt.beats += 1
            await self._transport.in_progress(attempt.delivery)
            if attempt.handling and attempt.beats % _LOOK_EVERY == 0:
                self._chore(look(attempt))
        if not attempt.handling:
            return
        if now >= attempt.clock.limit_at:
            attempt.interrupt(attempt.clock.limit_why)
        if attempt.why and now - attempt.why_at > STUBBORN and not attempt.settled:
            self._chore(attempt.abandon())


async def look(attempt: Attempt) -> None:
    """End the handler if its task is decided already, or its parent ended. The slots say so, never a prompt alone."""
    bench = attempt.bench
    if attempt.body is None:
        return
    try:
        ending = await lineage.ending(bench.transport, bench.subjects, attempt.body)
    except BrokerError as error:
        log.debug("cannot look whether %s was cancelled: %s", attempt, error)
        return
    if ending is not None:
        attempt.end(ending)
