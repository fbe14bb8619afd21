"""A running HTTP gateway for the `mesh` of a test, on a free port, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from agentmesh import Mesh
from agentmesh.gateway import Gateway, GatewayOptions, HttpServer, KeyOptions
from agentmesh.gateway.keys import digest

TOKEN = "am_the-token-of-these-tests"


@dataclass
class Running:
    """A gateway and a client that calls it."""

    gateway: Gateway
    server: HttpServer
    http: httpx.AsyncClient
    """Relative URLs go to the gateway."""

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


StartGateway = Callable[..., Awaitable[Running]]


def key(name: str = "tests", token: str = TOKEN, **more: Any) -> KeyOptions:
    """A key for `start_gateway(keys=(key(...),))`; call with `headers=bearer(token)`."""
    return KeyOptions(name, digest(token), **more)


def bearer(token: str = TOKEN) -> dict[str, str]:
    """The header that says who calls."""
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
async def start_gateway(mesh: Mesh) -> AsyncIterator[StartGateway]:
    """`running = await start_gateway(keys=(key(),), max_body=1000)`: fields of `GatewayOptions`."""
    started: list[Running] = []

    async def start(*, agents: tuple[str, ...] = (), tenant: str | None = None, **options: Any) -> Running:
        wishes = GatewayOptions(**{"port": 0, "access_log": False, **options})
        gateway = Gateway(wishes, mesh.transport, tenant or mesh.subjects.tenant, agents=agents)
        server = HttpServer(gateway)
        await server.start()
        http = httpx.AsyncClient(base_url=server.url, timeout=30.0, trust_env=False)
        started.append(Running(gateway, server, http))
        return started[-1]

    yield start
    for running in started:
        await running.http.aclose()
        await running.server.stop(2.0)


@pytest.fixture
async def gateway(start_gateway: StartGateway) -> Running:
    """A gateway as it is by default: on loopback, without keys."""
    return await start_gateway()


async def raw(port: int, data: bytes, *, timeout: float = 10.0) -> bytes:
    """What comes back for these bytes until the gateway closes the connection; for what no HTTP client would send."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        async with asyncio.timeout(timeout):
            return await reader.read()
    finally:
        writer.close()
