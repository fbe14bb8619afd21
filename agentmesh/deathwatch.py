"""Death watch: being told when replicas of an agent end for good, wherever they ran.

What is known comes from the node monitor: a replica that was stopped or given up says so, and one that went with its
node is known to be gone at once if somebody saw the process end, else within 3.5 s. A replica that is restarted by its
supervisor has not ended. One that is moved has: `Terminated.left` says how many others there are.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Self

import msgspec

from agentmesh.errors import AgentMeshError
from agentmesh.messages import Terminated
from agentmesh.presence import NodeChange, NodeMonitor, node_monitor
from agentmesh.registry import PRESENCE, AgentInfo, discover
from agentmesh.subjects import Subjects
from agentmesh.transport import Message, Subscription, Transport

LOOK_AGAIN = 1.0
"""Seconds between looks that do not wait for news."""

OVER = ("failed", "stopped")
"""States of replicas that have ended."""

_infos = msgspec.json.Decoder(list[AgentInfo]).decode

_Key = tuple[str, int]
"""Life of a node, and number of a replica."""


class Watch:
    """The ends of one agent's replicas, in the order they become known.

    `async for gone in mesh.watch("greeter")` begins with the loop; `watch = await mesh.watch("greeter")` begins at
    once. Leave an `async with` or call `close` to hear no more. In an agent, what is awaited goes to its mailbox.
    """

    def __init__(self, tower: WatchTower, agent: str, deliver: Callable[[Terminated], None] | None = None) -> None:
        self.agent = agent
        self.deliver = deliver or self._keep
        self._tower = tower
        self._heard: deque[Terminated] = deque()
        self._news = asyncio.Event()
        self._begun = False

    def __await__(self) -> Generator[object, None, Self]:
        return self.begin().__await__()

    async def begin(self) -> Self:
        """Watch from now on; an agent that is not there is told as terminated at once."""
        if not self._begun:
            self._begun = True
            await self._tower.add(self)
        return self

    async def close(self) -> None:
        """Hear no more."""
        await self._tower.remove(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Terminated:
        """The next end of a replica."""
        await self.begin()
        while not self._heard:
            self._news.clear()
            await self._news.wait()
        return self._heard.popleft()

    async def __aenter__(self) -> Self:
        return await self.begin()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _keep(self, gone: Terminated) -> None:
        self._heard.append(gone)
        self._news.set()


class WatchTower:
    """All watches of one connection and tenant; while there are none it costs nothing."""

    def __init__(self, transport: Transport, subjects: Subjects) -> None:
        self._transport = transport
        self._subjects = subjects
        self._watches: dict[str, set[Watch]] = {}
        self._here: dict[str, dict[_Key, str]] = {}
        """Replicas of watched agents and the names of their nodes."""
        self._reasons: dict[tuple[str, _Key], str] = {}
        self._monitor: NodeMonitor | None = None
        self._subscription: Subscription | None = None
        self._mute: Callable[[], None] = lambda: None
        self._loop: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._changing = asyncio.Lock()
        transport.on_state(self._on_state)

    async def add(self, watch: Watch) -> None:
        """Begin a watch."""
        self._subjects.mailbox(watch.agent)  # checks the name
        async with self._changing:
            if self._monitor is None:
                await self._start()
            here = self._here.get(watch.agent) or self._replicas(watch.agent) or await self._ask(watch.agent)
            self._watches.setdefault(watch.agent, set()).add(watch)
            self._here[watch.agent] = here
            if not here:
                watch.deliver(Terminated(agent=watch.agent, reason="it is not there"))

    async def remove(self, watch: Watch) -> None:
        """End a watch; nothing happens if it has not begun."""
        watches = self._watches.get(watch.agent, set())
        watches.discard(watch)
        if not watches:
            self._watches.pop(watch.agent, None)
            self._here.pop(watch.agent, None)
        async with self._changing:
            if not self._watches:
                await self._stop()

    # ------------------------------------------------------------ looking
    async def _start(self) -> None:
        self._monitor = await node_monitor(self._transport, self._subjects)
        self._mute = self._monitor.listen(self._on_node)
        self._subscription = await self._transport.subscribe(self._subjects.control(PRESENCE), self._on_presence)
        self._loop = asyncio.get_running_loop().create_task(self._run(), name="death watch")

    async def _stop(self) -> None:
        self._monitor = None
        self._mute()
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.cancel()
        subscription, self._subscription = self._subscription, None
        if subscription is not None and self._transport.is_connected:
            await subscription.unsubscribe()
        self._reasons.clear()

    def _on_state(self, state: str) -> None:
        """Nothing is heard over a connection that is closed for good, and its loop would keep it in memory."""
        if state == "closed":
            self._mute()
            if self._loop is not None:
                self._loop.cancel()

    def _on_node(self, change: NodeChange) -> None:
        if change.state in ("down", "left"):
            why = f"its node is {change.state}: {change.node.reason}" if change.state == "down" else "its node stopped"
            for info in change.agents:
                self._explain(info, why)
        self._news.set()

    def _on_presence(self, message: Message) -> None:
        if message.data[:1] != b"[":
            return  # a sign of life
        with contextlib.suppress(msgspec.MsgspecError):
            for info in _infos(message.data):
                if info.state in OVER:
                    self._explain(info, f"it failed: {info.problem}" if info.problem else "it was stopped")
                self._news.set()

    def _explain(self, info: AgentInfo, why: str) -> None:
        if info.name in self._watches:
            self._reasons.setdefault((info.name, (info.life, info.replica)), why)

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AGAIN):
                    await self._news.wait()
            self._news.clear()
            for agent in list(self._watches):
                with contextlib.suppress(AgentMeshError):  # the next look finds it too
                    await self._compare(agent)

    async def _compare(self, agent: str) -> None:
        before, here = self._here.get(agent, {}), self._replicas(agent)
        if any((agent, key) not in self._reasons for key in before.keys() - here.keys()):
            here = {**await self._ask(agent), **here}  # nobody said so: the monitor may not have heard of it yet
        if agent not in self._watches:
            return
        self._here[agent] = here
        for key in sorted(before.keys() - here.keys()):
            why = self._reasons.pop((agent, key), "it is gone")
            gone = Terminated(agent=agent, replica=key[1], node=before[key], reason=why, left=len(here))
            for watch in list(self._watches.get(agent, ())):
                watch.deliver(gone)

    def _replicas(self, agent: str) -> dict[_Key, str]:
        nodes = self._monitor.nodes() if self._monitor is not None else []
        return {
            (node.life, info.replica): node.node
            for node in nodes
            if node.state in ("up", "suspect")
            for info in node.agents
            if info.name == agent and info.state not in OVER
        }

    async def _ask(self, agent: str) -> dict[_Key, str]:
        """An agent that has just started may not have been heard of yet."""
        infos = await discover(self._transport, self._subjects, name=agent, brief=True)
        return {(info.life, info.replica): info.node for info in infos if info.life and info.state not in OVER}


def watch_tower(transport: Transport, subjects: Subjects) -> WatchTower:
    """The one of a connection for a tenant."""
    place = ("watch tower", subjects.tenant)
    if place not in transport.shared:
        transport.shared[place] = WatchTower(transport, subjects)
    tower: WatchTower = transport.shared[place]
    return tower
