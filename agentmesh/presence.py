"""Which nodes are alive, with a bound on the time until everybody knows that one is not.

    monitor = await node_monitor(transport, subjects)        # one per connection, shared by all who ask
    stop = monitor.listen(lambda change: print(change.node.node, change.before, "->", change.state, change.agents))
    for node in monitor.nodes(): ...

A node is a process that hosts agents: one of `agentmesh up`, `agentmesh node`, or a program that spawned agents. It
says every second on `ai.agent.control.T.presence` that it lives, and says goodbye when it stops. When a supervisor sees
a process of its own end, it tells the others. So a node is known to be gone

* at once when it left in good order, or when it died under a supervisor (`certain`),
* else, by its silence, within 3.5 s: `suspect` after 2.2 s, `down` after 3.3 s. That is a judgement, not a fact: a
  node that was frozen, cut off, or whose event loop a handler blocked, comes back as the same life and is `up` again.

A node that is started again has the same name and another `life`. Nothing is judged while we ourselves are not
connected, or have not had a proof since the silence began that the broker hears us.

The monitor also knows which replicas of agents are on each node: `NodeChange.agents` are those that went with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import msgspec

from agentmesh import registry
from agentmesh.errors import AgentMeshError
from agentmesh.ids import new_id, now
from agentmesh.registry import PRESENCE, AgentInfo
from agentmesh.subjects import Subjects
from agentmesh.transport import Message, Subscription, Transport

log = logging.getLogger("agentmesh.presence")

PERIOD = 1.0
"""Seconds between signs of life."""

SUSPECT, DOWN = 2.2, 3.3
"""Seconds of silence."""

PROOF_TIMEOUT = 1.0
"""Seconds the broker has to show that it hears us; shorter than from `SUSPECT` to `DOWN`."""

STALLED = 0.5
"""Seconds by which our own event loop must have been late for its lateness not to count as silence of others."""

REMEMBERED = 300.0
"""Seconds that nodes which are gone are still listed."""

State = Literal["up", "suspect", "down", "left"]


class Beat(msgspec.Struct, omit_defaults=True):
    """A sign of life, or of the end of one."""

    node: str
    life: str = ""
    """Empty when somebody else speaks of the node: then host and pid say which life is meant."""
    state: Literal["up", "left", "dead"] = "up"
    host: str = ""
    pid: int = 0
    started_at: datetime | None = None
    changes: int = 0
    """How often this life told that its agents changed: whoever counted fewer has missed some."""
    reason: str = ""


_decode = msgspec.json.Decoder(Beat | list[AgentInfo]).decode
_encode = msgspec.json.Encoder().encode


class NodeInfo(msgspec.Struct):
    """A node as others see it."""

    node: str
    life: str
    """Id of this life: a node that was started again has another one."""
    state: State
    host: str
    pid: int
    started_at: datetime | None
    seen_at: datetime
    """When it was last heard of, by our clock."""
    reason: str = ""
    """Why it is not up."""
    certain: bool = True
    """False: it is judged by its silence."""
    agents: list[AgentInfo] = []
    """The replicas it has; of a node that is gone, those it had."""


@dataclass(frozen=True)
class NodeChange:
    """What became of a node."""

    node: NodeInfo
    before: State | None
    """None: it is new to us."""

    @property
    def state(self) -> State:
        return self.node.state

    @property
    def certain(self) -> bool:
        """Whether it cannot come back: it left, or somebody saw its process end."""
        return self.node.certain

    @property
    def agents(self) -> list[AgentInfo]:
        return self.node.agents


Listener = Callable[[NodeChange], None]


class Heart:
    """Says for one node that it lives: one small message a second."""

    def __init__(self, transport: Transport, subjects: Subjects, node: str) -> None:
        self.life = new_id()
        self._transport = transport
        self._subject = subjects.control(PRESENCE)
        self._beat = Beat(node, self.life, host=socket.gethostname(), pid=os.getpid(), started_at=now())
        self._loop: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin, with a first sign of life at once."""
        await self._say(self._beat)
        self._loop = asyncio.get_running_loop().create_task(self._run(), name=f"presence of {self._beat.node}")

    async def stop(self) -> None:
        """Say goodbye."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.wait([self._loop])
            self._loop = None
            await self._say(msgspec.structs.replace(self._beat, state="left"))

    async def changed(self, info: AgentInfo) -> None:
        """Say that the state of a replica changed."""
        self._beat.changes += 1
        await self._publish(_encode([info]))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(PERIOD)
            await self._say(self._beat)

    async def _say(self, beat: Beat) -> None:
        await self._publish(_encode(beat))

    async def _publish(self, data: bytes) -> None:
        if self._transport.is_connected:
            with contextlib.suppress(AgentMeshError):  # the next one will do
                await self._transport.publish(self._subject, data)


async def report_death(transport: Transport, subjects: Subjects, node: str, pid: int, reason: str) -> None:
    """Tell everybody that a node's process on this host has ended, for whoever saw it end.

    Raises:
        ConnectionLostError: The broker takes no data.
    """
    beat = Beat(node, state="dead", host=socket.gethostname(), pid=pid, reason=reason)
    await transport.publish(subjects.control(PRESENCE), _encode(beat))


@dataclass
class _Life:
    """What we know of one life of a node."""

    beat: Beat
    heard: float
    """Event-loop time of the last sign of life."""
    seen_at: datetime
    state: State = "up"
    reason: str = ""
    certain: bool = True
    changes: int = 0
    agents: dict[tuple[str, int], AgentInfo] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        """Whether it cannot come back."""
        return self.certain and self.state in ("down", "left")

    def info(self) -> NodeInfo:
        beat = self.beat
        return NodeInfo(
            node=beat.node,
            life=beat.life,
            state=self.state,
            host=beat.host,
            pid=beat.pid,
            started_at=beat.started_at,
            seen_at=self.seen_at,
            reason=self.reason,
            certain=self.certain,
            agents=list(self.agents.values()),
        )


class NodeMonitor:
    """See the module. Get it from `node_monitor`, or call `start` and `stop`."""

    def __init__(self, transport: Transport, subjects: Subjects) -> None:
        self._transport = transport
        self._subjects = subjects
        self._lives: dict[str, _Life] = {}
        self._listeners: list[Listener] = []
        self._subscription: Subscription | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._planned = 0.0
        self._proved = float("-inf")
        """Event-loop time at which a request that the broker answered was sent."""
        self._work: dict[str, asyncio.Task[None]] = {}
        self._running = False

    async def start(self) -> None:
        """Listen; when this returns the nodes with agents that answer now are known."""
        self._running = True
        self._transport.on_state(self._on_state)
        self._subscription = await self._transport.subscribe(self._subjects.control(PRESENCE), self._on_message)
        self._look()
        await self._ask()

    async def stop(self) -> None:
        """Listen no more."""
        self._end()
        if self._subscription is not None and self._transport.is_connected:
            await self._subscription.unsubscribe()
        await asyncio.gather(*self._work.values(), return_exceptions=True)

    def nodes(self) -> list[NodeInfo]:
        """The nodes, by name; those that are gone are listed for five minutes more."""
        return sorted((life.info() for life in self._lives.values()), key=lambda info: (info.node, info.seen_at))

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with every change from now on, in the event loop; it must not block.

        Returns:
            What to call to hear no more.
        """
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    # ------------------------------------------------------------ what is heard
    def _on_message(self, message: Message) -> None:
        try:
            heard = _decode(message.data)
        except msgspec.MsgspecError:
            return  # somebody else's
        if isinstance(heard, list):
            for info in heard:
                self._on_agent(info, told=True)
        elif heard.state == "dead":
            self._on_death(heard)
        elif heard.life:
            self._on_beat(heard)

    def _on_beat(self, beat: Beat) -> None:
        life = self._hear(beat)
        if life is None:
            return
        life.beat = beat
        if beat.state == "left":
            self._change(life, "left", "it was stopped")
        elif beat.changes != life.changes:
            life.changes = beat.changes
            self._begin("ask", self._ask)

    def _on_agent(self, info: AgentInfo, *, told: bool) -> None:
        if not info.life:
            return
        life = self._hear(Beat(info.node, info.life, host=info.host, pid=info.pid))
        if life is None:
            return
        life.changes += told
        if info.state == "stopped":
            life.agents.pop((info.name, info.replica), None)
        else:
            life.agents[info.name, info.replica] = info

    def _on_death(self, beat: Beat) -> None:
        for life in self._lives.values():
            known = life.beat
            if (known.node, known.host, known.pid) == (beat.node, beat.host, beat.pid) and not life.over:
                self._change(life, "down", beat.reason)

    def _hear(self, beat: Beat) -> _Life | None:
        """A sign of life; None if it comes late, from a life that is known to be over."""
        time = asyncio.get_running_loop().time()
        life = self._lives.get(beat.life)
        if life is None:
            life = self._lives[beat.life] = _Life(beat, time, now())
            self._tell(life, None)
        elif life.over:
            return None
        life.heard, life.seen_at = time, now()
        if life.state != "up":
            self._change(life, "up")
        return life

    async def _ask(self) -> None:
        """Which agents are where, from the nodes themselves."""
        before = {life.beat.life: life.changes for life in self._lives.values()}
        try:
            infos = await registry.discover(self._transport, self._subjects, brief=True)
        except AgentMeshError:
            return  # the next sign of life shows again that something was missed
        there = {(info.life, info.name, info.replica) for info in infos}
        for info in infos:
            self._on_agent(info, told=False)
        for known in {info.life for info in infos} & self._lives.keys():
            life = self._lives[known]
            if life.changes != before.get(known, life.changes):
                life.changes = -1  # it changed while we asked: once more at its next sign of life
            for key in [key for key in life.agents if (known, *key) not in there]:
                del life.agents[key]

    # ------------------------------------------------------------ what is not heard
    def _look(self) -> None:
        """Judge by silence, and plan the next look for when there can be something new to say."""
        loop = asyncio.get_running_loop()
        late = loop.time() - self._planned if self._planned else 0.0
        if late > STALLED:  # it was us who heard nothing
            for life in self._lives.values():
                life.heard += late
        if self._transport.is_connected:
            for life in list(self._lives.values()):
                self._judge(life, loop.time())
        waits = [SUSPECT, *(life.heard + _patience(life) - loop.time() for life in self._lives.values())]
        self._planned = loop.time() + max(0.1, min(waits))
        if self._running:
            self._timer = loop.call_at(self._planned, self._look)

    def _judge(self, life: _Life, time: float) -> None:
        silence = time - life.heard
        if life.state in ("down", "left"):
            if silence > REMEMBERED:
                del self._lives[life.beat.life]
        elif silence >= SUSPECT:
            if self._proved < life.heard + SUSPECT:
                self._begin("prove", self._prove)
            elif silence >= DOWN:
                self._change(life, "down", f"silent for {silence:.1f} s", certain=False)
                return
            if life.state == "up":
                self._change(life, "suspect", f"silent for {silence:.1f} s", certain=False)

    async def _prove(self) -> None:
        """Send ourselves a message: when it comes, the broker hears us, and we it."""
        began = asyncio.get_running_loop().time()
        came = asyncio.Event()
        inbox = self._transport.open_inbox(lambda message: came.set())
        try:
            async with asyncio.timeout(PROOF_TIMEOUT):
                await self._transport.publish(inbox.subject, b"")
                await came.wait()
            self._proved = began
        except (TimeoutError, AgentMeshError):
            return
        finally:
            inbox.close()

    # ------------------------------------------------------------ telling
    def _change(self, life: _Life, state: State, reason: str = "", *, certain: bool = True) -> None:
        before, life.state, life.reason, life.certain = life.state, state, reason, certain
        self._tell(life, before)

    def _tell(self, life: _Life, before: State | None) -> None:
        change = NodeChange(life.info(), before)
        for listener in list(self._listeners):
            try:
                listener(change)
            except Exception:  # one who listens must not keep it from the others
                log.exception("a listener to nodes failed")

    # ------------------------------------------------------------ inside
    def _begin(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do something beside, unless it is being done."""
        if self._running and name not in self._work:
            task = self._work[name] = asyncio.get_running_loop().create_task(work(), name=f"nodes: {name}")
            task.add_done_callback(lambda _: self._work.pop(name, None))

    def _on_state(self, state: str) -> None:
        if state == "connected":
            time = asyncio.get_running_loop().time()
            for life in self._lives.values():
                life.heard = max(life.heard, time)
            self._begin("ask", self._ask)
        elif state == "closed":
            self._end()

    def _end(self) -> None:
        self._running = False
        if self._timer is not None:
            self._timer.cancel()
        for work in self._work.values():
            work.cancel()
        self._transport.shared.pop((_SHARED, self._subjects.tenant), None)


def _patience(life: _Life) -> float:
    """Seconds of silence after which there is something to say about a life."""
    return {"up": SUSPECT, "suspect": DOWN}.get(life.state, REMEMBERED)


_SHARED = "node monitor"


async def node_monitor(transport: Transport, subjects: Subjects) -> NodeMonitor:
    """The monitor of a connection for a tenant, started at the first call; it ends with the connection."""
    place = (_SHARED, subjects.tenant)
    starting: asyncio.Task[NodeMonitor] | None = transport.shared.get(place)
    if starting is None or (starting.done() and (starting.cancelled() or starting.exception() is not None)):

        async def start() -> NodeMonitor:
            monitor = NodeMonitor(transport, subjects)
            await monitor.start()
            return monitor

        starting = asyncio.get_running_loop().create_task(start(), name="node monitor")
        transport.shared[place] = starting
    return await asyncio.shield(starting)
