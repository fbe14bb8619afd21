"""Streams and consumers that somebody deleted under us are made again, as they were asked for here.

Without that, a deleted stream is silence: publishes find nobody, and pulls wait for what never comes. What was in a
deleted stream is lost; that is told in the log as an error.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from agentmesh.errors import BrokerError, ConfigError, ConsumerGoneError
from agentmesh.subjects import may_overlap
from agentmesh.transport.streams import Admin, ConsumerSpec, StreamSpec

log = logging.getLogger("agentmesh.transport")

LOOK_TIMEOUT = 2.0
"""Seconds for one look at the broker: during an election it does not say whether a stream is there."""

REST = 0.5
"""Seconds between looks at the same stream: nobody answers during an election either."""


class Mender:
    """Knows what was asked for on one connection, and makes it again.

    Args:
        admin: Asks and makes.
        replicas: Copies of a stream.
    """

    def __init__(self, admin: Admin, replicas: Callable[[], int]) -> None:
        self.streams: dict[str, StreamSpec] = {}
        self.consumers: dict[tuple[str, str], ConsumerSpec] = {}
        self._admin = admin
        self._replicas = replicas
        self._looked: dict[str, float] = {}
        self._lock = asyncio.Lock()

    async def nobody_on(self, subject: str) -> None:
        """Nobody took a message on `subject`: make its stream again, if it was deleted. Never raises for the broker."""
        for spec in tuple(self.streams.values()):  # others ask for streams meanwhile
            if any(may_overlap(pattern, subject) for pattern in spec.subjects):
                await self.nobody_has(spec.name)

    async def nobody_has(self, stream: str) -> None:
        """Nobody answered for `stream`: make it again, if it was deleted. Never raises for the broker."""
        now = asyncio.get_running_loop().time()
        if stream not in self.streams or now - self._looked.get(stream, -REST) < REST:
            return
        self._looked[stream] = now
        try:
            await self._remake(stream)
        except (BrokerError, ConfigError, TimeoutError) as error:
            log.debug("cannot look after stream %s: %s", stream, error)

    async def consumer(self, stream: str, name: str) -> None:
        """Make a consumer again that is gone, with its stream; nothing happens if it is there.

        Raises:
            ConsumerGoneError: It is gone, and was never asked for here.
        """
        if await self._admin.consumer_info(stream, name) is not None:
            return
        spec = self.consumers.get((stream, name))
        if spec is None or not await self._remake(stream):
            raise ConsumerGoneError(stream, name)
        log.warning("consumer %r of stream %r was deleted; making it again", name, stream)
        await self._admin.ensure_consumer(spec)

    async def _remake(self, stream: str) -> bool:
        """Whether the stream is there, made again if need be."""
        async with self._lock, asyncio.timeout(LOOK_TIMEOUT):
            if await self._admin.stream_info(stream) is not None:
                return True
            spec = self.streams.get(stream)
            if spec is None:
                return False
            log.error("stream %s was deleted, with everything that was in it; making it again, empty", stream)
            # Sequences that were given out before must not come again: an acknowledgement that is still on its way
            # would take another task off the new queue, and a reader would take new messages for old ones.
            await self._admin.ensure_stream(spec, self._replicas(), first_sequence=time.time_ns() // 1000)
            return True
