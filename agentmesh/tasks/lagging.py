"""Copies of a queue that do not catch up: the consumers led there are moved to another server.

A consumer delivers from the copy of its stream at the server that leads it. A copy that cannot catch up, seen with
nats-server 2.15.1 after its leader had been cut off ("Expected first catchup entry to be a snapshot and peerstate,
will retry", for ever), delivers nothing new, while everything looks healthy: the stream accepts, the consumer answers
pulls and beats. Nothing is lost, but nothing of those queues is done either until that server is restarted. So
whoever does the chores looks for such copies and has the consumers led elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from agentmesh.errors import AgentMeshError
from agentmesh.tasks.layout import MAILBOX, SCHED, TASKS
from agentmesh.transport import Copy, Transport

log = logging.getLogger("agentmesh.tasks")

PERIOD = 5.0
"""Seconds between looks."""

LOOKS = 3
"""Looks in a row at which a copy was behind, and not less than before, until it counts as one that stays behind."""


class Behind:
    """Tells copies that stay behind from those that are just catching up, or a moment late."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, int]] = {}

    def look(self, copies: Iterable[Copy]) -> dict[str, int]:
        """Servers whose copy stays behind, and by how much."""
        late = {copy.server: copy.lag for copy in copies if copy.online and not copy.current and copy.lag > 0}
        self._seen = {
            server: (lag, times + 1 if lag >= before else 1)
            for server, lag in late.items()
            for before, times in [self._seen.get(server, (0, 0))]
        }
        return {server: lag for server, (lag, times) in self._seen.items() if times >= LOOKS}


class LaggingCopies:
    """See the module.

    Args:
        transport: The connection.
        on_moved: Called with the stream, the server that is behind, and how many of its consumers were moved.
        period: Seconds between looks.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        on_moved: Callable[[str, str, int], None] = lambda stream, server, consumers: None,
        period: float = PERIOD,
    ) -> None:
        self._transport = transport
        self._on_moved = on_moved
        self._period = period
        self._behind = {stream: Behind() for stream in (TASKS, MAILBOX, SCHED)}

    async def run(self) -> None:
        """Look until cancelled; on a single server there is nothing to look for."""
        while True:
            await asyncio.sleep(self._period)
            if self._transport.clustered:
                await self.look()

    async def look(self) -> None:
        """Look once."""
        for stream, behind in self._behind.items():
            try:
                for server, lag in behind.look(await self._transport.copies(stream)).items():
                    await self.move_away(stream, server, lag)
            except AgentMeshError as error:
                log.debug("the copies of %s cannot be looked at: %s", stream, error)

    async def move_away(self, stream: str, server: str, lag: int) -> None:
        """Have the consumers of a stream that are led by a server led by others."""
        led = [name for name, leader in (await self._transport.leaders(stream)).items() if leader == server]
        if not led:
            return
        log.warning("the copy of %s at %s stays %d behind; moving %d consumers", stream, server, lag, len(led))
        for consumer in led:
            await self._transport.step_down(stream, consumer)
        self._on_moved(stream, server, len(led))
