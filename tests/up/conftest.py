"""A mesh of real processes for each test, and its events to wait for."""

from __future__ import annotations

import asyncio
import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from agentmesh.client import Client
from agentmesh.registry import AgentInfo
from agentmesh.subjects import Subjects
from agentmesh.transport import Transport, TransportOptions
from agentmesh.up import AgentPlan, BrokerPlan, MemoryPlan, Ready, Up, UpEvent, UpPlan, ask_supervisor

E = TypeVar("E")

SWARM = '''
import asyncio, os, signal
from agentmesh import Agent, Event, Prompt, Request, Task, TaskContext, handler


class Hi(Request[str]):
    name: str


class Where(Request[int]):
    """Which process."""


class Slow(Request[str]):
    seconds: float


class Crash(Event):
    """Ends the process."""


class Stumble(Event):
    """Fails in its handler."""


class Add(Task[int], max_attempts=3):
    a: int
    b: int
    seconds: float = 0.0


class Greeter(Agent):
    """Says hello."""

    concurrency = 8

    def __init__(self, greeting: str = "Hello") -> None:
        self.greeting = greeting

    @handler
    async def hi(self, message: Hi) -> str:
        return f"{self.greeting} {message.name}"

    @handler
    async def prompt(self, message: Prompt) -> str:
        return f"{self.greeting} {message.text}"

    @handler
    async def where(self, message: Where) -> int:
        return os.getpid()

    @handler
    async def slow(self, message: Slow) -> str:
        print("slow begins", flush=True)
        await asyncio.sleep(message.seconds)
        return "done"

    @handler
    async def crash(self, message: Crash) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    @handler
    async def stumble(self, message: Stumble) -> None:
        raise ValueError("stumbled")


class Adder(Agent):
    """Adds."""

    @handler
    async def add(self, task: Add, context: TaskContext) -> int:
        print(f"adding {task.a}", flush=True)
        await asyncio.sleep(task.seconds)
        return task.a + task.b


class Env(Agent):
    @handler
    async def prompt(self, message: Prompt) -> str:
        return os.environ.get(message.text, "")
'''


class Mesh:
    """A running `Up` in this process; its broker, services and nodes are processes of their own."""

    def __init__(self, plan: UpPlan, login: tuple[str, str] | None = None) -> None:
        self.plan = plan
        self._login = login or (None, None)
        self.up = Up(plan, self._heard)
        self.events: list[UpEvent] = []
        self._changed = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._client: Client | None = None

    def _heard(self, event: UpEvent) -> None:
        self.events.append(event)
        self._changed.set()

    async def start(self) -> Mesh:
        self._running = asyncio.create_task(self.up.run())
        ready = asyncio.create_task(self.event(Ready, timeout=30))
        await asyncio.wait({self._running, ready}, return_when=asyncio.FIRST_COMPLETED)
        if self._running.done():
            ready.cancel()
            self._running.result()
        return self

    async def event(self, kind: type[E], *, timeout: float = 15.0, **wanted: Any) -> E:
        """The first event of that kind, past or future, whose fields are these; a callable is asked."""

        def fits(event: object) -> bool:
            return isinstance(event, kind) and all(
                value(getattr(event, name)) if callable(value) else getattr(event, name) == value
                for name, value in wanted.items()
            )

        try:
            async with asyncio.timeout(timeout):
                while True:
                    for event in self.events:
                        if fits(event):
                            return event  # type: ignore[return-value]
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            shown = "\n".join(map(str, self.events))
            raise AssertionError(f"no {kind.__name__} {wanted} within {timeout:g} s; there were:\n{shown}") from None

    def all(self, kind: type[E], **wanted: Any) -> list[E]:
        found = [event for event in self.events if isinstance(event, kind)]
        return [event for event in found if all(getattr(event, name) == value for name, value in wanted.items())]

    async def client(self) -> Client:
        if self._client is None:
            transport = await Transport.connect(TransportOptions(self.up.url, "test", *self._login))
            self._client = Client(transport, Subjects(self.plan.tenant), "test")
        return self._client

    async def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        client = await self.client()
        return await ask_supervisor(client.transport, client.subjects, op, **{"up": self.plan.name, **arguments})

    async def raw(self, agent: str, message_type: str, **content: Any) -> Any:
        return await (await self.client()).ask_raw(agent, message_type, content, timeout=10)

    async def agents(self) -> list[AgentInfo]:
        return msgspec.convert((await self.ask("ps"))["agents"], list[AgentInfo])

    async def pids(self) -> dict[str, int]:
        return {process["name"]: process["pid"] for process in (await self.ask("ps"))["processes"]}

    async def stop(self) -> None:
        if self._client is not None:
            await self._client.transport.close()
            self._client = None
        if self._running is not None:
            self.up.stop("the test ends")
            await self._running
            self._running = None

    async def over(self) -> None:
        """Wait until it ended by itself; raises what it raised."""
        assert self._running is not None
        try:
            await self._running
        finally:
            self._running = None

    async def cleanup(self) -> None:
        if self._running is not None:
            self.up.stop("the test ends", force=True)
        if self._client is not None:
            await self._client.transport.close()
        if self._running is not None:
            await asyncio.wait([self._running])


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the module `swarm`."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "swarm.py").write_text(textwrap.dedent(SWARM))
    return folder


StartMesh = Callable[..., Any]


@pytest.fixture
async def start_mesh(project: Path) -> AsyncIterator[StartMesh]:
    """`mesh = await start_mesh(AgentPlan(...), ..., nodes=1)`; without memory unless asked for."""
    started: list[Mesh] = []

    async def start(*agents: AgentPlan, **changes: Any) -> Mesh:
        broker = changes.pop("broker", BrokerPlan(port=0, sync_always=False))
        settings: dict[str, Any] = {"nodes": 1, "grace": 5.0, "memory": MemoryPlan(enabled=False), **changes}
        login = settings.pop("login", None)
        mesh = Mesh(UpPlan(root=project, broker=broker, agents=agents, **settings), login)
        started.append(mesh)
        return await mesh.start()

    yield start
    for mesh in started:
        await mesh.cleanup()


GREETER = AgentPlan("greeter", "swarm:Greeter")
ADDER = AgentPlan("adder", "swarm:Adder")
