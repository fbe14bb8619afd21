"""Task types and handlers of these tests; the same in this process and in worker processes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from agentmesh.errors import Reject, Retry
from agentmesh.messages import Task
from agentmesh.tasks import TaskContext


class Double(Task[int]):
    n: int


class Hold(Task[str]):
    """Runs until it is released, cancelled, or `seconds` have passed."""

    seconds: float = 60.0


class Nap(Task[str]):
    seconds: float = 0.01


class Fail(Task[None], max_attempts=3, backoff=0.2):
    """Fails in every attempt up to `times`."""

    times: int = 1000
    message: str = "no luck"


class Hang(Task[None], time_limit=0.5):
    """Runs for ever, over its time limit."""


class Stubborn(Task[None], time_limit=0.2):
    """Ignores that it is cancelled, until it is released."""


class Once(Task[str], max_attempts=1):
    how: str


class Story(Task[str], max_attempts=3, backoff=0.05):
    """Sends progress and chunks; fails after its chunks in the first `failures` attempts."""

    words: list[str]
    failures: int = 0


class Big(Task[str]):
    size: int


TYPES: dict[str, type[Task[Any]]] = {
    kind.__name__: kind for kind in (Double, Hold, Nap, Fail, Hang, Stubborn, Once, Story, Big)
}


class Handlers:
    """Runs the tasks above and keeps book."""

    def __init__(self) -> None:
        self.started: list[tuple[str, int, float]] = []
        """Task id, attempt, monotonic time."""
        self.ended: list[str] = []
        """Ids of those that ended by themselves."""
        self.active = 0
        self.most_active = 0
        self.release = asyncio.Event()
        self._changed = asyncio.Event()

    def attempts(self, task_id: str) -> list[int]:
        return [attempt for known, attempt, _ in self.started if known == task_id]

    async def has_started(self, count: int = 1, timeout: float = 5.0) -> None:
        """Wait until that many attempts have started."""
        await self._until(lambda: len(self.started) >= count, timeout)

    async def is_idle(self, timeout: float = 5.0) -> None:
        """Wait until no handler runs."""
        await self._until(lambda: self.active == 0, timeout)

    async def _until(self, condition: Callable[[], bool], timeout: float) -> None:
        async with asyncio.timeout(timeout):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def run(self, task: Task[Any], ctx: TaskContext) -> Any:
        self.started.append((ctx.task_id, ctx.attempt, time.monotonic()))
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        self._changed.set()
        try:
            result = await self._handle(task, ctx)
            self.ended.append(ctx.task_id)
            return result
        finally:
            self.active -= 1
            self._changed.set()

    async def _handle(self, task: Task[Any], ctx: TaskContext) -> Any:
        match task:
            case Double(n=n):
                return 2 * n
            case Hold(seconds=seconds):
                async with asyncio.timeout(seconds):
                    await self.release.wait()
                return "released"
            case Nap(seconds=seconds):
                await asyncio.sleep(seconds)
                return "rested"
            case Fail(times=times, message=message):
                if ctx.attempt <= times:
                    raise ValueError(message)
            case Hang():
                await asyncio.Event().wait()
            case Stubborn():
                while not self.release.is_set():
                    try:
                        await self.release.wait()
                    except asyncio.CancelledError:
                        continue
            case Once(how="reject"):
                raise Reject("cannot be done")
            case Once(how="retry"):
                raise Retry(0.0, "later")
            case Once(how="wrong result"):
                return 42
            case Once():
                return "fine"
            case Story(words=words, failures=failures):
                for number, word in enumerate(words, start=1):
                    await ctx.progress(number / len(words), word)
                    await ctx.chunk(word)
                if ctx.attempt <= failures:
                    raise ValueError("lost the thread")
                return " ".join(words)
            case Big(size=size):
                return "x" * size
        return None
