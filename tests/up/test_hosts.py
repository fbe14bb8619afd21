"""Several `agentmesh up` and `agentmesh node` at one broker: who is active, who takes over, who joins and leaves.

Each is a process of its own in a folder of its own, as on hosts of their own.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentmesh import happenings
from agentmesh.client import Client
from agentmesh.errors import ConfigError, NoSuchAgentError
from agentmesh.lease import holders
from agentmesh.presence import NodeChange, node_monitor
from agentmesh.registry import AgentInfo, discover
from agentmesh.subjects import Subjects
from agentmesh.transport import Transport, TransportOptions
from agentmesh.up import BrokerPlan, UpPlan, ask_supervisor, supervisors
from tests.harness import Process, Server, eventually
from tests.harness.fixtures import SpawnProcess
from tests.up.conftest import SWARM

SLACK = 2.0
"""Seconds that a busy machine may add."""

AWAY = 10.0
"""Seconds without a broker."""

AGENTS = """
[agents.greeter]
class = "swarm:Greeter"
[agents.adder]
class = "swarm:Adder"
"""

ACTIVE = r'"event": "elected".*"active": true'
STANDS_BY = r'"event": "elected".*"active": false'


class Hosts:
    """Starts them, and looks at their mesh through a connection of its own."""

    def __init__(self, server: Server, folder: Path, spawn: SpawnProcess, client: Client) -> None:
        self.server = server
        self.client = client
        self.transport = client.transport
        self._folder = folder
        self._spawn = spawn

    async def run(self, command: str, name: str, settings: str = "", *arguments: str, ready: bool = True) -> Process:
        """`agentmesh up` or `agentmesh node` in the folder `name`."""
        root = self._folder / name
        if not root.exists():
            root.mkdir()
            (root / "swarm.py").write_text(textwrap.dedent(SWARM))
            (root / "mesh.toml").write_text(f'name = "{name}"\n{settings}')
        options = ("--json", "--nats", self.server.url, "--config", str(root / "mesh.toml"))
        process = await self._spawn("agentmesh.cli", command, *arguments, *options)
        if ready:
            await process.line_matching('"event": "ready"', timeout=30)
        return process

    async def up(self, name: str, settings: str = "", *, ttl: int = 2, memory: bool = False) -> Process:
        enabled = "true" if memory else "false"
        tables = f"[supervisor]\nttl = {ttl}\n[memory]\nenabled = {enabled}\n[node]\ncount = 1\n{settings}"
        return await self.run("up", name, tables)

    async def pids(self, agent: str) -> dict[int, AgentInfo]:
        infos = await discover(self.transport, self.client.subjects, name=agent, brief=True)
        return {info.pid: info for info in infos}

    async def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        return await ask_supervisor(self.transport, self.client.subjects, op, **arguments)


@pytest.fixture
async def hosts(server: Server, tmp_path: Path, spawn_process: SpawnProcess) -> AsyncIterator[Hosts]:
    async with await Transport.connect(TransportOptions(url=server.url)) as transport:
        yield Hosts(server, tmp_path, spawn_process, Client(transport, Subjects(), "test"))


async def fail_over(hosts: Hosts, active: Process, standby: Process, ttl: int) -> float:
    """Kill the active supervisor; the seconds until the other one is active."""
    seen = len([line for line in standby.lines if '"active": true' in line])
    loop = asyncio.get_running_loop()
    began = loop.time()
    active.kill9()
    await standby.line_matching(ACTIVE, nth=seen + 1, timeout=ttl + 0.5 + SLACK)
    return loop.time() - began


# ---------------------------------------------------------------- supervisors


async def test_c1_when_the_active_supervisor_is_killed_a_standby_takes_over(hosts: Hosts) -> None:
    first = await hosts.up("first", ttl=1)
    await first.line_matching(ACTIVE)
    second = await hosts.up("second", ttl=1)
    said = json.loads((await second.line_matching(STANDS_BY)).string)
    assert said["supervisor"].startswith(f"first (pid {first.pid} on ")
    ups = await supervisors(hosts.transport, hosts.client.subjects)
    assert [(up["name"], up["active"]) for up in ups] == [("first", True), ("second", False)]

    seconds = await fail_over(hosts, first, second, ttl=1)

    assert seconds <= 1.5 + SLACK
    held = (await holders(hosts.transport, hosts.client.subjects))["supervisor"]
    assert (held.about, held.pid) == ("second", second.pid)
    (told,) = await recorded(hosts)
    assert told.document["pid"] == second.pid
    assert told.document["from"]["pid"] == first.pid


async def recorded(hosts: Hosts) -> list[happenings.Happening]:
    """Fail-overs, as they are told to everybody."""

    async def found() -> list[happenings.Happening]:
        return await happenings.recent(hosts.transport, hosts.client.subjects, kind="failover")

    return await eventually(found, what="the fail-over is recorded")


@pytest.mark.slow
async def test_c1_ten_of_ten_take_overs_are_within_ttl_and_half_a_second(hosts: Hosts) -> None:
    active, standby = await hosts.up("a", ttl=1), await hosts.up("b", ttl=1)
    names = {active: "a", standby: "b"}
    took = []
    for _ in range(10):
        took.append(await fail_over(hosts, active, standby, ttl=1))
        name = names.pop(active)
        active, standby = standby, await hosts.up(name, ttl=1)
        names[standby] = name
        await standby.line_matching(STANDS_BY)

    print("take-overs:", *(f"{seconds:.2f}" for seconds in sorted(took)))
    assert max(took) <= 1.5 + SLACK


@pytest.mark.slow
async def test_c2_a_frozen_supervisor_stands_by_when_it_goes_on_and_nothing_was_done_twice(hosts: Hosts) -> None:
    frozen = await hosts.up("frozen", AGENTS)
    await frozen.line_matching(ACTIVE)
    second = await hosts.up("second", AGENTS)
    before = await hosts.pids("adder")
    frozen.pause()
    await second.line_matching(ACTIVE, timeout=2.5 + SLACK)
    jobs = [await submit_at_the_door(hosts, number) for number in range(10)]
    await asyncio.sleep(1.5)  # until its lease has been over for as long as it lasts
    frozen.resume()
    await frozen.line_matching(STANDS_BY)
    jobs += [await submit_at_the_door(hosts, number) for number in range(10, 20)]

    results: list[Any] = [await hosts.client.tasks.job(job).result(timeout=20) for job in jobs]

    assert results == [2 * number for number in range(20)]
    handled = [line for process in (frozen, second) for line in process.lines if '"text": "adding ' in line]
    assert len(handled) == 20
    assert (await hosts.pids("adder")).keys() == before.keys()
    held = (await holders(hosts.transport, hosts.client.subjects))["supervisor"]
    assert held.pid == second.pid


async def submit_at_the_door(hosts: Hosts, number: int) -> str:
    """As any client does it, without knowing the agent."""
    job = f"task-{number}"
    body = {"task_id": job, "task_type": "Add", "parameters": {"a": number, "b": number}}
    await hosts.transport.publish_durable(hosts.client.subjects.task_door(), msgspec.json.encode(body))
    return job


async def test_a_supervisor_that_stops_hands_over_at_once(hosts: Hosts) -> None:
    first = await hosts.up("first", ttl=30)
    await first.line_matching(ACTIVE)
    second = await hosts.up("second", ttl=30)

    first.terminate()

    await second.line_matching(ACTIVE, timeout=10)  # and not when the 30 s are over
    assert await first.wait() == 0


async def test_changes_are_made_once_by_the_supervisor_that_has_the_agent(hosts: Hosts) -> None:
    first = await hosts.up("first", '[agents.greeter]\nclass = "swarm:Greeter"\n')
    await first.line_matching(ACTIVE)
    await hosts.up("second", AGENTS)

    assert await hosts.ask("scale", agent="greeter", replicas=2) == {"problem": "", "elsewhere": 1}
    assert await hosts.ask("scale", agent="adder", replicas=3) == {"problem": ""}
    with pytest.raises(NoSuchAgentError):
        await hosts.ask("scale", agent="nobody", replicas=3)

    infos = await discover(hosts.transport, hosts.client.subjects, brief=True)
    names = [info.name for info in infos]
    assert (names.count("greeter"), names.count("adder")) == (3, 3)


@pytest.mark.slow
async def test_two_meshes_never_serve_two_memories_to_one_tenant(hosts: Hosts) -> None:
    first = await hosts.up("first", memory=True)
    assert '"service": "memory"' in first.output
    second = await hosts.up("second", memory=True)

    warned = json.loads((await second.line_matching('"event": "warning","source": "memory"|"source": "memory"')).string)
    assert f"pid {first.pid} on " in warned["text"]
    assert "enabled = false" in warned["hint"]
    assert '"service": "memory"' not in second.output

    first.kill9()  # and started again in its folder, it serves its file at once
    await first.wait()
    again = await hosts.up("first", memory=True)
    assert '"service": "memory"' in again.output
    assert '"service": "memory"' not in second.output


@pytest.mark.slow
async def test_the_active_supervisor_buries_what_nobody_would_ever_do_and_tells_what_waits(hosts: Hosts) -> None:
    up = await hosts.up("home", AGENTS)
    for queue in ("adder.urgent", "nobody.normal"):
        body = {"task_id": queue.replace(".", "-"), "task_type": "Add", "parameters": {"a": 1, "b": 1}}
        subject = f"{hosts.client.subjects.task_door()}.{queue}"
        await hosts.transport.publish_durable(subject, msgspec.json.encode(body))

    result = await hosts.client.tasks.job("adder-urgent").outcome()

    assert (result.status, "no worker reads" in result.reason) == ("dead", True)
    await up.line_matching(r"adder-urgent was stuck and is a dead letter")
    await up.line_matching(r"tasks wait for agents that nobody hosts: nobody \(1\)")


# ---------------------------------------------------------------- nodes


async def test_a_node_joins_shares_the_work_and_leaves(hosts: Hosts) -> None:
    await hosts.up("home", AGENTS)
    home = (await hosts.pids("greeter")).keys()
    monitor = await node_monitor(hosts.transport, hosts.client.subjects)
    changes: list[tuple[str, str]] = []
    monitor.listen(lambda change: changes.append((change.node.node, change.state)))

    joined = await hosts.run("node", "guest", "", "swarm:Greeter", "--replicas", "2")
    there = [info for pid, info in (await hosts.pids("greeter")).items() if pid not in home]
    pids = {await hosts.client.ask_raw("greeter", "Where", {}) for _ in range(30)}
    joined.interrupt()
    code = await joined.wait()

    (node,) = {info.node for info in there}
    assert pids == {*home, there[0].pid}
    assert code == 0
    assert [state for name, state in changes if name == node] == ["up", "left"]
    assert (await hosts.pids("greeter")).keys() == home
    assert "elected" not in joined.output
    assert (await hosts.ask("scale", agent="greeter", replicas=1))["problem"] == ""


@pytest.mark.slow
async def test_a_crashed_node_process_is_known_at_once_and_back_and_a_killed_node_is_noticed(hosts: Hosts) -> None:
    await hosts.up("home", AGENTS)
    joined = await hosts.run("node", "guest", "", "swarm:Adder")
    (pid,) = (pid for pid in await hosts.pids("adder") if pid in joined.family())
    monitor = await node_monitor(hosts.transport, hosts.client.subjects)
    changes: list[NodeChange] = []
    changed = asyncio.Event()

    def listen(change: NodeChange) -> None:
        changes.append(change)
        changed.set()

    async def until(*states: str) -> NodeChange:
        while not (found := [change for change in changes if change.state in states]):
            changed.clear()
            await changed.wait()
        changes.clear()
        return found[0]

    monitor.listen(listen)
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(SLACK):
        gone = await until("down")
    assert (gone.node.pid, gone.certain, gone.node.reason) == (pid, True, "SIGKILL")
    async with asyncio.timeout(10):
        back = await until("up")
    assert (back.node.node, back.node.life != gone.node.life) == (gone.node.node, True)

    joined.kill9()
    async with asyncio.timeout(3.5 + SLACK):
        gone = await until("left", "down")  # its process may still have time to say goodbye
    assert gone.node.life == back.node.life
    results = await asyncio.gather(*(hosts.client.ask_raw("greeter", "Hi", {"name": "x"}) for _ in range(10)))
    assert results == ["Hello x"] * 10


@pytest.mark.slow
async def test_a_node_that_is_refused_says_why_and_ends(hosts: Hosts, tmp_path: Path) -> None:
    hosts.server.kill9()
    joined = await hosts.run("node", "guest", "", "swarm:Greeter", ready=False)

    assert await joined.wait(30) == 3
    assert "cannot reach the broker at" in joined.output
    with pytest.raises(ConfigError, match="joins a mesh that runs"):
        UpPlan(joined=True, broker=BrokerPlan())


@pytest.mark.slow
async def test_c5_all_processes_outlive_a_broker_that_is_away_and_work_resumes_within_five_seconds(
    hosts: Hosts,
) -> None:
    up = await hosts.up("home", AGENTS, memory=True)
    joined = await hosts.run("node", "guest", "", "swarm:Adder")
    processes = {pid for process in (up, joined) for pid in process.family()}
    await hosts.server.terminate()
    await asyncio.sleep(AWAY)
    await hosts.server.start()

    loop = asyncio.get_running_loop()
    began = loop.time()
    job = await submit_at_the_door(hosts, 21)
    assert await hosts.client.tasks.job(job).result(timeout=30) == 42
    assert await hosts.client.ask_raw("greeter", "Hi", {"name": "Ada"}, timeout=10) == "Hello Ada"
    resumed = loop.time() - began

    assert processes == {pid for process in (up, joined) for pid in process.family()}
    assert resumed <= 5.0 + SLACK
    await up.line_matching(ACTIVE, nth=2, timeout=15)  # nobody was while the broker was away


@pytest.mark.slow
async def test_two_meshes_share_the_work_and_none_of_it_is_lost_or_doubled_when_one_is_killed(hosts: Hosts) -> None:
    first = await hosts.up("first", AGENTS)
    second = await hosts.up("second", AGENTS)
    jobs = [await submit_at_the_door(hosts, number) for number in range(200)]
    await first.line_matching('"text": "adding ', nth=20)
    first.kill9()

    results: list[Any] = [await hosts.client.tasks.job(job).result(timeout=60) for job in jobs]

    assert results == [2 * number for number in range(200)]
    assert any('"text": "adding ' in line for line in second.lines)
    counts = await hosts.transport.subjects_of("RESULTS", hosts.client.subjects.all_results())
    assert set(counts.values()) == {1}
    assert len(counts) == 200
