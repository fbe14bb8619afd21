"""Budgets: what a call tree may use is counted across agents, tasks and hosts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from agentmesh import (
    Agent,
    AgentRef,
    Budget,
    CellOptions,
    Context,
    Event,
    Mesh,
    Prompt,
    Request,
    Task,
    TaskContext,
    budget,
    handler,
    tool,
)
from agentmesh.errors import BudgetExceededError, CallDepthError, DefinitionError, TaskExpiredError
from agentmesh.subjects import Subjects
from agentmesh.tools.executor import ToolExecutor
from tests.calltree.agents import Reach, Reached, Spread, Spreader, SpreadTask
from tests.harness.fixtures import SpawnProcess

Spawn = Callable[..., Awaitable[AgentRef]]


class Deeper(Request[int]):
    """Asks itself until it is refused; returns how deep that was."""


class Down(Task[int], backoff=0.01):
    """Submits itself until it is refused."""


class Ping(Event):
    n: int


@tool
async def nothing() -> None:
    """Do nothing."""


async def test_t5_steps_are_counted_exactly_on_all_hosts(mesh: Mesh, spawn_process: SpawnProcess) -> None:
    nodes = [await spawn_process("tests.calltree.agents", mesh.url, mesh.subjects.tenant) for _ in range(2)]
    for node in nodes:
        await node.line_matching("ready")

    with budget(steps=64):
        answers = await asyncio.gather(
            *(mesh.ask("spreader", Spread(count=20)) for _ in range(4)),
            *(mesh.ask("reached", Reach()) for _ in range(4)),
        )

    # 4 + 4 asked from here; of the 80 that the two spreaders wanted to ask, the other 56.
    assert sum(answers) == 56 + 4


async def test_an_exceeded_budget_says_which_how_much_and_whose(mesh: Mesh, spawn: Spawn) -> None:
    await spawn(Reached)

    with budget(steps=1):
        await mesh.ask("reached", Reach())
        with pytest.raises(BudgetExceededError) as caught:
            await mesh.ask("reached", Reach())
    assert (caught.value.limit, caught.value.amount) == ("steps", 1)
    with pytest.raises(BudgetExceededError, match="2 handlers in a row given by") as deep:
        await asking_itself(mesh, spawn, Budget(depth=2))
    assert deep.value.owner == mesh.identity


async def asking_itself(mesh: Mesh, spawn: Spawn, limits: Budget | None) -> int:
    class Deep(Agent):
        concurrency = 30

        @handler
        async def deeper(self, request: Deeper) -> int:
            return 1 + await self.mesh.ask("deep", request)

    await spawn(Deep)
    return await mesh.ask("deep", Deeper(), budget=limits)


async def test_a_budget_may_allow_more_than_the_usual_depth(mesh: Mesh, spawn: Spawn) -> None:
    with pytest.raises(BudgetExceededError, match="12 handlers"):
        await asking_itself(mesh, spawn, Budget(depth=12))


async def test_a_handler_cannot_widen_the_budget_it_runs_under(mesh: Mesh, spawn: Spawn) -> None:
    class Generous(Agent):
        @handler
        async def asked(self, request: Prompt) -> str:
            with budget(steps=100, depth=50, seconds=600):
                for _ in range(5):
                    await self.mesh.ask("reached", Reach())
            return "done"

    await spawn(Reached)
    generous = await spawn(Generous)

    with pytest.raises(BudgetExceededError) as caught:
        await generous.ask(Prompt(text="go"), budget=Budget(steps=4))
    assert caught.value.amount == 4
    assert await generous.ask(Prompt(text="go"), budget=Budget(steps=6)) == "done"


async def test_events_topics_and_tool_calls_are_steps_too(mesh: Mesh, spawn: Spawn) -> None:
    pings = 0

    class Echo(Agent):
        @handler
        async def ping(self, event: Ping) -> None:
            nonlocal pings
            pings += 1
            try:
                await self.mesh.tell("echo", Ping(n=event.n + 1))
            except BudgetExceededError:
                out_of_steps.set()

    out_of_steps = asyncio.Event()
    await spawn(Echo)
    async with ToolExecutor(mesh.transport, mesh.subjects, [nothing]):
        with budget(steps=10):
            await mesh.tools.call(nothing)
            await mesh.publish("nobody.listens", Ping(n=0))
            await mesh.tell("echo", Ping(n=1))
            async with asyncio.timeout(10):
                await out_of_steps.wait()
            with pytest.raises(BudgetExceededError):
                await mesh.tools.call(nothing)
    assert pings == 8


async def test_a_task_that_exceeds_its_budget_fails_for_good(mesh: Mesh, spawn: Spawn) -> None:
    await spawn(Reached)
    spreader = await spawn(Spreader)

    job = await spreader.submit(SpreadTask(count=10), budget=Budget(steps=5))

    with pytest.raises(BudgetExceededError, match="budget of 5 steps"):
        await job.result(timeout=10)
    assert (await job.status()).attempt == 1
    ample = await spreader.submit(SpreadTask(count=10), budget=Budget(steps=11))
    assert await ample.result(timeout=10) == 10


@pytest.mark.parametrize("how", ["in a step", "as the cause", "in a batch"])
async def test_an_exceeded_budget_is_final_however_the_handler_wraps_it(mesh: Mesh, spawn: Spawn, how: str) -> None:
    class Wrapper(Agent):
        concurrency = 4

        async def twice(self) -> int:
            return await self.mesh.ask("reached", Reach()) + await self.mesh.ask("reached", Reach())

        @handler
        async def down(self, task: Down, ctx: TaskContext) -> int:
            attempts.append(ctx.attempt)
            match how:
                case "in a step":
                    return int(await ctx.step("twice", self.twice))
                case "as the cause":
                    try:
                        return await self.twice()
                    except BudgetExceededError as error:
                        raise ValueError("no more") from error
            return sum(await self.mesh.map(SpreadTask, [5], to="spreader"))

    attempts: list[int] = []
    await spawn(Reached)
    await spawn(Spreader)
    wrapper = await spawn(Wrapper)

    job = await wrapper.submit(Down(), budget=Budget(steps=3 if how == "in a batch" else 2))

    with pytest.raises(BudgetExceededError):
        await job.result(timeout=10)
    assert attempts == [1]


async def test_j7_tasks_that_submit_each_other_for_ever_are_stopped(mesh: Mesh, spawn: Spawn) -> None:
    started: list[int] = []

    class Digger(Agent):
        concurrency = 20

        @handler
        async def down(self, task: Down, ctx: Context) -> int:
            started.append(1)
            job = await self.mesh.submit(task, to="digger")
            return await job.result()

    digger = await spawn(Digger)

    with pytest.raises(CallDepthError, match="8 agents deep"):
        await (await digger.submit(Down())).result(timeout=20)
    assert len(started) == 8


async def test_the_seconds_of_a_budget_end_what_runs_under_it(mesh: Mesh, spawn: Spawn) -> None:
    ended = asyncio.Event()

    class Slow(Agent):
        @handler
        async def asked(self, request: Prompt) -> str:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
            return ""

        @handler
        async def down(self, task: Down) -> int:
            await self.mesh.ask("slow", Prompt(text="wait"))
            return 0

    slow = await spawn(Slow, options=CellOptions(concurrency=2))

    with pytest.raises(BudgetExceededError, match=r"0\.8 seconds"):
        await slow.ask(Prompt(text="wait"), budget=Budget(seconds=0.8))
    async with asyncio.timeout(5):
        await ended.wait()
    job = await slow.submit(Down(), budget=Budget(seconds=0.8))
    with pytest.raises((TaskExpiredError, BudgetExceededError), match=r"0\.8 seconds"):
        await job.result(timeout=10)


async def test_nothing_is_counted_without_a_budget_of_steps(mesh: Mesh, spawn: Spawn) -> None:
    await spawn(Reached)
    with budget(depth=3, seconds=10):
        await mesh.ask("reached", Reach())
    everything = Subjects(mesh.subjects.tenant).budget("x").removesuffix("x") + "*"
    if await mesh.transport.stream_info("BUDGETS") is not None:
        assert await mesh.transport.subjects_of("BUDGETS", everything) == {}


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(DefinitionError, match="steps must be more than 0"):
        Budget(steps=0)


async def test_a_budget_that_is_none_is_refused(mesh: Mesh) -> None:
    with pytest.raises(DefinitionError, match=r"expected a Budget, such as Budget\(steps=100\), not 3"):
        await mesh.submit(SpreadTask(count=1), to="x", budget=3)  # type: ignore[arg-type]
