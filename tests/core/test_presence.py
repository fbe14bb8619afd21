"""Who notices, and how soon, that a node left, died, froze or came back. Nodes are processes of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from agentmesh.presence import DOWN, NodeChange, NodeMonitor, node_monitor, report_death
from agentmesh.subjects import Subjects
from agentmesh.transport import Transport, TransportOptions
from tests.harness import Process, Server, TcpProxy, eventually
from tests.harness.fixtures import SpawnProcess

BOUND = 3.5
"""Seconds until everybody knows."""

SLACK = 1.5
"""Seconds that a busy machine may add."""

NODE = """
import asyncio, signal, sys
from agentmesh import Agent, Prompt, connect, handler

class Sleeper(Agent):
    @handler
    async def prompt(self, message: Prompt) -> str:
        return message.text

async def main(url, name):
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with connect(url, name=name) as mesh:
        await mesh.spawn(Sleeper, replicas=2)
        print("ready", flush=True)
        await stop.wait()

asyncio.run(main(*sys.argv[1:]))
"""


class Watch:
    """A monitor, and its changes to wait for."""

    def __init__(self, monitor: NodeMonitor) -> None:
        self.monitor = monitor
        self.changes: list[NodeChange] = []
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        monitor.listen(self._on_change)

    def _on_change(self, change: NodeChange) -> None:
        self.changes.append(change)
        self._changed.set()

    def states(self, node: str) -> list[str]:
        return [change.state for change in self.changes if change.node.node == node]

    async def next(self, node: str, state: str, timeout: float = 10.0) -> tuple[NodeChange, float]:
        """The next such change from now on, and the seconds it took."""
        began, seen = self._loop.time(), len(self.changes)
        async with asyncio.timeout(timeout):
            while True:
                for change in self.changes[seen:]:
                    if (change.node.node, change.state) == (node, state):
                        return change, self._loop.time() - began
                self._changed.clear()
                await self._changed.wait()


@pytest.fixture
async def watch(server: Server) -> AsyncIterator[Watch]:
    async with await Transport.connect(TransportOptions(url=server.url)) as transport:
        yield Watch(await node_monitor(transport, Subjects()))


async def start(spawn_process: SpawnProcess, server: Server, name: str) -> Process:
    node = await spawn_process(NODE, server.url, name)
    await node.line_matching("ready")
    return node


async def test_nodes_are_known_when_they_come_and_gone_at_once_when_they_leave(
    server: Server, spawn_process: SpawnProcess, watch: Watch
) -> None:
    process = await start(spawn_process, server, "one")

    def seen() -> list[tuple[str, str, int, int]]:
        return [(node.node, node.state, node.pid, len(node.agents)) for node in watch.monitor.nodes()]

    await eventually(lambda: seen() == [("one", "up", process.pid, 2)])

    async with await Transport.connect(TransportOptions(url=server.url)) as other:
        late = await node_monitor(other, Subjects())
        assert [found.node for found in late.nodes()] == ["one"]  # without waiting for a sign of life
        assert await node_monitor(other, Subjects()) is late

    leaving = asyncio.create_task(watch.next("one", "left"))
    process.terminate()
    change, seconds = await leaving
    assert change.certain
    assert seconds < DOWN - 1.0


async def test_killed_and_frozen_nodes_are_down_within_three_and_a_half_seconds_and_only_one_comes_back(
    server: Server, spawn_process: SpawnProcess, watch: Watch
) -> None:
    killed, frozen, _ = await asyncio.gather(
        *(start(spawn_process, server, name) for name in ("killed", "frozen", "other"))
    )
    freezing = asyncio.create_task(watch.next("frozen", "down"))
    killing = asyncio.create_task(watch.next("killed", "down"))
    await asyncio.sleep(0)
    frozen.pause()
    killed.kill9()

    change, seconds = await killing
    assert seconds < BOUND + SLACK
    assert not change.certain
    assert sorted((info.name, info.replica) for info in change.agents) == [("sleeper", 1), ("sleeper", 2)]
    _, seconds = await freezing
    assert seconds < BOUND + SLACK
    frozen.resume()
    change, _ = await watch.next("frozen", "up")

    assert change.before == "down"
    assert watch.states("killed") == ["up", "suspect", "down"]
    assert watch.states("frozen") == ["up", "suspect", "down", "up"]
    assert len({change.node.life for change in watch.changes if change.node.node == "frozen"}) == 1
    assert "down" not in watch.states("other")


async def test_a_node_whose_end_was_seen_is_down_at_once_and_for_good(
    server: Server, spawn_process: SpawnProcess, watch: Watch
) -> None:
    process = await start(spawn_process, server, "one")
    async with await Transport.connect(TransportOptions(url=server.url)) as parent:
        going = asyncio.create_task(watch.next("one", "down"))
        await report_death(parent, Subjects(), "one", process.pid + 1, "of another process")
        await report_death(parent, Subjects(), "one", process.pid, "SIGKILL")
        change, seconds = await going

    assert (change.node.reason, change.certain) == ("SIGKILL", True)
    assert seconds < DOWN - 1.0
    with pytest.raises(TimeoutError):  # it is alive, but nobody believes it any more
        await watch.next("one", "up", timeout=1.2)


@pytest.mark.slow
async def test_nobody_is_down_while_we_are_the_ones_who_are_cut_off(
    server: Server, spawn_process: SpawnProcess
) -> None:
    await start(spawn_process, server, "one")
    async with (
        TcpProxy(server.port) as proxy,
        await Transport.connect(TransportOptions(url=proxy.url)) as transport,
    ):
        watch = Watch(await node_monitor(transport, Subjects()))
        assert [node.node for node in watch.monitor.nodes()] == ["one"]

        proxy.blackhole()
        await watch.next("one", "suspect")
        with pytest.raises(TimeoutError):
            await watch.next("one", "down", timeout=BOUND - 1.5)
        proxy.restore()
        await watch.next("one", "up")
