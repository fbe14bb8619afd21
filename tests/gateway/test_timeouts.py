"""Each route has its time, callers may want less, and what is left goes with the call."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import pytest

from agentmesh import Agent, AgentRef, Context, Prompt, Request, handler
from agentmesh.config import load
from agentmesh.gateway.options import DEFAULT_PORT, GatewayOptions, address
from tests.gateway.conftest import StartGateway

Spawn = Callable[..., Awaitable[AgentRef]]
ASK = "POST /api/v1/agents/{agent}/ask"


class Left(Request[float]):
    """How much time is left."""


class Inner(Agent):
    @handler
    async def left(self, message: Left, ctx: Context) -> float:
        return ctx.remaining() or 0.0


class Outer(Agent):
    @handler
    async def prompt(self, message: Prompt) -> str:
        left = await self.mesh.ask("inner", Left())
        return str(left)


@pytest.mark.seed("A31")
async def test_a_route_has_its_own_timeout_and_further_calls_get_what_is_left(
    start_gateway: StartGateway, spawn: Spawn
) -> None:
    await spawn(Inner)
    await spawn(Outer)
    http = (await start_gateway(timeout=1000.0, routes={ASK: 100.0})).http

    async def left(**body: float) -> float:
        return float((await http.post("/api/v1/agents/outer/ask", json={"text": "", **body})).json()["reply"])

    assert 40 < await left() <= 100
    assert 40 < await left(timeout=500) <= 100  # never more than the route allows
    assert 0 < await left(timeout=30) <= 30


@pytest.mark.seed("A31")
async def test_a_timeout_is_504_and_names_what_took_too_long(start_gateway: StartGateway, spawn: Spawn) -> None:
    from tests.gateway.agents import Greeter

    await spawn(Greeter)
    http = (await start_gateway(routes={ASK: 0.2})).http

    late = await http.post("/api/v1/agents/greeter/ask", json={"type": "Hang"})

    assert (late.status_code, late.json()["error"]["code"]) == (504, "DEADLINE_EXCEEDED")
    assert "greeter: Hang" in late.json()["error"]["message"]


async def test_settings_for_a_route_that_is_not_there_are_warned_of(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "agentmesh.gateway"):
        await start_gateway(routes={"POST /api/v1/agent/{agent}/ask": 5.0, ASK: 5.0})

    (line,) = [record.getMessage() for record in caplog.records if record.name == "agentmesh.gateway"]
    assert "'POST /api/v1/agent/{agent}/ask'; did you mean" in line
    assert repr(ASK) in line


@pytest.mark.seed("A22")
def test_the_gateway_listens_on_port_8000_unless_told_otherwise() -> None:
    settings = load(environ={})

    assert (settings.http.enabled, settings.http.host, settings.http.port) == (True, "127.0.0.1", None)
    assert DEFAULT_PORT == 8000
    assert address(GatewayOptions().host, DEFAULT_PORT) == "http://127.0.0.1:8000"
