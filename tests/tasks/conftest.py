"""A tenant of its own for each test, with a client and workers that end with the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

import pytest

from agentmesh.broker import EmbeddedBroker
from agentmesh.ids import new_id
from agentmesh.messages import Task
from agentmesh.subjects import Subjects
from agentmesh.tasks import Dispatcher, Mover, TaskClient, TaskContext, TaskWorker
from agentmesh.tasks.layout import TASKS
from agentmesh.transport import Transport, TransportOptions
from tests.harness import Server, eventually
from tests.tasks.kinds import TYPES, Handlers

ACK_WAIT = 1.0


class Stage:
    """One tenant on one server, seen through one connection."""

    def __init__(self, transport: Transport, tenant: str = "") -> None:
        self.transport = transport
        self.subjects = Subjects(tenant or f"t-{new_id()}")
        self.client = TaskClient(transport, self.subjects)
        self.handlers = Handlers()
        self._workers: list[TaskWorker] = []
        self._chores: list[Dispatcher | Mover] = []

    async def work(
        self,
        agent: str = "worker",
        run: Callable[[Task[Any], TaskContext], Awaitable[Any]] | None = None,
        *,
        transport: Transport | None = None,
        **options: Any,
    ) -> TaskWorker:
        """Start a worker; by default with the handlers of `kinds`."""
        options = {"slots": 4, "ack_wait": ACK_WAIT, "node": "here", "types": TYPES, **options}
        worker = TaskWorker(transport or self.transport, self.subjects, agent, run=run or self.handlers.run, **options)
        await worker.start()
        self._workers.append(worker)
        return worker

    async def queued(self) -> int:
        """Messages of this tenant in the task stream."""
        counts = await self.transport.subjects_of(TASKS, self.subjects.task_door() + ".>")
        door = await self.transport.subjects_of(TASKS, self.subjects.task_door())
        return sum(counts.values()) + sum(door.values())

    async def drained(self, timeout: float = 5.0) -> None:
        """Wait until nothing of this tenant is queued."""

        async def empty() -> bool:
            return await self.queued() == 0

        await eventually(empty, timeout, what="the queue is empty")

    async def dispatch(self, agents: dict[str, list[str]]) -> Dispatcher:
        """Start a dispatcher that finds these agents for these types."""

        async def locate(task_type: str) -> list[str]:
            return agents.get(task_type, [])

        async def known() -> list[str]:
            return list(agents)

        dispatcher = Dispatcher(self.transport, self.subjects, locate, known=known)
        await dispatcher.start()
        self._chores.append(dispatcher)
        return dispatcher

    async def move(self, transport: Transport | None = None) -> Mover:
        """Start a mover."""
        mover = Mover(transport or self.transport, self.subjects, ack_wait=ACK_WAIT)
        await mover.start()
        self._chores.append(mover)
        return mover

    async def close(self) -> None:
        for chore in self._chores:
            await chore.stop()
        for worker in self._workers:
            await worker.stop(grace=0.0)
        await self.transport.close()


class OpenStage(Protocol):
    """`stage = await open_stage(url, tenant="")`."""

    async def __call__(self, url: str, tenant: str = "") -> Stage: ...


@pytest.fixture
async def open_stage() -> AsyncIterator[OpenStage]:
    opened: list[Stage] = []

    async def open_one(url: str, tenant: str = "") -> Stage:
        stage = Stage(await Transport.connect(TransportOptions(url=url)), tenant)
        opened.append(stage)
        return stage

    yield open_one
    for stage in opened:
        await stage.close()


@pytest.fixture
async def stage(nats_server: EmbeddedBroker, open_stage: OpenStage) -> Stage:
    """On the server that all tests share."""
    return await open_stage(nats_server.url)


@pytest.fixture
async def own(server: Server, open_stage: OpenStage) -> Stage:
    """On a server of this test's own, which it may kill."""
    return await open_stage(server.url)
