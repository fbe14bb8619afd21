"""Fences: an attempt that was replaced writes nothing any more, whatever was frozen, killed or forgotten."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentmesh.errors import AttemptReplacedError
from agentmesh.ids import new_id
from agentmesh.subjects import Subjects
from agentmesh.tasks import TaskClient, TaskContext
from agentmesh.tasks.fence import AttemptBody
from agentmesh.transport import Transport, TransportOptions
from tests.harness import Server, eventually
from tests.harness.fixtures import SpawnProcess
from tests.idempotency.fenced import AGENT, FencedStore, Write


@pytest.fixture
async def client(server: Server) -> AsyncIterator[TaskClient]:
    async with await Transport.connect(TransportOptions(url=server.url)) as transport:
        yield TaskClient(transport, Subjects(f"t-{new_id()}"))


def attempt(client: TaskClient, task_id: str, rank: int) -> TaskContext:
    """What the handler of an attempt has."""
    me = AttemptBody(task_id, rank, new_id(), f"node-{rank}")
    return TaskContext(client.transport, client.subjects, task_id, attempt=rank, me=me)


async def test_b3_a_worker_frozen_past_its_time_writes_nothing_to_a_fenced_store_any_more(
    client: TaskClient, spawn_process: SpawnProcess, server: Server, tmp_path: Path
) -> None:
    store = FencedStore(tmp_path / "store.db")
    arguments = (server.url, client.subjects.tenant, store.path)
    frozen = await spawn_process("tests.idempotency.fenced", *arguments)
    await frozen.line_matching("ready")
    job = await client.submit(Write(), to=AGENT)
    old = int((await frozen.line_matching(r"fence (\d+)"))[1])
    frozen.pause()
    other = await spawn_process("tests.idempotency.fenced", *arguments)
    new = int((await other.line_matching(r"fence (\d+)"))[1])

    frozen.resume()

    await eventually(lambda: len(store.entries()) == 4, what="both have written twice")
    late = [accepted for fence, pid, accepted in store.entries()[2:] if pid == frozen.pid]
    assert new > old
    assert late == [False]
    assert [accepted for _, pid, accepted in store.entries() if pid == other.pid] == [True, True]
    assert await job.result(timeout=10) in (old, new)  # the slot has one result; the store, one writer


async def test_a_fence_grows_with_the_attempts_and_stays_within_one(client: TaskClient) -> None:
    first, second, elsewhere = attempt(client, "t", 1), attempt(client, "t", 2), attempt(client, "u", 1)

    fences = [await first.fence(), await elsewhere.fence(), await second.fence()]

    assert fences == sorted(set(fences))
    assert await first.fence() == fences[0]
    assert await second.fence() == fences[2]


async def test_an_attempt_that_asks_too_late_gets_no_fence(client: TaskClient) -> None:
    zombie, successor = attempt(client, "t", 1), attempt(client, "t", 2)
    await successor.fence()

    with pytest.raises(AttemptReplacedError, match="replaced by one on node-2"):
        await zombie.fence()


async def test_a_broker_that_forgot_how_often_it_delivered_makes_no_fence_smaller(
    client: TaskClient, server: Server
) -> None:
    before = await attempt(client, "t", 1).fence()
    server.kill9()
    await server.start()

    with pytest.raises(AttemptReplacedError):
        await attempt(client, "t", 1).fence()  # the same number again: nobody can say who is later
    assert await attempt(client, "t", 2).fence() > before
