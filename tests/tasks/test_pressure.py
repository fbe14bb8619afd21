"""Back-pressure: a full queue says so, says when to try again, and is full for nobody else."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest

from agentmesh.errors import QueueFullError, error_from_wire, error_to_wire
from agentmesh.messages import Task
from agentmesh.tasks import layout
from agentmesh.tasks.pressure import LONGEST, NOBODY, SHORTEST
from agentmesh.transport import Transport, TransportOptions
from tests.harness import Server, eventually
from tests.tasks.conftest import OpenStage, Stage
from tests.tasks.kinds import Double, Hold, Nap
from tests.tasks.test_queues import bounds


class Cargo(Task[str]):
    """A task with a large body."""

    text: str = "x" * 100_000


async def fill(stage: Stage, task: Task[Any], most: int = 200) -> QueueFullError:
    """Submit until it is refused; the refusal."""
    for _ in range(most):
        try:
            await stage.client.submit(task, to="worker")
        except QueueFullError as error:
            return error
    raise AssertionError("the queue takes more than that")


async def test_a_refusal_comes_at_once_and_says_what_is_full_and_when_to_try_again(
    server: Server, open_stage: OpenStage
) -> None:
    stage = await open_stage(server.url)
    await layout.ensure_streams(stage.transport, 5)
    for number in range(5):
        await stage.client.submit(Double(n=number), to="worker")
    begun = time.monotonic()

    refusal = await fill(stage, Double(n=6), 1)

    assert time.monotonic() - begun < 0.1
    assert (refusal.queue, refusal.limit, refusal.unit) == (stage.subjects.tasks("worker", "normal"), 5, "tasks")
    assert refusal.retry_after == NOBODY  # no worker has ever run
    again = error_from_wire(error_to_wire(refusal), "worker")
    assert isinstance(again, QueueFullError)
    assert again.retry_after == refusal.retry_after
    assert "try again in 5 s" in str(again)


async def test_when_to_try_again_follows_from_how_fast_the_queue_drained(server: Server, open_stage: OpenStage) -> None:
    stage = await open_stage(server.url)
    await layout.ensure_streams(stage.transport, 20)
    await stage.work(slots=1)
    seen = []
    for _ in range(4):
        seen.append((await fill(stage, Nap(seconds=0.05))).retry_after)
        await asyncio.sleep(0.5)
    stuck = await fill(stage, Hold())

    assert all(SHORTEST <= seconds < 1.0 for seconds in seen[1:])  # about 20 a second
    assert SHORTEST <= stuck.retry_after <= LONGEST


async def test_submit_waits_for_room_as_long_as_it_is_told(server: Server, open_stage: OpenStage) -> None:
    stage = await open_stage(server.url)
    await layout.ensure_streams(stage.transport, 5)
    await stage.work(slots=1)
    await fill(stage, Hold())
    refusals: list[QueueFullError] = []
    begun = time.monotonic()
    with pytest.raises(QueueFullError):
        await stage.client.submit(Double(n=1), to="worker", patience=0.3)
    assert 0.3 <= time.monotonic() - begun < 1.5

    submitting = asyncio.create_task(
        stage.client.submit(Double(n=2), to="worker", patience=30, on_full=refusals.append)
    )
    await eventually(lambda: refusals)
    stage.handlers.release.set()

    assert await (await submitting).result(20) == 4


async def test_e2_large_tasks_of_one_tenant_leave_room_for_another(
    server: Server, open_stage: OpenStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds(monkeypatch, layout.TASKS, max_bytes=4_000_000)
    loud, quiet = await open_stage(server.url), await open_stage(server.url)
    refusal = await fill(loud, Cargo())
    assert (refusal.unit, refusal.limit) == ("bytes", 2_000_000)

    await quiet.work()

    assert await (await quiet.client.submit(Double(n=4), to="worker")).result(5) == 8


async def test_a_flood_of_large_tasks_at_once_leaves_room_too(
    server: Server, open_stage: OpenStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds(monkeypatch, layout.TASKS, max_bytes=4_000_000)
    loud, quiet = await open_stage(server.url), await open_stage(server.url)

    answers = await asyncio.gather(
        *(loud.client.submit(Cargo(), to="worker") for _ in range(100)), return_exceptions=True
    )

    assert {type(answer) for answer in answers if isinstance(answer, Exception)} == {QueueFullError}
    await quiet.client.submit(Double(n=4), to="worker")


async def test_the_bound_of_queues_is_set_for_everybody_and_surprises_nobody(
    server: Server, open_stage: OpenStage, caplog: pytest.LogCaptureFixture
) -> None:
    stage = await open_stage(server.url)
    await layout.ensure_streams(stage.transport)
    await layout.ensure_streams(stage.transport, 7)

    with caplog.at_level(logging.WARNING):
        async with await Transport.connect(TransportOptions(url=server.url)) as other:
            await layout.ensure_streams(other)

    assert not caplog.messages
    assert (await fill(stage, Double(n=1), 8)).limit == 7
