"""What `agentmesh up` runs as processes, inside this one: for notebooks, scripts and tests without a running mesh.

An embedded broker, the dispatcher that routes tasks sent without an address, the mover that takes due tasks into their
queues, and the memory service.
"""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from agentmesh import config, ports, registry, runfile
from agentmesh.broker import BrokerOptions, EmbeddedBroker
from agentmesh.subjects import Subjects
from agentmesh.tasks import Dispatcher, Mover
from agentmesh.transport import Transport


class LocalServices:
    """See the module.

    Args:
        store: Folder for everything that lasts; None uses a temporary one.
    """

    def __init__(self, store: Path | None) -> None:
        self._temporary = None if store is not None else tempfile.TemporaryDirectory(prefix="agentmesh-")
        self._folder = Path(self._temporary.name) if self._temporary is not None else Path(store or ".")
        self._broker: EmbeddedBroker | None = None
        self._dispatcher: Dispatcher | None = None
        self._mover: Mover | None = None
        self._memory: Any = None

    async def start_broker(self) -> str:
        """Start the broker; returns its address."""
        self._broker = EmbeddedBroker(BrokerOptions(store=self._folder / "broker"))
        await self._broker.start()
        return self._broker.url

    async def start_services(self, transport: Transport, subjects: Subjects) -> None:
        """Start the dispatcher, the mover and the memory service."""
        self._dispatcher, self._mover = dispatcher(transport, subjects), Mover(transport, subjects)
        await self._dispatcher.start()
        await self._mover.start()
        # By name: the memory service is a layer outside the core, which must not depend on it.
        service = importlib.import_module("agentmesh.memory_store")
        self._memory = service.MemoryService(transport, self._folder / "memory.db", tenants=[subjects.tenant])
        await self._memory.start()

    async def stop_services(self) -> None:
        """Stop what `start_services` started."""
        try:
            for chore in (self._mover, self._dispatcher):
                if chore is not None:
                    await chore.stop()
        finally:
            if self._memory is not None:
                await self._memory.stop()

    async def stop_broker(self) -> None:
        """Stop the broker and forget a temporary folder."""
        if self._broker is not None:
            await self._broker.stop()
        if self._temporary is not None:
            self._temporary.cleanup()


class broker_here:  # read like a function: `with broker_here() as url`
    """The address of a broker, for a program that others will look for: one that is there, or else one on `port`.

        with broker_here() as url: ...          # or `async with`

    It is there if `$NATS_URL`, an `agentmesh up` of this folder or somebody on that port says so. One of our own is
    stopped when the block ends, and what it kept is forgotten.

    Raises:
        BrokerStartError: It could not be started.
    """

    def __init__(self, port: int = 4222) -> None:
        self._port = port
        self._broker: EmbeddedBroker | None = None

    def _found(self) -> str | None:
        if config.broker_url() is not None or runfile.find() is not None:
            return runfile.broker_address()
        if not ports.is_free("127.0.0.1", self._port):
            return f"nats://127.0.0.1:{self._port}"
        self._broker = EmbeddedBroker(BrokerOptions(port=self._port))
        return None

    def __enter__(self) -> str:
        url = self._found()
        if url is None:
            assert self._broker is not None
            self._broker.start_sync()
            url = self._broker.url
        return url

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._broker is not None:
            self._broker.stop_sync()

    async def __aenter__(self) -> str:
        url = self._found()
        if url is None:
            assert self._broker is not None
            await self._broker.start()
            url = self._broker.url
        return url

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._broker is not None:
            await self._broker.stop()


def dispatcher(transport: Transport, subjects: Subjects) -> Dispatcher:
    """A dispatcher that finds the agents of a task type through the registry."""

    async def taken() -> dict[str, set[str]]:
        """Agents by the task types they take."""
        agents: dict[str, set[str]] = {}
        for info in await registry.discover(transport, subjects):
            for message in info.messages:
                if message.kind == "task":
                    agents.setdefault(message.name, set()).add(info.name)
        return agents

    async def locate(task_type: str) -> list[str]:
        return sorted((await taken()).get(task_type, ()))

    return Dispatcher(transport, subjects, locate, known=taken)
