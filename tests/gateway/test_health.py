"""`/health`, `/ready`, `/metrics`: what those who watch are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from agentmesh import AgentRef
from agentmesh.gateway import Gateway, GatewayOptions, HttpServer
from agentmesh.gateway.__main__ import NO_LOGIN
from agentmesh.gateway.spec import GatewaySpec, encoded
from agentmesh.transport import Transport, TransportOptions
from tests.gateway.agents import Greeter
from tests.gateway.conftest import Running, StartGateway, bearer, key
from tests.harness import Server, eventually
from tests.harness.fixtures import SpawnProcess

Spawn = Callable[..., Awaitable[AgentRef]]


@pytest.fixture
async def on_its_own(server: Server) -> AsyncIterator[Running]:
    """A gateway whose broker can be killed."""
    async with await Transport.connect(TransportOptions(server.url, "gateway")) as transport:
        http = HttpServer(Gateway(GatewayOptions(port=0, access_log=False), transport, "default"))
        await http.start()
        async with httpx.AsyncClient(base_url=http.url, timeout=10, trust_env=False) as client:
            yield Running(http.gateway, http, client)
        await http.stop(1.0)


@pytest.mark.seed("A28")
async def test_a_gateway_is_ready_only_while_the_broker_is_there_and_healthy_all_the_time(
    on_its_own: Running, server: Server
) -> None:
    http = on_its_own.http

    async def status() -> int:
        assert (await http.get("/health")).status_code == 200
        return (await http.get("/ready")).status_code

    assert await status() == 200
    server.kill9()
    await eventually(lambda: _is(status, 503), 3.0, what="503 after the broker was killed")
    asked = await http.post("/api/v1/agents/a/ask", json={"text": "hi", "timeout": 0.5})
    assert (asked.status_code, asked.json()["error"]["code"]) in ((503, "UNAVAILABLE"), (504, "DEADLINE_EXCEEDED"))
    await server.start()
    await eventually(lambda: _is(status, 200), 20.0, what="200 once it is back")
    server.pause()
    try:
        unanswered = await http.get("/ready")
    finally:
        server.resume()
    assert (unanswered.status_code, unanswered.json()["problems"]) == (503, ["the broker does not answer"])
    await eventually(lambda: _is(status, 200), 20.0, what="200 once it goes on")


async def _is(status: Callable[[], Awaitable[int]], wanted: int) -> bool:
    return await status() == wanted


@pytest.mark.seed("A28")
async def test_a_gateway_is_not_ready_until_its_agents_have_been_started(
    start_gateway: StartGateway, spawn: Spawn
) -> None:
    gateway = await start_gateway(agents=("greeter",))

    early = await gateway.http.get("/ready")
    await spawn(Greeter)
    late = await gateway.http.get("/ready")

    assert (early.status_code, early.json()["problems"]) == (503, ["agents not started yet: greeter"])
    assert early.headers["retry-after"] == "1"
    assert late.status_code == 200


@pytest.mark.seed("A28")
async def test_a_gateway_answers_discovery_as_a_micro_service(gateway: Running) -> None:
    transport = gateway.gateway.transport

    replies = await transport.request_many("$SRV.PING.gateway", b"", timeout=2, stall=0.2)

    assert any(gateway.url.encode() in reply.data for reply in replies)


async def test_metrics_are_read_by_the_parser_of_prometheus(gateway: Running, spawn: Spawn) -> None:
    await spawn(Greeter)
    await gateway.http.post("/api/v1/agents/greeter/ask", json={"text": "hi"})
    await gateway.http.get("/nothing", headers={"Host": "evil.example"})

    answer = await gateway.http.get("/metrics")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}

    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    counted = {
        (sample.labels["route"], sample.labels["status"]): sample.value
        for sample in families["agentmesh_http_requests"].samples
    }
    assert counted["POST /api/v1/agents/{agent}/ask", "200"] == 1
    assert counted["GET (none)", "421"] == 1
    assert {s.labels["code"] for s in families["agentmesh_http_rejected"].samples} == {"PERMISSION_DENIED"}
    assert families["agentmesh_http_request_seconds"].type == "histogram"
    assert {sample.value for sample in families["agentmesh_http_open_streams"].samples} == {0}


async def test_who_has_no_key_is_told_nothing_but_whether_it_is_ready(start_gateway: StartGateway) -> None:
    http = (await start_gateway(keys=(key(),), agents=("secret-agent",))).http

    assert (await http.get("/health")).json() == {"status": "ok"}
    assert "secret-agent" not in (await http.get("/ready")).text
    assert "secret-agent" in (await http.get("/ready", headers=bearer())).text


async def test_a_gateway_that_the_broker_no_longer_lets_in_ends_and_says_why(spawn_process: SpawnProcess) -> None:
    users = "authorization { users = [ { user: gateway, password: %s } ] }"
    async with Server(extra_config=users % "one") as server:
        transport = {"url": server.url, "user": "gateway", "password": "one", "login_patience": 1.0}
        spec = encoded(GatewaySpec(transport, GatewayOptions(port=0)))
        process = await spawn_process("agentmesh.gateway", *spec)
        await process.line_matching("http ready", timeout=60)

        config = server.store / "nats.conf"
        config.write_text(config.read_text().replace("password: one", "password: two"))
        server.reload()

        assert await process.wait(30) == NO_LOGIN
        await process.line_matching("http gateway: .*refused the login")


async def test_a_stopping_gateway_is_not_ready(gateway: Running) -> None:
    gateway.gateway.shutdown.set()

    assert (await gateway.http.get("/ready")).json()["problems"] == ["stopping"]


async def test_stopping_ends_what_hangs_after_the_grace_and_lets_the_rest_finish(
    gateway: Running, spawn: Spawn
) -> None:
    made: list[Greeter] = []
    await spawn(Greeter, made)
    hanging = asyncio.create_task(gateway.http.post("/api/v1/agents/greeter/ask", json={"type": "Hang"}))
    await made[0].hung.wait()

    async with asyncio.timeout(20):
        await gateway.server.stop(0.3)
        late = await hanging
        await made[0].cancelled.wait()

    assert (late.status_code, late.headers["retry-after"]) == (503, "5")
    with pytest.raises(httpx.ConnectError):
        await gateway.http.get("/health")
