"""Limits: never more at once than allowed, never more in a period, and nobody waits for what others are limited by."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agentmesh.tasks import Job
from tests.harness import Process, Server
from tests.harness.fixtures import SpawnProcess
from tests.tasks.conftest import Stage
from tests.tasks.limited import Log, OnePer, Paced, Two, Work

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


async def test_no_more_tasks_run_at_once_than_allowed_over_three_processes(own: Stage, start: Start, log: Log) -> None:
    await three(start)

    await finish(await submit(own, [Two() for _ in range(60)]))

    assert log.most() == {"": 2}
    assert len(log.starts()) == 60
    assert {mark.attempt for mark in log.starts()} == {1}


async def test_no_more_tasks_run_at_once_than_allowed_for_each_key(own: Stage, start: Start, log: Log) -> None:
    await three(start)

    await finish(await submit(own, [OnePer(key=f"k{n % 4}") for n in range(60)]))

    assert log.most("key") == {f"k{n}": 1 for n in range(4)}
    assert log.most()[""] > 1


async def test_no_more_tasks_start_in_any_period_than_allowed(own: Stage, start: Start, log: Log) -> None:
    await three(start)
    begun = time.monotonic()

    await finish(await submit(own, [Paced() for _ in range(21)]))

    assert log.most_within(1.0) == 5
    assert time.monotonic() - begun < 10.0  # it needs 4
