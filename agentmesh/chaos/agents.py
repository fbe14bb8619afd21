"""The agent whose work is watched, and the messages it takes. It runs in ordinary nodes; what it does, it records."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

from agentmesh.agent import Agent, handler
from agentmesh.chaos import failpoints
from agentmesh.chaos.history import watch_loop
from agentmesh.messages import Event, Request, Task
from agentmesh.tasks import TaskContext

NAME = "worker"
"""The agent's name; all replicas share it."""

BLOCK, JUMP = signal.SIGUSR1, signal.SIGUSR2
"""Signals that make a worker block its event loop, and make its time of day jump."""


BEFORE = 0.7
"""The part of a task's time that lies before its effect: a process may be killed on either side of it."""


class Work(Task[int], max_attempts=60, backoff=0.05, max_backoff=1.0, time_limit=60.0):
    """Takes `seconds`, and has one effect."""

    n: int
    seconds: float
    failures: int = 0
    """So many attempts raise."""


class Doomed(Task[int], max_attempts=3, backoff=0.05):
    """Always raises, so that it becomes a dead letter."""

    n: int


class Echo(Request[int]):
    """Wants `n` back after `seconds`."""

    n: int
    seconds: float


class Note(Event, durable=True):
    """The `n`-th durable event of a sender."""

    sender: str
    n: int


class Worker(Agent):
    """Works, and records what it does.

    Args:
        history: Folder of the run.
        without: Protections to switch off in this process.
        block: Seconds for which `BLOCK` blocks the event loop.
        jump: Seconds by which `JUMP` moves the time of day of this process, there and back.
    """

    name = NAME
    concurrency = 8

    def __init__(self, history: str, without: list[str], block: float, jump: float) -> None:
        self._history = Path(history)
        self._block, self._jump = block, jump
        self._record = failpoints.recorder(self._history, NAME)
        failpoints.switch_off(without)
        failpoints.observe(self._record)  # after it: what is observed is what then happens

    async def on_start(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(BLOCK, self._block_loop)
        loop.add_signal_handler(JUMP, failpoints.jump_clock, self._jump, self._record)
        self._watching = loop.create_task(watch_loop(self._record), name="chaos: late event loop")
        self._record.write("ready", parent=os.getppid())

    async def on_stop(self) -> None:
        self._watching.cancel()

    @handler
    async def work(self, task: Work, ctx: TaskContext) -> int:
        about: dict[str, Any] = {"task": ctx.task_id, "attempt": ctx.attempt}
        self._record.write("started", **about)
        if ctx.attempt <= task.failures:
            self._record.write("raised", **about)
            raise RuntimeError("as planned")
        try:
            await asyncio.sleep(BEFORE * task.seconds)
            self._record.write("effect", key=ctx.key("effect"), **about)
            await asyncio.sleep((1.0 - BEFORE) * task.seconds)
        except asyncio.CancelledError:
            self._record.write("interrupted", **about)
            raise
        self._record.write("done", **about)
        return task.n

    @handler
    async def doomed(self, task: Doomed, ctx: TaskContext) -> int:
        self._record.write("started", task=ctx.task_id, attempt=ctx.attempt)
        self._record.write("raised", task=ctx.task_id, attempt=ctx.attempt)
        raise RuntimeError("as always")

    @handler
    async def echo(self, request: Echo) -> int:
        await asyncio.sleep(request.seconds)
        return request.n

    @handler
    async def note(self, event: Note) -> None:
        self._record.write("noted", sender=event.sender, n=event.n)

    def _block_loop(self) -> None:
        self._record.write("blocked", seconds=self._block)
        time.sleep(self._block)
        self._record.write("unblocked")
