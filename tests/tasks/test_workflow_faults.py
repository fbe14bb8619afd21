"""Workflows survive what kills their processes and their broker: real processes, real signals."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest

from agentmesh.errors import TaskDeadError
from agentmesh.tasks import Job
from agentmesh.tasks.layout import RESULTS
from agentmesh.tasks.wire import decode_result
from tests.harness import Process, Server, eventually
from tests.harness.fixtures import SpawnProcess
from tests.tasks.conftest import OpenStage, Stage
from tests.tasks.flows import AGENT, JOURNEY, JOURNEY_EFFECTS, Booking, Journey, Ledger

ACK_WAIT = 1.0

StartWorker = Callable[[], Awaitable[Process]]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


@pytest.fixture
def start_worker(spawn_process: SpawnProcess, own: Stage, ledger: Ledger, server: Server) -> StartWorker:
    async def start() -> Process:
        process = await spawn_process(
            "tests.tasks.flows", server.url, own.subjects.tenant, str(ledger.path), str(ACK_WAIT)
        )
        await process.line_matching("ready", timeout=30)
        return process

    return start


async def decided_at(stage: Stage, job: Job[list[int]]) -> dict[str, float]:
    """When the outcome of each step of a workflow was stored, by the step's name."""
    found = {}
    for stored in await stage.transport.messages(RESULTS, stage.subjects.all_results(), limit=500):
        body = decode_result(stored.data, "")
        if body.parent_id == job.id:
            found[body.step] = datetime.fromisoformat(str(body.timestamp)).timestamp()
    return found


async def all_is_right(stage: Stage, ledger: Ledger, job: Job[list[int]], kills: int) -> None:
    """Each effect happened, and again only where a process was killed before its outcome was stored."""
    counts = ledger.counts()
    assert set(counts) == JOURNEY_EFFECTS
    assert sum(counts.values()) - len(counts) <= kills * 2  # two may be under way at a time
    stored = await decided_at(stage, job)
    assert {"a", "b", "d", "e", "f"} <= set(stored)
    late = [
        effect
        for effect in ledger.effects()
        if (name := effect.key.rpartition("/")[2]) in stored and effect.at > stored[name]
    ]
    assert not late, "a step ran after its outcome was stored"
    per_name: dict[str, set[str]] = {}
    for effect in ledger.effects():
        per_name.setdefault(effect.key.rpartition("/")[2], set()).add(effect.key)
    assert all(len(keys) == 1 for keys in per_name.values()), "a repeated effect has the same key"


KILLS = 10


@pytest.mark.slow
async def test_a_workflow_killed_at_ten_random_points_repeats_no_decided_step(
    own: Stage, start_worker: StartWorker, ledger: Ledger
) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    dice = random.Random(seed)
    workers = list(await asyncio.gather(start_worker(), start_worker()))
    job = await own.client.submit(Journey(seconds=1.5), to=AGENT)
    done = 0
    for _ in range(KILLS):
        await asyncio.sleep(dice.uniform(0.05, 2 * ACK_WAIT))
        if job.is_decided:
            break
        done += 1
        victim = workers.pop(dice.randrange(len(workers)))
        victim.kill9()
        await victim.wait()
        workers.append(await start_worker())
    print(f"{done} kills")
    assert await job.result(60) == JOURNEY
    await all_is_right(own, ledger, job, done)


async def test_a_step_killed_between_effect_and_outcome_repeats_under_the_same_key(
    own: Stage, start_worker: StartWorker, ledger: Ledger
) -> None:
    await asyncio.gather(start_worker(), start_worker())
    job = await own.client.submit(Journey(seconds=0.02, die_in="b"), to=AGENT)
    assert await job.result(30) == JOURNEY
    assert ledger.counts() == dict.fromkeys(JOURNEY_EFFECTS, 1) | {"b": 2}
    await all_is_right(own, ledger, job, 1)


def has_effects(ledger: Ledger, number: int) -> bool:
    return len(ledger.effects()) >= number


@pytest.mark.slow
async def test_a_workflow_goes_on_when_the_broker_is_killed_in_its_middle(
    own: Stage, start_worker: StartWorker, ledger: Ledger, server: Server, open_stage: OpenStage
) -> None:
    await start_worker()
    job = await own.client.submit(Journey(seconds=0.3), to=AGENT)
    for effects in (2, 5):
        await eventually(partial(has_effects, ledger, effects), 20)
        server.kill9()
        await asyncio.sleep(0.3)
        await server.start()
    assert await job.result(40) == JOURNEY
    await all_is_right(own, ledger, job, 0)


@pytest.mark.slow
async def test_undoing_goes_on_when_its_process_is_killed(
    own: Stage, start_worker: StartWorker, ledger: Ledger
) -> None:
    first, second = await start_worker(), await start_worker()
    job = await own.client.submit(Booking(), to=AGENT)
    await eventually(lambda: "undo-b-begins" in ledger.names(), 20)
    pid = ledger.effects()[-1].pid
    (first if first.pid == pid else second).kill9()

    with pytest.raises(TaskDeadError, match="undone: c, b, a"):
        await job.result(30)

    assert [name for name in ledger.names() if not name.endswith("begins")] == [
        *("a", "b", "c"),
        *("undo-c", "undo-b", "undo-a"),
    ]


@pytest.mark.slow
async def test_a_cancelled_workflow_is_undone_though_its_process_was_killed(
    own: Stage, start_worker: StartWorker, ledger: Ledger
) -> None:
    worker = await start_worker()
    job = await own.client.submit(Booking(seconds=0.5), to=AGENT)
    await eventually(lambda: "undo-c-begins" in ledger.names(), 20)
    worker.kill9()
    await worker.wait()
    assert await job.cancel()
    await start_worker()

    await own.drained(30)
    assert ledger.names()[-1] == "undo-a"
    assert ledger.counts()["undo-c-begins"] == 2
    assert (await own.client.get(job.id)).state == "cancelled"


@pytest.mark.slow
async def test_a_workflow_whose_process_was_only_frozen_comes_to_one_result(
    own: Stage, start_worker: StartWorker, ledger: Ledger
) -> None:
    workers = {process.pid: process for process in await asyncio.gather(start_worker(), start_worker())}
    job = await own.client.submit(Journey(seconds=0.4), to=AGENT)
    await eventually(partial(has_effects, ledger, 1), 20)
    frozen = workers[ledger.effects()[0].pid]
    frozen.pause()
    await eventually(partial(has_effects, ledger, 3), 20)
    frozen.resume()

    assert await job.result(30) == JOURNEY
    counts = await own.transport.subjects_of(RESULTS, own.subjects.all_results())
    assert set(counts.values()) == {1}
    assert set(ledger.counts()) == JOURNEY_EFFECTS
    assert {step.state for step in await job.steps()} == {"completed"}
    assert (await (await own.client.submit(Journey(seconds=0.02), to=AGENT)).result(20)) == JOURNEY
