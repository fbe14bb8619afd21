"""Streaming answers over core NATS: in order, gap-free, with back-pressure, and cancellable.

The asker opens an inbox and sends its request with a `window`. Every chunk carries its index; the `end` carries how
many there were, so a lost chunk is noticed. Chunks carry the producer's credit subject as their reply subject: the
reader confirms what it has consumed after every half window, and the producer never has more than a window of
unconfirmed chunks under way. A reader that goes away says so on the control subject; one that confirms nothing for
`CREDIT_TIMEOUT` seconds while a whole window waits is taken for dead.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from agentmesh import codec
from agentmesh.errors import AgentMeshError, InvalidMessageError, StreamGapError, StreamIdleError
from agentmesh.ids import new_id
from agentmesh.transport import Message, Transport, is_no_responders

WINDOW = 256
"""Chunks that may be under way unconfirmed."""

CREDIT_TIMEOUT = 30.0
"""Seconds a producer waits for a reader that has stopped confirming."""


class StreamReader:
    """The asker's side: an async iterator of decoded chunks.

    Args:
        transport: The connection.
        what: Names the stream in errors.
        kind: Type of each chunk.
        idle_timeout: Seconds without any chunk after which `StreamIdleError` is raised.
        window: Chunks that may be under way.
        nobody: Makes the error when nobody listens.
    """

    def __init__(
        self,
        transport: Transport,
        what: str,
        kind: Any,
        *,
        idle_timeout: float,
        window: int = WINDOW,
        nobody: Callable[[], AgentMeshError],
    ) -> None:
        self._transport = transport
        self._what = what
        self._kind = kind
        self._idle_timeout = idle_timeout
        self._half = max(1, window // 2)
        self._nobody = nobody
        self._inbox = transport.open_inbox(self._on_message)
        self._chunks: deque[tuple[msgspec.Raw, str]] = deque()
        self._expected = 0
        self._consumed = 0
        self._end: AgentMeshError | None = None
        self._ended = False
        """No further chunk is taken."""
        self.finished = False
        """The producer has said the last word: an end, a reply or an error. Nothing is left to cancel."""
        self._waiting: asyncio.Future[None] | None = None

    @property
    def subject(self) -> str:
        """The reply subject for the request."""
        return self._inbox.subject

    def close(self) -> None:
        """Take no more chunks."""
        self._inbox.close()

    def _on_message(self, message: Message) -> None:
        if self._ended:
            return
        if is_no_responders(message):
            self._finish(self._nobody())
        else:
            try:
                self._take(codec.decode(message.data), message.reply)
            except InvalidMessageError as error:
                self._break(error)
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _take(self, envelope: codec.Envelope, credit_subject: str) -> None:
        kind = envelope.message_type
        if kind == codec.ERROR:
            self._finish(codec.decode_error(envelope.content, self._what))
        elif kind == codec.REPLY:  # the handler does not stream: its one reply is the one chunk
            self._chunks.append((envelope.content, ""))
            self._finish(None)
        elif envelope.index != self._expected:
            self._break(StreamGapError(self._what, self._expected, -1 if envelope.index is None else envelope.index))
        elif kind == codec.END:
            self._finish(None)
        else:
            self._expected += 1
            self._chunks.append((envelope.content, credit_subject))

    def _finish(self, error: AgentMeshError | None) -> None:
        self._ended, self._end, self.finished = True, error, True

    def _break(self, error: AgentMeshError) -> None:
        """The chunks so far are good, there are no more, and the producer does not know."""
        self._ended, self._end = True, error

    async def __aiter__(self) -> AsyncIterator[Any]:
        while True:
            if self._chunks:
                content, credit_subject = self._chunks.popleft()
                self._consumed += 1
                if credit_subject and self._consumed % self._half == 0:
                    await self._confirm(credit_subject)
                yield codec.decode_body(self._kind, content)
            elif self._ended:
                if self._end is not None:
                    raise self._end
                return
            else:
                await self._more()

    async def _more(self) -> None:
        """Wait for something to come. Time that the reader spends on its own does not count as silence."""
        loop = asyncio.get_running_loop()
        self._waiting = loop.create_future()
        timer = loop.call_later(self._idle_timeout, self._idle)
        try:
            await self._waiting
        finally:
            timer.cancel()
            self._waiting = None

    def _idle(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(StreamIdleError(self._what, self._idle_timeout))

    async def _confirm(self, subject: str) -> None:
        credit = codec.Envelope(message_id=new_id(), message_type=codec.CREDIT, index=self._consumed)
        await self._transport.publish(subject, codec.encode(credit))


class StreamWriter:
    """The producer's side of one streaming answer.

    Args:
        transport: The connection.
        subject: The asker's inbox.
        request_id: `message_id` of the request.
        source: The answering agent.
        kind: Type of each chunk.
        window: What the asker allows to be under way.
    """

    def __init__(
        self, transport: Transport, subject: str, request_id: str, source: str, kind: Any, window: int
    ) -> None:
        self._transport = transport
        self._subject = subject
        self._request_id = request_id
        self._source = source
        self._kind = kind
        self._window = window
        self._credit = transport.open_inbox(self._on_credit)
        self._sent = 0
        self._confirmed = 0
        self._room: asyncio.Future[None] | None = None

    def close(self) -> None:
        self._credit.close()

    def _on_credit(self, message: Message) -> None:
        try:
            envelope = codec.decode(message.data)
        except InvalidMessageError:
            return
        self._confirmed = max(self._confirmed, envelope.index or 0)
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    async def send(self, chunk: Any) -> None:
        """Send one chunk; waits while a whole window is unconfirmed.

        Raises:
            StreamIdleError: The reader confirmed nothing for `CREDIT_TIMEOUT` seconds; it is taken for dead.
            InvalidMessageError: The chunk is not of the promised type.
        """
        body = codec.encode_body(chunk, self._kind)
        while self._sent - self._confirmed >= self._window:
            await self._wait_for_credit()
        await self._publish(codec.CHUNK, msgspec.Raw(body))
        self._sent += 1

    async def end(self) -> None:
        """Say that all chunks were sent."""
        await self._publish(codec.END)

    async def _wait_for_credit(self) -> None:
        self._room = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(CREDIT_TIMEOUT):
                await self._room
        except TimeoutError:
            raise StreamIdleError(f"reader of {self._source}", CREDIT_TIMEOUT) from None
        finally:
            self._room = None

    async def _publish(self, message_type: str, content: msgspec.Raw = codec.NULL) -> None:
        envelope = codec.Envelope(
            message_id=new_id(),
            message_type=message_type,
            source_agent_id=self._source,
            correlation_id=self._request_id,
            content=content,
            index=self._sent,
        )
        await self._transport.publish(self._subject, codec.encode(envelope), self._credit.subject)
