"""`Publisher` and `AsyncPublisher`: producing without a mesh, chunk by chunk or from a generator.

with Publisher() as pub:
    pub.publish(Chunk(conversation_id="chat-123", content="Hello!", type="text"))
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import AsyncGenerator, AsyncIterable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from agentmesh.errors import ConnectionClosedError, PublishTimeoutError, RunEndedError
from agentmesh.loopthread import LoopThread
from agentmesh.streams.chunk import Chunk
from agentmesh.streams.config import Config
from agentmesh.streams.run import Run
from agentmesh.streams.streams import Streams
from agentmesh.transport import Transport

T = TypeVar("T")


class AsyncPublisher:
    """Publishes chunks: `async with AsyncPublisher(config) as pub: await pub.publish(chunk)`.

    The first chunk for a conversation begins a run, a terminal one ends it, and so does the end of the block: runs
    that are open then get an `error` chunk, "aborted", so no reader waits for ever.
    """

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or Config()
        self._transport: Transport | None = None
        self._streams: Streams | None = None
        self._ttl: float | None = None
        self._runs: dict[tuple[str, str], Run] = {}
        self._connecting = asyncio.Lock()

    async def connect(self) -> None:
        """Connect; done by the block, and by the first use.

        Raises:
            BrokerUnavailableError: There is no broker.
        """
        if self._streams is not None:
            return
        async with self._connecting:
            if self._streams is None:
                transport, self._streams, _ = await self.config.connect()
                self._transport = transport
                self._ttl = await self.config.ttl(transport)

    async def disconnect(self) -> None:
        """End the runs that are open, and the connection; once more does nothing."""
        runs, self._runs = list(self._runs.values()), {}
        transport, self._transport, self._streams = self._transport, None, None
        if transport is None:
            return
        try:
            for run in runs:
                await self._close(run)
        finally:
            await transport.close()

    async def publish(self, chunk: Chunk) -> Chunk:
        """Store a chunk, and return it as it is stored, with its `offset`.

        Raises:
            RunCancelledError: A reader cancelled the run. The next chunk begins a new one.
            PublishTimeoutError: It may or may not be stored. Published again, it is stored once.
            BrokerError: It is not stored.
        """
        run = await self._run(chunk)
        try:
            await run.publish(chunk)
            await run.flush()
        except PublishTimeoutError:
            raise
        except BaseException:
            if run.ended:
                await self._forget(run)
            raise
        last = run.last
        assert last is not None
        if run.ended:
            await self._forget(run)
        stored = copy.copy(last)
        stored.data = chunk.data
        return stored

    async def publish_stream(self, conversation_id: str, chunks: AsyncIterable[Chunk | str]) -> None:
        """Publish what a generator yields, chunks or plain text, as one run.

        When it ends without a terminal chunk, the run is finished. When it raises, readers get an `error` chunk with
        the message, the traceback goes to the log, and the exception goes on.

        Raises:
            RunCancelledError: A reader cancelled the run; the generator was stopped.
        """
        async with await self._opened(conversation_id) as run:
            async with contextlib.aclosing(_closable(chunks)) as items:
                async for item in items:
                    await _give(run, item)
            if not run.ended:
                await run.finish()
            await run.flush()

    def run(self, conversation_id: str, **options: Any) -> Run:
        """A run of its own, see `Streams.run`; after `connect`."""
        if self._streams is None:
            raise ConnectionClosedError("the publisher is not connected")
        options = {"ttl": self._ttl, **options}
        return self._streams.run(self.config.stream_id(conversation_id), **options)

    async def _opened(self, conversation_id: str, **options: Any) -> Run:
        await self.connect()
        return self.run(conversation_id, **options)

    async def _run(self, chunk: Chunk) -> Run:
        """The open run that the chunk belongs to."""
        key = (chunk.conversation_id, chunk.run_id)
        await self.connect()
        run = self._runs.get(key)
        if run is None:
            run = self._runs[key] = self.run(
                chunk.conversation_id, run_id=chunk.run_id or None, epoch=chunk.epoch, interrupt=False
            )
            await run.__aenter__()
        return run

    async def _forget(self, run: Run) -> None:
        self._runs = {key: one for key, one in self._runs.items() if one is not run}
        await self._close(run)

    async def _close(self, run: Run) -> None:
        with contextlib.suppress(RunEndedError):
            await run.close()

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.disconnect()


class Publisher:
    """`AsyncPublisher` for plain code: the same methods, and they block. Its connection has a thread of its own.

    `await pub.publish_stream(…)` is for code with an event loop; there, `async with Publisher(config) as pub` gives an
    `AsyncPublisher`.
    """

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or Config()
        self._thread: LoopThread | None = None
        self._publisher: AsyncPublisher | None = None
        self._entered: list[AsyncPublisher] = []

    def connect(self) -> None:
        """See `AsyncPublisher.connect`."""
        if self._thread is None:
            thread = LoopThread()
            publisher = AsyncPublisher(self.config)
            try:
                thread.run(publisher.connect())
            except BaseException:
                thread.close()
                raise
            self._thread, self._publisher = thread, publisher

    def disconnect(self) -> None:
        """See `AsyncPublisher.disconnect`."""
        thread, self._thread = self._thread, None
        publisher, self._publisher = self._publisher, None
        if thread is None or publisher is None:
            return
        try:
            thread.run(publisher.disconnect())
        finally:
            thread.close()

    def publish(self, chunk: Chunk) -> Chunk:
        """See `AsyncPublisher.publish`; returns when it is stored."""
        thread, publisher = self._connected()
        return thread.run(publisher.publish(chunk))

    async def publish_stream(self, conversation_id: str, chunks: AsyncIterable[Chunk | str]) -> None:
        """See `AsyncPublisher.publish_stream`. The generator runs in the caller's event loop."""
        thread, publisher = self._connected()
        loop, body = asyncio.get_running_loop(), asyncio.current_task()
        assert body is not None

        def there(work: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
            return asyncio.wrap_future(thread.submit(work))

        inside = True

        def interrupt() -> None:
            if inside:
                body.cancel()

        async def begin() -> Run:
            run = await publisher._opened(conversation_id, interrupt=False)
            await run.__aenter__()
            run.on_cancel(lambda: loop.call_soon_threadsafe(interrupt))
            return run

        run = await there(begin())
        try:
            async with contextlib.aclosing(_closable(chunks)) as items:
                async for item in items:
                    await there(_give(run, item))
        except BaseException as error:
            inside = False
            cancelled = run.cancelled.is_set() and isinstance(error, asyncio.CancelledError) and body.uncancel() == 0
            if cancelled:
                await there(run.close())  # raises, because it was
            await there(run.__aexit__(type(error), error, error.__traceback__))
            raise
        inside = False
        await there(_finish(run))

    def _connected(self) -> tuple[LoopThread, AsyncPublisher]:
        self.connect()
        assert self._thread is not None and self._publisher is not None  # noqa: PT018  (not a test)
        return self._thread, self._publisher

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disconnect()

    async def __aenter__(self) -> AsyncPublisher:
        publisher = AsyncPublisher(self.config)
        await publisher.connect()
        self._entered.append(publisher)
        return publisher

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._entered.pop().disconnect()


async def _give(run: Run, item: Chunk | str) -> None:
    if isinstance(item, Chunk):
        await run.publish(item)
    else:
        await run.send(item)


async def _finish(run: Run) -> None:
    try:
        if not run.ended:
            await run.finish()
    finally:
        await run.close()


async def _closable(chunks: AsyncIterable[Chunk | str]) -> AsyncGenerator[Chunk | str, None]:
    """The items of any asynchronous iterable; closing it closes a generator beneath."""
    try:
        async for item in chunks:
            yield item
    finally:
        close = getattr(chunks, "aclose", None)
        if close is not None:
            await close()
