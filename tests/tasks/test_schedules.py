"""Delayed and repeating tasks: kept and fired by the broker, moved into the queues by any number of movers."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agentmesh.errors import (
    DuplicateScheduleError,
    InvalidNameError,
    InvalidScheduleError,
    NoSuchScheduleError,
    TaskCancelledError,
)
from agentmesh.ids import now
from agentmesh.tasks import layout
from agentmesh.tasks.mover import firing_id
from agentmesh.transport import Delivery, Transport, TransportOptions
from agentmesh.when import repeating
from tests.harness import Cluster, Server, eventually
from tests.tasks.conftest import OpenStage, Stage
from tests.tasks.kinds import Double, Hold

# ---------------------------------------------------------------- delayed


async def test_a_delayed_task_runs_once_when_it_is_due(stage: Stage) -> None:
    await stage.work()
    await stage.move()
    submitted = asyncio.get_running_loop().time()

    job = await stage.client.submit(Double(n=4), to="worker", delay=0.6, task_id="later")

    assert job.id == "later"
    status = await job.status()
    assert (status.state, status.due_at is not None) == ("scheduled", True)
    assert await job.result(5) == 8
    assert stage.handlers.started[0][2] - submitted >= 0.6
    assert stage.handlers.attempts("later") == [1]
    assert await stage.client.schedules.ls() == []


async def test_a_delayed_task_without_an_address_goes_through_the_door(stage: Stage) -> None:
    await stage.work()
    await stage.move()
    await stage.dispatch({"Double": ["worker"]})

    job = await stage.client.submit(Double(n=4), at=now() + timedelta(seconds=0.3))

    assert await job.result(5) == 8


async def test_a_delayed_task_that_is_cancelled_before_it_is_due_never_starts(stage: Stage) -> None:
    await stage.work()
    await stage.move()
    job = await stage.client.submit(Double(n=4), to="worker", delay=0.5)
    marker = await stage.client.submit(Double(n=1), to="worker", delay=0.8)

    assert await job.cancel()
    assert [info.id for info in await stage.client.schedules.ls()] == [marker.id]
    await marker.result(5)

    assert stage.handlers.attempts(job.id) == []
    with pytest.raises(TaskCancelledError):
        await job.result(1)


async def test_removing_a_delayed_task_cancels_it(stage: Stage) -> None:
    job = await stage.client.submit(Double(n=4), to="worker", delay=60)

    await stage.client.schedules.remove(job.id)

    with pytest.raises(TaskCancelledError):
        await job.result(1)


async def test_a_delayed_task_submitted_twice_runs_once(stage: Stage) -> None:
    await stage.work()
    await stage.move()

    jobs = [await stage.client.submit(Double(n=4), to="worker", delay=0.4, task_id="same") for _ in range(3)]

    assert [await job.result(5) for job in jobs] == [8, 8, 8]
    again = await stage.client.submit(Double(n=4), to="worker", delay=0.1, task_id="same")
    assert await again.result(5) == 8
    await stage.drained()
    assert stage.handlers.attempts("same") == [1]


async def test_the_deadline_of_a_delayed_task_counts_from_when_it_is_due(stage: Stage) -> None:
    await stage.work()
    await stage.move()

    job = await stage.client.submit(Double(n=4), to="worker", delay=0.6, deadline=0.5)

    assert await job.result(5) == 8


async def test_e4_a_delayed_task_runs_once_although_the_broker_was_down_when_it_was_due(
    own: Stage, server: Server
) -> None:
    await own.work()
    await own.move()
    due = now() + timedelta(seconds=0.7)
    job = await own.client.submit(Double(n=4), to="worker", at=due)
    server.kill9()
    await asyncio.sleep((due - now()).total_seconds() + 0.2)  # an event of the world: the due time passes

    await server.start()
    back = asyncio.get_running_loop().time()
    await own.handlers.has_started(timeout=10)

    assert own.handlers.started[0][2] - back <= 2.0
    assert await job.result(5) == 8
    await own.drained()
    assert own.handlers.attempts(job.id) == [1]


async def test_what_was_due_while_no_mover_ran_is_moved_by_the_next_one(stage: Stage) -> None:
    await stage.work()
    job = await stage.client.submit(Double(n=4), to="worker", delay=0.1)
    await eventually(lambda: _waiting(stage), what="it is due")
    assert (await job.status()).state == "waiting"

    await stage.move()

    assert await job.result(5) == 8


async def test_a_mover_that_dies_after_moving_leaves_no_second_run(stage: Stage, nats_server: Any) -> None:
    async with await Transport.connect(TransportOptions(url=nats_server.url)) as dying:
        moved = asyncio.Event()

        async def never(delivery: Delivery) -> bool:
            moved.set()
            return False

        dying.ack = never  # type: ignore[method-assign]
        mover = await stage.move(dying)
        await stage.work()
        job = await stage.client.submit(Double(n=4), to="worker", delay=0.1)
        assert await job.result(5) == 8
        await moved.wait()
        await mover.stop()

        await stage.move()
        await eventually(lambda: _nothing_waits(stage), what="the firing was taken")
        await stage.drained()

    assert stage.handlers.attempts(job.id) == [1]


async def test_while_a_queue_is_full_what_is_due_waits(server: Server, open_stage: OpenStage) -> None:
    stage = await open_stage(server.url)
    small = dataclasses.replace(next(s for s in layout.SPECS if s.name == layout.TASKS), max_msgs_per_subject=1)
    await stage.transport.ensure_stream(small)
    await stage.move()
    first = await stage.client.submit(Double(n=1), to="worker")
    delayed = await stage.client.submit(Double(n=2), to="worker", delay=0.1)
    await eventually(lambda: _waiting(stage), what="it is due, and finds no room")

    await stage.work()

    assert [await first.result(5), await delayed.result(5)] == [2, 4]


async def test_a_mover_outlives_the_deletion_of_its_stream(own: Stage) -> None:
    await own.work()
    await own.move()
    await own.transport.delete_stream(layout.SCHED)

    async def is_back() -> bool:
        return await own.transport.consumer_info(layout.SCHED, own.subjects.due_consumer()) is not None

    await eventually(is_back, 15, what="the mover has made it again")
    job = await own.client.submit(Double(n=4), to="worker", delay=0.2)
    assert await job.result(5) == 8


async def test_garbage_among_what_is_due_is_a_dead_letter(stage: Stage) -> None:
    await stage.move()
    garbage = (
        b"\xff",
        b"[]",
        b"{}",
        b'{"schedule_id": "a b", "task_type": "X", "when": "@at x"}',
        b'{"schedule_id": "a", "task_type": "X", "when": "@hourly", "deadline_after": 1e300}',
        b'{"schedule_id": "a", "task_type": "X", "when": "@hourly", "agent_id": "a.b"}',
    )
    for data in garbage:
        await stage.transport.publish_durable(stage.subjects.due(), data)

    async def buried() -> bool:
        return len(await stage.client.dead_ls()) == len(garbage)

    await eventually(buried, what="all are dead letters")
    await eventually(lambda: _nothing_waits(stage))


async def test_a_foreign_client_schedules_with_a_plain_document(stage: Stage) -> None:
    await stage.work()
    await stage.move()
    document = (
        b'{"schedule_id": "foreign", "when": "@every 1000ms", "agent_id": "worker", "task_type": "Double",'
        b' "parameters": {"n": 3}, "deadline_after": 60, "colour": "red"}'
    )
    headers = {"Nats-Schedule": "@every 1000ms", "Nats-Schedule-Target": stage.subjects.due()}
    await stage.transport.publish_durable(stage.subjects.schedule("foreign"), document, headers=headers)

    await stage.handlers.has_started(1)

    (info,) = await stage.client.schedules.ls()
    assert (str(info.when), info.next_runs()) == ("@every 1000ms", [])
    await stage.client.schedules.remove("foreign")


async def _waiting(stage: Stage) -> int:
    counts = await stage.transport.subjects_of(layout.SCHED, stage.subjects.due())
    return sum(counts.values())


async def _nothing_waits(stage: Stage) -> bool:
    return await _waiting(stage) == 0


# ---------------------------------------------------------------- repeating


async def test_a_repeating_task_runs_once_per_firing_with_two_movers(stage: Stage, nats_server: Any) -> None:
    await stage.work()
    async with await Transport.connect(TransportOptions(url=nats_server.url)) as other:
        await stage.move()
        await stage.move(other)

        schedule = await stage.client.schedule(Double(n=2), every=1, to="worker", schedule_id="tick")
        await stage.handlers.has_started(3)
        await schedule.remove()

    ids = [task_id for task_id, _, _ in stage.handlers.started]
    assert len(set(ids)) == len(ids) <= 4
    assert all(task_id.startswith("tick-2") for task_id in ids)
    assert (await stage.client.get(ids[0])).result == 4


@pytest.mark.slow
async def test_a_repeating_task_goes_on_after_the_broker_was_killed(own: Stage, server: Server) -> None:
    await own.work()
    await own.move()
    await own.client.schedule(Double(n=2), cron="* * * * * *", to="worker", schedule_id="tick")
    await own.handlers.has_started(1)
    server.kill9()
    await server.start()
    before = len(own.handlers.started)

    await own.handlers.has_started(before + 2, timeout=10)

    ids = [task_id for task_id, _, _ in own.handlers.started]
    assert len(set(ids)) == len(ids)


@pytest.mark.slow
async def test_a_cluster_goes_on_firing_when_the_node_that_fires_is_killed() -> None:
    async with Cluster() as cluster:
        stage = Stage(await Transport.connect(TransportOptions(url=cluster.urls, replicas=3)))
        await stage.work()
        await stage.move()
        await stage.client.schedule(Double(n=2), every=1, to="worker", schedule_id="tick")
        delayed = await stage.client.submit(Double(n=4), to="worker", delay=4)
        await stage.handlers.has_started(1, timeout=20)
        info = await stage.transport._api.call(f"STREAM.INFO.{layout.SCHED}")

        cluster.named(info["cluster"]["leader"]).kill9()
        before = len(stage.handlers.started)
        await stage.handlers.has_started(before + 3, timeout=40)

        assert await delayed.result(20) == 8
        ids = [task_id for task_id, _, _ in stage.handlers.started]
        assert len(set(ids)) == len(ids)
        await stage.close()


@pytest.mark.slow
async def test_firings_missed_while_the_broker_was_stopped_are_made_up_for_once(own: Stage, server: Server) -> None:
    await own.work()
    await own.move()
    await own.client.schedule(Double(n=2), every=3, to="worker", schedule_id="tick")
    await own.handlers.has_started(1)
    await server.terminate()
    await asyncio.sleep(6.5)  # an event of the world: two times pass

    await server.start()
    back = asyncio.get_running_loop().time()
    await own.handlers.has_started(2, timeout=10)
    made_up = own.handlers.started[1][2]
    await own.handlers.has_started(3, timeout=10)

    assert made_up - back < 3.0  # the next look of a connection that comes back, and the firing
    # The third of its times, however long the connection took: a second one made up would have come before.
    assert own.handlers.started[2][2] - own.handlers.started[0][2] > 8.5


@pytest.mark.slow
async def test_firings_that_pile_up_are_run_once_not_in_a_burst(stage: Stage) -> None:
    schedule = await stage.client.schedule(Double(n=2), every=1, to="worker", schedule_id="tick")

    async def piled_up() -> bool:
        return await _waiting(stage) >= 3

    await eventually(piled_up, what="three firings wait")
    await schedule.pause()
    await stage.move()
    await eventually(lambda: _nothing_waits(stage))
    await stage.work()
    await stage.drained()

    assert len(stage.handlers.started) == 1


async def test_a_paused_schedule_fires_nothing_until_it_is_resumed(stage: Stage) -> None:
    await stage.work()
    await stage.move()
    schedule = await stage.client.schedule(Double(n=2), every=1, to="worker", schedule_id="tick")
    await stage.handlers.has_started(1)

    await schedule.pause()
    await eventually(lambda: _nothing_waits(stage))
    await stage.drained()
    before = len(stage.handlers.started)
    marker = await stage.client.submit(Double(n=1), to="worker", delay=1.3)
    await marker.result(5)

    assert len(stage.handlers.started) == before + 1
    assert schedule.info.paused
    assert schedule.next_runs() == []
    await schedule.resume()
    assert not (await stage.client.schedules.get("tick")).info.paused
    await stage.handlers.has_started(before + 2)


async def test_a_delayed_task_that_was_paused_past_its_time_runs_when_it_is_resumed(stage: Stage) -> None:
    await stage.work()
    await stage.move()
    job = await stage.client.submit(Double(n=2), to="worker", delay=0.4)
    schedule = await stage.client.schedules.pause(job.id)
    marker = await stage.client.submit(Double(n=1), to="worker", delay=0.6)
    await marker.result(5)
    assert not job.is_decided
    assert (await job.status()).reason == "paused"

    await schedule.resume()

    assert await job.result(5) == 4


async def test_scheduling_the_same_again_changes_nothing_and_something_else_is_refused(stage: Stage) -> None:
    schedule = stage.client.schedule
    first = await schedule(Double(n=2), cron="0 0 9 * * *", tz="Europe/Berlin", schedule_id="nightly")

    same = await schedule(Double(n=2), cron="0 0 9 * * *", tz="Europe/Berlin", schedule_id="nightly", replace=True)
    assert same.info == first.info
    with pytest.raises(DuplicateScheduleError):
        await schedule(Double(n=3), cron="0 0 9 * * *", tz="Europe/Berlin", schedule_id="nightly")

    await first.pause()
    changed = await schedule(Double(n=3), cron="0 0 9 * * *", schedule_id="nightly", replace=True)
    assert (changed.info.parameters, changed.info.when.time_zone, changed.info.paused) == ({"n": 3}, "", True)


async def test_a_schedule_does_not_replace_a_delayed_task(stage: Stage) -> None:
    job = await stage.client.submit(Double(n=2), to="worker", delay=60)

    with pytest.raises(DuplicateScheduleError):
        await stage.client.schedule(Double(n=2), every=60, schedule_id=job.id, replace=True)


async def test_schedules_are_listed_and_removed_by_id(stage: Stage, open_stage: OpenStage, nats_server: Any) -> None:
    stranger = await open_stage(nats_server.url)
    await stranger.client.schedule(Double(n=2), every=60, schedule_id="of-somebody-else")
    assert await stage.client.schedules.ls() == []
    await stage.client.schedule(Double(n=2), every=60, to="worker", priority="high", schedule_id="minutely")
    job = await stage.client.submit(Double(n=2), to="worker", delay=60)

    schedules = stage.client.schedules
    assert [info.id for info in await schedules.ls()] == ["minutely", job.id]
    assert [info.id for info in await schedules.ls("repeating")] == ["minutely"]
    assert [status.task_id for status in await stage.client.ls("scheduled")] == [job.id]
    assert (await schedules.get("minutely")).info.priority == "high"

    await schedules.remove("minutely")
    with pytest.raises(NoSuchScheduleError, match="minutely"):
        await schedules.get("minutely")
    with pytest.raises(NoSuchScheduleError, match=job.id):
        await schedules.pause(job.id[:-1])


# ---------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ({"cron": "* * * * *"}, "seconds come first"),
        ({"cron": "0 0 9 * * * *"}, "six fields"),
        ({"cron": "@every 5s"}, "six fields"),
        ({"cron": "0 0 9 * * *\r\nNats-Rollup: all"}, "six fields"),
        ({"cron": "0 0 25 * * *"}, "broker takes no such"),
        ({"cron": "0 0 0 30 2 *"}, "never comes true"),
        ({"cron": ""}, "six fields"),
        ({"cron": "0 0 9 * * *", "tz": "Nowhere/Atlantis"}, "no such time zone"),
        ({"cron": "0 0 9 * * *", "tz": "a b"}, "such as Europe/Berlin"),
        ({"cron": "0 0 9 * * *", "tz": ""}, "such as Europe/Berlin"),
        ({"every": 0.5}, "1 or more"),
        ({"every": -1}, "1 or more"),
        ({"every": math.nan}, "1 or more"),
        ({"every": 1e12}, "ten years"),
        ({"every": 1.5}, "whole seconds"),
        ({"every": 5, "tz": "UTC"}, "no time zone"),
        ({"every": 5, "cron": "@daily"}, "either every or cron"),
        ({}, "either every or cron"),
        ({"every": 5, "schedule_id": "x" * 45}, "44 characters"),
        ({"every": 5, "deadline": math.nan}, "more than 0"),
        ({"every": 5, "deadline": 1e300}, "ten years"),
    ],
)
async def test_a_rhythm_that_cannot_be_is_refused(stage: Stage, how: dict[str, Any], what: str) -> None:
    with pytest.raises(InvalidScheduleError, match=what):
        await stage.client.schedule(Double(n=1), **how)
    assert await stage.client.schedules.ls() == []


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ({"at": datetime.now(UTC) - timedelta(seconds=1)}, "in the past"),
        ({"at": datetime(2999, 1, 1, tzinfo=UTC)}, "ten years"),
        ({"at": datetime(2999, 1, 1)}, "no time zone"),
        ({"delay": -1}, "0 or more"),
        ({"delay": math.inf}, "0 or more"),
        ({"delay": math.nan}, "0 or more"),
        ({"delay": 1, "at": datetime(2999, 1, 1, tzinfo=UTC)}, "either delay or at"),
    ],
)
async def test_a_moment_that_cannot_be_is_refused(stage: Stage, how: dict[str, Any], what: str) -> None:
    with pytest.raises(InvalidScheduleError, match=what):
        await stage.client.submit(Hold(), to="worker", **how)
    assert await stage.client.schedules.ls() == []


@pytest.mark.parametrize("names", [{"schedule_id": "a b"}, {"to": "a.b"}, {"to": "a", "priority": "urgent"}])
async def test_g1_a_hostile_name_in_a_schedule_is_refused(stage: Stage, names: dict[str, Any]) -> None:
    with pytest.raises(InvalidNameError):
        await stage.client.schedule(Double(n=1), every=5, **names)
    assert await stage.client.schedules.ls() == []


# ---------------------------------------------------------------- next runs


def test_the_next_runs_of_an_interval_follow_the_time_it_was_stored() -> None:
    since = now() - timedelta(seconds=125)

    runs = repeating(every=60).next_runs(3, since)

    assert [round((run - since).total_seconds()) for run in runs] == [180, 240, 300]


def test_the_next_runs_of_a_cron_expression_are_in_its_time_zone() -> None:
    pytest.importorskip("cronsim")

    runs = repeating(cron="0 30 9 * * MON-FRI", tz="Asia/Tokyo").next_runs(5, now())

    assert [(run.hour, run.minute) for run in runs] == [(0, 30)] * 5
    assert all(run > now() and run.weekday() < 5 for run in runs)
    assert len(repeating(cron="@hourly").next_runs(2, now())) == 2


def test_the_id_of_a_firing_is_a_task_id_that_tells_the_time() -> None:
    assert firing_id("nightly", datetime(2026, 11, 21, 3, 0, 0, 4000, tzinfo=UTC)) == "nightly-20261121T030000004"
