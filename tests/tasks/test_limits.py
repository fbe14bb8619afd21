"""Limits: never more at once than allowed, never more in a period, and nobody waits for what others are limited by."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from agentmesh.errors import DefinitionError
from agentmesh.limits import Limit, value_token
from agentmesh.messages import Task
from agentmesh.subjects import token
from agentmesh.tasks import Job
from agentmesh.tasks.layout import LIMITS
from agentmesh.tasks.use import Limits
from tests.harness import Process, Server, eventually
from tests.harness.fixtures import SpawnProcess
from tests.tasks.conftest import Stage
from tests.tasks.kinds import Double
from tests.tasks.limited import Log, OnePer, Paced, PacedPer, Two, Work

Start = Callable[..., Awaitable[Process]]


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "log")


@pytest.fixture
def start(spawn_process: SpawnProcess, own: Stage, log: Log, server: Server) -> Start:
    """Start a worker process."""

    async def start_one(slots: int = 8, ack_wait: float = 2.0, tenant: str = "", agent: str = "worker") -> Process:
        arguments = (server.url, tenant or own.subjects.tenant, str(log.path), str(slots), str(ack_wait), agent)
        process = await spawn_process("tests.tasks.limited", *arguments)
        await process.line_matching("^ready$", timeout=20)
        return process

    return start_one


async def three(start: Start, **options: Any) -> list[Process]:
    return list(await asyncio.gather(*(start(**options) for _ in range(3))))


async def submit(stage: Stage, tasks: list[Work], agent: str = "worker") -> list[Job[str]]:
    return list(await asyncio.gather(*(stage.client.submit(task, to=agent) for task in tasks)))


async def finish(jobs: list[Job[str]], timeout: float = 30.0) -> None:
    async with asyncio.timeout(timeout):
        assert await asyncio.gather(*(job.result() for job in jobs)) == ["done"] * len(jobs)


# ------------------------------------------------------------ exactness


async def test_l1_never_more_at_once_for_a_key_and_in_a_period_than_allowed_over_three_processes(
    own: Stage, start: Start, log: Log
) -> None:
    await three(start)
    begun = time.monotonic()

    tasks: list[Work] = [Two(key="two")] * 30 + [Paced(key="paced")] * 16
    await finish(await submit(own, tasks + [OnePer(key=f"k{n % 4}") for n in range(24)]))

    most = log.most("key")
    assert most.pop("two") == 2
    assert {most[f"k{n}"] for n in range(4)} == {1}
    assert log.most_within(1.0, "paced") == 5
    assert time.monotonic() - begun < 12.0  # it needs 3
    assert {mark.attempt for mark in log.starts()} == {1}
    assert len(log.starts()) == 70


@pytest.mark.slow
async def test_no_more_start_in_any_period_for_each_key_though_slots_are_limited_too(
    own: Stage, start: Start, log: Log
) -> None:
    await three(start)

    await finish(await submit(own, [PacedPer(key=f"k{n % 2}") for n in range(24)]))

    assert log.most_within(0.5, "k0") == log.most_within(0.5, "k1") == 3
    assert log.most()[""] <= 4


async def test_a_limit_of_the_tenant_covers_all_its_agents(own: Stage, start: Start, log: Log, server: Server) -> None:
    tenant = f"bounded-{own.subjects.tenant}"
    bounded = Stage(own.transport, tenant)
    await asyncio.gather(start(tenant=tenant, agent="one"), start(tenant=tenant, agent="two"))

    jobs = await submit(bounded, [Work(seconds=0.05) for _ in range(20)], "one")
    jobs += await submit(bounded, [Work(seconds=0.05) for _ in range(20)], "two")
    await finish(jobs)

    assert log.most() == {"": 3}


# ------------------------------------------------------------ faults


async def test_l2_the_slots_of_a_killed_worker_are_free_within_ack_wait(own: Stage, start: Start, log: Log) -> None:
    doomed = await start()
    await submit(own, [Two(seconds=60), Two(seconds=60)])
    await doomed.line_matching("^started", nth=2)
    await start()
    await submit(own, [Two(), Two()])
    await eventually(lambda: waiting_at(own))
    assert len(log.starts()) == 2

    doomed.kill9()
    killed_at = time.monotonic()
    await eventually(lambda: len(log.starts()) == 4, what="there is room for two others")

    # ack_wait after its last sign of life; what it had in hand itself comes back then, and has to try first
    assert log.starts()[3].time - killed_at < 2.0 + 2.5


@pytest.mark.slow
async def test_l2_the_slots_of_a_killed_worker_are_free_for_very_many_keys(own: Stage, start: Start, log: Log) -> None:
    doomed = await start(slots=200)
    await submit(own, [OnePer(key=f"k{n}", seconds=60) for n in range(200)])
    await doomed.line_matching("^started", nth=200, timeout=30)
    await start(slots=400)
    await submit(own, [OnePer(key=f"k{n}") for n in range(200)])
    await eventually(lambda: waiting_at(own))

    doomed.kill9()

    await eventually(lambda: len({mark.key for mark in log.starts()[200:]}) == 200, 20, what="each key goes on")


@pytest.mark.slow
async def test_l3_a_frozen_worker_loses_its_slots_and_is_counted_again_when_it_is_back(
    own: Stage, start: Start, log: Log
) -> None:
    frozen = await start(slots=2)
    await submit(own, [Two(seconds=8), Two(seconds=8)])
    await frozen.line_matching("^started", nth=2)
    frozen.pause()
    other = await start(slots=2)
    await other.line_matching("^started", nth=2)  # the same tasks: they count as lost
    assert {mark.pid for mark in log.starts()} == {frozen.pid, other.pid}
    frozen.resume()

    async def counted() -> bool:
        uses = await Limits(own.transport, own.subjects).ls()
        return [(use.used, use.allowed) for use in uses] == [(4, 2)]

    await eventually(counted, what="the frozen worker's handlers are counted again")


@pytest.mark.slow
async def test_l4_limits_hold_over_a_restart_of_the_broker(own: Stage, start: Start, log: Log, server: Server) -> None:
    await three(start)
    jobs = await submit(own, [Two(key="two", seconds=0.3), Paced(key="paced")] * 12)
    await eventually(lambda: len(log.starts()) > 4)

    server.kill9()
    await server.start()
    await finish(jobs, 40)

    assert log.most("key")["two"] == 2
    assert log.most_within(1.0, "paced") <= 5
    assert {mark.attempt for mark in log.starts() if mark.key == "paced"} == {1}


# ------------------------------------------------------------ waiting


class Gated(Task[str], max_attempts=1, limits=[Limit(concurrency=1, key="key")]):
    """Runs until it is released; one at once for each key, and never tried again."""

    key: str = "a"


class Plain(Task[str]):
    """Like `Gated`, without limits of its own."""

    key: str = ""


class Hall:
    """Handlers of `Gated` and `Plain` tasks."""

    def __init__(self) -> None:
        self.started: list[tuple[str, int]] = []
        """Key and attempt."""
        self.releases: dict[str, asyncio.Semaphore] = {}
        self.changed = asyncio.Event()

    async def run(self, task: Task[Any], ctx: Any) -> str:
        assert isinstance(task, Gated | Plain)
        self.started.append((task.key, ctx.attempt))
        self.changed.set()
        await self.releases.setdefault(task.key, asyncio.Semaphore(0)).acquire()
        return "done"

    def release(self, key: str, count: int = 1) -> None:
        for _ in range(count):
            self.releases.setdefault(key, asyncio.Semaphore(0)).release()

    async def has_started(self, count: int, timeout: float = 5.0) -> None:
        async with asyncio.timeout(timeout):
            while len(self.started) < count:
                self.changed.clear()
                await self.changed.wait()


async def test_l5_waiting_uses_no_attempt_and_leaves_no_trail(stage: Stage) -> None:
    hall = Hall()
    await stage.work(run=hall.run, types={"Gated": Gated}, slots=2)
    await stage.work(run=hall.run, types={"Gated": Gated}, slots=2)
    jobs = [await stage.client.submit(Gated(), to="worker") for _ in range(40)]
    await hall.has_started(1)
    await asyncio.sleep(2.0)  # most of them were sent away and came back several times

    hall.release("a", 40)

    async with asyncio.timeout(20):
        assert await asyncio.gather(*(job.result() for job in jobs)) == ["done"] * 40
    assert hall.started == [("a", 1)] * 40
    for job in jobs:
        # that it waits, that it begins, and perhaps that a worker had no slot free: not one for each look
        assert len(await stage.transport.messages("STREAMS", stage.subjects.stream(job.id))) <= 3


async def test_l6_nobody_waits_behind_tasks_of_another_key(stage: Stage) -> None:
    hall = Hall()
    await stage.work(run=hall.run, types={"Gated": Gated}, slots=2)
    for _ in range(300):
        await stage.client.submit(Gated(key="busy"), to="worker")
    await hall.has_started(1)
    begun = time.monotonic()

    await stage.client.submit(Gated(key="other"), to="worker")
    await hall.has_started(2)

    assert hall.started[1] == ("other", 1)
    assert time.monotonic() - begun < 2.0


async def test_a_waiting_task_starts_soon_after_there_is_room_at_another_worker(stage: Stage) -> None:
    first, second = Hall(), Hall()
    await stage.work(run=first.run, types={"Gated": Gated}, slots=1)
    await stage.client.submit(Gated(), to="worker")
    await first.has_started(1)
    await stage.work(run=second.run, types={"Gated": Gated}, slots=1)
    await stage.client.submit(Gated(), to="worker")
    await eventually(lambda: waiting_at(stage), what="the other worker has it")

    released_at = time.monotonic()
    first.release("a")
    await second.has_started(1)

    assert time.monotonic() - released_at < 0.5


async def waiting_at(stage: Stage) -> int:
    return sum(use.waiting for use in await Limits(stage.transport, stage.subjects).ls())


async def test_a_cancelled_task_that_waits_is_gone_at_once(stage: Stage) -> None:
    hall = Hall()
    await stage.work(run=hall.run, types={"Gated": Gated})
    await stage.client.submit(Gated(), to="worker")
    waiting = await stage.client.submit(Gated(), to="worker")
    await eventually(lambda: waiting_at(stage))

    await waiting.cancel()

    async def one_left() -> bool:
        return await stage.queued() == 1

    await eventually(one_left)
    hall.release("a")
    await stage.drained()
    assert len(hall.started) == 1


async def test_a_worker_that_stops_hands_over_what_waits_and_it_counts_no_attempt(stage: Stage) -> None:
    hall = Hall()
    await stage.work(run=hall.run, types={"Gated": Gated}, slots=1, node="holder")
    held = await stage.client.submit(Gated(), to="worker")
    await hall.has_started(1)
    leaving = await stage.work(run=hall.run, types={"Gated": Gated}, slots=1)
    waiting = await stage.client.submit(Gated(), to="worker")
    await eventually(lambda: waiting_at(stage))

    await leaving.stop(grace=0.0)
    hall.release("a", 2)

    assert await held.result(5) == "done"
    assert await waiting.result(10) == "done"
    assert hall.started == [("a", 1), ("a", 1)]


async def test_what_is_limited_and_who_waits_can_be_seen(stage: Stage) -> None:
    hall = Hall()
    await stage.work(run=hall.run, types={"Gated": Gated})
    for _ in range(4):
        await stage.client.submit(Gated(key="host.example"), to="worker")

    async def seen() -> bool:
        (use,) = await Limits(stage.transport, stage.subjects).ls()
        assert (use.scope, use.owner, use.kind, use.key) == ("task", "Gated", "slots", "host.example")
        return (use.used, use.allowed, use.waiting) == (1, 1, 3)

    await hall.has_started(1)
    await eventually(seen)


async def test_without_limits_nothing_is_kept_at_the_broker(own: Stage) -> None:
    await own.work()

    await (await own.client.submit(Double(n=2), to="worker")).result(5)

    assert await own.transport.stream_info(LIMITS.name) is None


async def test_limits_of_the_same_name_are_counted_together(stage: Stage) -> None:
    hall = Hall()
    shared = [Limit(concurrency=1, name="model")]
    types: dict[str, type[Task[Any]]] = {"Plain": Plain}
    await stage.work("one", run=hall.run, types=types, limits=shared)
    await stage.work("two", run=hall.run, types=types, limits=shared)
    await stage.client.submit(Plain(), to="one")
    await hall.has_started(1)

    await stage.client.submit(Plain(), to="two")
    await eventually(lambda: waiting_at(stage))

    assert len(hall.started) == 1
    hall.release("", 2)
    await hall.has_started(2)


# ------------------------------------------------------------ declaring


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({}, "give concurrency or rate"),
        ({"concurrency": 1, "rate": 1}, "give concurrency or rate"),
        ({"concurrency": -1}, "give concurrency or rate"),
        ({"rate": 1, "period": 0.0}, "period must be"),
        ({"rate": 1, "period": float("nan")}, "period must be"),
        ({"concurrency": 1, "key": "a b"}, "key must name"),
        ({"concurrency": 100_000}, "at most"),
    ],
)
def test_a_limit_that_cannot_be_says_why(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(DefinitionError, match=problem):
        Limit(**fields)


def test_a_task_without_the_field_of_its_limit_is_refused() -> None:
    with pytest.raises(DefinitionError, match="'host'; its fields: url"):

        class Keyless(Task[str], limits=[Limit(concurrency=1, key="host")]):
            url: str


def test_one_limit_declared_twice_is_refused() -> None:
    with pytest.raises(DefinitionError, match="two limits of one kind and key"):

        class Twice(Task[str], limits=[Limit(concurrency=1), Limit(concurrency=2)]):
            pass


def test_a_key_may_be_a_property_or_a_dotted_path() -> None:
    class Where(BaseModel):
        host: str

    class Fetch(Task[str], limits=[Limit(concurrency=1, key="port"), Limit(concurrency=2, key="where.host")]):
        where: Where

        @property
        def port(self) -> int:
            return 443

    limits = Fetch.policy().limits
    assert [limit.value(Fetch(where=Where(host="a.example"))) for limit in limits] == ["443", "a.example"]


@pytest.mark.parametrize("value", ["", "a.example", "x" * 500, "*", ">", "a b", "\n", "é", "\ud800"])
def test_any_value_of_a_key_is_a_place_of_its_own(value: str) -> None:
    assert token("limit", value_token(value))
    assert value_token(value) != value_token(value + "x")
