"""What is asked of a mesh while something of it is down or being restarted, and names that could be confused."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from agentmesh.supervisor import RestartPolicy
from agentmesh.up import AgentPlan, GroupPlan, Ready, ToolsPlan
from agentmesh.up.placement import own_node
from tests.harness import eventually
from tests.up.conftest import GREETER, Mesh, StartMesh

BROKEN = """
from agentmesh import Agent, Prompt, handler

class Broken(Agent):
    async def on_start(self) -> None:
        raise RuntimeError("broken for good")

    @handler
    async def prompt(self, message: Prompt) -> str:
        return ""
"""

GATED = """
import pathlib, time

while pathlib.Path("closed").exists():
    time.sleep(0.01)
"""

ONE = GroupPlan("team", ("greeter", "broken"))


@pytest.fixture
def broken(project: Path) -> AgentPlan:
    (project / "broken.py").write_text(BROKEN)
    return AgentPlan("broken", "broken:Broken")


async def replicas(mesh: Mesh) -> list[tuple[str, int]]:
    return sorted((info.name, info.replica) for info in await mesh.agents() if info.state == "ready")


async def test_agents_of_a_group_that_cannot_start_count_as_failed(start_mesh: StartMesh, broken: AgentPlan) -> None:
    mesh = await start_mesh(GREETER, broken, groups=(ONE,))

    assert (await mesh.event(Ready)).failed == 2
    wanted = (await mesh.ask("ps"))["wanted"]
    assert {name: agent["replicas"] for name, agent in wanted.items()} == {"greeter": 1, "broken": 1}


async def test_an_agent_of_a_group_that_is_down_is_not_started_by_scaling_it(
    start_mesh: StartMesh, project: Path, broken: AgentPlan
) -> None:
    mesh = await start_mesh(GREETER, broken, groups=(ONE,))

    answer = await mesh.ask("scale", agent="greeter", replicas=2)

    assert "agentmesh restart team" in answer["problem"]
    assert await replicas(mesh) == []
    assert "no replica of greeter runs" in (await mesh.ask("rolling", name="greeter"))["problem"]
    (project / "broken.py").write_text(BROKEN.replace("raise RuntimeError", "str"))
    await mesh.ask("reload", timeout=20)
    assert await mesh.ask("restart", name="team", timeout=20) == {"problem": ""}
    assert await replicas(mesh) == [("broken", 1), ("greeter", 1), ("greeter", 2)]


async def test_a_replica_that_is_asked_for_while_its_node_restarts_is_there_afterwards(
    start_mesh: StartMesh, project: Path
) -> None:
    (project / "gated.py").write_text(GATED + (project / "swarm.py").read_text())
    mesh = await start_mesh(AgentPlan("greeter", "gated:Greeter"))
    (project / "closed").touch()
    node = mesh.up.fleet.members["node-1"]
    before = node.pid
    os.kill(before, signal.SIGKILL)
    await eventually(lambda: node.pid not in (0, before), 10)

    asked = asyncio.create_task(mesh.ask("scale", agent="greeter", replicas=2))
    await eventually(mesh.up.fleet.changing.locked)
    (project / "closed").unlink()

    assert await asked == {"problem": ""}
    assert await replicas(mesh) == [("greeter", 1), ("greeter", 2)]


async def test_no_replica_is_promised_where_the_only_node_has_failed(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(GREETER, process_policy=RestartPolicy(max_restarts=0))
    node = mesh.up.fleet.members["node-1"]
    os.kill(node.pid, signal.SIGKILL)
    await eventually(lambda: node.state == "failed")

    assert "agentmesh restart node-1" in (await mesh.ask("scale", agent="greeter", replicas=2))["problem"]

    assert await mesh.ask("restart", name="node-1") == {"problem": ""}
    assert await mesh.ask("scale", agent="greeter", replicas=2) == {"problem": ""}
    assert await replicas(mesh) == [("greeter", 1), ("greeter", 2)]


async def test_a_process_that_got_the_name_of_a_retired_one_is_watched(start_mesh: StartMesh) -> None:
    own = AgentPlan("greeter", "swarm:Greeter", isolation="process")
    mesh = await start_mesh(own, groups=(GroupPlan("team", ("greeter",)),))
    answers = await asyncio.gather(*(mesh.ask("restart", name="team", timeout=20) for _ in range(2)))
    assert answers == [{"problem": ""}] * 2
    before = (await mesh.pids())["greeter-1"]

    os.kill(before, signal.SIGKILL)

    async def is_back() -> bool:
        return (await mesh.pids()).get("greeter-1", 0) not in (0, before)

    await eventually(is_back, 10)


def test_processes_of_different_agents_have_different_names() -> None:
    names = ["tools", "node", "node-own", "tools-own-own", "memory", "a" * 41, "a" * 40 + "b", "a" * 40, "a"]
    nodes = {own_node(AgentPlan(name, "x:X"), 1).name for name in names}
    assert len(nodes) == len(names)
    assert not nodes & {"tools-1", "node-1", "memory"}


async def test_an_agent_called_tools_and_the_tools_run_side_by_side(start_mesh: StartMesh, project: Path) -> None:
    (project / "adding.py").write_text("from agentmesh import tool\n\n@tool\ndef add(a: int) -> int:\n    return a\n")
    mesh = await start_mesh(AgentPlan("tools", "swarm:Greeter", isolation="process"), tools=ToolsPlan(("adding",)))
    assert set(await mesh.pids()) == {"tools-1", "tools-own-1"}


async def test_stopping_does_not_wait_for_new_processes_that_are_slow_to_start(
    start_mesh: StartMesh, project: Path
) -> None:
    (project / "gated.py").write_text(GATED + (project / "swarm.py").read_text())
    mesh = await start_mesh(AgentPlan("greeter", "gated:Greeter"), groups=(GroupPlan("team", ("greeter",)),))
    (project / "closed").touch()
    rolling = asyncio.create_task(mesh.ask("rolling", name="greeter"))
    await eventually(mesh.up.fleet.changing.locked)
    await eventually(lambda: len(mesh.up.fleet.members) == 2)

    mesh.up.stop("enough")
    async with asyncio.timeout(5):
        await mesh.over()
    rolling.cancel()
