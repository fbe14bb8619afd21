"""A worker whose handler writes to a fenced store: `python -m tests.idempotency.fenced URL TENANT DATABASE`.

It prints `ready`, and `fence N` when a handler has its fence and has written once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from agentmesh.messages import Task
from agentmesh.subjects import Subjects
from agentmesh.tasks import TaskContext, TaskWorker
from agentmesh.transport import Transport, TransportOptions

AGENT = "writer"
ACK_WAIT = 1.0


class Write(Task[int]):
    """Writes, takes its time, and writes again."""

    seconds: float = 0.3


class FencedStore:
    """A SQLite file that takes no write with a lower fence than it has seen."""

    def __init__(self, path: Path | str) -> None:
        self.path = str(path)
        with closing(sqlite3.connect(self.path, timeout=10)) as db, db:
            db.execute("create table if not exists written(fence, pid, accepted)")

    def write(self, fence: int) -> bool:
        """Whether the write was accepted."""
        with closing(sqlite3.connect(self.path, timeout=10, isolation_level=None)) as db:
            db.execute("begin immediate")
            (highest,) = db.execute("select coalesce(max(fence), 0) from written where accepted").fetchone()
            accepted = fence >= int(highest)
            db.execute("insert into written values (?, ?, ?)", (fence, os.getpid(), accepted))
            db.execute("commit")
        return accepted

    def entries(self) -> list[tuple[int, int, bool]]:
        """Fence, process, and whether it was accepted; oldest first."""
        with closing(sqlite3.connect(self.path, timeout=10)) as db:
            rows = db.execute("select fence, pid, accepted from written order by rowid").fetchall()
        return [(fence, pid, bool(accepted)) for fence, pid, accepted in rows]


async def main(url: str, tenant: str, path: str) -> None:
    store, stop = FencedStore(path), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    async def run(task: Task[Any], ctx: TaskContext) -> Any:
        assert isinstance(task, Write)
        fence = await ctx.fence()
        store.write(fence)
        print("fence", fence, flush=True)
        await asyncio.sleep(task.seconds)
        store.write(await ctx.fence())
        return fence

    async with await Transport.connect(TransportOptions(url=url, name=f"worker-{os.getpid()}")) as transport:
        worker = TaskWorker(
            transport,
            Subjects(tenant),
            AGENT,
            types={"Write": Write},
            run=run,
            node=f"pid-{os.getpid()}",
            ack_wait=ACK_WAIT,
        )
        await worker.start()
        print("ready", flush=True)
        await stop.wait()
        await worker.stop(grace=0.5)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
