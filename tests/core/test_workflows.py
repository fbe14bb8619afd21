"""Workflows in agents: what waits takes no slot, and survives restarts and stops of its agent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import ClassVar

import pytest

from agentmesh import Agent, AgentRef, Job, Mesh, Request, Task, TaskContext, handler
from tests.harness import eventually

Spawn = Callable[..., Awaitable[AgentRef]]


class Build(Task[str]):
    forgetful: bool = False


class Piece(Task[int]):
    n: int


class Ping(Request[str]): ...


class Builder(Agent):
    """One thing at a time."""

    done: ClassVar[list[str]]
    left_behind: ClassVar[list[asyncio.Task[int]]]

    @handler
    async def build(self, task: Build, ctx: TaskContext) -> str:
        if task.forgetful:
            self.left_behind.append(asyncio.create_task(ctx.run(Piece(n=7), to="builder")))
            await asyncio.sleep(0.05)
            return "forgot"
        await ctx.step("foundation", self.done.append, "foundation")
        first = await ctx.run(Piece(n=1), to="builder")
        permit = await ctx.signal("permit", str)
        second, third = await asyncio.gather(
            ctx.run(Piece(n=2), to="builder", name="second"), ctx.run(Piece(n=3), to="builder", name="third")
        )
        return f"{permit} {first + second + third}"

    @handler
    async def piece(self, task: Piece) -> int:
        self.done.append(f"piece {task.n}")
        return task.n

    @handler
    async def ping(self, request: Ping) -> str:
        return "pong"


@pytest.fixture(autouse=True)
def book() -> list[str]:
    Builder.done, Builder.left_behind = [], []
    return Builder.done


async def waits_for_the_permit(job: Job[str]) -> None:
    async def waits() -> bool:
        return any(step.name == "permit" for step in await job.steps())

    await eventually(waits)


async def test_an_agent_with_one_slot_runs_workflows_their_tasks_and_requests(mesh: Mesh, spawn: Spawn) -> None:
    builder = await spawn(Builder)
    jobs = [await builder.submit(Build()) for _ in range(3)]
    for job in jobs:
        await waits_for_the_permit(job)
    assert await builder.ask(Ping(), timeout=2) == "pong"
    for job in jobs:
        assert await job.signal("permit", "granted")
    assert [await job.result(10) for job in jobs] == ["granted 6"] * 3


@pytest.mark.parametrize("how", ["restart", "stop"])
async def test_a_workflow_goes_on_after_its_agent_was_restarted_or_stopped(
    mesh: Mesh, spawn: Spawn, how: str, book: list[str]
) -> None:
    builder = await spawn(Builder)
    job = await builder.submit(Build())
    await waits_for_the_permit(job)
    async with asyncio.timeout(5):  # less than its grace: a workflow that waits is given back at once
        if how == "restart":
            assert mesh._host is not None
            await mesh._host.restart_agent("builder")
        else:
            await mesh.stop("builder", grace=30)
            await spawn(Builder)
    assert await job.signal("permit", "granted")
    assert await job.result(10) == "granted 6"
    assert sorted(book) == ["foundation", "piece 1", "piece 2", "piece 3"]


async def test_what_a_handler_leaves_behind_takes_no_slot(mesh: Mesh, spawn: Spawn) -> None:
    builder = await spawn(Builder)
    job = await builder.submit(Build(forgetful=True))
    assert await job.result(10) == "forgot"
    await asyncio.wait(Builder.left_behind, timeout=5)
    assert await builder.ask(Ping(), timeout=2) == "pong"
    assert [(info.in_flight, info.state) for info in await mesh.agents("builder")] == [(0, "ready")]
