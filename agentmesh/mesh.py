"""`connect`: the way in for programs, notebooks and tests.

    async with agentmesh.connect() as mesh:
        await mesh.spawn(Greeter)
        print(await mesh.ask("greeter", Greet(name="Ada")))

It finds a broker by itself: the address given, `$NATS_URL`, a running `agentmesh up` of this folder or one above it,
or else it starts an embedded one in this process, with the services that `agentmesh up` would run beside it.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import sys
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from agentmesh import config, runfile
from agentmesh.agent import Agent, CellOptions, behaviour
from agentmesh.client import Client
from agentmesh.errors import DefinitionError
from agentmesh.host import Host
from agentmesh.ids import new_id
from agentmesh.local import LocalServices
from agentmesh.refs import AgentRef
from agentmesh.subjects import Subjects, token
from agentmesh.tasks.layout import use_scheme
from agentmesh.transport import Transport, TransportOptions

if TYPE_CHECKING:
    from types import TracebackType

    from agentmesh.sync import SyncMesh
    from agentmesh.tasks.ledger import Ledger
    from agentmesh.tasks.reconcile import Reconciler

T = TypeVar("T")

STOP_GRACE = 5.0
"""Seconds an agent of this process gets to finish when it is stopped."""

CLOSE_GRACE = 1.0
"""Seconds all of them get when the mesh is closed: whoever closes it wants to go."""


@dataclass(frozen=True)
class ConnectOptions:
    """Where and as whom to connect."""

    url: str | None = None
    tenant: str | None = None
    name: str = ""
    transport: TransportOptions | None = None
    """Credentials, TLS and the like; its address is replaced by the one that was found."""
    subjects: Subjects | None = None
    """A subject scheme of your own; otherwise that of `tenant`."""
    store: Path | None = None
    """Where an embedded broker keeps its data; None forgets it at the end."""
    own_thread: bool | None = None
    """Run spawned agents on a thread of their own. None: only in notebooks, where a busy cell would stop them."""
    ledger: Path | str | Ledger | None = None
    """Where what is submitted is written down until it is decided; see `agentmesh.tasks.ledger`."""


class Mesh(Client):
    """A connection to a mesh, with the verbs of `Client`, and agents of this process.

    Made by `connect`. Use it from the event loop that made it; `mesh.sync` serves plain code.
    """

    def __init__(self, transport: Transport, options: ConnectOptions, local: LocalServices | None) -> None:
        super().__init__(
            transport, options.subjects or Subjects(options.tenant or "default"), options.name or f"client-{new_id()}"
        )
        self._options = options
        self._local = local
        self._host: Host | None = None
        self._host_starting = asyncio.Lock()
        self._closing = asyncio.Lock()
        self._sync: SyncMesh | None = None
        self._reconciler: Reconciler | None = None
        self._interactive = _in_notebook() if options.own_thread is None else options.own_thread

    @property
    def url(self) -> str:
        """The broker's address, without credentials."""
        return self.transport.url

    def __repr__(self) -> str:
        return f"Mesh({self.url!r}, tenant={self.subjects.tenant!r}, {self.transport.state})"

    # ------------------------------------------------------------ agents of this process
    async def spawn(
        self,
        agent_class: type[Agent],
        *args: Any,
        name: str | None = None,
        replicas: int = 1,
        options: CellOptions | None = None,
        **kwargs: Any,
    ) -> AgentRef:
        """Start an agent in this process, supervised; spawning a name again replaces those of this process.

        If one replica cannot be started, those started before it are stopped again.

        Args:
            agent_class: The agent.
            args: For its constructor, at every start and restart.
            name: Its address; by default made from the class name.
            replicas: How many run side by side behind that address.
            options: Settings that differ from the class's.
            kwargs: For its constructor.

        Raises:
            DefinitionError: The class or a setting cannot work.
            Exception: What the constructor or `on_start` raised.
        """
        if replicas < 1:
            raise DefinitionError("replicas", f"must be 1 or more, not {replicas}")
        if self._interactive:
            ref = await self._on_thread(
                lambda mesh: mesh.spawn(agent_class, *args, name=name, replicas=replicas, options=options, **kwargs)
            )
            return self.ref(ref.name)
        chosen = options or CellOptions()
        chosen = replace(chosen, args=args or chosen.args, kwargs={**chosen.kwargs, **kwargs})
        address = token("agent", chosen.name or behaviour(agent_class).name if name is None else name)
        host = await self._hosting()
        started = 0
        try:
            for replica in range(1, replicas + 1):
                await host.spawn(agent_class, replace(chosen, name=address, replica=replica))
                started = replica
        except BaseException:
            for replica in range(1, started + 1):
                await host.stop_agent(address, grace=0.0, replica=replica)
            raise
        for info in host.infos(address, brief=True):
            if info.replica > replicas:
                await host.stop_agent(address, grace=STOP_GRACE, replica=info.replica)
        return self.ref(address)

    async def stop(self, agent: str, *, grace: float = STOP_GRACE) -> int:
        """Stop the replicas of an agent that this process runs; returns how many there were."""
        if self._interactive:
            return await self._on_thread(lambda mesh: mesh.stop(agent, grace=grace))
        return await self._host.stop_agent(agent, grace=grace) if self._host else 0

    async def kill(self, agent: str) -> int:
        """End the replicas of an agent here at once, without `on_stop`; those who wait for an answer are told."""
        if self._interactive:
            return await self._on_thread(lambda mesh: mesh.kill(agent))
        return await self._host.kill_agent(agent) if self._host else 0

    async def _hosting(self) -> Host:
        async with self._host_starting:
            if self._host is None:
                host = Host(self, self.identity)
                await host.start()
                self._host = host
            return self._host

    # ------------------------------------------------------------ the ledger
    async def _keep_ledger(self, ledger: Path | str | Ledger) -> None:
        """Write down what is submitted from now on."""
        from agentmesh.tasks.ledger import Ledger
        from agentmesh.tasks.reconcile import Reconciler

        # One of our own: whoever gave us one may use it for another connection, too.
        own = Ledger(ledger.path, patience=ledger.patience) if isinstance(ledger, Ledger) else Ledger(ledger)
        reconciler = Reconciler(self.tasks, own)
        await reconciler.start()
        self._reconciler = reconciler

    # ------------------------------------------------------------ plain code
    @property
    def sync(self) -> SyncMesh:
        """The same mesh for code without `await`, on a thread and connection of its own; works in notebooks."""
        if self._sync is None:
            from agentmesh.sync import SyncMesh

            self._sync = SyncMesh(replace(self._options, own_thread=False))
        return self._sync

    async def _on_thread(self, action: Callable[[Mesh], Coroutine[Any, Any, T]]) -> T:
        return await asyncio.wrap_future(self.sync.submit_call(action))

    # ------------------------------------------------------------ end
    async def close(self, *, grace: float = CLOSE_GRACE) -> None:
        """Stop the agents of this process, then whatever `connect` started; once more does nothing.

        Never raises because the broker is gone.

        Args:
            grace: Seconds in which agents finish what waits and what they are at; tasks not done by then are given
                back, and those who wait for an answer are told.
        """
        async with (
            self._closing,
            contextlib.AsyncExitStack() as ending,
        ):  # in reverse order, each whatever the others do
            if self._local is not None:
                ending.push_async_callback(self._local.stop_broker)
            ending.push_async_callback(self.transport.close)
            if self._local is not None:
                ending.push_async_callback(self._local.stop_services)
            if self._reconciler is not None:
                ending.push_async_callback(self._reconciler.stop)
            if self._host is not None:
                ending.push_async_callback(self._host.drain, grace if self.transport.is_connected else 0.0)
            ending.push_async_callback(self.end_nats)
            if self._sync is not None:
                ending.push_async_callback(asyncio.to_thread, self._sync.close)
            self._local = self._host = self._reconciler = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Connecting:
    """What `connect` returns: `await` it, or use it as `async with`."""

    def __init__(self, options: ConnectOptions) -> None:
        self._options = options
        self._mesh: Mesh | None = None

    def __await__(self) -> Generator[Any, None, Mesh]:
        return _connect(self._options).__await__()

    async def __aenter__(self) -> Mesh:
        self._mesh = await _connect(self._options)
        return self._mesh

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._mesh is not None:
            await self._mesh.close()


def connect(
    url: str | None = None,
    *,
    tenant: str | None = None,
    name: str = "",
    transport: TransportOptions | None = None,
    subjects: Subjects | None = None,
    store: Path | None = None,
    own_thread: bool | None = None,
    ledger: Path | str | Ledger | None = None,
) -> Connecting:
    """Connect to a mesh: `mesh = await connect()` or `async with connect() as mesh`.

    Args:
        url: The broker; see the module for what happens without.
        tenant: Whose agents; by default that of the `agentmesh up` that was found, or `default`.
        name: The sender that agents see.
        transport: Credentials, TLS and timeouts.
        subjects: A subject scheme of your own.
        store: Folder for the data of an embedded broker; None forgets it at the end.
        own_thread: Run spawned agents on a thread of their own; by default only in notebooks.
        ledger: A file in which what is submitted is written down until it is decided, and from which it is submitted
            again should the broker lose it; several processes may share it.

    Raises:
        InvalidNameError: `tenant` or `name` is no name.
        BrokerUnavailableError: There is an address, and no broker at it.
        BrokerTooOldError: The broker lacks what agentmesh needs.
        BrokerStartError: The embedded broker could not be started.
        LedgerError: The ledger cannot be opened.
    """
    return Connecting(ConnectOptions(url, tenant, name, transport, subjects, store, own_thread, ledger))


async def _connect(options: ConnectOptions) -> Mesh:
    if options.name:
        token("client", options.name)
    url = options.url or config.broker_url()
    if url is None and (running := runfile.find()) is not None:
        url = running.url
        options = replace(options, tenant=options.tenant or running.tenant)
    subjects = options.subjects or Subjects(options.tenant or "default")
    async with contextlib.AsyncExitStack() as begun:  # undone if something fails, kept if nothing does
        local = None
        if url is None:
            local = LocalServices(options.store)
            begun.push_async_callback(local.stop_broker)
            url = await local.start_broker()
        settings = replace(options.transport or TransportOptions(), url=url)
        if options.name:
            settings = replace(settings, name=options.name)
        transport = await Transport.connect(settings)
        begun.push_async_callback(transport.close)
        use_scheme(transport, subjects)
        if local is not None:
            begun.push_async_callback(local.stop_services)
            await local.start_services(transport, subjects)
        mesh = Mesh(transport, replace(options, url=url, subjects=subjects), local)
        if options.ledger is not None:
            await mesh._keep_ledger(options.ledger)
        begun.pop_all()
    return mesh


def _in_notebook() -> bool:
    return "ipykernel" in sys.modules and hasattr(builtins, "get_ipython")
