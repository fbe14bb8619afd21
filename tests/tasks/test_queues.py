"""Priorities, the door and its dispatcher, fairness between tenants, full queues."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from typing import Any

import pytest

from agentmesh.broker import EmbeddedBroker
from agentmesh.errors import DeadlineExceededError, QueueFullError, TaskDeadError
from agentmesh.tasks import TaskContext, layout
from agentmesh.tasks.dispatch import Dispatcher
from agentmesh.tasks.lanes import LOW_TURN
from tests.harness import Server, eventually
from tests.tasks.conftest import OpenStage, Stage
from tests.tasks.kinds import Double, Hold, Nap, Once


async def test_urgent_tasks_overtake_and_no_lane_starves(stage: Stage) -> None:
    order: list[str] = []

    async def run(task: object, ctx: TaskContext) -> int:
        order.append(ctx.priority)
        return 0

    jobs = [
        await stage.client.submit(Double(n=1), to="worker", priority=priority)
        for priority in ("low", "normal", "high")
        for _ in range(40)
    ]
    await stage.work(run=run, slots=1)
    await asyncio.gather(*(job.result(20) for job in jobs))

    first = order[:32]
    assert first.count("high") == 24
    assert first.count("normal") == 6
    assert first.count("low") == 2
    assert order.index("low") < LOW_TURN


async def test_an_urgent_task_starts_when_a_slot_gets_free_though_others_wait_longer(stage: Stage) -> None:
    await stage.work(slots=1)
    await stage.client.submit(Hold(), to="worker")
    await stage.handlers.has_started()
    for number in range(3):
        await stage.client.submit(Double(n=number), to="worker")
    urgent = await stage.client.submit(Double(n=9), to="worker", priority="high")

    stage.handlers.release.set()
    await urgent.result(5)

    started = [task_id for task_id, _, _ in stage.handlers.started]
    assert started.index(urgent.id) <= 2


async def test_a_task_pushed_to_a_busy_worker_is_taken_by_an_idle_one_and_counts_no_attempt(stage: Stage) -> None:
    await stage.work(slots=1)
    await stage.client.submit(Hold(), to="worker", priority="low")
    await stage.handlers.has_started()  # `high` and `normal` are armed at this busy worker
    urgent = await stage.client.submit(Double(n=1), to="worker", priority="high")

    await stage.work(slots=1, node="second")

    assert await urgent.result(5) == 2
    assert stage.handlers.attempts(urgent.id) == [1]


async def test_a_queue_takes_no_more_than_its_limit_and_says_so(
    server: Server, open_stage: OpenStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = await small_queues(server, open_stage, monkeypatch)
    for number in range(5):
        await stage.client.submit(Double(n=number), to="worker")
    begun = time.monotonic()

    with pytest.raises(QueueFullError):
        await stage.client.submit(Double(n=6), to="worker")

    assert time.monotonic() - begun < 0.1
    await stage.client.submit(Double(n=7), to="another")


async def test_a_batch_waits_for_room_in_a_full_queue(
    server: Server, open_stage: OpenStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = await small_queues(server, open_stage, monkeypatch)
    await stage.work(slots=2)

    assert await stage.client.map(Double, range(60), to="worker", limit=30) == [2 * n for n in range(60)]


async def test_e9_without_room_for_results_the_queue_waits_and_nothing_is_lost(
    server: Server, open_stage: OpenStage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bounds(monkeypatch, layout.RESULTS, max_bytes=8_000)
    stage = await open_stage(server.url)
    await stage.work()
    jobs = [await stage.client.submit(Double(n=number), to="worker") for number in range(40)]
    waiting = asyncio.gather(*(job.result() for job in jobs))
    await eventually(lambda: "cannot be stored" in caplog.text)
    assert not waiting.done()

    results = await stage.transport.stream_info(layout.RESULTS)
    assert results is not None
    roomy = json.dumps({**results.config, "max_bytes": 1_000_000}).encode()
    await stage.transport.request("$JS.API.STREAM.UPDATE.RESULTS", roomy, timeout=5.0)

    async with asyncio.timeout(10):
        assert await waiting == [2 * number for number in range(40)]
    assert len(stage.handlers.started) == 40


def bounds(monkeypatch: pytest.MonkeyPatch, stream: str, **changes: Any) -> None:
    """Make the stream with other bounds."""
    specs = [dataclasses.replace(spec, **changes) if spec.name == stream else spec for spec in layout.SPECS]
    monkeypatch.setattr(layout, "SPECS", tuple(specs))


async def small_queues(server: Server, open_stage: OpenStage, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """A stage whose queues take 5 tasks."""
    bounds(monkeypatch, layout.TASKS, max_msgs_per_subject=5)
    return await open_stage(server.url)


async def test_e2_a_flood_of_one_tenant_does_not_delay_another(
    nats_server: EmbeddedBroker, open_stage: OpenStage
) -> None:
    loud, quiet = await open_stage(nats_server.url), await open_stage(nats_server.url)
    await loud.client.ensure()
    body = json.dumps({"task_id": "x", "task_type": "Nap", "parameters": {"seconds": 0.2}}).encode()
    subject = loud.subjects.tasks("worker", "normal")
    accepted = await asyncio.gather(
        *(loud.transport.publish_durable(subject, body) for _ in range(layout.QUEUE_LIMIT + 50)),
        return_exceptions=True,
    )
    await loud.work()
    await quiet.work()
    begun = time.monotonic()

    await (await quiet.client.submit(Double(n=1), to="worker")).result(5)

    assert time.monotonic() - begun < 1.0
    assert sum(isinstance(answer, Exception) for answer in accepted) == 50
    await loud.transport.purge(layout.TASKS, subject)


async def test_a_plain_json_task_at_the_door_finds_an_agent_by_its_type(stage: Stage) -> None:
    await stage.dispatch({"Double": ["zeta", "alpha"]})
    await stage.work("alpha")
    body = {"task_id": "d1", "task_type": "Double", "parameters": {"n": 3}, "priority": "high", "schema_version": "1.0"}

    await stage.transport.publish(stage.subjects.task_door(), json.dumps(body).encode())

    assert await stage.client.job("d1", Double).result(5) == 6
    assert (await stage.client.get("d1")).agent_id == "alpha"
    await stage.drained()


async def test_a_task_at_the_door_that_names_its_agent_goes_there(stage: Stage) -> None:
    await stage.dispatch({"Double": ["alpha"]})
    await stage.work("beta")
    body = {"task_id": "d1", "agent_id": "beta", "task_type": "Double", "parameters": {"n": 3}}

    await stage.transport.publish(stage.subjects.task_door(), json.dumps(body).encode())

    assert await stage.client.job("d1", Double).result(5) == 6


async def test_a_task_at_the_door_without_an_id_gets_one_from_its_place_in_the_stream(stage: Stage) -> None:
    await stage.dispatch({"Double": ["alpha"]})
    await stage.work("alpha")
    body = json.dumps({"task_type": "Double", "parameters": {"n": 3}}).encode()

    stored = await stage.transport.publish_durable(stage.subjects.task_door(), body)

    assert await stage.client.job(f"door-{stored.sequence}", Double).result(5) == 6


async def test_submitting_without_an_agent_goes_through_the_door(stage: Stage) -> None:
    await stage.dispatch({"Double": ["alpha"]})
    await stage.work("alpha")

    assert await (await stage.client.submit(Double(n=8))).result(5) == 16


async def test_two_dispatchers_route_each_task_once(stage: Stage) -> None:
    await stage.dispatch({"Double": ["alpha"]})
    await stage.dispatch({"Double": ["alpha"]})
    await stage.work("alpha", slots=16)

    assert await stage.client.map(Double, range(100)) == [2 * n for n in range(100)]
    assert len(stage.handlers.started) == 100


async def test_a_task_nobody_takes_waits_for_an_agent_that_comes_later(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmesh.tasks.dispatch.RETRY_DELAY", 0.1)
    agents: dict[str, list[str]] = {}
    await stage.dispatch(agents)
    job = await stage.client.submit(Double(n=8))
    await stage.work("late")
    assert (await job.status()).state == "waiting"

    agents["Double"] = ["late"]

    assert await job.result(5) == 16


async def test_a_task_nobody_ever_takes_becomes_a_dead_letter_that_names_near_misses(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmesh.tasks.dispatch.RETRY_DELAY", 0.05)
    monkeypatch.setattr("agentmesh.tasks.dispatch.PATIENCE", 3)
    await stage.dispatch({"Doubles": ["alpha"]})

    job = await stage.client.submit(Double(n=8))

    with pytest.raises(TaskDeadError, match="no running agent takes tasks of type 'Double'; did you mean Doubles"):
        await job.result(5)


async def test_a_dispatcher_that_starts_later_routes_what_waits(stage: Stage) -> None:
    job = await stage.client.submit(Double(n=8))
    await stage.work("alpha")

    await stage.dispatch({"Double": ["alpha"]})

    assert await job.result(5) == 16


async def test_a_dispatcher_stops_while_tasks_keep_coming(stage: Stage) -> None:
    dispatcher: Dispatcher = await stage.dispatch({"Double": ["alpha"], "Nap": ["alpha"]})
    jobs = [await stage.client.submit(Nap()) for _ in range(20)]
    await dispatcher.stop()
    await stage.work("alpha")

    await stage.dispatch({"Nap": ["alpha"]})

    assert await asyncio.gather(*(job.result(10) for job in jobs)) == ["rested"] * 20


async def test_a_paused_worker_finishes_what_runs_and_takes_nothing_until_it_is_resumed(stage: Stage) -> None:
    worker = await stage.work(slots=1, prefetch=2)
    running = await stage.client.submit(Hold(), to="worker")
    await stage.handlers.has_started()
    held = await stage.client.submit(Double(n=1), to="worker")

    worker.pause()
    later = await stage.client.submit(Double(n=2), to="worker")
    stage.handlers.release.set()

    assert await running.result(5) == "released"
    with pytest.raises(DeadlineExceededError):
        await asyncio.gather(held.result(0.3), later.result(0.3))
    assert not worker.running
    worker.resume()
    assert [await held.result(5), await later.result(5)] == [2, 4]


async def test_pausing_costs_a_task_no_attempt_and_another_worker_takes_it(stage: Stage) -> None:
    paused = await stage.work(slots=1)
    paused.pause()
    job = await stage.client.submit(Once(how="ok"), to="worker")

    await stage.work(slots=1)

    assert await job.result(8) == "fine"
    assert stage.handlers.attempts(job.id) == [1]
