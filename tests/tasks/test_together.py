"""Where things meet: stops, pauses, limits, call trees, keys and budgets at the same time."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from agentmesh.budgets import Budget
from agentmesh.errors import DuplicateScheduleError
from agentmesh.ids import now
from agentmesh.messages import Task
from agentmesh.tasks import Job, TaskContext, TaskWorker
from agentmesh.tasks.layout import MAX_BODY, STREAMS, TASKS
from agentmesh.transport import Delivery
from tests.harness import eventually
from tests.tasks.conftest import Stage
from tests.tasks.kinds import Double, Once
from tests.tasks.test_limits import Gated, Hall, waiting_at

# ------------------------------------------------------------ stops


async def waits(worker: TaskWorker) -> None:
    """Until the broker is to push what comes next to the worker, or has done so."""
    await eventually(lambda: any(pull.armed for pull in worker._lanes._pulls), period=0.005)


async def test_a_task_that_comes_just_after_a_worker_stopped_has_lost_no_attempt(stage: Stage) -> None:
    leaving = await stage.work()
    await waits(leaving)
    await waits(await stage.work())
    await leaving.stop(grace=0.0)

    jobs = [await stage.client.submit(Once(how="fine"), to="worker") for _ in range(6)]

    assert [await job.result(5) for job in jobs] == ["fine"] * 6


async def test_workers_that_come_and_go_cost_no_task_an_attempt(stage: Stage) -> None:
    await stage.work(slots=2)
    done = asyncio.Event()

    async def come_and_go() -> None:
        while not done.is_set():
            passing = await stage.work(prefetch=4)
            await waits(passing)
            await passing.stop(grace=0.0)

    coming = asyncio.create_task(come_and_go())
    try:
        for _ in range(150):
            job = await stage.client.submit(Once(how="fine"), to="worker")
            assert await job.result(5) == "fine"
    finally:
        done.set()
        await coming


async def test_what_waits_for_a_limit_is_given_back_once_when_the_worker_stops(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    hall = Hall()
    await stage.work(run=hall.run, types={"Gated": Gated}, slots=1)
    await stage.client.submit(Gated(), to="worker")
    await hall.has_started(1)
    leaving = await stage.work(run=hall.run, types={"Gated": Gated}, slots=1)
    await stage.client.submit(Gated(), to="worker")
    await eventually(lambda: waiting_at(stage))
    given_back: list[str] = []
    nak = stage.transport.nak

    async def noting(delivery: Delivery, delay: float = 0.0) -> None:
        given_back.append(delivery.reply)
        await nak(delivery, delay)

    monkeypatch.setattr(stage.transport, "nak", noting)

    await leaving.stop(grace=0.0)

    assert given_back
    assert len(given_back) == len(set(given_back))
    hall.release("a", 2)
    await stage.drained()


# ------------------------------------------------------------ call trees and limits


class Boss(Task[None], max_attempts=1):
    """Submits `Gated` tasks, and waits for ever."""

    children: int


async def test_the_children_of_a_cancelled_task_are_cancelled_though_a_limit_has_no_room(stage: Stage) -> None:
    hall = Hall()
    jobs: list[Job[str]] = []

    async def run(task: Task[Any], ctx: Any) -> Any:
        if not isinstance(task, Boss):
            return await hall.run(task, ctx)
        jobs.extend([await stage.client.submit(Gated(), to="worker") for _ in range(task.children)])
        return await asyncio.Event().wait()

    await stage.work(run=run, types={"Boss": Boss, "Gated": Gated})
    held = await stage.client.submit(Gated(), to="worker")
    await hall.has_started(1)
    boss = await stage.client.submit(Boss(children=8), to="worker")
    await eventually(lambda: len(jobs) == 8)
    await eventually(lambda: waiting_at(stage))

    await boss.cancel()

    async with asyncio.timeout(15):
        outcomes = await asyncio.gather(*(job.outcome() for job in jobs))
    assert [outcome.status for outcome in outcomes] == ["cancelled"] * 8
    assert len(hall.started) == 1
    hall.release("a")
    assert await held.result(5) == "done"


async def test_waiting_for_a_limit_costs_no_attempt_though_it_could_not_be_recorded_for_a_while(own: Stage) -> None:
    hall = Hall()
    await own.work(run=hall.run, types={"Gated": Gated})
    held = await own.client.submit(Gated(), to="worker")
    await hall.has_started(1)
    await own.transport.edit_stream(STREAMS, max_msg_size=1)
    jobs = [await own.client.submit(Gated(), to="worker") for _ in range(5)]
    await eventually(partial(came_back, own, "worker"))

    await own.transport.edit_stream(STREAMS, max_msg_size=MAX_BODY)
    hall.release("a", 6)

    async with asyncio.timeout(20):
        assert await asyncio.gather(*(job.result() for job in (held, *jobs))) == ["done"] * 6
    assert hall.started == [("a", 1)] * 6


async def came_back(stage: Stage, agent: str) -> bool:
    info = await stage.transport.consumer_info(TASKS, stage.subjects.task_consumer(agent, "normal"))
    return info is not None and info.redelivered >= 3


# ------------------------------------------------------------ keys and delays


async def test_a_key_gives_the_same_job_also_when_its_moment_has_passed(stage: Stage) -> None:
    await stage.work()
    await stage.move()
    at = now() + timedelta(seconds=1)
    job = await stage.client.submit(Double(n=2), to="worker", at=at, idempotency_key="reminder")
    assert await job.result(10) == 4

    again = await stage.client.submit(Double(n=2), to="worker", at=at, idempotency_key="reminder")

    assert again.id == job.id
    assert await again.result(5) == 4


async def test_a_delayed_task_under_the_id_of_a_schedule_is_refused_and_cancelling_it_keeps_the_schedule(
    stage: Stage,
) -> None:
    await stage.client.schedule(Double(n=1), every=3600, schedule_id="nightly", to="worker")

    with pytest.raises(DuplicateScheduleError):
        await stage.client.submit(Double(n=2), to="worker", task_id="nightly", delay=1)
    await stage.client.cancel("nightly")

    assert (await stage.client.schedules.get("nightly")).info.repeats


# ------------------------------------------------------------ budgets and workflows


class Trip(Task[int], max_attempts=1):
    """A workflow with one task."""


async def test_a_workflow_that_is_handed_on_takes_no_steps_of_its_budget_again(stage: Stage) -> None:
    runs: asyncio.Queue[str] = asyncio.Queue()

    async def run(task: Task[Any], ctx: TaskContext) -> Any:
        runs.put_nowait(ctx.task_id)
        return await ctx.run(Double(n=1), to="later") if isinstance(task, Trip) else 2

    job = await stage.client.submit(Trip(), to="trips", budget=Budget(steps=2))
    for _ in range(3):
        worker = await stage.work("trips", run, types={"Trip": Trip})
        await asyncio.wait_for(runs.get(), 5)
        await eventually(lambda: submitted(stage, "later"))
        await eventually(partial(is_away, worker))
        await worker.stop(grace=0.0)

    await stage.work("trips", run, types={"Trip": Trip})
    await stage.work("later", run, types={"Double": Double})

    assert await job.result(10) == 2


def is_away(worker: TaskWorker) -> bool:
    return worker._away == 1


async def submitted(stage: Stage, agent: str) -> int:
    return sum((await stage.transport.subjects_of(TASKS, stage.subjects.tasks(agent, "normal"))).values())
