"""Waiting for results: one subscription and one coarse loop per client, however many jobs wait.

Results are republished when they are stored, over core NATS, so one can get lost: jobs that wait have their slot read
every 2 seconds, and at once after the connection came back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any
from weakref import WeakValueDictionary

from agentmesh.errors import BrokerError, ConnectionLostError
from agentmesh.ids import new_id, now
from agentmesh.subjects import Subjects
from agentmesh.tasks import slot
from agentmesh.tasks.layout import ensure_streams
from agentmesh.tasks.wire import ResultBody, decode_result
from agentmesh.transport import Message, Transport

log = logging.getLogger("agentmesh.tasks")

LOOK_AGAIN = 2.0
"""Seconds between looks into the slot of a job that waits."""

TICK = 0.1
"""Seconds by which a deadline may be noticed late."""

_AT_ONCE = 64
_PER_TICK = 256
"""Slots read at the same time, and per tick: with many thousands waiting, looks become rarer, not heavier."""


class Watch:
    """What is known about the result of one task. It lives as long as somebody holds it."""

    __slots__ = ("__weakref__", "body", "deadline", "listeners", "look_at", "reason", "task_id")

    def __init__(self, task_id: str, deadline: datetime | None) -> None:
        self.task_id = task_id
        self.body: ResultBody | None = None
        """The decision, once it is known."""
        self.deadline = deadline
        self.reason = ""
        """Whose deadline that is, if not the task's own."""
        self.look_at = 0.0
        """When its slot is to be read next; 0 until it has been read, or need not be."""
        self.listeners: list[Callable[[], None]] = []
        """Called once, when the decision is known."""

    def decided(self, body: ResultBody) -> None:
        if self.body is None:
            self.body = body
            for listener in self.listeners:
                listener()
            self.listeners.clear()


class Results:
    """The results of a tenant, as far as somebody here waits for them."""

    def __init__(self, transport: Transport, subjects: Subjects) -> None:
        self._transport = transport
        self._subjects = subjects
        self._watches: WeakValueDictionary[str, Watch] = WeakValueDictionary()
        self._waiting: dict[Watch, int] = {}
        self._looking: asyncio.Task[None] | None = None
        self._listening = False
        self._starting = asyncio.Lock()
        self._closed = False
        self.on_decided: Callable[[str], None] | None = None
        """Called with the id of each task that is decided, whoever waits for it, as far as that is heard here."""

    def watch(self, task_id: str, deadline: datetime | None = None, *, is_new: bool = False) -> Watch:
        """The watch of a task.

        Args:
            task_id: Which.
            deadline: When to decide that it is expired, if nobody else has.
            is_new: It is about to be submitted: its slot need not be read, if we hear results already.
        """
        watch = self._watches.get(task_id)
        if watch is None:
            watch = self._watches[task_id] = Watch(task_id, deadline)
            if is_new and self._listening:
                watch.look_at = asyncio.get_running_loop().time() + LOOK_AGAIN
        return watch

    async def listen(self) -> None:
        """Hear results from now on."""
        async with self._starting:
            if not self._listening:
                await ensure_streams(self._transport)
                await self._transport.subscribe(self._subjects.results(), self._on_result)
                self._transport.on_state(self._on_state)
                self._listening = True

    async def wait(self, watch: Watch) -> ResultBody:
        """The decision about a task, however long it takes.

        Raises:
            ConnectionLostError: The connection was closed.
        """
        await self.listen()
        if watch.body is None and watch.look_at == 0.0:
            await self._look(watch)
        if watch.body is None:
            await self._told(watch)
        assert watch.body is not None
        return watch.body

    async def _told(self, watch: Watch) -> None:
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def tell() -> None:
            if not told.done():
                told.set_result(None)

        watch.listeners.append(tell)
        self._waiting[watch] = self._waiting.get(watch, 0) + 1
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._look_again(), name="results")
        try:
            if self._closed:
                raise ConnectionLostError
            await told
        finally:
            self._waiting[watch] -= 1
            if not self._waiting[watch]:
                del self._waiting[watch]
            if tell in watch.listeners:
                watch.listeners.remove(tell)
        if watch.body is None:
            raise ConnectionLostError

    def _on_result(self, message: Message) -> None:
        task_id = (message.headers or {}).get("Nats-Subject", "").rpartition(".")[2]
        if self.on_decided is not None:
            self.on_decided(task_id)
        watch = self._watches.get(task_id)
        if watch is not None:
            watch.decided(decode_result(message.data, task_id))

    def _on_state(self, state: str) -> None:
        if state == "connected":
            for watch in self._watches.values():
                watch.look_at = 0.0
        elif state == "closed":
            self._closed = True
            for watch in list(self._waiting):
                for listener in list(watch.listeners):
                    listener()

    # ------------------------------------------------------------ the coarse loop

    async def _look_again(self) -> None:
        """Read the slots of jobs that wait, now and then; decide those whose deadline passed."""
        try:
            while self._waiting and not self._closed:
                await asyncio.sleep(TICK)
                late = [w for w in self._waiting if w.deadline is not None and w.deadline <= now()]
                time = asyncio.get_running_loop().time()
                due = sorted((w for w in self._waiting if w.look_at <= time), key=lambda w: w.look_at)[:_PER_TICK]
                await self._all([*map(self._expire, late), *map(self._look, due)])
        except Exception:  # nobody awaits this loop: it must not end unheard while jobs wait
            log.exception("looking for results failed")
        finally:
            self._looking = None

    async def _all(self, work: list[Coroutine[Any, Any, None]]) -> None:
        for first in range(0, len(work), _AT_ONCE):
            for problem in await asyncio.gather(*work[first : first + _AT_ONCE], return_exceptions=True):
                if isinstance(problem, BrokerError):
                    log.debug("cannot look for a result: %s", problem)
                elif isinstance(problem, BaseException):
                    raise problem

    async def _look(self, watch: Watch) -> None:
        watch.look_at = asyncio.get_running_loop().time() + LOOK_AGAIN
        body = await slot.read(self._transport, self._subjects, watch.task_id)
        if body is not None:
            watch.decided(body)

    async def _expire(self, watch: Watch) -> None:
        verdict = ResultBody(watch.task_id, "expired", by=f"deadline:{new_id()}", reason=watch.reason)
        watch.deadline = None
        watch.decided(await slot.decide(self._transport, self._subjects, verdict))
