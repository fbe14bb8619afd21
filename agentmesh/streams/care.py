"""Runs that nobody ends any more: their producer was killed, or the task that owned them was given up.

A reader that hears nothing for some time, while a run is open, has it looked into. The producer is asked over the
control subject whether it is alive; only when it does not answer several times over is the run ended, with an `error`
chunk, by compare-and-set: once, whoever does it, and not if the producer has said something meanwhile. A run with an
owner is ended as its task was decided, and not before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from agentmesh.errors import AgentMeshError
from agentmesh.streams.chunk import ERROR
from agentmesh.streams.post import Post
from agentmesh.streams.reading import OpenRun

log = logging.getLogger("agentmesh.streams")

GONE = "the producer is gone"


@dataclass(frozen=True)
class Patience:
    """When a producer is taken for dead: after `silence`, and `asks` questions `every` so many seconds."""

    silence: float = 5.0
    asks: int = 4
    every: float = 2.5


@dataclass(frozen=True)
class Ending:
    """How a task ended, as the last chunk of what it tells."""

    type: str
    content: str = ""


class Endings(Protocol):
    """Knows how tasks end."""

    async def now(self, task_id: str) -> Ending | None:
        """None: it is not decided, or there is no such task."""

    async def wait(self, task_id: str) -> Ending:
        """However long it takes."""
        ...


class Caretaker:
    """Looks into conversations of one connection and tenant; into each once at a time, however many readers ask.

    Args:
        post: Asks producers.
        open_runs: The open runs of a conversation.
        end: Ends a run of a conversation with a chunk of that kind and content, if that take of it says nothing more.
        endings: Knows how tasks end.
    """

    def __init__(
        self,
        post: Post,
        open_runs: Callable[[str], Awaitable[list[OpenRun]]],
        end: Callable[[str, OpenRun, str, str], Awaitable[bool]],
        endings: Endings | None,
    ) -> None:
        self._post = post
        self._open_runs = open_runs
        self._end = end
        self._endings = endings
        self._looking: dict[str, asyncio.Task[None]] = {}

    def look(self, conversation_id: str, patience: Patience) -> None:
        """Have it looked into, in the background."""
        if conversation_id not in self._looking:
            task = asyncio.get_running_loop().create_task(
                self._look(conversation_id, patience), name=f"stream {conversation_id}: is anybody there"
            )
            self._looking[conversation_id] = task
            task.add_done_callback(lambda _: self._looking.pop(conversation_id, None))

    async def _look(self, conversation_id: str, patience: Patience) -> None:
        try:
            for run in await self._open_runs(conversation_id):
                await self._look_at(conversation_id, run, patience)
        except AgentMeshError as error:  # the next reader that hears nothing looks again
            log.debug("stream %r: cannot see whether its producer is alive: %s", conversation_id, error)

    async def _look_at(self, conversation_id: str, run: OpenRun, patience: Patience) -> None:
        if run.owner:
            ending = await self._endings.now(run.owner) if self._endings is not None and run.owner != "*" else None
            if ending is not None:
                await self._end(conversation_id, run, ending.type, ending.content)
            return
        for _ in range(patience.asks):
            if await self._post.alive(conversation_id, run.run_id, run.epoch, patience.every):
                return
        if await self._end(conversation_id, run, ERROR, GONE):
            log.warning("stream %r: the producer of run %r is gone", conversation_id, run.run_id)
