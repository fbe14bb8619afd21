"""The place that a running handler takes at its worker and its agent.

A workflow that only waits (for another task, a time, a signal) gives its place up, so that others are served: the
tasks it waits for, among them. So an agent with one slot can run a workflow and the tasks of that workflow. It has a
place again before its code goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any


def _nothing() -> None:
    pass


async def _at_once() -> None:
    pass


class Seat:
    """One place, shared by all that a handler does at the same time: its strands, each a task of the event loop.

    It is given up when every strand waits. The handler itself counts as waiting while strands of its own go on.

    Args:
        on_change: Told each time whether it is taken now.
    """

    __slots__ = ("_coming_back", "_main", "_on_change", "_release", "_strands", "_take", "taken")

    def __init__(self, on_change: Callable[[bool], None] | None = None) -> None:
        self.taken = True
        self._on_change = on_change
        self._main = asyncio.current_task()
        self._release: Callable[[], None] = _nothing
        self._take: Callable[[], Awaitable[None]] = _at_once
        self._strands: dict[asyncio.Task[Any], bool] = {}
        """Whether each of them waits."""
        self._coming_back: asyncio.Lock | None = None

    def bind(self, release: Callable[[], None], take: Callable[[], Awaitable[None]]) -> None:
        """Say how the place at the agent is given up and taken again."""
        self._release, self._take = release, take

    def close(self) -> None:
        """The handler has ended: a strand that it left behind gets no place, and gives none up."""
        self._release, self._take, self._on_change = _nothing, _at_once, None

    def add(self, strand: asyncio.Task[Any]) -> None:
        """There is another strand, and it does not wait."""
        if strand not in self._strands:
            strand.add_done_callback(self._forget)
        self._strands[strand] = False

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """While this strand waits. It has a place again afterwards, unless it is cancelled: then it ends without."""
        strand = asyncio.current_task()
        assert strand is not None
        self.add(strand)
        self._strands[strand] = True
        self._weigh()
        try:
            yield
        except Exception:
            await self.back()
            raise
        await self.back()

    async def back(self) -> None:
        """Have a place; waits for one if need be.

        Raises:
            AgentStoppedError: The agent has ended meanwhile.
        """
        strand = asyncio.current_task()
        assert strand is not None
        self.add(strand)
        if self.taken:
            return
        if self._coming_back is None:
            self._coming_back = asyncio.Lock()
        async with self._coming_back:
            if not self.taken:
                await self._take()
                self.taken = True
                if self._on_change is not None:
                    self._on_change(True)

    def _forget(self, strand: asyncio.Task[Any]) -> None:
        del self._strands[strand]
        self._weigh()

    def _weigh(self) -> None:
        """Give the place up when nobody needs it."""
        if not self.taken or self._is_needed():
            return
        self.taken = False
        self._release()
        if self._on_change is not None:
            self._on_change(False)

    def _is_needed(self) -> bool:
        others = [waits for strand, waits in self._strands.items() if strand is not self._main]
        return not all(others) if others else not self._strands.get(self._main, False)  # type: ignore[arg-type]
