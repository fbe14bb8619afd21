"""Where random operations are played: in a simulated world, or on a real server. The same calls for both."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import ExitStack
from typing import Any, Protocol, TypeVar

from agentmesh.errors import BrokerError
from agentmesh.messages import Task
from agentmesh.subjects import Subjects
from agentmesh.tasks import TaskClient, TaskContext, TaskWorker
from agentmesh.transport import Transport, TransportOptions
from tests.harness import Server
from tests.simulation.loop import DEAD, Process
from tests.simulation.world import ACK_WAIT, AGENT, TENANT, TYPES, Work, simulated

T = TypeVar("T")


class Ground(Protocol):
    """A broker, one client, and workers that can be killed."""

    client: TaskClient

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something, in the client's process."""

    def start_worker(self) -> str: ...

    def crash(self, name: str) -> None:
        """Without a word to anybody."""

    def leave(self, name: str) -> None:
        """In an orderly way."""

    def restart(self) -> None:
        """Kill the broker, and start it again."""

    def workers(self) -> list[str]:
        """Those that are alive."""

    def close(self) -> None: ...


class SimulatedGround:
    """On the model."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.world = self._stack.enter_context(simulated(0))
        self._process = Process("client")
        self.client = TaskClient(self.run(self._connect()), self.world.subjects)

    async def _connect(self) -> Transport:
        return await self.world.connect()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        result: T = self.world.loop.run_until_complete(self.world.loop.spawn(self._process, work))
        return result

    def start_worker(self) -> str:
        return self.world.start_worker().name

    def crash(self, name: str) -> None:
        self.world.crash(self.world.processes[name])

    def leave(self, name: str) -> None:
        self.world.workers[name].stop.set()
        self.run(asyncio.sleep(2.0))

    def restart(self) -> None:
        self.world.broker.stop(kill=True)
        self.run(asyncio.sleep(0.5))
        self.world.broker.start()

    def workers(self) -> list[str]:
        return [name for name, worker in self.world.workers.items() if worker.process.state != DEAD]

    def close(self) -> None:
        self._stack.close()


class RealGround:
    """On a nats-server; its workers live in this process, with a connection each."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._server = Server()
        self._workers: dict[str, tuple[TaskWorker, Transport]] = {}
        self._count = 0
        self.run(self._server.start())
        self.client = TaskClient(self.run(self._connect("client")), Subjects(TENANT))

    async def _connect(self, name: str) -> Transport:
        return await Transport.connect(TransportOptions(url=self._server.url, name=name))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def start_worker(self) -> str:
        self._count += 1
        name = f"w{self._count}"
        self.run(self._start(name))
        return name

    async def _start(self, name: str) -> None:
        transport = await self._connect(name)

        async def handle(task: Task[Any], ctx: TaskContext) -> str:
            assert isinstance(task, Work)
            await asyncio.sleep(task.seconds)
            if task.script[min(ctx.attempt, len(task.script)) - 1] == "raise":
                raise ValueError("no luck")
            return name

        worker = TaskWorker(
            transport, self.client.subjects, AGENT, types=TYPES, run=handle, slots=2, node=name, ack_wait=ACK_WAIT
        )
        await worker.start()
        self._workers[name] = worker, transport

    def crash(self, name: str) -> None:
        self.run(self._crash(*self._workers.pop(name)))

    async def _crash(self, worker: TaskWorker, transport: Transport) -> None:
        transport.connection.nc.abort()
        work = [*worker._loops, *worker._lives, *worker._chores]
        for one in work:
            one.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        await transport.close()

    def leave(self, name: str) -> None:
        worker, transport = self._workers.pop(name)

        async def leaving() -> None:
            await worker.stop(grace=0.5)
            await transport.close()

        self.run(leaving())

    def restart(self) -> None:
        self._server.kill9()
        self.run(self._server.start())

    def workers(self) -> list[str]:
        return list(self._workers)

    def close(self) -> None:
        for name in list(self._workers):
            self.leave(name)
        self.run(self.client.transport.close())
        self.run(self._server.cleanup())
        self._runner.close()


async def stored(client: TaskClient, stream: str, pattern: str) -> dict[str, list[bytes]]:
    """What a stream holds, by the last token of the subject."""
    found: dict[str, list[bytes]] = {}
    while True:
        try:
            messages = await client.transport.messages(stream, pattern)
        except BrokerError:
            continue
        for message in messages:
            found.setdefault(message.subject.rpartition(".")[2], []).append(message.data)
        return found
