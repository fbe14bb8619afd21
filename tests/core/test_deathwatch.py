"""Whoever watches an agent is told of the end of each of its replicas."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable

from agentmesh import Agent, Event, Mesh, Request, Terminated, handler
from tests.harness import eventually
from tests.harness.fixtures import SpawnProcess

HOSTING = """
import asyncio, sys
import agentmesh
from tests.core.test_deathwatch import Frail

async def main():
    mesh = await agentmesh.connect(sys.argv[1], tenant=sys.argv[2], name="elsewhere")
    await mesh.spawn(Frail)
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


class Fall(Event):
    pass


class Look(Request[list[Terminated]]):
    pass


class Begin(Request[None]):
    pass


class End(Request[None]):
    pass


class Frail(Agent):
    restart = "temporary"

    @handler
    async def fall(self, event: Fall) -> None:
        raise ValueError("fallen")


class Sturdy(Agent):
    @handler
    async def fall(self, event: Fall) -> None:
        raise ValueError("fallen")


class Widow(Agent):
    mailbox_size = 1

    def __init__(self, heard: list[Terminated]) -> None:
        self.heard = heard

    @handler
    async def begin(self, message: Begin) -> None:
        await self.mesh.watch("frail")

    @handler
    async def end(self, message: End) -> None:
        await self.mesh.unwatch("frail")

    @handler
    async def fall(self, event: Fall) -> None:
        raise ValueError("grief")

    @handler
    async def gone(self, event: Terminated) -> None:
        self.heard.append(event)


async def test_a_stop_a_failure_and_an_absence_are_told(mesh: Mesh) -> None:
    await mesh.spawn(Frail, replicas=2)
    async with asyncio.timeout(10), mesh.watch("frail") as watch:
        await mesh.stop("frail")
        ends = [await anext(watch), await anext(watch)]
        assert [(end.replica, end.node, end.reason) for end in ends] == [
            (1, mesh.identity, "it was stopped"),
            (2, mesh.identity, "it was stopped"),
        ]
        ref = await mesh.spawn(Frail)
        await ref.tell(Fall(), timeout=2)
        end = await anext(watch)
        assert (end.replica, end.left, end.reason) == (1, 0, "it failed: ValueError: fallen")
    async with asyncio.timeout(5), mesh.watch("nobody") as watch:
        assert (await anext(watch)).reason == "it is not there"


async def test_a_restart_is_no_end_and_what_is_left_is_told(mesh: Mesh) -> None:
    ref = await mesh.spawn(Sturdy, replicas=2)
    async with asyncio.timeout(10):
        watch = await mesh.watch(ref)
        await ref.tell(Fall(), timeout=2)
        await eventually(_restarted(mesh))
        host = mesh._host
        assert host is not None
        await host.stop_agent("sturdy", replica=2)
        end = await anext(watch)
        assert (end.replica, end.left) == (2, 1)
        await watch.close()


async def test_an_agent_hears_in_its_mailbox_also_after_its_own_restart_until_it_unwatches(mesh: Mesh) -> None:
    heard: list[Terminated] = []
    widow = await mesh.spawn(Widow, heard)
    await mesh.spawn(Frail)
    await widow.ask(Begin())
    await widow.tell(Fall(), timeout=2)
    await eventually(_restarted(mesh))

    await mesh.kill("frail")
    await eventually(lambda: len(heard) == 1)

    await mesh.spawn(Frail)
    await widow.ask(End())
    async with mesh.watch("frail") as watch:
        await mesh.stop("frail")
        await anext(watch)
    assert [end.agent for end in heard] == ["frail"]


async def test_c10_the_death_of_a_process_nobody_supervises_is_known_within_4_seconds(
    mesh: Mesh, spawn_process: SpawnProcess
) -> None:
    process = await spawn_process(HOSTING, mesh.url, mesh.subjects.tenant)
    await process.line_matching("^ready")
    async with asyncio.timeout(10), mesh.watch("frail") as watch:
        os.kill(process.pid, signal.SIGKILL)
        began = time.monotonic()
        end = await anext(watch)
    assert time.monotonic() - began < 4.5
    assert (end.node, end.replica) == ("elsewhere", 1)
    assert "silent" in end.reason


def _restarted(mesh: Mesh) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        return any(info.restarts and info.state == "ready" for info in await mesh.agents())

    return check
