"""A worker of workflows that can be killed: `python -m tests.tasks.flows URL TENANT LEDGER [ACK_WAIT]`.

It prints `ready` and appends a line to the ledger, a file, for each effect: the time of day, the key of the effect, and
its process.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentmesh.errors import Reject
from agentmesh.messages import Task
from agentmesh.subjects import Subjects
from agentmesh.tasks import TaskContext, TaskWorker
from agentmesh.transport import Transport, TransportOptions

AGENT = "flows"


class Journey(Task[list[int]], max_attempts=50, backoff=0.01):
    """Six steps: two functions, a child, two branches at a time, a map, and a function."""

    seconds: float = 0.2
    """Of each effect."""
    die_in: str = ""
    """Step that kills its process once, between its effect and the storing of its outcome."""


class Leg(Task[int], max_attempts=50, backoff=0.01):
    n: int
    seconds: float


class Booking(Task[None], max_attempts=50, backoff=0.01):
    """Three things done, a fourth that cannot be; then all are undone."""

    seconds: float = 0.3


@dataclass(frozen=True)
class Effect:
    at: float
    key: str
    pid: int


class Ledger:
    """What was done, in order."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.path.touch()

    def add(self, key: str) -> None:
        with self.path.open("a") as file:
            file.write(f"{time.time()} {key} {os.getpid()}\n")

    def effects(self) -> list[Effect]:
        entries = (line.split() for line in self.path.read_text().splitlines())
        return [Effect(float(at), key, int(pid)) for at, key, pid in entries]

    def names(self) -> list[str]:
        """The last part of each key."""
        return [effect.key.rpartition("/")[2] for effect in self.effects()]

    def counts(self) -> Counter[str]:
        return Counter(self.names())


class Handlers:
    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    async def run(self, task: Task[Any], ctx: TaskContext) -> Any:
        match task:
            case Leg(n=n, seconds=seconds):
                await asyncio.sleep(seconds / 2)
                self.ledger.add(ctx.key(f"leg-{n}"))
                return n
            case Journey():
                return await self.journey(task, ctx)
            case Booking():
                return await self.booking(task, ctx)

    async def journey(self, task: Journey, ctx: TaskContext) -> list[int]:
        async def effect(name: str, value: int) -> int:
            await asyncio.sleep(task.seconds / 2)
            first = ctx.key(name) not in (effect.key for effect in self.ledger.effects())
            self.ledger.add(ctx.key(name))
            if first and name == task.die_in:
                os.kill(os.getpid(), signal.SIGKILL)
            await asyncio.sleep(task.seconds / 2)
            return value

        a = await ctx.step("a", effect, "a", 1)
        b = await ctx.step("b", effect, "b", a + 1)
        c = await ctx.run(Leg(n=b + 1, seconds=task.seconds), to=AGENT)
        d, e = await ctx.gather(ctx.step("d", effect, "d", c + 1), ctx.step("e", effect, "e", c + 2))
        items = [{"n": n, "seconds": task.seconds} for n in (e + 1, e + 2, e + 3)]
        legs = await ctx.map(Leg, items, to=AGENT, name="legs")
        f = await ctx.step("f", effect, "f", legs[-1] + 1)
        return [a, b, c, d, e, *legs, f]

    async def booking(self, task: Booking, ctx: TaskContext) -> None:
        async def do(name: str) -> str:
            self.ledger.add(ctx.key(name))
            return name

        async def undo(name: str) -> None:
            self.ledger.add(ctx.key(f"undo-{name}-begins"))
            await asyncio.sleep(task.seconds)
            self.ledger.add(ctx.key(f"undo-{name}"))

        async def refuse() -> None:
            raise Reject("no")

        async with ctx.saga() as saga:
            for name in "abc":
                await saga.do(name, do, name, undo=undo)
            await ctx.step("refuse", refuse)


JOURNEY = [1, 2, 3, 4, 5, 6, 7, 8, 9]
JOURNEY_EFFECTS = {"a", "b", "d", "e", "f", "leg-3", "leg-6", "leg-7", "leg-8"}


async def main(url: str, tenant: str, path: str, ack_wait: str = "1.0") -> None:
    async with await Transport.connect(TransportOptions(url=url, name=f"worker-{os.getpid()}")) as transport:
        worker = TaskWorker(
            transport,
            Subjects(tenant),
            AGENT,
            types={kind.__name__: kind for kind in (Journey, Leg, Booking)},
            run=Handlers(Ledger(path)).run,
            slots=1,
            node=f"pid-{os.getpid()}",
            ack_wait=float(ack_wait),
        )
        await worker.start()
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
