"""What a handler started ends with it: requests, streams, tools and tasks, whoever it is that is cancelled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import ClassVar

import pytest

from agentmesh import Agent, AgentRef, CellOptions, Context, Event, Mesh, Reject, Request, Task, TaskContext, handler
from agentmesh.errors import DeadlineExceededError, TaskCancelledError
from agentmesh.tools.executor import ToolExecutor
from tests.calltree.agents import Begin, Held
from tests.calltree.samples import sleep_with_a_child
from tests.harness import alive, eventually
from tests.harness.fixtures import SpawnProcess

Spawn = Callable[..., Awaitable[AgentRef]]


class Hold(Task[str]):
    """Runs until it is released."""


class Outer(Task[str], max_attempts=1):
    how: str
    marker: str = ""


class Start(Request[str]):
    """Submits a task and, if asked to, waits for it."""

    wait: bool = True
    detached: bool = False


class Stream(Request[int]): ...


class Tool(Request[str]):
    marker: str


class Told(Event): ...


class Stage:
    """What the agents of a test do, and events to wait for."""

    def __init__(self) -> None:
        self.holding = asyncio.Event()
        self.released = asyncio.Event()
        self.held: list[str] = []
        """Ids of the tasks that hold, once they began."""
        self.interrupted: list[str] = []
        self.seen: dict[str, Context | TaskContext] = {}


class Holder(Agent):
    concurrency = 20
    stage: ClassVar[Stage]

    @handler
    async def hold(self, task: Hold, ctx: TaskContext) -> str:
        self.stage.held.append(ctx.task_id)
        self.stage.seen["hold"] = ctx
        self.stage.holding.set()
        try:
            await self.stage.released.wait()
        except asyncio.CancelledError:
            self.stage.interrupted.append("hold")
            raise
        return "released"


class Middle(Agent):
    concurrency = 20
    stage: ClassVar[Stage]

    @handler
    async def start(self, request: Start, ctx: Context) -> str:
        self.stage.seen["start"] = ctx
        job = await self.mesh.submit(Hold(), to="holder", detached=request.detached)
        return await job.result() if request.wait else job.id

    @handler
    async def stream(self, request: Stream) -> AsyncIterator[int]:
        try:
            yield 1
            self.stage.holding.set()
            await self.stage.released.wait()
        finally:
            self.stage.interrupted.append("stream")

    @handler
    async def tool(self, request: Tool) -> str:
        await self.tools.call(sleep_with_a_child, marker=request.marker)
        return "done"

    @handler
    async def told(self, event: Told) -> None:
        await self.mesh.submit(Hold(), to="holder")

    @handler
    async def outer(self, task: Outer) -> str:
        match task.how:
            case "ask":
                return await self.mesh.ask("middle", Start())
            case "stream":
                return str([number async for number in self.mesh.stream("middle", Stream())])
            case "tool":
                await self.mesh.ask("middle", Tool(marker=task.marker))
            case "map":
                await self.mesh.map(Hold, [Hold()], to="holder")
            case "fail":
                await self.mesh.submit(Hold(), to="holder")
                await self.stage.holding.wait()
                raise ValueError("no luck")
        job = await self.mesh.submit(Hold(), to="holder")
        await self.stage.holding.wait()
        return job.id


@pytest.fixture
async def stage(spawn: Spawn) -> Stage:
    one = Stage()
    await spawn(type("Holder", (Holder,), {"stage": one}), name="holder")
    await spawn(type("Middle", (Middle,), {"stage": one}), name="middle")
    return one


async def interrupted(stage: Stage, what: str, timeout: float = 1.0) -> None:
    await eventually(lambda: what in stage.interrupted, timeout, what=f"the {what} is interrupted")


async def test_a_cancelled_task_ends_the_request_it_waits_for_and_the_task_that_started(
    mesh: Mesh, stage: Stage
) -> None:
    job = await mesh.submit(Outer(how="ask"), to="middle")
    await stage.holding.wait()

    assert await job.cancel()

    await interrupted(stage, "hold")
    with pytest.raises(TaskCancelledError):
        await mesh.job(stage.held[0]).result(timeout=5)


async def test_a_cancelled_task_ends_the_stream_it_reads(mesh: Mesh, stage: Stage) -> None:
    job = await mesh.submit(Outer(how="stream"), to="middle")
    await stage.holding.wait()

    assert await job.cancel()

    await interrupted(stage, "stream")


async def test_a_cancelled_task_ends_the_tasks_of_its_batch(mesh: Mesh, stage: Stage) -> None:
    job = await mesh.submit(Outer(how="map"), to="middle")
    await stage.holding.wait()

    assert await job.cancel()

    await interrupted(stage, "hold")


async def test_t6_a_cancelled_task_ends_the_processes_of_a_tool_that_an_agent_it_asked_has_called(
    mesh: Mesh, stage: Stage, tmp_path: Path
) -> None:
    marker = tmp_path / "pids"
    async with ToolExecutor(mesh.transport, mesh.subjects, [sleep_with_a_child]):
        job = await mesh.submit(Outer(how="tool", marker=str(marker)), to="middle")
        await eventually(marker.exists, 10.0, what="the tool runs")
        pids = [int(pid) for pid in marker.read_text().split()]
        assert all(alive(pid) for pid in pids)
        began = time.monotonic()

        assert await job.cancel()

        await eventually(lambda: not any(alive(pid) for pid in pids), 2.0, what="its processes are gone")
        assert time.monotonic() - began < 1.0


async def test_a_request_given_up_cancels_the_tasks_its_handler_submitted(mesh: Mesh, stage: Stage) -> None:
    asking = asyncio.create_task(mesh.ask("middle", Start()))
    await stage.holding.wait()

    asking.cancel()

    await interrupted(stage, "hold")
    with pytest.raises(TaskCancelledError, match="the request to middle"):
        await mesh.job(stage.held[0]).result(timeout=5)


async def test_a_request_over_its_deadline_ends_the_tasks_its_handler_submitted(mesh: Mesh, stage: Stage) -> None:
    with pytest.raises(DeadlineExceededError):
        await mesh.ask("middle", Start(), timeout=1.0)

    await interrupted(stage, "hold")
    assert (await mesh.job(stage.held[0]).outcome()).status in ("cancelled", "expired")


async def test_a_detached_task_outlives_the_request_and_its_deadline(mesh: Mesh, stage: Stage) -> None:
    with pytest.raises(DeadlineExceededError):
        await mesh.ask("middle", Start(detached=True), timeout=1.0)
    await stage.holding.wait()

    assert stage.seen["hold"].deadline is None
    stage.released.set()
    assert await mesh.job(stage.held[0]).result(timeout=5) == "released"


async def test_a_task_of_a_request_that_was_answered_goes_on(mesh: Mesh, stage: Stage) -> None:
    task_id = await mesh.ask("middle", Start(wait=False), timeout=20)
    await stage.holding.wait()

    assert stage.seen["hold"].deadline == stage.seen["start"].deadline
    stage.released.set()
    assert await mesh.job(task_id).result(timeout=5) == "released"


@pytest.mark.parametrize("how", ["complete", "fail"])
async def test_a_task_that_completes_or_fails_leaves_its_children_alone(mesh: Mesh, stage: Stage, how: str) -> None:
    job = await mesh.submit(Outer(how=how), to="middle")
    outcome = await asyncio.wait_for(job.outcome(), 5)
    assert outcome.status == ("completed" if how == "complete" else "dead")

    stage.released.set()

    assert await mesh.job(stage.held[0]).result(timeout=5) == "released"


async def test_the_task_of_an_event_belongs_to_nobody(mesh: Mesh, stage: Stage) -> None:
    await mesh.tell("middle", Told())
    await stage.holding.wait()

    assert stage.seen["hold"].deadline is None
    stage.released.set()
    assert await mesh.job(stage.held[0]).result(timeout=5) == "released"


async def test_a_waiting_child_of_a_cancelled_task_never_starts(mesh: Mesh, spawn: Spawn, stage: Stage) -> None:
    busy = await mesh.submit(Hold(), to="narrow")
    await spawn(type("Narrow", (Holder,), {"stage": stage}), name="narrow", options=CellOptions(concurrency=1))
    await stage.holding.wait()

    class Parent(Agent):
        @handler
        async def outer(self, task: Outer) -> str:
            submitted.append((await self.mesh.submit(Hold(), to="narrow")).id)
            return await asyncio.Event().wait() and ""

    submitted: list[str] = []
    await spawn(Parent)
    job = await mesh.submit(Outer(how=""), to="parent")
    await eventually(lambda: submitted, what="the child is submitted")

    assert await job.cancel()
    stage.released.set()

    assert await busy.result(timeout=5) == "released"
    with pytest.raises(TaskCancelledError, match=f"its parent, task {job.id}"):
        await mesh.job(submitted[0]).result(timeout=5)
    assert stage.held == [busy.id]


async def test_a_dead_letter_that_is_put_back_is_nobodys_child_any_more(mesh: Mesh, spawn: Spawn, stage: Stage) -> None:
    class Doubtful(Agent):
        @handler
        async def hold(self, task: Hold, ctx: TaskContext) -> str:
            if stage.released.is_set():
                return "done"
            raise Reject("not now")

    class Parent(Agent):
        @handler
        async def outer(self, task: Outer) -> str:
            child = await self.mesh.submit(Hold(), to="doubtful")
            await asyncio.wait([asyncio.ensure_future(child.outcome())])
            submitted.append(child.id)
            return await asyncio.Event().wait() and ""

    submitted: list[str] = []
    await spawn(Doubtful)
    await spawn(Parent)
    job = await mesh.submit(Outer(how=""), to="parent", deadline=60)
    await eventually(lambda: submitted, what="the child is a dead letter")
    assert await job.cancel()
    stage.released.set()

    again = await mesh.tasks.dead_retry(submitted[0])

    assert await mesh.job(again).result(timeout=5) == "done"


async def test_t12_the_task_of_a_request_whose_handler_was_killed_ends_at_the_deadline_it_inherited(
    mesh: Mesh, spawn: Spawn, spawn_process: SpawnProcess
) -> None:
    class Keeper(Agent):
        @handler
        async def held(self, task: Held, ctx: TaskContext) -> str:
            begun.append(ctx.task_id)
            try:
                return await asyncio.Event().wait() and ""
            finally:
                ended.set()

    begun: list[str] = []
    ended = asyncio.Event()
    await spawn(Keeper, name="holder")
    node = await spawn_process("tests.calltree.agents", mesh.url, mesh.subjects.tenant)
    await node.line_matching("ready")
    asking = asyncio.create_task(mesh.ask("spreader", Begin(), timeout=1.5))
    await eventually(lambda: begun, what="the task runs")
    node.kill9()

    with pytest.raises(DeadlineExceededError):
        await asking
    await asyncio.wait_for(ended.wait(), 1.0)
    assert (await mesh.job(begun[0]).outcome()).status == "expired"
