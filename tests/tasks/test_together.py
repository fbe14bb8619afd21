"""Where things meet: stops, pauses, limits, call trees, keys and budgets at the same time."""

from __future__ import annotations

import asyncio

import pytest

from agentmesh.transport import Delivery
from tests.harness import eventually
from tests.tasks.conftest import Stage
from tests.tasks.kinds import Once
from tests.tasks.test_limits import Gated, Hall, waiting_at

# ------------------------------------------------------------ stops


async def test_a_task_that_comes_just_after_a_worker_stopped_has_lost_no_attempt(stage: Stage) -> None:
    leaving = await stage.work()
    await stage.work()
    await leaving.stop(grace=0.0)

    jobs = [await stage.client.submit(Once(how="fine"), to="worker") for _ in range(6)]

    assert [await job.result(5) for job in jobs] == ["fine"] * 6


async def test_workers_that_come_and_go_cost_no_task_an_attempt(stage: Stage) -> None:
    await stage.work(slots=2)
    done = asyncio.Event()

    async def come_and_go() -> None:
        while not done.is_set():
            passing = await stage.work(prefetch=4)
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
