"""`agentmesh up` with its HTTP gateway: a process like the others, found by its address, ended within the grace."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import httpx
import pytest

from agentmesh import ports, runfile
from agentmesh.errors import ConfigError
from agentmesh.gateway.options import GatewayOptions, KeyOptions
from agentmesh.up import LogLine, Restarted, ServiceReady, Stopped, Warned, fleet
from tests.harness import eventually
from tests.up.conftest import GREETER, StartMesh

ASK = "/api/v1/agents/greeter/ask"


async def test_the_gateway_serves_the_agents_comes_back_where_it_was_and_stops_within_the_grace(
    start_mesh: StartMesh, project: Path
) -> None:
    mesh = await start_mesh(GREETER, http=GatewayOptions(port=0), grace=3.0)
    ready = await mesh.event(ServiceReady, service="gateway")
    found = runfile.find(project)
    assert found is not None
    assert (found.http, ready.url) == (ready.url, found.http)

    async with httpx.AsyncClient(base_url=ready.url, timeout=30, trust_env=False) as http:
        assert (await http.get("/ready")).status_code == 200
        assert (await http.post(ASK, json={"type": "Hi", "data": {"name": "Ada"}})).json()["reply"] == "Hello Ada"
        assert "agentmesh_http_requests_total" in (await http.get("/metrics")).text

        os.kill(ready.pid, signal.SIGKILL)
        await mesh.event(Restarted, process="gateway")
        await eventually(lambda: _answers(http), 20.0, what="the gateway answers again at the same address")

        slow = {"type": "Slow", "data": {"seconds": 600}, "timeout": 600}
        short = {"type": "Slow", "data": {"seconds": 1}}
        hanging = asyncio.create_task(http.post(ASK, json=slow))
        await mesh.event(LogLine, text="slow begins")
        answered = asyncio.create_task(http.post(ASK, json=short))
        await eventually(lambda: len(mesh.all(LogLine, text="slow begins")) == 2, 15.0)
        await mesh.stop()

        stopped = await mesh.event(Stopped)
        assert not stopped.killed
        assert (await answered).json()["reply"] == "done"  # there was time for it
        assert (await hanging).status_code == 503  # and not for this
    assert runfile.find(project) is None


async def _answers(http: httpx.AsyncClient) -> bool:
    try:
        return (await http.get("/health")).status_code == 200
    except httpx.HTTPError:
        return False


async def test_a_usual_port_that_is_taken_is_not_insisted_on(
    start_mesh: StartMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(fleet, "DEFAULT_PORT", port)

        mesh = await start_mesh(GREETER, http=GatewayOptions())

        warned = await mesh.event(Warned, source="http")
        ready = await mesh.event(ServiceReady, service="gateway")
    assert f"port {port} is taken by" in warned.text
    assert "--http" in warned.hint
    assert ready.url != f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=ready.url, trust_env=False) as http:
        assert (await http.get("/health")).status_code == 200


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
async def test_an_address_of_another_machine_is_refused(start_mesh: StartMesh, host: str) -> None:
    key = KeyOptions("somebody", "0" * 64)

    with pytest.raises(ConfigError, match=rf"http\.host: '{host}' is no address of this machine"):
        await start_mesh(GREETER, http=GatewayOptions(host=host, keys=(key,)))


async def test_a_port_that_was_asked_for_and_is_taken_is_said_and_the_agents_run(start_mesh: StartMesh) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        mesh = await start_mesh(GREETER, http=GatewayOptions(port=port))

        warned = await mesh.event(Warned, source="gateway")
        assert f"{port} on 127.0.0.1 is taken by" in warned.text
        assert await mesh.raw("greeter", "Hi", name="Ada") == "Hello Ada"
    assert ports.is_free("127.0.0.1", port)
