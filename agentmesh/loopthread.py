"""An event loop on a thread of its own, for calls that block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from agentmesh.errors import ConnectionClosedError

T = TypeVar("T")

_DONE = object()

LAST_WORDS = 2.0
"""Seconds that what was cancelled gets to end."""


class LoopThread:
    """An event loop on a daemon thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="agentmesh", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
            left = asyncio.all_tasks(self.loop)
            for task in left:  # such as a connect that was interrupted, and has a broker to stop
                task.cancel()
            if left:
                self.loop.run_until_complete(asyncio.wait(left, timeout=LAST_WORDS))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        finally:
            self.loop.close()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run `work` on the loop; the future may be waited for by any thread."""
        if self.loop.is_closed():
            work.close()
            raise ConnectionClosedError
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("mesh.sync cannot be used inside an agent: use 'await self.mesh...'")
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on the loop and wait for it; an interrupt cancels it, and waits until it has ended."""
        ended = threading.Event()

        async def watched() -> T:
            try:
                return await work
            finally:
                ended.set()

        try:
            future = self.submit(watched())
        except BaseException:
            work.close()
            raise
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            ended.wait(LAST_WORDS)
            raise

    def close(self) -> None:
        """Stop the loop and wait for the thread; once more does nothing."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()


def pulled(thread: LoopThread, items: AsyncIterator[T]) -> Iterator[T]:
    """Items of an async iterator, pulled one by one; leaving the loop closes it."""

    async def step() -> Any:
        return await anext(items, _DONE)

    async def end() -> None:
        close = getattr(items, "aclose", None)
        if close is not None:
            await close()

    try:
        while (item := thread.run(step())) is not _DONE:
            yield item
    finally:
        if not thread.loop.is_closed():
            thread.run(end())
