"""Following a subject of the STREAMS stream: what is stored, then what comes, without gap and without repetition."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing

from agentmesh.streams.live import live_of
from agentmesh.subjects import Subjects
from agentmesh.transport import Message, StoredMessage, Transport

STREAM = "STREAMS"
"""The JetStream stream that holds them all."""

WAITING = 1_000
"""Messages a reader holds before it reads them again later."""

HELD = 256 * 1024
"""Bytes of them: a reader whose client does not read must not fill the memory."""

LOOK_AGAIN = 2.0
"""Seconds of silence after which a reader looks for what was stored but not heard: live messages can get lost."""

REPLAY = 500
"""Messages of one batch, for those who read a conversation once and for themselves."""

Stored = tuple[int, bytes]
"""A stored message: its sequence, and its body."""


class Follower:
    """The messages of one stream.

    Args:
        transport: The connection.
        subjects: The tenant's subjects.
        stream_id: Which stream.
        start: Sequence to start at.
        tick: Seconds of silence after which it looks into the store and yields None again.
    """

    def __init__(
        self, transport: Transport, subjects: Subjects, stream_id: str, *, start: int = 1, tick: float | None = None
    ) -> None:
        self.subject = subjects.stream(stream_id)
        self.start = self.next = max(1, start)
        """Where it began, and the sequence from which it knows nothing."""
        self.on_repeated: Callable[[int, bytes], None] | None = None
        """Called with live messages whose sequence was passed before; may raise."""
        self._transport = transport
        self._live = subjects.live_stream(stream_id)
        self._tick = LOOK_AGAIN if tick is None else min(tick, LOOK_AGAIN)
        self._heard: deque[Message] = deque()
        self._held = 0
        self._changed = asyncio.Event()
        self._missed = False
        self._finished = False

    @property
    def backlog(self) -> int:
        """Messages that were heard and not taken yet."""
        return len(self._heard)

    def finish(self) -> None:
        """Nothing more will be stored: end after what there is."""
        self._finished = True
        self._changed.set()

    async def messages(self) -> AsyncGenerator[Stored | None, None]:
        """The messages, in order; None each time when all there is has been yielded."""
        ear, take = live_of(self._transport), self._on_live
        if not self._finished:
            await ear.join(self._live, take)
        try:
            async with aclosing(self._replayed()) as pages:
                async for page in pages:
                    for passed in self._passed(page):
                        yield passed
            while True:
                async with aclosing(self._live_messages()) as live:
                    async for stored in live:
                        yield stored
                finished = self._finished
                if finished or self._missed:
                    self._missed = False
                    async with aclosing(self._replayed()) as pages:
                        async for page in pages:
                            for passed in self._passed(page):
                                yield passed
                if finished:
                    return
                if not self._changed.is_set():
                    yield None
                await self._something()
        finally:
            await ear.leave(self._live, take)

    def _on_live(self, message: Message) -> None:
        if len(self._heard) < WAITING and self._held < HELD:
            self._heard.append(message)
            self._held += len(message.data)
        else:
            self._missed = True  # the reader is slow: it reads the rest again from the store
        self._changed.set()

    def _replayed(self) -> AsyncGenerator[list[StoredMessage], None]:
        """What is stored from where we are; in pages for `_passed`."""
        return self._transport.pages(STREAM, self.subject, start=self.next)

    def _passed(self, page: list[StoredMessage]) -> Iterator[Stored]:
        for stored in page:
            self.next = stored.sequence + 1
            yield stored.sequence, stored.data

    async def _live_messages(self) -> AsyncGenerator[Stored, None]:
        while self._heard:
            message = self._heard.popleft()
            self._held -= len(message.data)
            headers = message.headers or {}
            sequence = int(headers.get("Nats-Sequence", 0))
            if sequence < self.next:
                if sequence >= self.start and self.on_repeated is not None:
                    self.on_repeated(sequence, message.data)
                continue
            if int(headers.get("Nats-Last-Sequence", 0)) >= self.next:  # one in between was not heard
                async with aclosing(self._replayed()) as pages:
                    async for page in pages:
                        for passed in self._passed(page):
                            yield passed
                continue
            self.next = sequence + 1
            yield sequence, message.data

    async def _something(self) -> None:
        """Wait for a live message or the end; after some silence, look into the store."""
        if not self._changed.is_set():
            timer = asyncio.get_running_loop().call_later(self._tick, self._look)
            await self._changed.wait()
            timer.cancel()
        self._changed.clear()

    def _look(self) -> None:
        self._missed = True
        self._changed.set()
