"""The HTTP server of a gateway, in the event loop of whoever starts it.

It has no signal handlers of its own. Stopping it first sets the gateway's `shutdown`, on which open streams end, so
they never hold up the end of the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
from collections.abc import Generator
from typing import Any

import uvicorn

from agentmesh import ports
from agentmesh.errors import ConfigError, PermissionDeniedError
from agentmesh.gateway.app import make_app
from agentmesh.gateway.gateway import Gateway
from agentmesh.gateway.options import DEFAULT_PORT, address
from agentmesh.gateway.protocol import protocol
from agentmesh.metrics import METRICS
from agentmesh.metrics import serve as serve_metrics
from agentmesh.transport import Service, Subscription
from agentmesh.version import __version__

log = logging.getLogger("agentmesh.gateway")

MAX_CONNECTIONS = 4096
SPARE_FILES = 128
"""Open files kept for everything but connections of clients."""
BACKLOG = 1024
LAST_WORDS = 1.0
"""Seconds for the answers to what there was no time for."""


class _Server(uvicorn.Server):
    """Says when it is up, and leaves signals alone."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()
        self.asked = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    async def main_loop(self) -> None:
        """Until it is asked to stop; the Date field is renewed every second, and nobody wakes up more often."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self.asked.wait()

    def cut(self) -> None:
        """Close the connections that are left."""
        for connection in list(self.server_state.connections):
            transport: Any = connection.transport
            transport.abort()


class HttpServer:
    """A gateway that listens.

    Args:
        gateway: What it serves.
    """

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.url = ""
        """Known once it is started."""
        self._server: _Server | None = None
        self._metrics: Subscription | None = None
        self._service: Service | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns when it takes connections.

        Raises:
            ConfigError: It cannot listen there.
        """
        options = self.gateway.options
        listener = _listen(options.host, DEFAULT_PORT if options.port is None else options.port)
        self.url = address(options.host, listener.getsockname()[1])
        config = uvicorn.Config(
            make_app(self.gateway),
            http=protocol(options, _max_connections()),
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=options.idle_timeout,  # type: ignore[arg-type]  # a timer: fractions are good
            h11_max_incomplete_event_size=16 * 1024,
        )
        self._server = _Server(config)
        self._serving = asyncio.get_running_loop().create_task(self._server.serve([listener]), name="http server")
        up = asyncio.get_running_loop().create_task(self._server.up.wait())
        await asyncio.wait({up, self._serving}, return_when=asyncio.FIRST_COMPLETED)
        up.cancel()
        if self._serving.done():
            self._serving.result()
        await self._be_found()

    async def _be_found(self) -> None:
        """Answer those who ask what runs here, and for figures."""
        transport, tenant = self.gateway.transport, self.gateway.tenant
        subject = self.gateway.client(tenant).subjects.control(METRICS)
        self._metrics = await serve_metrics(transport, subject, "gateway")
        metadata = {"agentmesh.tenant": tenant, "agentmesh.url": self.url}
        service = Service("gateway", __version__, "Agents, tasks and streams over HTTP", metadata=metadata)
        try:
            await transport.services.start()
        except PermissionDeniedError as error:
            log.info("the gateway is not listed: %s", error)
            return
        self._service = transport.services.add(service)

    async def stop(self, grace: float) -> None:
        """Take no more requests, end the streams; what is not done within `grace` seconds is answered 503."""
        self.gateway.shutdown.set()
        if self._server is None or self._serving is None:
            return
        server, serving = self._server, self._serving
        self._server = self._serving = None
        server.should_exit = True
        server.asked.set()
        await asyncio.wait([serving], timeout=grace)
        self.gateway.abandon()
        await asyncio.wait([serving], timeout=LAST_WORDS)
        server.force_exit = True
        server.cut()
        await asyncio.wait([serving], timeout=1.0)
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        if self._metrics is not None:
            await self._metrics.unsubscribe()
        if self._service is not None:
            self.gateway.transport.services.remove(self._service)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol_number, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol_number)
    except OSError as error:
        raise ConfigError("http.host", f"{host!r} is no address of this machine: {error.strerror}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        holder = f" by {ports.listener(port)}" if port else ""
        raise ConfigError("http.port", f"{port} on {host} is taken{holder}: {error.strerror}") from error
    listener.setblocking(False)
    return listener


def _max_connections() -> int:
    """As many as there are open files for; the soft limit is raised as far as it goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + SPARE_FILES
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(MAX_CONNECTIONS, soft - SPARE_FILES))
