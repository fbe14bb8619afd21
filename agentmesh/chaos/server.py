"""A real nats-server that can be killed, paused and brought back."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import tempfile
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from agentmesh.broker import TEMPORARY_PREFIX, BrokerOptions, EmbeddedBroker
from agentmesh.chaos.processes import pause_pid


class Server:
    """One nats-server whose port and store stay the same over any number of restarts.

        async with Server() as server:
            server.kill9()
            await server.start()

    It runs the embedded broker of agentmesh, so what is tested here is what users get.
    """

    def __init__(self, options: BrokerOptions | None = None, **changes: Any) -> None:
        """`changes` are fields of `BrokerOptions`, such as `extra_config="..."`."""
        options = dataclasses.replace(options or BrokerOptions(), **changes)
        self._own_store: tempfile.TemporaryDirectory[str] | None = None
        if options.store is None:
            # One that lives as long as this object: `terminate` keeps it.
            self._own_store = tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, ignore_cleanup_errors=True)
            options = dataclasses.replace(options, store=Path(self._own_store.name))
        self.broker = EmbeddedBroker(options)

    @property
    def url(self) -> str:
        return self.broker.url

    @property
    def port(self) -> int:
        return self.broker.port

    @property
    def pid(self) -> int:
        """0 while it does not run."""
        return self.broker.pid or 0

    @property
    def name(self) -> str:
        """What the server calls itself in the cluster."""
        return self.broker.options.name

    @property
    def running(self) -> bool:
        return self.broker.pid is not None

    @property
    def store(self) -> Path:
        return self.broker.store

    def log(self) -> str:
        """Everything it logged, over all restarts."""
        return self.broker.log_path.read_text(errors="replace")

    async def start(self) -> None:
        """Start, or start again after `kill9` or `terminate`; returns when it takes connections."""
        await self.broker.start()

    async def terminate(self) -> None:
        """SIGTERM: an orderly stop, as an operator does it. The store stays."""
        await self.broker.stop()

    async def restart(self) -> None:
        await self.terminate()
        await self.start()

    def kill9(self) -> None:
        """SIGKILL; returns when it is gone."""
        if self.running:
            os.kill(self.pid, signal.SIGKILL)
            self.broker.stop_sync()

    def pause(self) -> None:
        """SIGSTOP: connections stay open, nobody answers."""
        pause_pid(self.pid)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def reload(self) -> None:
        """SIGHUP: read the configuration file again."""
        os.kill(self.pid, signal.SIGHUP)

    async def monitor(self, page: str) -> dict[str, Any]:
        """A monitoring page, such as "varz", "connz?subs=1" or "jsz?streams=true"."""
        url = f"{self.broker.monitor_url}/{page}"

        def read() -> dict[str, Any]:
            with urllib.request.urlopen(url, timeout=5) as response:
                page: dict[str, Any] = json.load(response)
                return page

        return await asyncio.to_thread(read)

    async def cleanup(self) -> None:
        if self.running:
            self.resume()
        await self.broker.stop()
        if self._own_store:
            self._own_store.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.cleanup()
