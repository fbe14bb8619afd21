"""A client as the guides have it, in a tenant of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from agentmesh.broker import EmbeddedBroker
from agentmesh.facade import CodecSerializer, NATSClient
from agentmesh.ids import new_id


@pytest.fixture
def tenant_id() -> str:
    return f"guides-{new_id()}"


@pytest.fixture
async def nats_client(nats_server: EmbeddedBroker, tenant_id: str) -> AsyncIterator[NATSClient]:
    async with NATSClient(nats_server.url, tenant=tenant_id) as client:
        yield client


@pytest.fixture
def codec() -> CodecSerializer:
    return CodecSerializer()
