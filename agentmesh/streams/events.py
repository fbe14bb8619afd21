"""Events: the documents in which a task tells its progress, its chunks and its history; who writes and reads them.

The stream is one subject, `ai.stream.T.<task id>`. Its messages are documents with the fields

    {"id": "<writer>-<n>", "conversation_id": "<stream id>", "type": "text", "content": "Hel", "timestamp": "…"}

or, when events come faster than they can be stored, JSON arrays of such documents.

A writer has one message under way: what is appended meanwhile goes together into the next one. So the first event is
never held back, a fast stream costs few messages, and the order holds even when a publish has to be repeated.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec

from agentmesh.errors import InvalidMessageError, PayloadTooLargeError, StreamGapError
from agentmesh.ids import new_id, now
from agentmesh.streams.follow import Follower
from agentmesh.subjects import Subjects
from agentmesh.transport import Transport

MAX_EVENT = 500 * 1024
"""Bytes of one event."""

_BATCH = 64 * 1024
"""Bytes of events put together into one message."""

_WAITING = 1_000
"""Events a writer holds before `append` waits."""

MAX_DIGITS = 19
"""A number of more digits is none of ours."""

_WRITERS = 1_000
"""Writers of one stream whose numbers a reader remembers."""


class StreamEvent(msgspec.Struct, omit_defaults=True):
    """One event of a stream."""

    id: str = ""
    """The writer, a hyphen, and the event's number there, from 0. The same at every reading."""
    conversation_id: str = ""
    type: str = ""
    content: msgspec.Raw = msgspec.Raw(b"null")
    timestamp: Any = None
    attempt: int = 0
    """For streams of tasks: the attempt that wrote it."""
    sequence: int = 0
    """Set by the reader: number of the stored message; pass `sequence + 1` as `start` to go on behind it."""

    @property
    def writer(self) -> str:
        """Empty for a foreign one."""
        writer, _, digits = self.id.rpartition("-")
        return writer if digits.isdecimal() and len(digits) < MAX_DIGITS else ""

    @property
    def number(self) -> int:
        """How many events the writer wrote before; for those that have a writer."""
        return int(self.id.rpartition("-")[2])

    def is_behind(self, other: StreamEvent) -> bool:
        """Whether it comes later than another event of the same message; all of a message have one writer."""
        return self.writer == other.writer != "" and self.number > other.number

    def value(self) -> Any:
        """The content as plain data."""
        return msgspec.json.decode(self.content)


_encode = msgspec.json.Encoder().encode
_decode_one = msgspec.json.Decoder(StreamEvent).decode
_decode_many = msgspec.json.Decoder(list[StreamEvent]).decode


def encode_event(event: StreamEvent) -> bytes:
    """The document of an event.

    Raises:
        PayloadTooLargeError: It is over `MAX_EVENT`.
    """
    data = _encode(event)
    if len(data) > MAX_EVENT:
        raise PayloadTooLargeError(len(data), MAX_EVENT)
    return data


def decode_events(data: bytes, sequence: int) -> list[StreamEvent]:
    """The events in a stored message; none in one that was not written by us."""
    try:
        events = _decode_many(data) if data[:1] == b"[" else [_decode_one(data)]
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return []
    for event in events:
        event.sequence = sequence
    return events


class StreamWriter:
    """Appends to a stream. Nothing is running while nothing is under way.

    Args:
        transport: The connection.
        subjects: The tenant's subjects.
        stream_id: Which stream.
        attempt: For streams of tasks.
    """

    def __init__(self, transport: Transport, subjects: Subjects, stream_id: str, *, attempt: int = 0) -> None:
        self._transport = transport
        self._subject = subjects.stream(stream_id)
        self._stream_id = stream_id
        self._attempt = attempt
        self._name = new_id()
        self._count = 0
        self._buffer: deque[bytes] = deque()
        self._sending: asyncio.Task[None] | None = None
        self._problem: Exception | None = None

    async def append(self, type: str, content: Any) -> None:
        """Put an event behind the others; returns when it is on its way, `flush` when it is stored.

        Args:
            type: For instance `text`.
            content: Anything that can be written as JSON; a `msgspec.Raw` is taken as it is.

        Raises:
            InvalidMessageError: The content cannot be written as JSON.
            PayloadTooLargeError: It is over `MAX_EVENT` bytes.
            BrokerError: An earlier event could not be stored; the stream ends before it.
        """
        self.add(type, content)
        if self._sending is not None and len(self._buffer) > _WAITING:
            await asyncio.wait([self._sending])
            self._raise_problem()

    def add(self, type: str, content: Any) -> None:
        """Like `append`, for few events: it never waits for the broker to follow."""
        self._raise_problem()
        try:
            raw = content if isinstance(content, msgspec.Raw) else msgspec.Raw(_encode(content))
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidMessageError(f"content of a stream event: {error}") from error
        event = StreamEvent(f"{self._name}-{self._count}", self._stream_id, type, raw, now(), self._attempt)
        self._buffer.append(encode_event(event))
        self._count += 1
        if self._sending is None:
            self._sending = asyncio.get_running_loop().create_task(self._send(), name=f"stream {self._stream_id}")

    async def flush(self) -> None:
        """Wait until everything appended is stored.

        Raises:
            BrokerError: It could not be.
        """
        while self._sending is not None:
            await asyncio.wait([self._sending])
        self._raise_problem()

    def _raise_problem(self) -> None:
        if self._problem is not None:
            raise self._problem

    async def _send(self) -> None:
        try:
            while self._buffer:
                await self._transport.publish_durable(self._subject, self._next_message(), bulk=True)
        except Exception as error:  # told to whoever appends or flushes next
            self._problem = error
            self._buffer.clear()
        finally:
            self._sending = None

    def _next_message(self) -> bytes:
        parts = [self._buffer.popleft()]
        size = len(parts[0])
        while self._buffer and size + len(self._buffer[0]) < _BATCH:
            size += len(self._buffer[0])
            parts.append(self._buffer.popleft())
        return parts[0] if len(parts) == 1 else b"[" + b",".join(parts) + b"]"


class StreamReader:
    """Reads a stream from a point on: what is stored, then what comes, without gap and without repetition.

    `events()` is the whole of it; `finish()` makes it end with what is stored at that moment.
    """

    def __init__(self, transport: Transport, subjects: Subjects, stream_id: str, *, start: int = 1) -> None:
        self._follower = Follower(transport, subjects, stream_id, start=start)
        self._follower.on_repeated = self._check_known
        self._written: dict[str, int] = {}
        """The number of the last event of each writer: the next one has the next number, or something is missing."""

    def finish(self) -> None:
        """Nothing more will be stored: end after what there is."""
        self._follower.finish()

    async def events(self) -> AsyncGenerator[StreamEvent, None]:
        """The events, in order.

        Raises:
            StreamGapError: What comes next was dropped or deleted before it was read.
        """
        async with aclosing(self._follower.messages()) as messages:
            async for stored in messages:
                if stored is None:
                    continue
                for event in decode_events(stored[1], stored[0]):
                    self._check_number(event)
                    yield event

    def _check_known(self, sequence: int, data: bytes) -> None:
        """Raise StreamGapError for a live message that has the sequence of one that was read, and is not that one:
        the stream was deleted, and begun anew by somebody who did not know where it ended."""
        if not 0 < len(self._written) < _WRITERS:
            return  # not everything that was read is remembered
        for event in decode_events(data, sequence):
            if event.writer and event.number > self._written.get(event.writer, -1):
                raise StreamGapError(self._follower.subject, self._follower.next, sequence)

    def _check_number(self, event: StreamEvent) -> None:
        """Raise StreamGapError if the writer wrote something before it that is not there any more."""
        writer, number = event.writer, event.number
        if not writer:
            return
        last = self._written.get(writer)
        if last is not None and number != last + 1:
            raise StreamGapError(self._follower.subject, last + 1, number)
        if len(self._written) >= _WRITERS:
            del self._written[next(iter(self._written))]
        self._written[writer] = number
