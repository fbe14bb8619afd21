"""Where named readers are: `ai.agent.cursors.T.<group>.<stream>`, the latest position only.

A position moves when the reader asks for the next chunk, so a crash repeats chunks and loses none.
"""

from __future__ import annotations

import asyncio
import logging

from agentmesh.errors import BrokerError
from agentmesh.subjects import Subjects
from agentmesh.transport import StreamSpec, Transport

log = logging.getLogger("agentmesh.streams")

CURSORS = StreamSpec(
    "CURSORS",
    ("ai.agent.cursors.*.*.*",),
    max_age=30 * 86_400.0,
    max_msgs_per_subject=1,
    max_bytes=64 * 1024 * 1024,
    max_msg_size=4096,
    description="agentmesh: where named readers of streams are",
)


class Position:
    """Where one named reader of a stream is.

    Args:
        transport: The connection.
        subjects: The tenant's subjects.
        group: The reader's name.
        stream_id: What it reads.
    """

    def __init__(self, transport: Transport, subjects: Subjects, group: str, stream_id: str) -> None:
        self._transport = transport
        self._subject = subjects.stream_cursor(group, stream_id)
        self._latest = self._stored = ""
        self._storing: asyncio.Task[None] | None = None

    async def load(self) -> str:
        """The cursor it is behind; empty for a new reader."""
        await self._ensure()
        last = await self._transport.last_message(CURSORS.name, self._subject, latest=True)
        self._stored = last.data.decode("ascii", "replace") if last is not None else ""
        return self._stored

    def move(self, cursor: str) -> None:
        """It is behind that now; stored in the background, the latest one if several come at once."""
        self._latest = cursor
        if self._storing is None:
            self._storing = asyncio.get_running_loop().create_task(self._store(), name=f"position {self._subject}")

    async def flush(self) -> None:
        """Wait until it is stored, or could not be."""
        while self._storing is not None:
            await asyncio.wait([self._storing])

    async def _store(self) -> None:
        try:
            await self._ensure()  # with an offset of its own, a reader has loaded nothing
            while self._latest != self._stored:
                cursor = self._latest
                await self._transport.publish_durable(self._subject, cursor.encode())
                self._stored = cursor
        except BrokerError as error:  # the reader will repeat some chunks
            log.warning("the position on %s could not be stored: %s", self._subject, error)
        finally:
            self._storing = None

    async def _ensure(self) -> None:
        from agentmesh.tasks.layout import ensure  # they use this package

        await ensure(self._transport, CURSORS)
