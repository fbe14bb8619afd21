"""Schedules of the settings, and the supervisor that moves what is due."""

from __future__ import annotations

import asyncio
import os
import signal
from datetime import timedelta
from pathlib import Path

import pytest

from agentmesh import Agent, Task, connect, handler
from agentmesh.errors import ConfigError
from agentmesh.ids import now
from agentmesh.up import BrokerPlan
from agentmesh.up.plan import SchedulePlan, dump, load
from tests.cli.conftest import start
from tests.harness import Server, eventually
from tests.up.conftest import ADDER, StartMesh

ADDING = SchedulePlan("adding", "Add", {"a": 1, "b": 2}, every=1, to="adder")
NIGHTLY = SchedulePlan("nightly", "Add", {"a": 1, "b": 2}, cron="0 0 3 * * *", tz="Europe/Berlin")


async def test_the_schedules_of_the_settings_are_made_and_fire(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(ADDER, schedules=(ADDING, NIGHTLY))
    client = await mesh.client()

    async def done() -> bool:
        return any(status.result == 3 for status in await client.tasks.ls("completed"))

    await eventually(done, 10, what="a firing is completed")
    assert {info.id: info.origin for info in await client.schedules.ls()} == {"adding": "up mesh", "nightly": "up mesh"}


async def test_schedules_follow_the_settings_and_nobody_else_s_are_touched(
    start_mesh: StartMesh, server: Server
) -> None:
    broker = BrokerPlan(url=server.url)
    mesh = await start_mesh(broker=broker, schedules=(ADDING, NIGHTLY))
    client = await mesh.client()
    await client.schedules.pause("nightly")
    await client.schedule(Add(a=1, b=1), every=3600, schedule_id="mine")
    await client.schedule(Add(a=1, b=1), every=3600, schedule_id="taken")
    await mesh.stop()

    later = SchedulePlan("nightly", "Add", {"a": 1, "b": 2}, cron="0 0 4 * * *")
    taken = SchedulePlan("taken", "Add", {"a": 5, "b": 2}, every=60)
    mesh = await start_mesh(broker=broker, schedules=(later, taken))

    client = await mesh.client()
    found = {info.id: (str(info.when), info.paused) for info in await client.schedules.ls()}
    assert found == {
        "nightly": ("0 0 4 * * *", True),
        "mine": ("@every 3600s", False),
        "taken": ("@every 3600s", False),
    }
    await mesh.stop()
    mesh = await start_mesh(broker=broker)  # no settings at all: nothing to follow
    assert len(await (await mesh.client()).schedules.ls()) == 3


async def test_a_schedule_that_the_broker_refuses_keeps_the_mesh_from_starting(start_mesh: StartMesh) -> None:
    with pytest.raises(ConfigError, match=r"schedules\.bad.*broker takes no such"):
        await start_mesh(schedules=(SchedulePlan("bad", "Add", cron="0 0 77 * * *"),))


async def test_a_plan_with_schedules_survives_the_way_into_another_process(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(schedules=(ADDING,))

    assert load(dump(mesh.plan)).schedules == (ADDING,)


class Add(Task[int]):
    a: int
    b: int


class Adder(Agent):
    @handler
    async def add(self, task: Add) -> int:
        return task.a + task.b


async def test_a_task_that_is_due_when_its_supervisor_is_killed_runs_once_another_one_is_there(
    server: Server, tmp_path: Path
) -> None:
    settings = f'[node]\ncount = 1\n[memory]\nenabled = false\n[broker]\nurl = "{server.url}"\n'
    (tmp_path / "mesh.toml").write_text(settings)
    first = await start("up", cwd=tmp_path)
    assert first.stdout is not None
    async with connect(server.url) as mesh:
        while b"ready in" not in await first.stdout.readline():
            pass
        await mesh.spawn(Adder)
        due = now() + timedelta(seconds=0.8)
        job = await mesh.submit(Add(a=1, b=2), to="adder", at=due)
        os.kill(first.pid, signal.SIGKILL)
        await first.wait()
        await asyncio.sleep((due - now()).total_seconds() + 0.3)  # an event of the world: the due time passes
        assert (await mesh.schedules.ls()) == []
        assert not job.is_decided

        second = await start("up", cwd=tmp_path)
        try:
            assert await job.result(20) == 3
            assert (await job.status()).attempt == 1
        finally:
            second.send_signal(signal.SIGINT)
            await second.wait()
