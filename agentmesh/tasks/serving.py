"""Working off what a consumer brings, for as long as the process lives: what dispatcher and mover have in common."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from agentmesh.errors import BrokerError
from agentmesh.transport import ConsumerSpec, Delivery, PullConsumer, Transport

log = logging.getLogger("agentmesh.tasks")

BATCH = 64
"""Deliveries worked off at the same time."""

RETRY_DELAY = 1.0
"""Seconds until what could not be done is tried again."""


class Serving:
    """Takes batches from a consumer that any number may share, and has them worked off one after the other.

    Args:
        transport: The connection.
        spec: The consumer; it must exist when `start` is called.
        work: Settles every delivery of a batch.
        name: Of whoever works, for the log.
        on_trouble: Called when nothing can be taken, before it is tried again.
    """

    def __init__(
        self,
        transport: Transport,
        spec: ConsumerSpec,
        work: Callable[[list[Delivery]], Awaitable[None]],
        name: str,
        *,
        on_trouble: Callable[[BrokerError], Awaitable[None]] | None = None,
    ) -> None:
        self._pull = transport.pull(spec.stream, spec.name)
        self._work = work
        self._name = name
        self._on_trouble = on_trouble
        self._loop: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to take."""
        await self._pull.start()
        self._loop = asyncio.get_running_loop().create_task(self._serve(self._pull), name=self._name)

    async def stop(self) -> None:
        """Stop; what is on its way is brought to the next one."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        await self._pull.stop()

    async def _serve(self, pull: PullConsumer) -> None:
        while True:
            try:
                pull.ready.clear()
                batch = pull.received() or await pull.take(BATCH)
                if batch:
                    await self._work(batch)
                    continue
                pull.arm()
            except BrokerError as error:
                log.warning("the %s can take nothing; trying again: %s", self._name, error)
                await asyncio.sleep(RETRY_DELAY)
                if self._on_trouble is not None:
                    await self._on_trouble(error)
                continue
            await pull.ready.wait()
