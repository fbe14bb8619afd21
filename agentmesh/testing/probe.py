"""An address under a test's control: it records what it receives and answers when told to."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from agentmesh import codec
from agentmesh.client import Client
from agentmesh.ids import new_id
from agentmesh.messages import Message, Request, wire_name
from agentmesh.refs import AgentRef
from agentmesh.transport import Message as WireMessage
from agentmesh.transport import Subscription

M = TypeVar("M", bound=Message)
R = TypeVar("R")


@dataclass(frozen=True)
class Received:
    """One message that came in."""

    envelope: codec.Envelope
    reply: str
    """Where an answer goes; empty if none is wanted."""


class Probe:
    """Stands in for an agent, to see what others send it.

    Args:
        client: The connection.
        name: The address it takes.
    """

    def __init__(self, client: Client, name: str) -> None:
        self.name = name
        self.received: list[Received] = []
        """Everything so far, oldest first, expected or not."""
        self._client = client.bound(name)
        self._unseen: deque[Received] = deque()
        self._arrived = asyncio.Event()
        self._subscription: Subscription | None = None

    @property
    def ref(self) -> AgentRef:
        """To tell or ask it something."""
        return self._client.ref(self.name)

    async def start(self) -> None:
        """Take the address."""
        subjects = self._client.subjects
        self._subscription = await self._client.transport.subscribe(
            subjects.mailbox(self.name), self._on_message, queue=subjects.mailbox_group(self.name)
        )

    async def stop(self) -> None:
        """Give the address up."""
        if self._subscription is not None:
            await self._subscription.unsubscribe()

    def _on_message(self, message: WireMessage) -> None:
        received = Received(codec.decode_foreign(message.data, message.headers, bool(message.reply)), message.reply)
        self.received.append(received)
        self._unseen.append(received)
        self._arrived.set()

    async def next(self, timeout: float = 2.0) -> Received:
        """The next message of any type.

        Raises:
            AssertionError: None came within `timeout` seconds; says what came before.
        """
        try:
            async with asyncio.timeout(timeout):
                while not self._unseen:
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            seen = ", ".join(one.envelope.message_type for one in self.received) or "nothing"
            raise AssertionError(f"{self.name} received no message within {timeout:g} s (before: {seen})") from None
        return self._unseen.popleft()

    async def expect(self, message_type: type[M], timeout: float = 2.0) -> M:
        """The next message, which must be of this type.

        Raises:
            AssertionError: None came in time, or another type.
        """
        received = await self.next(timeout)
        if received.envelope.message_type != wire_name(message_type):
            raise AssertionError(
                f"{self.name} expected {wire_name(message_type)} and received {received.envelope.message_type}"
            )
        message: M = codec.decode_body(message_type, received.envelope.content)
        return message

    async def expect_nothing(self, period: float = 0.1) -> None:
        """Fail if any message comes within `period` seconds.

        Raises:
            AssertionError: One came.
        """
        try:
            received = await self.next(period)
        except AssertionError:
            return
        raise AssertionError(f"{self.name} expected nothing and received {received.envelope.message_type}")

    async def answer(self, request_type: type[Request[R]], reply: R, timeout: float = 2.0) -> Any:
        """Expect a request, answer it with `reply`, and return the request."""
        received = await self.next(timeout)
        request = codec.decode_body(request_type, received.envelope.content)
        envelope = codec.Envelope(
            message_id=new_id(),
            message_type=codec.REPLY,
            source_agent_id=self.name,
            correlation_id=received.envelope.message_id,
            content=msgspec.Raw(codec.encode_body(reply, request_type.reply_type())),
        )
        await self._client.transport.publish(received.reply, codec.encode(envelope))
        return request
