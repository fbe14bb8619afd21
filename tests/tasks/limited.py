"""A worker process with limits: `python -m tests.tasks.limited URL TENANT FILE [SLOTS [ACK_WAIT [AGENT]]]`.

It prints `ready` and `started <task id> <attempt>`, and writes a line into FILE when a handler starts and when it ends:
`<time> + <key> <task id> <attempt> <pid>`, with `-` at the end. Lines of all processes are in the order of their times.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from agentmesh.limits import Limit
from agentmesh.messages import Task
from agentmesh.subjects import Subjects
from agentmesh.tasks import TaskContext, TaskWorker
from agentmesh.transport import Transport, TransportOptions

AGENT = "worker"


class Work(Task[str], max_attempts=3):
    """Under no limit of its own."""

    key: str = ""
    seconds: float = 0.02


class Two(Work, limits=[Limit(concurrency=2)]):
    """Two at once."""


class OnePer(Work, limits=[Limit(concurrency=1, key="key")]):
    """One at once for each key."""


class Paced(Work, limits=[Limit(rate=5, period=1.0)]):
    """Five in any second."""


class PacedPer(Work, limits=[Limit(rate=3, period=0.5, key="key"), Limit(concurrency=4)]):
    """Three in any half second for each key, four at once."""


TYPES: dict[str, type[Task[Any]]] = {kind.__name__: kind for kind in (Work, Two, OnePer, Paced, PacedPer)}


class Mark(NamedTuple):
    """A line of the file."""

    time: float
    sign: str
    key: str
    task_id: str
    attempt: int
    pid: int


class Log:
    """What the handlers of all processes did."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.path.touch()

    def write(self, sign: str, key: str, ctx: TaskContext) -> None:
        line = f"{time.monotonic()} {sign} {key or '-'} {ctx.task_id} {ctx.attempt} {os.getpid()}\n"
        with self.path.open("ab", buffering=0) as file:
            file.write(line.encode())

    def marks(self) -> list[Mark]:
        fields = [line.split() for line in self.path.read_text().splitlines()]
        marks = [
            Mark(float(at), sign, key, task, int(attempt), int(pid)) for at, sign, key, task, attempt, pid in fields
        ]
        return sorted(marks)

    def starts(self) -> list[Mark]:
        return [mark for mark in self.marks() if mark.sign == "+"]

    def most(self, by: str = "") -> dict[str, int]:
        """The most that ever ran at once, in all, or for each value of a field."""
        running: Counter[str] = Counter()
        most: Counter[str] = Counter()
        for mark in self.marks():
            key = str(getattr(mark, by)) if by else ""
            running[key] += 1 if mark.sign == "+" else -1
            most[key] = max(most[key], running[key])
        return dict(most)

    def most_within(self, period: float, key: str | None = None) -> int:
        """The most that started in any window of `period` seconds, its end not counted."""
        times = [mark.time for mark in self.starts() if key in (None, mark.key)]
        return max((sum(start <= time < start + period for time in times) for start in times), default=0)


async def main(
    url: str, tenant: str, path: str, slots: str = "8", ack_wait: str = "2.0", agent: str = "worker"
) -> None:
    log = Log(path)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    async def run(task: Task[Any], ctx: TaskContext) -> str:
        assert isinstance(task, Work)
        log.write("+", task.key, ctx)
        print("started", ctx.task_id, ctx.attempt, flush=True)
        try:
            await asyncio.sleep(task.seconds)
        finally:
            log.write("-", task.key, ctx)
        return "done"

    async with await Transport.connect(TransportOptions(url=url, name=f"worker-{os.getpid()}")) as transport:
        worker = TaskWorker(
            transport,
            Subjects(tenant),
            agent,
            types=TYPES,
            run=run,
            slots=int(slots),
            node=f"pid-{os.getpid()}",
            ack_wait=float(ack_wait),
            tenant_limits=[Limit(concurrency=3)] if tenant.startswith("bounded") else (),
        )
        await worker.start()
        print("ready", flush=True)
        await stop.wait()
        await worker.stop(grace=1.0)
    print("stopped", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
