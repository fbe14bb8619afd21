"""One reader of a conversation: replay, then live, to where it is meant to end."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from agentmesh.errors import StreamIdleError
from agentmesh.ids import now
from agentmesh.streams.care import Caretaker, Ending, Endings, Patience
from agentmesh.streams.chunk import Chunk, parse_cursor
from agentmesh.streams.figures import figures_of
from agentmesh.streams.follow import Follower
from agentmesh.streams.reading import Reading, find
from agentmesh.subjects import Subjects
from agentmesh.transport import Transport


@dataclass(frozen=True)
class Wish:
    """What is to be read; see `Streams.read`."""

    from_offset: int = 0
    cursor: str = ""
    run_id: str = ""
    one_run: bool = False
    to_end: bool = False
    until: Callable[[Chunk], bool] | None = None
    follow: bool = True
    idle_timeout: float | None = None


class Reader:
    """See the module; `chunks()` is the whole of it.

    Args:
        transport: The connection.
        subjects: The tenant's subjects.
        conversation_id: Which conversation.
        wish: What of it.
        ensure: Makes the JetStream stream if it is missing.
        caretaker: Looks into conversations in which nobody says anything.
        endings: Knows how tasks end.
        patience: When to have it looked into.
    """

    def __init__(
        self,
        transport: Transport,
        subjects: Subjects,
        conversation_id: str,
        wish: Wish,
        *,
        ensure: Callable[[], Coroutine[Any, Any, None]],
        caretaker: Caretaker,
        endings: Endings | None,
        patience: Patience,
    ) -> None:
        self._transport = transport
        self._subjects = subjects
        self._id = conversation_id
        self._wish = wish
        self._ensure = ensure
        self._caretaker = caretaker
        self._endings = endings
        self._patience = patience
        self._figures = figures_of(transport)
        self._run: str | None = wish.run_id or None
        """The only run that is read; None: all, or none has been chosen yet."""
        self._wanted = self._passed = 0
        """The first offset that is wanted, and the sequence up to which that is meant (0: any)."""
        self._heard = self._looked = 0.0
        self._ending: asyncio.Task[Ending] | None = None
        self._all = not (wish.run_id or wish.one_run or wish.until)

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        await self._ensure()
        start, offset = await self._place()
        reading = Reading(self._id, offset)
        tick = min(self._patience.silence, self._wish.idle_timeout or self._patience.silence)
        follower = Follower(self._transport, self._subjects, self._id, start=start, tick=tick)
        if not self._wish.follow:
            follower.finish()
        clock = asyncio.get_running_loop().time
        self._heard = clock()
        self._figures.followers.add(follower)
        try:
            async with aclosing(follower.messages()) as messages:
                async for stored in messages:
                    if stored is None:
                        if await self._is_over(reading, follower, clock() - self._heard):
                            return
                        continue
                    chunks = reading.take(*stored)
                    self._figures.read += len(chunks)
                    for chunk in chunks:
                        if not self._is_wanted(chunk):
                            continue
                        yield chunk
                        if self._is_last(chunk):
                            return
                    if reading.is_task and self._ending is None:
                        self._await_end(follower)
                    self._heard, self._looked = clock(), 0.0
            last = await self._end_of_task(reading)
            if last is not None and self._is_wanted(last):
                yield last
        finally:
            self._figures.followers.discard(follower)
            if self._ending is not None:
                self._ending.cancel()

    async def _place(self) -> tuple[int, int]:
        """Sequence to read from, and the offset of the first chunk there if its writer did not say."""
        first = self._wish.from_offset
        if self._wish.cursor:
            offset, sequence = parse_cursor(self._wish.cursor)
            self._wanted = first = offset + 1
            if sequence:
                self._passed = sequence
                return sequence, offset
        self._wanted = first
        return (1, 0) if first <= 0 else await find(self._transport, self._subjects, self._id, first)

    def _is_wanted(self, chunk: Chunk) -> bool:
        if chunk.offset < self._wanted and chunk.sequence <= (self._passed or chunk.sequence):
            return False
        if self._all:
            return True
        if self._run is None and self._wish.one_run and chunk.role != "user":
            self._run = chunk.run_id
        return chunk.run_id == self._run or not (self._wish.run_id or self._wish.one_run)

    def _is_last(self, chunk: Chunk) -> bool:
        if self._all:
            return False
        if self._wish.until is not None and self._wish.until(chunk):
            return True
        return self._run is not None and chunk.is_final

    async def _is_over(self, reading: Reading, follower: Follower, silence: float) -> bool:
        """Everything that is stored has been read: see whether that is all, and whether anybody is there."""
        if self._wish.to_end and reading.at_rest:
            return True
        if self._wish.idle_timeout is not None and silence >= self._wish.idle_timeout:
            raise StreamIdleError(f"stream {self._id!r}", self._wish.idle_timeout)
        if self._ending is None and silence - self._looked >= self._pause(reading):
            self._looked = silence
            if reading.begun or self._passed:
                self._caretaker.look(self._id, self._patience)
            elif self._endings is not None and await self._endings.now(self._id) is not None:
                self._await_end(follower)  # it is the id of a task that tells nothing
        return False

    def _pause(self, reading: Reading) -> float:
        """Seconds of silence until somebody looks why: longer and longer if we know of nothing that is to come."""
        if any(reading.open):
            return self._patience.silence
        return math.inf if reading.begun else max(self._patience.silence, self._looked)

    def _await_end(self, follower: Follower) -> None:
        """What is read may be what a task tells: that ends when the task is decided."""
        if self._endings is not None and self._wish.follow:
            self._ending = asyncio.get_running_loop().create_task(
                self._endings.wait(self._id), name=f"end of {self._id}"
            )
            self._ending.add_done_callback(lambda _: follower.finish())

    async def _end_of_task(self, reading: Reading) -> Chunk | None:
        """The chunk that stands for the decision about the task."""
        if self._ending is not None:
            ending: Ending | None = await self._ending
        elif self._endings is not None and reading.is_task:
            ending = await self._endings.now(self._id)
        else:
            ending = None
        if ending is None:
            return None
        return Chunk(
            id=f"{self._id}-end",
            conversation_id=self._id,
            type=ending.type,
            content=ending.content,
            timestamp=now(),
            run_id=self._id,
            offset=reading.next,
        )
