"""Servers routed together, and servers behind links that can fail: to clients, and between each two of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from agentmesh import ports
from agentmesh.chaos.disk import Disk
from agentmesh.chaos.proxy import TcpProxy
from agentmesh.chaos.server import Server


class Cluster:
    """Three servers routed together on loopback; streams may have three replicas.

    A server takes connections at once, but JetStream answers only when the three have a leader: retry until then.
    """

    def __init__(self, **changes: Any) -> None:
        """`changes` are fields of `BrokerOptions` for all of them."""
        extra = changes.pop("extra_config", "")
        self._route_ports = [ports.reserve() for _ in range(3)]
        addresses = [f"127.0.0.1:{reserved.port}" for reserved in self._route_ports]
        self.servers = [
            Server(name=f"n{number}", extra_config=f"{extra}\n{_cluster(here, addresses)}", **changes)
            for number, here in enumerate(addresses, start=1)
        ]

    @property
    def urls(self) -> list[str]:
        return [server.url for server in self.servers]

    def named(self, name: str) -> Server:
        """The server a stream's or consumer's cluster info calls `name`."""
        return next(server for server in self.servers if server.name == name)

    async def __aenter__(self) -> Self:
        await start_all(self.servers)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.gather(*(server.cleanup() for server in self.servers))


class Rig:
    """One server, or three routed together, that clients and the servers themselves reach only through faulty links.

    Clients are told of no other way in, and servers of no other way to each other, so a cut link is a cut link.

    Args:
        size: Servers: 1 or 3.
        stores: A folder for each; temporary ones without.
        disks: What they are on, if it can fail.
        changes: Fields of `BrokerOptions` for all of them.
    """

    def __init__(
        self, size: int = 1, *, stores: Sequence[Path] = (), disks: Sequence[Disk] = (), **changes: Any
    ) -> None:
        self.disks = list(disks)
        self._ports = [ports.reserve() for _ in range(3 * size)]
        routes, clients, nowhere = ([one.port for one in self._ports[n * size : (n + 1) * size]] for n in range(3))
        self.doors = [TcpProxy(port) for port in clients]
        """For clients, one in front of each server."""
        pairs = [(a, b) for a in range(size) for b in range(size) if a != b]
        self._routes = {(a, b): TcpProxy(routes[b]) for a, b in pairs}
        self.servers: list[Server] = []
        for here in range(size):
            extra = [changes.get("extra_config", ""), f'client_advertise: "127.0.0.1:{self.doors[here].port}"']
            if size > 1:
                others = [f"127.0.0.1:{self._routes[here, other].port}" for other in range(size) if other != here]
                own, hidden = f"127.0.0.1:{routes[here]}", f"127.0.0.1:{nowhere[here]}"
                extra.append(_cluster(own, others, f'advertise: "{hidden}",'))
            options = {**changes, "name": f"n{here + 1}", "port": clients[here], "extra_config": "\n".join(extra)}
            self.servers.append(Server(store=stores[here] if stores else None, **options))

    @property
    def urls(self) -> list[str]:
        """Where clients connect: never a server itself."""
        return [door.url for door in self.doors]

    @property
    def replicas(self) -> int:
        """Copies a stream can have."""
        return len(self.servers)

    def named(self, name: str) -> int:
        """Number of the server with that name."""
        return next(number for number, server in enumerate(self.servers) if server.name == name)

    def split(self, number: int) -> None:
        """The other servers lose it, silently; clients still reach it."""
        for link in self._routes_of(number):
            link.blackhole()

    def isolate(self, number: int) -> None:
        """Servers and clients lose it, silently; the process runs on."""
        self.split(number)
        self.doors[number].blackhole()

    def heal(self, number: int) -> None:
        """End what `split` and `isolate` began. What was held back is not delivered: those connections are reset."""
        for link in (*self._routes_of(number), self.doors[number]):
            if link.is_blackhole:
                link.cut()
                link.restore()

    def _routes_of(self, number: int) -> Iterator[TcpProxy]:
        return (link for pair, link in self._routes.items() if number in pair)

    async def start(self) -> None:
        for link in (*self.doors, *self._routes.values()):
            await link.start()
        await start_all(self.servers)

    async def stop(self) -> None:
        """Stop everything; nothing of it is left, whatever state it was in."""
        await asyncio.gather(*(server.cleanup() for server in self.servers))
        for link in (*self.doors, *self._routes.values()):
            await link.stop()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()


async def start_all(servers: Sequence[Server]) -> None:
    """Start servers side by side."""
    async with asyncio.TaskGroup() as group:
        for server in servers:
            group.create_task(server.start())


def _cluster(own: str, routes: Sequence[str], more: str = "") -> str:
    listed = ", ".join(f'"nats://{address}"' for address in routes)
    return f'cluster {{ name: chaos, listen: "{own}", {more} routes: [{listed}] }}'
