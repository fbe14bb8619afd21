"""Fixtures for tests that need a real server, a faulty link, or processes of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Protocol

import pytest

from agentmesh.chaos import Server, TcpProxy
from tests.harness.process import Process, spawn_python


class SpawnProcess(Protocol):
    """`process = await spawn_process(module_or_code, *args, env={...})`; killed with its family when the test ends."""

    async def __call__(self, module_or_code: str, *args: str, env: Mapping[str, str] | None = None) -> Process: ...


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A nats-server of this test's own, running, JetStream on, every write synced."""
    async with Server() as running:
        yield running


@pytest.fixture
async def proxy(server: Server) -> AsyncIterator[TcpProxy]:
    """A faulty link to `server`."""
    async with TcpProxy(server.port) as link:
        yield link


@pytest.fixture
async def spawn_process() -> AsyncIterator[SpawnProcess]:
    """Starts Python processes that end with the test."""
    started: list[Process] = []

    async def start(module_or_code: str, *args: str, env: Mapping[str, str] | None = None) -> Process:
        process = await spawn_python(module_or_code, *args, env=env)
        started.append(process)
        return process

    yield start
    for process in started:
        await process.cleanup()
