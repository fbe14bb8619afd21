"""A node process by itself: its ready line, its control requests, and its end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentmesh.client import Client
from agentmesh.errors import DeadlineExceededError, InvalidMessageError, NoSuchAgentError
from agentmesh.node import NodeAgent, NodeSpec
from agentmesh.registry import AgentInfo
from agentmesh.subjects import Subjects
from agentmesh.supervisor.control import call
from agentmesh.transport import Transport, TransportOptions
from tests.harness import Process, Server, eventually
from tests.harness.fixtures import SpawnProcess

NODE = Subjects().node_control("n1")


def spec(url: str, project: Path, *agents: NodeAgent, **changes: Any) -> NodeSpec:
    return NodeSpec(
        name="n1", transport={"url": url, "name": "n1"}, agents=list(agents), paths=[str(project)], **changes
    )


async def started(spawn_process: SpawnProcess, given: NodeSpec | bytes) -> Process:
    process = await spawn_process("agentmesh.node")
    await process.write_line((given if isinstance(given, bytes) else msgspec.json.encode(given)).decode())
    assert process._process.stdin is not None
    process._process.stdin.close()
    return process


async def said(process: Process, event: str) -> dict[str, Any]:
    line = await process.line_matching(rf'@agentmesh ({{"event":"{event}".*)')
    found: dict[str, Any] = json.loads(line[1])
    return found


async def has_state(client: Client, agent: str, state: str) -> bool:
    return state in {info.state for info in await client.agents(agent)}


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with await Transport.connect(TransportOptions(url=server.url)) as transport:
        yield Client(transport, Subjects(), "test")


GREETER = NodeAgent("greeter", "swarm:Greeter", replicas=[1, 2])


async def test_its_ready_line_tells_what_runs_and_from_which_files(
    spawn_process: SpawnProcess, server: Server, project: Path
) -> None:
    broken = NodeAgent("broken", "nowhere:Agent")
    process = await started(spawn_process, spec(server.url, project, GREETER, broken, watched=[str(project)]))

    ready = await said(process, "ready")

    agents = msgspec.convert(ready["agents"], list[AgentInfo])
    assert [(info.name, info.replica, info.state) for info in agents] == [
        ("greeter", 1, "ready"),
        ("greeter", 2, "ready"),
        ("broken", 1, "failed"),
    ]
    assert ready["problems"] == {"broken": "ModuleNotFoundError: No module named 'nowhere'"}
    assert ready["files"] == [str(project / "swarm.py")]


async def test_control_requests_spawn_stop_and_describe(
    spawn_process: SpawnProcess, server: Server, project: Path, client: Client
) -> None:
    process = await started(spawn_process, spec(server.url, project))
    await said(process, "ready")

    one = msgspec.to_builtins(NodeAgent("greeter", "swarm:Greeter", replicas=[4]))
    assert await call(client.transport, NODE, "spawn", agent=one) == {"problem": ""}
    assert await client.ask_raw("greeter", "Hi", {"name": "Ada"}) == "Hello Ada"
    assert await call(client.transport, NODE, "ping") == {"node": "n1", "pid": process.pid, "agents": ["greeter"]}
    described = await call(client.transport, NODE, "describe")
    assert [info.replica for info in msgspec.convert(described["agents"], list[AgentInfo])] == [4]
    assert await call(client.transport, NODE, "stop", name="greeter", replica=4) == {"stopped": 1}
    assert (await call(client.transport, NODE, "describe"))["agents"] == []

    with pytest.raises(NoSuchAgentError):
        await call(client.transport, NODE, "restart", name="nobody")
    with pytest.raises(InvalidMessageError, match="agent: Expected"):
        await call(client.transport, NODE, "spawn", agent=7)
    reply = await client.transport.request(NODE, b"[1, 2", timeout=5)
    assert json.loads(reply.data)["error"]["type"] == "InvalidMessageError"


async def test_b12_sigterm_finishes_what_is_in_flight_and_says_so(
    spawn_process: SpawnProcess, server: Server, project: Path, client: Client
) -> None:
    process = await started(spawn_process, spec(server.url, project, GREETER))
    await said(process, "ready")
    asks = [asyncio.create_task(client.ask_raw("greeter", "Slow", {"seconds": 0.5})) for _ in range(3)]
    await process.line_matching("slow begins", nth=3)

    process.terminate()

    assert await asyncio.gather(*asks) == ["done"] * 3
    assert await said(process, "drained") == {"event": "drained", "finished": 3, "given_back": 0}
    assert await process.wait() == 0


async def test_b12_a_second_sigterm_ends_it_at_once(
    spawn_process: SpawnProcess, server: Server, project: Path, client: Client
) -> None:
    process = await started(spawn_process, spec(server.url, project, GREETER, grace=60.0))
    await said(process, "ready")
    ask = asyncio.create_task(client.ask_raw("greeter", "Slow", {"seconds": 60}, timeout=2))
    await process.line_matching("slow begins")

    process.terminate()
    # Two signals at once may become one: wait until the first was noticed.
    await eventually(lambda: has_state(client, "greeter", "stopping"))
    process.terminate()

    assert await process.wait(2) == 130
    with pytest.raises(DeadlineExceededError):
        await ask


async def test_it_can_be_told_to_drain(
    spawn_process: SpawnProcess, server: Server, project: Path, client: Client
) -> None:
    process = await started(spawn_process, spec(server.url, project, GREETER))
    await said(process, "ready")

    assert await call(client.transport, NODE, "drain") == {}

    assert await process.wait() == 0


async def test_a_node_without_a_broker_says_where_it_looked(spawn_process: SpawnProcess, project: Path) -> None:
    given = spec("nats://127.0.0.1:9", project)
    given.transport["connect_timeout"] = 0.3
    process = await started(spawn_process, given)

    await process.line_matching(r"node n1: cannot reach the broker at nats://127\.0\.0\.1:9")
    assert await process.wait() == 1


async def test_a_spec_that_is_none_is_refused(spawn_process: SpawnProcess) -> None:
    process = await started(spawn_process, b'{"name": 3}')

    await process.line_matching(r"node: Expected `str`, got `int` - at `\$.name`")
    assert await process.wait() == 2


async def test_a_start_that_fails_is_tried_again(
    spawn_process: SpawnProcess, server: Server, project: Path, client: Client
) -> None:
    (project / "moody.py").write_text(
        "import pathlib, swarm\n"
        "class Moody(swarm.Greeter):\n"
        "  async def on_start(self):\n"
        "    flag = pathlib.Path(__file__).with_name('flag')\n"
        "    if not flag.exists():\n"
        "      flag.touch()\n"
        "      raise OSError('the database is just starting')\n"
    )
    process = await started(spawn_process, spec(server.url, project, NodeAgent("moody", "moody:Moody")))
    ready = await said(process, "ready")
    assert "the database is just starting" in ready["problems"]["moody"]

    await eventually(lambda: has_state(client, "moody", "ready"))
    assert await client.ask_raw("moody", "Hi", {"name": "Ada"}) == "Hello Ada"
