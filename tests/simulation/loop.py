"""An event loop whose time is virtual and whose order is the seed's, and processes on it that can be killed.

Sleeping costs nothing: when nothing is ready, time jumps to the next timer. Callbacks that are ready at the same time
run in an order drawn from the seed. Every callback belongs to a process (by its context); those of a killed process
never run again, not even their `finally` blocks, and those of a frozen one wait until it goes on.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import warnings
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, ContextVar, copy_context
from typing import Any

RUNNING, FROZEN, DEAD = 0, 1, 2

PROCESS: ContextVar[Process | None] = ContextVar("simulated_process", default=None)


class Deadlock(Exception):
    """Nothing is ready and no timer runs."""


class Process:
    """One simulated operating-system process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = RUNNING
        self.parked: list[asyncio.Handle] = []
        self.steps_left = -1
        """Steps until `on_last_step`; negative: no limit."""
        self.on_last_step: Callable[[], None] | None = None
        self._context = copy_context()
        self._context.run(PROCESS.set, self)

    def __repr__(self) -> str:
        return f"Process({self.name!r})"

    @property
    def context(self) -> Context:
        """A fresh context in this process."""
        return self._context.copy()


class SimTask(asyncio.Task[Any]):
    """A task whose place in a set does not depend on its address."""

    def __init__(self, number: int, coro: Generator[Any, None, Any] | Coroutine[Any, Any, Any], **options: Any) -> None:
        self.number = number
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self.number


class SimLoop(asyncio.BaseEventLoop):
    """See the module.

    Args:
        seed: Of the order.
        shuffle: Whether the order is drawn; else it is asyncio's.
    """

    _ready: Any
    _scheduled: Any
    """A heap of (when, number, timer): tuples are compared faster than timers."""

    def __init__(self, seed: int = 0, *, shuffle: bool = True) -> None:
        super().__init__()
        self._now = 0.0
        self._random = random.Random(seed)
        self._shuffle = shuffle
        self.steps = 0
        self._timers = itertools.count()
        self._tasks: list[SimTask] = []
        self.set_task_factory(self._new_task)  # type: ignore[arg-type]

    def time(self) -> float:
        return self._now

    def _new_task(self, loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **options: Any) -> SimTask:
        task = SimTask(len(self._tasks), coro, loop=loop, **options)
        self._tasks.append(task)
        return task

    def spawn(self, process: Process, coro: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something in a process."""
        return self.create_task(coro, context=process.context)

    def resume(self, process: Process) -> None:
        """Let a frozen process go on."""
        if process.state == FROZEN:
            process.state = RUNNING
            parked, process.parked = process.parked, []
            self._ready.extend(parked)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._scheduled, (when, next(self._timers), timer))
        return timer

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def _run_once(self) -> None:
        """One turn: everything that is ready now."""
        ready, scheduled = self._ready, self._scheduled
        while scheduled and scheduled[0][2]._cancelled:
            heapq.heappop(scheduled)
        if not ready:
            if not scheduled:
                raise Deadlock
            self._now = max(self._now, scheduled[0][0])
        while scheduled and scheduled[0][0] <= self._now:
            ready.append(heapq.heappop(scheduled)[2])
        count = len(ready)
        if count > 1 and self._shuffle:
            batch = list(ready)
            self._random.shuffle(batch)
            ready.clear()
            ready.extend(batch)
        for _ in range(count):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            process = handle._context.get(PROCESS)
            if process is None or self._may_run(process, handle):
                self.steps += 1
                handle._run()

    def _may_run(self, process: Process, handle: asyncio.Handle) -> bool:
        if process.state == RUNNING:
            if process.steps_left < 0:
                return True
            process.steps_left -= 1
            if process.steps_left >= 0:
                return True
            if process.on_last_step is not None:
                process.on_last_step()
        if process.state == FROZEN:
            process.parked.append(handle)
        return process.state == RUNNING

    def dispose(self) -> None:
        """Close what never ended, and the loop. Nothing of it is seen any more."""
        self.set_exception_handler(lambda *_: None)
        with warnings.catch_warnings(action="ignore"):
            for task in self._tasks:  # grows while `finally` blocks run
                if not task.done():
                    task._log_destroy_pending = False  # type: ignore[attr-defined]
                    _close(task.get_coro())
            self._tasks.clear()
            self._ready.clear()
            self._scheduled.clear()
        self.close()

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Cancelled timers are dropped when their time comes."""

    def _write_to_self(self) -> None:
        """No other thread waits for us."""


def _close(coro: Any) -> None:
    for _ in range(100):
        try:
            coro.close()
        except RuntimeError:  # a `finally` block awaits something
            continue
        except Exception:  # what a handler does in its last moments is of no interest
            return
        return
