"""What is being stored, as it is stored: heard once by each connection, however many readers it has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agentmesh.transport import Message, Subscription, Transport

Take = Callable[[Message], None]

_KEY = ("streams", "live")


class _Line:
    """One subject."""

    def __init__(self, transport: Transport, subject: str) -> None:
        self.takers: set[Take] = set()
        self.subscribing: asyncio.Task[Subscription] = asyncio.get_running_loop().create_task(
            transport.subscribe(subject, self._hear), name=f"listen to {subject}"
        )

    def _hear(self, message: Message) -> None:
        for take in tuple(self.takers):
            take(message)


class Live:
    """The subjects that somebody listens to over one connection.

    With a subscription for each reader the broker would send everything once for each of them: a hundred readers of one
    conversation in one gateway would fill the connection until the broker closes it.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._lines: dict[str, _Line] = {}

    @property
    def subjects(self) -> list[str]:
        """Those that are listened to."""
        return list(self._lines)

    async def join(self, subject: str, take: Take) -> None:
        """From here on `take` is called with each message; it must not raise, nor change the message."""
        line = self._lines.get(subject)
        if line is None:
            line = self._lines[subject] = _Line(self._transport, subject)
        line.takers.add(take)
        try:
            await asyncio.shield(line.subscribing)
        except BaseException:
            await self.leave(subject, take)
            raise

    async def leave(self, subject: str, take: Take) -> None:
        """No more of it; the last one to leave ends the subscription."""
        line = self._lines.get(subject)
        if line is None or take not in line.takers:
            return
        line.takers.discard(take)
        if line.takers:
            return
        del self._lines[subject]
        await asyncio.wait([line.subscribing])
        if not line.subscribing.cancelled() and line.subscribing.exception() is None:
            await line.subscribing.result().unsubscribe()


def live_of(transport: Transport) -> Live:
    """The one of a connection."""
    live = transport.shared.get(_KEY)
    if live is None:
        live = transport.shared[_KEY] = Live(transport)
    found: Live = live
    return found
