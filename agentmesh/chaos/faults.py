"""Carrying out the faults of a plan."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from agentmesh.chaos import agents
from agentmesh.chaos.cluster import Rig, start_all
from agentmesh.chaos.history import Recorder
from agentmesh.chaos.members import Member
from agentmesh.chaos.plan import Fault
from agentmesh.chaos.raw import RawClient
from agentmesh.errors import BrokerError

DROPPED = 0.3
"""Fraction of replies that `link-drop` loses."""

LATE = 0.1
"""Seconds that `link-delay` adds to each chunk, each way."""

STEP_DOWN = 1.0
"""Seconds that servers need to agree on another leader."""

_REPLY = re.compile(rb"H?MSG _INBOX")


@dataclass(frozen=True)
class Scene:
    """What faults may strike."""

    rig: Rig
    members: dict[str, list[Member]]
    """By group: worker, supervisor, submitter."""
    record: Recorder


class Faults:
    """See the module.

    Args:
        scene: What they may strike.
        told: Called with each fault that begins, and what it strikes.
    """

    def __init__(self, scene: Scene, told: Callable[[Fault, str], None]) -> None:
        self._scene = scene
        self._told = told
        self._number = 0

    async def run(self, plan: list[Fault]) -> None:
        """All faults, each at its time; returns when the last one is over and what it broke is mended."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.TaskGroup() as group:
            for fault in plan:
                await asyncio.sleep(max(0.0, began + fault.at - loop.time()))
                group.create_task(self.strike(fault), name=fault.name)

    async def strike(self, fault: Fault) -> None:
        """One fault, from its beginning until what it broke is mended."""
        group, _, action = fault.name.partition("-")
        strike: Callable[[Fault], Awaitable[None]] = (
            self._strike_member if group in self._scene.members else getattr(self, f"_{group}_{action}")
        )
        await strike(fault)

    # ------------------------------------------------------------ processes

    async def _strike_member(self, fault: Fault) -> None:
        group, _, action = fault.name.partition("-")
        places = self._scene.members[group]
        member = places[fault.target % len(places)]
        async with self._happening(fault, member.role, pid=member.pid):
            match action:
                case "kill":
                    member.signal(signal.SIGKILL)
                case "term":
                    member.signal(signal.SIGTERM)
                case "block":
                    member.signal(agents.BLOCK)
                case "freeze":
                    await self._for(fault, member, signal.SIGSTOP, signal.SIGCONT)
                case "clock":
                    await self._for(fault, member, agents.JUMP, agents.JUMP)

    async def _for(self, fault: Fault, member: Member, begin: signal.Signals, end: signal.Signals) -> None:
        """Send one signal, and later another one to the same process."""
        pid = member.signal(begin)
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            if pid and member.pid == pid:
                member.signal(end)

    # ------------------------------------------------------------ servers

    async def _server_kill(self, fault: Fault) -> None:
        await self._down(fault, self._server(fault), kill=True)

    async def _server_restart(self, fault: Fault) -> None:
        await self._down(fault, self._server(fault), kill=False)

    async def _leader_kill(self, fault: Fault) -> None:
        await self._down(fault, await self._leader(), kill=True)

    async def _down(self, fault: Fault, number: int, *, kill: bool) -> None:
        server = self._scene.rig.servers[number]
        async with self._happening(fault, server.name, broker=True):
            if kill:
                await asyncio.to_thread(server.kill9)
            else:
                await server.terminate()
            await asyncio.sleep(fault.seconds)
            await server.start()

    async def _server_freeze(self, fault: Fault) -> None:
        server = self._scene.rig.servers[self._server(fault)]
        async with self._happening(fault, server.name, broker=True):
            server.pause()
            try:
                await asyncio.sleep(fault.seconds)
            finally:
                server.resume()

    async def _leader_isolate(self, fault: Fault) -> None:
        await self._apart(fault, self._scene.rig.isolate)

    async def _leader_split(self, fault: Fault) -> None:
        await self._apart(fault, self._scene.rig.split)

    async def _apart(self, fault: Fault, begin: Callable[[int], None]) -> None:
        """The worst case: clients are connected to the very server that is cut off."""
        number = await self._lead_from(await self._home("submitter-1"))
        async with self._happening(fault, self._scene.rig.servers[number].name, broker=True):
            begin(number)
            try:
                await asyncio.sleep(fault.seconds)
            finally:
                self._scene.rig.heal(number)

    async def _quorum_kill(self, fault: Fault) -> None:
        kept = self._scene.rig.servers[self._server(fault)]
        lost = [server for server in self._scene.rig.servers if server is not kept]
        async with self._happening(fault, " and ".join(server.name for server in lost), broker=True):
            for server in lost:
                await asyncio.to_thread(server.kill9)
            await asyncio.sleep(fault.seconds)
            await start_all(lost)

    async def _power_cut(self, fault: Fault) -> None:
        rig = self._scene.rig
        async with self._happening(fault, "all servers", broker=True):
            for server in rig.servers:
                server.pause()  # so that none sees another one die first
            for server in rig.servers:
                await asyncio.to_thread(server.kill9)
            await asyncio.gather(*(asyncio.to_thread(disk.cut_power) for disk in rig.disks))
            await start_all(rig.servers)

    async def _disk_fill(self, fault: Fault) -> None:
        """A server whose disk failed writes no more, also when there is room again: it has to be restarted."""
        number = self._server(fault)
        server, disk = self._scene.rig.servers[number], self._scene.rig.disks[number]
        async with self._happening(fault, server.name, broker=True):
            await asyncio.to_thread(disk.fill)
            await asyncio.sleep(fault.seconds)
            disk.make_room()
            await server.restart()

    def _server(self, fault: Fault) -> int:
        return fault.target % len(self._scene.rig.servers)

    async def _leader(self) -> int:
        """The server that leads the stream of tasks, asked until one says so."""
        rig = self._scene.rig
        while True:
            for server in rig.servers:
                with contextlib.suppress(BrokerError):
                    async with RawClient(server.url) as client:
                        answer = await client.call("STREAM.INFO.TASKS")
                        if name := answer.get("cluster", {}).get("leader"):
                            return rig.named(name)
            await asyncio.sleep(0.1)

    async def _home(self, client: str) -> int:
        """The server a client is connected to; the first one, if it is to none."""
        for number, server in enumerate(self._scene.rig.servers):
            page = await server.monitor("connz")
            if any(connection.get("name") == client for connection in page["connections"]):
                return number
        return 0

    async def _lead_from(self, number: int) -> int:
        """Have a server lead the streams of tasks and results, as far as the others agree; returns who leads tasks."""
        name = self._scene.rig.servers[number].name
        wish = {"placement": {"preferred": name}}
        for stream in ("RESULTS", "TASKS"):
            for server in self._scene.rig.servers:
                with contextlib.suppress(BrokerError):
                    async with RawClient(server.url) as client:
                        info = await client.call(f"STREAM.INFO.{stream}")
                        if info.get("cluster", {}).get("leader") != name:
                            await client.call(f"STREAM.LEADER.STEPDOWN.{stream}", wish)
                    break
        await asyncio.sleep(STEP_DOWN)
        return await self._leader()

    # ------------------------------------------------------------ links

    async def _link_cut(self, fault: Fault) -> None:
        async with self._happening(fault, f"door of n{self._server(fault) + 1}", broker=True):
            self._scene.rig.doors[self._server(fault)].cut()

    async def _link_delay(self, fault: Fault) -> None:
        door = self._scene.rig.doors[self._server(fault)]
        async with self._happening(fault, f"door of n{self._server(fault) + 1}", broker=True):
            door.delay = LATE
            try:
                await asyncio.sleep(fault.seconds)
            finally:
                door.delay = 0.0

    async def _link_drop(self, fault: Fault) -> None:
        door = self._scene.rig.doors[self._server(fault)]
        rng = random.Random(fault.salt)
        async with self._happening(fault, f"door of n{self._server(fault) + 1}", broker=True):
            door.drop = lambda frame: _REPLY.match(frame) is not None and rng.random() < DROPPED
            try:
                await asyncio.sleep(fault.seconds)
            finally:
                door.drop = None

    async def _link_acks(self, fault: Fault) -> None:
        door = self._scene.rig.doors[self._server(fault)]
        rng = random.Random(fault.salt)
        async with self._happening(fault, f"door of n{self._server(fault) + 1}", broker=True):
            door.drop_sent = lambda frame: frame.startswith(b"PUB $JS.ACK.") and rng.random() < DROPPED
            try:
                await asyncio.sleep(fault.seconds)
            finally:
                door.drop_sent = None

    async def _link_hole(self, fault: Fault) -> None:
        door = self._scene.rig.doors[self._server(fault)]
        async with self._happening(fault, f"door of n{self._server(fault) + 1}", broker=True):
            door.blackhole()
            try:
                await asyncio.sleep(fault.seconds)
            finally:
                door.restore()

    # ------------------------------------------------------------ records

    @contextlib.asynccontextmanager
    async def _happening(self, fault: Fault, target: str, *, pid: int = 0, broker: bool = False) -> AsyncIterator[None]:
        """Put the fault into the history: what follows from it is not held against the protocol."""
        self._number += 1
        about = {"number": self._number, "fault": fault.name, "target": target, "child": pid, "broker": broker}
        self._told(fault, target)
        self._scene.record.write("fault", **about)
        try:
            yield
        finally:
            self._scene.record.write("mended", **about)
