"""`/health`, `/ready`, `/metrics`: what those who watch are told."""

from __future__ import annotations

from tests.gateway.conftest import Running


async def test_a_running_gateway_is_healthy_and_ready(gateway: Running) -> None:
    assert (await gateway.http.get("/health")).json()["status"] == "ok"
    assert (await gateway.http.get("/ready")).json()["status"] == "ok"
