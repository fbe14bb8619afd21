"""Executors remember what was done under a key: a step of a task happens once, however often the task is tried."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agentmesh import Agent, AgentRef, Mesh, Task, TaskContext, Tool, handler
from agentmesh.context import Context, enter, leave
from agentmesh.errors import (
    AttemptReplacedError,
    IdempotencyConflictError,
    RemoteError,
    ToolArgumentsError,
    ToolFailedError,
    ToolOutcomeUnknownError,
    ToolTimeoutError,
)
from agentmesh.ids import new_id
from agentmesh.tasks import fence
from agentmesh.tasks.fence import AttemptBody
from agentmesh.tools.executor import ToolExecutor
from tests.harness import eventually
from tests.harness.fixtures import SpawnProcess
from tests.idempotency.samples import charge, effects, lookup, post, slow_post

Spawn = Callable[..., Awaitable[AgentRef]]

TOOLS: list[Tool[..., Any]] = [charge, post]


class Order(Task[str], backoff=0.01):
    """Charges `times` times, and fails after that in the first attempt."""

    path: str
    how: str
    times: int = 1


class Shop(Agent):
    @handler
    async def order(self, task: Order, ctx: TaskContext) -> str:
        receipts = [await self._charge(task, ctx) for _ in range(task.times)]
        if ctx.attempt == 1:
            raise ValueError("after the effect")
        return ", ".join(receipts)

    async def _charge(self, task: Order, ctx: TaskContext) -> str:
        match task.how:
            case "declared":
                return await self.tools.call(charge, path=task.path, amount=5)
            case "by name":
                return str(await self.tools.call("charge", path=task.path, amount=5))
            case "key":
                return await self.tools.call(post, path=task.path, key=ctx.key("post"))
        return await self.tools.call(post, path=task.path)


@pytest.fixture
def book(tmp_path: Path) -> Path:
    return tmp_path / "book"


@pytest.fixture
async def executors(mesh: Mesh) -> AsyncIterator[None]:
    """Two of them: which one gets a call is chance."""
    async with ToolExecutor(mesh.transport, mesh.subjects, TOOLS), ToolExecutor(mesh.transport, mesh.subjects, TOOLS):
        yield


pytestmark = pytest.mark.usefixtures("spawn")


@pytest.mark.usefixtures("executors")
@pytest.mark.parametrize(
    ("how", "times", "expected"),
    [("declared", 1, 1), ("declared", 2, 2), ("by name", 1, 1), ("key", 1, 1), ("neither", 1, 2)],
)
async def test_t9_a_step_of_a_task_happens_once_however_often_the_task_is_tried(
    spawn: Spawn, book: Path, how: str, times: int, expected: int
) -> None:
    shop = await spawn(Shop)

    job = await shop.submit(Order(path=str(book), how=how, times=times))

    assert await job.result(timeout=10)
    assert effects(book) == expected


@pytest.mark.usefixtures("executors")
async def test_calls_with_one_key_at_the_same_time_are_one_run(mesh: Mesh, book: Path) -> None:
    answers = await asyncio.gather(
        *(mesh.tools.call(charge, path=str(book), amount=5, key="order-7") for _ in range(10))
    )

    assert set(answers) == {"receipt for 5"}
    assert effects(book) == 1
    assert await mesh.tools.call("charge", amount=5, path=str(book), key="order-7") == "receipt for 5"
    assert effects(book) == 1


@pytest.mark.usefixtures("executors")
async def test_a_key_for_another_call_is_refused(mesh: Mesh, book: Path) -> None:
    await mesh.tools.call(charge, path=str(book), amount=5, key="k")

    with pytest.raises(IdempotencyConflictError, match="used for tool charge with other content"):
        await mesh.tools.call(charge, path=str(book), amount=6, key="k")
    with pytest.raises(ToolArgumentsError, match="key is empty"):
        await mesh.tools.call(charge, path=str(book), amount=5, key="")
    with pytest.raises(ToolArgumentsError, match="invoke"):
        await mesh.tools.call(lookup, key="k")
    assert effects(book) == 1


@pytest.mark.usefixtures("executors")
async def test_an_error_is_kept_and_retry_gives_the_key_back(mesh: Mesh, book: Path) -> None:
    for _ in range(2):
        with pytest.raises(ToolFailedError, match="refused by the bank"):
            await mesh.tools.call(post, path=str(book), how="fail", key="a")
    assert effects(book) == 1

    book = book.with_name("another")
    with pytest.raises(RemoteError, match="nothing was done"):
        await mesh.tools.call(post, path=str(book), how="later", key="b")
    assert await mesh.tools.call(post, path=str(book), how="later", key="b") == "posted 2"


async def test_a_call_that_was_ended_is_unknown_and_not_run_again(mesh: Mesh, book: Path) -> None:
    async with ToolExecutor(mesh.transport, mesh.subjects, [slow_post]):
        with pytest.raises(ToolTimeoutError):
            await mesh.tools.call(slow_post, path=str(book), seconds=30.0, key="k", timeout=1.5)

        with pytest.raises(ToolOutcomeUnknownError, match=r"unknown: tool 'slow_post' was ended after 1\.\d"):
            await mesh.tools.call(slow_post, path=str(book), seconds=30.0, key="k")
    assert effects(book) == 1


@pytest.mark.slow
async def test_t10_of_a_killed_executor_it_is_said_what_is_known_and_nothing_is_run_again(
    mesh: Mesh, spawn_process: SpawnProcess, book: Path
) -> None:
    arguments = ("--nats", mesh.url, "--tenant", mesh.subjects.tenant, "tests.idempotency.samples")
    executor = await spawn_process("agentmesh.tools", *arguments)
    await executor.line_matching("ready|serv")
    calling = asyncio.create_task(mesh.tools.call(slow_post, path=str(book), seconds=60.0, key="k", timeout=2.0))
    await eventually(lambda: effects(book) == 1, what="the tool runs")
    began = time.monotonic()
    executor.kill9()
    await executor.wait()

    with pytest.raises(ToolTimeoutError):
        await calling
    async with ToolExecutor(mesh.transport, mesh.subjects, [slow_post]):
        with pytest.raises(ToolOutcomeUnknownError, match="was begun, and its executor died"):
            await mesh.tools.call(slow_post, path=str(book), seconds=60.0, key="k", timeout=20.0)
    assert time.monotonic() - began < 8.0
    assert effects(book) == 1


@pytest.mark.usefixtures("executors")
async def test_the_step_of_a_workflow_is_not_decided_by_an_attempt_that_was_replaced(
    mesh: Mesh, spawn: Spawn, book: Path
) -> None:
    class Flow(Agent):
        concurrency = 2

        async def pay(self, ctx: TaskContext) -> str:
            if not replaced.is_set():
                await ctx.fence()
                successor = AttemptBody(ctx.task_id, 1_000, new_id())
                await fence.take(mesh.transport, mesh.subjects, successor)
                replaced.set()
            return await self.tools.call(post, path=str(book), key=ctx.key("pay"))

        @handler
        async def order(self, task: Order, ctx: TaskContext) -> str:
            try:
                return await ctx.step("pay", self.pay, ctx)
            except AttemptReplacedError:
                ended.set()
                raise

    replaced, ended = asyncio.Event(), asyncio.Event()
    flow = await spawn(Flow)

    job = await flow.submit(Order(path=str(book), how=""))

    async with asyncio.timeout(5):
        await ended.wait()
    step = await mesh.tasks.steps(job.id)
    assert [one.state for one in step if one.name == "pay"] != ["failed"]
    assert not job.is_decided
    assert effects(book) == 0
    await job.cancel()


@pytest.mark.usefixtures("executors")
async def test_t11_a_call_of_an_attempt_that_was_replaced_is_refused(mesh: Mesh, book: Path) -> None:
    task_id = new_id()

    async def call(ctx: TaskContext, step: str) -> str:
        outer = enter(Context("shop", "", task_id, task_id, task_id=task_id, attempt=ctx))
        try:
            return await mesh.tools.call(charge, path=str(book), amount=5, key=ctx.key(step))
        finally:
            leave(outer)

    first, second = (
        TaskContext(mesh.transport, mesh.subjects, task_id, me=AttemptBody(task_id, rank, new_id())) for rank in (1, 2)
    )
    assert await call(first, "a") == "receipt for 5"
    await second.fence()

    for step in ("a", "b"):
        with pytest.raises(AttemptReplacedError):
            await call(first, step)
    assert effects(book) == 1
    assert await call(second, "a") == "receipt for 5"
    assert await call(second, "b") == "receipt for 5"
    assert effects(book) == 2
