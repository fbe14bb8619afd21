"""Transports that end with the test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

import pytest

from agentmesh.transport import Transport, TransportOptions
from tests.harness import Server


class Connect(Protocol):
    """`transport = await connect(url)`; further arguments are fields of TransportOptions."""

    async def __call__(self, url: str | list[str], *, jetstream: bool = True, **options: Any) -> Transport: ...


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    opened: list[Transport] = []

    async def open_one(url: str | list[str], *, jetstream: bool = True, **options: Any) -> Transport:
        transport = await Transport.connect(TransportOptions(url=url, **options), jetstream=jetstream)
        opened.append(transport)
        return transport

    yield open_one
    for transport in opened:
        await transport.close()


@pytest.fixture
async def transport(server: Server, connect: Connect) -> Transport:
    """Connected to this test's server."""
    return await connect(server.url)
