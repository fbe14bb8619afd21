"""A node with agents that ask each other: `python -m tests.calltree.agents URL TENANT`; prints `ready`."""

from __future__ import annotations

import asyncio
import signal
import sys

from agentmesh import Agent, Request, Task, connect, handler


class Spread(Request[int]):
    """Asks `count` agents at once; returns how many of them could be asked."""

    count: int


class Reach(Request[int]):
    """Returns 1."""


class SpreadTask(Task[int]):
    count: int


class Begin(Request[str]):
    """Submits a task to `holder` and waits for it."""


class Held(Task[str]):
    """Runs until its end."""


class Reached(Agent):
    concurrency = 50

    @handler
    async def reach(self, request: Reach) -> int:
        return 1


class Spreader(Agent):
    concurrency = 50

    @handler
    async def spread(self, request: Spread) -> int:
        return await self._reach(request.count)

    @handler
    async def spread_task(self, task: SpreadTask) -> int:
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(self.mesh.ask("reached", Reach())) for _ in range(task.count)]
        return sum(one.result() for one in asked)

    @handler
    async def begin(self, request: Begin) -> str:
        return await (await self.mesh.submit(Held(), to="holder")).result()

    async def _reach(self, count: int) -> int:
        asked = [self.mesh.ask("reached", Reach()) for _ in range(count)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        return sum(answer for answer in answers if isinstance(answer, int))


async def main(url: str, tenant: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with connect(url, tenant=tenant) as mesh:
        await mesh.spawn(Reached)
        await mesh.spawn(Spreader)
        print("ready", flush=True)
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
