"""When a handler has to end: its time limit, in which waiting does not count, or its deadline, whichever is first."""

from __future__ import annotations

import asyncio
from datetime import datetime

from agentmesh.ids import now

TIME_LIMIT, DEADLINE = "time limit", "deadline"

_NEVER = float("inf")


def loop_time() -> float:
    """Seconds of the running event loop: of use for differences only."""
    return asyncio.get_running_loop().time()


class Clock:
    """The limits of one run of a handler."""

    __slots__ = ("_deadline", "_left", "_loop", "_work_until", "limit_at", "limit_why", "started_at")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.started_at = 0.0
        self.limit_at = _NEVER
        """In seconds of the event loop."""
        self.limit_why = ""
        self._work_until = self._deadline = _NEVER
        self._left = 0.0

    def start(self, time_limit: float, deadline: datetime | None) -> None:
        """The handler begins now."""
        self.started_at = self._loop.time()
        self._work_until = self.started_at + time_limit
        if deadline is not None:
            self._deadline = self.started_at + (deadline - now()).total_seconds()
        self._set()

    def stop(self) -> None:
        """The handler is a workflow that only waits."""
        self._left = self._work_until - self._loop.time()
        self._work_until = _NEVER
        self._set()

    def go_on(self) -> None:
        """It waits no more."""
        self._work_until = self._loop.time() + self._left
        self._set()

    def clear(self) -> None:
        """There is no limit any more."""
        self._work_until = self._deadline = self.limit_at = _NEVER

    def _set(self) -> None:
        self.limit_at = min(self._work_until, self._deadline)
        self.limit_why = DEADLINE if self._deadline < self._work_until else TIME_LIMIT
