"""`Subscriber` and `AsyncSubscriber`: reading without a mesh.

with Subscriber() as sub:
    for chunk in sub.subscribe("chat-123"):
        print(chunk.content)
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from types import TracebackType
from typing import Self

from agentmesh.errors import ConnectionClosedError
from agentmesh.loopthread import LoopThread, pulled
from agentmesh.streams.chunk import Chunk
from agentmesh.streams.config import Config
from agentmesh.streams.positions import Position
from agentmesh.streams.streams import Streams
from agentmesh.subjects import Subjects, token
from agentmesh.transport import Transport

_AHEAD = 1_000
"""Chunks that are fetched ahead of a blocking reader."""


class AsyncSubscriber:
    """Reads conversations: `async with AsyncSubscriber(config) as sub: async for chunk in sub.subscribe("chat-123")`.

    Args:
        config: Where the broker is.
        group_id: A name under which the position in each conversation is kept at the broker. It moves past a chunk when
            the next one is asked for, or when you leave the loop at a terminal chunk: after a crash, chunks come again,
            none is lost. Without it a reader keeps nothing, and starts at the beginning.
    """

    def __init__(self, config: Config | None = None, group_id: str | None = None) -> None:
        self.config = config or Config()
        self.group_id = token("group", group_id) if group_id is not None else None
        self._opened: tuple[Transport, Streams, Subjects] | None = None
        self._connecting = asyncio.Lock()

    async def connect(self) -> None:
        """Connect; done by the block, and by the first use.

        Raises:
            BrokerUnavailableError: There is no broker.
        """
        async with self._connecting:
            if self._opened is None:
                self._opened = await self.config.connect()

    async def disconnect(self) -> None:
        """Close the connection; once more does nothing."""
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened[0].close()

    async def subscribe(
        self,
        conversation_id: str,
        from_offset: int | None = None,
        idle_timeout: float | None = None,
        *,
        one_run: bool = False,
        follow: bool = False,
    ) -> AsyncGenerator[Chunk, None]:
        """Chunks of a conversation, in order: those that are stored, then live. One that does not exist is waited for.

        It ends when everything stored was read and no run is open any more: after `finish`, `error` or `cancelled`.

        Args:
            conversation_id: Which conversation.
            from_offset: Number of the first chunk; None: behind the group's position, else from the beginning.
            idle_timeout: Seconds without any chunk until StreamIdleError.
            one_run: End with the first run, although there are more.
            follow: Never end: go on with later runs, too.

        Raises:
            StreamIdleError: Nothing came for `idle_timeout` seconds.
            StreamGapError: What comes next was dropped or deleted before it was read.
        """
        await self.connect()
        if self._opened is None:
            raise ConnectionClosedError("the subscriber is not connected")
        transport, streams, subjects = self._opened
        stream_id = self.config.stream_id(conversation_id)
        position = Position(transport, subjects, self.group_id, stream_id) if self.group_id is not None else None
        cursor = await position.load() if position is not None and from_offset is None else ""
        chunks = streams.read(
            stream_id,
            from_offset=from_offset or 0,
            cursor=cursor,
            one_run=one_run,
            to_end=not (one_run or follow),
            idle_timeout=idle_timeout,
        )
        async with aclosing(chunks):
            if position is None:
                async for chunk in chunks:
                    yield chunk
                return
            try:
                async for chunk in chunks:
                    try:
                        yield chunk
                    except GeneratorExit:
                        if chunk.is_final:  # the usual place to leave
                            position.move(chunk.cursor)
                        raise
                    position.move(chunk.cursor)
            finally:
                await position.flush()

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.disconnect()


class Subscriber:
    """`AsyncSubscriber` for plain code: the same methods, and they block. Its connection has a thread of its own, and
    any number of threads may subscribe at the same time.

    `async with Subscriber(config) as sub` gives an `AsyncSubscriber`.
    """

    def __init__(self, config: Config | None = None, group_id: str | None = None) -> None:
        self.config = config or Config()
        self.group_id = group_id
        self._thread: LoopThread | None = None
        self._subscriber = AsyncSubscriber(self.config, group_id)
        self._entered: list[AsyncSubscriber] = []

    def connect(self) -> None:
        """See `AsyncSubscriber.connect`."""
        if self._thread is None:
            thread = LoopThread()
            try:
                thread.run(self._subscriber.connect())
            except BaseException:
                thread.close()
                raise
            self._thread = thread

    def disconnect(self) -> None:
        """See `AsyncSubscriber.disconnect`."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        try:
            thread.run(self._subscriber.disconnect())
        finally:
            thread.close()
        self._subscriber = AsyncSubscriber(self.config, self.group_id)

    def subscribe(
        self,
        conversation_id: str,
        from_offset: int | None = None,
        idle_timeout: float | None = None,
        *,
        one_run: bool = False,
        follow: bool = False,
    ) -> Iterator[Chunk]:
        """See `AsyncSubscriber.subscribe`."""
        self.connect()
        thread = self._thread
        assert thread is not None
        chunks = self._subscriber.subscribe(conversation_id, from_offset, idle_timeout, one_run=one_run, follow=follow)
        # A named reader's position follows what was handed over, so nothing is fetched ahead for it.
        return _ahead(thread, chunks) if self.group_id is None else pulled(thread, chunks)

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disconnect()

    async def __aenter__(self) -> AsyncSubscriber:
        subscriber = AsyncSubscriber(self.config, self.group_id)
        await subscriber.connect()
        self._entered.append(subscriber)
        return subscriber

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._entered.pop().disconnect()


def _ahead(thread: LoopThread, chunks: AsyncGenerator[Chunk, None]) -> Iterator[Chunk]:
    """The chunks, many at each visit to the other thread."""
    pump = _Pump(chunks)
    try:
        while batch := thread.run(pump.take()):
            yield from batch
    finally:
        if not thread.loop.is_closed():
            thread.run(pump.close())


class _Pump:
    """Fetches ahead, on the loop's thread."""

    def __init__(self, chunks: AsyncGenerator[Chunk, None]) -> None:
        self._chunks = chunks
        self._fetched: deque[Chunk] = deque()
        self._something = asyncio.Event()
        self._room = asyncio.Event()
        self._filling: asyncio.Task[None] | None = None

    async def take(self) -> list[Chunk]:
        """At least one chunk, all that are there; none at the end."""
        if self._filling is None:
            self._filling = asyncio.get_running_loop().create_task(self._fill(), name="subscriber: fetch ahead")
        while not self._fetched and not self._filling.done():
            self._something.clear()
            await self._something.wait()
            await asyncio.sleep(0)  # let it end, if that was the last
        batch = list(self._fetched)
        self._fetched.clear()
        self._room.set()
        if not batch:
            self._filling.result()
        return batch

    async def close(self) -> None:
        if self._filling is not None:
            self._filling.cancel()
            await asyncio.gather(self._filling, return_exceptions=True)
        await self._chunks.aclose()

    async def _fill(self) -> None:
        try:
            async for chunk in self._chunks:
                self._fetched.append(chunk)
                self._something.set()
                if len(self._fetched) >= _AHEAD:
                    self._room.clear()
                    await self._room.wait()
        finally:
            self._something.set()
