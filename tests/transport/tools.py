"""Small things several of these tests need."""

from __future__ import annotations

import asyncio

from agentmesh.transport import Message, Transport


class Received:
    """A subscription's callback that can be waited on."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._changed = asyncio.Event()

    def __call__(self, message: Message) -> None:
        self.messages.append(message)
        self._changed.set()

    @property
    def bodies(self) -> list[bytes]:
        return [message.data for message in self.messages]

    async def count(self, n: int, timeout: float = 5.0) -> list[Message]:
        """Wait until `n` messages came; all of them."""
        async with asyncio.timeout(timeout):
            while len(self.messages) < n:
                self._changed.clear()
                await self._changed.wait()
        return self.messages

    async def body(self, wanted: bytes, timeout: float = 5.0) -> None:
        """Wait for a message with that body."""
        async with asyncio.timeout(timeout):
            while wanted not in self.bodies:
                self._changed.clear()
                await self._changed.wait()


class States:
    """The states a transport goes through."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._changed = asyncio.Event()
        transport.on_state(lambda _: self._changed.set())

    async def reach(self, state: str, timeout: float = 10.0) -> None:
        """Wait until the transport is in `state`."""
        async with asyncio.timeout(timeout):
            while self._transport.state != state:
                self._changed.clear()
                await self._changed.wait()


async def echo(transport: Transport, subject: str, headers: dict[str, str] | None = None) -> None:
    """Serve `subject`: the body comes back, with `headers`."""
    sending: set[asyncio.Task[None]] = set()

    def reply(message: Message) -> None:
        task = asyncio.create_task(transport.publish(message.reply, message.data, headers=headers))
        sending.add(task)
        task.add_done_callback(sending.discard)

    await transport.subscribe(subject, reply)
