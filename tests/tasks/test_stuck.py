"""Tasks that no consumer will ever deliver, because somebody changed what agentmesh made, are found and decided."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agentmesh.ids import new_id
from agentmesh.tasks import StuckSweep
from agentmesh.tasks.layout import TASKS, ensure_streams, task_consumer
from agentmesh.tasks.wire import encode
from tests.harness import eventually
from tests.tasks.conftest import Stage
from tests.tasks.kinds import Fail, Hold, Nap

REASON = "the broker gave up after 2 deliveries, because somebody told it so"


async def give_up_one(stage: Stage, agent: str = "worker") -> str:
    """A task that the broker has just given up: its consumer got a limit, and nobody settled it. Its id."""
    await ensure_streams(stage.transport)
    spec = dataclasses.replace(task_consumer(stage.subjects, agent, "normal", 0.3), max_deliver=2)
    await stage.transport.ensure_consumer(spec)
    task_id = await submit(stage, agent)
    pull = stage.transport.pull(TASKS, spec.name)
    await pull.start()
    for _ in range(2):
        pull.arm()
        async with asyncio.timeout(5):
            while not pull.received():
                pull.ready.clear()
                await pull.ready.wait()
    pull.arm()

    async def given_up() -> bool:
        info = await stage.transport.consumer_info(TASKS, spec.name)
        return info is not None and info.ack_pending == 0

    await eventually(given_up, what="the broker gave up")
    await pull.stop()
    return task_id


async def submit(stage: Stage, agent: str, lane: str = "normal") -> str:
    task_id = new_id()
    body = encode({"task_id": task_id, "agent_id": agent, "task_type": "Double", "parameters": {"n": 1}})
    subject = stage.subjects.tasks(agent, "normal").removesuffix("normal") + lane
    await stage.transport.publish_durable(subject, body)
    return task_id


@asynccontextmanager
async def sweeping(stage: Stage, **options: object) -> AsyncIterator[list[tuple[str, str]]]:
    buried: list[tuple[str, str]] = []
    sweep = StuckSweep(
        stage.transport,
        stage.subjects,
        on_buried=lambda task, reason: buried.append((task, reason)),
        **options,  # type: ignore[arg-type]
    )
    running = asyncio.create_task(sweep.run())
    try:
        yield buried
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_b14_a_task_the_broker_gives_up_is_dead_seconds_after_it_says_so(stage: Stage) -> None:
    async with sweeping(stage, period=60.0):
        await asyncio.sleep(0)
        task_id = await give_up_one(stage)

        async with asyncio.timeout(5.0 + 2.0):
            result = await stage.client.job(task_id).outcome()
        await stage.drained()

    assert result.status == "dead"
    assert result.reason.startswith(REASON)
    assert "--max-deliver=-1" in result.reason
    (letter,) = await stage.client.dead_ls()
    assert (letter.task_id, letter.agent_id, letter.task_type) == (task_id, "worker", "Double")


async def test_c6_what_nobody_heard_the_broker_give_up_is_found_by_the_next_sweep(stage: Stage) -> None:
    task_id = await give_up_one(stage)  # nobody listens

    async with sweeping(stage, period=0.5, second_look=0.5), asyncio.timeout(10):
        result = await stage.client.job(task_id).outcome()
        await stage.drained()

    assert result.status == "dead"


async def test_tasks_that_wait_run_or_are_tried_again_are_left_alone(stage: Stage) -> None:
    await stage.work("worker", slots=1)
    running = await stage.client.submit(Hold(), to="worker")
    failing = await stage.client.submit(Fail(times=1), to="other")
    await stage.work("other")
    behind = await stage.client.submit(Nap(), to="worker")
    nobody = await stage.client.submit(Nap(), to="nobody")
    await stage.handlers.has_started(2)

    found = await StuckSweep(stage.transport, stage.subjects, second_look=0.1).sweep()

    assert found.buried == []
    assert (found.unhosted["worker"], found.unhosted["nobody"]) == (2, 1)  # the workers of this test are no agents
    stage.handlers.release.set()
    await failing.outcome()
    assert [await running.result(), await behind.result()] == ["released", "rested"]
    assert not nobody.is_decided


async def test_a_task_in_a_queue_that_no_worker_reads_is_a_dead_letter(stage: Stage) -> None:
    task_id = await submit(stage, "worker", lane="urgent")

    found = await StuckSweep(stage.transport, stage.subjects, second_look=0.1).sweep()

    assert found.buried == [task_id]
    (letter,) = await stage.client.dead_ls()
    assert "no worker reads" in letter.reason
