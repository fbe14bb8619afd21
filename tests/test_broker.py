"""The embedded broker: found, started, durable, and never left behind."""

from __future__ import annotations

from tests.harness import Server


async def test_a_started_broker_greets_at_once(server: Server) -> None:
    page = await server.monitor("varz")
    assert page["jetstream"]["config"]["sync_always"] is True
