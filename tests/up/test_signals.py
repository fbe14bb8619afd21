"""The end of a mesh that runs as a program: Ctrl-C once, twice, `down`, and SIGKILL. Nobody stays behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentmesh.errors import AlreadyRunningError, BrokerStartError
from agentmesh.transport import Transport, TransportOptions
from agentmesh.up import AgentPlan, BrokerPlan, Down, MemoryPlan, ToolsPlan, UpPlan, down, holder, start_detached
from agentmesh.up.plan import dump
from tests.harness import Process, Server, alive, children, eventually
from tests.harness.fixtures import SpawnProcess
from tests.up.conftest import GREETER

STUBBORN = "import swarm, time\nclass Stubborn(swarm.Greeter):\n  async def on_stop(self): time.sleep(600)\n"


def plan(project: Path, *agents: AgentPlan, **changes: Any) -> UpPlan:
    settings: dict[str, Any] = {"nodes": 2, "grace": 1.0, "broker": BrokerPlan(port=0, sync_always=False), **changes}
    return UpPlan(root=project, agents=agents, **settings)


async def started(spawn_process: SpawnProcess, given: UpPlan) -> tuple[Process, dict[str, Any]]:
    """A mesh as a program of its own, once it is ready."""
    process = await spawn_process("agentmesh.up")
    await process.write_line(dump(given).decode())
    assert process._process.stdin is not None
    process._process.stdin.close()
    ready = await process.line_matching(r'\{"event":"ready".*', timeout=30)
    return process, json.loads(ready[0])


async def told(process: Process, event: str) -> dict[str, Any]:
    line = await process.line_matching(rf'{{"event":"{event}".*')
    found: dict[str, Any] = json.loads(line[0])
    return found


async def test_ctrl_c_stops_everything_in_order_and_ends_with_code_0(
    spawn_process: SpawnProcess, project: Path
) -> None:
    given = plan(project, GREETER, tools=ToolsPlan(targets=("agentmesh.tools.builtin",)))
    process, _ = await started(spawn_process, given)
    assert len(process.family()) >= 5

    process.interrupt()

    stopped = await told(process, "stopped")
    assert (stopped["killed"], stopped["given_back"]) == (False, 0)
    assert await process.wait() == 0
    assert process.family() == []


async def test_a_second_ctrl_c_kills_at_once(spawn_process: SpawnProcess, project: Path) -> None:
    (project / "stubborn.py").write_text(STUBBORN)
    process, _ = await started(spawn_process, plan(project, AgentPlan("stubborn", "stubborn:Stubborn"), grace=60.0))
    process.interrupt()
    await told(process, "stopping")
    began = asyncio.get_running_loop().time()

    process.interrupt()

    assert (await told(process, "stopped"))["killed"]
    assert await process.wait() == 0
    assert asyncio.get_running_loop().time() - began < 3.0
    assert process.family() == []


async def test_c4_an_agent_that_does_not_stop_is_killed_after_the_grace(
    spawn_process: SpawnProcess, project: Path
) -> None:
    (project / "stubborn.py").write_text(STUBBORN)
    process, _ = await started(spawn_process, plan(project, AgentPlan("stubborn", "stubborn:Stubborn"), grace=0.5))
    began = asyncio.get_running_loop().time()

    process.terminate()

    assert (await told(process, "stopped"))["killed"]
    assert await process.wait() == 0
    assert 0.5 < asyncio.get_running_loop().time() - began < 0.5 + 2.0 + 1.5
    assert process.family() == []


async def test_c7_when_the_mesh_is_killed_nobody_is_left_after_5_s(spawn_process: SpawnProcess, project: Path) -> None:
    (project / "stubborn.py").write_text(STUBBORN)
    given = plan(
        project,
        GREETER,
        AgentPlan("stubborn", "stubborn:Stubborn", isolation="process"),
        tools=ToolsPlan(targets=("agentmesh.tools.builtin",)),
    )
    process, _ = await started(spawn_process, given)
    assert len(process.family()) >= 6

    process.kill9()
    await process.wait()

    await eventually(lambda: process.family() == [], timeout=5.0)
    assert holder(given.folder) is None


async def test_ctrl_c_during_the_start_stops_what_was_started(spawn_process: SpawnProcess, project: Path) -> None:
    (project / "slow.py").write_text("print('loading', flush=True); import time; time.sleep(600)")
    process = await spawn_process("agentmesh.up")
    await process.write_line(dump(plan(project, GREETER, AgentPlan("slow", "slow:Slow"))).decode())
    assert process._process.stdin is not None
    process._process.stdin.close()
    await process.line_matching(r'\{"event":"broker_ready"')
    log = project / ".agentmesh" / "logs" / "node-2.log"
    await eventually(lambda: log.exists() and "loading" in log.read_text(), timeout=10)

    process.interrupt()

    assert await process.wait() == 0
    assert process.family() == []


# ---------------------------------------------------------------- detached


@pytest.fixture
async def detached(project: Path) -> AsyncIterator[UpPlan]:
    """A plan whose mesh is stopped with the test."""
    given = plan(project, GREETER, memory=MemoryPlan(enabled=False), nodes=1)
    yield given
    await asyncio.to_thread(down, given.folder, force=True)


async def test_a_detached_mesh_runs_in_the_background_until_down(detached: UpPlan) -> None:
    content = await asyncio.to_thread(start_detached, detached)

    assert alive(content.pid)
    assert os.getsid(content.pid) == content.pid
    async with await Transport.connect(TransportOptions(url=content.url)) as transport:
        reply = await transport.request("ai.agent.message.default.greeter", b"Ada", timeout=5)
        assert b"Hello Ada" in reply.data
    with pytest.raises(AlreadyRunningError, match=f"pid {content.pid}"):
        await asyncio.to_thread(start_detached, detached)

    family = children(content.pid)
    assert await asyncio.to_thread(down, detached.folder) == Down(content.pid, stopped=True)
    assert not [pid for pid in family if alive(pid)]
    assert await asyncio.to_thread(down, detached.folder) == Down(None, stopped=True)
    log = (detached.folder / "logs" / "detached.log").read_bytes()
    events = [msgspec.json.decode(line) for line in log.splitlines()]
    assert events[-1]["event"] == "stopped"


async def test_down_kills_what_does_not_stop_in_time(detached: UpPlan, project: Path) -> None:
    (project / "stubborn.py").write_text(STUBBORN)
    given = plan(project, AgentPlan("stubborn", "stubborn:Stubborn"), grace=60.0)
    content = await asyncio.to_thread(start_detached, given)
    family = children(content.pid)

    result = await asyncio.to_thread(down, given.folder, timeout=0.3)

    assert result == Down(content.pid, stopped=True, killed=True)
    await eventually(lambda: not [pid for pid in family if alive(pid)])


async def test_down_after_a_sigkill_finds_nothing_to_stop(detached: UpPlan) -> None:
    content = await asyncio.to_thread(start_detached, detached)
    os.kill(content.pid, signal.SIGKILL)
    await eventually(lambda: holder(detached.folder) is None)

    assert await asyncio.to_thread(down, detached.folder) == Down(None, stopped=True)


async def test_a_detached_mesh_that_cannot_start_raises_its_error_here(project: Path, server: Server) -> None:
    given = plan(project, GREETER, broker=BrokerPlan(port=server.port))

    with pytest.raises(BrokerStartError, match=f"port {server.port}"):
        await asyncio.to_thread(start_detached, given)
