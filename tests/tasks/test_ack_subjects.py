"""D15: the broker's newer form of acknowledgement subjects changes nothing for tasks, streams and durable events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentmesh import Agent, Event, connect, handler
from agentmesh.errors import TaskDeadError
from agentmesh.tasks import Chunk
from tests.harness import Server, eventually
from tests.harness.fixtures import SpawnProcess
from tests.tasks.conftest import OpenStage
from tests.tasks.kinds import Fail, Hold, Story
from tests.tasks.workers import AGENT, Ledger, Work

ACK_WAIT = 1.0


@pytest.fixture
async def newer() -> AsyncIterator[Server]:
    """A server that has the feature switched on."""
    async with Server(extra_config="feature_flags { js_ack_fc_v2: true }\n") as server:
        yield server


async def test_d15_a_task_whose_worker_is_killed_starts_elsewhere(
    newer: Server, open_stage: OpenStage, spawn_process: SpawnProcess, tmp_path: Path
) -> None:
    stage, ledger = await open_stage(newer.url), Ledger(tmp_path / "ledger.db")
    for _ in range(2):
        worker = await spawn_process(
            "tests.tasks.workers", newer.url, stage.subjects.tenant, ledger.path, "1", str(ACK_WAIT)
        )
        await worker.line_matching("ready")
        if _ == 0:
            job = await stage.client.submit(Work(n=7, seconds=1.0), to=AGENT)
            await worker.line_matching("started")
            victim = worker

    victim.kill9()
    killed = time.time()

    assert await job.result(10) == 7
    (_, _, restarted) = ledger.starts(job.id)[-1]
    assert restarted - killed < ACK_WAIT + 1.0
    await stage.drained()


async def test_d15_retries_heartbeats_cancelling_and_streams_work(newer: Server, open_stage: OpenStage) -> None:
    stage = await open_stage(newer.url)
    await stage.work()
    words = [f"word{number}" for number in range(300)]

    story = await stage.client.submit(Story(words=words), to="worker")
    assert [event.data async for event in story if isinstance(event, Chunk)] == words

    with pytest.raises(TaskDeadError):
        await (await stage.client.submit(Fail(), to="worker")).result(10)

    held = await stage.client.submit(Hold(), to="worker")
    await asyncio.sleep(2.5 * ACK_WAIT)
    assert stage.handlers.attempts(held.id) == [1]
    assert await held.cancel()
    await stage.drained()


class Note(Event, durable=True):
    n: int


class Keeper(Agent):
    def __init__(self, seen: list[int]) -> None:
        self.seen = seen

    @handler
    async def keep(self, note: Note) -> None:
        self.seen.append(note.n)


async def test_d15_durable_events_come_in_order_and_once(newer: Server) -> None:
    seen: list[int] = []
    async with connect(newer.url) as mesh:
        ref = await mesh.spawn(Keeper, seen, name="keeper")
        for number in range(50):
            await ref.tell(Note(n=number))
        await eventually(lambda: len(seen) >= 50)
    assert seen == list(range(50))
