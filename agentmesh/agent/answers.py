"""What an agent sends back: replies, errors, confirmations."""

from __future__ import annotations

import asyncio
import logging
from collections import deque

import msgspec

from agentmesh import codec
from agentmesh.agent.letter import Letter
from agentmesh.errors import AgentMeshError, PayloadTooLargeError, RemoteError
from agentmesh.ids import new_id
from agentmesh.transport import Transport

log = logging.getLogger("agentmesh.agent")

LONGEST_MESSAGE = 2_000
"""Characters that are left of the message of an error that is too large to be sent."""


class Answers:
    """The way back from one agent to those who wrote to it.

    Args:
        transport: The connection.
        name: The agent.
    """

    def __init__(self, transport: Transport, name: str) -> None:
        self._transport = transport
        self._name = name
        self._posts: deque[tuple[str, bytes]] = deque()
        self._poster: asyncio.Task[None] | None = None

    async def reply(self, letter: Letter, body: bytes) -> None:
        """Send the reply of a handler.

        Raises:
            PayloadTooLargeError: It is too large; nothing was sent.
            ConnectionLostError: The broker takes no data.
        """
        answer = self._answer(codec.REPLY, letter.envelope.message_id, msgspec.Raw(body))
        await self._transport.publish(letter.reply, answer)

    async def error(self, letter: Letter, error: BaseException) -> None:
        """Tell the asker what went wrong. What cannot be sent is logged: its own deadline tells it."""
        request_id = letter.envelope.message_id
        try:
            try:
                await self._transport.publish(letter.reply, self._error(error, request_id))
            except PayloadTooLargeError:
                short = RemoteError(self._name, type(error).__name__, str(error)[:LONGEST_MESSAGE])
                await self._transport.publish(letter.reply, self._error(short, request_id))
        except AgentMeshError as problem:
            log.warning("%s: an answer could not be sent: %s", self._name, problem)

    def refuse(self, reply: str, request_id: str, error: AgentMeshError) -> None:
        """Like `error`, from a callback that cannot await."""
        if reply:
            self._post(reply, self._error(error, request_id))

    def confirm(self, letter: Letter) -> None:
        """Say that the letter is in the mailbox."""
        if letter.reply:
            self._post(letter.reply, self._answer(codec.ACCEPTED, letter.envelope.message_id))

    async def flush(self, timeout: float) -> None:
        """Wait until all that was posted is sent; what is not sent within `timeout` seconds is dropped."""
        if self._poster is not None and not self._poster.done():
            await asyncio.wait([self._poster], timeout=timeout)
            self._poster.cancel()

    def _answer(self, message_type: str, request_id: str, content: msgspec.Raw = codec.NULL) -> bytes:
        return codec.encode(
            codec.Envelope(
                message_id=new_id(),
                message_type=message_type,
                source_agent_id=self._name,
                correlation_id=request_id,
                content=content,
            )
        )

    def _error(self, error: BaseException, request_id: str) -> bytes:
        return self._answer(codec.ERROR, request_id, codec.encode_error(error))

    def _post(self, subject: str, data: bytes) -> None:
        """One task for all that waits to be sent, not one per message."""
        self._posts.append((subject, data))
        if self._poster is None or self._poster.done():
            self._poster = asyncio.get_running_loop().create_task(self._send_posts(), name=f"answers of {self._name}")

    async def _send_posts(self) -> None:
        while self._posts:
            subject, data = self._posts.popleft()
            try:
                await self._transport.publish(subject, data)
            except AgentMeshError as error:
                log.warning("%s: an answer could not be sent: %s", self._name, error)
