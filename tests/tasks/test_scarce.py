"""Tasks where memory or the broker's room runs out."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from agentmesh.brokercheck import weaknesses
from agentmesh.errors import TaskDeadError
from agentmesh.tasks.layout import RESULTS, SPECS
from agentmesh.transport import Transport
from tests.harness import Server, eventually
from tests.harness.fixtures import SpawnProcess
from tests.tasks.conftest import Stage
from tests.tasks.kinds import Big
from tests.tasks.workers import AGENT, Glutton, Ledger, Work

ROOM = 64 * 1024


async def test_b11_a_handler_out_of_memory_costs_an_attempt_and_its_neighbours_go_on(
    own: Stage, server: Server, spawn_process: SpawnProcess, tmp_path: Path
) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    worker = await spawn_process(
        "tests.tasks.workers", server.url, own.subjects.tenant, ledger.path, "4", "1.0", "little memory"
    )
    await worker.line_matching("ready")
    jobs = [await own.client.submit(Work(n=number, seconds=0.3), to=AGENT) for number in range(3)]

    glutton = await own.client.submit(Glutton(), to=AGENT)

    with pytest.raises(TaskDeadError):
        await glutton.result(15)
    assert [await job.result(10) for job in jobs] == [0, 1, 2]
    letter = await own.client.dead_show(glutton.id)
    assert [failure.error_type for failure in letter.history] == ["MemoryError"] * 3
    assert len(ledger.starts(glutton.id)) == 3
    assert worker.returncode is None


async def test_e9_without_room_for_results_the_queue_waits_and_nothing_is_lost(
    own: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    await own.client.ensure()
    await set_room(own.transport, ROOM)
    await own.work(slots=2)
    jobs = [await own.client.submit(Big(size=20_000), to="worker") for _ in range(8)]

    await eventually(lambda: "cannot be stored, trying again" in caplog.text, 10)

    assert "RESULTS is" in " ".join(weakness.says for weakness in await weaknesses(own.transport))
    held = await own.queued()
    assert held >= 5
    with caplog.at_level(logging.CRITICAL):
        await asyncio.sleep(1.5)  # longer than ack_wait: nobody gives up, nothing is run again
    assert await own.queued() == held

    await set_room(own.transport, 100 * ROOM)

    async with asyncio.timeout(15):
        assert [len(await job.result()) for job in jobs] == [20_000] * 8
    await own.drained()
    assert len(own.handlers.started) == 8


async def set_room(transport: Transport, max_bytes: int) -> None:
    """What an operator does: `nats stream edit RESULTS --max-bytes`."""
    (spec,) = (spec for spec in SPECS if spec.name == RESULTS)
    await transport._api.call(f"STREAM.UPDATE.{RESULTS}", {**spec.config(1), "max_bytes": max_bytes})
