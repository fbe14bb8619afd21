"""Workflows: what a step comes to is decided once, whatever happens to the handler."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from agentmesh.errors import (
    BatchFailedError,
    DeadlineExceededError,
    DefinitionError,
    DuplicateStepError,
    NestedStepError,
    RaceFailedError,
    Reject,
    Retry,
    SignalTimeoutError,
    StepFailedError,
    TaskCancelledError,
    TaskDeadError,
    WorkflowChangedError,
    WorkflowTooOldError,
)
from agentmesh.ids import now
from agentmesh.messages import Task
from agentmesh.tasks import Job, Step, TaskContext, TaskWorker
from agentmesh.tasks.wire import TaskBody, encode
from tests.harness import eventually
from tests.tasks.conftest import Stage


class Order(Task[Any], max_attempts=5, backoff=0.01):
    n: int = 0


class Part(Task[int], max_attempts=1):
    n: int
    seconds: float = 0.0
    fails: bool = False


class Receipt(BaseModel):
    id: str
    cents: int


Handler = Callable[[TaskContext], Awaitable[Any]]


class Shop:
    """Runs `Order` with the handler at hand, and `Part`; counts what was done."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.done: Counter[str] = Counter()
        self.ended: list[str] = []
        self.errors: list[BaseException] = []
        self.handler: Handler | None = None
        self.gate = asyncio.Event()

    async def open(self, handler: Handler, **options: Any) -> TaskWorker:
        self.handler = handler
        return await self.stage.work("shop", self.run, types={"Order": Order, "Part": Part}, **options)

    async def order(self, **options: Any) -> Job[Any]:
        return await self.stage.client.submit(Order(), to="shop", **options)

    async def run(self, task: Task[Any], ctx: TaskContext) -> Any:
        if isinstance(task, Part):
            return await self.part(task)
        assert self.handler is not None
        try:
            return await self.handler(ctx)
        except BaseException as error:
            self.errors.append(error)
            raise

    async def part(self, task: Part) -> int:
        self.done[f"part {task.n}"] += 1
        if task.fails:
            raise ValueError(f"part {task.n} is broken")
        try:
            await (asyncio.sleep(task.seconds) if task.seconds < 10 else self.gate.wait())
        except asyncio.CancelledError:
            self.ended.append(f"part {task.n} cancelled")
            raise
        return task.n * 10

    def effect(self, name: str) -> str:
        self.done[name] += 1
        return name


@pytest.fixture
def shop(stage: Stage) -> Shop:
    return Shop(stage)


def again(ctx: TaskContext, times: int = 1) -> None:
    """Have the handler run again."""
    if ctx.attempt <= times:
        raise Retry(0.0)


# ---------------------------------------------------------------- steps


async def test_a_step_that_was_decided_is_not_run_again_and_has_the_type_it_is_annotated_with(shop: Shop) -> None:
    async def charge(cents: int) -> Receipt:
        shop.effect("charge")
        return Receipt(id="r1", cents=cents)

    def ship(receipt: Receipt) -> list[Receipt]:
        shop.effect("ship")
        return [receipt, receipt]

    async def handler(ctx: TaskContext) -> str:
        receipt = await ctx.step("charge", charge, 500)
        assert isinstance(receipt, Receipt)
        again(ctx, 1)
        shipped = await ctx.step("ship", ship, receipt)
        again(ctx, 2)
        assert isinstance(shipped[0], Receipt)
        plain: Any = await ctx.step("plain", lambda: shipped[0])
        again(ctx, 3)
        assert plain == {"id": "r1", "cents": 500}
        return f"{ctx.attempt} {shipped[1].cents}"

    await shop.open(handler)
    assert await (await shop.order()).result(10) == "4 500"
    assert shop.done == {"charge": 1, "ship": 1}


async def test_what_a_step_came_to_is_returned_by_value_in_the_first_run_too(shop: Shop) -> None:
    async def handler(ctx: TaskContext) -> Any:
        return type(await ctx.step("a", lambda: (1, 2))).__name__

    await shop.open(handler)
    assert await (await shop.order()).result(10) == "list"


async def test_a_failing_step_is_tried_as_often_as_it_says_and_its_failure_is_decided(shop: Shop) -> None:
    async def broken() -> None:
        shop.effect("broken")
        raise ValueError("no luck")

    async def handler(ctx: TaskContext) -> str:
        try:
            await ctx.step("broken", broken, max_attempts=3, backoff=0.01)
        except StepFailedError as error:
            again(ctx)
            return f"{error.error_type} {error.message} {error.attempts}"
        return "fine"

    await shop.open(handler)
    assert await (await shop.order()).result(10) == "ValueError no luck 3"
    assert shop.done == {"broken": 3}


async def test_a_step_that_succeeds_later_keeps_only_its_success(shop: Shop) -> None:
    async def flaky() -> int:
        shop.effect("flaky")
        if shop.done["flaky"] < 3:
            raise Retry(0.0)
        return shop.done["flaky"]

    await shop.open(lambda ctx: ctx.step("flaky", flaky))
    assert await (await shop.order()).result(10) == 3


async def test_a_failure_that_is_decided_ends_the_task_without_further_attempts(shop: Shop) -> None:
    async def refuse() -> None:
        shop.effect("refuse")
        raise Reject("never")

    await shop.open(lambda ctx: ctx.step("refuse", refuse))
    job = await shop.order()
    with pytest.raises(TaskDeadError, match="step 'refuse' failed: Reject: never"):
        await job.result(10)
    assert shop.done == {"refuse": 1}
    assert len(shop.errors) == 1
    assert "refuse" in (await shop.stage.client.dead_show(job.id)).reason


async def test_a_step_that_takes_too_long_fails(shop: Shop) -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    async def handler(ctx: TaskContext) -> str:
        try:
            await ctx.step("hang", hang, timeout=0.05, max_attempts=2, backoff=0.01)
        except StepFailedError as error:
            return f"{error.error_type} {error.attempts}"
        return ""

    await shop.open(handler)
    assert await (await shop.order()).result(10) == "TimeoutError 2"


async def test_a_result_that_does_not_fit_its_annotation_fails_the_step(shop: Shop) -> None:
    async def wrong() -> int:
        return "text"  # type: ignore[return-value]

    await shop.open(lambda ctx: ctx.step("wrong", wrong))
    with pytest.raises(TaskDeadError, match="does not fit its annotation"):
        await (await shop.order()).result(10)


async def test_two_steps_of_one_name_are_refused(shop: Shop) -> None:
    async def handler(ctx: TaskContext) -> None:
        for _ in range(2):
            await ctx.step("same", shop.effect, "once")

    await shop.open(handler)
    with pytest.raises(TaskDeadError, match="there is a step 'same' in this run already"):
        await (await shop.order()).result(10)
    assert shop.done == {"once": 1}
    assert isinstance(shop.errors[0], DuplicateStepError)


async def test_a_step_inside_a_step_is_refused(shop: Shop) -> None:
    async def handler(ctx: TaskContext) -> None:
        async def outer() -> None:
            try:
                await ctx.step("inner", shop.effect, "inner")
            except NestedStepError as error:
                raise Reject(str(error)) from error

        await ctx.step("outer", outer)

    await shop.open(handler)
    with pytest.raises(TaskDeadError, match="'inner' was begun inside step 'outer'"):
        await (await shop.order()).result(10)
    assert not shop.done


@pytest.mark.parametrize("name", ["", "x" * 201, "a\nb"])
async def test_a_name_that_cannot_be_shown_is_refused(shop: Shop, name: str) -> None:
    async def handler(ctx: TaskContext) -> str:
        with pytest.raises(DefinitionError):
            await ctx.step(name, shop.effect, "x")
        return "refused"

    await shop.open(handler)
    assert await (await shop.order()).result(10) == "refused"


async def test_another_function_under_the_name_of_a_decided_step_is_noticed(shop: Shop) -> None:
    async def old() -> int:
        return 1

    async def new() -> int:
        return 2

    async def handler(ctx: TaskContext) -> int:
        value = await ctx.step("count", old if ctx.attempt == 1 else new)
        again(ctx)
        return value

    await shop.open(handler)
    with pytest.raises(TaskDeadError, match=r"'count' was recorded as step .*old, and the code now makes it .*new"):
        await (await shop.order()).result(10)
    assert isinstance(shop.errors[-1], WorkflowChangedError)


async def test_steps_of_different_tasks_have_nothing_to_do_with_each_other(shop: Shop) -> None:
    async def handler(ctx: TaskContext) -> str:
        return await ctx.step("who", lambda: ctx.task_id)

    await shop.open(handler)
    jobs = [await shop.order() for _ in range(3)]
    assert [await job.result(10) for job in jobs] == [job.id for job in jobs]


async def test_a_run_that_begins_when_outcomes_may_be_forgotten_is_refused(shop: Shop) -> None:
    async def handler(ctx: TaskContext) -> None:
        await ctx.step("once", shop.effect, "once")
        again(ctx)

    await shop.open(handler)
    body = TaskBody("old", "shop", "Order", timestamp=now() - timedelta(days=8))
    subject = shop.stage.subjects.tasks("shop", "normal")
    await shop.stage.client.ensure()
    await shop.stage.transport.publish_durable(subject, encode(body))
    with pytest.raises(TaskDeadError, match="over 7 days old"):
        await shop.stage.client.job("old").result(10)
    assert shop.done == {"once": 1}
    assert isinstance(shop.errors[-1], WorkflowTooOldError)


# ---------------------------------------------------------------- children


async def test_a_child_runs_once_and_later_runs_have_its_result(shop: Shop) -> None:
    async def handler(ctx: TaskContext) -> int:
        first = await ctx.run(Part(n=1), to="shop")
        again(ctx)
        return first + await ctx.run(Part(n=2), to="shop", name="second")

    await shop.open(handler)
    assert await (await shop.order()).result(10) == 30
    assert shop.done == {"part 1": 1, "part 2": 1}


async def test_a_child_of_that_name_with_other_parameters_is_noticed(shop: Shop) -> None:
    async def handler(ctx: TaskContext) -> int:
        value = await ctx.run(Part(n=ctx.attempt), to="shop")
        again(ctx)
        return value

    await shop.open(handler)
    with pytest.raises(TaskDeadError, match=r"step 'Part' was recorded as Part .*, and the code now makes it Part"):
        await (await shop.order()).result(10)


async def test_a_child_that_failed_ends_the_workflow_without_further_attempts(shop: Shop) -> None:
    async def handler(ctx: TaskContext) -> int:
        return await ctx.run(Part(n=1, fails=True), to="shop")

    await shop.open(handler)
    with pytest.raises(TaskDeadError, match="part 1 is broken"):
        await (await shop.order()).result(10)
    assert shop.done == {"part 1": 1}
    assert len(shop.errors) == 1


@pytest.mark.parametrize("slots", [1, 2])
async def test_workflows_and_their_children_in_one_agent_do_not_wait_for_each_other_for_ever(
    shop: Shop, slots: int
) -> None:
    async def handler(ctx: TaskContext) -> int:
        a, b = await ctx.gather(ctx.run(Part(n=1), to="shop", name="a"), ctx.run(Part(n=2), to="shop", name="b"))
        return a + b + sum(await ctx.map(Part, [3, 4], to="shop"))

    await shop.open(handler, slots=slots)
    jobs = [await shop.order() for _ in range(5)]
    assert [await job.result(20) for job in jobs] == [100] * 5


async def test_map_returns_results_and_errors_by_position_and_keeps_them_over_runs(shop: Shop) -> None:
    async def handler(ctx: TaskContext) -> list[Any]:
        items = [{"n": 1}, {"n": 2, "fails": True}, {"n": 3}, {"n": 1}]
        outcomes = await ctx.map(Part, items, to="shop", limit=2, on_error="return")
        again(ctx)
        return [outcome if isinstance(outcome, int) else type(outcome).__name__ for outcome in outcomes]

    await shop.open(handler)
    assert await (await shop.order()).result(10) == [10, "TaskDeadError", 30, 10]
    assert shop.done == {"part 1": 2, "part 2": 1, "part 3": 1}  # two items are equal, and are two tasks


async def test_items_of_a_map_keep_their_results_in_another_order_and_with_others_between_them(shop: Shop) -> None:
    async def handler(ctx: TaskContext) -> list[int]:
        outcomes = await ctx.map(Part, [1, 2, 3] if ctx.attempt == 1 else [3, 7, 2, 1], to="shop")
        again(ctx)
        return outcomes

    await shop.open(handler)
    assert await (await shop.order()).result(10) == [30, 70, 20, 10]
    assert set(shop.done.values()) == {1}


async def test_a_map_that_raises_cancels_the_rest_and_comes_to_the_same_in_later_runs(shop: Shop) -> None:
    seen: list[str] = []

    async def handler(ctx: TaskContext) -> Any:
        items = [{"n": 1}, {"n": 2, "seconds": 60}, {"n": 3, "fails": True}, {"n": 4}, {"n": 5}]
        try:
            await ctx.map(Part, items, to="shop", limit=3)
        except BatchFailedError as error:
            seen.append(error.first)
            again(ctx)
            return error.results
        return None

    await shop.open(handler)
    results = await (await shop.order()).result(10)
    assert results[0] == 10
    assert results[1:3] == [None, None]
    assert "part 3 is broken" in seen[0]
    assert seen[0] == seen[1]
    await eventually(lambda: "part 2 cancelled" in shop.ended)


# ---------------------------------------------------------------- branches


async def test_gather_lets_all_come_to_their_end_and_raises_the_first_error_by_position(shop: Shop) -> None:
    async def slow_failure() -> None:
        await asyncio.sleep(0.1)
        raise Reject("slow")

    async def fast_failure() -> None:
        raise Reject("fast")

    async def handler(ctx: TaskContext) -> str:
        try:
            await ctx.gather(
                ctx.step("slow", slow_failure),
                ctx.step("fast", fast_failure),
                ctx.run(Part(n=1, seconds=0.2), to="shop"),
            )
        except StepFailedError as error:
            again(ctx)
            return error.message
        return ""

    await shop.open(handler)
    assert await (await shop.order()).result(10) == "slow"
    assert shop.done == {"part 1": 1}


async def test_race_returns_the_first_success_remembers_it_and_cancels_the_others(shop: Shop) -> None:
    async def fail() -> int:
        raise Reject("no")

    async def handler(ctx: TaskContext) -> int:
        winner = await ctx.race(
            ctx.run(Part(n=1, seconds=60), to="shop", name="slow"),
            ctx.step("failing", fail),
            ctx.run(Part(n=2, seconds=0.0), to="shop", name="fast"),
        )
        again(ctx)
        return winner

    await shop.open(handler)
    assert await (await shop.order()).result(10) == 20
    assert shop.done == {"part 1": 1, "part 2": 1}
    await eventually(lambda: shop.ended == ["part 1 cancelled"])
    await shop.stage.drained()


async def test_a_race_that_nobody_wins_says_why_in_every_run(shop: Shop) -> None:
    async def fail(why: str) -> int:
        shop.effect(why)
        raise Reject(why)

    async def handler(ctx: TaskContext) -> list[str]:
        try:
            await ctx.race(ctx.step("a", fail, "first"), ctx.step("b", fail, "second"))
        except RaceFailedError as error:
            again(ctx)
            return error.errors
        return []

    await shop.open(handler)
    first, second = await (await shop.order()).result(10)
    assert "first" in first
    assert "second" in second
    assert shop.done == {"first": 1, "second": 1}


# ---------------------------------------------------------------- time and signals


async def test_a_sleep_ends_at_the_same_time_in_every_run(shop: Shop) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def handler(ctx: TaskContext) -> float:
        if ctx.attempt == 1:
            try:
                async with asyncio.timeout(0.4):
                    await ctx.sleep(0.8)
            except TimeoutError:
                raise Retry(0.0) from None
        await ctx.sleep(0.8)
        return loop.time() - began

    await shop.open(handler)
    slept = await (await shop.order()).result(10)
    assert 0.8 <= slept < 1.15  # and not 0.4 + 0.8


async def test_a_workflow_that_waits_leaves_its_slot_to_others_and_its_time_limit_stands_still(shop: Shop) -> None:
    class Patient(Task[str], time_limit=0.3):
        pass

    async def run(task: Task[Any], ctx: TaskContext) -> Any:
        if isinstance(task, Part):
            return await shop.part(task)
        return await ctx.signal("go", str)

    await shop.stage.work("shop", run, types={"Patient": Patient, "Part": Part}, slots=1)
    client = shop.stage.client
    waiting = [await client.submit(Patient(), to="shop") for _ in range(3)]
    for job in waiting:
        await eventually(job.steps)
    part = await client.submit(Part(n=1, seconds=0.4), to="shop")
    assert await part.result(5) == 10
    for job in waiting:
        assert not job.is_decided
        assert await job.signal("go", "at last")
        assert await job.result(5) == "at last"


@pytest.mark.slow
async def test_more_waiting_workflows_than_a_worker_keeps_are_given_back_and_come_again(shop: Shop) -> None:
    async def handler(ctx: TaskContext) -> int:
        return await ctx.signal("go", int)

    worker = await shop.open(handler, slots=1)
    worker.max_away = 1
    jobs = [await shop.order() for _ in range(2)]

    async def one_was_given_back() -> bool:
        return any(isinstance(error, asyncio.CancelledError) for error in shop.errors)

    await eventually(one_was_given_back)
    for number, job in enumerate(jobs):
        assert await job.signal("go", number)
    assert [await job.result(15) for job in jobs] == [0, 1]
    assert not await shop.stage.client.dead_ls()


async def test_a_signal_counts_once_and_also_when_it_comes_first(shop: Shop) -> None:
    async def handler(ctx: TaskContext) -> list[bool]:
        return [await ctx.signal("early", bool), await ctx.signal("late", bool, timeout=30)]

    job = await shop.stage.client.submit(Order(), to="shop")
    assert await job.signal("early", True)
    assert not await job.signal("early", False)
    await shop.open(handler)

    async def waits_for_the_second() -> bool:
        return any(step.name == "late" for step in await job.steps())

    await eventually(waits_for_the_second)
    assert await job.signal("late", False)
    assert await job.result(10) == [True, False]
    assert not await job.signal("late", True)


async def test_a_signal_that_comes_too_late_is_refused(shop: Shop) -> None:
    async def handler(ctx: TaskContext) -> str:
        try:
            await ctx.signal("approved", timeout=0.2)
        except SignalTimeoutError:
            again(ctx)
            await ctx.sleep(0.0 if shop.gate.is_set() else 0.5)
            return "timeout"
        return "approved"

    await shop.open(handler)
    job = await shop.order()
    with pytest.raises(DeadlineExceededError):
        await job.result(0.3)
    assert await eventually(lambda: len(shop.errors) == 1)
    assert not await job.signal("approved")
    assert await job.result(10) == "timeout"


# ---------------------------------------------------------------- cancelling, and looking


async def test_cancelling_a_workflow_cancels_its_children(shop: Shop) -> None:
    async def handler(ctx: TaskContext) -> Any:
        return await ctx.map(Part, [{"n": n, "seconds": 60} for n in range(4)], to="shop")

    await shop.open(handler, slots=8)
    job = await shop.order()
    await eventually(lambda: len(shop.done) == 4)
    assert await job.cancel()
    with pytest.raises(TaskCancelledError):
        await job.result(5)
    await eventually(lambda: len(shop.ended) == 4)
    await shop.stage.drained()


async def test_the_steps_of_a_workflow_can_be_seen_while_it_runs_and_afterwards(shop: Shop) -> None:
    async def handler(ctx: TaskContext) -> Any:
        await ctx.step("one", shop.effect, "one")
        await ctx.run(Part(n=1), to="shop", name="two")
        await ctx.signal("go")
        await ctx.map(Part, [{"n": 2}, {"n": 3, "fails": True}], to="shop", name="many", on_error="return")

    await shop.open(handler)
    job = await shop.order()

    async def waits() -> list[Step]:
        steps = await job.steps()
        return steps if len(steps) == 3 else []

    steps = await eventually(waits)
    assert [(step.name, step.kind, step.state) for step in steps] == [
        ("one", "step", "completed"),
        ("two", "run", "completed"),
        ("go", "signal", "running"),
    ]
    assert steps[1].task_type == "Part"
    assert (await shop.stage.client.get(steps[1].id)).state == "completed"
    assert await job.signal("go")
    told = [event async for event in job]
    names = [event.name for event in told if isinstance(event, Step)]
    assert names == ["one", "one", "two", "two", "go", "go", "many", "many"]
    last = (await job.steps())[-1]
    assert (last.kind, last.state, last.total, last.failed) == ("map", "completed", 2, 1)


async def test_steps_are_no_tasks_in_lists(shop: Shop) -> None:
    await shop.open(lambda ctx: ctx.step("one", shop.effect, "one"))
    job = await shop.order()
    await job.result(10)
    assert [status.task_id for status in await shop.stage.client.ls()] == [job.id]
