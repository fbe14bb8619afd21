"""A process that works on trees of tasks: `python -m tests.calltree.node URL TENANT FILE`.

It prints `ready` and appends what its handlers do to FILE, one short line at a time: that is the effect on the world.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from agentmesh.client import Client
from agentmesh.messages import Task
from agentmesh.subjects import Subjects
from agentmesh.tasks import TaskContext, TaskWorker
from agentmesh.transport import Transport, TransportOptions

AGENT = "tree"
ACK_WAIT = 1.0
BEAT = 0.02
"""Seconds between the effects of a leaf."""


class Grow(Task[int], backoff=0.05):
    """Submits `fan` tasks of the level below and waits for them; at level 0 it has an effect every 20 ms, for ever."""

    level: int
    fan: int = 2
    detached: bool = False
    """The tasks below are."""


class Ledger:
    """A file that several processes append to."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def write(self, word: str, task_id: str) -> None:
        with self.path.open("a") as file:
            file.write(f"{word} {task_id} {os.getpid()}\n")

    def lines(self, word: str) -> list[tuple[str, int]]:
        """Task and process of each such entry, oldest first."""
        if not self.path.exists():
            return []
        entries = (line.split() for line in self.path.read_text().splitlines())
        return [(task_id, int(pid)) for kind, task_id, pid in entries if kind == word]

    def tasks(self, word: str) -> set[str]:
        return {task_id for task_id, _ in self.lines(word)}


async def grow(client: Client, ledger: Ledger, task: Grow, ctx: TaskContext) -> int:
    ledger.write(f"level{task.level}", ctx.task_id)
    if task.level == 0:
        while True:
            ledger.write("effect", ctx.task_id)
            await asyncio.sleep(BEAT)
    below = Grow(level=task.level - 1, fan=task.fan, detached=task.detached)
    jobs = [await client.submit(below, to=AGENT, detached=task.detached) for _ in range(task.fan)]
    return sum([await job.result() for job in jobs])


async def main(url: str, tenant: str, path: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with await Transport.connect(TransportOptions(url=url, name=f"node-{os.getpid()}")) as transport:
        client, ledger = Client(transport, Subjects(tenant), f"node-{os.getpid()}"), Ledger(path)

        async def run(task: Task[Any], ctx: TaskContext) -> Any:
            assert isinstance(task, Grow)
            return await grow(client, ledger, task, ctx)

        worker = TaskWorker(
            transport,
            Subjects(tenant),
            AGENT,
            types={"Grow": Grow},
            run=run,
            slots=6,
            node=f"pid-{os.getpid()}",
            ack_wait=ACK_WAIT,
        )
        await worker.start()
        print("ready", flush=True)
        await stop.wait()
        await worker.stop(grace=0.5)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
