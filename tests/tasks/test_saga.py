"""Sagas: what was done is undone, last one first, whatever ends the workflow."""

from __future__ import annotations

import asyncio

import pytest

from agentmesh.errors import (
    Reject,
    Retry,
    SagaNotUndoneError,
    SagaUndoneError,
    TaskCancelledError,
    TaskDeadError,
    TaskFailedError,
)
from agentmesh.messages import Task
from agentmesh.tasks import TaskContext
from tests.harness import eventually
from tests.tasks.conftest import Stage
from tests.tasks.test_workflow import Part, Shop, again


@pytest.fixture
def shop(stage: Stage) -> Shop:
    return Shop(stage)


class Trip:
    """Books and unbooks, and keeps book of both."""

    def __init__(self) -> None:
        self.log: list[str] = []

    async def book(self, what: str) -> str:
        self.log.append(f"book {what}")
        return what

    async def unbook(self, what: str) -> None:
        self.log.append(f"unbook {what}")

    async def fail(self) -> str:
        self.log.append("fail")
        raise Reject("no seats")


@pytest.fixture
def trip() -> Trip:
    return Trip()


async def test_a_saga_that_succeeds_undoes_nothing_and_is_passed_in_later_runs(shop: Shop, trip: Trip) -> None:
    async def handler(ctx: TaskContext) -> str:
        async with ctx.saga() as saga:
            flight = await saga.do("flight", trip.book, "flight", undo=trip.unbook)
        again(ctx)
        return flight

    await shop.open(handler)
    assert await (await shop.order()).result(10) == "flight"
    assert trip.log == ["book flight"]


async def test_a_saga_that_fails_is_undone_in_reverse_and_its_task_is_a_dead_letter(shop: Shop, trip: Trip) -> None:
    async def handler(ctx: TaskContext) -> None:
        async with ctx.saga("trip") as saga:
            saga.undo_with("hold", trip.unbook, "hold")
            await saga.do("flight", trip.book, "flight", undo=trip.unbook)
            await saga.run(Part(n=7), undo=lambda n: trip.log.append(f"undo part {n}"), to="shop")
            await saga.do("hotel", trip.fail, undo=trip.unbook)

    await shop.open(handler)
    job = await shop.order()
    with pytest.raises(TaskDeadError, match="'trip' failed: step 'hotel' failed: Reject: no seats; undone: Part,"):
        await job.result(10)
    assert trip.log == ["book flight", "fail", "undo part 70", "unbook flight", "unbook hold"]
    assert len(shop.errors) == 1
    states = {step.name: (step.kind, step.state) for step in await job.steps()}
    assert states["trip"] == ("saga", "failed")
    assert states["hotel"] == ("step", "failed")
    assert states["flight (undo)"] == ("undo", "completed")


async def test_a_handler_may_go_on_after_a_saga_that_was_undone(shop: Shop, trip: Trip) -> None:
    reasons: list[str] = []

    async def handler(ctx: TaskContext) -> str:
        try:
            async with ctx.saga("first") as saga:
                await saga.do("flight", trip.book, "flight", undo=trip.unbook)
                if ctx.attempt == 1:
                    raise ValueError("too dear")  # not in later runs: what was decided stays decided
        except SagaUndoneError as error:
            again(ctx)
            reasons.append(error.reason)
        async with ctx.saga("second") as saga:
            return await saga.do("train", trip.book, "train", undo=trip.unbook)

    await shop.open(handler)
    assert await (await shop.order()).result(10) == "train"
    assert trip.log == ["book flight", "unbook flight", "book train"]
    assert reasons == ["ValueError: too dear"]


async def test_what_cannot_be_undone_is_listed_and_the_rest_is_undone(shop: Shop, trip: Trip) -> None:
    async def stuck(what: str) -> None:
        trip.log.append(f"cannot unbook {what}")
        raise ValueError("the desk is closed")

    async def handler(ctx: TaskContext) -> None:
        async with ctx.saga("trip", undo_attempts=2) as saga:
            await saga.do("flight", trip.book, "flight", undo=trip.unbook)
            await saga.do("hotel", trip.book, "hotel", undo=stuck)
            await saga.do("car", trip.fail, undo=trip.unbook)

    await shop.open(handler)
    job = await shop.order()
    with pytest.raises(TaskDeadError, match=r"NOT undone: hotel \(ValueError: the desk is closed\)"):
        await job.result(10)
    assert trip.log == ["book flight", "book hotel", "fail", *["cannot unbook hotel"] * 2, "unbook flight"]
    error = shop.errors[0]
    assert isinstance(error, SagaNotUndoneError)
    assert (error.undone, len(error.not_undone)) == (["flight"], 1)
    assert "hotel" in (await shop.stage.client.dead_show(job.id)).reason


async def test_what_was_done_and_is_not_reached_again_is_reported_as_not_undone(shop: Shop, trip: Trip) -> None:
    async def unbook_later(what: str) -> None:
        trip.log.append(f"try to unbook {what}")
        await shop.gate.wait()

    async def handler(ctx: TaskContext) -> None:
        async with ctx.saga() as saga:
            if not shop.errors:  # as no workflow should: it differs from run to run
                await saga.do("flight", trip.book, "flight", undo=unbook_later)
            raise ValueError("no")

    worker = await shop.open(handler)
    job = await shop.order()
    await eventually(lambda: "try to unbook flight" in trip.log)
    await worker.stop(0.0)
    await shop.open(handler)
    with pytest.raises(TaskDeadError, match=r"NOT undone: flight \(this run did not come to it again\)"):
        await job.result(10)


async def test_a_retry_inside_a_saga_undoes_nothing(shop: Shop, trip: Trip) -> None:
    async def handler(ctx: TaskContext) -> str:
        async with ctx.saga() as saga:
            flight = await saga.do("flight", trip.book, "flight", undo=trip.unbook)
            again(ctx, 2)
            return flight
        raise AssertionError

    await shop.open(handler)
    assert await (await shop.order()).result(10) == "flight"
    assert trip.log == ["book flight"]


async def test_cancelling_a_workflow_in_a_saga_undoes_it(shop: Shop, trip: Trip) -> None:
    async def handler(ctx: TaskContext) -> None:
        async with ctx.saga() as saga:
            await saga.do("flight", trip.book, "flight", undo=trip.unbook)
            await ctx.signal("paid")
            await saga.do("hotel", trip.book, "hotel", undo=trip.unbook)

    await shop.open(handler)
    job = await shop.order()
    await eventually(lambda: trip.log)
    assert await job.cancel()
    with pytest.raises(TaskCancelledError):
        await job.result(10)
    await shop.stage.drained()
    assert trip.log == ["book flight", "unbook flight"]
    assert not await shop.stage.client.dead_ls()


async def test_a_saga_is_undone_when_the_workflow_was_cancelled_while_no_worker_had_it(shop: Shop, trip: Trip) -> None:
    async def handler(ctx: TaskContext) -> None:
        async with ctx.saga() as saga:
            await saga.do("flight", trip.book, "flight", undo=trip.unbook)
            await ctx.signal("paid")

    worker = await shop.open(handler)
    job = await shop.order()
    await eventually(lambda: trip.log)
    await worker.stop(0.0)
    assert await job.cancel()
    assert trip.log == ["book flight"]
    await shop.open(handler)
    await shop.stage.drained()
    assert trip.log == ["book flight", "unbook flight"]


async def test_a_saga_is_undone_at_the_time_limit(shop: Shop, trip: Trip) -> None:
    class Hurry(Task[None], time_limit=0.3):
        pass

    async def hang() -> None:
        await asyncio.Event().wait()

    async def run(task: Task[None], ctx: TaskContext) -> None:
        async with ctx.saga() as saga:
            await saga.do("flight", trip.book, "flight", undo=trip.unbook)
            await ctx.step("hang", hang)

    await shop.stage.work("shop", run, types={"Hurry": Hurry})
    job = await shop.stage.client.submit(Hurry(), to="shop")
    with pytest.raises(TaskFailedError, match="it ran longer than"):
        await job.result(10)
    await shop.stage.drained()
    assert trip.log == ["book flight", "unbook flight"]


async def test_a_saga_is_undone_when_the_attempts_are_used_up(shop: Shop, trip: Trip) -> None:
    async def handler(ctx: TaskContext) -> None:
        async with ctx.saga() as saga:
            await saga.do("flight", trip.book, "flight", undo=trip.unbook)
            raise Retry(0.0)

    await shop.open(handler)
    job = await shop.order()
    with pytest.raises(TaskDeadError, match="attempt 5 of 5"):
        await job.result(10)
    assert trip.log == ["book flight", "unbook flight"]


async def test_undoing_goes_on_where_a_stopped_worker_left_it(shop: Shop, trip: Trip) -> None:
    async def unbook_later(what: str) -> None:
        trip.log.append(f"try to unbook {what}")
        await shop.gate.wait()
        await trip.unbook(what)

    async def handler(ctx: TaskContext) -> None:
        async with ctx.saga() as saga:
            await saga.do("flight", trip.book, "flight", undo=unbook_later)
            await saga.do("hotel", trip.book, "hotel", undo=trip.unbook)
            raise ValueError("no")

    worker = await shop.open(handler)
    job = await shop.order()
    await eventually(lambda: "try to unbook flight" in trip.log)
    await worker.stop(0.0)
    shop.gate.set()
    await shop.open(handler)
    with pytest.raises(TaskDeadError, match="saga 'saga' failed: ValueError: no; undone: hotel, flight"):
        await job.result(10)
    assert trip.log == [
        "book flight",
        "book hotel",
        "unbook hotel",
        "try to unbook flight",
        "try to unbook flight",
        "unbook flight",
    ]
