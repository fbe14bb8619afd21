"""A worker process that can be killed: `python -m tests.tasks.workers URL TENANT LEDGER [SLOTS [ACK_WAIT [FAULT]]]`.

It prints `ready`, `started <task id> <attempt>` and `stopped`, and writes what it does into a ledger, a SQLite file:
every start, every execution of an effect, and the effects that an outside store with unique keys would hold.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from agentmesh.messages import Task
from agentmesh.subjects import Subjects
from agentmesh.tasks import TaskContext, TaskWorker
from agentmesh.transport import Delivery, Transport, TransportOptions

AGENT = "worker"


class Work(Task[int], max_attempts=8, backoff=0.05):
    """Takes `seconds`, then has one effect."""

    n: int
    seconds: float = 0.05
    die_after_effect: bool = False
    """In the first attempt."""


class Poison(Task[None], max_attempts=3):
    """Kills its worker."""


class Blocking(Task[int]):
    """Blocks the event loop, as a handler must not."""

    seconds: float


class Tale(Task[str], max_attempts=8, backoff=0.05):
    """Tells `words` words, one chunk each, with pauses."""

    words: int
    pause: float = 0.02


class Glutton(Task[None], max_attempts=3, backoff=0.05):
    """Wants more memory than it may have."""

    megabytes: int = 4096


class Ledger:
    """What workers did, as an outside store sees it."""

    def __init__(self, path: Path | str) -> None:
        self.path = str(path)
        with self._open() as db:
            db.executescript(
                "create table if not exists started(task, pid, attempt, at);"
                "create table if not exists executed(key, pid);"
                "create table if not exists effect(key primary key);"
            )

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path, timeout=10)) as db, db:
            yield db

    def start(self, task_id: str, attempt: int) -> None:
        with self._open() as db:
            db.execute("insert into started values (?, ?, ?, ?)", (task_id, os.getpid(), attempt, time.time()))

    def effect(self, key: str) -> None:
        with self._open() as db:
            db.execute("insert into executed values (?, ?)", (key, os.getpid()))
            db.execute("insert or ignore into effect values (?)", (key,))

    def starts(self, task_id: str) -> list[tuple[int, int, float]]:
        """Process, attempt, time of day; oldest first."""
        with self._open() as db:
            return db.execute("select pid, attempt, at from started where task = ? order by at", (task_id,)).fetchall()

    def effects(self) -> int:
        with self._open() as db:
            return int(db.execute("select count(*) from effect").fetchone()[0])

    def executions(self) -> int:
        with self._open() as db:
            return int(db.execute("select count(*) from executed").fetchone()[0])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def main(url: str, tenant: str, path: str, slots: str = "4", ack_wait: str = "1.0", fault: str = "") -> None:
    ledger = Ledger(path)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    async def run(task: Task[Any], ctx: TaskContext) -> Any:
        ledger.start(ctx.task_id, ctx.attempt)
        print("started", ctx.task_id, ctx.attempt, flush=True)
        match task:
            case Poison():
                die()
            case Blocking(seconds=seconds):
                time.sleep(seconds)  # noqa: ASYNC251  (this is the fault)
                ledger.effect(ctx.key("effect"))
                return 0
            case Tale(words=words, pause=pause):
                for number in range(words):
                    await ctx.chunk(f"{ctx.attempt}.{number} ")
                    await asyncio.sleep(pause)
                return f"told by attempt {ctx.attempt}"
            case Glutton(megabytes=megabytes):
                bytearray(megabytes * 1024 * 1024)
            case Work(n=n, seconds=seconds, die_after_effect=fatal):
                await asyncio.sleep(seconds)
                ledger.effect(ctx.key("effect"))
                if fatal and ctx.attempt == 1:
                    die()
                return n
        return None

    async with await Transport.connect(TransportOptions(url=url, name=f"worker-{os.getpid()}")) as transport:
        if fault == "die before ack":

            async def ack(delivery: Delivery) -> bool:
                die()
                return False

            transport.ack = ack  # type: ignore[method-assign]
        if fault == "little memory":
            resource.setrlimit(resource.RLIMIT_AS, (3 * 1024**3, 3 * 1024**3))
        worker = TaskWorker(
            transport,
            Subjects(tenant),
            AGENT,
            types={kind.__name__: kind for kind in (Work, Poison, Blocking, Tale, Glutton)},
            run=run,
            slots=int(slots),
            node=f"pid-{os.getpid()}",
            ack_wait=float(ack_wait),
        )
        await worker.start()
        print("ready", flush=True)
        await stop.wait()
        await worker.stop(grace=1.0)
    print("stopped", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
